"""Documentation, comments and messages avoid a list of unidiomatic phrases."""

from __future__ import annotations

import bisect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="there are no docs here")


class Phrase(NamedTuple):
    """A phrase to avoid. Case is ignored; a space in a pattern also matches a line break."""

    pattern: str
    instead: str
    bad: str
    good: str


PHRASES = (
    Phrase(
        r"\b(?-i:Who) (?:asks|closes|comes|had|has|holds|loses|stands|waits|wants)\b[^.?\n]*\.",
        "name the actor: holders, waiters, a client that ...",
        "Who holds is not disturbed.",
        "Who holds the lease? It shows who holds it and since when.",
    ),
    Phrase(
        r"; who (?:comes|loses|stands|waits|wants)\b|\bwho (\w+s), \1\b",
        "name the actor: holders, waiters, a client that ...",
        "it is paused; who waits, waits on",
        "one semaphore: who holds, who waits; who holds it: etcdsem status",
    ),
    Phrase(
        r"\b(?:for|of|by|with) who\b",
        "name the actor: a client that ...",
        "served before it, except by who asked to be eager",
        "for those who hold, and for whom",
    ),
    Phrase(
        r"\bwhoever (?:comes|gets|got|had|has|holds|is|releases|waits|was)\b",
        "the holder, the waiter, the next client, anybody who ...",
        "from whoever had it",
        "whoever can write there owns the cluster",
    ),
    Phrase(
        r"\bwhat is (?:held|paused|stored|wanted)\b",
        "held leases, a paused semaphore, the stored value, the request",
        "What is held is taken from nobody.",
        "what is tested, and how",
    ),
    Phrase(
        r"\b(?:is|are|was|were|be|been) told\b(?! apart)",
        "gets an error, is notified, learns, is reported",
        "the others are told",
        "these are told apart by their token",
    ),
    Phrase(r"\bbe had\b", "is available", "if a thread can be had", "it may be hard"),
    Phrase(r"\bbe it\b", "whether ..., even if ...", "be it by a signal", "to be iterated"),
    Phrase(
        r"\bat all(?=[.,;:)?])",
        "leave it out",
        "it does not run at all.",
        "at all times, and look at all of them",
    ),
    Phrase(
        r"\bmend(?:s|ed|ing)?\b",
        "fix, repair",
        "until it is mended",
        "recommended: amend the commit",
    ),
    Phrase(
        r"\bin line\b(?! with)",
        "in the queue; the first waiter",
        "the first in line",
        "in line with the others, inline",
    ),
    Phrase(
        r"\b(?:join|joins|joined|leave|leaves|left|serve|serves|served) the line\b",
        "the queue",
        "others will serve the line",
        "it prints the line",
    ),
    Phrase(
        r"\b(?:strikes?|struck)\b",
        "interrupt, raise in",
        "a signal that strikes there",
        "strikethrough",
    ),
    Phrase(
        r"\b(?:is|are) to be\b", "must, should", "it is to be closed", "it is too late to be sure"
    ),
    Phrase(r"\bshall\b", "must, will", "it shall stop", "a shallow copy"),
    Phrase(r"\bof one's own\b", "your own, a dedicated", "an etcd of one's own", "its own etcd"),
    Phrase(
        r"\bthere (?:is|was) none\b",
        "no ..., if it exists, absent",
        "a lease, or there is none",
        "there is nonetheless one",
    ),
    Phrase(
        r"\b(?:neither|nor)(?=[.,;:)])",
        "either, too",
        "nor does it wait, and the second one neither.",
        "neither slots nor places",
    ),
    Phrase(r"\bfor ever\b", "forever", "it hangs for ever", "for everybody"),
    Phrase(
        r"\b(?:go|goes|going|went|gone) on\b(?! (?:a|an|another|each|the)\b)",
        "continue",
        "the job goes on with its lease",
        "it goes on the wire",
    ),
    Phrase(r"\bin vain\b", "unsuccessful, without success", "three turns in vain", "in vanilla"),
    Phrase(
        r"\bsome \d",
        "about",
        "it takes some 340 bytes",
        "some leases, about 340",
    ),
    Phrase(
        r"(?<!here )\b(?:is|are|was) no (?:answer|error|lease|loss|news|number|pipe|rate|slot)\b",
        "is not a ...",
        "what it read is no number",
        "there is no lease yet",
    ),
    Phrase(
        r"\b(?:is|are) the (?:most|least)(?=[.,;:)]|$)",
        "maximum, minimum, at most, at least",
        "17 labels were given; 16 are the most",
        "these are the most frequent ones",
    ),
    Phrase(
        r"\blook(?:s|ed|ing)? after\b",
        "reconcile, maintain, watch",
        "could not look after it now",
        "look at it after that",
    ),
    Phrase(
        r"\bsee(?:s|n|ing)? to (?:it|that)\b",
        "ensure, make sure",
        "the holder sees to it",
        "it seems to that client",
    ),
    Phrase(
        r"\bstrange (?:key|record|value)s?\b",
        "unrecognized",
        "2 strange keys are left out",
        "a stranger",
    ),
    Phrase(
        r"\b(?:has|have|had) not(?=[.,:;])",
        "does not have, lacks",
        "what the others have not:",
        "it has not been released",
    ),
    Phrase(
        r"\bhas it an?\b",
        "does it have",
        "does it answer, has it a leader",
        "has its own lease",
    ),
    Phrase(
        r"\bin the midst\b",
        "in the middle of, during",
        "stopped in the midst of a call",
        "in the middle",
    ),
    Phrase(r"\banew\b", "again", "the timeout begins anew", "a new lease"),
    Phrase(r"\bsuch a one\b", "it, one of these", "passes such a one", "such a lease"),
    Phrase(r"\bat most so many\b", "a limit on ..., give the number", "at most so many", "so many"),
    Phrase(
        r"\b(?:is|are|was|were|be) asked for\b",
        "requested",
        "when it is asked for",
        "he asked for it",
    ),
)


