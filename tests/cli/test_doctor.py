"""``etcdsem doctor``: on real etcds that are well, badly run, locked, full, or away."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import server
from etcdsem.cli.doctor import etcd_versions
from etcdsem.cli.doctor.checks import run_checks
from etcdsem.cli.doctor.finding import Finding
from etcdsem.cli.doctor.probes import Member, ProbeResults, probe
from etcdsem.cli.endpoint import EndpointConnection
from tests.cli.driver import ETCDSEM, Cli, Console, etcdctl, ran
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]


def told(etcd: EtcdServer | None, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """The JSON of a doctor, whose exit code it tells too."""
    done = ran(etcd, "doctor", "--json", *arguments, env=env)
    assert done.stdout.count("\n") == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["code"] == done.returncode
    return found


def findings(found: Any, check: str) -> list[dict[str, str]]:
    """Those of one check, without what is well."""
    return [one for one in found["findings"] if one["check"] == check and one["level"] != "ok"]


# ---------------------------------------------------------------- on a real etcd


@pytest.mark.smoke
def test_a_new_etcd(any_fresh_etcd: EtcdServer) -> None:
    """Nothing is wrong but what its version brings; nothing is left behind."""
    found = told(any_fresh_etcd)
    assert list(found) == [
        "code", "findings", "members", "seconds", "revision", "compacted_revision",
    ]  # fmt: skip
    problems = [one for one in found["findings"] if one["level"] == "problem"]
    version = etcd_versions.parse(any_fresh_etcd.version)
    assert version is not None
    corrupting = (3, 5, 0) <= version < (3, 5, 3)
    assert [one["what"][-8:] for one in problems] == ["(#13766)"] * corrupting
    assert found["code"] == bool(problems)
    assert all(list(one) == ["check", "level", "what", "do"] for one in found["findings"])
    assert all(one["do"] for one in found["findings"] if one["level"] in ("warning", "problem"))
    member = found["members"][0]
    assert (member["reached"], member["leader"]) == (True, True)
    assert member["version"] == any_fresh_etcd.version
    assert all(0 < time < 5 for time in found["seconds"].values())
    assert etcdctl(any_fresh_etcd, "get", "--prefix", "--keys-only", "/") == ""
    assert etcdctl(any_fresh_etcd, "lease", "list").strip() == "found 0 leases"


def test_for_people(etcd: EtcdServer, console: Callable[..., Console]) -> None:
    """Lines with a level and what to do; colours on a terminal only, and not with NO_COLOR."""
    plain = ran(etcd, "doctor").stdout
    assert re.search(r"^ok       access: reading, writing and leases work", plain, re.MULTILINE)
    assert re.search(r"^problems: \d+   warnings: \d+$", plain, re.MULTILINE)
    assert "\x1b" not in plain
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = console(etcd, *ETCDSEM, "doctor", env=env, size=(100, 40))
        shown.end()
        assert ("\x1b[32m" in shown.seen) is coloured


def test_what_was_made_by_hand(fresh_etcd: EtcdServer, start: Start) -> None:
    """Each thing is named, and the command that is told mends it."""

    def put(key: str, value: str, *more: str) -> None:
        etcdctl(fresh_etcd, "put", f"/etcdsem/{key}", value, *more)

    lease = etcdctl(fresh_etcd, "lease", "grant", "600").split()[1]
    put("odd/max_leases", "many")
    put("holes/max_leases", "3")
    put("holes/leases/00000", "by hand")  # without a lease: for ever
    put("holes/leases/00001", "by hand", f"--lease={lease}")
    put("holes/leases/one", "by hand", f"--lease={lease}")
    put("holes/waiters/nobody", "x", f"--lease={lease}")
    put("bare/leases/00000", "{}", f"--lease={lease}")
    for _ in range(2):
        start(fresh_etcd, "hold", "lowered", "-l", "2").expect("is held", err=True)
    etcdctl(fresh_etcd, "put", "/etcdsem/lowered/max_leases", "1")
    found = told(fresh_etcd)
    assert found["code"] == 1
    assert [one["do"] for one in findings(found, "limit")] == ["etcdsem limit odd N"]
    assert "lowered: 2 held, limit 1" in findings(found, "overbooked")[0]["what"]
    assert "bare: leases without a limit" in findings(found, "semaphore")[0]["what"]
    owner = findings(found, "owner")
    assert owner[0]["do"] == "etcdsem evict holes --slot 1"
    junk = findings(found, "junk")
    assert len(junk) >= 2
    mending = [one["do"] for one in [*junk, *owner]] + ["etcdsem limit odd 3"]
    mending += ["etcdsem limit lowered 2"]
    assert ran(fresh_etcd, "run", "bare", "--limit", "1", "-n", "--", "true").returncode == 75
    for command in mending:
        program, *arguments = shlex.split(command)
        if program == "etcdctl":
            etcdctl(fresh_etcd, *arguments)
        else:
            assert ran(fresh_etcd, *arguments).returncode == 0
    again = told(fresh_etcd)
    for check in ("limit", "overbooked", "semaphore", "junk"):
        assert findings(again, check) == []


KEYS = (
    b"it's $HOME `id` \\x41 !! *",
    b"\x1b[31mred\x07\n\r\ttabs",
    "caf\u00e9 \u202e right to left".encode(),
    b"\xff\xfe no UTF-8 'quoted' \x1b1",
    b"a\x00NUL \xff \" \\ ' %s $(id)",
)
"""Parts of keys that a shell, a terminal or a C string would misread."""


def test_known_bugs_in_one_line(etcd: EtcdServer) -> None:
    """--verbose lists each of them; the etcd of '[server]' is said to be for trying out."""
    version = etcd_versions.parse(etcd.version)
    assert version is not None
    bugs = etcd_versions.known_bugs(version, login=False)
    short, long = (ran(etcd, "doctor", *more).stdout for more in ((), ("--verbose",)))
    lines = [line for line in short.splitlines() if "  version: " in line]
    assert len(lines) == 1
    count = f"known bugs that affect semaphores: {len(bugs)}" if bugs else "no known bugs"
    assert count in lines[0]
    assert ("etcdsem doctor --verbose" in short) is bool(bugs)
    assert ("only for trying out" in short) is (version == etcd_versions.BUNDLED)
    assert all(bug.source in long for bug in bugs)


def test_a_pasted_command_deletes_any_key(fresh_etcd: EtcdServer) -> None:
    """The printed line is what a person pastes into bash; it deletes this key and no other."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        (endpoint,) = client.settings.endpoints
        connection = EndpointConnection(client.settings, endpoint)
        for key in KEYS:
            connection.put(b"/etcdsem/s/leases/" + key, b"", 0)
        connection.put(b"/etcdsem/s/max_leases", b"1", 0)
        connection.close()
        printed = ran(fresh_etcd, "doctor", "s").stdout
        commands = re.findall(r"^ +-> (.*etcdctl (?:del|txn).*)$", printed, re.MULTILINE)
        assert len(commands) == len(KEYS)
        for left, command in zip(range(len(KEYS))[::-1], commands, strict=True):
            assert command.isascii()
            path = f"{os.path.dirname(fresh_etcd.etcdctl_binary)}:{os.environ['PATH']}"
            env = {**os.environ, **fresh_etcd.env(), "PATH": path}
            subprocess.run(["bash", "-c", command], env=env, check=True, capture_output=True)
            assert len(client.status("s").junk) == left, command


