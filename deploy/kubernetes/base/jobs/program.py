"""A program that may call the API from five places in the world at a time."""

import signal
import sys
import time

from etcdsem import Semaphore

# Process 1 of a container is deaf to SIGTERM unless it says what to do. This unwinds the stack, so
# that the lease is given back at once.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

semaphore = Semaphore(5, "my-api")  # ETCDSEM_ENDPOINTS and the labels are in the environment

for part in range(3):
    with semaphore.hold(timeout="10m") as lease:
        print(f"part {part} in slot {lease.slot}, token {lease.fencing_token}", flush=True)
        time.sleep(1)
