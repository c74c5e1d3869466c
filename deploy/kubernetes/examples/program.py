"""A program that calls an API which allows five concurrent callers worldwide."""

import signal
import sys
import time

from etcdsem import Semaphore

# Process 1 of a container ignores SIGTERM unless it handles it. This unwinds the stack, so that the
# lease is released at once.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

semaphore = Semaphore(5, "my-api")  # endpoints and labels come from the environment

for part in range(3):
    with semaphore.hold(timeout="10m") as lease:
        print(f"part {part} in slot {lease.slot}, token {lease.fencing_token}", flush=True)
        time.sleep(1)
