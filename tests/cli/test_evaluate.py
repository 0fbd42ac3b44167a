"""`segdream evaluate` on small assets: tables, JSON, prompts, and bad input."""

import io
import json
import math
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import build_clip
from commands import BUS, TINY
from hub_server import point_to, serving
from PIL import features

from segdream_cli import formats
from segdream_cli.evaluate import clip_metric
from segdream_cli.evaluate.evaluation import Evaluation
from segdream_cli.render import raster
from segdream_cli.runs.jobs import match_prompts, read_prompts
from segdream_cli.splats import Splats

RNG = np.random.default_rng(0)
BALL = Splats(
    means=RNG.normal(0, 0.25, (60, 3)).astype(np.float32),
    quats=np.tile(np.float32([1, 0, 0, 0]), (60, 1)),
    log_scales=np.full((60, 3), math.log(0.15), np.float32),
    opacity_logits=np.full(60, 4.0, np.float32),
    sh0=np.tile(np.float32([1.5, -1.5, -1.5]), (60, 1)),
    shN=np.zeros((60, 0, 3), np.float32),
)


@pytest.fixture
def asset(folder):
    """Writes an asset with a prompt."""

    def write(name, prompt=None):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        formats.write(path, replace(BALL, provenance={} if prompt is None else {"prompt": prompt, "steps": 7}))
        return path

    return write


def lines(outcome):
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_evaluate_prints_a_row_per_asset_and_a_row_per_figure(segdream, asset):
    asset("red_ball.ply", "a red ball")
    asset("blue_mug.spz", "a blue mug")
    done = segdream("evaluate", ".")
    assert done.code == 0, done.err
    first, second = done.out.split("figure", 1)
    assert "a red ball" in first
    assert "a blue mug" in first
    assert "health: floating parts (lower is better)" in second
    assert "cost: steps" in second
    assert "cost: time" not in second