def test_somebody_waits_beside_a_free_slot(fresh_etcd: EtcdServer) -> None:
    """A waiter of whom nobody is left; the command that is told ends it."""
    etcdctl(fresh_etcd, "put", "/etcdsem/s/max_leases", "2")
    lease = etcdctl(fresh_etcd, "lease", "grant", "600").split()[1]
    etcdctl(
        fresh_etcd, "put", f"/etcdsem/s/waiters/gone.1.00000000/{lease}", "{}", f"--lease={lease}"
    )
    stuck = findings(told(fresh_etcd), "stuck")
    assert stuck[0]["what"].startswith("s: 0 of 2 held, yet 1 waiting")
    command = stuck[0]["do"].split("; if not, ")[1]
    assert ran(fresh_etcd, *command.split()[1:]).returncode == 0
    assert findings(told(fresh_etcd), "stuck") == []


def test_compaction_is_found_to_the_revision(fresh_etcd: EtcdServer) -> None:
    for number in range(20):
        etcdctl(fresh_etcd, "put", "k", str(number))
    found = told(fresh_etcd)
    assert found["compacted_revision"] == 0
    assert "--auto-compaction-retention" in findings(found, "compaction")[0]["do"]
    etcdctl(fresh_etcd, "compact", "9")
    found = told(fresh_etcd)
    assert found["compacted_revision"] == 8
    assert findings(found, "compaction") == []


