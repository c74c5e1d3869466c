"""The pages of `etcdsem exporter`, and their JSON: a real exporter before a real etcd."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.cli.exporter.pages import is_loopback
from etcdsem.cli.output import clean
from tests.cli.crowded import EVIL, MARKUP, NAMES
from tests.cli.driver import Cli, ran
from tests.helpers.browser import Browser, browser_program
from tests.helpers.waiting import eventually
from tests.security.secured import secured

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "p", "a", "footer"),
    *("table", "thead", "tbody", "tr", "th", "td", "meter"),
}
ATTRIBUTES = {
    *("charset", "class", "content", "data-title", "high", "href", "http-equiv", "lang", "max"),
    *("name", "rel", "scope", "value"),
}

Started = Callable[..., "Exporter"]


class Page(HTMLParser):
    """A page: its tags, the text of its elements, the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.style = ""
        self.text = ""
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href" and tag == "a"]
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
            return
        self.text += data
        if {"td", "th"} & {*self._open} and "meter" not in self._open:
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("there is no comment in a page")


class Exporter:
    """One that runs."""

    def __init__(self, cli: Cli) -> None:
        self.url = cli.expect(r"serving metrics of \S+ on (http://\S+)/metrics", err=True)[1]
        self.address = self.url.removeprefix("http://")
        assert self.ask("/livez")[0] == 200

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """The status, the headers and the body of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def page(self, path: str, status: int = 200) -> Page:
        """A page, of which nothing but its text may come from elsewhere."""
        code, headers, body = self.ask(path)
        assert (code, headers["Content-Type"]) == (status, "text/html; charset=utf-8"), body
        page = Page(body)
        assert page.tags <= TAGS
        assert page.attributes <= ATTRIBUTES
        assert all(sign == "\n" or sign.isprintable() for sign in body)
        return page

    def data(self, path: str, status: int = 200) -> Any:
        """The JSON of an answer."""
        code, headers, body = self.ask(path)
        assert (code, headers["Content-Type"]) == (status, "application/json"), body
        return json.loads(body)


@pytest.fixture
def exporter(start: Callable[..., Cli]) -> Started:
    """Start one: ``exporter(etcd, ...)``."""

    def one(etcd: EtcdServer, *arguments: str, listen: str = "127.0.0.1:0") -> Exporter:
        return Exporter(start(etcd, "exporter", "--listen", listen, *arguments))

    return one


def plain_table(text: str) -> list[list[str]]:
    """The cells of a printed table whose columns are two blanks apart, without ages."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_the_list_is_what_top_shows(crowded: EtcdServer, exporter: Started) -> None:
    """The same rows in the same order, with the same notes, for each order."""
    one = exporter(crowded)
    for sort in ("waiting", "held", "oldest", "name"):
        page = one.page(f"/?sort={sort}")
        header, *shown = ([*row[:3], row[4], row[6]] for row in page.rows)
        assert header == ["NAME", "HELD", "LIMIT", "WAITING", "NOTE"]
        printed = plain_table(ran(crowded, "top", "--sort", sort).stdout)[1:]
        for cells, (name, held, limit, waiting, _, *note) in zip(shown, printed, strict=True):
            # an age within a note may differ by a second
            without = [re.sub(r"\d+s", "s", text) for text in ([*cells[:4], cells[4] or ""])]
            wanted = [name, held, limit, waiting, *(note or [""])]
            assert without == [re.sub(r"\d+s", "s", text) for text in wanted]
    assert "9 semaphores, 2 rate limits, 9 held, 4 waiting" in one.page("/").text
    notes = {row[0]: row[6] for row in one.page("/").rows}
    assert notes["over"] == "2 over limit"
    assert notes["unreadable"] == notes["fast"] == "limit unreadable"
    assert notes["odd"] == "2 unrecognized keys"
    assert notes["paused"].startswith("paused ")
    assert one.page("/?sort=" + "x" * 100).rows == one.page("/").rows


