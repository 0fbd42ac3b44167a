"""gsplat against the numba rasteriser, and each against the float64 reference, on the same scenes.

Tolerances. gsplat compiles with fast-math exponentials, so that a pixel at the rim of a Gaussian can fall on
the other side of the 1/255 threshold: images may differ by one such step in a few pixels, and agree to 2e-5
of their largest value on average. Gradients are compared by relative L2 norm over a whole tensor: 2e-4 for the
numba rasteriser (measured 1e-5 at most), 5e-3 for gsplat, which recovers the transmittance in float32 from its end.
"""

import pytest
import raster_reference as reference
import torch
from torch import Tensor

from segdream_cli.render.raster import Rendering, rasterize

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PICTURES = ("rgb", "alpha", "depth")
SCENES = {
    "translucent": reference.scene(300, views=3, size=64, opacity=0.15),
    "opaque": reference.scene(400, views=2, size=64, opacity=0.9, seed=1),
    "inside": reference.scene(200, views=2, size=48, distance=0.3, seed=2),
    "view colours": reference.scene(200, views=3, size=40, per_view_colors=True, seed=3),
}


def outputs(scene: reference.Scene, device: str) -> dict[str, Tensor]:
    """Images and all gradients, of one scalar loss, on `device` ("reference" is float64)."""
    exact = device == "reference"
    kind = {"device": "cpu" if exact else device, "dtype": torch.float64 if exact else torch.float32}
    parameters = [tensor.to(**kind, copy=True).requires_grad_() for tensor in scene.parameters]
    cameras = scene.viewmats.to(**kind), scene.Ks.to(**kind)
    view = (reference.render if exact else rasterize)(*parameters, *cameras, scene.width, scene.height)
    weights = reference.loss_weights(scene)
    loss = sum((getattr(view, name) * weights[name].to(**kind)).sum() for name in PICTURES)
    if isinstance(view, Rendering):
        loss.backward()
        gradients = [*(parameter.grad for parameter in parameters), view.means2d.grad]
    else:
        gradients = list(torch.autograd.grad(loss, [*parameters, view.means2d]))
    named = zip((*reference.NAMES, "means2d"), gradients, strict=True)
    found = {name: getattr(view, name) for name in PICTURES} | {f"grad {name}": gradient for name, gradient in named}
    return {name: tensor.detach().double().cpu() for name, tensor in found.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("device", "against"), [("cuda", "reference"), ("cpu", "reference"), ("cuda", "cpu")])
def test_rasterize_matches_the_reference(name: str, device: str, against: str) -> None:
    found, expected = outputs(SCENES[name], device), outputs(SCENES[name], against)
    for image in PICTURES:
        difference, largest = (found[image] - expected[image]).abs(), expected[image].abs().max()
        assert difference.mean() < 2e-5 * largest, image
        assert difference.max() < 2 / 255 * largest, image
    bound = 5e-3 if device == "cuda" else 2e-4
    for key in expected:
        if key.startswith("grad"):
            assert relative(found[key], expected[key]) < bound, key


