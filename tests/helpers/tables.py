"""A semaphore in a real etcd, with its transactions as short calls."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from etcdsem.core import transactions as tx
from etcdsem.core.commands import Range, RangeReply, Txn, TxnReply
from etcdsem.core.keys import (
    ORDINARY,
    Demand,
    Identity,
    Keys,
    Limit,
    Queued,
    lease_hex,
    read_message,
)
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


CLIENT = "host.1.test"


ME = Identity(CLIENT, b"")


class Table:
    """A semaphore in etcd, with its transactions as short calls."""

    def __init__(self, etcd: EtcdServer, name: str, limit: int) -> None:
        self.connection = Connection(read_settings(etcd.endpoint))
        self.keys = Keys("/etcdsem", name, CLIENT)
        reply = self.do(tx.register(self.keys, b"%d" % limit))
        self.limit = Limit(limit, reply.revision, registered=True, text=str(limit))

    def do(self, txn: Txn) -> TxnReply:
        """Perform a transaction."""
        return self.connection.transact(txn, 10)

    def lease(self) -> int:
        """Create an etcd lease."""
        lease = secrets.randbits(60) + 1
        self.connection.grant(lease, 60, 10)
        return lease

    def who(self, lease: int) -> bytes:
        """The name of a client with this lease in keys."""
        return f"{CLIENT}/{lease_hex(lease)}".encode()

    def slots(self, demand: Demand) -> list[int]:
        """The slots that a JOIN tries: all of them, or as many as its weight."""
        return list(range(self.limit.room if demand.weight == 1 else demand.weight))

    def joining(self, lease: int, *, line: bool = True, demand: Demand = ORDINARY) -> Txn:
        """JOIN or TRY."""
        return tx.join(
            self.keys,
            self.limit,
            self.slots(demand),
            lease,
            self.who(lease),
            ME.demanding(demand),
            0.0,
            queue_up=line,
            demand=demand,
        )

    def join(
        self, *, line: bool = True, demand: Demand = ORDINARY
    ) -> tuple[int, tx.Held | tx.Waiting | tx.TryFull]:
        """JOIN or TRY with a new lease."""
        lease = self.lease()
        reply = self.do(self.joining(lease, line=line, demand=demand))
        return lease, tx.read_join(
            self.keys, reply, self.slots(demand), queue_up=line, weight=demand.weight
        )

    def hold(self, demand: Demand = ORDINARY) -> tx.HeldSlots:
        """JOIN that must get a slot."""
        lease, held = self.join(demand=demand)
        assert isinstance(held, tx.Held)
        return tx.HeldSlots(
            held.slot, held.token, self.who(lease), has_message=False, more=held.more
        )

    def wait(self, demand: Demand = ORDINARY) -> Queued:
        """JOIN that must wait."""
        lease, waiting = self.join(demand=demand)
        assert isinstance(waiting, tx.Waiting)
        return Queued(self.who(lease), lease, waiting.created, ME.demanding(demand).extras)

    def look(self) -> tx.Look:
        """A look at the current state."""
        reply = self.do(Txn((), tx.look(self.keys)))
        return tx.read_look(self.keys, reply, reply.revision)

    def holders(self) -> dict[int, int]:
        """The slots and their leases."""
        return {int(kv.key[-5:]): kv.lease for kv in self.look().slots}

    def message(self, waiter: Queued) -> tuple[tuple[int, ...], tuple[Queued, ...]] | None:
        """The grant message for a waiter."""
        reply = self.do(Txn((), (Range(self.keys.message(waiter.who)),))).replies[0]
        assert isinstance(reply, RangeReply)
        return read_message(reply.kvs[0].value) if reply.kvs else None

    def mark(self) -> int:
        """The mod revision of the mark; 0 if it does not exist."""
        reply = self.do(Txn((), (Range(self.keys.contended),))).replies[0]
        assert isinstance(reply, RangeReply)
        return reply.kvs[0].mod_revision if reply.kvs else 0

    def resize(self, number: int) -> None:
        """RESIZE, and let this client know the new limit."""
        reply = self.do(tx.change_limit(self.keys, self.limit.revision, b"%d" % number))
        assert reply.succeeded
        self.limit = Limit(number, reply.revision, registered=False, text=str(number))