def test_the_json_is_that_of_ls_and_status(crowded: EtcdServer, exporter: Started) -> None:
    """From the copy and from etcd the same; only what is left of a time is another moment's."""
    one = exporter(crowded)
    listed = json.loads(ran(crowded, "ls", "--json").stdout)
    assert one.data("/api/status") == listed
    names = [row["name"] for row in listed["semaphores"]]
    assert {*names} >= {*NAMES, "no-limit"}
    assert "only-junk" not in names
    for name in ("gpu", "mail", "odd", "paused", "unreadable"):
        mine, other = (
            one.data(f"/api/status/{name}"),
            json.loads(ran(crowded, "status", name, "--json").stdout),
        )
        after = mine.pop("next_free"), other.pop("next_free")
        assert after[0] == pytest.approx(after[1], abs=60)
        for data in (mine, other):
            for who in (*data["holders"], *data["waiters"]):
                assert who.pop("ttl") > 0
        assert mine == other
    assert "not known" in one.data("/api/status/no-limit", 404)["error"]
    assert "not known" in one.page("/semaphore/no-limit", 404).text


def test_a_page_is_what_status_shows(crowded: EtcdServer, exporter: Started) -> None:
    """The same titles and cells but for times; the links between the pages lead there."""
    one = exporter(crowded)
    links = [link for link in one.page("/").links if link.startswith("semaphore/")]
    assert {f"semaphore/{name}" for name in NAMES} <= {*links}
    for name in ("fast", "gpu", "mail", "odd", "x" * 128):
        page = one.page(f"/semaphore/{name}")
        assert page.links == ["../", f"../api/status/{name}"]
        assert one.ask(f"/semaphore/{page.links[1]}".replace("/semaphore/..", ""))[0] == 200
        printed = ran(crowded, "status", name)
        titles = [row for row in page.rows if row[0] in ("SLOT", "PLACE")]
        tables = [plain_table(part)[0] for part in printed.stdout.split("\n\n")[1:]]
        assert titles == tables
    page = one.page("/semaphore/gpu")
    assert [row[2] for row in page.rows if row[0] in "123" and len(row) == 7] == [
        "weight 4, priority 7", "weight 3", "weight 2, backfill",
    ]  # fmt: skip
    assert "1 free, reserved for the first waiter, which wants 4" in page.text
    assert 'new <b>driver</b> & "more"' in one.page("/semaphore/paused").text
    assert "limit unreadable, no lease is granted" in one.page("/semaphore/unreadable").text
    assert "2 over limit" in {row[0] for row in one.page("/semaphore/over").rows}
    mail = one.page("/semaphore/mail")
    assert "rate 1/1h, 1 used, 1 waiting" in mail.text
    assert "next free in" in mail.text


def test_hostile_text_is_text(crowded: EtcdServer, exporter: Started) -> None:
    """Owners, labels, limits, keys, paths and queries; `page` looks at the markup."""
    one = exporter(crowded)
    shown = clean(EVIL)
    assert f"team={MARKUP}" in one.page("/semaphore/gpu").text
    odd = one.page("/semaphore/odd").text
    assert odd.count(f"/etcdsem/odd/leases/{shown}") == 1
    assert odd.count(f"/etcdsem/odd/waiters/{shown}") == 1
    assert "<script>alert(1)</script>" in one.page("/semaphore/unreadable").text
    quoted = urllib.parse.quote(EVIL, safe="")
    assert shown in one.page(f"/semaphore/{quoted}", 404).text
    assert one.page(f"/?sort={quoted}&{quoted}").rows == one.page("/").rows


def test_without_anything(fresh_etcd: EtcdServer, exporter: Started) -> None:
    one = exporter(fresh_etcd)
    assert "no semaphores yet" in one.page("/").text
    assert one.data("/api/status") == {"semaphores": []}


def test_paths_that_are_none(etcd: EtcdServer, name: str, exporter: Started) -> None:
    """404, with the reason, or with the paths that there are."""
    one = exporter(etcd)
    for path in (
        *("/semaphore", "/semaphore/a/b", "/api", "/api/", "/api/status/a/b", "/x", "*"),
        *("/semaphore/%ff", "/api/status/%ff", "/..", "/semaphore/a/../b"),
    ):
        assert "/metrics" in one.data(path, 404)["paths"]
    for missing in (name, "", "..", "%2e%2e", "a%2Fb", "%00"):
        assert "no such semaphore" in one.page(f"/semaphore/{missing}", 404).text
        assert "no such semaphore" in one.data(f"/api/status/{missing}", 404)["error"]


