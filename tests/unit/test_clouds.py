"""Clouds of Point-E: sampled once, cached, replaced if the file is damaged; and the Gaussians about their points."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segdream_cli.config import InitConfig
from segdream_cli.errors import WeightsUnavailable
from segdream_cli.optimize.start import _spanning_tree, fill_gaps, initial_gaussians, scatter_around
from segdream_cli.pointe import clouds as module
from segdream_cli.pointe.clouds import Clouds
from segdream_cli.pointe.model import PointCloud, PointE
from segdream_cli.pointe.schedule import Sampling
from segdream_cli.pointe.transformer import PointTransformer, PointTransformerConfig
from segdream_cli.splats.gaussians import SH_C0

CONFIG = PointTransformerConfig(
    points=16, width=16, layers=1, heads=2, text_width=8, sampling=Sampling(steps=2, sigma_max=2.0)
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(said: list[str], loads: list[int], digest: str = "digest", dtype: torch.dtype = torch.float32) -> Clouds:
    def load():
        loads.append(1)
        torch.manual_seed(0)
        network = PointTransformer(CONFIG).eval().requires_grad_(False)
        torch.nn.init.normal_(network.output_proj.weight, std=0.1)
        generator = torch.Generator().manual_seed(1)
        words = {text: torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0) for text in ("a", "b")}
        return PointE(network), words.__getitem__

    return Clouds(digest, torch.device("cpu"), dtype, load, announce=said.append)


def test_clouds_sample_once_and_cache(cache: Path) -> None:
    said: list[str] = []
    loads: list[int] = []
    first = build(said, loads)("a", 0)
    assert first.points.shape == first.colors.shape == (16, 3)
    assert loads == [1]
    assert said == []
    clouds = build(said, loads)
    again = clouds("a", 0)
    clouds("a", 0)
    assert loads == [1]
    assert said == [f"Point-E's cloud comes from the cache: {cache / 'clouds'}"]  # once
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.colors, again.colors)


def test_clouds_depend_on_text_seed_weights_and_dtype(cache: Path) -> None:
    loads: list[int] = []
    clouds = build([], loads)
    made = [clouds("a", 0), clouds("b", 0), clouds("a", 1)]
    assert loads == [1]
    assert not torch.equal(made[0].points, made[1].points)
    assert not torch.equal(made[0].points, made[2].points)
    build([], loads, digest="other")("a", 0)
    build([], loads, dtype=torch.bfloat16)("a", 0)
    assert loads == [1, 1, 1]
    assert len(list((cache / "clouds").iterdir())) == 5


def test_clouds_replace_damaged_files_and_work_without_a_cache(cache: Path) -> None:
    loads: list[int] = []
    cloud = build([], loads)("a", 0)
    (kept,) = (cache / "clouds").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert torch.equal(build([], loads)("a", 0).points, cloud.points)
    assert loads == [1, 1]
    content = bytearray(kept.read_bytes())
    content[-9] ^= 4
    kept.write_bytes(content)
    assert torch.equal(build([], loads)("a", 0).points, cloud.points)
    assert loads == [1, 1, 1]
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    assert torch.equal(build([], loads)("a", 0).points, cloud.points)


def test_clouds_load_networks_again_after_release(cache: Path) -> None:
    loads: list[int] = []
    clouds = build([], loads)
    clouds.release()
    first = clouds("a", 0)
    clouds.release()
    clouds("a", 0)
    assert loads == [1]
    (kept,) = (cache / "clouds").iterdir()
    kept.unlink()
    assert torch.equal(clouds("a", 0).points, first.points)
    assert loads == [1, 1]


def test_clouds_announce_a_long_wait(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "_time_calls", lambda point_e: [610.0] * 3)
    build(said, [])("a", 0)
    assert said == ["Point-E takes about 30 min on this processor, 3 calls of its networks"]


def test_time_calls_measures_one_call_of_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoStages(PointE):
        evaluations = (3, 2)

        def evaluate(self, stage: int) -> None:
            clock[0] += (2.0, 5.0)[stage]

    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    assert module._time_calls(TwoStages(PointTransformer(CONFIG))) == [2.0, 2.0, 2.0, 5.0, 5.0]


def test_clouds_announce_the_time_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left follows from the pace so far: here each call takes twice its estimate."""
    said: list[str] = []
    clouds = build(said, [])
    clock = [0.0]
    monkeypatch.setattr(module, "_time_calls", lambda point_e: [10.0, 10.0, 40.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    tell = clouds._forecast(PointE(PointTransformer(CONFIG)))
    assert tell is not None
    for done, now in ((1, 20.0), (2, 40.0), (3, 120.0), (4, 200.0)):
        clock[0] = now
        tell(done, 4)
    assert said[1:] == ["Point-E: 2 of 4 calls, about 3 min left", "Point-E: 3 of 4 calls, about 80 s left"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clouds_refuse_non_finite_points(dtype: torch.dtype, cache: Path) -> None:
    clouds = build([], [], dtype=dtype)
    point_e, _ = clouds._networks
    point_e.stages[0].output_proj.bias[0] = math.nan
    with pytest.raises(WeightsUnavailable, match="cloud of 'a' is not finite") as caught:
        clouds("a", 0)
    half = dtype == torch.float16  # only then are larger numbers to be had
    assert ("prior.dtype=fp32" in str(caught.value.hint)) == ("too large" in caught.value.message) == half
    assert not (cache / "clouds").exists()


def cloud_of(n: int) -> PointCloud:
    generator = torch.Generator().manual_seed(2)
    return PointCloud(torch.rand(n, 3, generator=generator) - 0.5, torch.rand(n, 3, generator=generator))


def test_about_points_repeats_the_offsets_at_each_point() -> None:
    cloud = cloud_of(50)
    config = InitConfig(copies=20, spread=0.05, scale=2.0, lift=0.15)
    means, colors = scatter_around(cloud, config, torch.Generator().manual_seed(0))
    assert colors is None
    offsets = means.reshape(50, 20, 3) - (2 * cloud.points + torch.tensor([0, 0.15, 0]))[:, None]
    torch.testing.assert_close(offsets, offsets[:1].expand(50, -1, -1), atol=1e-6, rtol=0)
    assert offsets.norm(dim=-1).max() <= 0.05 + 1e-6


def test_about_points_offsets_have_uniform_radius_and_angles() -> None:
    config = InitConfig(copies=20_000, spread=1.0, scale=1.0, lift=0.0)
    cloud = PointCloud(torch.zeros(1, 3), torch.zeros(1, 3))
    means, _ = scatter_around(cloud, config, torch.Generator().manual_seed(0))
    radius = means.norm(dim=-1)
    polar = (means[:, 1] / radius).acos()
    azimuth = torch.atan2(means[:, 2], means[:, 0]).remainder(2 * math.pi)
    for values, top in ((radius, 1.0), (polar, math.pi), (azimuth, 2 * math.pi)):
        counts = torch.histc(values, 10, 0, top) / len(values)
        torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.01, rtol=0)


def tree_edges(points: torch.Tensor) -> torch.Tensor:
    """Lengths of the edges of the Euclidean minimum spanning tree, by Prim's algorithm."""
    distance = torch.cdist(points.double(), points.double())
    nearest, left, edges = distance[0].clone(), torch.ones(len(points), dtype=torch.bool), []
    left[0] = False
    for _ in range(len(points) - 1):
        chosen = int(nearest.masked_fill(~left, math.inf).argmin())
        edges.append(float(nearest[chosen]))
        left[chosen] = False
        nearest = torch.minimum(nearest, distance[chosen])
    return torch.tensor(edges, dtype=torch.float64)


def sphere(n: int, radius: float = 0.3) -> torch.Tensor:
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(4))
    return radius * torch.nn.functional.normalize(points, dim=1)


def grid(n: int) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*3 * [torch.arange(float(n))], indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize(
    "points",
    [cloud_of(80).points, cloud_of(60).points * torch.tensor([1, 1, 0]), grid(4), cloud_of(40).points.repeat(2, 1)],
    ids=["random", "coplanar", "grid", "each twice"],
)
def test_spanning_tree_has_the_edges_of_prims_algorithm(points: torch.Tensor) -> None:
    parent, edge = _spanning_tree(points.double().numpy())
    assert (parent == np.arange(len(points))).sum() == 1
    root = int((parent == np.arange(len(points))).argmax())
    torch.testing.assert_close(torch.from_numpy(np.delete(edge, root)).sort()[0], tree_edges(points).sort()[0])


@pytest.mark.parametrize("first", [False, True])
def test_fill_gaps_joins_separate_parts(*, first: bool) -> None:
    """Two balls of points with a lone point between them, as the shade, foot and post of a lamp."""
    balls, post = [sphere(120), sphere(100) + torch.tensor([0, 1.2, 0])], [torch.tensor([[0.0, 0.6, 0]])]
    points = torch.cat([*post, *balls] if first else [*balls, *post])
    colors = points[:, 1:2].expand(-1, 3) / 1.5
    typical = tree_edges(points).median()
    assert tree_edges(points).max() > 3 * typical
    filled, shades = (each.double() for each in fill_gaps(points, colors, 2.5))
    points = points.double()
    assert filled.shape == shades.shape == points.shape
    assert tree_edges(filled).max() <= 2.5 * typical
    assert torch.cdist(post[0].double(), filled).min() < 1e-6
    new = torch.cdist(filled, points).amin(1) > 1e-6
    assert 4 <= new.sum() <= 20
    assert ((filled[new, 1] > 0.3) & (filled[new, 1] < 0.9)).sum() >= 8
    torch.testing.assert_close(shades[new], filled[new, 1:2].expand(-1, 3) / 1.5, atol=1e-6, rtol=0)
    lost = torch.cdist(points, filled).amin(1) > 1e-6
    assert lost.sum() == new.sum()
    neighbour = torch.cdist(points, points).fill_diagonal_(math.inf).amin(1)
    assert neighbour[lost].max() < neighbour.median()


def test_fill_gaps_fills_a_long_gap_first() -> None:
    points = torch.cat([sphere(250), sphere(250) + torch.tensor([3.0, 0, 0])])
    typical = tree_edges(points).median()
    filled, _ = fill_gaps(points, points, 2.0)
    assert tree_edges(filled).max() <= 2.5 * typical


def test_fill_gaps_leaves_clouds_without_gaps_alone() -> None:
    jitter = 0.1 * torch.rand(125, 3, generator=torch.Generator().manual_seed(6))
    even = grid(5) + jitter
    assert tree_edges(even).max() < 2.5 * tree_edges(even).median()
    for points in (even, torch.zeros(9, 3), even[:3], even[:2], even[:1]):
        filled, colors = fill_gaps(points, points, 2.5)
        assert torch.equal(filled, points)
        assert torch.equal(colors, points)


@pytest.mark.parametrize("longest", [0.5, 1.2, 2.5])
def test_fill_gaps_adds_at_most_a_quarter(longest: float) -> None:
    points = cloud_of(100).points
    points[50:] += 1e4
    filled, _ = fill_gaps(points, points, longest)
    assert len(filled) == 100
    assert 20 <= (torch.cdist(filled, points).amin(1) > 1).sum() <= 25
    near = fill_gaps(points[:50], points[:50], longest)[0].double()
    added = (torch.cdist(near, points[:50].double()).amin(1) > 1e-6).sum()
    assert added <= 12
    assert added > 0 or longest > 2


def test_clouds_are_filled_as_the_setting_says() -> None:
    points = torch.cat([sphere(60), sphere(60) + torch.tensor([0, 1.2, 0])])
    cloud = PointCloud(points, points)
    for gap in (0.0, 2.5):
        config = InitConfig(copies=1, spread=0.0, lift=0.0, fill_gaps=gap)
        means, _ = scatter_around(cloud, config, torch.Generator().manual_seed(0))
        expected = fill_gaps(points, points, gap)[0] if gap else points
        torch.testing.assert_close(means, expected)


def test_initial_gaussians_from_a_cloud_follow_the_settings() -> None:
    cloud = cloud_of(40)
    config = InitConfig(copies=3, points=10, color="points", opacity=0.1, spread=0.0, lift=0.0)
    gaussians = initial_gaussians(config, torch.Generator().manual_seed(0), lambda: cloud)
    assert len(gaussians) == 30
    nearest = torch.cdist(gaussians.means.detach(), cloud.points).argmin(1)
    assert len(nearest.unique()) == 10
    torch.testing.assert_close(0.5 + SH_C0 * gaussians.params["sh0"].detach(), cloud.colors[nearest])
    torch.testing.assert_close(gaussians.opacities.detach(), torch.full((30,), 0.1))
    gray = initial_gaussians(InitConfig(copies=2), torch.Generator(), lambda: cloud)
    assert len(gray) == 80
    torch.testing.assert_close(0.5 + SH_C0 * gray.params["sh0"].detach(), torch.full((80, 3), 0.498))


def test_initial_gaussians_need_the_cloud_of_point_e() -> None:
    with pytest.raises(ValueError, match="cloud"):
        initial_gaussians(InitConfig(), torch.Generator())
