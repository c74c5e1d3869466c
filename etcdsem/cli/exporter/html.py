"""The pages of the exporter as HTML: what `top` and `status` show, without a script.

1. Elements are built by `xml.etree`, which escapes all text and attributes, and text passes
   `clean()` before. So nothing that comes from etcd or from a request can become markup.
2. A page is complete: its style is inline, and the Content-Security-Policy allows only that style.
3. On a narrow screen each row becomes a block, and each cell shows its title.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

from etcdsem.cli.http_server import Response
from etcdsem.cli.output import clean, limit_text, used
from etcdsem.cli.show.status_layout import (
    headline_parts,
    holder_rows,
    junk_keys,
    waiter_rows,
)
from etcdsem.cli.show.top_layout import SORTS, note, oldest, ordered, totals

if TYPE_CHECKING:
    from etcdsem.model import Overview, Status

REFRESH: Final = 5
"""Seconds after which a browser loads the page again."""

MOST_ROWS: Final = 1000
"""Rows of a table; the others are counted."""

_STYLE: Final = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --dim: #59636e; --line: #d1d9e0;
  --bad: #b3261e; --full: #7a5200; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e6e9ed; --dim: #9aa4af; --line: #333b44;
    --bad: #ff8a80; --full: #ffcc66; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
h1, p, .long { overflow-wrap: anywhere; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0; } a { color: var(--link); } footer { margin-top: 1.5rem; }
footer, .dim { color: var(--dim); } footer { font-size: .875rem; }
.bad { color: var(--bad); font-weight: 600; } .full { color: var(--full); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-size: .8rem; white-space: nowrap; } th a { color: inherit; }
.right { text-align: right; white-space: nowrap; } meter { width: 6rem; }
@media (max-width: 45rem) {
  table, tbody { display: block; } thead { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  td, td.right { border: 0; padding: 0; text-align: left; white-space: normal; }
  td:first-child { flex-basis: 100%; font-weight: 600; } td:empty { display: none; }
  td::before { content: attr(data-title) " "; color: var(--dim); font-size: .75rem;
    font-weight: 400; } }
"""

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "Referrer-Policy": "no-referrer",
}

_RIGHT: Final = frozenset(
    {"HELD", "LIMIT", "WAITING", "OLDEST", "SLOT", "PLACE", "WEIGHT", "FOR", "AGO", "ENDS", "TTL"}
    | {"TOKEN"}
)

_LONG: Final = frozenset({"NAME", "HOLDER", "GRANTED TO", "WAITER", "LABELS"})
"""Titles of columns whose words may be wider than a screen."""


def overview_page(prefix: str, rows: Sequence[Overview], sort: str, trouble: str) -> Response:
    """Return the page of all semaphores.

    Args:
        prefix: the prefix of the semaphores in etcd.
        rows: the semaphores.
        sort: the sort order, as requested.
        trouble: why `rows` is out of date; empty if it is not.
    """
    shown = ordered(rows, sort if sort in SORTS else "waiting")
    parts = [_tag("h1", f"Semaphores below {prefix}"), _tag("p", ", ".join(totals(rows)))]
    parts += _trouble(trouble)
    parts.append(_table(_SEMAPHORES, map(_semaphore_cells, shown[:MOST_ROWS])))
    parts += _more(shown, "etcdsem top")
    if not rows and not trouble:
        parts.append(_tag("p", "no semaphores yet", class_="dim"))
    return _page(f"{prefix} - etcdsem", parts, "api/status")


def status_page(seen: Status) -> Response:
    """Return the page of one semaphore."""
    usage, *reasons = headline_parts(seen)
    stopped = "bad" if seen.max_leases is None or seen.pause is not None else ""
    parts = [_back(), _tag("h1", seen.name)]
    parts += [
        _tag("p", part, class_=stopped) for part in (usage.removeprefix(f"{seen.name}: "), *reasons)
    ]
    holders = "Granted" if seen.rate is not None else "Holders"
    for title, (header, *rows) in ((holders, holder_rows(seen)), ("Waiters", waiter_rows(seen))):
        if rows:
            parts.append(_tag("h2", f"{title}: {len(rows)}"))
            parts.append(_table(map(_title, header), map(_cells, rows[:MOST_ROWS])))
            parts += _more(rows, f"etcdsem status {seen.name}")
    unrecognized = junk_keys(seen)
    if unrecognized:
        parts.append(_tag("h2", f"Unrecognized keys: {len(unrecognized)}"))
        parts += [_tag("p", f"{one.key}: {one.reason}") for one in unrecognized[:MOST_ROWS]]
    return _page(f"{seen.name} - etcdsem", parts, f"../api/status/{quote(seen.name, safe='')}")


