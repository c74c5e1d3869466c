"""Settings: the catalogue of endpoints, and which source goes before which."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from etcdsem.errors import InvalidSetting
from etcdsem.etcd.settings import parse_endpoints, read_settings
from etcdsem.validation import read_labels


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("host:2379", ["host:2379"]),
        ("host", ["host:2379"]),
        (" a:1 , b:2,", ["a:1", "b:2"]),
        (["a:1", "a:1", "b:2"], ["a:1", "b:2"]),
        ("http://h:1/", ["h:1"]),
        ("https://h", ["h:2379"]),
        ("[::1]:2380", ["[::1]:2380"]),
        ("::1", ["[::1]:2379"]),
        ("[fe80::1]", ["[fe80::1]:2379"]),
        ("https://[::1]:5", ["[::1]:5"]),
        ("unix:///run/etcd.sock", ["unix:/run/etcd.sock"]),
        ("unix:/run/etcd.sock", ["unix:/run/etcd.sock"]),
        ("http://a:1,http://a:1/", ["a:1"]),
    ],
)
def test_endpoints(given: str | list[str], addresses: list[str]) -> None:
    """All the ways to write an endpoint."""
    assert [endpoint.address for endpoint in parse_endpoints(given)] == addresses


@pytest.mark.parametrize(
    "given",
    [
        "http://root:s3cret@h:2379",
        "root:s3cret@h",
        ["https://root:s3cret@h:x", "h2"],
        "http://root:s3cret,s3cret@h",
        "http://root:s3c/s3cret@h:1",
        "ftp://root:s3cret@h",
        "h1,http://root:@s3cret@h:port",
    ],
)
def test_a_password_in_an_endpoint_is_never_quoted(given: str | list[str]) -> None:
    """Whatever else is wrong with it; the error says where a password belongs."""
    with pytest.raises(InvalidSetting, match="ETCDSEM_PASSWORD_FILE") as caught:
        parse_endpoints(given)
    assert "s3c" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_socket_with_an_at_sign() -> None:
    """A Unix socket's path has no user."""
    assert parse_endpoints("unix:@etcd")[0].path == "@etcd"


def test_a_password_file_that_others_can_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that names it; none if only its owner and group can."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for mode, warnings in ((0o640, 0), (0o644, 1)):
        secret.chmod(mode)
        caplog.clear()
        read_settings(user="root", password_file=str(secret))
        assert len(caplog.messages) == warnings
    assert caplog.messages[0].endswith(f"users of this machine can read '{secret}' (mode 0644)")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        ",",
        [],
        "h:0",
        "h:70000",
        "h:x",
        "h:-1",
        "ftp://h:1",
        "http://",
        "http://h:1/path",
        "h:1?x",
        "user@h:1",
        "a b:1",
        "http://a:1,https://b:1",
        "a:1,https://b:1",
        "[::1",
        "unix:",
        [7],
        "h:1\x00",
    ],
)
def test_endpoints_that_cannot_be(bad: Any) -> None:
    """What is wrong is told, with an example."""
    with pytest.raises(InvalidSetting, match="endpoint"):
        parse_endpoints(bad)


def test_arguments_before_ours_before_etcdctls(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument, else ETCDSEM_*, else ETCDCTL_*, else the default."""
    assert str(read_settings().endpoints[0]) == "127.0.0.1:2379"
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "ctl:1")
    assert str(read_settings().endpoints[0]) == "ctl:1"
    monkeypatch.setenv("ETCDSEM_ENDPOINTS", "")
    assert str(read_settings().endpoints[0]) == "ctl:1"
    monkeypatch.setenv("ETCDSEM_ENDPOINTS", " sem:1\n")
    assert str(read_settings().endpoints[0]) == "sem:1"
    assert str(read_settings("arg:1").endpoints[0]) == "arg:1"


def test_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Etcdctl's user:password (with colons in it), a variable, a file."""
    monkeypatch.setenv("ETCDCTL_USER", "ctl:pass:word")
    settings = read_settings()
    assert (settings.user, settings.password) == ("ctl", "pass:word")
    secret = tmp_path / "secret"
    secret.write_text("from file\n")
    monkeypatch.setenv("ETCDSEM_USER", "sem")
    monkeypatch.setenv("ETCDSEM_PASSWORD_FILE", str(secret))
    settings = read_settings()
    assert (settings.user, settings.password) == ("sem", "from file")
    monkeypatch.setenv("ETCDSEM_PASSWORD", " s3cret ")
    assert read_settings().password == " s3cret "
    assert read_settings(user="a", password="b").password == "b"
    monkeypatch.delenv("ETCDSEM_PASSWORD")
    monkeypatch.setenv("ETCDSEM_PASSWORD_FILE", str(tmp_path / "missing"))
    with pytest.raises(InvalidSetting, match="ETCDSEM_PASSWORD_FILE"):
        read_settings()


def test_a_password_is_never_shown_nor_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in repr, not in a pickle; where it arrives it is read again."""
    settings = read_settings("h:1", user="u", password="s3cret")
    assert "s3cret" not in repr(settings)
    data = pickle.dumps(settings)
    assert b"s3cret" not in data
    assert pickle.loads(data).password is None
    monkeypatch.setenv("ETCDSEM_PASSWORD", "local")
    assert pickle.loads(data).password == "local"


def test_files_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing certificate names the variable and the path; a lone key is refused."""
    monkeypatch.setenv("ETCDSEM_CACERT", str(tmp_path / "ca.pem"))
    with pytest.raises(InvalidSetting, match=r"ETCDSEM_CACERT.*ca\.pem"):
        read_settings()
    monkeypatch.delenv("ETCDSEM_CACERT")
    (tmp_path / "key.pem").write_text("x")
    with pytest.raises(InvalidSetting, match="go together"):
        read_settings(key=str(tmp_path / "key.pem"))
    with pytest.raises(InvalidSetting, match="not a valid path"):
        read_settings(cacert="\0")


def test_labels_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a program tells where it runs; what the program says wins."""
    assert read_labels(None) == {}
    monkeypatch.setenv("ETCDSEM_LABELS", "pod=web-1, node=n=1,,job=,")
    assert read_labels(None) == {"pod": "web-1", "node": "n=1", "job": ""}
    assert read_labels({"pod": "mine", "a": "b"})["pod"] == "mine"
    assert read_labels({"a": "b"})["node"] == "n=1"
    for wrong in ("pod", "a b=c", ",".join(f"k{n}=v" for n in range(17))):
        monkeypatch.setenv("ETCDSEM_LABELS", wrong)
        with pytest.raises(InvalidSetting):
            read_labels(None)