def test_evaluate_json_has_an_object_per_asset_and_a_summary(segdream, asset):
    paths = [asset("a.ply", "a red ball"), asset("b.ply", "a corgi"), asset("c.ply")]
    done = segdream("evaluate", *paths, "--json", "--quiet")
    assert done.code == 0, done.err
    *rows, summary = lines(done)
    assert [row["asset"] for row in rows] == [str(path) for path in paths]
    assert [row["prompt"] for row in rows] == ["a red ball", "a corgi", None]
    assert 0 <= rows[0]["values"]["judge.object"] <= 1
    assert rows[1]["values"]["judge.object"] is None
    assert [row["values"]["cost.steps"] for row in rows] == [7, 7, None]
    assert sum(rows[0]["values"]["health.opacities"]) == pytest.approx(1)
    assert summary["means"]["health.gaussians"] == {"mean": 60, "low": 60, "high": 60, "assets": 3}
    assert summary["means"]["judge.object"]["assets"] == 1
    assert (summary["views"], summary["elevations_deg"], summary["size"]) == (120, [0.0], 512)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_evaluate_shows_what_it_has_measured_when_it_is_stopped(segdream, asset, folder, monkeypatch, number, code):
    for name in ("a.ply", "b.ply", "c.ply"):
        asset(name, "a red ball")
    measure = Evaluation.measure

    def stop_in_the_second(evaluation, entry):
        if evaluation.rows:
            os.kill(os.getpid(), number)
        return measure(evaluation, entry)

    monkeypatch.setattr(Evaluation, "measure", stop_in_the_second)
    done = segdream("evaluate", ".", "--metrics", "health", "--json", "--csv", "table.csv")
    assert done.code == code
    assert [line["asset"] for line in lines(done) if "asset" in line] == ["a.ply", "b.ply"]
    assert [line["assets"] for line in lines(done) if "means" in line] == [2]
    assert "stopped after 2 of 3 assets" in done.err
    assert len((folder / "table.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_evaluate_reads_prompts_by_name_and_by_position(segdream, asset, folder):
    asset("a_red_ball.ply"), asset("a_blue_mug-3.ply")
    prompts = folder / "prompts.txt"
    prompts.write_text("# list\na red ball\n\na green tree\na blue mug\n")
    done = segdream("evaluate", ".", "--prompts", prompts, "--json")
    assert [row["prompt"] for row in lines(done)[:-1]] == ["a blue mug", "a red ball"]
    assert [row["values"]["judge.object"] is None for row in lines(done)[:-1]] == [False, False]


@pytest.mark.parametrize(
    ("text", "stems", "wanted"),
    [
        ("a cat\na dog", ["a_dog", "a_cat-12"], ["a dog", "a cat"]),
        ("a cat\na dog", ["one", "two"], ["a cat", "a dog"]),
        ("one\ta cat\ntwo\ta dog\nthree\tan owl", ["two", "one"], ["a dog", "a cat"]),
        ("a cat", ["a_cat", "a_dog"], "no prompt for a_dog"),
        ("a cat", ["one", "two"], "1 prompts for 2 assets"),
        ("one\ta cat\na dog", ["one", "two"], "not in the line 'a dog'"),
        ("one\ta cat", ["two"], "no prompt for two"),
        ("one\ta cat\ntwo\t", ["one", "two"], "not in the line 'two'"),
    ],
)
def test_match_prompts(tmp_path, text, stems, wanted):
    from segdream_cli.errors import UsageProblem

    source = tmp_path / "prompts.txt"
    source.write_text(text)
    lines = read_prompts(str(source))
    if isinstance(wanted, list):
        assert match_prompts(lines, stems, "list.txt") == wanted
        return
    with pytest.raises(UsageProblem, match=wanted):
        match_prompts(lines, stems, "list.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.ply"], "missing.ply"),
        (["empty"], "the folder empty holds no asset"),
        (["broken.ply"], "broken.ply"),
        (["asets"], "there is no folder or file asets"),
        (["notes.txt"], "notes.txt is no asset that segdream reads"),
        (["nameless.ply", "--metrics", "judge"], "nameless.ply has no prompt in its file, and the metric judge"),
        (["nameless.ply", "--metrics", "beauty"], "there is no metric 'beauty'"),
        (["nameless.ply", "--elevations", "0,x"], "--elevations '0,x' is not a list"),
        (["nameless.ply", "--elevations", "91"], "--elevations '91' is not a list"),
        (["nameless.ply", "--weights", "judge"], "--weights 'judge' is not METRIC=FOLDER"),
        (["nameless.ply", "--prompts", "nothing.txt"], "nothing.txt can't be read"),
        ([], "give an ASSET"),
    ],
)
def test_evaluate_refuses_bad_input_in_a_sentence(segdream, asset, folder, arguments, message):
    asset("nameless.ply")
    (folder / "empty").mkdir()
    (folder / "broken.ply").write_bytes(b"ply\nformat")
    (folder / "notes.txt").write_text("x")
    done = segdream("evaluate", *(arguments or ["--quiet"]))
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_evaluate_without_a_judge_at_a_given_folder_is_exit_4(segdream, asset):
    asset("ball.ply", "a red ball")
    done = segdream("evaluate", "ball.ply", "--metrics", "judge", "--weights", "judge=nowhere")
    assert done.code == 4
    assert "the judge in nowhere can't be read" in done.err


def test_evaluate_shows_odd_prompts_without_obeying_them(segdream, asset):
    asset("odd.ply", "[red]a\x1b[31m ball[/red] \u202e")
    done = segdream("evaluate", "odd.ply", "--metrics", "health")
    assert done.code == 0, done.err
    assert r"[red]a\x1b[31m ball[/red]" in done.out
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out


@pytest.mark.parametrize("rows", [10**400, 1e400, "many", True])
def test_cost_that_is_no_number_has_no_value(segdream, folder, rows):
    formats.write(folder / "a.ply", replace(BALL, provenance={"unet_rows": rows}))
    done = segdream("evaluate", "a.ply", "--metrics", "cost", "--json", "--quiet")
    assert done.code == 0, done.err
    assert lines(done)[0]["values"]["cost.unet_rows"] is None


