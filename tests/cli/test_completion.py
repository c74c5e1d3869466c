"""``etcdsem completion``: commands, options and names, soon and silently."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ETCDSEM, ran, ran_here
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def completed(etcd: EtcdServer | None, *words: str) -> list[str]:
    """What bash is told about the last of these words."""
    done = subprocess.run(
        ETCDSEM,
        env={
            **os.environ,
            **(etcd.env() if etcd else {}),
            "_ETCDSEM_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["etcdsem", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [line.split(",")[1] for line in done.stdout.split()]


def test_commands_options_and_names_are_completed(etcd: EtcdServer, name: str) -> None:
    ran(etcd, "run", name, "-l", "2", "--", "true")
    assert completed(None, "ho") == ["hold"]
    assert "--limit" in completed(None, "run", "--l")
    assert completed(None, "run", "--on-lost", "w") == ["warn"]
    eventually(lambda: completed(etcd, "run", "-l", "2", name[:6]) == [name])


@pytest.mark.parametrize(
    "command", sample(["status", "run", "hold", "limit", "evict", "close", "doctor"])
)
def test_each_command_completes_names(etcd: EtcdServer, name: str, command: str) -> None:
    ran(etcd, "run", name, "-l", "2", "--", "true")
    eventually(lambda: completed(etcd, command, name[:6]) == [name])


def test_completion_is_silent_and_soon_over(fresh_etcd: EtcdServer) -> None:
    """No etcd, one that says nothing, settings that cannot be: nothing to choose from."""
    assert completed(None, "--endpoints", "127.0.0.1:1", "status", "") == []
    assert completed(None, "status", "--endpoints", "//", "") == []
    fresh_etcd.pause()
    began = time.monotonic()
    assert completed(fresh_etcd, "status", "") == []
    assert time.monotonic() - began < 20  # two seconds, and those of a busy machine
    fresh_etcd.resume()


def test_the_script_for_bash_works(etcd: EtcdServer) -> None:
    script = ran(None, "completion", "bash").stdout
    folder = os.path.dirname(sys.executable)
    ask = f"{script}\nCOMP_WORDS=(etcdsem ho); COMP_CWORD=1; _etcdsem_completion etcdsem\n"
    done = subprocess.check_output(
        ["bash", "-c", ask + 'echo "${COMPREPLY[@]}"'],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        text=True,
    )
    assert done == "hold\n"
    for shell, word in (("zsh", "compdef"), ("fish", "complete --no-files")):
        assert word in ran_here(None, "completion", shell).stdout
    assert ran_here(None, "completion", "tcsh").returncode == 64


def test_descriptions_in_fish_are_whole() -> None:
    """The script splits at the first comma only, and click does not cut the text."""
    script = ran_here(None, "completion", "fish").stdout
    assert 'string split --max 1 ","' in script
    assert 'string split ","' not in script
    done = subprocess.run(
        ETCDSEM,
        env={
            **os.environ,
            "_ETCDSEM_COMPLETE": "fish_complete",
            "COMP_WORDS": "etcdsem ",
            "COMP_CWORD": "",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "plain,doctor\tCheck etcd, the connection to it, and the semaphores.\n" in done.stdout
    assert "..." not in done.stdout
