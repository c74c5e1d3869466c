"""What the blocking and the asyncio library share."""
