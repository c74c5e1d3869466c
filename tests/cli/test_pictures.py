"""The pictures of the README: what a script makes from real output, and no other host in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

DOCS = Path(__file__).parents[2] / "docs"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(svg: str) -> str:
    return " ".join("".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ").split())


def hosts(svg: str) -> set[str]:
    return set(re.findall(r"(?:https?:)?//([\w.-]+)", svg)) - {"www.w3.org"}


@pytest.mark.parametrize("name", ["top.svg", "demo.svg"])
def test_the_pictures_are_there_and_small(name: str) -> None:
    svg = (DOCS / name).read_text()
    assert hosts(svg) <= {"127.0.0.1"}
    assert len(svg) < 60_000
    assert f"docs/{name}" in (DOCS.parent / "README.md").read_text()
    assert words(svg)


@pytest.mark.slow
def test_the_picture_of_top_is_made_again(fresh_etcd: EtcdServer) -> None:
    """It shows what the committed one shows."""
    made = words(script().top(fresh_etcd.endpoint))
    committed = words((DOCS / "top.svg").read_text())
    for shown in ("6 semaphores", "nightly-backup", "1 over limit", "q quit"):
        assert shown in made
        assert shown in committed