def test_unreachable(etcd: EtcdServer) -> None:
    """69 if no endpoint answers; one of two is a warning."""
    found = told(None, "--endpoints", "127.0.0.1:1")
    assert found["code"] == 69
    assert findings(found, "endpoint")[0]["level"] == "problem"
    found = told(None, "--endpoints", f"127.0.0.1:1,{etcd.endpoint}")
    assert found["code"] in (0, 1)
    assert [member["reached"] for member in found["members"]] == [False, True]
    assert [one["level"] for one in findings(found, "endpoint")] == ["warning"]


@pytest.mark.slow
def test_silent_etcd_is_69_in_bounded_time(fresh_etcd: EtcdServer) -> None:
    fresh_etcd.pause()
    assert told(fresh_etcd)["code"] == 69
    fresh_etcd.resume()


def test_two_clusters_are_a_problem(etcd: EtcdServer, fresh_etcd: EtcdServer) -> None:
    found = told(None, "--endpoints", f"{etcd.endpoint},{fresh_etcd.endpoint}")
    assert any("different clusters" in one["what"] for one in findings(found, "cluster"))


@pytest.mark.slow
def test_a_cluster_that_loses_its_members() -> None:
    """One of three away is a warning; without a quorum it says that this is so."""
    with server.start_cluster(3) as members:
        endpoints = ",".join(member.endpoint for member in members)
        members[2].kill()
        for member in members[:2]:
            member.wait_healthy()  # so they have a leader
        found = told(None, "--endpoints", endpoints)
        assert [one["level"] for one in findings(found, "endpoint")] == ["warning"]
        assert findings(found, "access") == []
        assert findings(found, "cluster") == []
        alone = told(None, "--endpoints", members[0].endpoint)
        assert "of a cluster of 3" in findings(alone, "cluster")[0]["what"]
        members[1].kill()

        def no_leader() -> bool:
            found = told(None, "--endpoints", endpoints)
            said = any("no leader" in one["what"] for one in findings(found, "endpoint"))
            return said and found["code"] == 69

        eventually(no_leader, 60)


