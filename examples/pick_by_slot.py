"""Three API keys (or GPUs, ports, licence seats): the slot number says which one to use.

    etcdsem dev -- python examples/pick_by_slot.py

No two valid leases have the same slot. In a command, it is ETCDSEM_SLOT:

    etcdsem run gpus -l 4 -- sh -c 'CUDA_VISIBLE_DEVICES=$ETCDSEM_SLOT exec python train.py'
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from etcdsem import Semaphore

KEYS = ["key-a", "key-b", "key-c"]
in_use = {key: threading.Lock() for key in KEYS}  # only to show that no key is shared

api_keys = Semaphore(max_leases=len(KEYS), name="api_keys")


def call(number):
    with api_keys.hold() as lease:
        key = KEYS[lease.slot]
        if not in_use[key].acquire(blocking=False):
            raise SystemExit(f"{key} is in use twice")
        try:
            time.sleep(0.02)
        finally:
            in_use[key].release()
        return key


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        used = list(pool.map(call, range(24)))
    for key in KEYS:
        print(f"{key} was used {used.count(key)} times, never twice at a time")
