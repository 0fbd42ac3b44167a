"""Comparisons of two sets of assets, the blind page and its votes, reports and CSV."""

import base64
import csv
import io
import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate import blind, report, tables
from segdream_cli.evaluate.assets import Entry
from segdream_cli.evaluate.comparison import Pair, compare, pair
from segdream_cli.evaluate.evaluation import Evaluation, Row
from segdream_cli.evaluate.metrics import AssetMetric, Figure
from segdream_cli.evaluate.statistics import sign_flip_p_value
from segdream_cli.evaluate.views import ViewProtocol

NAN = math.nan
ODD = '</script><img src=x onerror="alert(1)"> & <b>"quotes"</b>'


class Stub(AssetMetric):
    figures = {  # noqa: RUF012
        "good": Figure("good", "higher", main=True),
        "bad": Figure("bad", "lower"),
        "size": Figure("size", digits=0),
    }
    set_figures = {"distance": Figure("distance", "lower")}  # noqa: RUF012

    def measure(self, asset: object, observed: object) -> dict[str, float]:
        raise NotImplementedError

    def summarize(self, observed: list[np.ndarray]) -> dict[str, float]:
        return {"distance": float(sum(each.sum() for each in observed))}


@dataclass
class Side:
    """Builds an evaluation from values."""

    name: str
    rows: list[Row] = field(default_factory=list)

    def add(self, prompt: str | None, good: float, bad: float, size: float, stem: str | None = None) -> "Side":
        path = Path(self.name, f"{stem or len(self.rows)}.ply")
        values = {"m.good": good, "m.bad": bad, "m.size": size, "m.shares": (0.25, 0.75)}
        color = 255 * (self.name == "a")
        pictures = [np.full((32, 32, 3), [color, 20 * i, 255 - color], np.uint8) for i in range(12)]
        self.rows.append(Row(Entry(path.stem, path, prompt, False), values, pictures))
        return self

    def evaluation(self) -> Evaluation:
        kept = {"m": [np.full((1, 1), row.values["m.size"]) for row in self.rows]}
        return Evaluation({"m": Stub()}, ViewProtocol(), torch.device("cpu"), 12, self.rows, kept)

    @property
    def entries(self) -> list[Entry]:
        return [row.entry for row in self.rows]


def write(pairs: list[Pair], folder: Path) -> list[Pair]:
    """The pairs with files that differ."""
    for one in pairs:
        for entry in (*one.a, *one.b):
            (folder / entry.path).parent.mkdir(exist_ok=True)
            (folder / entry.path).write_text(str(entry.path))
    return [
        Pair(one.key, *([replace(entry, path=folder / entry.path) for entry in side] for side in (one.a, one.b)))
        for one in pairs
    ]


def two_sides() -> tuple[Side, Side]:
    a, b = Side("a"), Side("b")
    for i, prompt in enumerate(["a cat", "a dog", "an owl", ODD]):
        a.add(prompt, good=i, bad=1.0, size=10)
        b.add(prompt, good=i + 0.5 + 0.1 * i, bad=1.0 if i else NAN, size=20)
    return a, b


def test_pair_groups_by_prompt_and_reports_the_rest() -> None:
    a, b = two_sides()
    a.add("only a", 1, 1, 1)
    b.add("a cat", 1, 1, 1).add(None, 1, 1, 1, stem="vase")
    pairs, notes = pair(a.entries, b.entries)
    assert [(each.key, len(each.a), len(each.b)) for each in pairs] == [
        ("a cat", 1, 2),
        ("a dog", 1, 1),
        ("an owl", 1, 1),
        (ODD, 1, 1),
    ]
    assert notes == ["'only a' is only in A and does not count", "'vase' is only in B and does not count"]
    with pytest.raises(UsageProblem, match="A and B have no prompt in common: A has 'a cat', B has 'vase'"):
        pair(a.entries[:1], b.entries[-1:])


