"""Pages from the real server on the loopback address, alone and in a real browser."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import MISSING, Browser, chromium
from test_page import Parts
from test_viewer import press

from segdream_cli.formats import page, spz
from segdream_cli.splats import Splats
from segdream_cli.viewer import server as serve
from segdream_cli.viewer.live import LivePage
from segdream_cli.viewer.server import PageServer

pytestmark = pytest.mark.slow


@contextmanager
def serving(*, live: bool = False) -> Iterator[PageServer]:
    server = PageServer(live=live)
    server.start()
    try:
        yield server
    finally:
        server.close()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_server_sends_the_offline_page(chiral: Splats) -> None:
    with serving() as server:
        assert ask(server, "/")[0] == 503
        server.publish(chiral, "a helix")
        status, content, headers = ask(server, "/")
        assert (status, content) == (200, page.document(chiral, "a helix"))
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert b"connect-src" not in content
        for path in ("/newer", "/etc/passwd", "/../a", "/index.html"):
            assert ask(server, path)[0] == 404


def test_server_answers_this_machine_only(chiral: Splats) -> None:
    with serving() as server:
        server.publish(chiral, "a helix")
        port = server.url.split(":")[2].strip("/")
        assert server.url == f"http://127.0.0.1:{port}/"
        assert ask(server, "/", Host=f"localhost:{port}")[0] == 200
        for host in (f"evil.example:{port}", "127.0.0.1", ""):
            assert ask(server, "/", Host=host)[0] == 403


def test_server_refuses_other_sites(chiral: Splats) -> None:
    """A page of another site could read the prompt, or keep a run waiting."""
    with serving(live=True) as server:
        server.publish(chiral, "a helix")
        own = server.url.rstrip("/")
        for path in ("/", "/newer?after=0"):
            assert ask(server, path, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
            assert ask(server, path, Sec_Fetch_Site="none")[0] == 200
            for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "null"}):
                assert ask(server, path, **headers)[0] == 403
            assert ask(server, path, Origin="https://evil.example")[0] == 403


def test_server_answers_head_and_sends_its_policy(chiral: Splats) -> None:
    for live in (False, True):
        with serving(live=live) as server:
            server.publish(chiral, "a helix")
            status, content, headers = ask(server, "/")
            head = ask(server, "/", "HEAD")
            assert (head[0], head[1]) == (status, b"")
            assert head[2]["content-length"] == str(len(content))
            parts = Parts(content.decode())
            (inside,) = [attrs["content"] for _, attrs in parts.tags if attrs.get("http-equiv")]
            assert headers["content-security-policy"] == f"{inside}; frame-ancestors 'none'"
            assert ask(server, "/other", "HEAD")[0] == 404
            assert ask(server, "/", "POST")[0] == 501


def test_wait_for_pages_ends(chiral: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that asks and never takes an edition."""
    monkeypatch.setattr(serve, "LONGEST_WAIT_S", 0.2)
    server = PageServer(live=True)
    server.publish(chiral, "a")
    server._asked = time.monotonic() + 100
    start = time.monotonic()
    server.wait_for_pages()
    assert 0.1 < time.monotonic() - start < 3
    server._http.server_close()


def test_live_page_policy_allows_only_its_server(chiral: Splats) -> None:
    with serving(live=True) as server:
        server.publish(chiral, "a helix")
        parts = Parts(ask(server, "/")[1].decode())
        (policy,) = [attrs["content"] for _, attrs in parts.tags if attrs.get("http-equiv")]
        rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
        assert rules["connect-src"] == "'self'"
        assert rules["default-src"] == "'none'"
        (canvas,) = [attrs for tag, attrs in parts.tags if tag == "canvas"]
        assert canvas["data-newer"] == "/newer"


def test_newer_sends_later_editions_only(chiral: Splats, tmp_path: Path) -> None:
    with serving(live=True) as server:
        assert ask(server, "/newer?after=0")[0] == 204
        server.publish(chiral, "first")
        status, content, _ = ask(server, "/newer?after=0")
        first = json.loads(content)
        spz.write(tmp_path / "a.spz", chiral)
        assert (status, first["number"], first["title"], first["done"]) == (200, 1, "first", False)
        assert page.base64.b64decode(first["payload"]) == (tmp_path / "a.spz").read_bytes()
        assert first["facts"]["Gaussians"] == "400, spherical harmonics of degree 3"
        assert ask(server, "/newer?after=1")[0] == 204
        server.publish(replace(chiral, shN=chiral.shN[:, :0]), "second", done=True)
        second = json.loads(ask(server, "/newer?after=1")[1])
        assert (second["number"], second["title"], second["done"]) == (2, "second", True)
        for odd in ("", "?after=x", "?after=-1", "?after=99999999999999", "?after=%00", "?after=3"):
            assert json.loads(ask(server, f"/newer{odd}")[1])["number"] == 2


