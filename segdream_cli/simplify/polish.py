"""A short fit of a thinned asset to renders of the full one."""

from collections.abc import Mapping

import torch

from segdream_cli.render.raster import Rendering
from segdream_cli.render.view import render
from segdream_cli.simplify.visibility import around
from segdream_cli.splats import GROUPS, Splats
from segdream_cli.splats.gaussians import Gaussians, bounds

STEPS, VIEWS, SIZE = 200, 32, 512
"""At 256 pixels, scans lose detail that those pixels do not show."""
RATES: Mapping[str, float] = {
    "means": 2e-3,  # times the asset's radius
    "quats": 5e-3,
    "log_scales": 1e-2,
    "opacity_logits": 5e-2,
    "sh0": 1e-2,
    "shN": 1e-3,
}
"""Adam's first learning rate of each group; it falls linearly to a twentieth."""
ERROR = 0.025
"""Root mean square error of the start up to which the rates are in proportion to it: Adam's steps are as long as its
rate however small the gradient is, so a good start would get worse first."""
LAST_RATE = 0.05
BETAS = (0.9, 0.99)


def polish(whole: Splats, thin: Splats, steps: int = STEPS) -> Splats:
    """The thinned asset after `steps` of Adam on the squared difference of one view each.

    The views are 32 around the asset, in random order, over black and over white. A step with a gradient that is not
    finite is left out. The same input gives the same bits on a CPU.

    Args:
        whole: the asset to look like.
        thin: the start, in the same place.
        steps: number of steps.
    """
    cameras = around(whole, VIEWS, SIZE)
    reference = Gaussians.from_splats(whole)
    with torch.no_grad():
        targets = [render(reference, cameras.view(i)) for i in range(VIEWS)]
    fitted = Gaussians.from_splats(thin.copy())
    with torch.no_grad():
        squares = [_loss(render(fitted, cameras.view(i)), targets[i]) for i in range(0, VIEWS, 8)]
    share = min(1.0, float(torch.stack(squares).mean().sqrt()) / ERROR)
    rates = {**RATES, "means": RATES["means"] * bounds(reference)[1]}
    groups = [
        {"params": [fitted.params[name]], "lr": share * rates[name]} for name in GROUPS if fitted.params[name].numel()
    ]
    optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-15)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, LAST_RATE, max(steps, 1))
    draws, order = torch.Generator().manual_seed(0), list[int]()
    for _ in range(steps):
        order = order or torch.randperm(len(targets), generator=draws).tolist()
        view = order.pop()
        loss = _loss(render(fitted, cameras.view(view)), targets[view])
        optimizer.zero_grad()
        loss.backward()
        if all(torch.isfinite(each.grad).all() for each in fitted.params.values() if each.grad is not None):
            optimizer.step()
        decay.step()
    return fitted.splats(thin.provenance)


def _loss(seen: Rendering, wanted: Rendering) -> torch.Tensor:
    """Mean squared difference of images over black and over white."""
    on_black, hidden = seen.rgb - wanted.rgb, seen.alpha - wanted.alpha
    return (on_black.square().mean() + (on_black - hidden).square().mean()) / 2


@torch.no_grad()
def similarity(whole: Splats, other: Splats) -> float:
    """Mean PSNR in dB of four views on white that `polish` does not use; infinite if they are equal."""
    cameras = around(whole, 4, SIZE)
    one, two = (Gaussians.from_splats(splats) for splats in (whole, other))
    errors = []
    for i in range(len(cameras)):
        images = [render(each, cameras.view(i)).over(torch.ones(3)).clamp(0, 1) for each in (one, two)]
        errors.append((images[0] - images[1]).square().mean())
    return float(-10 * torch.stack(errors).log10().mean())
