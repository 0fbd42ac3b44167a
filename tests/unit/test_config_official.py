"""The `paper` preset is the official release, zjhJOJO/SegmentDreamer at commit ceb78a6, number by number.

Values are typed from the release in the release's units and converted here. A source is a file and line of that
commit: `args` is arguments/__init__.py, `bagel` is config/bagel.yaml, whose README command this is.
"""

import math
from typing import Any

import pytest

from segdream_cli.priors.profile import PriorProfile, preset

EXTENT = 3.5  # bagel 50: default_radius, the `spatial_lr_scale` and the `cameras_extent` of the release
TIMESTEPS = 1000  # of the scheduler
WINDOW, HIGHEST = (0.02, 0.5), 0.98  # bagel 20, 21: t_range and max_t_range, as shares of the timesteps
LOWEST_POLAR, HIGHEST_POLAR = 45, 105  # bagel 45: theta_range, degrees from the zenith
BACKGROUND_CHANGED = 0.66  # bagel 10: bg_aug_ratio

OFFICIAL: list[tuple[str, Any, str]] = [
    ("optim.steps", 5000, "bagel 57"),
    ("camera.batch", 4, "bagel 19"),
    ("camera.image_size", None, "args 234: 512 px, the prior's own"),
    ("camera.radius", [5.2, 5.5], "bagel 48"),
    ("camera.radius_floor", [3.5, 5.0], "bagel 49"),
    ("camera.radius_factor", 0.95, "args 208"),
    ("camera.fill", None, "scene/dataset_readers.py 304: the distance is drawn, whatever the field of view"),
    ("camera.fov_rad", [0.32, 0.60], "bagel 53"),
    ("camera.fov_limit_rad", [0.16, 0.60], "bagel 54"),
    ("camera.fov_factors", [0.75, 1.1], "bagel 75"),
    ("camera.elevation_deg", [90.0 - HIGHEST_POLAR, 90.0 - LOWEST_POLAR], "bagel 45"),
    ("camera.azimuth_deg", 180.0, "bagel 41"),
    ("camera.azimuth_factor", 1.5, "bagel 76"),
    ("camera.gamma", 1.0, "bagel 43"),
    ("camera.stratified", False, "scene/dataset_readers.py 331: every azimuth is drawn alone"),
    ("camera.widen_every", 500, "bagel 74"),
    ("camera.position_jitter", 0.05 / 2, "args 242, scene/dataset_readers.py 346: the width of the interval"),
    ("camera.target_jitter", 0.05, "args 243"),
    ("camera.up_jitter", 0.01, "args 244"),
    (
        "camera.backgrounds",
        {"black": round(1 - BACKGROUND_CHANGED / 2, 2), "random": round(BACKGROUND_CHANGED / 2, 2)},
        "bagel 10, gaussian_renderer/__init__.py 44-48: half of the changed ones are random, half black as the others",
    ),
    ("camera.scale_noise", round(math.sqrt(0.2) / 4, 3), "gaussian_renderer/__init__.py 125"),
    ("distill.sctd.loss", "released", "guidance/sctd_utils.py 396, 401"),
    ("distill.sctd.approximate", True, "guidance/sctd_utils.py 395"),
    ("distill.sctd.double_guidance", True, "guidance/sctd_utils.py 387, 401"),
    ("distill.sctd.guidance_scale", 7.5, "bagel 23"),
    ("distill.sctd.cross_weight", None, "guidance/sctd_utils.py 401: guidance_scale + 1"),
    ("distill.perp_neg", False, "bagel 18"),
    ("distill.sctd.weight", "sigma_over_alpha", "guidance/sctd_utils.py 407"),
    ("distill.sctd.grad_scale", 0.1, "bagel 22"),
    ("distill.sctd.segments", 5, "README.md 38"),
    ("distill.sctd.segmentation", "uniform", "bagel 32"),
    ("distill.sctd.t_min", round(WINDOW[0] * TIMESTEPS), "guidance/sctd_utils.py 131"),
    ("distill.sctd.t_max", round(HIGHEST * TIMESTEPS), "guidance/sctd_utils.py 135"),
    ("distill.sctd.t_tau", 150, "bagel 31"),
    ("distill.sctd.window", "sliding", "guidance/sctd_utils.py 634"),
    ("distill.sctd.t_high", round(WINDOW[1] * TIMESTEPS), "guidance/sctd_utils.py 132"),
    ("distill.sctd.warmup_shift", round((HIGHEST - WINDOW[1]) * TIMESTEPS), "guidance/sctd_utils.py 133"),
    ("distill.warmup_steps", 1500, "bagel 61"),
    ("distill.sctd.min_gap", 80, "bagel 28, guidance/sctd_utils.py 644"),
    ("distill.sctd.s_margin", 10, "guidance/sctd_utils.py 631, 645"),
    ("distill.sctd.fixed_noise", True, "bagel 26"),
    ("distill.sctd.noise_offset", 0.1, "guidance/sctd_utils.py 355"),
    ("distill.sctd.noise_offset_perp_neg", 0.05, "guidance/sctd_utils.py 494"),
    ("distill.disparity_probability", 0.2, "bagel 65"),
    ("distill.flip_probability", 0.5, "guidance/sctd_utils.py 186"),
    ("view.blend", True, "train.py 105, 127"),
    ("view.overhead_elevation_deg", None, "train.py 95: the azimuth alone"),
    ("view.negative_weight", -2.0, "args 71"),
    ("view.front_decay", 2.0, "args 72"),
    ("view.side_decay", 10.0, "args 73"),
    ("view.weight_floor", 1e-4, "guidance/perpneg_utils.py 35"),
    ("init.opacity", 0.1, "scene/gaussian_model.py 162"),
    ("init.sh_degree", 0, "bagel 9"),
    ("optim.means_lr", [0.00016 * EXTENT, 0.0000016 * EXTENT], "args 154, 155, scene/gaussian_model.py 198-199"),
    ("optim.sh0_lr", [0.0050, 0.0030], "args 159, 160"),
    ("optim.shN_lr", [0.0050 / 20, 0.0050 / 20], "scene/gaussian_model.py 190"),
    ("optim.opacity_lr", [0.05, 0.05], "args 166"),
    ("optim.scale_lr", [0.005, 0.001], "args 167, 180"),
    ("optim.quat_lr", [0.001, 0.0002], "args 168, 181"),
    ("optim.betas", [0.9, 0.999], "scene/gaussian_model.py 197: Adam's own"),
    ("optim.eps", 1e-15, "scene/gaussian_model.py 197"),
    ("optim.clip", [2.0, 8.0], "args 211"),
    ("optim.clip_steps", 1000, "args 211"),
    ("optim.scale_range", None, "scene/gaussian_model.py 102: no limits"),
    ("optim.beg", False, "bagel 17"),
    ("optim.beg_factor", 0.8, "bagel 62"),
    ("optim.beg_threshold", 0.9, "bagel 63"),
    ("densify.start", 100, "bagel 67"),
    ("densify.every", 100, "args 192"),
    ("densify.stop", 3000, "bagel 68"),
    ("densify.grad_threshold", 0.00075, "bagel 70"),
    ("densify.clone_scale", 0.003 * EXTENT, "bagel 69"),
    ("densify.prune_opacity", 0.005, "train.py 431"),
    ("densify.prune_scale", 0.1 * EXTENT, "scene/gaussian_model.py 490"),
    ("densify.prune_scale_after", 300, "train.py 429, bagel 72"),
    ("densify.reset_every", 300, "bagel 72"),
    ("densify.reset_opacity", 0.01, "scene/gaussian_model.py 286"),
    ("densify.cap", None, "scene/gaussian_model.py 480-492: no limit"),
    ("densify.views", "last", "train.py 350, 426: of the last view of the batch"),
    ("loss.tv_rgb", 1.0, "args 186, train.py 389"),
    ("loss.tv_disparity", 1.0, "args 186, train.py 389"),
    ("loss.scale", 1.0, "args 188"),
]


@pytest.mark.parametrize(("key", "value", "source"), OFFICIAL, ids=[key for key, *_ in OFFICIAL])
def test_paper_preset_is_the_release(key: str, value: Any, source: str) -> None:
    wanted = pytest.approx(value) if isinstance(value, (float, list)) else value
    assert preset(PriorProfile(), "paper").flat()[key] == wanted, source