def test_publish_copies_the_arrays(chiral: Splats) -> None:
    """The optimiser later changes the arrays in place."""
    with serving(live=True) as server:
        before = page.document(chiral, "a", newer=serve.NEWER)
        server.publish(chiral, "a")
        chiral.means[:] = 7
        assert ask(server, "/")[1] == before


def test_server_sends_503_for_an_edition_that_cannot_be_shown(chiral: Splats) -> None:
    with serving(live=True) as server:
        server.publish(replace(chiral, means=chiral.means * np.float32(np.nan)), "a")
        assert ask(server, "/")[0] == 503
        assert ask(server, "/newer?after=0")[0] == 503
        server.publish(chiral, "a")
        assert ask(server, "/")[0] == 200


def test_needs_edition_is_for_open_pages_only(chiral: Splats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "INTERVAL_S", 0.05)
    with serving(live=True) as server:
        server.publish(chiral, "a")
        time.sleep(0.1)
        assert not server.needs_edition()
        server.wait_for_pages()  # nobody is there to take it
        ask(server, "/newer?after=0")
        assert server.needs_edition()
        server.publish(chiral, "b")
        assert not server.needs_edition()
        waiting = threading.Thread(target=server.wait_for_pages)
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()
        ask(server, "/newer?after=1")
        waiting.join(timeout=20)
        assert not waiting.is_alive()


def test_server_sends_a_page_of_several(chiral: Splats) -> None:
    with serving() as server:
        server.publish_row([chiral, chiral.select(np.arange(9))], ["a helix", '<script>"'])
        status, content, headers = ask(server, "/")
        parts = Parts(content.decode())
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        frames = [(attrs["src"], attrs["title"]) for tag, attrs in parts.tags if tag == "iframe"]
        assert frames == [("/1#beside", "a helix"), ("/2#beside&rotate=0", '<script>"')]
        assert ask(server, "/1")[1] == page.document(chiral, "a helix")
        assert ask(server, "/2")[0] == 200
        for path in ("/3", "/0", "/01", "/newer", "/1/", "/-1"):
            assert ask(server, path)[0] == 404, path


needs_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def image(tab: Browser) -> np.ndarray:
    tab.run("await segdream.viewer.settled()")
    return tab.screenshot().astype(float)


@needs_browser
def test_live_page_shows_newer_editions(chiral: Splats, tab: Browser) -> None:
    """Few Gaussians, then all of them in another colour: the page updates itself, and keeps the last edition."""
    few, blue = chiral.select(np.arange(50)), replace(chiral, sh0=np.full_like(chiral.sh0, [-2, -2, 2]))
    blue = replace(blue, shN=chiral.shN[:, :0])
    urls: list[str] = []
    with LivePage(urls.append) as live:
        live.show(lambda: few, "growing")
        (url,) = urls
        tab.open(f"{url}#rotate=0&background=light", width=300, height=300)
        tab.run("await segdream.ready")
        wait_for(lambda: tab.run("return segdream.viewer.stats.edition") == 1)
        assert tab.run("return segdream.viewer.scene.count") == 50
        first = image(tab)
        wait_for(
            lambda: (
                live.show(lambda: blue, "<b>grown", "Step 7 of 9, <i>")
                or tab.run("return segdream.viewer.stats.edition") > 1
            )
        )
        assert tab.run("return segdream.viewer.scene.count") == 400
        title, heading, told = tab.run(
            "return [document.title, ...['h1', 'dl'].map((name) => document.querySelector(name).textContent)]"
        )
        assert title == heading == "<b>grown"
        assert tab.run("return document.getElementById('progress').textContent") == "Step 7 of 9, <i>"
        assert "400" in told
        second = image(tab)
        assert np.abs(second - first).mean() > 2
        assert second[..., 2].sum() > 1.05 * second[..., 0].sum()
    wait_for(lambda: "done" in tab.run("return document.getElementById('status').textContent"))
    assert tab.run("return segdream.viewer.scene.count") == 400
    np.testing.assert_array_equal(image(tab), second)
    assert {address.split("?")[0] for address in tab.requests() if address.startswith("http")} == {url, f"{url}newer"}
    assert not tab.errors()


@needs_browser
def test_live_page_keeps_its_asset_when_the_run_fails(chiral: Splats, tab: Browser) -> None:
    urls: list[str] = []
    with suppress(RuntimeError), LivePage(urls.append) as live:
        live.show(lambda: chiral, "growing")
        (url,) = urls
        tab.open(f"{url}#rotate=0")
        tab.run("await segdream.ready")
        wait_for(lambda: tab.run("return segdream.viewer.stats.edition") == 1)
        raise RuntimeError
    wait_for(lambda: "ended" in tab.run("return document.getElementById('message').textContent"))
    assert tab.run("return segdream.viewer.scene.count") == 400


