"""The HTML page in a real headless Chromium: its images against the CPU rasteriser, its controls, its defences."""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import MISSING, Browser, chromium, decoded
from test_page import HOSTILE

from segdream_cli.formats import page, spz
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds
from segdream_cli.util.text import printable

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def shared_tab() -> Iterator[Browser]:
    with chromium() as tab:
        yield tab


@pytest.fixture
def tab(shared_tab: Browser) -> Browser:
    for file in shared_tab.downloads.iterdir():
        file.unlink()
    shared_tab.command("Emulation.setEmulatedMedia", features=[])
    return shared_tab


@pytest.fixture
def shown(tab: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """Opens the page of an asset, without rotation, and waits until it is shown."""

    def show(splats: Splats, address: str = "#rotate=0&background=light", **window: object) -> Browser:
        file = tmp_path / "asset.html"
        page.write(file, splats)
        tab.open(f"{file.as_uri()}{address}", **window)  # type: ignore[arg-type]
        tab.run("await segdream.ready")
        return tab

    return show


def camera(tab: Browser) -> dict[str, float]:
    state: dict[str, float] = tab.run(
        "const { azimuth, elevation, distance, target } = segdream.viewer.camera;"
        "return { azimuth, elevation, distance, x: target[0], y: target[1], z: target[2] }"
    )
    return state


def page_image(tab: Browser, **view: object) -> np.ndarray:
    """The page's own screenshot from a camera, in floats, [h, w, 4]."""
    png = tab.run(
        """const { viewer } = segdream;
        viewer.camera.set(arguments[0]);
        viewer.changed();
        const bytes = new Uint8Array(await (await viewer.picture()).arrayBuffer());
        return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));""",
        view,
    )
    return decoded(png) / 255.0


def cpu_image(
    splats: Splats, azimuth: float, elevation: float, width: int = 512, height: int = 512, closer: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied colour and alpha by the CPU rasteriser, framed like the page."""
    gaussians = Gaussians.from_splats(splats)
    center, extent = bounds(gaussians)
    angles = torch.tensor([azimuth, elevation], dtype=torch.float32)[:, None]
    cameras = frame_sphere(*angles, min(width, height), center=center, extent=extent / closer)
    intrinsics = cameras.Ks.clone()
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
    with torch.no_grad():
        rendering = render(gaussians, replace(cameras, Ks=intrinsics), resolution=(width, height))
    return rendering.rgb[0].numpy(), rendering.alpha[0].numpy()


def framed(splats: Splats, closer: float = 1) -> dict[str, object]:
    """Position of the page's camera for the framing of `cpu_image`."""
    center, extent = page.bounds(splats)
    return {"distance": extent / closer / (0.85 * np.sin(np.deg2rad(20))), "target": center.tolist()}


def stored(splats: Splats, tmp_path: Path) -> Splats:
    """The asset within the rounding of SPZ, by the reader in Python."""
    spz.write(tmp_path / "stored.spz", splats)
    return spz.read(tmp_path / "stored.spz")


@pytest.mark.parametrize("k", [0, 3, 8, 15])
def test_page_shows_what_the_rasteriser_shows(
    chiral: Splats, shown: Callable[..., Browser], tmp_path: Path, k: int
) -> None:
    splats = replace(chiral, shN=chiral.shN[:, :k])
    tab = shown(splats)
    kept = stored(splats, tmp_path)
    view = framed(kept)
    for azimuth, elevation in ((0, 15), (130, -40), (250, 90)):
        rgb, alpha = cpu_image(kept, azimuth, elevation)
        expected = np.clip(rgb + 1 - alpha, 0, 1)
        found = page_image(tab, azimuth=azimuth, elevation=elevation, **view)
        assert (found[..., 3] == 1).all()
        difference = np.abs(found[..., :3] - expected)[(alpha > 0.01)[..., 0]]  # the empty part would flatter it
        assert len(difference) > 5000
        assert difference.mean() < 0.35 / 255  # 0.25 / 255 of it is the rounding of a PNG
        assert difference.max() < 3 / 255
    assert np.abs(page_image(tab, azimuth=40) - page_image(tab, azimuth=-40)).mean() > 0.01
    assert not tab.errors()


def test_page_shows_needles_and_specks(chiral: Splats, shown: Callable[..., Browser], tmp_path: Path) -> None:
    """Gaussians much thinner than a pixel: only the blur of 0.3 square pixels is visible."""
    scales = np.where(np.arange(400)[:, None] % 2, np.log([0.1, 1e-4, 1e-4]), np.log([1e-3, 1e-3, 1e-3]))
    splats = replace(chiral, log_scales=scales.astype(np.float32))
    kept = stored(splats, tmp_path)
    rgb, alpha = cpu_image(kept, 75.0, 35.0)
    found = page_image(shown(splats), azimuth=75, elevation=35, **framed(kept))[..., :3]
    difference = np.abs(found - np.clip(rgb + 1 - alpha, 0, 1))[(alpha > 0.01)[..., 0]]
    assert len(difference) > 5000
    assert difference.mean() < 0.5 / 255
    assert difference.max() < 8 / 255  # corners lie on a grid: of 1/16 px here, finer on hardware


def test_payload_rounding_is_hardly_visible(chiral: Splats, shown: Callable[..., Browser]) -> None:
    splats = replace(chiral, shN=chiral.shN[:, :0])
    tab = shown(splats)
    rgb, alpha = cpu_image(splats, 30.0, 20.0)
    difference = np.abs(page_image(tab, azimuth=30, elevation=20)[..., :3] - np.clip(rgb + 1 - alpha, 0, 1))
    assert difference.mean() < 1 / 255


@pytest.mark.parametrize(("width", "height", "closer"), [(700, 400, 1), (360, 640, 1), (300, 300, 4)])
def test_page_in_other_windows_and_from_close_cameras(
    chiral: Splats, shown: Callable[..., Browser], tmp_path: Path, width: int, height: int, closer: float
) -> None:
    """Wide, tall, and so near that Gaussians lie beside and behind the camera."""
    tab = shown(chiral, width=width, height=height)
    kept = stored(chiral, tmp_path)
    rgb, alpha = cpu_image(kept, 60.0, 10.0, width, height, closer)
    found = page_image(tab, azimuth=60, elevation=10, **framed(kept, closer))[..., :3]
    assert found.shape == (height, width, 3)
    difference = np.abs(found - np.clip(rgb + 1 - alpha, 0, 1))
    assert difference.mean() < 1 / 255


def test_image_keeps_transparency(chiral: Splats, shown: Callable[..., Browser], tmp_path: Path) -> None:
    kept = stored(chiral, tmp_path)
    tab = shown(replace(kept, provenance=chiral.provenance), "#rotate=0&background=checker")
    rgb, alpha = cpu_image(kept, 35.0, 15.0)
    found = page_image(tab)
    assert np.abs(found[..., 3:] - alpha).mean() < 0.5 / 255
    assert np.abs(found[..., :3] * found[..., 3:] - np.minimum(rgb, alpha)).mean() < 0.5 / 255
    tab.run("document.getElementById('picture').click()")
    file = tab.wait_for_download()
    assert file.name == "a-helix-chiral.png"
    np.testing.assert_array_equal(decoded(base64.b64encode(file.read_bytes()).decode()) / 255, found)


def test_page_requests_only_itself(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral)
    own, *others = tab.requests()
    assert own.startswith("file:")
    assert all(one.startswith("blob:") for one in others)
    assert not tab.errors()
    assert tab.run("return fetch('https://example.com').then(() => 'went out', () => 'refused')") == "refused"
    assert tab.run("return fetch(location.href).then(() => 'read', () => 'refused')") == "refused"


def test_page_does_not_run_code_in_a_prompt(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(replace(chiral, provenance={"prompt": HOSTILE, "prior": HOSTILE, "generator": {"a": HOSTILE}}))
    told = tab.run("return [typeof pwned, document.querySelector('h1').textContent, document.images.length]")
    assert told == ["undefined", " ".join(printable(HOSTILE).split()), 0]
    script = "const s = document.createElement('script'); s.text = 'pwned = 1'; document.body.append(s)"
    assert tab.run(f"{script}; return typeof pwned") == "undefined"


def test_sorter_orders_gaussians_as_the_rasteriser_does(shown: Callable[..., Browser]) -> None:
    """The order of 200,000 of them is the rasteriser's from its end."""
    splats = ball(200_000)
    tab = shown(splats, width=64, height=64)
    row, order, visible = tab.run(
        "const v = segdream.viewer; v.camera.orbit(37, 0); v.changed(); await v.settled();"
        "return [v.camera.view(64, 64).forward, Array.from(v.sorter.order), v.renderer.visible]"
    )
    assert visible == len(splats)
    assert sorted(order) == list(range(visible))
    depths = spz_means(splats).astype(np.float64) @ np.array(row[:3]) + row[3]
    assert np.diff(depths[order]).max() < 5e-7  # the last bit of a float32 at the far side


def ball(n: int) -> Splats:
    """Small Gaussians on a sphere, facing outwards, coloured by position."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(n, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    quats = np.concatenate([1 + normal[:, 2:], np.stack([-normal[:, 1], normal[:, 0], 0 * normal[:, 0]], 1)], axis=1)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True) + 1e-9
    spread = np.sqrt(4 * np.pi / n)
    return Splats(
        means=(0.9 * normal).astype(np.float32),
        quats=quats.astype(np.float32),
        log_scales=np.log([[spread, spread, spread / 8]] * n).astype(np.float32),
        opacity_logits=np.full(n, 2, np.float32),
        sh0=(normal + np.sin(12 * normal)).astype(np.float32),
        shN=np.zeros((n, 0, 3), np.float32),
        provenance={"prompt": "a ball"},
    )


def spz_means(splats: Splats) -> np.ndarray:
    """Centres as the page has them, in steps of 2^-16."""
    rounded: np.ndarray = np.rint(splats.means * np.float32(65536)) / np.float32(65536)
    return rounded


def test_controls_turn_move_and_zoom_with_the_mouse(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral, "")
    assert tab.run("return segdream.viewer.rotating")
    drag(tab, (256, 256), (306, 256))
    turned = camera(tab)
    assert not tab.run("return segdream.viewer.rotating")
    assert turned["elevation"] == pytest.approx(15)
    drag(tab, (256, 256), (306, 296))
    again = camera(tab)
    assert (again["azimuth"] - turned["azimuth"]) % 360 == pytest.approx(360 - 180 * 50 / 512)
    assert again["elevation"] == pytest.approx(15 + 180 * 40 / 512)
    drag(tab, (256, 256), (306, 256), modifiers=8)
    moved = camera(tab)
    assert moved["azimuth"] == again["azimuth"]
    span = 2 * moved["distance"] * np.tan(np.deg2rad(20)) * 50 / 512
    assert np.hypot(moved["x"] - again["x"], moved["z"] - again["z"]) == pytest.approx(span)
    mouse(tab, "mouseWheel", (256, 256), deltaX=0, deltaY=-100)
    assert camera(tab)["distance"] < 0.9 * moved["distance"]


def mouse(tab: Browser, kind: str, place: tuple[int, int], **more: object) -> None:
    tab.command("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **more)


def drag(tab: Browser, start: tuple[int, int], stop: tuple[int, int], modifiers: int = 0) -> None:
    held = {"button": "left", "buttons": 1, "modifiers": modifiers}
    mouse(tab, "mousePressed", start, clickCount=1, **held)
    mouse(tab, "mouseMoved", stop, **held)
    mouse(tab, "mouseReleased", stop, clickCount=1, **{**held, "buttons": 0})


def test_controls_turn_with_one_finger_and_pinch_with_two(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral, touch=True)
    before = camera(tab)
    touch(tab, [(200, 200)], [(260, 200)])
    turned = camera(tab)
    assert (before["azimuth"] - turned["azimuth"]) % 360 == pytest.approx(180 * 60 / 512)
    touch(tab, [(200, 256), (300, 256)], [(150, 256), (350, 256)])
    assert camera(tab)["distance"] == pytest.approx(before["distance"] / 2)
    assert camera(tab)["azimuth"] == turned["azimuth"]


def touch(tab: Browser, starts: list[tuple[int, int]], stops: list[tuple[int, int]]) -> None:
    def points(places: list[tuple[int, int]]) -> list[dict[str, int]]:
        return [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]

    tab.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=points(starts))
    tab.command("Input.dispatchTouchEvent", type="touchMove", touchPoints=points(stops))
    tab.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def test_controls_follow_the_documented_keys(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral)
    home = camera(tab)
    press(tab, "ArrowLeft")
    assert camera(tab)["azimuth"] == pytest.approx(home["azimuth"] + 6)
    press(tab, "ArrowDown")
    assert camera(tab)["elevation"] == pytest.approx(21)
    press(tab, "+")
    assert camera(tab)["distance"] == pytest.approx(home["distance"] / 1.1)
    press(tab, "ArrowUp", modifiers=8)
    assert camera(tab)["y"] != pytest.approx(home["y"])
    press(tab, "Home")
    assert camera(tab) == pytest.approx(home)
    press(tab, " ")
    assert tab.run("return [segdream.viewer.rotating, document.getElementById('rotate').ariaPressed]") == [True, "true"]
    press(tab, "ArrowRight")
    assert tab.run("return [segdream.viewer.rotating, document.getElementById('rotate').ariaPressed]") == [
        False,
        "false",
    ]
    press(tab, "i")
    assert tab.run("return document.getElementById('about').open")
    for name in ("checker", "dark", "light"):
        press(tab, "b")
        assert tab.run("return segdream.viewer.background") == name
    press(tab, "b", modifiers=2)
    assert tab.run("return segdream.viewer.background") == "light"  # Ctrl+B is the browser's
    tab.run("document.getElementById('background').focus()")
    press(tab, "Home")
    assert camera(tab) == pytest.approx(home)
    press(tab, " ")  # presses the button that has the focus
    assert tab.run("return [segdream.viewer.background, segdream.viewer.rotating]") == ["checker", False]


def press(tab: Browser, key: str, modifiers: int = 0) -> None:
    text = {"text": key} if len(key) == 1 and not modifiers else {}
    for kind in ("keyDown", "keyUp"):
        tab.command("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers, **text)


def test_help_lists_every_key(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral)
    opened = "return document.getElementById('help').open"
    assert not tab.run(opened)
    press(tab, "?")  # before any click
    assert tab.run(opened)
    before = camera(tab)
    press(tab, "ArrowLeft")  # while the help is open
    assert camera(tab) == before
    told = tab.run("return [...document.querySelectorAll('#keys th')].map((each) => each.textContent).join(' ')")
    for key in ("arrow keys", "Shift", "+ and −", "Space", "Home", "B", "P", "I", "?"):
        assert key in told, key
    tab.command("Input.dispatchKeyEvent", type="keyDown", key="Escape", windowsVirtualKeyCode=27)
    assert not tab.run(opened)
    tab.run("document.getElementById('keyboard').click()")
    assert tab.run(opened)


def test_page_says_that_it_loads_until_the_asset_is_shown(chiral: Splats, tab: Browser, tmp_path: Path) -> None:
    page.write(tmp_path / "a.html", chiral)
    script = "window.seen = []; new MutationObserver(() => { const each = document.getElementById('loading');"
    script += "seen.push(each && each.textContent); }).observe(document, { childList: true, subtree: true });"
    added = tab.command("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        tab.open((tmp_path / "a.html").as_uri())
        tab.run("await segdream.ready")
        seen = tab.run("await new Promise((done) => setTimeout(done, 50)); return seen")
    finally:
        tab.command("Page.removeScriptToEvaluateOnNewDocument", **added)
    assert "Loading 400 Gaussians\N{NO-BREAK SPACE}…" in seen
    assert seen[-1] is None


def test_controls_have_names_and_show_focus(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral, width=400, height=600)  # narrow: the buttons show symbols only
    nodes = tab.command("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if "role" in node}
    assert {("application", "a helix, “chiral”"), ("toolbar", "View"), ("heading", "a helix, “chiral”")} <= named
    buttons = {name for role, name in named if role == "button"}
    assert buttons == {"Rotate", "Background", "Reset", "Image", "SPZ file", "Keys"}
    outlines = []
    for _ in range(8):
        press(tab, "Tab")
        outlines.append(
            tab.run(
                "const s = getComputedStyle(document.activeElement); return [document.activeElement.id, s.outlineStyle]"
            )
        )
    assert [name for name, _ in outlines] == [
        "stage",
        "",
        "rotate",
        "background",
        "reset",
        "picture",
        "file",
        "keyboard",
    ]
    assert {style for _, style in outlines} == {"solid"}
    sizes = tab.run(
        "return [...document.querySelectorAll('#tools button')].map((b) => [b.offsetWidth, b.offsetHeight])"
    )
    assert min(min(size) for size in sizes) >= 44


def test_page_follows_the_settings_of_the_system(chiral: Splats, shown: Callable[..., Browser], tab: Browser) -> None:
    wishes = {"prefers-color-scheme": "dark", "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    tab.command("Emulation.setEmulatedMedia", features=features)
    shown(chiral, "")
    assert tab.run("return [segdream.viewer.background, segdream.viewer.rotating]") == ["dark", False]
    assert page_image(tab)[0, 0].tolist() == pytest.approx([0x16 / 255, 0x18 / 255, 0x1D / 255, 1])
    features[0]["value"] = "light"
    tab.command("Emulation.setEmulatedMedia", features=features)
    shown(chiral, "")
    assert tab.run("return segdream.viewer.background") == "light"


def test_canvas_has_the_pixels_of_the_device(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral, width=300, height=200, ratio=2)
    assert page_image(tab).shape == (400, 600, 4)
    tab.command("Emulation.setDeviceMetricsOverride", width=320, height=200, deviceScaleFactor=1, mobile=False)
    tab.run("await new Promise((done) => setTimeout(done, 300))")
    assert page_image(tab).shape == (200, 320, 4)


def test_page_address_sets_the_view(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral, "#azimuth=-90&elevation=30&distance=4&background=checker")
    found = camera(tab)
    assert (found["azimuth"], found["elevation"], found["distance"]) == (270, 30, 4)
    assert tab.run("return [segdream.viewer.background, segdream.viewer.rotating]") == ["checker", False]
    shown(chiral, "#azimuth=x&background=toString&rotate=0")
    assert (camera(tab)["azimuth"], camera(tab)["elevation"]) == (35, 15)  # three-quarter on
    assert tab.run("return segdream.viewer.background") == "light"


def test_download_returns_the_spz_file(chiral: Splats, shown: Callable[..., Browser], tmp_path: Path) -> None:
    tab = shown(chiral)
    tab.run("document.getElementById('file').click()")
    again = spz.read(tab.wait_for_download())
    np.testing.assert_array_equal(again.means, stored(chiral, tmp_path).means)


def test_page_restores_the_image_after_context_loss(chiral: Splats, shown: Callable[..., Browser]) -> None:
    tab = shown(chiral)
    before = page_image(tab)
    lost, restored = tab.run(
        """const { viewer } = segdream, extension = viewer.renderer.gl.getExtension("WEBGL_lose_context");
        const message = document.getElementById("message");
        const event = (name) => new Promise((done) => viewer.canvas.addEventListener(name, done, { once: true }));
        let happened = event("webglcontextlost");
        extension.loseContext();
        await happened;
        const lost = message.textContent;
        viewer.changed();
        await new Promise((done) => setTimeout(done, 100));
        happened = event("webglcontextrestored");
        extension.restoreContext();
        await happened;
        return [lost, message.textContent];"""
    )
    assert "graphics device" in lost
    assert restored == ""
    np.testing.assert_array_equal(page_image(tab), before)


def test_page_reports_damaged_data(chiral: Splats, tab: Browser, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    page.write(file, chiral)
    text = file.read_text(encoding="utf-8")
    (payload,) = re.findall(r'id="payload">(.+?)<', text)
    file.write_text(text.replace(payload, payload[: len(payload) // 8 * 4]), encoding="utf-8")
    tab.open(file.as_uri())
    tab.run("await segdream.ready.catch(() => 0)")
    assert "can't be shown" in tab.run("return document.getElementById('message').textContent")


def test_page_reports_missing_webgl(chiral: Splats, tmp_path: Path) -> None:
    page.write(tmp_path / "a.html", chiral)
    with chromium("--disable-3d-apis") as tab:
        tab.open((tmp_path / "a.html").as_uri())
        tab.run("await segdream.ready")
        told = tab.run(
            "const message = document.getElementById('message'), tools = document.getElementById('tools');"
            "return [message.role, message.textContent, message.offsetHeight > 0, tools.offsetHeight]"
        )
    role, text, visible, tools = told
    assert (role, visible, tools) == ("alert", True, 0)
    assert "WebGL2" in text


def test_page_works_in_older_browsers(chiral: Splats, shown: Callable[..., Browser], tab: Browser) -> None:
    """Without the newest base64 decoder and without blending in half floats, the image is nearly the same."""
    fine = page_image(shown(chiral))
    assert tab.run("return segdream.viewer.renderer.half")
    without = "delete Uint8Array.fromBase64;WebGL2RenderingContext.prototype.getExtension = () => null;"
    script = tab.command("Page.addScriptToEvaluateOnNewDocument", source=without)
    try:
        coarse = page_image(shown(chiral))
    finally:
        tab.command("Page.removeScriptToEvaluateOnNewDocument", **script)
    assert not tab.run("return segdream.viewer.renderer.half || Boolean(Uint8Array.fromBase64)")
    difference = np.abs(coarse - fine)
    assert 0 < difference.mean() < 1 / 255
    assert difference.max() < 8 / 255


def test_viewer_load_replaces_the_asset(chiral: Splats, shown: Callable[..., Browser], tmp_path: Path) -> None:
    """`segdream.viewer.load` takes the bytes of another SPZ, as on a live page."""
    flat = replace(chiral, shN=chiral.shN[:, :0], sh0=chiral.sh0[::-1].copy())
    tab = shown(flat)
    expected = page_image(tab)
    spz.write(tmp_path / "flat.spz", flat)
    tab = shown(chiral)
    first = page_image(tab)
    payload = base64.b64encode((tmp_path / "flat.spz").read_bytes()).decode()
    tab.run("await segdream.viewer.load(bytesOfBase64(arguments[0]))", payload)
    assert np.abs(first - expected).mean() > 0.005
    np.testing.assert_array_equal(page_image(tab), expected)
