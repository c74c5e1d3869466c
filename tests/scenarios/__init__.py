"""The same scenarios on threads, on asyncio and on the simulator."""