def words(text: str) -> tuple[str, list[int], list[int]]:
    """The text with single spaces in it, and for each word its offset and its line.

    Blank lines become line breaks, which no pattern matches.
    """
    parts: list[str] = []
    offsets: list[int] = []
    lines: list[int] = []
    length = 0
    for number, line in enumerate(text.split("\n"), 1):
        for word in line.split() or ["\n"]:
            parts.append(word)
            offsets.append(length)
            lines.append(number)
            length += len(word) + 1
    return " ".join(parts), offsets, lines


def found_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, phrase and what to say instead, for each phrase that a text should avoid."""
    flat, offsets, lines = words(text)
    for phrase in PHRASES:
        for match in re.finditer(phrase.pattern, flat, re.IGNORECASE):
            line = lines[bisect.bisect_right(offsets, match.start()) - 1]
            yield line, match[0], phrase.instead


def blank(text: str) -> str:
    """Spaces in place of a text, with the same lines."""
    return re.sub(r"[^\n]", " ", text)


def prose_of_markdown(text: str) -> str:
    """A page without program output: console and text blocks, measurements, inline code."""
    text = re.sub(
        r"<!-- measured: begin -->.*<!-- measured: end -->",
        lambda block: blank(block[0]),
        text,
        flags=re.DOTALL,
    )
    text = re.sub(
        r"^ *```(?:console|text)\n.*?^ *```$",
        lambda block: blank(block[0]),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    text = re.sub(r"```", "   ", text)
    return re.sub(r"`[^`]*`", lambda code: blank(code[0]), text)


def prose_of_python(source: str) -> str:
    """The strings and comments of a source, in the lines where they are."""
    kept = [[" "] * len(line) for line in source.split("\n")]
    text_tokens = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in text_tokens:
            continue
        text = token.string
        if token.type == tokenize.COMMENT:
            text = " " + text[1:]
        elif token.type == tokenize.STRING:
            text = re.sub(r"^\w*(?:\"\"\"|'''|[\"'])", lambda quote: blank(quote[0]), text)
            text = re.sub(r"(?:\"\"\"|'''|[\"'])$", lambda quote: blank(quote[0]), text)
            if "f" in token.string[:2].lower():  # Python 3.12 and later split f-strings
                text = re.sub(r"\{[^{}]*\}", lambda code: blank(code[0]), text)
        row, column = token.start
        for number, line in enumerate(text.split("\n")):
            at = column if number == 0 else 0
            kept[row - 1 + number][at : at + len(line)] = line
    return re.sub(r"`[^`\n]*`", lambda code: blank(code[0]), "\n".join(map("".join, kept)))


def prose_of(path: Path) -> str:
    """The texts of a file, in the lines where they are."""
    text = path.read_text()
    if path.suffix == ".py":
        return prose_of_python(text)
    if path.name == "CHANGELOG.md":
        start = text.index("## [Unreleased]")
        following = text.find("\n## [", start)
        end = len(text) if following < 0 else following
        text = blank(text[:start]) + text[start:end]
    if path.suffix == ".md":
        return prose_of_markdown(text)
    return re.sub(r"(?m)(?<!\S)#(?!\S)", " ", text)


def complaints(path: Path) -> list[str]:
    """What is wrong with a file, one line for each phrase."""
    name = path.relative_to(ROOT)
    return [
        f"{name}:{line}: {phrase!r}: say instead: {instead}"
        for line, phrase, instead in found_in(prose_of(path))
    ]


def documents() -> list[Path]:
    """All texts outside of the package."""
    deployed = [path for path in (ROOT / "deploy").rglob("*") if path.suffix != ".pyc"]
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *deployed]
    found += (ROOT / "examples").iterdir()
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def test_documents() -> None:
    """Documentation, examples, manifests and the changelog of the next version."""
    wrong = [line for path in documents() for line in complaints(path)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_package() -> None:
    """Strings, docstrings and comments of the package, where it is done."""
    wrong = []
    for source in sorted((ROOT / "etcdsem").rglob("*.py")):
        wrong += complaints(source)
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: phrase.bad)
def test_each_pattern(phrase: Phrase) -> None:
    """Each pattern finds its bad sample, also over a line break, and not the good one."""
    assert re.search(phrase.pattern, phrase.bad, re.IGNORECASE)
    assert not re.search(phrase.pattern, phrase.good, re.IGNORECASE)
    wrapped = phrase.bad.replace(" ", "\n    ")
    assert phrase.instead in [instead for _, _, instead in found_in(wrapped)]


def test_sources_are_read_as_text() -> None:
    """Strings and comments are checked, with their lines; code and inline code are not."""
    source = (
        "shall = nor = 1  # it shall\n"
        'print("it goes "\n'
        '      f"on and {shall}")\n'
        "\n"
        "def mend() -> None:\n"
        '    """Call `mend`.\n'
        "\n"
        "    It hangs for\n"
        '    ever."""\n'
    )
    assert sorted((line, said) for line, said, _ in found_in(prose_of_python(source))) == [
        (1, "shall"),
        (2, "goes on"),
        (8, "for ever"),
    ]


def test_pages_are_read_without_output() -> None:
    """Console blocks and inline code of a page are left out; its other blocks are not."""
    page = "It is `in line`.\n\n```console\n$ in line\n```\n\n```sh\nrun  # for ever\n```\n"
    assert [(line, said) for line, said, _ in found_in(prose_of_markdown(page))] == [
        (8, "for ever")
    ]
