"""The HTML page as written: its panel, its escaping, its security policy."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.formats import page, spz
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

HOSTILE = (
    """</script></title><script>pwned = 1</script><img src=x onerror="pwned = 1">"' &amp; $payload ${title} \u202e"""
)


class Parts(HTMLParser):
    """The text of each element of a kind, and the start tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def written(splats: Splats, path: Path, title: str | None = None) -> str:
    page.write(path, splats, title=title)
    return path.read_text(encoding="utf-8")


def test_page_panel_shows_provenance(chiral: Splats, tmp_path: Path) -> None:
    about = {"prompt": "a bus & “more”", "seed": 0, "prior": "some", "steps": 200, "prior_digest": "f27f"}
    parts = Parts(written(replace(chiral, provenance=about), tmp_path / "a.html"))
    told = dict(zip(parts.texts["dt"], parts.texts["dd"], strict=True))
    size = told.pop("Size")
    harmonics = "400, spherical harmonics of degree 3"
    assert told == {"Prompt": "a bus & “more”", "Seed": "0", "Prior": "some", "Steps": "200", "Gaussians": harmonics}
    assert re.fullmatch(r"\d+\.\d kB", size)
    assert parts.texts["title"] == ["a bus & “more”"] == parts.texts["h1"]


@pytest.mark.parametrize("prompt", [HOSTILE, "half a pair \ud83d", "line\nbreak", "x" * 100_000])
def test_page_escapes_any_prompt(chiral: Splats, tmp_path: Path, prompt: str) -> None:
    plain = Parts(written(replace(chiral, provenance={"prompt": "plain"}), tmp_path / "a.html"))
    parts = Parts(written(replace(chiral, provenance={"prompt": prompt}), tmp_path / "b.html"))
    assert [tag for tag, _ in parts.tags] == [tag for tag, _ in plain.tags]
    assert parts.texts["script"][1:] == plain.texts["script"][1:]
    assert base64.b64decode(parts.texts["script"][0], validate=True)  # the payload, which tells the prompt as well
    told = parts.texts["dd"][0]
    expected = " ".join(prompt.split()).replace("\u202e", "\\u202e").replace("\ud83d", "\\ud83d")
    assert told == expected or (len(expected) > len(told) == 2000 and expected.startswith(told[:-1]))


def test_page_title(chiral: Splats, tmp_path: Path) -> None:
    bare = replace(chiral, provenance={})
    assert Parts(written(bare, tmp_path / "helix.html")).texts["title"] == ["helix"]
    assert Parts(written(chiral, tmp_path / "helix.html")).texts["title"] == ["a helix, “chiral”"]
    assert Parts(written(chiral, tmp_path / "helix.html", "<b>")).texts["title"] == ["<b>"]


def test_page_policy_allows_its_own_code_only(chiral: Splats, tmp_path: Path) -> None:
    text = written(chiral, tmp_path / "a.html")
    parts = Parts(text)
    (policy,) = [attrs["content"] for tag, attrs in parts.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    code = {"script-src": parts.texts["script"][-1], "style-src": parts.texts["style"][0]}
    for rule, content in code.items():
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r"https?:|//[a-z]+\.|@import", text.replace(parts.texts["script"][0], ""))


def test_page_viewer_is_small() -> None:
    template, style, script = page._viewer()
    assert len((template + style + script).encode()) < 44_000
    assert "</" not in script
    assert "\r" not in template + style + script  # HTML would turn it into \n, and the hash would not fit


def test_page_payload_is_spz(chiral: Splats, tmp_path: Path) -> None:
    parts = Parts(written(chiral, tmp_path / "a.html"))
    file = tmp_path / "a.spz"
    spz.write(file, chiral)
    assert base64.b64decode(parts.texts["script"][0], validate=True) == file.read_bytes()


def test_page_frames_as_render_does(chiral: Splats) -> None:
    for splats in (chiral, replace(chiral, opacity_logits=np.full(len(chiral), -9, np.float32))):
        center, extent = bounds(Gaussians.from_splats(splats))
        found_center, found_extent = page.bounds(splats)
        np.testing.assert_allclose(found_center, center, atol=1e-6)
        assert found_extent == pytest.approx(extent, rel=1e-5)


def test_page_write_refuses_unusable_assets(chiral: Splats, tmp_path: Path) -> None:
    broken = replace(chiral, means=np.where(np.arange(400)[:, None] == 7, np.nan, chiral.means))
    with pytest.raises(SegdreamError, match="not a finite number"):
        page.write(tmp_path / "a.html", broken)
    with pytest.raises(UsageProblem, match="reach"):
        page.write(tmp_path / "a.html", replace(chiral, means=chiral.means * np.float32(1e9)))
    assert not list(tmp_path.iterdir())
