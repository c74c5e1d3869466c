"""Connect to an endpoint, blocking: name, socket, TLS, and the peer's first HTTP/2 frame.

1. Every failure is a `NotConnected` (or `Misconfigured`) with advice on how to fix it: until the
   peer has sent its SETTINGS, no request was sent.
2. A name may have several addresses. Each gets its share of the time; the one that answered last
   is tried first.
3. Names are looked up in a thread: the system's resolver supports no deadline and no Ctrl-C.
4. Certificates are reloaded when their files have changed.
5. A forked child closes the sockets that it inherited, without sending anything on them.
6. `close` immediately ends connection attempts of other threads.
"""

from __future__ import annotations

import _socket
import os
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from etcdsem.clock import boot_time
from etcdsem.core.commands import Misconfigured, NotConnected
from etcdsem.etcd.diagnosis import NO_NAME_SERVER, SILENT, Reason, explain, explain_start
from etcdsem.etcd.grpc_protocol import header_block
from etcdsem.etcd.http2 import Http2

if TYPE_CHECKING:
    import ssl

    from etcdsem.etcd.settings import ConnectionSettings, Endpoint

T = TypeVar("T")

Way: TypeAlias = Literal["read", "write"]

CHUNK = 65_536
"""Bytes to ask a socket for at a time."""

_NAP = 0.1
"""Seconds after which a thread that waits for the name server checks whether it must stop."""


class Living(Generic[T]):
    """Weak references to objects, for any number of threads. It uses only atomic set operations and
    no callbacks, so a signal handler that raises loses nothing (in a WeakSet it would).
    """

    def __init__(self) -> None:
        self._refs: set[weakref.ref[T]] = set()
        self._most = 16  # the size at which dead references are removed

    def __len__(self) -> int:
        return len(self.list())

    def list(self) -> list[T]:
        """The objects that are alive now."""
        return [one for ref in list(self._refs) if (one := ref()) is not None]

    def add(self, one: T) -> T:
        """Add an object, and return it."""
        self._refs.add(weakref.ref(one))
        if len(self._refs) > self._most:
            for ref in list(self._refs):
                if ref() is None:
                    self._refs.discard(ref)
            self._most = 2 * len(self._refs) + 16
        return one

    def discard(self, one: T) -> None:
        """Remove an object if it is there."""
        self._refs.discard(weakref.ref(one))


_sockets = Living[socket.socket]()

not_for_children = _sockets.add
"""Register a socket that a forked child must close."""


def _after_fork_in_child() -> None:
    for sock in _sockets.list():
        sock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Address(NamedTuple):
    """The address to which a socket connects."""

    family: int
    where: Any


class Attempt(NamedTuple):
    """An attempt to connect to an address."""

    address: Address
    timeout: float
    last: bool
    """There is no further address to try."""