@needs_browser
def test_page_of_several_links_their_views(chiral: Splats, tab: Browser) -> None:
    """The second asset is ten times as large and stands elsewhere: it is seen from the same side, as large."""
    large = replace(
        chiral, means=chiral.means * 10 + np.float32(5), log_scales=chiral.log_scales + np.float32(np.log(10))
    )
    with serving() as server:
        server.publish_row([chiral, large], ["small", "large"])
        tab.open(server.url, width=600, height=300)
        view = """const ready = (w) => w.segdream ? w.segdream.ready : new Promise((done) =>
                    setTimeout(() => done(ready(w)), 50));
                  const viewers = await Promise.all([ready(frames[0]), ready(frames[1])]);"""
        wait_for(lambda: tab.run("return frames.length") == 2)
        tab.run(f"{view} for (const each of viewers) each.setBackground('light')")
        assert not tab.run(f"{view} viewers[0].rotate(false); return viewers[0].rotating")
        tab.run(
            f"{view} viewers[0].camera.set({{ azimuth: 80, elevation: 40 }}); viewers[0].camera.zoom(1.5);"
            "viewers[0].camera.pan(0.1, 0); viewers[0].setBackground('dark')"
        )
        poses = f"{view} return viewers.map((each) => [each.camera.pose, each.background, each.rotating])"
        wait_for(lambda: tab.run(poses)[1][1] == "dark")
        (first, _, _), (second, _, rotating) = tab.run(poses)
        assert not rotating
        for name in ("azimuth", "elevation", "distance", "fov", "shift"):
            assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-4), name
        assert (first["azimuth"], first["elevation"]) == (80, 40)
        tab.run(f"{view} viewers[1].camera.orbit(30, 0); viewers[1].changed()")  # the other way round
        wait_for(lambda: tab.run(poses)[0][0]["azimuth"] == pytest.approx(50))
        tab.run(f"{view} await Promise.all(viewers.map((each) => each.settled()))")
        left, right = np.split(tab.screenshot().astype(float)[:, 1:-1], 2, axis=1)
        assert np.abs(left[60:220, :-2] - right[60:220, 2:]).mean() < 4
        assert np.ptp(left[60:220]) > 100
        assert not tab.errors()


GATE = """const { arrayBuffer } = Response.prototype;
if (top === window) window.gate = new Promise((open) => (window.openGate = open));
Response.prototype.arrayBuffer = async function () { await top.gate; return arrayBuffer.call(this); };"""
"""Lets no page of a tab read its asset until `openGate()`."""


@needs_browser
def test_keys_act_on_a_whole_row_from_the_start(chiral: Splats, tab: Browser) -> None:
    """Before the first image, for a page that comes later, in either page, and with one rotation for both."""
    gate = tab.command("Page.addScriptToEvaluateOnNewDocument", source=GATE)
    with serving() as server:
        server.publish_row([chiral, chiral], ["first", "second"])
        tab.open(server.url, width=600, height=300)
        tab.command("Page.removeScriptToEvaluateOnNewDocument", **gate)
        wait_for(lambda: tab.run("return Boolean(frames[0].segdream) && document.activeElement?.title === 'first'"))
        press(tab, "?")
        dialog = "frames[0].document.getElementById('help')"
        assert tab.run(f"return {dialog}.open")
        tab.run(f"{dialog}.close()")
        press(tab, "ArrowLeft")  # it stops the rotation too, which has not begun
        tab.run("frames[1].early = true; frames[1].location.reload()")
        wait_for(lambda: tab.run("return !frames[1].early && Boolean(frames[1].segdream)"))
        assert tab.run("return frames[0].document.getElementById('loading') !== null")
        state = """return Promise.all([frames[0], frames[1]].map(async ({ segdream }) => {
            const { camera, background, turning } = await segdream.ready;
            return [camera.azimuth, camera.elevation, background, turning];
        }))"""
        tab.run("openGate()")
        first, second = tab.run(state)
        assert first == second == [35 + 6, 15, "light", False]
        tab.run("frames[1].focus()")
        press(tab, "ArrowDown")
        press(tab, "b")
        wait_for(lambda: tab.run(state) == [[41, 21, "checker", False]] * 2)
        press(tab, " ")
        wait_for(lambda: all(turning and azimuth != 41 for azimuth, _, _, turning in tab.run(state)))
        tab.run("frames[0].focus()")
        press(tab, " ")  # the second page turns both
        wait_for(lambda: not any(turning for *_, turning in tab.run(state)))
        first, second = tab.run(state)
        assert first == pytest.approx(second)
        press(tab, "Home")
        wait_for(lambda: tab.run(state) == [[35, 15, "checker", False]] * 2)
        assert not tab.errors()
