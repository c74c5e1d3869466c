"""Tests of the asyncio library."""
