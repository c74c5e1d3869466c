"""Endpoints and credentials: arguments, else ETCDSEM_*, else ETCDCTL_*, else the default.

It loads no other modules, so that invalid settings are reported at once. An empty variable counts
as unset. A password is never shown and never pickled; one that comes from a file is read again for
each login, so that it can be changed while a program runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from etcdsem.errors import InvalidSetting
from etcdsem.validation import environment

log = logging.getLogger("etcdsem")

DEFAULT_ENDPOINT = "127.0.0.1:2379"
DEFAULT_DIAL_TIMEOUT = 10.0


@dataclass(frozen=True)
class Endpoint:
    """One etcd member. `address` is host:port or unix:path, `shown` is what the user wrote."""

    address: str
    shown: str
    secure: bool | None = None
    """True for https, False for http, None if the endpoint does not say."""

    def __str__(self) -> str:
        return self.shown

    @property
    def path(self) -> str:
        """The path of its Unix socket; empty if it has none."""
        return self.address[5:] if self.address.startswith("unix:") else ""

    @property
    def host(self) -> str:
        """Its host name or address; empty for a Unix socket."""
        return "" if self.path else self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Its port; 0 for a Unix socket."""
        return 0 if self.path else int(self.address.rpartition(":")[2])


class ExternalClient(Protocol):
    """Another library's client, whose channels and login we use."""

    def transport(self, endpoint: Endpoint) -> Any:
        """Calls and streams on its channel to an endpoint, in the form of `transport.Transport`."""

    def token(self) -> str | None:
        """The current token of its login."""


@dataclass(frozen=True)
class ConnectionSettings:
    """Everything that is needed to connect."""

    endpoints: tuple[Endpoint, ...]
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT
    """Seconds for which a client that has never reached etcd tries to, at any endpoint."""
    password_file: str | None = None
    patience: float | None = None
    """Seconds for which a call without a timeout retries while etcd is away; None: the default."""
    default_endpoint: bool = False
    """Whether no endpoint was given, so that the default is used."""
    external: ExternalClient | None = field(default=None, repr=False)

    @property
    def tls(self) -> bool:
        """Is the connection encrypted?"""
        said = self.endpoints[0].secure
        return said if said is not None else bool(self.cacert or self.cert)

    def stamp(self) -> tuple[int, ...]:
        """A value that changes when a certificate file changes."""
        found = []
        for path in filter(None, (self.cacert, self.cert, self.key) if self.tls else ()):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found += [status.st_mtime_ns, status.st_ino]
        return tuple(found)

    def current_password(self) -> str | None:
        """The password, read from its file again if it came from one."""
        if self.password_file is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError):  # else use the previous one
                return _read_password(self.password_file)
        return self.password

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "password": None, "external": self.external is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["external"]:  # it was borrowed there; here we only know the endpoints
            state = read_settings([one.shown for one in state["endpoints"]]).__dict__
        self.__dict__.update({**state, "external": None})
        if self.user is not None:  # the password must come from the environment here
            _, self.__dict__["password"], file = _login(self.user, None, None)
            self.__dict__["password_file"] = file


def read_settings(
    endpoints: str | Sequence[str] | None = None,
    *,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT,
) -> ConnectionSettings:
    """Combine arguments, environment and defaults. Raises InvalidSetting."""
    given = endpoints if endpoints is not None else _variable("ENDPOINTS")[0]
    ca_file, cert_file, key_file = _certificates(cacert, cert, key)
    if not 0 < dial_timeout < 3600:
        raise InvalidSetting(f"dial_timeout must be between 0 and 3600 s, not {dial_timeout}")
    who, secret, file = _login(user, password, password_file)
    found = parse_endpoints(given if given is not None else DEFAULT_ENDPOINT)
    if found[0].secure is False and (cacert or cert):
        raise InvalidSetting(
            f"endpoint {found[0]}: http:// is plain text, but certificates are given; "
            "write https://, or omit the certificates"
        )
    return ConnectionSettings(
        endpoints=found,
        cacert=ca_file,
        cert=cert_file,
        key=key_file,
        user=who,
        password=secret,
        password_file=file,
        dial_timeout=dial_timeout,
        default_endpoint=given is None,
    )


def _variable(name: str) -> tuple[str | None, str]:
    """The value of ETCDSEM_<name>, else of ETCDCTL_<name>; and the variable that had it."""
    for variable in (f"ETCDSEM_{name}", f"ETCDCTL_{name}"):
        value = environment(variable)
        if value is not None:
            return value, variable
    return None, ""


