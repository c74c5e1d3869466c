"""Processes that fork, spawn, end, are interrupted or killed."""