def test_compare_means_over_prompts_with_intervals_and_corrected_tests() -> None:
    """B - A is 0.5, 0.6, 0.7, 0.8 for `good`, and 0 for `bad`, which one prompt lacks."""
    a, b = two_sides()
    pairs, _ = pair(a.entries, b.entries)
    found = compare(a.evaluation(), b.evaluation(), pairs, seed=0)
    good, bad, size = found["m.good"], found["m.bad"], found["m.size"]
    assert (good.mean_a, good.mean_b, good.estimate.n) == (1.5, pytest.approx(2.15), 4)
    assert good.estimate.mean == pytest.approx(0.65)
    assert 0.5 <= good.estimate.low < 0.65 < good.estimate.high <= 0.8
    assert good.p_value == pytest.approx(2 / 16)
    assert good.adjusted == pytest.approx(2 * 2 / 16)
    assert (bad.mean_a, bad.mean_b, bad.estimate.mean, bad.estimate.n) == (1, 1, 0, 3)
    assert (bad.p_value, bad.adjusted) == (1, 1)
    assert size.estimate.mean == 10
    assert math.isnan(size.p_value)
    distance = found["m.distance"]
    assert (distance.mean_a, distance.mean_b, distance.estimate.mean) == (40, 80, 40)
    assert math.isnan(distance.p_value)


def test_compare_takes_the_mean_of_several_assets_of_a_prompt() -> None:
    a = Side("a").add("a cat", 1, 1, 1).add("a cat", 3, 1, 1).add("a dog", 5, 1, 1)
    b = Side("b").add("a cat", 7, 1, 1).add("a dog", 8, 1, 1)
    pairs, _ = pair(a.entries, b.entries)
    good = compare(a.evaluation(), b.evaluation(), pairs, seed=0)["m.good"]
    assert (good.mean_a, good.mean_b, good.estimate.mean) == (3.5, 7.5, 4.0)


def many_pairs(n: int) -> list[Pair]:
    entries = [[Entry(str(i), Path(side, f"{i}.ply"), f"p{i}", False) for i in range(n)] for side in "ab"]
    return [Pair(f"p{i}", [one], [two]) for i, (one, two) in enumerate(zip(*entries, strict=True))]


def test_shuffle_shows_every_pair_once_with_balanced_sides() -> None:
    pairs = many_pairs(11)
    trials = blind.shuffle(pairs, 3)
    assert sorted(trial.key for trial in trials) == sorted(pair.key for pair in pairs)
    assert sum(trial.a_is_left for trial in trials) == 6
    assert blind.shuffle(pairs, 3) == trials
    assert [trial.key for trial in blind.shuffle(pairs, 4)] != [trial.key for trial in trials]


def save_votes(path: Path, pairs: list[Pair], seed: int, prefer: str) -> Path:
    """Votes of someone who always finds the better side, as the page saves them."""
    trials = blind.shuffle(pairs, seed)
    choices = {
        "b": ["right" if trial.a_is_left else "left" for trial in trials],
        "a": ["left" if trial.a_is_left else "right" for trial in trials],
        "same": ["same"] * len(trials),
    }[prefer]
    votes = {str(i): choice for i, choice in enumerate(choices)}
    saved = {"version": 1, "seed": seed, "trials_sha256": blind.trials_digest(trials), "votes": votes}
    path.write_text(json.dumps(saved))
    return path


def test_count_votes_attributes_each_choice_to_its_side(tmp_path: Path) -> None:
    """Of three people two prefer B always and one finds both the same: (1 + 1 + 0.5) / 3."""
    pairs = write(many_pairs(6), tmp_path)
    files = [save_votes(tmp_path / f"{i}.json", pairs, i, prefer) for i, prefer in enumerate(("b", "b", "same"))]
    found = blind.count_votes(files, pairs, 0)
    assert found.estimate.mean == pytest.approx(2.5 / 3)
    assert (found.votes, found.estimate.n) == (18, 6)
    assert found.p_value == pytest.approx(sign_flip_p_value(np.full(6, 1 / 3), 0))
    path = save_votes(tmp_path / "a.json", pairs, 9, "a")
    assert blind.count_votes([path], pairs, 0).estimate.mean == 0
    with pytest.raises(UsageProblem, match="A and B are swapped"):
        blind.count_votes([path], [Pair(one.key, one.b, one.a) for one in pairs], 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"votes": {}},
        {"votes": {"0": "both"}},
        {"votes": {"-1": "left"}},
        {"votes": {"x": "left"}},
        {"votes": {"99": "left"}},
        {"votes": ["left"]},
        {"version": 2},
        {"seed": "3"},
        {"seed": True},
        {"trials_sha256": "0"},
    ],
)
def test_count_votes_refuses_what_the_page_did_not_save(tmp_path: Path, changes: dict[str, object]) -> None:
    pairs = write(many_pairs(4), tmp_path)
    path = save_votes(tmp_path / "v.json", pairs, 1, "a")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UsageProblem, match="holds"):
        blind.count_votes([path], pairs, 0)


