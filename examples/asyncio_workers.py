"""asyncio: a hundred tasks, of which at most five hold a lease at a time.

etcdsem dev -- python examples/asyncio_workers.py
"""

import asyncio

from etcdsem.aio import Semaphore

busy = most = 0


async def work(semaphore):
    global busy, most
    async with semaphore:
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.005)
        busy -= 1


async def main():
    semaphore = await Semaphore(max_leases=5, name="crawler")  # awaiting it registers it
    await asyncio.gather(*(work(semaphore) for _ in range(100)))
    print(f"100 tasks, at most {most} at a time")


if __name__ == "__main__":
    asyncio.run(main())
