"""At most two at a time, on any number of machines: a complete example.

etcdsem dev -- python examples/context_manager.py
"""

from etcdsem import AcquireTimeout, LeaseLost, Semaphore

database = Semaphore(max_leases=2, name="my_database")  # finds etcd through ETCDSEM_ENDPOINTS


def main():
    # Waits for a lease and releases it, even if the body raises. If the lease was lost meanwhile
    # (etcd was unreachable for too long, or an operator evicted it), the end of the block raises
    # LeaseLost.
    with database:
        print("query 1")

    # Give up after 30 seconds: AcquireTimeout is raised, and the body does not run.
    try:
        with database.hold(timeout="30s") as lease:
            for step in range(3):
                lease.check()  # raises LeaseLost; reads only the local clock, so it is cheap
                print(f"query 2, step {step}, in slot {lease.slot} of {lease.limit}")
    except AcquireTimeout:
        print("it was full for 30 seconds")
    except LeaseLost as error:
        print(f"stopped halfway: {error}")

    # Or acquire and release by hand. False always means "full".
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
