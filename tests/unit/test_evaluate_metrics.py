"""The embedded metrics: their values by hand, the views of the protocol, and the assets that they read."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segdream_cli import formats
from segdream_cli.errors import OutOfMemory, UsageProblem
from segdream_cli.evaluate import metrics
from segdream_cli.evaluate.asset_files import find_assets, stem_of
from segdream_cli.evaluate.assets import list_assets
from segdream_cli.evaluate.cost_metric import run_seconds
from segdream_cli.evaluate.evaluation import Evaluation
from segdream_cli.evaluate.health import examine, opacity_histogram
from segdream_cli.evaluate.judge import Label, Verdict
from segdream_cli.evaluate.judge_metric import read_verdict
from segdream_cli.evaluate.metrics import METRICS, Asset, Figure, Setup, Views, choose_metrics
from segdream_cli.evaluate.views import FOV_RAD, RADIUS, VIEWS_AT_ONCE, ViewProtocol
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians

CPU = torch.device("cpu")
CLASSES = {"objects": ["duck", "mug"], "colors": ["red", "blue"], "attributes": ["", "striped"]}


def balls(*centers: tuple[float, float, float], radius: float = 0.08, prompt: str | None = None) -> Splats:
    """A round, nearly opaque Gaussian at each centre."""
    n = len(centers)
    return Splats(
        means=np.array(centers, np.float32),
        quats=np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        log_scales=np.full((n, 3), math.log(radius), np.float32),
        opacity_logits=np.full(n, 6.0, np.float32),
        sh0=np.linspace(-1, 1, 3 * n, dtype=np.float32).reshape(n, 3),
        shN=np.zeros((n, 0, 3), np.float32),
        provenance={} if prompt is None else {"prompt": prompt},
    )


CUBE = balls(*[(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
SECTOR = {"front": 0, "side": 2, "back": 4}


def verdict(objects: list[int], azimuths: list[int]) -> Verdict:
    return Verdict(torch.eye(2)[objects], torch.eye(2)[[0] * 8], torch.eye(2)[[1] * 8], torch.eye(8)[azimuths])


def test_read_verdict_counts_views() -> None:
    """Object right in six of eight views, colour in none, attribute in all, and two faces at the back."""
    found = read_verdict(
        verdict([0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 0, 6, 7]),
        CLASSES,
        Label("duck", "blue", "striped"),
        readable=True,
    )
    assert found == {
        "object": 0.75, "color": 0.0, "attribute": 1.0, "probability": 1.75 / 3, "view": 0.75, "janus": 0.4,
    }  # fmt: skip


def test_read_verdict_without_a_color_or_readable_azimuths_has_no_such_values() -> None:
    found = read_verdict(verdict([1] * 8, [0] * 8), CLASSES, Label("mug", "", "striped"), readable=False)
    assert (found["object"], found["attribute"]) == (1, 1)
    assert all(math.isnan(found[name]) for name in ("color", "view", "janus"))


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("a red mug", Label("mug", "red", "")),
        ("A STRIPED blue pine tree!", Label("pine tree", "blue", "striped")),
        ("a duck", Label("duck", "", "")),
        ("the GREY planes with a hat", Label("airplane", "gray", "wearing a red hat")),
        ("a corgi riding a unicycle", None),
        ("", None),
        (None, None),
    ],
)
def test_the_embedded_judge_labels_prompts_of_its_world_only(prompt: str | None, label: Label | None) -> None:
    judge = METRICS["judge"].load(Setup(device=CPU))
    assert judge.label(prompt) == label  # type: ignore[attr-defined]


def test_opacity_histogram_has_ten_bins_from_0_to_1() -> None:
    opacities = np.array([0.05, 0.1001, 0.55, 0.551, 0.999])
    found = opacity_histogram(np.log(opacities / (1 - opacities)))
    assert found == pytest.approx([0.2, 0.2, 0, 0, 0, 0.4, 0, 0, 0, 0.2])


def test_examine_sees_half_of_two_equal_balls_as_floaters() -> None:
    """Along y they are apart from every azimuth, and nearly equal in size from the elevations in use."""
    apart = Gaussians.from_splats(balls((0, 0.6, 0), (0, -0.6, 0)))
    assert examine(apart).floaters == pytest.approx(0.5, abs=0.1)
    assert examine(Gaussians.from_splats(balls((0, 0, 0)))).floaters == 0


def test_cameras_of_the_protocol_look_at_the_origin_from_every_third_degree() -> None:
    cameras = ViewProtocol(elevations_deg=(0.0, 30.0)).cameras()
    assert len(cameras) == 240
    for i, degrees in ((0, 0), (1, 3), (119, 357), (150, 90)):
        elevation = math.radians(30 if i >= 120 else 0)
        azimuth = math.radians(degrees)
        flat = 3.5 * math.cos(elevation)
        at = torch.tensor([flat * math.sin(azimuth), 3.5 * math.sin(elevation), flat * math.cos(azimuth)])
        torch.testing.assert_close(cameras.positions[i], at, atol=1e-5, rtol=0)
        origin = cameras.Ks[i] @ cameras.viewmats[i, :3, 3]
        torch.testing.assert_close(origin[:2] / origin[2], torch.tensor([256.0, 256.0]))
    corner = 256 + cameras.Ks[0, 0, 0] * math.tan(FOV_RAD / 2)
    assert float(corner) == pytest.approx(512)
    assert RADIUS == 3.5


@torch.no_grad()
def test_views_are_those_of_single_renders_over_white_and_few_at_a_time() -> None:
    gaussians = Gaussians.from_splats(CUBE)
    protocol = ViewProtocol(n=VIEWS_AT_ONCE + 3, elevations_deg=(15.0,), size=64)
    batches = list(protocol.render(gaussians))
    assert [len(views.images) for views in batches] == [VIEWS_AT_ONCE, 3]
    images = torch.cat([views.images for views in batches])
    cameras = protocol.cameras()
    for i, image in enumerate(images):
        seen = render(gaussians, cameras.view(i))
        wanted = (seen.rgb + 1 - seen.alpha)[0].permute(2, 0, 1).clamp(0, 1) * 255
        assert float((image.float() - wanted).abs().max()) <= 0.5001
    assert images.dtype == torch.uint8
    assert int(images[:, :, 0, 0].min()) == 255
    assert torch.cat([views.azimuth_deg for views in batches])[1] == pytest.approx(360 / 11)


def test_choose_metrics_in_the_order_of_the_table() -> None:
    assert choose_metrics("health, judge") == ["judge", "health"]
    assert set(choose_metrics(None)) == {name for name, entry in METRICS.items() if entry.embedded}
    with pytest.raises(UsageProblem, match="no metric 'helth'") as problem:
        choose_metrics("helth")
    assert problem.value.hint == "--metrics health"
    with pytest.raises(UsageProblem, match="names no metric"):
        choose_metrics(" , ")


def test_run_seconds_stretches_each_line_to_the_line_before(tmp_path: Path) -> None:
    """Steps 1 to 20 at 2 s and 21 to 24 at 3 s, of which the repeated one counts once, as it was the last time.

    Then steps up to 90 are left out.
    """
    events = tmp_path / "events.jsonl"
    steps = [(10, 2.0), (20, 2.0), (24, 9.0), (24, 3.0), (90, 5.0)]
    events.write_text("".join(json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in steps))
    assert run_seconds(events) == pytest.approx(20 * 2 + 4 * 3 + 10 * 5)
    assert math.isnan(run_seconds(tmp_path / "missing.jsonl"))
    for odd in ('{"step": 1, "seconds": 1%s}' % ("0" * 400), '{"step": 1e999, "seconds": 1}', "[" * 100_000):
        events.write_text(odd)
        assert math.isnan(run_seconds(events))
    events.write_text('{"step": 1}\n')
    assert math.isnan(run_seconds(events))


def write(path: Path, splats: Splats = CUBE) -> Path:
    formats.write(path, splats)
    return path


def test_find_assets_takes_each_asset_once(tmp_path: Path) -> None:
    ply, spz = write(tmp_path / "a.ply"), write(tmp_path / "a.spz")
    other = write(tmp_path / "b.compressed.ply")
    (tmp_path / "notes.txt").write_text("no asset")
    (tmp_path / "page.html").write_text("not readable")
    found, notes = find_assets([tmp_path, ply])
    assert found == [ply, other]
    assert notes == [f"{spz} is left out, because a.ply is beside it", f"{ply} is named twice and counts once"]
    assert [stem_of(path) for path in found] == ["a", "b"]


def test_find_assets_refuses_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="holds no asset"):
        find_assets([tmp_path])


def test_list_assets_gives_unique_names_and_reads_prompts(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.ply", replace(CUBE, provenance={"prompt": f" a {folder} "}))
    entries = list_assets([tmp_path / "a" / "x.ply", tmp_path / "b" / "x.ply"], fit=None)
    assert [entry.prompt for entry in entries] == ["a a", "a b"]
    assert [entry.name for entry in entries] == [str(tmp_path / "a" / "x.ply"), str(tmp_path / "b" / "x.ply")]


@torch.no_grad()
def test_list_assets_fits_what_the_views_cut_off(tmp_path: Path) -> None:
    """A cube of twenty times the size, off the origin, looks like the cube once it is moved."""
    large = replace(CUBE, means=20 * CUBE.means + np.float32([30, 0, 0]), log_scales=CUBE.log_scales + math.log(20.0))
    path = write(tmp_path / "large.ply", large)
    (entry,) = list_assets([path], fit=None)
    assert entry.fitted
    means = entry.read(CPU).gaussians.means
    torch.testing.assert_close(means.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    reach = float(means.norm(dim=1).max()) + 2 * float(entry.read(CPU).gaussians.scales.max())
    assert reach == pytest.approx(0.95, abs=0.02)
    assert not list_assets([path], fit=False)[0].fitted
    assert entry.read(CPU).splats.means.max() > 10


@pytest.mark.parametrize(
    ("scale", "shift", "fitted"),
    [(0.9, 0.0, False), (1.1, 0.0, True), (0.5, 0.4, False), (0.5, 0.5, True), (0.3, 0.0, True)],
)
def test_list_assets_fits_by_the_sphere_that_the_views_show(
    tmp_path: Path, scale: float, shift: float, fitted: bool
) -> None:
    """The cube's corners and two standard deviations reach to a radius of 1.026 of its own."""
    splats = replace(
        CUBE, means=scale * CUBE.means + np.float32([0, shift, 0]), log_scales=CUBE.log_scales + math.log(scale)
    )
    assert list_assets([write(tmp_path / "a.ply", splats)], fit=None)[0].fitted == fitted