def test_evaluate_says_why_a_metric_has_no_values(segdream, asset):
    asset("corgi.ply", "a corgi in the rain")
    done = segdream("evaluate", "corgi.ply", "--metrics", "judge,health")
    assert done.code == 0
    assert "judge has no values: no prompt is in the vocabulary of mini" in done.err
    assert "health has no values" not in done.err


def test_list_metrics_names_each(segdream):
    done = segdream("evaluate", "--list-metrics")
    assert {"judge", "health", "clip", "cost"} <= {line.split()[0] for line in done.out.splitlines()}


def test_clip_without_weights_is_exit_4_with_a_hint(segdream, asset, folder, monkeypatch):
    asset("ball.ply", "a red ball")
    with serving({}) as (_, address):
        point_to(address, folder / "hub", monkeypatch)
        offline = segdream("evaluate", "ball.ply", "--metrics", "clip", "--offline")
        online = segdream("evaluate", "ball.ply", "--metrics", "clip")
    for done in (offline, online):
        assert done.code == 4
        assert done.out == ""
        assert "hint: segdream evaluate ball.ply --metrics judge,health" in done.err


def test_clip_is_downloaded_once_by_fetch_and_then_works_offline(
    segdream, asset, folder, tmp_path_factory, monkeypatch
):
    red, blue = asset("red.ply", "a red car"), asset("blue.ply", "a bus")
    clip = build_clip(tmp_path_factory.mktemp("clip"))
    published = clip_metric.MODEL
    with serving({published.id: clip}) as (_, address):
        point_to(address, folder / "hub", monkeypatch)
        refused = segdream("fetch", "clip")
        assert refused.code == 4
        assert "instead of the published" in refused.err
        monkeypatch.setattr(clip_metric, "MODEL", replace(published, pinned={}))
        assert segdream("fetch", "clip").code == 0
    options = ("--metrics", "clip", "--views", "3", "--size", "64", "--json")
    done = segdream("evaluate", red, blue, *options, "--offline")
    assert done.code == 0, done.err
    given = segdream("evaluate", red, blue, *options, "--weights", f"clip={clip}")
    assert given.out == done.out
    first, second, summary = lines(done)
    assert first["values"]["clip.score"] >= first["values"]["clip.worst"]
    mean = (first["values"]["clip.score"] + second["values"]["clip.score"]) / 2
    assert summary["means"]["clip.score"]["mean"] == pytest.approx(mean)
    assert summary["means"]["clip.r_precision"]["mean"] in (0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1)


