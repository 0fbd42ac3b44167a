"""The numba rasteriser against the float64 reference, at its edges, and what is derived from its images.

Tolerances: images to 2e-5 of their largest value, gradients to 2e-4 in relative L2 norm over a tensor (about ten
times what was measured). The reference decides the 1/255 and 1e-4 thresholds in float64, so a scene in which a
pixel lies within float32 rounding of one could differ by a step; the fixed seeds hold none.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import raster_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segdream_cli.render.raster import Rendering, normals_from_depth, rasterize

PICTURES = ("rgb", "alpha", "depth")
SCENES = {
    "translucent": reference.scene(200, views=3, size=40, opacity=0.15),
    "opaque": reference.scene(300, views=1, size=40, opacity=0.95, scale=0.15, seed=1),
    "inside": reference.scene(150, views=2, size=33, distance=0.3, seed=2),
    "view colours": reference.scene(120, views=2, size=21, per_view_colors=True, seed=3),
    "capped": reference.scene(60, views=2, size=40, opacity=0.3, scale=1.0, seed=5),
    "needles": reference.scene(80, views=2, size=40, scale=0.05, seed=4),
    "sheared": reference.scene(120, views=2, size=40, seed=6),
}
SCENES["needles"].scales[:, 0] = 1.5
SCENES["capped"].opacities[::2] = 1
SCENES["sheared"].viewmats[:, :3] += (
    torch.tensor([[0, 0.2, 0], [0, 0, 0], [0, 0.1, 0]]) @ SCENES["sheared"].viewmats[:, :3]
)


def rendered(scene: reference.Scene) -> Rendering:
    return rasterize(*scene)


def with_gradients(scene: reference.Scene) -> tuple[Rendering, list[Tensor]]:
    """The rendering of a scene, and the gradient of the reference loss by each parameter and `means2d`."""
    parameters = [tensor.clone().requires_grad_() for tensor in scene.parameters]
    view = rasterize(*parameters, *scene[len(parameters) :])
    weights = reference.loss_weights(scene)
    sum((getattr(view, name) * weights[name]).sum() for name in PICTURES).backward()
    return view, [*(parameter.grad for parameter in parameters), view.means2d.grad]


def exact_with_gradients(scene: reference.Scene) -> tuple[reference.Reference, tuple[Tensor, ...]]:
    parameters = [tensor.double().requires_grad_() for tensor in scene.parameters]
    view = reference.render(*parameters, scene.viewmats.double(), scene.Ks.double(), scene.width, scene.height)
    weights = reference.loss_weights(scene)
    loss = sum((getattr(view, name) * weights[name]).sum() for name in PICTURES)
    return view, torch.autograd.grad(loss, [*parameters, view.means2d])


@pytest.mark.parametrize("name", SCENES)
def test_rasterize_matches_the_float64_reference(name: str) -> None:
    view, gradients = with_gradients(SCENES[name])
    exact, exact_gradients = exact_with_gradients(SCENES[name])
    for image in PICTURES:
        found, expected = getattr(view, image), getattr(exact, image)
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 2e-5 * expected.abs().max(), image
    for parameter, found, expected in zip((*reference.NAMES, "means2d"), gradients, exact_gradients, strict=True):
        assert (found - expected).norm() < 2e-4 * expected.norm(), parameter


def test_rasterize_gradients_match_finite_differences() -> None:
    # Gaussians that fill the image: none has a rim inside it, where alpha would jump at 1/255
    scene = reference.scene(6, views=2, size=10, scale=2.0, opacity=0.3, seed=5)
    _, gradients = with_gradients(scene)
    weights = reference.loss_weights(scene)

    def loss(index: int, offset: Tensor) -> float:
        moved = [tensor + offset if i == index else tensor for i, tensor in enumerate(scene.parameters)]
        view = rasterize(*moved, *scene[len(moved) :])
        return sum((getattr(view, name).double() * weights[name]).sum().item() for name in PICTURES)

    generator = torch.Generator().manual_seed(6)
    for index, parameter in enumerate(scene.parameters):
        direction = torch.randn(parameter.shape, generator=generator)
        step = 1e-2 * direction / direction.norm()
        difference = loss(index, step) - loss(index, -step)
        expected = 2 * (gradients[index] * step).sum().item()
        assert difference == pytest.approx(expected, rel=5e-3, abs=1e-5), reference.NAMES[index]


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 30),
    size=st.integers(4, 25),
    opacity=st.floats(0.02, 0.98),
    scale=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31),
)
def test_rasterize_bounds_alpha_and_depth(count: int, size: int, opacity: float, scale: float, seed: int) -> None:
    scene = reference.scene(count, views=2, size=size, opacity=opacity, scale=scale, seed=seed)
    view = rendered(scene)
    z = (scene.means @ scene.viewmats[:, 2, :3].T + scene.viewmats[:, 2, 3]).T  # c n
    seen = view.alpha > 0
    assert view.alpha.min() >= 0
    assert view.alpha.max() <= 1 - 1e-4 + 1e-6
    expected = view.expected_depth()
    nearest = z.amin(1)[:, None, None, None].expand_as(expected)[seen]
    farthest = z.amax(1)[:, None, None, None].expand_as(expected)[seen]
    assert (expected[seen] >= nearest * (1 - 1e-5)).all()
    assert (expected[seen] <= farthest * (1 + 1e-5)).all()
    assert not expected[~seen].any()


def test_rasterize_one_gaussian_in_closed_form() -> None:
    means, identity = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    K = torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]])
    opacity, color = torch.tensor([0.7]), torch.tensor([[2.0, -1.0, 0.5]])
    view = rasterize(means, identity, torch.full((1, 3), 0.1), opacity, color, torch.eye(4)[None], K, 17, 17)
    variance = (20.0 / 2.0 * 0.1) ** 2 + 0.3
    for dx, dy in ((0, 0), (1, 0), (2, -1), (0, 3)):
        expected = 0.7 * math.exp(-(dx * dx + dy * dy) / (2 * variance))
        pixel = 0, 8 + dy, 8 + dx
        assert view.alpha[pixel].item() == pytest.approx(expected, rel=1e-5)
        assert view.depth[pixel].item() == pytest.approx(2 * expected, rel=1e-5)
        torch.testing.assert_close(view.rgb[pixel], expected * color[0])
    assert view.radii.item() == math.ceil(math.sqrt(2 * math.log(0.7 * 255) * variance))
    torch.testing.assert_close(view.means2d, torch.tensor([[[8.5, 8.5]]]))


def test_rasterize_nearer_gaussian_hides_the_other() -> None:
    means = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]])
    front, back = torch.eye(4), torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    front[2, 3] = back[2, 3] = 3.0
    K = torch.tensor([[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]).repeat(2, 1, 1)
    view = rasterize(
        means,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2),
        torch.full((2, 3), 0.4),
        torch.ones(2),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        torch.stack([front, back]),
        K,
        16,
        16,
    )
    centre = view.rgb[:, 8, 8]
    assert centre[0, 1] > 0.95 > 0.05 > centre[0, 0]  # +Z is farther along the first camera's axis
    assert centre[1, 0] > 0.95 > 0.05 > centre[1, 1]


def edge_case(name: str) -> reference.Scene:
    scene = reference.scene(40, views=2, size=19, seed=7)
    match name:
        case "none":
            return scene._replace(**{key: getattr(scene, key)[:0] for key in reference.NAMES})
        case "behind":
            backwards = scene.viewmats.clone()
            backwards[:, 2, 3] -= 9
            return scene._replace(viewmats=backwards)
        case "opacity 1":
            return scene._replace(opacities=torch.ones(40), scales=scene.scales * 5)
        case "opacity below 1/255":
            return scene._replace(opacities=torch.full((40,), 0.0039))
        case "huge":
            return scene._replace(scales=scene.scales * 1e6)
        case "tiny":
            return scene._replace(scales=scene.scales * 1e-9)
        case "flat":
            return scene._replace(scales=scene.scales * torch.tensor([1.0, 1.0, 0.0]))
        case "zero quaternion":
            return scene._replace(quats=scene.quats * (torch.arange(40) % 2)[:, None])
        case "not a number":
            return scene._replace(means=scene.means.clone().index_fill_(0, torch.tensor([3]), math.nan))
        case "one pixel":
            return scene._replace(width=1, height=1, Ks=scene.Ks / torch.tensor([20.0, 20.0, 1.0])[:, None])
        case _:
            return scene._replace(viewmats=reference.orbit(2, 0.05))


@pytest.mark.parametrize(
    "name",
    ["none", "behind", "opacity 1", "opacity below 1/255", "huge", "tiny", "flat", "zero quaternion", "not a number",
     "one pixel", "camera inside"],
)  # fmt: skip
def test_rasterize_edge_cases_are_finite(name: str) -> None:
    view, gradients = with_gradients(edge_case(name))
    for image in PICTURES:
        assert getattr(view, image).isfinite().all(), image
    for gradient in gradients:
        assert gradient.isfinite().all()
    assert view.alpha.any().item() == (name not in ("none", "behind", "opacity below 1/255"))


def test_rasterize_zero_quaternion_is_no_rotation() -> None:
    scene = edge_case("zero quaternion")
    identity = scene.quats.clone()
    identity[::2, 0] = 1
    assert torch.equal(rendered(scene).rgb, rendered(scene._replace(quats=identity)).rgb)
    _, gradients = with_gradients(scene)
    assert not gradients[1][::2].any()
    assert gradients[1][1::2].any()


def test_rasterize_ignores_quaternion_norm() -> None:
    scene = SCENES["translucent"]
    torch.testing.assert_close(rendered(scene._replace(quats=scene.quats * 7)).rgb, rendered(scene).rgb)


def test_rasterize_repeats_bits_on_any_thread_count() -> None:
    scene = reference.scene(600, views=3, size=48, seed=8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            view, gradients = with_gradients(scene)
            results.append([view.rgb, view.alpha, view.depth, *gradients])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(found, first) for found, first in zip(result, results[0], strict=True))


def test_rasterize_views_equal_single_calls() -> None:
    scene = SCENES["translucent"]
    together = rendered(scene)
    for v in range(3):
        alone = rendered(scene._replace(viewmats=scene.viewmats[v : v + 1], Ks=scene.Ks[v : v + 1]))
        assert torch.equal(together.rgb[v], alone.rgb[0])
        assert torch.equal(together.radii[v], alone.radii[0])


def test_rasterize_radii_bound_the_footprint() -> None:
    scene = reference.scene(25, views=1, size=40, scale=0.05, seed=9)
    view = rendered(scene)
    columns, rows = torch.arange(scene.width) + 0.5, torch.arange(scene.height) + 0.5
    for i in range(25):
        alone = rendered(scene._replace(**{key: getattr(scene, key)[i : i + 1] for key in reference.NAMES}))
        x, y = view.means2d[0, i].tolist()
        box = ((rows - y).abs() <= view.radii[0, i])[:, None] & ((columns - x).abs() <= view.radii[0, i])
        assert not alone.alpha[0, ~box].any()
        assert alone.alpha.any() or view.radii[0, i] <= 1


def test_rasterize_without_gradients_retains_nothing() -> None:
    view = rendered(SCENES["opaque"])
    assert not view.means2d.requires_grad
    assert not view.rgb.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1, 3), (2, 5, 6, 3)])
def test_rendering_over_composites(shape: tuple[int, ...]) -> None:
    rgb, alpha, background = torch.rand(2, 5, 6, 3), torch.rand(2, 5, 6, 1), torch.rand(shape)
    view = Rendering(rgb, alpha, alpha, torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.int32))
    found = view.over(background)
    spread = background.expand(2, 5, 6, 3)
    for pixel in ((0, 0, 0), (1, 4, 5), (1, 2, 3)):
        for k in range(3):
            expected = rgb[pixel][k].item() + spread[pixel][k].item() * (1 - alpha[pixel].item())
            assert found[pixel][k].item() == pytest.approx(expected, abs=1e-6)


def test_expected_depth_of_an_empty_pixel() -> None:
    scene = reference.scene(1, views=1, size=30, scale=0.02, seed=10)
    means = scene.means.clone().requires_grad_()
    expected = rendered(scene._replace(means=means)).expected_depth()
    assert (expected == 0).any()
    assert (expected > 0).any()
    expected.sum().backward()
    assert means.grad is not None
    assert means.grad.isfinite().all()


def plane_depth(normal: Tensor, offset: float, scene: reference.Scene) -> Tensor:
    """z of the plane normal . x = offset (world space) through every pixel centre."""
    x = (torch.arange(scene.width) + 0.5 - scene.Ks[0, 0, 2]) / scene.Ks[0, 0, 0]
    y = (torch.arange(scene.height) + 0.5 - scene.Ks[0, 1, 2]) / scene.Ks[0, 1, 1]
    rays = torch.nn.functional.pad(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1), (0, 1), value=1)
    rotation, translation = scene.viewmats[:, :3, :3], scene.viewmats[:, :3, 3]
    in_camera = rotation @ normal  # c 3
    distance = offset + (in_camera * translation).sum(-1)
    return distance[:, None, None, None] / (rays * in_camera[:, None, None]).sum(-1, keepdim=True)


def test_normals_from_depth_of_a_tilted_plane() -> None:
    scene = reference.scene(1, views=3, size=24)
    normal = torch.tensor([0.1, 0.98, 0.05])
    normal = normal / normal.norm()
    normals = normals_from_depth(plane_depth(normal, -2.0, scene), scene.viewmats, scene.Ks)
    inner, depth = normals[:, 1:-1, 1:-1], plane_depth(normal, -2.0, scene)
    seen = (depth[:, 2:, 1:-1] > 0) & (depth[:, :-2, 1:-1] > 0) & (depth[:, 1:-1, 2:] > 0) & (depth[:, 1:-1, :-2] > 0)
    seen &= depth[:, 1:-1, 1:-1] > 0
    assert seen.float().mean() > 0.4
    expected = torch.where(seen, normal, 0)  # the cameras are above the plane; the rest looks past its horizon
    torch.testing.assert_close(inner, expected, atol=1e-3, rtol=0)
    assert not normals[:, 0].any()
    assert not normals[:, :, -1].any()


def test_normals_from_depth_beside_missing_depth() -> None:
    scene = reference.scene(1, views=1, size=12)
    depth = plane_depth(torch.tensor([0.0, 1.0, 0.0]), -0.2, scene)
    depth[0, 4, 5] = 0
    depth.requires_grad_()
    normals = normals_from_depth(depth, scene.viewmats, scene.Ks)
    missing = (normals[0, 1:-1, 1:-1] == 0).all(-1).nonzero() + 1
    assert sorted(map(tuple, missing.tolist())) == [(3, 5), (4, 4), (4, 5), (4, 6), (5, 5)]
    normals[..., 1].sum().backward()
    assert depth.grad is not None
    assert depth.grad.isfinite().all()


@pytest.mark.slow
def test_kernels_compile_without_a_cache_folder(tmp_path: Path) -> None:
    """As in a read-only container: numba finds no place for its cache, the kernels must compile all the same."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, so that no folder can be made below it")
    source = Path(__file__).parents[2] / "segdream_cli" / "render" / "raster" / "kernels.py"
    (tmp_path / "segdream_kernels.py").write_text(source.read_text())
    (tmp_path / "__pycache__").write_text("in the way of numba's folder beside the source")
    environment = os.environ | {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "PYTHONPATH": str(tmp_path)}
    environment |= {"LOCALAPPDATA": str(blocked), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = "import segdream_kernels as k; print(k.project.stats.cache_path, len(k.project.signatures))"
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "1"]