class Dialer:
    """Connects to one endpoint."""

    def __init__(self, settings: ConnectionSettings, endpoint: Endpoint) -> None:
        self._settings = settings
        self.endpoint = endpoint
        self.scheme = "https" if settings.tls else "http"
        self.authority = "localhost" if endpoint.path else endpoint.address
        self._stamp: tuple[int, ...] | None = None
        self._context: ssl.SSLContext | None = None
        self._last: Any = None  # the address that answered last
        self._dialing = Living[socket.socket]()
        self._closed = False

    def close(self) -> None:
        """Stop connecting; attempts in progress fail."""
        self._closed = True
        for sock in self._dialing.list():
            hang_up(sock)

    def dial(self, until: float) -> tuple[socket.socket, Http2]:
        """Connect, and wait for the peer's SETTINGS. Raises NotConnected."""
        context = self.tls_context()
        for attempt in self.attempts(self._look_up(until), until):
            try:
                found = self._connect(attempt.address, context, attempt.timeout)
            except NotConnected:
                if attempt.last:
                    raise
            else:
                self.answered(attempt.address)
                return found
        raise AssertionError("the resolver returned a name without addresses")

    def attempts(self, addresses: list[Address], until: float) -> Iterator[Attempt]:
        """The addresses, starting with the one that answered last, each with its share of the time
        that is left.
        """
        in_order = sorted(addresses, key=lambda one: one.where != self._last)
        for number, address in enumerate(in_order):
            left = len(in_order) - number
            share = (until - boot_time()) / left
            yield Attempt(address, max(0.01, share), last=left == 1)

    def answered(self, address: Address) -> None:
        """Remember an address that answered, to try it first next time."""
        self._last = address.where

    def error(self, reason: Reason) -> NotConnected:
        """The exception for a reason."""
        kind = Misconfigured if reason.settings else NotConnected
        return kind(reason.text, str(self.endpoint))

    def headers(self, path: str, token: str | None, timeout: float | None = None) -> bytes:
        """The header block of a call to this endpoint (`grpc_protocol.header_block`)."""
        return header_block(path, self.authority, self.scheme, token, timeout)

    # -- TLS

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context; None for plain text. Raises NotConnected."""
        if not self._settings.tls:
            return None
        stamp = self._settings.stamp()
        if self._context is None or stamp != self._stamp:
            try:
                self._context = tls_context(self._settings)
            except OSError as error:
                raise self.error(Reason(f"TLS: the certificates cannot be read: {error}")) from None
            self._stamp = stamp
        return self._context

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must contain."""
        return self.endpoint.host.partition("%")[0] or "localhost"

    # -- addresses

    def addresses(self) -> list[Address] | None:
        """The addresses if no name server is needed, else None."""
        endpoint = self.endpoint
        if endpoint.path:
            return [Address(socket.AF_UNIX, endpoint.path)]
        try:
            return self.resolve(socket.AI_NUMERICHOST)
        except socket.gaierror:
            return None

    def resolve(self, flags: int = 0) -> list[Address]:
        """Look the name up. Raises OSError."""
        host, port = self.endpoint.host, self.endpoint.port
        # Pass an address as bytes: a str goes through Python's IDNA codec, which is slow to load
        # and swallows exceptions of signal handlers.
        name = host.encode() if flags & socket.AI_NUMERICHOST else host
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)
        except UnicodeError:  # Python itself rejects labels of more than 63 characters
            raise socket.gaierror(socket.EAI_NONAME, "not a valid name") from None
        return list(dict.fromkeys(Address(one[0], one[4]) for one in found))

    def _look_up(self, until: float) -> list[Address]:
        found = self.addresses()
        if found is not None:
            return found
        answer: list[list[Address] | OSError] = []

        def ask() -> None:
            try:
                answer.append(self.resolve())
            except OSError as error:
                answer.append(error)

        thread = threading.Thread(target=ask, name="etcdsem-resolve", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            ask()  # no thread can be started; better to block than to fail
        else:
            while thread.is_alive() and not self._closed and boot_time() < until:
                thread.join(_NAP)
        if not answer:
            raise self.error(NO_NAME_SERVER)
        if isinstance(answer[0], OSError):
            raise self.error(explain(answer[0], tls=False))
        return answer[0]

    # -- sockets

    def new_socket(self, address: Address) -> socket.socket:
        """A new socket for an address. Raises OSError."""
        sock = not_for_children(socket.socket(address.family, socket.SOCK_STREAM))
        if address.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _connect(
        self, address: Address, context: ssl.SSLContext | None, timeout: float
    ) -> tuple[socket.socket, Http2]:
        until = boot_time() + timeout
        sock = None
        try:
            sock = self._begin(self.new_socket(address))
            sock.settimeout(timeout)
            sock.connect(address.where)
            if context is not None:
                wrapped = context.wrap_socket(
                    sock, server_hostname=self.server_name, do_handshake_on_connect=False
                )
                sock = self._begin(not_for_children(wrapped))
                wrapped.do_handshake()
                self.check_protocol(wrapped.selected_alpn_protocol())
            return sock, self._greet(sock, until)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError) and not interrupts(error):
                raise self.error(explain(error, tls=context is not None)) from None
            raise
        finally:
            if sock is not None:
                self._dialing.discard(sock)

    def _begin(self, sock: socket.socket) -> socket.socket:
        """Register a socket, so that `close` ends it."""
        self._dialing.add(sock)
        if self._closed:
            sock.close()
            raise self.error(Reason("the client was closed"))
        return sock

    def check_protocol(self, agreed: str | None) -> None:
        """Check that TLS has negotiated HTTP/2. Raises NotConnected."""
        if agreed != "h2":
            raise self.error(explain_start("the server agreed on TLS, but not on HTTP/2", tls=True))

    def _greet(self, sock: socket.socket, until: float) -> Http2:
        """Wait for the peer's SETTINGS, which come at once. Our ACK goes with the first call."""
        http2 = Http2()
        try:
            sock.sendall(http2.outgoing)
        except OSError as error:
            if interrupts(error):
                raise
            # What the peer sent before it closed the connection must still be read.
        http2.outgoing.clear()
        while not http2.ready:
            left = until - boot_time()
            try:
                if left <= 0:
                    raise TimeoutError("timed out")
                sock.settimeout(left)
                data = sock.recv(CHUNK)
            except TimeoutError as error:
                if interrupts(error):
                    raise
                raise self.error(SILENT) from None
            self.hear_greeting(http2, data)
        return http2

    def hear_greeting(self, http2: Http2, data: bytes) -> None:
        """Process the first bytes of the peer; empty: it has closed the connection. Raises
        NotConnected.
        """
        if data:
            http2.receive(data)
        else:
            http2.lost("the connection was closed at once")
        if http2.closed is not None:
            raise self.error(explain_start(http2.closed.text, tls=self._settings.tls))


