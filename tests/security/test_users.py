"""Users and roles, on a real etcd: logins that run out, are forgotten, changed or taken away while
clients hold and wait.

Waiters that must be served by an event have their slow re-read switched off, so that only a watch
can have told them.
"""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path

import pytest

from etcdsem import Client, Semaphore
from etcdsem.errors import PermissionDenied
from tests.helpers.logins import Waiter, user
from tests.helpers.waiting import eventually
from tests.security.authority import signing_pair
from tests.security.secured import JOB, SECRET, secured

SOON = (0.2, 0.4)


def logins(client: Client) -> int:
    """How often it has logged in."""
    return client._driver.connection.counters["login"]


# ---------------------------------------------------------------- tokens


def test_a_token_that_runs_out(each_binary: str, name: str) -> None:
    """During a hold and during a wait, and then new watches on a stream that was opened with it:
    each client logs in once more, and only events are needed.
    """
    with (
        secured(each_binary, options=("--auth-token-ttl", "2")) as etcd,
        user(etcd) as holding,
        user(etcd) as waiting,
    ):
        first = Semaphore(1, name, client=holding, lease_timeout=30)
        second = Semaphore(1, name, client=waiting, lease_timeout=30)
        third = Semaphore(1, f"{name}-2", client=holding, lease_timeout=30)
        assert first.acquire()
        assert third.acquire()
        waiter = Waiter(second)
        until = time.monotonic() + 4.5  # unused for longer than its time to live
        eventually(lambda: time.monotonic() > until)
        assert first.release()
        assert waiter.result().valid
        # The waiter's stream has the old token, and is asked for new watches now.
        fourth = Waiter(Semaphore(1, f"{name}-2", client=waiting, lease_timeout=30))
        assert third.release()
        assert fourth.result().valid
        assert logins(holding) <= 3
        assert logins(waiting) <= 3


def test_a_restart_forgets_tokens(each_binary: str, name: str) -> None:
    """The member restarts under a holder and a waiter: streams are opened with a new token, the
    hand-over comes by an event, and the lease is kept.
    """
    with (
        secured(each_binary) as etcd,
        user(etcd) as holding,
        user(etcd) as waiting,
    ):
        first = Semaphore(1, name, client=holding, lease_timeout=15)
        assert first.acquire()
        lease = first.leases[0]
        waiter = Waiter(Semaphore(1, name, client=waiting, lease_timeout=15))
        etcd.restart()  # not killed: the log that is replayed then brings new tokens back
        eventually(lambda: first.get_value() == 1)
        assert lease.valid
        assert first.release()
        assert waiter.result().valid
        assert 2 <= logins(holding) <= 4
        assert 2 <= logins(waiting) <= 4


def test_json_web_tokens(each_binary: str, name: str, tmp_path: Path) -> None:
    """A JWT is no good once any role or user has changed, and when its time is up, used or not."""
    public, private = signing_pair(tmp_path)
    token = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=2s"
    with (
        secured(each_binary, options=("--auth-token", token)) as etcd,
        user(etcd) as holding,
        user(etcd) as waiting,
    ):
        first = Semaphore(1, name, client=holding, lease_timeout=30)
        third = Semaphore(1, f"{name}-2", client=holding, lease_timeout=30)
        assert first.acquire()
        assert third.acquire()
        waiter = Waiter(Semaphore(1, name, client=waiting, lease_timeout=30))
        etcd.root("role add other")
        assert first.release()
        assert waiter.result().valid
        until = time.monotonic() + 2.5
        eventually(lambda: time.monotonic() > until)
        fourth = Waiter(Semaphore(1, f"{name}-2", client=waiting, lease_timeout=30))
        assert third.release()
        assert fourth.result().valid


# ---------------------------------------------------------------- what operators do, live


def test_authentication_enabled_live(each_binary: str, name: str) -> None:
    """Clients that know their user go on, also those that wait; those without are told."""
    with (
        secured(each_binary, enabled=False) as etcd,
        user(etcd) as holding,
        user(etcd) as waiting,
        user(etcd, None, SOON) as stranger,
    ):
        first = Semaphore(1, name, client=holding, lease_timeout=15)
        assert first.acquire()
        waiter = Waiter(Semaphore(1, name, client=waiting, lease_timeout=15))
        other = Waiter(Semaphore(1, name, client=stranger, lease_timeout=2))
        etcd.enable()
        refused = other.result()
        assert isinstance(refused, PermissionDenied)
        assert "no user was given" in str(refused) or "ETCDSEM_USER" in str(refused)
        assert first.release()
        assert waiter.result().valid
        with pytest.raises(PermissionDenied, match="ETCDSEM_USER"):
            Semaphore(1, name, client=stranger).acquire(timeout=5)


