"""The login: the token that calls carry, and how a new one is obtained.

Once etcd has authentication enabled, it refuses calls without a token, and those whose token has
expired. A caller that is refused logs in again, unless another has done so meanwhile.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from etcdsem.clock import boot_time
from etcdsem.core.commands import AccessDenied, Failure, NotApplied
from etcdsem.core.error_mapping import first_line
from etcdsem.etcd import rpc
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.methods import Calling, Link, Rpc
from etcdsem.etcd.outcomes import Outcome, classify
from etcdsem.etcd.settings import ConnectionSettings, Endpoint

NO_LOGIN = ""
"""The token while no user is known, or etcd has authentication disabled: like etcdctl, we assume
that the user will be needed later. Once it is enabled, calls without a token are refused,
and we log in."""


class Login:
    """The login of one client."""

    def __init__(self, settings: ConnectionSettings, counters: Counter[str]) -> None:
        self._settings = settings
        self._counters = counters
        self._lock = threading.RLock()  # a finalizer may re-enter
        self.token = self._first_token()
        """None: a login is needed before the next call."""

    def _first_token(self) -> str | None:
        external, user = self._settings.external, self._settings.user
        borrowed = None if external is None else external.token()
        return NO_LOGIN if borrowed is None and user is None else borrowed

    @property
    def whoami(self) -> str:
        """The user, for messages of refusal."""
        user = self._settings.user
        return " (no user was given)" if user is None else f" (user {user!r})"

    def outcome_of(self, error: RpcError, endpoint: Endpoint) -> tuple[Outcome, Failure]:
        """The meaning of an error, and the failure to raise. A refusal names the user."""
        outcome = classify(error.code, error.details)
        detail = first_line(error.details) or error.code
        if outcome.failure is AccessDenied:
            detail += self.whoami
        return outcome, outcome.failure(detail, str(endpoint))

    def renew(self, link: Link[Any], stale: str | None, until: float) -> Calling[None]:
        """Get a new token, unless another thread has replaced `stale` already."""
        with self._lock:
            if self.token != stale:
                return
        user, password = self._settings.user or "", self._settings.current_password()
        if password is None:
            raise AccessDenied(
                "the login failed: there is no password (ETCDSEM_PASSWORD or ETCDSEM_PASSWORD_FILE)"
                f"{self.whoami}",
                str(link.endpoint),
            )
        request = rpc.AuthenticateRequest(name=user, password=password)
        self._counters["login"] += 1
        try:
            left = max(0.05, until - boot_time())
            answer = yield Rpc(link, "login", request, left, same=f"login {link.endpoint}")
            token = answer.token
        except RpcError as error:
            _, failure = self.outcome_of(error, link.endpoint)
            if "authentication is not enabled" in failure.detail:
                token = NO_LOGIN
            elif isinstance(failure, AccessDenied):
                raise AccessDenied(
                    f"the login failed: {failure.detail}", failure.endpoint
                ) from error
            else:
                # A login changes nothing, so the request that needed it was not applied.
                raise NotApplied(failure.detail, failure.endpoint) from error
        with self._lock:
            self.token = token

    def borrow(self, stale: str | None) -> bool:
        """Take an external client's newer token, if it has one."""
        external = self._settings.external
        fresh = None if external is None else external.token()
        if fresh in (None, stale):
            return False
        with self._lock:
            self.token = fresh
        return True

    def refused(self, failure: Failure) -> AccessDenied:
        """The failure of a call that cannot log in, since no user is known."""
        detail = failure.detail
        if self._settings.external is not None:
            detail += (
                ": the login of the etcd3 client has expired, and it keeps no password; pass user "
                "and password to etcdsem.from_etcd3() too"
            )
        return AccessDenied(detail, failure.endpoint)

    def forget(self, token: str | None) -> None:
        """Forget a stream's token that has become invalid."""
        if self._settings.user is None:
            self.borrow(token)
            return
        with self._lock:
            if self.token == token:
                self.token = None
