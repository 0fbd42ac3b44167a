"""The benchmarks that need a GPU, on small models: every part runs, and a stopped run resumes."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ablations, comparison, methods, mini_quality, pairs, record, two_gpus
from benchmarks.pointe import flop
from benchmarks.step import __main__ as step
from segdream_cli import formats
from segdream_cli.config import Config
from segdream_cli.distill import METHODS, build_method
from segdream_cli.evaluate.health import examine
from segdream_cli.evaluate.measures import frechet
from segdream_cli.pointe.transformer import BASE, UPSAMPLE, PointTransformer
from segdream_cli.splats.gaussians import Gaussians
from training.assets import Views, held_out

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def smoke(module: str, *arguments: str) -> str:
    """The output of a benchmark at its smallest size."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--smoke", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables, keyed by the first."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: values for name, *values in cells}


@pytest.mark.slow
def test_step_measures_every_part() -> None:
    said = smoke("step", "--steps", "4")
    assert "not measured: nothing" in said
    found = rows(said)
    assert found[""] == ["cfg", "perpneg", "lowvram", "eager"]
    for key in (
        "ms",
        "first_step_s",
        "peak_gib",
        "encode, ms",
        "losses and encoder, backward, ms",
        "density control, ms",
    ):
        assert all(float(value) > 0 for value in found[key]), key
    cfg, perpneg, lowvram, eager = map(float, found["unet_rows"])
    assert cfg == lowvram == eager == 10  # two views: two up, two for the guidance, one for the consistency function
    assert 10 < perpneg <= 14
    assert float(found["encoder, eager"][1]) == float(found["U-Net, 4 rows, eager"][1]) == 0


@pytest.mark.slow
def test_step_compares_the_methods_with_their_rows() -> None:
    """SCTD is the measure; its own ratio is 1, and rows are those of two views."""
    found = rows(smoke("step", "--method", "sds", "--steps", "4"))
    columns = found["method"]
    cells = {name: dict(zip(columns, map(float, found[name]), strict=True)) for name in ("sctd", "sds")}
    assert (cells["sctd"]["ratio"], cells["sctd"]["unet_rows"], cells["sds"]["unet_rows"]) == (1, 10, 4)
    expected, ms = cells["sds"]["expected_ms"], cells["sds"]["ms"]
    assert 0 < expected < cells["sctd"]["ms"]
    assert cells["sds"]["ratio"] == pytest.approx(ms / expected, abs=0.01)


@pytest.mark.slow
def test_step_resumes_a_whole_run(tmp_path: Path) -> None:
    run = str(tmp_path / "whole.run")
    stopped = smoke("step", "--whole", "--run", run, "--stop-at", "5")
    assert "steps 5, of 12" in stopped
    done = smoke("step", "--whole", "--run", run)
    assert "steps 12, of 12" in done
    assert "finite True" in done