def trouble_page(status: int, title: str, trouble: str) -> Response:
    """Return a page that says only why there is nothing to show."""
    return _page(title, [_back(), _tag("h1", title), *_trouble(trouble)], None, status)


def _page(title: str, parts: Iterable[Element], data: str | None, status: int = 200) -> Response:
    now = f"{datetime.now(UTC):%H:%M:%S} UTC"
    footer = _tag("footer", f"Read at {now}; this page reloads every {REFRESH} s. ")
    if data is not None:
        footer.append(_tag("a", "JSON", href=data))
    style = _tag("style")
    style.text = _STYLE
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="refresh", content=str(REFRESH)),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("link", rel="icon", href="data:,"),
        _tag("title", title),
        style,
    )
    root = _tag("html", head, _tag("body", *parts, footer), lang="en")
    body = "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html")
    return Response(status, "text/html; charset=utf-8", body.encode(), _HEADERS)


def _tag(tag: str, *content: str | Element, **attributes: str) -> Element:
    """Return an element. A trailing ``_`` of an attribute is dropped, others become ``-``."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    element = Element(tag, {names[key]: clean(value) for key, value in attributes.items() if value})
    for part in content:
        if isinstance(part, Element):
            element.append(part)
        else:
            element.text = (element.text or "") + clean(part)
    return element


def _back() -> Element:
    return _tag("p", _tag("a", "all semaphores", href="../"))


def _trouble(text: str) -> list[Element]:
    return [_tag("p", text, class_="bad")] if text else []


def _more(rows: Sequence[object], command: str) -> list[Element]:
    more = len(rows) - MOST_ROWS
    return [_tag("p", f"and {more} more: see {command}", class_="dim")] if more > 0 else []


def _table(titles: Iterable[Element], rows: Iterable[Iterable[Element]]) -> Element:
    """Return a table; each cell gets the title and the class of its column."""
    heads = list(titles)
    body = _tag("tbody")
    for row in rows:
        cells = list(row)
        for head, cell in zip(heads, cells, strict=True):
            cell.set("data-title", "".join(head.itertext()))
            classes = {*cell.get("class", "").split(), *head.get("class", "").split()}
            if classes:
                cell.set("class", " ".join(sorted(classes)))
        body.append(_tag("tr", *cells))
    return _tag("table", _tag("thead", _tag("tr", *heads)), body)


def _title(text: str, sort: str = "") -> Element:
    label: str | Element = _tag("a", text, href=f"?sort={sort}") if sort else text
    kind = "right" if text in _RIGHT else "long" if text in _LONG else ""
    return _tag("th", label, scope="col", class_=kind)


_SEMAPHORES: Final = tuple(
    _title(*one)
    for one in (
        ("NAME", "name"),
        ("HELD", "held"),
        ("LIMIT",),
        ("USE",),
        ("WAITING", "waiting"),
        ("OLDEST", "oldest"),
        ("NOTE",),
    )
)


def _semaphore_cells(one: Overview) -> list[Element]:
    full = one.max_leases is not None and one.held >= one.max_leases
    use = _tag("td")
    if one.max_leases:
        bounds = {"max": str(one.max_leases), "value": str(one.held)}
        bounds["high"] = str(one.max_leases - 0.5)  # another colour when full
        use.append(_tag("meter", f"{one.held} of {one.max_leases}", **bounds))
    return [
        _tag("td", _tag("a", one.name, href=f"semaphore/{quote(one.name, safe='')}")),
        _tag("td", str(used(one.held, one.rate)), class_="full" if full else ""),
        _tag("td", limit_text(one.max_leases, one.rate)),
        use,
        _tag("td", str(one.waiting)),
        _tag("td", oldest(one)),
        _tag("td", note(one), class_="bad"),
    ]


def _cells(row: Iterable[str]) -> list[Element]:
    return [_tag("td", "" if text == "-" else text) for text in row]