def test_logins_and_roles(fresh_etcd: EtcdServer) -> None:
    """77 for no login, a wrong one, and one that may not; NAME asks only for its own."""
    for command in (
        "user add root:secret", "user grant-role root root", "role add one",
        "role grant-permission one --prefix=true readwrite /etcdsem/mine/",
        "user add reader:pw", "user grant-role reader one",
        "put /etcdsem/mine/max_leases 1", "auth enable",
    ):  # fmt: skip
        etcdctl(fresh_etcd, *command.split())
    nobody = told(fresh_etcd)
    assert nobody["code"] == 77
    wrong = told(fresh_etcd, env={"ETCDSEM_USER": "root", "ETCDSEM_PASSWORD": "no"})
    assert wrong["code"] == 77
    assert findings(wrong, "access") or findings(wrong, "login")
    right = told(fresh_etcd, env={"ETCDSEM_USER": "root", "ETCDSEM_PASSWORD": "secret"})
    assert findings(right, "access") == []
    login = {"ETCDSEM_USER": "reader", "ETCDSEM_PASSWORD": "pw"}
    denied = told(fresh_etcd, env=login)
    assert denied["code"] == 77
    assert "doctor NAME" in findings(denied, "access")[0]["do"]
    allowed = told(fresh_etcd, "mine", env=login)
    assert findings(allowed, "access") == []
    assert allowed["code"] != 77
    assert allowed["seconds"]["network"] > 0
    for found in (denied, allowed):
        (endpoint,) = (one for one in found["findings"] if one["check"] == "endpoint")
        assert f"etcd {fresh_etcd.version}" in endpoint["what"]


def test_out_of_space(etcd_binary: str) -> None:
    """The alarm, how full it is, and that nothing can be written."""
    quota = ["--quota-backend-bytes", str(1024 * 1024)]
    with server.start(binary=etcd_binary, extra_args=quota) as full:

        def fill() -> None:
            for number in range(30):
                etcdctl(full, "put", f"junk-{number}", "x" * 100_000)

        with pytest.raises(Exception, match="space"):
            fill()
        found = told(full)
    assert found["code"] == 1
    assert findings(found, "alarm")[0]["do"].startswith("etcdctl compact")
    assert "write" in findings(found, "access")[0]["what"]


def test_clocks_are_compared(etcd: EtcdServer) -> None:
    with etcdsem.connect(etcd.endpoint) as client:
        results = probe(client, None)
    assert results.clock_ahead is not None
    assert abs(results.clock_ahead) < 5
    assert results.least_ttl == 2
    assert results.listed == 1


def test_usage_errors() -> None:
    for arguments in (["a/b"], ["a", "b"], ["--nonsense"]):
        done = ran(None, "doctor", *arguments)
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- what it makes of results


def sound(**member: Any) -> ProbeResults:
    """A cluster in which all is well."""
    one = Member("10.0.0.1:2379", loopback=False, id=1, cluster=7, version="3.6.14")
    one.leads = one.has_leader = True
    results = ProbeResults("/etcdsem", None, tls=True, user="u", members=[one], listed=3, alarms=[])
    results.members += [
        Member(f"10.0.0.{i}:2379", False, id=i, cluster=7, version="3.6.14", has_leader=True)
        for i in (2, 3)
    ]
    results.head, results.compacted, results.least_ttl, results.clock_ahead = 5000, 4000, 2.0, 0.3
    results.network, results.read, results.write = 0.001, 0.002, 0.004
    for name, value in member.items():
        setattr(one, name, value)
    return results


def test_nothing_is_made_up() -> None:
    found = {(one.level, one.check) for one in run_checks(sound()) if one.level != "ok"}
    assert found == {("info", "leases")}  # of several members, whatever their version


def changed(**values: Any) -> ProbeResults:
    results = sound()
    for name, value in values.items():
        setattr(results, name, value)
    return results