@torch.no_grad()
def test_a_fitted_asset_fills_the_views(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ply", replace(CUBE, means=3 * CUBE.means, log_scales=CUBE.log_scales + math.log(3)))
    (entry,) = list_assets([path], fit=None)
    images = torch.cat([views.images for views in ViewProtocol(n=12, size=128).render(entry.read(CPU).gaussians)])
    assert int(images[..., [0, -1], :].min()) > 200
    assert int(images[..., [0, -1]].min()) > 200
    assert int(images[..., 30, :].min()) < 200


class MeanMetric:
    """The mean brightness of the views, and its spread over all of them."""

    figures = {"mean": Figure("mean")}  # noqa: RUF012
    set_figures = {"spread": Figure("spread")}  # noqa: RUF012
    reads_views = True

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def observe(self, asset: Asset, views: Views) -> np.ndarray:
        self.sizes.append(len(views.images))
        return views.images.float().mean((1, 2, 3))[:, None].numpy()

    def measure(self, asset: Asset, observed: np.ndarray) -> dict[str, float]:
        return {"mean": float(observed.mean())}

    def summarize(self, observed: list[np.ndarray]) -> dict[str, float]:
        return {"spread": float(np.concatenate(observed).std())}


def test_choose_metrics_hints_at_the_list_with_the_nearest_name() -> None:
    for text, hint in (("helth,cost", "health,cost"), ("cost,zzzz", "cost,judge"), ("clip,clp", "clip")):
        with pytest.raises(UsageProblem) as caught:
            choose_metrics(text)
        assert caught.value.hint == f"--metrics {hint}"


def test_evaluation_passes_every_view_once_and_summarizes_all(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.ply"), write(tmp_path / "two.ply", balls((0, 0, 0), radius=0.25))
    metric = MeanMetric()
    evaluation = Evaluation({"brightness": metric}, ViewProtocol(n=10, size=64), CPU, n_pictures=4)
    entries = list_assets([one, two], fit=False)
    rows = [evaluation.measure(entry) for entry in entries]
    assert metric.sizes == [8, 2, 8, 2]
    every = []
    for entry, row in zip(entries, rows, strict=True):
        images = torch.cat([views.images for views in evaluation.protocol.render(entry.read(CPU).gaussians)]).float()
        assert row.values["brightness.mean"] == pytest.approx(float(images.mean((1, 2, 3)).mean()), rel=1e-5)
        every.append(images.mean((1, 2, 3)))
        assert [picture.shape for picture in row.pictures] == [(256, 256, 3)] * 4
    assert evaluation.summarize()["brightness.spread"] == pytest.approx(float(torch.cat(every).std(correction=0)))
    estimates = evaluation.estimates(0)
    assert estimates["brightness.mean"].mean == pytest.approx(np.mean([row.values["brightness.mean"] for row in rows]))


def test_evaluation_renders_no_view_that_no_metric_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(ViewProtocol, "render", refuse)
    metric = METRICS["health"].load(Setup(device=CPU))
    evaluation = Evaluation({"health": metric}, ViewProtocol(), CPU)
    row = evaluation.measure(list_assets([write(tmp_path / "one.ply")], fit=False)[0])
    assert row.values["health.gaussians"] == 8
    assert row.values["health.file_bytes"] == (tmp_path / "one.ply").stat().st_size


def test_evaluation_names_the_asset_whose_metrics_do_not_fit_the_memory(tmp_path: Path) -> None:
    class Greedy(MeanMetric):
        def observe(self, asset: Asset, views: Views) -> np.ndarray:
            raise MemoryError

    evaluation = Evaluation({"greedy": Greedy()}, ViewProtocol(n=2, size=64), CPU)
    (entry,) = list_assets([write(tmp_path / "one.ply")], fit=False)
    with pytest.raises(OutOfMemory, match=r"the metrics of .*one\.ply") as problem:
        evaluation.measure(entry)
    assert problem.value.hint == "--device cpu"
    assert evaluation.rows == []


def test_every_metric_is_described_and_can_be_loaded_by_its_module() -> None:
    for entry in metrics.METRICS.values():
        assert (Path(metrics.__file__).parent / f"{entry.module}.py").is_file()
        assert len(entry.description) < 90
