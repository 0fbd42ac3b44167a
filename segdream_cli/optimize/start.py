"""The initial Gaussians of a run: around the points of Point-E, in a ball or a box, or from a file.

A new geometric start is a function like `_ball` and `_box`, a row of `SHAPES`, and a name in `config/start.py`.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import Delaunay, KDTree, QhullError
from torch import Tensor

from segdream_cli import formats
from segdream_cli.config import InitConfig
from segdream_cli.config.start import POINT_E, check_start
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import points
from segdream_cli.formats.common import Reading
from segdream_cli.pointe.model import PointCloud
from segdream_cli.priors.profile import Vocabulary
from segdream_cli.priors.prompt import clean_prompt
from segdream_cli.splats import SH_C0
from segdream_cli.splats.gaussians import Gaussians


def cloud_text(config: InitConfig, prompt: str | None, vocabulary: Vocabulary | None) -> str | None:
    """The text for Point-E: the prompt of the start, else that of the run, as the prior reads it.

    Returns None unless starting from Point-E, or if neither text is set.

    Raises:
        UsageProblem: the text can't be used.
    """
    text = prompt if config.prompt is None else config.prompt
    return None if config.shape != POINT_E or text is None else clean_prompt(text, vocabulary)


def bind_cloud(
    clouds: Callable[[str, int], PointCloud] | None, text: str | None, seed: int
) -> Callable[[], PointCloud] | None:
    """A function without arguments that makes Point-E's cloud of a text; None without Point-E or a text."""
    return None if clouds is None or text is None else partial(clouds, text, seed)