def test_compare_writes_tables_reports_and_a_page_whose_votes_count(segdream, asset, folder):
    for side in "ab":
        for prompt in ("a red ball", "a blue mug"):
            asset(f"{side}/{prompt.replace(' ', '_')}.ply", prompt)
    asset("b/extra.ply", "a green tree")
    options = ("--compare", "a", "b", "--metrics", "health", "--json", "--size", "64")
    done = segdream("evaluate", *options, "--csv", "c.csv", "--html", "c.html", "--blind", "v.html")
    assert done.code == 0, done.err
    assert "'a green tree' is only in B and does not count" in done.err
    *rows, summary, first, second, third = lines(done)
    assert [row["side"] for row in rows] == ["A", "A", "B", "B"]
    assert [file["output"] for file in (first, second, third)] == ["c.csv", "c.html", "v.html"]
    assert summary["differences"]["health.gaussians"]["difference"] == 0
    assert summary["differences"]["health.floaters"]["p_holm"] == 1
    assert len((folder / "c.csv").read_text().splitlines()) == 5
    data = json.loads((folder / "v.html").read_text().split('id="data">')[1].split("</script>")[0])
    votes = {name: data[name] for name in ("version", "seed", "trials_sha256")} | {"votes": {"0": "same", "1": "same"}}
    (folder / "votes.json").write_text(json.dumps(votes))
    (counted,) = lines(segdream("evaluate", "--compare", "a", "b", "--json", "--votes", "votes.json"))
    assert (counted["preference"]["mean"], counted["votes"]) == (0.5, 2)
    table = segdream("evaluate", "--compare", "a", "b", "--votes", "votes.json")
    assert "share of votes for B" in table.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.ply", "--blind", "v.html"], 2, "--blind can't be used without --compare"),
        (["a.ply", "--count", "3"], 2, "--count has no effect without --make-references"),
        (["a.ply", "--prior", "mini"], 2, "--prior has no effect without --make-references"),
        (["--make-references", "r", "--prompts", "p.txt", "--csv", "t.csv"], 2, "--csv has no effect with --make-ref"),
        (
            ["--make-references", "r", "--prompts", "p.txt", "--force"],
            2,
            "--force has no effect with --make",
        ),
        (["--compare", "a.ply", "a.ply", "--votes", "v.json", "--csv", "t.csv"], 2, "--csv has no effect with --votes"),
        (["a.ply", "--weights", "clip=x"], 2, "--weights clip=... has no effect without the metric clip"),
        (["--compare", "a.ply"], 2, "--compare takes two assets or folders"),
        (["--compare", "a.ply", "b.ply"], 2, "A and B have no prompt in common"),
        (["a.ply", "--html", "report"], 2, "--html writes a .html file, and report is not"),
        (["a.ply", "--csv", "t.html"], 2, "--csv writes a .csv file"),
        (["a.ply", "--csv", "nowhere/t.csv"], 2, "the folder nowhere does not exist"),
        (["a.ply", "--html", "old.html"], 6, "old.html exists"),
        (["--compare", "a.ply", "a.ply", "--html", "x.html", "--blind", "x.html"], 2, "--html and --blind both write"),
    ],
)
def test_outputs_and_comparisons_that_cannot_work_are_refused_first(segdream, asset, folder, arguments, code, message):
    asset("a.ply", "a red ball"), asset("b.ply", "a blue mug")
    (folder / "old.html").write_text("old")
    done = segdream("evaluate", *arguments)
    assert done.code == code
    assert message in done.err
    assert ("hint:" in done.err) == ("no prompt in common" not in message)
    assert sorted(path.name for path in folder.iterdir()) == ["a.ply", "b.ply", "old.html"]


def test_prompts_from_stdin_serve_both_sides(segdream, asset, monkeypatch):
    asset("a/one.ply"), asset("b/two.ply")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a red ball\n")))
    done = segdream("evaluate", "--compare", "a", "b", "--prompts", "-", "--metrics", "health", "--json")
    assert done.code == 0, done.err
    assert [row["prompt"] for row in lines(done)[:-1]] == ["a red ball", "a red ball"]


def test_evaluate_finds_missing_packages_before_the_first_asset(segdream, asset, folder, monkeypatch):
    asset("bus.ply")
    monkeypatch.setattr(Evaluation, "measure", lambda *_: pytest.fail("an asset was measured"))
    with monkeypatch.context() as patch:
        patch.setattr(features, "check", lambda name: name != "webp")
        for page in (("--html", "report.html"), ("--compare", "bus.ply", "--blind", "vote.html")):
            done = segdream("evaluate", "bus.ply", *page)
            assert done.code == 3
            assert "pillow was built without WebP" in done.err
        assert segdream("generate", BUS, *TINY, "-o", "bus.sog").code == 3
    monkeypatch.delitem(sys.modules, "segdream_cli.render.raster.kernels", raising=False)
    monkeypatch.delitem(sys.modules, "segdream_cli.render.raster.cpu", raising=False)
    monkeypatch.delattr(raster, "cpu", raising=False)
    monkeypatch.delattr(raster, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    done = segdream("evaluate", "bus.ply")
    assert done.code == 3
    assert "numba" in done.err
    assert [path.name for path in folder.iterdir()] == ["bus.ply"]
