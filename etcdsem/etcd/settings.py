"""Where etcd is and who we are: arguments, else ETCDSEM_*, else ETCDCTL_*, else the default.

Knows no gRPC, so that bad settings are told before anything is loaded. An empty variable counts
as one that is not set. A password is never shown and never pickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from etcdsem.errors import InvalidSetting
from etcdsem.model import environment

DEFAULT_ENDPOINT = "127.0.0.1:2379"
DEFAULT_DIAL_TIMEOUT = 5.0


@dataclass(frozen=True)
class Endpoint:
    """One member of etcd. `address` is what gRPC takes, `shown` what the user wrote."""

    address: str
    shown: str
    secure: bool | None = None
    """True for https, False for http, None if the endpoint doesn't say."""

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class ConnectionSettings:
    """All that is needed to connect."""

    endpoints: tuple[Endpoint, ...]
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT

    @property
    def tls(self) -> bool:
        """Is the connection encrypted?"""
        said = self.endpoints[0].secure
        return said if said is not None else bool(self.cacert or self.cert)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "password": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.user is not None:  # the password is where we are now, if anywhere
            _, password = _login(self.user, None)
            self.__dict__["password"] = password


def read_settings(
    endpoints: str | Sequence[str] | None = None,
    *,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT,
) -> ConnectionSettings:
    """Put the settings together; raises InvalidSetting for what cannot be right."""
    given = endpoints if endpoints is not None else _variable("ENDPOINTS")[0]
    files = {
        "CACERT": _file(cacert, "CACERT"),
        "CERT": _file(cert, "CERT"),
        "KEY": _file(key, "KEY"),
    }
    if (files["CERT"] is None) != (files["KEY"] is None):
        raise InvalidSetting(
            "a client certificate and its key go together: give both cert and key "
            "(ETCDSEM_CERT and ETCDSEM_KEY), or neither"
        )
    if not 0 < dial_timeout < 3600:
        raise InvalidSetting(f"dial_timeout must be between 0 and 3600 s, not {dial_timeout}")
    who, secret = _login(user, password)
    return ConnectionSettings(
        endpoints=parse_endpoints(given if given is not None else DEFAULT_ENDPOINT),
        cacert=files["CACERT"],
        cert=files["CERT"],
        key=files["KEY"],
        user=who,
        password=secret,
        dial_timeout=dial_timeout,
    )


def _variable(name: str) -> tuple[str | None, str]:
    """The value of ETCDSEM_<name>, else of ETCDCTL_<name>; and which of them it was."""
    for variable in (f"ETCDSEM_{name}", f"ETCDCTL_{name}"):
        value = environment(variable)
        if value is not None:
            return value, variable
    return None, ""


def _file(given: str | None, name: str) -> str | None:
    path, source = (given, name.lower()) if given is not None else _variable(name)
    if path is None:
        return None
    try:
        with open(path, "rb"):
            return os.path.abspath(path)
    except OSError as error:
        raise InvalidSetting(f"{source}: cannot read {path!r}: {error.strerror}") from None
    except ValueError:
        raise InvalidSetting(f"{source}: {path!r} is no path") from None


def _login(user: str | None, password: str | None) -> tuple[str | None, str | None]:
    if user is None:
        user, source = _variable("USER")
        if user is not None and source == "ETCDCTL_USER" and ":" in user:
            user, _, rest = user.partition(":")
            password = password if password is not None else rest
    elif ":" in user and password is None:
        user, _, password = user.partition(":")
    if user is None:
        return None, None
    if password is None:
        # Not stripped: a password may begin or end with a space.
        password = os.environ.get("ETCDSEM_PASSWORD") or None
    if password is None and (path := environment("ETCDSEM_PASSWORD_FILE")) is not None:
        try:
            with open(path, encoding="utf-8") as file:
                password = file.read().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSetting(f"ETCDSEM_PASSWORD_FILE: cannot read {path!r}: {error}") from None
    if password is None:
        password = os.environ.get("ETCDCTL_PASSWORD") or None
    return user, password


# ---------------------------------------------------------------- endpoints


def parse_endpoints(given: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Read endpoints: ``host:2379``, ``http(s)://host:2379``, ``[::1]:2379``, ``unix:///path``.

    A list, or one string with commas. Duplicates count once.
    """
    texts = given.split(",") if isinstance(given, str) else list(given)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidSetting(f"endpoints must be strings: {given!r}")
    found = dict.fromkeys(_endpoint(text.strip()) for text in texts if text.strip())
    unique = {endpoint.address: endpoint for endpoint in reversed(found)}
    result = tuple(reversed(unique.values()))
    if not result:
        raise InvalidSetting(
            f"no endpoint in {given!r}: give host:port, for example {DEFAULT_ENDPOINT}"
        )
    schemes = {endpoint.secure for endpoint in result}
    if len(schemes) > 1:
        raise InvalidSetting(
            f"endpoints {', '.join(map(str, result))}: write all with https://, or all with "
            "http://, or all without"
        )
    return result


_HOST = re.compile(r"[A-Za-z0-9._-]+")


def _endpoint(text: str) -> Endpoint:
    if text.startswith(("unix:", "unixs:")):
        path = text.split(":", 1)[1]
        path = path[2:] if path.startswith("//") else path
        if not path or "\0" in path:
            raise InvalidSetting(f"endpoint {text!r}: give a socket's path, unix:///run/etcd.sock")
        return Endpoint(f"unix:{path}", text, secure=text.startswith("unixs:"))
    scheme, separator, rest = text.partition("://")
    secure: bool | None = None
    if separator:
        if scheme.lower() not in ("http", "https"):
            raise InvalidSetting(f"endpoint {text!r}: use http://, https:// or unix://")
        secure = scheme.lower() == "https"
    else:
        rest = text
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # an IPv6 address without brackets, and so without a port
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidSetting(f"endpoint {text!r}: {error}") from None
    odd = parts.path or parts.query or parts.fragment or "@" in rest
    six = re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", host) and ":" in host
    if odd or not host or not (six or _HOST.fullmatch(host)) or port == 0:
        raise InvalidSetting(
            f"endpoint {text!r}: give host:port, for example {DEFAULT_ENDPOINT} or [::1]:2379"
        )
    address = f"[{host}]:{port or 2379}" if six else f"{host}:{port or 2379}"
    return Endpoint(address, text.rstrip("/") if port else address, secure)