def initial_gaussians(
    config: InitConfig,
    generator: torch.Generator,
    cloud: Callable[[], PointCloud] | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> Gaussians:
    """The Gaussians before the first step.

    An asset is used unchanged. A PLY of points becomes round Gaussians in the colours of the points.

    Args:
        config: settings of the start.
        generator: source of all random numbers except Point-E's noise.
        cloud: returns Point-E's cloud, for a start from Point-E.
        note: receives what the reader of a file changes, such as rows that it drops.

    Raises:
        UsageProblem: an unknown shape, or a file that can't be used.
    """
    check_start(config.shape)
    if config.shape == POINT_E:
        if cloud is None:
            raise ValueError("a start from Point-E needs its cloud")
        means, rgb = scatter_around(cloud(), config, generator)
    elif config.shape in SHAPES:
        means, rgb = SHAPES[config.shape](config, generator), None
    else:
        path = Path(config.shape)
        reading = Reading(strict=config.strict, as_splats=config.as_splats, frame=config.frame, note=note)
        cloudy = formats.kind_of(path) == "points"
        if config.as_splats and not cloudy:
            note(f"init.as_splats has no effect: {path} is not a plain point cloud")
        if config.as_splats or not cloudy:
            return Gaussians.from_splats(formats.read(path, reading))
        xyz, found = points.read_points(path, reading)
        means, rgb = torch.from_numpy(xyz), None if found is None else torch.from_numpy(found)
    colors = torch.full_like(means, config.gray) if rgb is None else rgb
    return round_gaussians(means, colors, config, generator)


def scatter_around(
    cloud: PointCloud, config: InitConfig, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"] | None]:
    """`copies` positions around each point of a cloud, at the same offsets, and their colours unless they are grey.

    Most positions are near their point (release).

    Raises:
        UsageProblem: the cloud has fewer points than the settings ask for.
    """
    points, colors = config.scale * cloud.points, cloud.colors
    points[:, 1] += config.lift
    if config.points is not None and config.points > len(points):
        raise UsageProblem(
            f"init.points can't be {config.points:,}: this Point-E makes {len(points):,} points",
            hint=f"--init-points {len(points)}",
        )
    if config.points is not None:
        kept = torch.randperm(len(points), generator=generator)[: config.points]
        points, colors = points[kept], colors[kept]
    if config.fill_gaps:
        points, colors = fill_gaps(points, colors, config.fill_gaps)
    means = (points[:, None] + _draw_polar(config.copies, config.spread, generator)).flatten(0, 1)
    return means, colors.repeat_interleave(config.copies, 0) if config.color == "points" else None


def fill_gaps(
    points: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"], longest: float
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """A cloud's points and colours with its gaps filled, and as many points fewer where it is densest.

    A gap is an edge of the Euclidean minimum spanning tree longer than `longest` times the median edge: it joins parts
    that are separate or have few points. It gets a point per median edge, in colours between those of its ends. The
    longest gaps come first, until a quarter of the points is used.
    """
    parent, edge = _spanning_tree(points.double().numpy())
    ratio = edge / max(np.median(edge), np.finfo(float).tiny)
    gaps = np.flatnonzero(ratio > longest)
    gaps = gaps[np.argsort(-ratio[gaps], kind="stable")]
    wanted = np.ceil(ratio[gaps]).clip(1, len(points)).astype(int) - 1
    added = np.diff(np.minimum(wanted.cumsum(), len(points) // 4), prepend=0)
    child = np.repeat(gaps, added)
    weight = torch.from_numpy(np.concatenate([np.zeros(0), *(np.arange(1, n + 1) / (n + 1) for n in added)]))
    root = parent == np.arange(len(points))  # its edge of 0 says nothing about the density
    kept = np.sort(np.argsort(np.where(root, np.inf, edge), kind="stable")[len(child) :])

    def fill(values: Tensor) -> Tensor:
        return torch.cat([values[kept], values[child].lerp(values[parent[child]], weight[:, None].to(values.dtype))])

    return fill(points), fill(colors)


def _spanning_tree(xyz: Float[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Parent of each point in the Euclidean minimum spanning tree, and the distance to it; the root is its own."""
    n = len(xyz)
    try:
        simplices = Delaunay(xyz, qhull_options="QJ").simplices
    except (QhullError, ValueError):  # fewer than five points, all in one place, or over too many magnitudes: no gaps
        return np.arange(n), np.zeros(n)
    pairs = np.sort(simplices[:, np.triu_indices(4, 1)].swapaxes(1, 2).reshape(-1, 2), 1)
    ends = np.divmod(np.unique(pairs @ [n, 1]), n)  # edges of the triangulation, the tree's among them
    lengths = np.linalg.norm(xyz[ends[0]] - xyz[ends[1]], axis=1).clip(np.finfo(float).tiny)  # 0 would be no edge
    graph = lengths, tuple(each.astype(np.int32) for each in ends)  # SciPy 1.15 takes no other integers
    _, parent = breadth_first_order(minimum_spanning_tree(coo_array(graph, shape=(n, n))), 0, directed=False)
    parent = np.where(parent < 0, np.arange(n), parent)
    return parent, np.linalg.norm(xyz - xyz[parent], axis=1)


def round_gaussians(
    means: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"], config: InitConfig, generator: torch.Generator
) -> Gaussians:
    """One round Gaussian per point; its scale is the root mean square distance to the three nearest neighbours."""
    n = len(means)
    k = {0: 0, 1: 3, 2: 8, 3: 15}[config.sh_degree]
    noise = config.color_noise * torch.randn(n, 3, generator=generator)
    return Gaussians(
        {
            "means": means,
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": neighbour_distance(means).log()[:, None].repeat(1, 3),
            "opacity_logits": torch.full((n,), config.opacity).logit(),
            "sh0": (colors + noise - 0.5) / SH_C0,
            "shN": torch.zeros(n, k, 3),
        }
    )


def neighbour_distance(means: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Root mean square distance of each point to its three nearest neighbours, at least 3e-4 (release)."""
    near = min(4, len(means))
    distance, _ = KDTree(means.numpy()).query(means.numpy(), k=range(1, near + 1), workers=-1)
    squares = torch.from_numpy(distance[:, 1:]).square().mean(1) if near > 1 else torch.full((len(means),), 0.01)
    return squares.clamp_min(1e-7).sqrt().float()


def _ball(config: InitConfig, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Points spread evenly over a ball."""
    direction = torch.nn.functional.normalize(torch.randn(config.count, 3, generator=generator), dim=-1)
    return config.radius * direction * torch.rand(config.count, 1, generator=generator) ** (1 / 3)


def _polar_ball(config: InitConfig, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Points in a ball, denser towards its centre and its vertical axis (release)."""
    return _draw_polar(config.count, config.radius, generator)


def _draw_polar(n: int, radius: float, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Points within `radius` whose distance, polar angle and azimuth are each uniform."""
    distance, polar, azimuth = torch.rand(3, n, generator=generator)
    distance, polar, azimuth = radius * distance, math.pi * polar, 2 * math.pi * azimuth
    flat = distance * polar.sin()
    return torch.stack([flat * azimuth.cos(), distance * polar.cos(), flat * azimuth.sin()], -1)


def _box(config: InitConfig, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Points spread evenly over a cube."""
    return config.radius * (2 * torch.rand(config.count, 3, generator=generator) - 1)


SHAPES = {"sphere": _ball, "box": _box, "polar-sphere": _polar_ball}