def test_count_votes_refuses_files_that_are_not_json(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text("votes")
    with pytest.raises(UsageProblem, match="holds no votes"):
        blind.count_votes([tmp_path / "v.json"], many_pairs(2), 0)
    with pytest.raises(UsageProblem, match="can't be read"):
        blind.count_votes([tmp_path / "missing.json"], many_pairs(2), 0)


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def page_data(path: Path) -> dict[str, list[dict[str, list[str]]]]:
    """The data of a blind page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    data: dict[str, list[dict[str, list[str]]]] = json.loads(found[1])
    return data


def test_blind_page_puts_the_pictures_on_their_sides_and_names_neither(tmp_path: Path) -> None:
    a, b = two_sides()
    for row in (*a.rows, *b.rows):
        path = tmp_path / row.entry.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    for side in (a, b):
        side.rows = [replace(row, entry=replace(row.entry, path=tmp_path / row.entry.path)) for row in side.rows]
    pairs, _ = pair(a.entries, b.entries)
    trials = blind.shuffle(pairs, 5)
    path = tmp_path / "vote.html"
    blind.write_blind_page(path, a.evaluation(), b.evaluation(), trials, 5)
    shown = page_data(path)["trials"]
    assert [trial["prompt"] for trial in shown] == [trial.key for trial in trials]
    for trial, own in zip(shown, trials, strict=True):
        assert len(trial["left"]) == len(trial["right"]) == blind.N_PICTURES
        red_is_left = pixels(trial["left"][0])[..., 0].mean() > 128
        assert red_is_left == own.a_is_left
        assert (pixels(trial["right"][0])[..., 0].mean() > 128) != red_is_left
    text = path.read_text()
    assert "0.ply" not in text
    assert str(tmp_path) not in text
    assert text.count("<img") == 2  # the two of the page, none of the prompt
    assert text.count("</script>") == 2


def test_reports_escape_prompts_and_embed_their_pictures(tmp_path: Path) -> None:
    a, b = two_sides()
    one, two = a.evaluation(), b.evaluation()
    pairs, _ = pair(a.entries, b.entries)
    estimates = one.estimates(0)
    page = tmp_path / "r.html"
    report.write_report(page, one, {"Means": tables.mean_table(one, estimates, one.summarize())})
    both = tmp_path / "c.html"
    differences = tables.difference_table(one.figures | one.set_figures, compare(one, two, pairs, 0))
    report.write_comparison(both, {"A": one, "B": two}, pairs, {"Differences": differences})
    for path, n_assets in ((page, 4), (both, 8)):
        text = path.read_text()
        assert "<script" not in text
        assert "<b>" not in text
        assert "&lt;/script&gt;&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; &lt;b&gt;" in text
        urls = re.findall(r'src="([^"]+)"', text)
        assert len(urls) == 4 * n_assets
        assert all(url.startswith("data:image/webp;base64,") for url in urls)
        assert "http://" not in text
        assert "https://" not in text
        assert text.count("<svg") == n_assets
    assert [round(pixels(url)[..., 1].mean(), -1) for url in re.findall(r'src="([^"]+)"', page.read_text())[:4]] == [
        0,
        60,
        120,
        180,
    ]
    assert "<td>40.000</td>" in page.read_text()


def test_report_names_the_views_only_if_a_metric_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "r.html"
    for reads in (False, True):
        monkeypatch.setattr(Stub, "reads_views", reads)
        report.write_report(page, two_sides()[0].evaluation(), {})
        assert ("120 azimuths at elevations of 0 degrees, 512 px" in page.read_text()) == reads


def test_csv_has_a_row_per_asset_that_reads_back(tmp_path: Path) -> None:
    a, b = two_sides()
    path = tmp_path / "t.csv"
    tables.write_csv(path, {"A": a.evaluation(), "B": b.evaluation()})
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["side"] for row in rows] == ["A"] * 4 + ["B"] * 4
    assert rows[3]["prompt"] == ODD
    assert [float(row["m.good"]) for row in rows] == [row.scalar("m.good") for row in a.rows + b.rows]
    assert rows[4]["m.bad"] == ""
    tables.write_csv(path, {"": a.evaluation()})
    assert path.read_text(encoding="utf-8").splitlines()[0] == "name,file,prompt,m.good,m.bad,m.size"