@pytest.mark.parametrize(
    ("results", "check", "level", "what"),
    [
        (sound(learner=True), "endpoint", "warning", "learner"),
        (sound(has_leader=False), "endpoint", "problem", "no leader"),
        (
            sound(has_leader=False, error="etcdserver: no leader"),
            "endpoint",
            "problem",
            "most members are down",
        ),
        (sound(error="refused"), "endpoint", "warning", "does not answer"),
        (sound(error="wrong password", denied=True), "login", "problem", "wrong password"),
        (sound(cluster=8), "cluster", "problem", "different clusters"),
        (sound(version="3.6.13"), "cluster", "warning", "different versions"),
        (sound(version="3.3.27"), "version", "problem", "3.4"),
        (sound(version="odd"), "version", "info", "odd"),
        (sound(version="3.5.2"), "version", "problem", "#13766"),
        (sound(lag=5000), "cluster", "warning", "5000 entries"),
        (sound(errors=("etcdserver: no space",)), "alarm", "problem", "no space"),
        (sound(db_size=2 * 1024**3), "space", "warning", "2048 MiB of 2048 MiB"),
        (sound(db_size=4 * 1024**3, quota=8 * 1024**3), "space", "info", "0 MiB of 4096"),
        (changed(listed=1), "cluster", "info", "only one member"),
        (changed(listed=4), "cluster", "info", "no safer than 3"),
        (
            changed(members=sound().members[:1]),
            "cluster",
            "warning",
            "only one endpoint is configured",
        ),
        (changed(alarms=["CORRUPT"]), "alarm", "problem", "CORRUPT"),
        (changed(alarms=None), "alarm", "info", "may not list alarms"),
        (changed(denied={"write": "no"}), "access", "problem", "u may not write"),
        (changed(failed={"write": "slow"}), "access", "problem", "could not write"),
        (changed(network=0.2, read=0.201, write=0.202), "speed", "warning", "network"),
        (changed(read=0.2, write=0.21), "speed", "warning", "far from each other"),
        (changed(write=0.2), "speed", "warning", "disk is slow"),
        (changed(head=50_000, compacted=0), "compaction", "problem", "never compacted"),
        (changed(head=5_000_000), "compaction", "warning", "4996000 revisions"),
        (changed(compacted=0), "compaction", "info", "does not report"),
        (changed(tls=False), "tls", "problem", "password"),
        (changed(tls=False, user=None), "tls", "warning", "plain text"),
        (changed(clock_ahead=-3600.0), "clock", "info", "3600 s behind"),
        (changed(least_ttl=15.0), "ttl", "info", "15 s"),
    ],
)
def test_each_fact_has_its_finding(
    results: ProbeResults, check: str, level: str, what: str
) -> None:
    found = [one for one in run_checks(results) if one.check == check and one.level != "ok"]
    assert any(one.level == level and what in one.what for one in found), found
    assert all(isinstance(one, Finding) and one.do for one in found if one.level != "info")


def test_plain_text_on_loopback_is_fine() -> None:
    results = changed(tls=False)
    for member in results.members:
        member.loopback = True
    assert not [one for one in run_checks(results) if one.check == "tls"]


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("bug", etcd_versions.BUGS, ids=lambda bug: bug.source)
def test_a_bug_ends_with_the_version_that_mends_it(bug: etcd_versions.Bug) -> None:
    for major, minor, patch in bug.fixed:
        assert bug not in etcd_versions.known_bugs((major, minor, patch), login=True)
        if patch:
            assert bug in etcd_versions.known_bugs((major, minor, patch - 1), login=True)
    assert bug not in etcd_versions.known_bugs((3, 9, 0), login=True)


def test_a_bug_begins_where_it_came() -> None:
    crash, stale = (
        next(bug for bug in etcd_versions.BUGS if number in bug.source)
        for number in ("#13766", "#20418")
    )
    for version, has in (((3, 4, 19), False), ((3, 5, 0), True), ((3, 5, 2), True)):
        assert (crash in etcd_versions.known_bugs(version, login=False)) is has
    for version, has in (((3, 4, 19), False), ((3, 4, 20), True), ((3, 6, 8), True)):
        assert (stale in etcd_versions.known_bugs(version, login=False)) is has


@pytest.mark.parametrize("login", [False, True])
def test_what_is_recommended_has_no_known_bug(login: bool) -> None:
    for line in ((3, 3), (3, 4), (3, 5), (3, 6), (3, 7), (3, 8)):
        best = etcd_versions.recommended((*line, 0), login=login)
        assert etcd_versions.known_bugs(best, login=login) == []
    assert etcd_versions.parse("3.6.0-rc.1") == (3, 6, 0)
    assert etcd_versions.parse("master") is None