def test_rasterize_radii_match_the_cpu() -> None:
    scene = SCENES["inside"]
    on_cpu = rasterize(*scene.parameters, scene.viewmats, scene.Ks, scene.width, scene.height).radii
    moved = [tensor.cuda() for tensor in (*scene.parameters, scene.viewmats, scene.Ks)]
    on_cuda = rasterize(*moved, scene.width, scene.height).radii.cpu()
    assert 0 < (on_cpu > 0).sum() < on_cpu.numel()
    # ceil() may fall on either side of a whole number of pixels, nothing more
    assert ((on_cpu - on_cuda).abs() <= 1 + on_cpu // 1000).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rasterize_caps_alpha_at_0_999(device: str) -> None:
    K = torch.tensor([[[20.0, 0.0, 4.5], [0.0, 20.0, 4.5], [0.0, 0.0, 1.0]]], device=device)
    means, quats = torch.tensor([[0.0, 0.0, 2.0]], device=device), torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    one = torch.ones(1, device=device)
    scales, colors, viewmats = one.expand(1, 3).contiguous(), one.expand(1, 3).contiguous(), torch.eye(4, device=device)
    view = rasterize(means, quats, scales, one, colors, viewmats[None], K, 9, 9)
    assert view.alpha[0, 4, 4].item() == pytest.approx(0.999, abs=1e-6)


def test_rasterize_without_gaussians() -> None:
    scene = SCENES["opaque"]
    empty = [tensor[:0].cuda().requires_grad_() for tensor in scene.parameters]
    view = rasterize(*empty, scene.viewmats.cuda(), scene.Ks.cuda(), 9, 7)
    view.rgb.sum().backward()
    assert view.rgb.shape == (2, 7, 9, 3)
    assert not view.alpha.any()


def test_rasterize_zero_quaternion_is_no_rotation() -> None:
    scene = SCENES["translucent"]
    means, quats, *rest = (tensor.cuda() for tensor in scene.parameters)
    cameras = scene.viewmats.cuda(), scene.Ks.cuda()
    quats[::3] = 0
    identity = quats.clone()
    identity[::3, 0] = 1
    quats.requires_grad_()
    found = rasterize(means, quats, *rest, *cameras, 32, 32)
    torch.testing.assert_close(found.rgb, rasterize(means, identity, *rest, *cameras, 32, 32).rgb)
    found.rgb.sum().backward()
    assert quats.grad is not None
    assert quats.grad.isfinite().all()


def test_rasterize_gradients_reach_colors() -> None:
    scene = SCENES["opaque"]
    shared = outputs(scene, "cuda")["grad colors"]
    views = len(scene.viewmats)
    split = scene._replace(colors=scene.colors.expand(views, -1, -1).contiguous())
    torch.testing.assert_close(outputs(split, "cuda")["grad colors"].sum(0), shared, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("per_view", [False, True])
def test_rasterize_sets_equal_single_calls(per_view: bool) -> None:
    """Sets of 40, 64 and 300 Gaussians; what fills a set up is not drawn and gets no gradient."""
    scenes = [reference.scene(n, views=3, size=40, seed=n, per_view_colors=per_view) for n in (40, 64, 300)]
    parameters = [tensor.cuda().requires_grad_() for tensor in reference.stacked(scenes, 300)]
    cameras = (torch.stack([getattr(scene, name) for scene in scenes]).cuda() for name in ("viewmats", "Ks"))
    view = rasterize(*parameters, *cameras, scenes[0].width, scenes[0].height)
    weights = [reference.loss_weights(scene) for scene in scenes]
    sum((getattr(view, name) * torch.stack([w[name] for w in weights]).cuda()).sum() for name in PICTURES).backward()
    gradients = [*(parameter.grad for parameter in parameters), view.means2d.grad]
    for place, scene in enumerate(scenes):
        alone, n = outputs(scene, "cuda"), len(scene.means)
        for name in PICTURES:
            torch.testing.assert_close(getattr(view, name)[place].double().cpu(), alone[name], rtol=1e-5, atol=1e-5)
        assert not view.radii[place, :, n:].any()
        for name, gradient in zip((*reference.NAMES, "means2d"), gradients, strict=True):
            mine, filler = reference.split(gradient[place].double().cpu(), n)
            assert not filler.any(), name
            assert relative(mine, alone[f"grad {name}"]) < 1e-4, name  # sums of atomic additions, in any order


def test_rasterize_refuses_small_sets() -> None:
    scene = SCENES["opaque"]
    few = [tensor[:31].expand(2, *tensor[:31].shape).cuda() for tensor in scene.parameters]
    cameras = [tensor.expand(2, *tensor.shape).contiguous().cuda() for tensor in (scene.viewmats, scene.Ks)]
    with pytest.raises(ValueError, match="at least 32"):
        rasterize(*few, *cameras, scene.width, scene.height)
    rasterize(*(tensor[:1] for tensor in few), *(tensor[:1] for tensor in cameras), scene.width, scene.height)