@pytest.mark.parametrize("per_view", [False, True])
def test_rasterize_sets_equal_single_calls(per_view: bool) -> None:
    """Images and gradients, the same to the bit; what fills a set up is not drawn and gets no gradient."""
    scenes = [reference.scene(n, views=2, size=24, seed=n, per_view_colors=per_view) for n in (30, 50, 41)]
    parameters = [tensor.requires_grad_() for tensor in reference.stacked(scenes, 60)]
    cameras = (torch.stack([getattr(scene, name) for scene in scenes]) for name in ("viewmats", "Ks"))
    view = rasterize(*parameters, *cameras, scenes[0].width, scenes[0].height)
    weights = [reference.loss_weights(scene) for scene in scenes]
    sum((getattr(view, name) * torch.stack([each[name] for each in weights])).sum() for name in PICTURES).backward()
    for place, scene in enumerate(scenes):
        n, (alone, expected) = len(scene.means), with_gradients(scene)
        for name in PICTURES:
            assert torch.equal(getattr(view, name)[place], getattr(alone, name)), name
        assert torch.equal(view.radii[place, :, :n], alone.radii)
        assert not view.radii[place, :, n:].any()
        gradients = [*(parameter.grad for parameter in parameters), view.means2d.grad]
        for found, own in zip(gradients, expected, strict=True):
            assert found is not None
            mine, filler = reference.split(found[place], n)
            assert torch.equal(mine, own)
            assert not filler.any()
