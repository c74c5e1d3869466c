"""TLS: what works, and what a newcomer reads when it does not, each within its deadline."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import etcdsem
from etcdsem import Semaphore, server
from etcdsem.errors import EtcdUnavailable, InvalidSetting
from etcdsem.etcd.diagnosis import explain, explain_call
from tests.helpers.tls import TlsEtcd, serving
from tests.security.authority import Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority for this module."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which etcd and we don't trust."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def one_way(authority: Authority, module_binary: str) -> Iterator[TlsEtcd]:
    """Etcd shows a certificate and asks for none."""
    with serving(authority.issue("server"), binary=module_binary) as one:
        yield one


@pytest.fixture(scope="module")
def mutual(authority: Authority, module_binary: str) -> Iterator[TlsEtcd]:
    """Etcd also wants a client's certificate of the same authority."""
    options = ("--client-cert-auth", "--trusted-ca-file", authority.path)
    with serving(authority.issue("mutual"), *options, binary=module_binary) as one:
        yield one


def refusal(endpoint: str, within: float = 4.0, **options: Any) -> str:
    """What `acquire` says instead of connecting, within its deadline."""
    with etcdsem.connect(endpoint, **options) as client:
        sem = Semaphore(1, "tls", client=client, register=False)
        began = time.monotonic()
        with pytest.raises(EtcdUnavailable) as caught:
            sem.acquire(timeout=2)
        assert time.monotonic() - began < within
    message = str(caught.value)
    assert "acquire 'tls'" in message
    assert endpoint in message
    return message


@pytest.mark.smoke
def test_tls_by_address_and_by_name(one_way: TlsEtcd, authority: Authority, name: str) -> None:
    """With the authority's certificate, https:// may be written or not."""
    for endpoint in (
        one_way.endpoint,
        f"https://{one_way.endpoint}",
        f"https://localhost:{one_way.port}",
    ):
        with etcdsem.connect(endpoint, cacert=authority.path) as client:
            sem = Semaphore(1, name, client=client)
            with sem.hold() as lease:
                assert lease.valid
                assert sem.acquire(timeout=0.1) is False


