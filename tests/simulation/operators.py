"""What operators do to a semaphore in a run: resize, pause, evict, write junk, close."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdsem.core.keys import write_eviction
from etcdsem.core.transactions import close, evict_waiter
from tests.simulation.options import Options

if TYPE_CHECKING:
    from etcdsem.core.commands import KeyValue
    from etcdsem.core.keys import Keys
    from tests.simulation.checks import Checker
    from tests.simulation.client import SimClient
    from tests.simulation.world import World


class Operators:
    """Faults that operators cause, and the choice of their victims."""

    def __init__(
        self,
        world: World,
        options: Options,
        checkers: list[Checker],
        add_client: Callable[[], object],
    ) -> None:
        self.world = world
        self.options = options
        self.checkers = checkers
        self.add_client = add_client
        self.stopped = False
        self._resumed_soon = 0.0  # until then an operator means to resume what it has paused

    def _client(self) -> SimClient | None:
        clients = [client for client in self.world.clients if client.fine]
        holders = [client for client in clients if client.session.grants()]
        if holders and self.world.rng.random() < 0.5:
            clients = holders  # where a fault matters most
        return self.world.rng.choice(clients) if clients else None

    def _checker(self) -> Checker:
        return self.world.rng.choice(self.checkers)

    def _replace(self) -> None:
        self.add_client()

    def _put(self, key: bytes, value: bytes) -> None:
        self.world.operate(f"put {key!r} {value!r}", lambda: self.world.etcd.put(key, value))

    def _resize(self) -> None:
        rng = self.world.rng
        number = rng.choice((0, 1, 1, 2, 3, 4, 6))
        keys = self._checker().keys
        self.world.counters["resizes"] += 1
        client = self._client()
        if client is None or rng.random() < 0.5:
            self._put(keys.max_leases, b"%d" % number)
        else:
            client.resize(keys.name, number)

    def _operate(self) -> None:
        """Pause or drain, and resume later; the resuming client may die."""
        rng = self.world.rng
        keys = self._checker().keys
        client = self._client()
        self.world.counters["paused by operators"] += 1
        if client is None or rng.random() < 0.3:
            self._by_hand(keys.max_leases, b" paused")
        elif rng.random() < 0.3:
            client.drain_semaphore(keys.name, rng.choice((1.0, 5.0, math.inf)))
        else:
            client.pause_semaphore(keys.name)
        self.world.after(rng.random() * rng.choice((0.1, 1.0, 5.0)), self._resume_it, keys)

    def _penalize(self) -> None:
        """Pause for a time, like a program that was told that there are too many requests."""
        world, rng = self.world, self.world.rng
        client = self._client()
        if client is None or client.session.closed:
            return
        world.counters["paused for a time"] += 1
        client.penalize(self._checker().keys.name, rng.choice((0.5, 2.0, 4.0)) * rng.random())
        if "crash" in self.options.kinds and rng.random() < 0.2:
            world.after(rng.random() * 0.1, client.crash)
            world.after(rng.random() * 5.0, self._replace)

    def _by_hand(self, key: bytes, rest: bytes) -> None:
        stored = self.world.etcd.get(key)
        if stored is not None:
            self._put(key, stored.value.split(b" ")[0] + rest)

    def _resume_it(self, keys: Keys) -> None:
        rng = self.world.rng
        client = self._client()
        if self.stopped:
            return  # `heal` resumes it
        if client is None or rng.random() < 0.3:
            self._by_hand(keys.max_leases, b"")
            return
        client.resume_semaphore(keys.name)
        if "crash" in self.options.kinds and rng.random() < 0.2:
            self.world.after(rng.random() * 0.01, client.crash)
            self.world.after(rng.random() * 5.0, self._replace)

    def _pause_briefly(self) -> None:
        """Pause in quiet times: what becomes free meanwhile must be used again soon."""
        world, keys = self.world, self._checker().keys
        fine = [one for one in world.clients if one.fine and not one.session.closed]
        if not fine or world.now < self._resumed_soon:
            return
        client, back = world.rng.choice(fine), world.rng.random() * 2.0
        client.pause_semaphore(keys.name)
        world.after(back, client.resume_semaphore, keys.name)
        self._resumed_soon = world.now + back + 1.0
        world.counters["paused in quiet times"] += 1

    def _garbage_limit(self) -> None:
        key = self._checker().keys.max_leases
        good = self.world.etcd.get(key)
        self._put(key, self.world.rng.choice((b"", b"abc", b"-1", b"1e3", b"\xd9\xa3", b"9" * 30)))
        self.world.after(self.world.rng.random() * 3.0, self._mend, key, self._mended(good))

    def _mended(self, good: KeyValue | None) -> bytes:
        """The value that an operator writes over garbage."""
        return good.value if good and good.value.isdigit() else b"2"

    def _mend(self, key: bytes, value: bytes) -> None:
        if not self.stopped:
            self._put(key, value)

    def _evict(self) -> None:
        world, checker = self.world, self._checker()
        kvs = [kv for kv in (*checker.slots.values(), *checker.waiters.values()) if kv.lease]
        if kvs:
            kv = world.rng.choice(kvs)
            world.counters["evictions"] += 1
            world.operate(f"revoke lease of {kv.key!r}", lambda: world.etcd.revoke(kv.lease))

    def _turn_away(self) -> None:
        """Evict a waiter."""
        world, checker = self.world, self._checker()
        if checker.waiters:
            kv = world.rng.choice(list(checker.waiters.values()))
            world.counters["waiters turned away"] += 1
            world.operate(f"evict {kv.key!r}", lambda: self._evict_waiter(checker.keys, kv))

    def _evict_waiter(self, keys: Keys, kv: KeyValue) -> None:
        etcd, lease = self.world.etcd, self.world.rng.getrandbits(62) + 1
        etcd.grant(lease, 5)
        message = write_eviction("operator", 1.7e9 + self.world.now)
        who = kv.key[len(keys.waiters) :]
        etcd.transact(evict_waiter(keys, who, kv.create_revision, message, lease))

    def _delete_key(self) -> None:
        checker = self._checker()
        keys = [*checker.slots, *checker.waiters]
        if keys:
            self.world.counters["evictions"] += 1
            self._delete(self.world.rng.choice(keys))

    def _junk(self) -> None:
        keys, rng = self._checker().keys, self.world.rng
        names = (
            keys.leases + b"00000",
            keys.leases + b"00001",
            keys.leases + b"00099",
            keys.leases + b"1",
            keys.leases + b"abc",
            keys.waiters + b"somebody",
            keys.waiters + b"host.1.abc/0000000000000001",
            keys.base + b"other",
        )
        key = rng.choice(names)
        if key in self._checker().slots and rng.random() < 0.5:
            return
        self._put(key, rng.choice((b"", b"junk", b'{"owner": 3}')))
        self.world.counters["junk keys"] += 1
        self.world.after(rng.random() * 5.0, self._tire_of_junk)

    def _tire_of_junk(self) -> None:
        if not self.stopped:
            self._remove_junk()

    def _remove_junk(self, *, harmless: bool = True) -> None:
        """Remove what was put by hand. Junk that blocks no slot may stay: it is harmless."""
        for checker in self.checkers:
            keys = checker.keys
            for kv in self.world.etcd.keys(keys.base, keys.base_end):
                if kv.lease or kv.key == keys.max_leases or checker.may_stay(kv.key):
                    continue
                if harmless or kv.key in checker.slots:
                    self._delete(kv.key)

    def _delete(self, key: bytes) -> None:
        self.world.operate(f"del {key!r}", lambda: self.world.etcd.delete(key))

    def _close(self) -> None:
        world, keys = self.world, self._checker().keys
        world.counters["closes"] += 1
        world.operate("close", lambda: world.etcd.transact(close(keys, force=True)))
        again = world.rng.random() * world.rng.choice((0.01, 3.0))
        world.after(again, self._register, keys.max_leases)

    def _register(self, key: bytes) -> None:
        if self.world.etcd.get(key) is None:
            self._put(key, self._usual())

    def _usual(self) -> bytes:
        """The limit with which the run began."""
        return b"%d" % self.options.limit
