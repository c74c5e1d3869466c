"""Fencing: a holder that was presumed dead comes back late, and its write is refused.

    etcdsem dev -- python examples/fenced_write.py

No lease can keep a paused process from acting after its lease has ended. So the store that it
writes to must detect a newer holder. Each grant has a fencing token, larger than all earlier ones
of the semaphore. With a limit above 1, compare tokens for each slot: two valid holders in different
slots have different tokens, and both may write.
"""

import sqlite3

from etcdsem import Semaphore, connect


class Fenced(Exception):
    """The slot has been granted to a newer holder."""


def create(database):
    database.execute("CREATE TABLE fence (slot INTEGER PRIMARY KEY, token INTEGER NOT NULL)")
    database.execute("CREATE TABLE result (slot INTEGER PRIMARY KEY, value TEXT NOT NULL)")
    database.commit()


def write(database, lease, value):
    """Write a result, in one transaction with the check that there is no newer holder."""
    with database:
        raised = database.execute(
            "INSERT INTO fence (slot, token) VALUES (:slot, :token) "
            "ON CONFLICT (slot) DO UPDATE SET token = :token WHERE token <= :token",
            {"slot": lease.slot, "token": lease.fencing_token},
        )
        if raised.rowcount == 0:
            raise Fenced(f"slot {lease.slot}: token {lease.fencing_token} is not the newest")
        database.execute("REPLACE INTO result (slot, value) VALUES (?, ?)", (lease.slot, value))


def main():
    database = sqlite3.connect(":memory:")
    create(database)
    with connect() as first_client, connect() as second_client:
        first = Semaphore(max_leases=1, name="ledger", client=first_client)
        second = Semaphore(max_leases=1, name="ledger", client=second_client)

        slow = first.acquire_lease()
        write(database, slow, "first, in time")

        # The first holder is paused, and an operator (or the lease timeout) frees its slot.
        second_client.evict("ledger", slot=slow.slot)
        quick = second.acquire_lease(timeout="30s")
        write(database, quick, "second")

        # It wakes up and writes, unaware of that. lease.check() would raise, but the process may be
        # paused again between the check and the write.
        try:
            write(database, slow, "first, too late")
        except Fenced as error:
            print("refused:", error)
        print("stored:", database.execute("SELECT value FROM result").fetchone()[0])
        second.release()
        first.release()


if __name__ == "__main__":
    main()