def _certificates(
    cacert: str | None, cert: str | None, key: str | None
) -> tuple[str | None, str | None, str | None]:
    """The paths of the three files, checked; None for those that are not given."""
    found = _file(cacert, "CACERT"), _file(cert, "CERT"), _file(key, "KEY")
    if (found[1] is None) != (found[2] is None):
        raise InvalidSetting(
            "a client certificate and its key go together: give both cert and key "
            "(ETCDSEM_CERT and ETCDSEM_KEY), or neither"
        )
    _check_certificates(*found)
    return found


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
        raise InvalidSetting(f"{source}: {path!r} is not a valid path") from None


def _check_certificates(cacert: str | None, cert: str | None, key: str | None) -> None:
    """Raise InvalidSetting for files that contain something else."""
    if cacert is None and cert is None:
        return
    import ssl

    if cacert is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cacert)
        except ssl.SSLError:
            raise InvalidSetting(f"cacert: {cacert!r} contains no PEM certificate") from None
    if cert is not None and key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
        except ssl.SSLError as error:
            raise InvalidSetting(
                f"cert and key: {cert!r} must contain a certificate and {key!r} its key, in PEM "
                f"format and without a passphrase ({error.reason or 'they cannot be read'})"
            ) from None


def _login(
    user: str | None, password: str | None, file: str | None
) -> tuple[str | None, str | None, str | None]:
    """The user, the password, and the file that the password came from."""
    source, label = "user", "the password file"
    if user is None:
        user, source = _variable("USER")
    if user is None:
        return None, None, None
    name, colon, rest = user.partition(":")  # etcdctl's NAME:PASSWORD; the password may have more
    if colon and (source == "ETCDCTL_USER" or (password is None and file is None)):
        user, password = name, password if password is not None else rest
    if password is None and file is None:
        # Not stripped: a password may begin or end with a space.
        password = os.environ.get("ETCDSEM_PASSWORD") or None
        if password is None:
            file, label = environment("ETCDSEM_PASSWORD_FILE"), "ETCDSEM_PASSWORD_FILE"
    if password is None and file is not None:
        try:
            password = _read_password(file)
            _check_private(label, file)
            return user, password, os.path.abspath(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise InvalidSetting(f"{label}: cannot read {file!r}: {reason}") from None
    if password is None:
        password = os.environ.get("ETCDCTL_PASSWORD") or None
    return user, password, None


def _check_private(label: str, path: str) -> None:
    """Warn about a password file that every user of this machine can read."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        shown = stat.S_IMODE(mode)
        log.warning("%s: all users of this machine can read %r (mode %04o)", label, path, shown)


def _read_password(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\r\n")


# ---------------------------------------------------------------- endpoints


def parse_endpoints(given: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Parse endpoints: ``host:2379``, ``http(s)://host:2379``, ``[::1]:2379``, ``unix:///path``.

    `given` is a list, or one string with commas. Duplicates are removed. Raises InvalidSetting.
    """
    texts = given.split(",") if isinstance(given, str) else list(given)
    if not all(isinstance(text, str) for text in texts):
        kinds = ", ".join(sorted({type(text).__name__ for text in texts} - {"str"}))
        raise InvalidSetting(f"endpoints must be strings, not {kinds}")
    if any("@" in text and not text.lstrip().startswith("unix") for text in texts):
        # Nothing is quoted: it may be a part of a password, which may contain commas.
        raise InvalidSetting(
            "endpoints with '@': an endpoint cannot contain a user or a password. Give host:port, "
            "and set ETCDSEM_USER and ETCDSEM_PASSWORD_FILE"
        )
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
            f"endpoints {', '.join(map(str, result))}: use https:// for all of them, http:// for "
            "all, or no scheme"
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
    odd = parts.path or parts.query or parts.fragment
    six = re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", host) and ":" in host
    if odd or not host or not (six or _HOST.fullmatch(host)) or port == 0:
        raise InvalidSetting(
            f"endpoint {text!r}: give host:port, for example {DEFAULT_ENDPOINT} or [::1]:2379"
        )
    address = f"[{host}]:{port or 2379}" if six else f"{host}:{port or 2379}"
    return Endpoint(address, text.rstrip("/") if port else address, secure)