def test_only_get_and_head(etcd: EtcdServer, client: Client, name: str, exporter: Started) -> None:
    Semaphore(3, name, client=client)
    one = exporter(etcd)
    for path in ("/", f"/semaphore/{name}", "/api/status", f"/api/status/{name}"):
        status, headers, body = one.ask(path, "HEAD")
        assert (status, body) == (200, "")
        assert int(headers["Content-Length"]) > 20
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"):
            assert one.ask(path, method)[0] == 501


def test_headers(etcd: EtcdServer, client: Client, name: str, exporter: Started) -> None:
    """The policy allows the page's own style by its hash, and nothing else; nothing is kept."""
    Semaphore(3, name, client=client)
    one = exporter(etcd)
    for path, status in (("/", 200), (f"/semaphore/{name}", 200), ("/semaphore/none", 404)):
        page, headers = one.page(path, status), one.ask(path)[1]
        digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "style-src": f"'sha256-{digest}'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert "url(" not in page.style
    for path in ("/", f"/semaphore/{name}", "/api/status", f"/api/status/{name}"):
        headers = one.ask(path)[1]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


PATHS = ("/", "/semaphore/x", "/api/status", "/api/status/x")


def test_off_beyond_loopback(etcd: EtcdServer, exporter: Started) -> None:
    """Unless --web; and off everywhere with --no-web. The metrics are there in any case."""
    for one in (exporter(etcd, listen="0.0.0.0:0"), exporter(etcd, "--no-web")):
        for path in PATHS:
            assert "/" not in one.data(path, 404)["paths"]
        assert one.ask("/metrics")[0] == 200
    assert one.ask("/readyz")[0] == 200
    one = exporter(etcd, "--web", listen="0.0.0.0:0")
    assert one.ask("/")[0] == one.ask("/api/status")[0] == 200


def test_which_addresses_are_loopback() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("", "0.0.0.0", "::", "10.0.0.1", "fe80::1", "localhost.example", "127.1"):
        assert not is_loopback(host)


def test_other_host_names(etcd: EtcdServer, exporter: Started) -> None:
    """A page elsewhere whose name leads to 127.0.0.1 cannot read ours, unless --web."""
    one = exporter(etcd)
    for host in ("evil.example", "evil.example:9379", "127.0.0.1.evil.example", "localhost.x", "["):
        for path in PATHS:
            status, _, body = one.ask(path, Host=host)
            assert (status, "--web" in body) == (403, True)
        assert one.ask("/metrics", Host=host)[0] == 200
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:9379", "10.1.2.3", ""):
        assert one.ask("/", Host=host)[0] == 200
    one = exporter(etcd, "--web")
    assert one.ask("/", Host="semaphores.example")[0] == 200


def handled(etcd: EtcdServer, method: str) -> int:
    """How many calls of a method etcd has answered."""
    with urllib.request.urlopen(f"{etcd.client_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    counts = re.findall(
        rf'^grpc_server_handled_total\{{.*grpc_method="{method}".*\}} (\S+)$', text, re.MULTILINE
    )
    return sum(int(float(count)) for count in counts)


def test_what_a_page_costs_etcd(fresh_etcd: EtcdServer, exporter: Started) -> None:
    """The list: one count. A semaphore: that, and one status in a second for all browsers."""
    one = exporter(fresh_etcd)
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(3, "x", client=client)
        sem.acquire(weight=3)
        eventually(lambda: one.data("/api/status/x")["held"] == 3)
        before = handled(fresh_etcd, "Txn")
        for _ in range(10):
            one.page("/")
        one.page("/semaphore/other", 404)
        assert handled(fresh_etcd, "Txn") - before <= 11
        asked, began = handled(fresh_etcd, "LeaseTimeToLive"), time.monotonic()
        threads = [threading.Thread(target=one.page, args=("/semaphore/x",)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        assert handled(fresh_etcd, "LeaseTimeToLive") - asked <= 3 * (1 + took)
        assert "etcdsem_full_reads_total 1.0" in one.ask("/metrics")[2]


def test_without_etcd(fresh_etcd: EtcdServer, exporter: Started) -> None:
    """The list as it was last, and since when; the rest says why there is nothing. Then all."""
    one = exporter(fresh_etcd)
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        Semaphore(3, "x", client=client)
    eventually(lambda: len(one.data("/api/status")["semaphores"]) == 1)
    fresh_etcd.kill()
    page = one.page("/")
    assert page.rows[1][:3] == ["x", "0", "3"]
    assert re.search(r"updated \d+s ago: .*cannot be reached", page.text)
    assert "cannot be reached" in one.page("/semaphore/x", 503).text
    assert "cannot be reached" in one.data("/api/status", 503)["error"]
    assert "cannot be reached" in one.data("/api/status/x", 503)["error"]
    fresh_etcd.restart()
    eventually(lambda: one.ask("/api/status")[0] == 200, 60)
    assert "updated" not in one.page("/").text
    assert one.data("/api/status/x")["limit"] == 3


def test_a_user_who_may_only_read(etcd_binary: str, start: Callable[..., Cli]) -> None:
    """All but the times to live, which etcd may not tell it."""
    with secured(etcd_binary) as etcd:
        etcd.root("user add viewer:secret", "role add viewers", "user grant-role viewer viewers")
        etcd.root("role grant-permission viewers --prefix=true read /etcdsem/")
        with etcdsem.connect(etcd.endpoint, user="root", password="root") as root:
            Semaphore(3, "x", client=root).acquire()
            login = {"ETCDSEM_USER": "viewer", "ETCDSEM_PASSWORD": "secret"}
            one = Exporter(start(etcd, "exporter", "--listen", "127.0.0.1:0", env=login))
            eventually(lambda: len(one.page("/").rows) == 2)
            (holder,) = one.data("/api/status/x")["holders"]
            assert one.page("/semaphore/x").rows[1][1] == holder["owner"]
            assert "secret" not in one.page("/").text


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = browser_program()
    if program is None:
        pytest.skip("no Chromium is installed")
    one = Browser(program, tmp_path)
    yield one
    one.close()


def test_in_a_browser(crowded: EtcdServer, exporter: Started, browser: Browser) -> None:
    """The style is applied; no script, no complaint of the policy, no request to elsewhere."""
    one = exporter(crowded)
    for width, dark in ((1200, False), (390, True), (320, False)):
        browser.screen(width, 800, dark=dark)
        for path in ("/", *(f"/semaphore/{name}" for name in NAMES)):
            browser.open(one.url + path)
            assert browser.value("document.documentElement.scrollWidth") <= width, path
            back = browser.value("getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(255, 255, 255)") is not dark
            assert browser.value("document.querySelectorAll('script, img').length") == 0
    browser.open(f"{one.url}/semaphore/odd")
    text = browser.value("document.body.innerText")
    assert "<img src=x onerror='alert(2)'>" in text
    assert not browser.seen("Log.entryAdded")
    assert not browser.seen("Runtime.consoleAPICalled")
    assert not browser.seen("Runtime.exceptionThrown")
    assert not browser.seen("Page.javascriptDialogOpening")
    urls = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
    assert all(url.startswith((f"{one.url}/", "data:,")) for url in urls), urls


def test_in_a_browser_without_scripts(
    fresh_etcd: EtcdServer, exporter: Started, browser: Browser
) -> None:
    """It reloads itself and shows what is new; the links work."""
    one = exporter(fresh_etcd)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"{one.url}/?sort=name")
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        Semaphore(3, "new.one", client=client)
        eventually(lambda: one.page("/").rows[1:])
        browser.loaded()  # by itself
        frame = browser.call("Page.getFrameTree")["frameTree"]["frame"]
        assert frame["url"] == f"{one.url}/?sort=name"
        tree = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
        link = browser.call("DOM.querySelector", nodeId=tree, selector="tbody a")["nodeId"]
        x1, y1, x2, _, _, y2, *_ = browser.call("DOM.getBoxModel", nodeId=link)["model"]["content"]
        place = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "button": "left", "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", **place)
        browser.loaded()
        frame = browser.call("Page.getFrameTree")["frameTree"]["frame"]
        assert frame["url"] == f"{one.url}/semaphore/new.one"
