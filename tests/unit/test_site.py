"""The documentation: every public name has a page, messages and variables exist, the site builds.

The site itself is tested where its tools are installed ('.[docs]'): `.ci/run` does that.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "etcdsem"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")

MODULES = ("", ".aio", ".metrics", ".testing", ".testing.aio", ".server")


def public_names() -> set[str]:
    """Each name in the `__all__` of a public module."""
    modules = [importlib.import_module("etcdsem" + name) for name in MODULES]
    return {f"{module.__name__}.{name}" for module in modules for name in module.__all__}


def texts(node: ast.AST) -> Iterator[str]:
    """The strings of a source, with `...` in place of what is inserted into them."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(child, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "..."
                for part in child.values
            )


def test_every_public_name_is_in_the_reference() -> None:
    """No more and no fewer."""
    pages = (DOCS / "api.md").read_text() + (DOCS / "api-aio.md").read_text()
    listed = re.findall(r"(?m)^::: (etcdsem\.[\w.]+)$", pages)
    assert sorted(listed) == sorted(public_names())


def test_every_page_is_in_the_navigation() -> None:
    """A page that is not in mkdocs.yml cannot be found on the site."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page.name for page in DOCS.glob("*.md")} <= set(listed)


def test_messages_exist() -> None:
    """Each message in docs/errors.md is one of the package's; each exception has a row."""
    page = (DOCS / "errors.md").read_text()
    exceptions, messages = page.split("## Connection")
    errors = set(importlib.import_module("etcdsem.errors").__all__) - {"EtcdSemError"}
    cells = re.findall(r"(?m)^\| (`[A-Z][^|]*) \|", exceptions)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == errors
    said = [text for file in PACKAGE.rglob("*.py") for text in texts(ast.parse(file.read_text()))]
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", messages)
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 40
    missing = [one for one in quoted if not any(one in text for text in said)]
    assert not missing


def test_every_variable_is_in_the_reference() -> None:
    """Each `ETCDSEM_...` that the package reads or sets is in docs/cli.md."""
    page = (DOCS / "cli.md").read_text()
    sources = "".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'"(ETCDSEM_[A-Z_]+)"', sources))
    assert len(used) > 20
    assert not {name for name in used if f"`{name}`" not in page}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it, which fails for dead links, anchors and names."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["make", "site", f"SITE=--site-dir {folder}"]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


class Loads(HTMLParser):
    """What a page loads, its ids, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag in ("script", "img", "iframe", "source", "audio", "video", "embed"):
            self.loads.append(given.get("src", ""))
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given.get("href", ""))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """No fonts, scripts, styles or pictures of other hosts, also not through a style."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    outside = [one for page in pages for one in Loads(page).loads if "//" in one]
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    outside += re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;", styles)
    assert not outside


def test_every_public_name_has_a_docstring_on_the_site(site: Path) -> None:
    """It has an anchor on one of the two pages."""
    anchors = Loads(site / "api.html").ids | Loads(site / "api-aio.html").ids
    assert not {name for name in public_names() if name not in anchors}


def test_every_command_is_on_the_site(site: Path) -> None:
    """Each has a section; llms.txt lists each page of the navigation."""
    from etcdsem.cli.main import _COMMANDS

    titles = Loads(site / "commands.html").ids
    assert {f"etcdsem-{name}" for name in _COMMANDS} <= titles
    listed = set(re.findall(r"\((\S+)\.html\)", (site / "llms.txt").read_text()))
    assert {page.stem for page in site.glob("*.html")} - listed == {"404"}


def counts(html: str) -> dict[str, int]:
    """How many lists, items, tables, blocks and headings there are."""
    return {tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in ("ol", "ul", "li", "tr", "pre")}


def test_the_site_reads_pages_as_git_hosts_do(site: Path) -> None:
    """Its Markdown needs four spaces below a list's item, where CommonMark needs two."""
    markdown_it = pytest.importorskip("markdown_it")
    commonmark = markdown_it.MarkdownIt("commonmark").enable("table")
    pages = {page.stem: page for page in DOCS.glob("*.md") if not page.stem.startswith("api")}
    pages |= {"changelog": ROOT / "CHANGELOG.md", "contributing": ROOT / "CONTRIBUTING.md"}
    for name, page in pages.items():
        html = (site / f"{name}.html").read_text()
        article = html[html.index("<article") : html.index("</article")]
        assert counts(article) == counts(commonmark.render(page.read_text())), name
