"""Pages of the site that are not files of docs/: the changelog, the examples, each command's help.

Links between files of the repository become links between pages. A link to a file that the site
does not have becomes plain text, since there is no address yet to link to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from etcdsem.cli.main import cli

ROOT = Path(__file__).parents[1]
BESIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "examples/README.md": "examples.md",
}
"""Files of the repository, and the pages that they become."""

_LINK = re.compile(r"\[([^\[\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of the site, and put the sources of the examples on their page."""
    name = page.file.src_uri
    source = {made: source for source, made in BESIDE.items()}.get(name, f"docs/{name}")
    titles = {path: title for _, title, path in pages(config)}

    def point(link: re.Match[str]) -> str:
        file = ((ROOT / source).parent / link[2]).resolve()
        if not file.exists() or not file.is_relative_to(ROOT):
            return link[0]  # a page that is made here, or an error that mkdocs reports
        path = file.relative_to(ROOT).as_posix()
        there = BESIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(there) is not None:
            words = titles[there] if link[1] == link[2] and there in titles else link[1]
            return f"[{words}]({there}{link[3] or ''})"
        if path.startswith("examples/"):
            section = re.sub(r"[^\w-]", "", file.name)  # as mkdocs names it
            return f"[{link[1]}](examples.md#{section})"
        return link[1]

    parts = _FENCE.split(markdown)  # every second one is a fenced block
    parts[::2] = [_LINK.sub(point, prose) for prose in parts[::2]]
    return "".join(parts) + (examples() if name == "examples.md" else "")


def on_page_content(html: str, **_: object) -> str:
    """Let the browser break the long names of tests, which would make tables very wide."""
    return re.sub(
        r"<code>tests/[^<]*</code>", lambda code: re.sub(r"(::|_)", r"\1<wbr>", code[0]), html
    )


def on_post_build(config: Any) -> None:
    """Write llms.txt: the list of all pages, for language models."""
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}"]
    before = None
    for section, title, path in pages(config):
        if section != before:
            lines += ["", f"## {section}", ""]
        before = section
        lines.append(f"- [{title}]({path.removesuffix('.md')}.html)")
    (Path(config["site_dir"]) / "llms.txt").write_text("\n".join(lines) + "\n")


def pages(config: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the section, the title and the path of each page of the navigation."""
    for entry in config["nav"]:
        ((section, inside),) = entry.items()
        for one in [{section: inside}] if isinstance(inside, str) else inside:
            ((title, path),) = one.items()
            yield ("Start" if isinstance(inside, str) else section), title, path


def commands() -> str:
    """Return the page of the command line: what ``--help`` prints, for each command."""
    text = "# Command line\n\nThis is what `etcdsem --help` and `etcdsem COMMAND --help` print. "
    text += "[Exit codes, JSON and the environment](cli.md) have a page of their own.\n"
    with click.Context(cli, info_name="etcdsem", **cli.context_settings) as context:
        text += f"\n## etcdsem\n\n```text\n{cli.get_help(context)}\n```\n"
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            with click.Context(command, context, name, **command.context_settings) as inner:
                text += f"\n## etcdsem {name}\n\n```text\n{command.get_help(inner)}\n```\n"
    return text


def examples() -> str:
    """Return the source of each example, as sections of a page."""
    languages = {".py": "python", ".sh": "sh", ".yaml": "yaml"}
    return "".join(
        f"\n## {file.name}\n\n```{languages[file.suffix]}\n{file.read_text()}```\n"
        for file in sorted((ROOT / "examples").iterdir())
        if file.suffix in languages
    )
