"""`segdream report`: the page about a run or an asset."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import BUS, REFINED
from test_hostile_text import BALL

from segdream_cli import formats
from segdream_cli.optimize import refinement
from segdream_cli.runs.report import read_steps

HOSTILE = '</style><script>pwned = 1</script><img src=x onerror="pwned = 1">\'&amp; \u202e'


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def losses(monkeypatch):
    """The losses of the refinement as the pipeline computes them."""
    found, real = [], refinement.fit_loss

    def record(*arguments):
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(refinement, "fit_loss", record)
    return found


def edit(path, **entries):
    record = json.loads(Path(path).read_text()) | entries
    Path(path).write_text(json.dumps(record))


def test_report_shows_a_run(segdream, folder, losses):
    assert segdream("generate", BUS, "-o", "bus.ply", *REFINED, "--preview-every", "5").code == 0
    steps = read_steps(folder / "bus.run" / "events.jsonl")
    assert [step.loss for step in steps] == [None] * 6 + [loss.item() for loss in losses]
    said = segdream("report", "bus.run", "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out) | {"steps": 13, "previews": 2, "output": "bus-report.html"} == json.loads(said.out)
    page = Page("bus-report.html")
    assert page.tags.count("img") == 8 + 2
    assert page.tags.count("svg") == 5
    for text in (BUS, "finished, 13 steps", "steps 7 to 9", "refine 2/2", "optim.steps", "numba", "step 5", "thread"):
        assert text in page.text, text
    curves = re.findall('class="curve" d="([^"]+)"', Path("bus-report.html").read_text())
    assert [curve.count(" ") for curve in curves] == [13, 7, 13, 13]  # norm, loss, Gaussians, seconds
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "script" not in page.tags
    assert "exists" in segdream("report", "bus.run").err
    (folder / "bus.run" / "run.json").unlink()  # the asset alone
    assert segdream("report", "bus.ply", "-o", "asset.html").code == 0
    page = Page("asset.html")
    assert page.tags.count("img") == 8
    assert "svg" not in page.tags
    for text in (BUS, "no curves", "unet_rows"):
        assert text in page.text, text


def test_report_survives_damaged_and_hostile_files(segdream, folder):
    assert segdream("generate", BUS, "-o", "bus.ply", *REFINED, "--preview-every", "5").code == 0
    assert segdream("report", "bus.run", "-o", "plain.html").code == 0
    events = folder / "bus.run" / "events.jsonl"
    lines = events.read_text().splitlines()
    hostile = json.loads(lines[-1]) | {"stage": HOSTILE}
    damaged = ["null", '{"step": 3}', lines[0][:20], lines[4].replace('"step":5', '"step":1e999'), json.dumps(hostile)]
    events.write_text("\n".join([*lines[:-1], *damaged, "\udcff"]), errors="surrogateescape")
    edit(folder / "bus.run" / "run.json", prompt=HOSTILE, quality=HOSTILE, versions={HOSTILE: HOSTILE})
    (folder / "bus.run" / "preview-000005.png").write_bytes(b"\x89PNG\r\n\x1a\n and no image")
    (folder / "bus.run" / "tried.json").write_text('{"seeds": [{"seed": "x"}]}')
    said = segdream("report", "bus.run", "-o", "hostile.html", "--json")
    assert json.loads(said.out)["previews"] == 1
    plain, page = Page("plain.html"), Page("hostile.html")
    assert {*page.tags} == {*plain.tags}
    assert HOSTILE in page.text


def test_report_of_best_of_shows_the_seeds(segdream, folder):
    assert segdream("generate", BUS, "-o", "bus.ply", *REFINED, "--best-of", "2").code == 0
    tried = json.loads((folder / "bus.run" / "tried.json").read_text())
    assert segdream("report", "bus.run").code == 0
    page = Page("bus-report.html")
    assert f"Seeds compared by {tried['by']} after step {tried['step']}" in page.text
    assert page.tags.count("img") == 8 + 2
    assert f"seed {tried['chosen']}" in page.text.partition(", chosen")[0][-60:]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bus.run",), 2, "bus.run is not a run folder"),
        (("folder",), 2, "it has no run.json"),
        (("nosuch.ply",), 2, "nosuch.ply"),
        (("there.ply", "-o", "page.txt"), 2, "page.txt is not an .html file"),
        (("there.ply", "-o", "nowhere/page.html"), 2, "nowhere"),
    ],
)
def test_report_refuses_what_it_can_not_use(segdream, folder, arguments, code, message):
    (folder / "folder").mkdir()
    formats.write(folder / "there.ply", BALL)
    said = segdream("report", *arguments)
    assert (said.code, message in said.err) == (code, True), said.err
    assert not list(folder.glob("*.html"))