def test_record_all_skips_parts_that_fell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of either shape: times of a loop, and one row per number of assets of the throughput."""
    parts = {"cfg": {"ms": 7.0, "peak_gib": 1.0}, "throughput": {"8": {"ms": 5.0, "assets_an_hour": 90.0}}}
    recorded: list[tuple[Any, ...]] = []
    monkeypatch.setattr("benchmarks.step.tables.record", lambda *figures: recorded.append(figures))
    result = tmp_path / "result.json"
    for failed, figures in (([], 3), (["compiled code"], 0)):
        monkeypatch.setattr(step, "FAILED", [[], failed])
        found = {}
        for name, part in parts.items():
            step.leave(argparse.Namespace(result=result), part)
            found[name] = json.loads(result.read_text())
        recorded.clear()
        step.record_all(found, "cuda", perp_neg=False)
        assert len(recorded) == figures


def test_show_prints_what_a_failed_part_measured(capsys: pytest.CaptureFixture[str]) -> None:
    early = {"unet_s": 3.25, "given_up": 1}
    step.show({"cfg": early, "eager": {"ms": 9.5, "given_up": 0}, "throughput": {"given_up": 0}, "lowvram": None})
    said = capsys.readouterr().out
    assert rows(said)["unet_s"] == ["3.25", ""]
    assert rows(said)["ms"] == ["", "9.50"]
    assert "not measured: cfg, throughput, lowvram\n" in said
    assert "nothing is recorded: cfg\n" in said


def test_building_ends_with_its_block(tmp_path: Path) -> None:
    """Its compilers too: here a process of its process, which would leave a file if it lived on."""
    started, alive = tmp_path / "started", tmp_path / "alive"
    grandchild = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(1)"
    grandchild += f"; pathlib.Path({str(alive)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with pytest.raises(KeyboardInterrupt), step.building([sys.executable, "-c", parent]):  # noqa: PT012
        while not started.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    time.sleep(1.5)
    assert not alive.exists()


@pytest.mark.slow
def test_pointe_measures_every_implementation() -> None:
    """The official sampler too, where it is importable; in single precision its cloud is ours."""
    said = smoke("pointe", "--steps", "4", "--repeats", "1")
    found = rows(said)
    keys = found[""]
    parts = {name: dict(zip(keys, values, strict=True)) for name, values in found.items() if name not in ("", "---")}
    ours = {"fp32", "eager", "graphs", "graphs, bf16", "compiled", "little, eager", "little, graphs"}
    official = set() if "the official sampler is left out" in said else {"official", "official, TF32"}
    assert parts.keys() == ours | official
    assert all(float(part["s"]) > 0 and float(part["given_up"]) == 0 for part in parts.values())
    assert float(parts["fp32"]["points_most"]) == 0
    assert 0 < float(parts["eager"]["points_most"]) < 1e-2
    assert all(float(parts[name]["points_most"]) < 1e-4 for name in official)


@pytest.mark.slow
def test_refine_measures_spoilt_assets() -> None:
    """The asset of a tenth of the Gaussians differs from the intact one, before and after."""
    found = rows(smoke("refine", "--device", "cpu"))
    columns = found[""]
    assert {"intact", "tenth, before", "tenth, after"} <= found.keys()
    similar = {name: float(values[columns.index("PSNR")]) for name, values in found.items() if name not in ("", "---")}
    assert similar["intact"] > 90
    assert 10 < similar["tenth, before"] < 40
    assert 10 < similar["tenth, after"] < 40


def test_flop_of_a_cloud_is_what_torch_counts() -> None:
    """At full size; the embeddings, which the formula omits, are less than a thousandth."""
    formula = flop((BASE, UPSAMPLE))
    counted = 0.0
    for config, rows, given in ((BASE, 2, 1), (UPSAMPLE, 1, 256 + 1024)):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            condition = torch.empty(rows, given, config.width)
            points, times = torch.empty(rows, config.points, 6), torch.zeros(rows, dtype=torch.long)
            PointTransformer(config)(points, times, condition)
        counted += 127 * counter.get_total_flops()
    assert formula == pytest.approx(counted, rel=1e-3)


def write_ball(path: Path, color: tuple[float, float, float]) -> Gaussians:
    """Writes a ball of 300 Gaussians of one colour."""
    generator = torch.Generator().manual_seed(0)
    ball = Gaussians(
        {
            "means": 0.6 * torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=-1),
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(300, 1),
            "log_scales": torch.full((300, 3), -2.5),
            "opacity_logits": torch.full((300,), 3.0),
            "sh0": ((torch.tensor(color) - 0.5) / 0.28209479).repeat(300, 1),
            "shN": torch.zeros(300, 0, 3),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.write(path, ball.splats({}), "ply-compact")
    return ball


def test_mini_quality_measures_assets_that_exist(tmp_path: Path) -> None:
    """Nothing is distilled: the seconds are null, and the figures are those of the files."""
    prompts = [one.caption() for one in held_out()[:2]]
    for prompt in prompts:
        ball = write_ball(mini_quality.asset_path(tmp_path, prompt), (0.9, 0.5, 0.7))
    out = tmp_path / "figures.json"
    arguments = ("--assets", str(tmp_path), "--json", str(out), "--sample-guidance", "0", "--device", "cpu")
    smoke("mini_quality", *arguments)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["prompt"] for row in found["prompts"]] == prompts
    figures, health = found["figures"], examine(ball)
    assert figures["seconds"] is None
    for name in ("solid", "roof_px", "side_px", "gaussians", "ply_bytes", "spz_bytes"):
        assert figures[name] == pytest.approx(getattr(health, name), rel=1e-3), name
    assert figures["object"] == np.mean([row["object"] for row in found["prompts"]])
    assert 0 < figures["edges_256"] < 1
    assert figures["frechet"] > 0


def test_quality_metrics_have_rows_in_results_md() -> None:
    shown = {metric for rows in record.FIGURES.values() for _, metric, _ in rows}
    metrics = [metric for metric, _ in (*mini_quality.RECORDED.values(), *mini_quality.RECORDED_NEW.values())]
    assert set(metrics) <= shown
    assert len(set(metrics)) == len(metrics)


@pytest.fixture(scope="module")
def shop() -> comparison.Workshop:
    return comparison.open_workshop("cpu", True, time.time() + 3600)


def test_variants_have_published_settings_on_the_preset(shop: comparison.Workshop) -> None:
    """Of the method alone, with its schedules rescaled; the preset keeps its own."""
    base = shop.session.config
    variant = comparison.Variant("a", (), (0,), 60, "sctd", ("segments=3",), grad_scale=0.5)
    config, published = variant.configure(base), Config().distill.sctd
    assert config.distill.sctd == dataclasses.replace(published, segments=3, grad_scale=0.5)
    assert (config.optim.steps, config.distill.warmup_steps) == (60, round(1500 * 60 / 5000))
    assert config.camera == dataclasses.replace(base.camera, widen_every=config.camera.widen_every)
    assert (config.loss, config.refine.enabled) == (base.loss, False)
    preset = comparison.Variant("a", (), (0,), 60).configure(base)
    assert preset.distill.sctd == base.distill.sctd != published


def test_every_method_has_eight_trials_that_it_takes(shop: comparison.Workshop) -> None:
    for method in METHODS:
        assert methods.TRIALS[method][0] == ""
        assert len(set(methods.TRIALS[method])) == 8
        for trial in methods.TRIALS[method]:
            config = methods.variant("a", method, trial, (), 1, 50).configure(shop.session.config)
            build_method(config)
            assert config.distill.method == method


def test_rows_of_ablations_are_those_of_results_md(shop: comparison.Workshop) -> None:
    assert (*ablations.CHANGES, "world") == record.ABLATIONS
    for variant in ablations.variants((), 1, 50).values():
        assert build_method(variant.configure(shop.session.config)).rows_per_view >= 3


@pytest.mark.parametrize("method", list(METHODS))
def test_calibrated_gradients_are_as_large_as_those_of_the_preset(shop: comparison.Workshop, method: str) -> None:
    shown = tuple(held_out()[:1])
    preset = comparison.Variant("preset", shown, (0,), 2)
    found = comparison.Comparison(None, shop, comparison.Inline(), comparison.Inline(), 2, {}, smoke=True)
    (variant,) = found.calibrate([comparison.Variant("a", shown, (0,), 2, method, gradient=3.0)])
    assert found.failed == {}
    expected, rms = shop.gradient_rms(preset), shop.gradient_rms(variant)
    assert expected is not None
    assert rms == pytest.approx(3 * expected, rel=0.05)


def test_comparison_refuses_a_file_of_another_setup(shop: comparison.Workshop, tmp_path: Path) -> None:
    pool, path = comparison.Inline(), tmp_path / "a.json"
    comparison.Comparison(path, shop, pool, pool, 2, {"steps": 100}, smoke=True).save()
    comparison.Comparison(path, shop, pool, pool, 3, {"steps": 100}, smoke=True)
    for setup, smoke_run in (({"steps": 50}, True), ({"steps": 100}, False)):
        with pytest.raises(ValueError, match=r"a\.json has results of another setup: .*100"):
            comparison.Comparison(path, shop, pool, pool, 2, setup, smoke=smoke_run)


def test_distance_is_that_of_all_features_with_the_jackknifes_error() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    own, reference = rng.normal(size=(6, 8, 5)), {name: rng.normal(size=(4, 8, 5)) for name in names}
    prompts = ["a", "b", "c", "a", "b", "c"]
    value, error = comparison.distance(own, prompts, reference)
    assert value == pytest.approx(frechet(own.reshape(-1, 5), np.concatenate([*reference.values()]).reshape(-1, 5)))
    rest = []
    for i in range(3):
        others = [name for j, name in enumerate(names) if j != i]
        left = np.delete(own.reshape(2, 3, 8, 5), i, axis=1).reshape(-1, 5)
        rest.append(frechet(left, np.concatenate([reference[name].reshape(-1, 5) for name in others])))
    assert error**2 == pytest.approx(2 / 3 * sum((each - np.mean(rest)) ** 2 for each in rest))


def test_figures_have_intervals_over_prompts() -> None:
    """Three equal assets of each prompt tell no more than one; the normal distribution gives the width."""
    values = np.random.default_rng(0).normal(size=400)
    assets = [
        {name: values[i] if i % 2 or name != "view" else None for name in comparison.COLUMNS} | {"prompt": str(i)}
        for i in range(400)
        for _ in range(3)
    ]
    found = comparison.figures({"assets": assets, "rows": 12.0, "frechet": 50.0, "frechet_se": 2.0}, 0.25)
    assert found["object"] == (pytest.approx(values.mean()), pytest.approx(1.96 * values.std() / 20, rel=0.05))
    assert found["view"] == (pytest.approx(values[1::2].mean()), pytest.approx(1.96 * values.std() / 200**0.5, rel=0.1))
    assert found["frechet"] == (50, pytest.approx(3.92))
    assert (found["rows"][0], found["seconds"][0]) == (12, 0.25)
    assert np.isnan([found["rows"][1], found["seconds"][1]]).all()


def test_accuracy_over_pairs_prompts_and_seeds() -> None:
    """Large differences between prompts cancel in pairs; an asset without a partner and a share without value drop."""
    rng = np.random.default_rng(1)
    level, gain = rng.uniform(0, 0.5, 300), rng.normal(0.1, 0.05, 300)
    base, better = (
        [
            {name: None if name == "view" and i % 3 else value for name in comparison.JUDGED}
            | {"prompt": str(i), "seed": 0}
            for i, value in enumerate(values)
        ]
        for values in (level, level + gain)
    )
    found = comparison.accuracy_over({"assets": better[:-20]}, {"assets": base[20:][::-1]})
    assert found.n == 260
    assert found.mean == pytest.approx(gain[20:-20].mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * gain[20:-20].std() / 260**0.5, rel=0.05)


def test_clipped_share_counts_covered_pixels() -> None:
    images, alphas = torch.full((1, 8, 3, 4, 4), 0.5), torch.zeros(1, 8, 4, 4)
    alphas[..., :2] = 1
    images[:, :, 0, 0, 0], images[:, :, 1, 1, 1], images[:, :, 2, 2, 3] = 1.0, 0.001, 1.0  # the last is not covered
    assert comparison.clipped_share(Views(images, alphas)).tolist() == [pytest.approx(2 / 8)]
    assert np.isnan(comparison.clipped_share(Views(images, 0 * alphas))).all()


def test_methods_go_on_where_a_stopped_run_ended(tmp_path: Path) -> None:
    """Without time nothing is made; the next run makes all, and one more only shows it."""
    out = tmp_path / "methods.json"
    common = ("--device", "cpu", "--only", "sds", "--json", str(out), "--sheets", str(tmp_path))
    stopped = smoke("methods", *common, "--budget-s", "0")
    assert "left out: search sds 0: no time" in stopped
    done = smoke("methods", *common)
    assert "left out" not in done
    found = json.loads(out.read_text())
    names = {"search sds 0", "published sds", "tuned sds", "preset", "world", "curve sds 2", "curve sds 3"}
    assert found["entries"].keys() == names
    published, world = found["entries"]["published sds"], found["entries"]["world"]
    assert [asset["prompt"] for asset in published["assets"]] == [one.caption() for one in held_out()[:2]]
    assert published["rows"] == 3 * 2 * 2  # steps, views, and rows of the guidance
    assert comparison.accuracy(world) > 0.9
    assert world["frechet"] < published["frechet"]
    with Image.open(tmp_path / "methods-tuned.webp") as sheet:
        assert sheet.size[0] == 3 * 2 * 128
    before = out.read_bytes()
    again = smoke("methods", *common, "--budget-s", "0")
    assert again.count("| sds |") == done.count("| sds |") == 3
    assert out.read_bytes() == before


def test_figures_of_variants_have_rows_in_results_md(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(comparison, "record", lambda metric, *_: kept.append(metric))
    cells = dict.fromkeys(comparison.COLUMNS, (1.0, 0.5))
    for mode in methods.MODES:
        for title in methods.row_names(mode, METHODS):
            comparison.record_row(f"methods_{mode}_{title}", cells, {})
    for title in record.ABLATIONS:
        comparison.record_row(f"ablations_{record.metric_name(title)}", cells, {})
    grids = ("methods, published", "methods, tuned", "ablations")
    shown = [metric for name in grids for row in record.GRIDS[name][1].values() for cell in row for metric in cell]
    assert sorted(kept) == sorted(shown)


def test_compare_puts_each_folder_where_the_answers_say(tmp_path: Path) -> None:
    """Old balls are red and new ones are blue; each is A in half of the sheets."""
    for i in range(4):
        write_ball(tmp_path / "old" / f"a-duck-{i}.ply", (0.9, 0.1, 0.1))
        write_ball(tmp_path / "new" / f"a-duck-{i}.ply", (0.1, 0.1, 0.9))
    write_ball(tmp_path / "new" / "a-cube.ply", (0.1, 0.1, 0.9))
    out, answers = tmp_path / "sheets", tmp_path / "answers.json"
    pairs.compare(tmp_path / "old", tmp_path / "new", out, answers, device="cpu")
    rows = json.loads(answers.read_text(encoding="utf-8"))
    assert sorted(row["prompt"] for row in rows) == [f"a duck {i}" for i in range(4)]
    assert sorted(row["A"] for row in rows) == ["new", "new", "old", "old"]
    for row in rows:
        pixels = np.asarray(Image.open(out / row["sheet"])).astype(float)[-2 * pairs.SIZE :]
        assert row["A"] != row["B"]
        for side, half in (("A", pixels[:, : 2 * pairs.SIZE]), ("B", pixels[:, -2 * pairs.SIZE :])):
            redder = half[..., 0].mean() > half[..., 2].mean()
            assert redder == (row[side] == "old")
        assert (pixels[0, :8] == 255).all()
        assert (pixels[-1, :8] == 0).all()


def test_name_numbers_assets_without_their_prompts(tmp_path: Path) -> None:
    """A sheet has two assets in a row; the answers tell a red ball from a blue one."""
    write_ball(tmp_path / "assets" / "a-red-ball.ply", (0.9, 0.1, 0.1))
    write_ball(tmp_path / "assets" / "a-blue-ball.ply", (0.1, 0.1, 0.9))
    out, answers = tmp_path / "sheets", tmp_path / "answers.json"
    pairs.name(tmp_path / "assets", out, answers, seed=1, device="cpu")
    found = json.loads(answers.read_text(encoding="utf-8"))
    assert sorted(found.values()) == ["a blue ball", "a red ball"]
    pixels = np.asarray(Image.open(out / "00.png")).astype(float)
    first = pixels[:, : 2 * pairs.SIZE]
    assert (first[..., 0].mean() > first[..., 2].mean()) == (found["00"] == "a red ball")


def test_storm_loses_nothing(tmp_path: Path) -> None:
    state = ("--json", str(tmp_path / "storm.json"))
    total = rows(smoke("storm", "--only", "new run", "resume", *state))["all"]
    assert sum(map(int, total[:4])) == 22
    assert total[4:] == ["0"] * 6
    kept = json.loads((tmp_path / "storm.json").read_text(encoding="utf-8"))
    assert len(kept["trials"].pop("resume")) == 12
    kept["trials"]["new run"]["kill 1"] = ["stuck: once"]
    kept["found"]["new run: kill 1"] = ["stuck: once"]
    (tmp_path / "storm.json").write_text(json.dumps(kept), encoding="utf-8")
    mended = rows(smoke("storm", "--only", "new run", *state))["new run"]  # runs what failed, and nothing else
    assert mended == ["2", "2", "6", "0", "1", "0", "0", "0", "0", "0"]


def test_engine_measures_every_network() -> None:
    found = rows(smoke("engine"))
    assert {"U-Net", "decoder", "encoder"} <= found.keys()
    for name in ("U-Net", "decoder", "encoder"):
        assert float(found[name][5]) < 1e-5, name


def test_two_gpus_measures_both_assets_and_records_figures(tmp_path, monkeypatch) -> None:
    out = tmp_path / "two.json"
    smoke("two_gpus", "--only", "full-size", "--out", str(out))
    found = json.loads(out.read_text())["found"]["full-size"]
    assert found["times_as_fast"] == pytest.approx(2 * found["alone_ms"] / found["at_once_ms"])
    assert found["alone_first_step_s"] > 0
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results.json")
    two_gpus.keep(out)
    entries = record.load()
    assert entries["two_gpus_full_size_alone_ms"]["value"] == pytest.approx(found["alone_ms"], abs=1e-4)
    assert entries["two_gpus_full_size_alone_first_step_s"]["unit"] == "s"
    assert set(entries) >= {metric for _, metric, _ in record.FIGURES["two GPUs, full size"]}


def test_render_page_leaves_results_md_as_it_is() -> None:
    page = record.PAGE.read_text(encoding="utf-8")
    assert record.render_page(page) == page, "run python -m benchmarks.record"


def test_results_md_shows_every_recorded_metric() -> None:
    tables = set(re.findall("<!-- table: (.+?) -->", record.PAGE.read_text(encoding="utf-8")))
    assert tables == {*record.FIGURES, *record.GRIDS}
    shown = {metric for rows in record.FIGURES.values() for _, metric, _ in rows}
    shown |= {
        metric for _, rows in record.GRIDS.values() for cells in rows.values() for cell in cells for metric in cell
    }
    assert record.load().keys() <= shown


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (76.6099, "s", "76.6 s"),
        (100000, "1", "100,000"),
        (0.9961, "share", "99.6 %"),
        (0.0002, "share", "0.02 %"),
        (1.1083, "ratio", "1.11"),
        (8.8011, "1/h", "8.8 per hour"),
        (17354.9027, "ms", "17,355 ms"),
    ],
)
def test_number_has_three_digits_and_its_unit(value: float, unit: str, text: str) -> None:
    assert record.number({"value": value, "unit": unit}) == text
