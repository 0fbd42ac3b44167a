"""The end of a distillation whose asset hardly changes any more."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import OptimConfig
from segdream_cli.optimize.state import AssetState
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians

VIEWS, SIZE, ELEVATION_DEG = 4, 64, 15.0


def is_due(step: int, config: OptimConfig) -> bool:
    """Whether the change is measured after a step; the last step of the distillation needs no measurement."""
    return config.stop_change > 0 and step % config.stop_every == 0 and step < config.steps


def notes_on_change(config: OptimConfig) -> list[str]:
    """A remark for the user if the distillation is too short to measure a change."""
    if not config.stop_change or not config.steps or 2 * config.stop_every < config.steps:
        return []
    fitting = max(1, config.steps // 10)
    return [
        f"optim.stop_change has no effect: {config.steps} steps are too few for two measurements, "
        f"{config.stop_every} steps apart; --set optim.stop_every={fitting} measures more often"
    ]


def measure_changes(assets: Sequence[AssetState]) -> tuple[float, ...] | None:
    """Mean absolute difference of each asset's views from those of the last call, which the assets keep.

    Returns:
        numbers from 0 to 1; None if there is nothing to compare with yet.
    """
    changes = []
    for asset in assets:
        before, asset.last_views = asset.last_views, render_views(asset.gaussians)
        if before is not None:
            changes.append(float((asset.last_views - before).abs().mean()))
    return tuple(changes) if len(changes) == len(assets) else None


@torch.no_grad()
def render_views(gaussians: Gaussians) -> Float[Tensor, "v h w 3"]:
    """Colours in 0..1 of four views around the unit sphere, over white."""
    elevations = torch.full((VIEWS,), ELEVATION_DEG)
    cameras = frame_sphere(turntable_azimuths(VIEWS), elevations, SIZE).to(gaussians.means.device)
    return render(gaussians, cameras).over(gaussians.means.new_ones(3)).clamp(0, 1)


def skip_rest(assets: Sequence[AssetState], config: OptimConfig) -> None:
    """Ends the distillation of assets: their next step is the first after its last."""
    for asset in assets:
        asset.skipped, asset.step = config.steps - asset.step, config.steps