def test_a_password_changed_live(each_binary: str, name: str, tmp_path: Path) -> None:
    """Who has the new one in its file goes on; who has only the old one is told, and does not
    knock again and again.
    """
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    with (
        secured(each_binary) as etcd,
        user(etcd, password=None, password_file=str(file)) as rotated,
        user(etcd, reread=SOON) as stale,
    ):
        first = Semaphore(1, name, client=rotated, lease_timeout=15)
        assert first.acquire()
        waiter = Waiter(Semaphore(1, name, client=stale, lease_timeout=2))
        file.write_text("new:one\n")
        etcd.root(f"user delete {JOB}", f"user add {JOB}:new:one", f"user grant-role {JOB} jobs")
        refused = waiter.result()
        assert isinstance(refused, PermissionDenied)
        assert JOB in str(refused)
        assert "password" in str(refused)
        assert logins(stale) <= 6
        assert first.release()
        assert first.acquire(timeout=10)
        knocks = logins(stale)
        with pytest.raises(PermissionDenied, match="the login failed"):
            Semaphore(1, name, client=stale, register=False).acquire()
        assert logins(stale) <= knocks + 2


def test_a_role_taken_away_live(each_binary: str, name: str) -> None:
    """Waiters are told that they wait in vain. A holder's release is refused, which is logged,
    and the slot is free when its lease ends: nothing keeps it alive any more.
    """
    with (
        secured(each_binary) as etcd,
        user(etcd, reread=SOON) as job,
        user(etcd, "root", password="root") as root,
    ):
        sem = Semaphore(1, name, client=job, lease_timeout=3)
        assert sem.acquire()
        waiters = [Waiter(Semaphore(1, name, client=job, lease_timeout=3)) for _ in range(3)]
        etcd.root(f"user revoke-role {JOB} jobs")
        for waiter in waiters:
            refused = waiter.result()
            assert isinstance(refused, PermissionDenied)
            assert "grant-permission" in str(refused)
        assert sem.release() is False
        with pytest.raises(PermissionDenied):
            sem.acquire()
        again = Semaphore(1, name, client=root)
        assert again.acquire(timeout=20)
        eventually(lambda: again.waiters() == ())
        again.release()


# ---------------------------------------------------------------- secrets


def test_a_password_is_nowhere_to_be_seen(
    module_binary: str, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a repr, a pickle, a log or an error; where a client is unpickled it is found again."""
    caplog.set_level(logging.DEBUG)
    seen = []
    with secured(module_binary) as etcd, user(etcd) as client:
        sem = Semaphore(1, name, client=client)
        with sem:
            pass
        engine = client._driver
        seen += [repr(one) for one in (client, sem, client.settings, engine.connection, engine)]
        data = pickle.dumps(sem)
        seen.append(repr(data))
        with user(etcd, password=f"{SECRET}-wrong") as wrong:
            with pytest.raises(PermissionDenied) as caught:
                Semaphore(1, name, client=wrong)
            error: BaseException | None = caught.value
            while error is not None:
                seen += [str(error), repr(error)]
                error = error.__cause__ or error.__context__
        monkeypatch.setenv("ETCDSEM_PASSWORD", SECRET)
        copy = pickle.loads(data)
        with copy:
            assert copy.get_value() == 1
        copy.client.close()
    seen += [record.getMessage() for record in caplog.records]
    assert not [text for text in seen if SECRET in text]
    assert len(seen) >= 8


def test_a_user_without_a_password(module_binary: str) -> None:
    """It is told what is missing, before etcd is asked."""
    with (
        secured(module_binary) as etcd,
        user(etcd, password=None) as client,
        pytest.raises(PermissionDenied, match=r"no password.*ETCDSEM_PASSWORD_FILE"),
    ):
        Semaphore(1, "x", client=client)