def test_variables_are_enough(one_way: TlsEtcd, authority: Authority, name: str) -> None:
    """The command line, by ETCDSEM_* and by etcdctl's own variables."""
    for kind in ("ETCDSEM", "ETCDCTL"):
        environment = {
            **os.environ,
            f"{kind}_ENDPOINTS": f"https://{one_way.endpoint}",
            f"{kind}_CACERT": authority.path,
        }
        done = subprocess.run(
            [sys.executable, "-m", "etcdsem", "run", name, "-l", "1", "--", "true"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


def test_an_unknown_authority(one_way: TlsEtcd, stranger: Authority) -> None:
    """The wrong authority, and none at all: the message names what to give."""
    for options in ({"cacert": stranger.path}, {}):
        message = refusal(f"https://{one_way.endpoint}", within=1.9, **options)
        assert "not signed by an authority that we trust" in message
        assert "ETCDSEM_CACERT" in message


def test_expired(authority: Authority, module_binary: str) -> None:
    """Etcd's certificate has expired."""
    with serving(authority.issue("old", expired=True), binary=module_binary) as etcd:
        message = refusal(etcd.endpoint, within=1.9, cacert=authority.path)
    assert "has expired" in message
    assert "renewed" in message


def test_another_name(authority: Authority, module_binary: str) -> None:
    """Etcd's certificate is for other hosts than the endpoint's."""
    pair = authority.issue("elsewhere", hosts=("etcd.example",))
    with serving(pair, binary=module_binary) as etcd:
        message = refusal(etcd.endpoint, within=1.9, cacert=authority.path)
    assert "not for the host of this endpoint" in message


def test_plain_text_against_tls(one_way: TlsEtcd) -> None:
    """We speak plain text, etcd TLS."""
    message = refusal(one_way.endpoint)
    assert "https://" in message
    assert "ETCDSEM_CACERT" in message


def test_tls_against_plain_text(authority: Authority, module_binary: str) -> None:
    """We speak TLS, etcd plain text."""
    with server.start(binary=module_binary) as etcd:
        message = refusal(f"https://{etcd.endpoint}", cacert=authority.path)
    assert "http://" in message


def test_mutual_tls(mutual: TlsEtcd, authority: Authority, name: str) -> None:
    """A client's certificate that etcd trusts opens the door, streams too."""
    ours = authority.issue("worker")
    with etcdsem.connect(
        mutual.endpoint, cacert=authority.path, cert=ours.cert, key=ours.key
    ) as client:
        sem = Semaphore(1, name, client=client)
        assert sem.acquire()
        assert sem.acquire(timeout=0.2) is False
        sem.release()


def test_mutual_tls_refused(mutual: TlsEtcd, authority: Authority, stranger: Authority) -> None:
    """No certificate, an expired one, one of another authority, and plain text."""
    old, foreign = authority.issue("old-worker", expired=True), stranger.issue("foreign")
    for options in (
        {},
        {"cert": old.cert, "key": old.key},
        {"cert": foreign.cert, "key": foreign.key},
    ):
        message = refusal(mutual.endpoint, within=1.9, cacert=authority.path, **options)
        assert "wants a client certificate" in message
        assert "ETCDSEM_CERT" in message
    assert "https://" in refusal(mutual.endpoint)


def test_files_that_hold_something_else(
    one_way: TlsEtcd, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """A file that is no certificate, and a key that belongs to another: named before any call."""
    junk = tmp_path / "junk.pem"
    junk.write_text("hello")
    ours, other = authority.issue("ours"), stranger.issue("other")
    with pytest.raises(InvalidSetting, match=r"cacert.*junk\.pem.*no PEM certificate"):
        etcdsem.connect(one_way.endpoint, cacert=str(junk))
    with pytest.raises(InvalidSetting, match=r"cert.*junk\.pem"):
        etcdsem.connect(one_way.endpoint, cert=str(junk), key=ours.key)
    with pytest.raises(InvalidSetting, match=r"key.*other-key\.pem"):
        etcdsem.connect(one_way.endpoint, cert=ours.cert, key=other.key)
    with pytest.raises(InvalidSetting, match="plain text"):
        etcdsem.connect(f"http://{one_way.endpoint}", cacert=authority.path)


def test_a_certificate_that_is_renewed(
    authority: Authority, stranger: Authority, module_binary: str, name: str, tmp_path: Path
) -> None:
    """Etcd comes back with a certificate of a new authority, whose file was put in the old one's
    place: a running program finds its way back.
    """
    cacert = tmp_path / "ca.pem"
    cacert.write_bytes(Path(authority.path).read_bytes())
    first = authority.issue("first")
    with (
        serving(first, binary=module_binary) as etcd,
        etcdsem.connect(etcd.endpoint, cacert=str(cacert)) as client,
    ):
        sem = Semaphore(1, name, client=client, lease_timeout=30)
        sem.acquire()
        second = stranger.issue("second")
        Path(first.cert).write_bytes(Path(second.cert).read_bytes())
        Path(first.key).write_bytes(Path(second.key).read_bytes())
        etcd.kill()
        etcd.restart()
        cacert.write_bytes(Path(stranger.path).read_bytes())
        assert sem.get_value() == 1
        assert sem.leases[0].valid
        assert sem.release()


@contextmanager
def tls_server(pair: Pair, adjust: Callable[[ssl.SSLContext], object]) -> Iterator[str]:
    """Something that speaks TLS and is no etcd: the address on which it does handshakes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    adjust(context)

    def serve() -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    context.wrap_socket(connection, server_side=True).recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def only_tls_1_1(context: ssl.SSLContext) -> None:
    """Speak an old TLS only."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1


def old_ciphers(context: ssl.SSLContext) -> None:
    """Speak TLS 1.2 with ciphers that no client offers."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("NULL:@SECLEVEL=0")


@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize(
    ("adjust", "word"), [(only_tls_1_1, "1.2 or later"), (old_ciphers, "none of our ciphers")]
)
def test_handshakes_that_fail_for_other_reasons(
    authority: Authority, adjust: Callable[[ssl.SSLContext], object], word: str
) -> None:
    """No client certificate is asked for where one would not help."""
    with tls_server(authority.issue("server"), adjust) as endpoint:
        message = refusal(endpoint, cacert=authority.path)
    assert word in message
    assert "ETCDSEM_CERT" not in message


def test_texts_of_other_releases() -> None:
    """The same reasons in the words of other releases of OpenSSL; what is unknown is shown."""
    words = {
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed": "authority",
        "[SSL: RECORD_LAYER_FAILURE] record layer failure (_ssl.c:1000)": "not speak TLS",
        "[SSL: WRONG_VERSION_NUMBER] wrong version number": "not speak TLS",
        "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required": "client cert",
        "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate": "client certificate",
        "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca": "client certificate",
        "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired": "client cert",
        "[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version": "1.2 or later",
        "[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol": "1.2 or later",
        "[SSL: TLSV1_UNRECOGNIZED_NAME] tlsv1 alert unrecognized name": "not for the host",
        "[SSL: NO_APPLICATION_PROTOCOL] tlsv1 alert no application protocol": "HTTP/2",
        "[SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert internal error": "TLS: [SSL: TLSV1_ALERT",
        "[SSL: SOMETHING_NEW] something new": "TLS: [SSL: SOMETHING_NEW]",
    }
    for text, word in words.items():
        assert word in explain(ssl.SSLError(1, text), tls=True).text
    assert explain(OSError(5, "quite new"), tls=False).text == "Failed to connect: quite new"
    assert "http:" in explain(ConnectionResetError(104, "reset"), tls=True).text
    assert "not etcd" in explain_call("UNKNOWN", "Received http2 header with http status 404").text
