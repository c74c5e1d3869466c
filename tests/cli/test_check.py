"""``etcdsem check``: what no retry can help ends with its code, and nothing is left behind."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from etcdsem import Client, Semaphore
from etcdsem.cli.run.certificate import end_of
from etcdsem.errors import InvalidSetting
from tests.cli.driver import keys, ran
from tests.security.authority import DAY, Authority

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_it_registers_and_takes_nothing(etcd: EtcdServer, name: str) -> None:
    """As `hold` would with this limit; the semaphore is empty afterwards."""
    done = ran(etcd, "check", name, "--limit", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name}: leases can be acquired, limit 3\n"
    assert keys(etcd, name) == ["max_leases"]
    assert ran(etcd, "check", name).returncode == 0


@pytest.mark.parametrize("limit", [(), ("--limit", "2")])
def test_what_will_not_do(etcd: EtcdServer, client: Client, name: str, limit: list[str]) -> None:
    """Another limit; no limit at all; a bad name; no etcd."""
    assert ran(etcd, "check", f"{name}.x").returncode == 78
    Semaphore(3, name, client=client)
    assert ran(etcd, "check", name, *limit).returncode == (78 if limit else 0)
    assert ran(etcd, "check", "a/b", *limit).returncode == 64


def test_a_full_or_paused_semaphore_is_no_failure(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    with Semaphore(1, name, client=client):
        client.pause(name)
        assert ran(etcd, "check", name, "-l", "1").returncode == 0


@pytest.mark.parametrize(("lasts", "code"), [(31, 0), (29, 1), (-1, 1)])
def test_a_certificate_that_ends_is_told(
    etcd: EtcdServer, tmp_path: Path, lasts: int, code: int
) -> None:
    """It needs neither etcd nor a semaphore. One that lasts longer is fine."""
    pair = Authority(tmp_path).issue("one", lasts=lasts * DAY)
    given = ("--endpoints", "https://127.0.0.1:1", "--cert", pair.cert, "--key", pair.key)
    day = f"{datetime.datetime.now(datetime.UTC) + lasts * DAY:%F}"
    done = ran(etcd, "check", "--certificate-days", "30", *given)
    assert done.returncode == code, done.stderr
    assert f"ends on {day}" in (done.stderr if code else done.stdout)


def test_how_long_a_certificate_lasts(tmp_path: Path) -> None:
    """Years of two and of four digits; what is no certificate is an invalid setting."""
    now = datetime.datetime.now(datetime.UTC)
    for days in (1, 400, 40_000):
        pair = Authority(tmp_path).issue("one", lasts=days * DAY)
        assert abs(end_of(pair.cert) - (now + days * DAY).timestamp()) < 60
    ends = x509.load_pem_x509_certificate(Path(pair.cert).read_bytes()).not_valid_after_utc
    assert ends.year > 2100 > now.year
    for content in ("", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"):
        (tmp_path / "bad.pem").write_text(content)
        with pytest.raises(InvalidSetting, match="cannot be read"):
            end_of(str(tmp_path / "bad.pem"))
    with pytest.raises(InvalidSetting, match="cannot be read"):
        end_of(str(tmp_path / "none.pem"))


@pytest.mark.parametrize("arguments", [(), ("--certificate-days", "30")])
def test_nothing_to_check_is_a_usage_error(etcd: EtcdServer, arguments: tuple[str, ...]) -> None:
    """Neither a name nor a certificate."""
    assert ran(etcd, "check", *arguments).returncode == 64
