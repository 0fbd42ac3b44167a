"""The page for votes in a real browser: it shows the trials, saves the votes, and no prompt runs in it."""

import json
from pathlib import Path

import browser
import numpy as np
import pytest
import torch

from segdream_cli.evaluate import blind
from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.comparison import pair
from segdream_cli.evaluate.evaluation import Evaluation, Row
from segdream_cli.evaluate.views import ViewProtocol

pytestmark = pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)

ODD = '</script><img src="x" onerror="document.title = \'broken\'">'
PROMPTS = ["a cat", "a dog", ODD]


def side(folder: Path, name: str, red: int) -> Evaluation:
    """An evaluation whose pictures have one colour each, which grows bluer from view to view."""
    rows = []
    (folder / name).mkdir()
    for i, prompt in enumerate(PROMPTS):
        path = folder / name / f"{i}.ply"
        path.write_text(name + prompt)
        pictures = [np.full((64, 64, 3), (red, 0, 20 * k), np.uint8) for k in range(12)]
        rows.append(Row(Entry(str(i), path, prompt, False), {}, pictures))
    return Evaluation({}, ViewProtocol(), torch.device("cpu"), 12, rows)


@pytest.mark.slow
def test_votes_in_a_browser_are_saved_and_counted(tmp_path: Path) -> None:
    """Someone who always chooses the red side, with a key, a button and a key, votes for B."""
    a, b = side(tmp_path, "a", 0), side(tmp_path, "b", 250)
    pairs, _ = pair([row.entry for row in a.rows], [row.entry for row in b.rows])
    page = tmp_path / "vote.html"
    blind.write_blind_page(page, a, b, blind.shuffle(pairs, 4), 4)
    with browser.chromium() as tab:
        tab.open(page.as_uri(), width=900, height=900)
        look = """
            const red = async (side) => {
              const image = document.getElementById(side);
              await image.decode();
              const canvas = new OffscreenCanvas(1, 1).getContext("2d");
              canvas.drawImage(image, 0, 0, 1, 1);
              return Array.from(canvas.getImageData(0, 0, 1, 1).data);
            };
            return [document.getElementById("prompt").textContent, await red("left"), await red("right")];
        """
        for odd in ("ctrlKey", "altKey", "metaKey", "repeat"):  # a browser's shortcut, a key that is held
            tab.run("document.dispatchEvent(new KeyboardEvent('keydown', { key: '1', [arguments[0]]: true }))", odd)
        assert tab.run("return document.getElementById('position').textContent") == "1 of 3, 0 voted"
        seen = []
        for use_key in (True, False, True):
            prompt, left, right = tab.run(look)
            seen.append(prompt)
            better = "right" if right[0] > left[0] else "left"
            if use_key:
                press = "document.dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0] }))"
                tab.run(press, {"left": "1", "right": "3"}[better])
            else:
                tab.run("document.getElementById(`choose-${arguments[0]}`).click()", better)
        assert sorted(seen) == sorted(PROMPTS)
        turned = tab.run("document.getElementById('turn').value = 6; turn();" + look)
        assert turned[1][2] == pytest.approx(120, abs=6)
        assert tab.run("return document.getElementById('position').textContent") == "3 of 3, 3 voted"
        tab.run("document.getElementById('save').click()")
        saved = tab.wait_for_download()
        votes = json.loads(saved.read_text())
        assert tab.run("return document.title") == "Which is better?"
        assert tab.errors() == []
        assert [url for url in tab.requests() if not url.startswith(("file:", "data:", "blob:"))] == []
        (tmp_path / "votes.json").write_text(json.dumps(votes))
    counted = blind.count_votes([tmp_path / "votes.json"], pairs, 0)
    assert (counted.estimate.mean, counted.votes) == (1.0, 3)
