"""At most two at a time, on any number of machines: the whole of it.

etcdsem dev -- python examples/context_manager.py
"""

from etcdsem import AcquireTimeout, LeaseLost, Semaphore

database = Semaphore(max_leases=2, name="my_database")  # finds etcd by ETCDSEM_ENDPOINTS


def main():
    # Waits for a lease, gives it back, also when the body raises. If the lease was lost meanwhile
    # (etcd away for too long, an eviction), LeaseLost is raised at the end of the block.
    with database:
        print("query 1")

    # Give up after a while: AcquireTimeout, and the body does not run.
    try:
        with database.hold(timeout="30s") as lease:
            for step in range(3):
                lease.check()  # raises LeaseLost; asks the local clock alone, so it costs nothing
                print(f"query 2, step {step}, in slot {lease.slot} of {lease.limit}")
    except AcquireTimeout:
        print("it was full for 30 seconds")
    except LeaseLost as error:
        print(f"stopped in the midst: {error}")

    # Or by hand. False only ever means "full".
    if database.acquire(timeout=0):
        try:
            print(f"query 3, {database.get_value()} held by all")
        finally:
            database.release()


@database  # each call holds a lease while it runs
def report():
    print("query 4")


if __name__ == "__main__":
    main()
    report()