def hang_up(sock: socket.socket) -> None:
    """Interrupt what another thread does with a socket."""
    # TLS's own `shutdown` is not thread-safe. eventlet's class has none, but wraps a socket.
    shutdown = getattr(socket.socket, "shutdown", None)
    try:
        if shutdown is not None:
            shutdown(sock, socket.SHUT_RDWR)
        else:
            _socket.socket.shutdown(getattr(sock, "fd", sock), socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already


def waits_for(error: OSError, doing: Way) -> Way | None:
    """Which way a socket that would block must become ready; None if it has failed."""
    if isinstance(error, BlockingIOError):
        return doing
    kind = type(error).__name__  # importing ssl takes time and memory
    return (
        "read" if kind == "SSLWantReadError" else "write" if kind == "SSLWantWriteError" else None
    )


def would_block(error: OSError) -> bool:
    """Does the error mean that a non-blocking socket, or TLS, would block?"""
    return waits_for(error, "read") is not None or timed_out(error)  # eventlet's TLS raises this


def timed_out(error: OSError) -> bool:
    """Does the error mean that the timeout of a socket, or of TLS, is over?"""
    return type(error) is TimeoutError and str(error).endswith("timed out")


def interrupts(error: OSError) -> bool:
    """Was the error raised by a signal handler rather than by a socket? `raise TimeoutError` is the
    usual recipe for SIGALRM; the system's own ETIMEDOUT has a number.
    """
    return isinstance(error, TimeoutError) and error.errno is None and not timed_out(error)


def tls_context(settings: ConnectionSettings, protocol: str = "h2") -> ssl.SSLContext:
    """A TLS context for the settings. Raises OSError if a file cannot be read."""
    import ssl  # takes time and memory that plain text does not need

    context = ssl.create_default_context(cafile=settings.cacert)
    # Python 3.13 requires key identifiers that RFC 5280 demands but many private authorities, and
    # etcd's other clients, do without.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    if settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context
