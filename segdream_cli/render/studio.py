"""Studio light for product images: a soft box above the asset, its shadow on the ground, and light by the normals.

The shadow is the share of the light that a point of the ground does not get. For each of many directions, the Gaussians
are squashed along it onto the ground, which turns them into flat ones, and the rasteriser's alpha from above is the
share that they absorb. Their mean over the directions is a texture, which every view of the ground shows.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdream_cli.render.cameras import Cameras
from segdream_cli.render.raster import Rendering, normals_from_depth, rasterize
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.sizing import extents
from segdream_cli.splats.transform import rotation_matrices
from segdream_cli.util.devices import send

SIDE = 384
"""Side of the shadow's texture in pixels."""
REACH = 2.5
"""Half side of the texture in radii of the asset."""
SKY, BOX = 40, 24
"""Directions of the light from everywhere above, and of the light from the soft box."""
LOWEST_SINE, BOX_DEG = 0.4, 14.0
"""Least sine of a direction's elevation, below which nothing casts a shadow; radius of the soft box in degrees."""
SKY_SHARE, DARKEST, FAINT = 0.6, 0.65, 0.08
"""Share of the light from everywhere above; opacity of a shadow without any light; share that casts no shadow."""
FAR = 10.0
"""Distance of the camera above the ground in half sides of the texture; it does not change the image of a plane."""
CONTRAST, SMOOTH = 0.18, 0.02
"""Light on a surface that looks up minus that on one to the side; side of the normals' window over that of an image."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground below an asset with its shadow.

    Args:
        height: y of the ground.
        x, z: middle of the texture.
        half: half its side.
        shade: share of the light that is missing, rows along z and columns along x.
    """

    height: float
    x: float
    z: float
    half: float
    shade: Float[Tensor, "s s"]

    @classmethod
    @torch.no_grad()
    def below(cls, splats: Splats, gaussians: Gaussians, radius: float) -> "Ground":
        """The ground at an asset's lowest point; `gaussians` are its `splats` on the device."""
        quats = splats.quats / np.maximum(np.linalg.norm(splats.quats, axis=1, keepdims=True), 1e-9)
        rotations = torch.from_numpy(np.ascontiguousarray(rotation_matrices(quats), np.float32))
        axes = send(rotations, gaussians.device) * gaussians.scales[:, None, :]  # R S: Σ is its square
        low, high = extents(splats)
        x, _, z = ((low + high) / 2).tolist()
        ground = cls(float(low[1]), x, z, REACH * radius, torch.zeros(SIDE, SIDE, device=gaussians.device))
        sky, box = (
            torch.stack([ground.absorb(gaussians, axes, each) for each in directions]).mean(0)
            for directions in (sky_directions(SKY), box_directions(BOX))
        )
        shade = SKY_SHARE * sky * (1 - LOWEST_SINE**2) + (1 - SKY_SHARE) * box
        smooth = F.avg_pool2d(shade[None, None], 5, stride=1, padding=2, count_include_pad=False)[0, 0]
        return replace(ground, shade=(smooth - FAINT).clamp_min(0) / (1 - FAINT))  # the far ground stays as it is

    def absorb(
        self, gaussians: Gaussians, axes: Float[Tensor, "n 3 3"], direction: Float[Tensor, " 3"]
    ) -> Float[Tensor, "s s"]:
        """Share of the light towards the ground from a direction, upwards, that the Gaussians absorb."""
        device = gaussians.device
        flat = project_down(gaussians.means, axes, send(direction, device), self.height)
        distance = FAR * self.half
        view = torch.tensor(  # from above: right is +x, down is +z
            [[1, 0, 0, -self.x], [0, 0, 1, -self.z], [0, -1, 0, self.height + distance], [0, 0, 0, 1.0]]
        )
        focal, middle = FAR * SIDE / 2, SIDE / 2
        K = torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1.0]])
        black = torch.zeros_like(flat[0])
        seen = rasterize(*flat, gaussians.opacities, black, send(view, device)[None], send(K, device)[None], SIDE, SIDE)
        return seen.alpha[0, ..., 0]

    def darkness(self, camera: Cameras, width: int, height: int) -> Float[Tensor, "h w"]:
        """Opacity of the shadow in each pixel of one camera; 0 where it does not look down onto the ground."""
        device = self.shade.device
        Ks, viewmats = camera.Ks.to(device)[0], camera.viewmats.to(device)[0]
        columns = (torch.arange(width, device=device) + 0.5 - Ks[0, 2]) / Ks[0, 0]
        rows = (torch.arange(height, device=device) + 0.5 - Ks[1, 2]) / Ks[1, 1]
        across, down = torch.meshgrid(columns, rows, indexing="xy")
        rays = torch.stack([across, down, torch.ones_like(across)], -1) @ viewmats[:3, :3]  # in the world
        origin = camera.to(device).positions[0]
        fall = self.height - origin[1]
        distance = fall / torch.where(rays[..., 1] < -1e-6, rays[..., 1], -torch.inf)
        x = (origin[0] + distance * rays[..., 0] - self.x) / self.half
        z = (origin[2] + distance * rays[..., 2] - self.z) / self.half
        found = F.grid_sample(
            self.shade[None, None], torch.stack([x, z], -1)[None], padding_mode="zeros", align_corners=False
        )
        seen = (rays[..., 1] < -1e-6) & (fall < 0)
        return DARKEST * torch.where(seen, found[0, 0], 0)


def project_down(
    means: Float[Tensor, "n 3"], axes: Float[Tensor, "n 3 3"], direction: Float[Tensor, " 3"], height: float
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 4"], Float[Tensor, "n 3"]]:
    """Means, quaternions and scales of the flat shadows of Gaussians on the plane y = `height`.

    The columns of `axes` are the axes of each Gaussian, as long as their standard deviations.


    A point moves along the light's direction d to p - d (p_y - height) / d_y. That map A is linear but for a shift, so
    the covariance becomes A Σ A^T, whose 2 by 2 part in x and z has its principal axes at an angle φ.
    """
    slope = direction / direction[1]
    lift = (means[:, 1:2] - height).clamp_min(0)
    means = means - lift * slope
    means = torch.stack([means[:, 0], torch.full_like(means[:, 1], height), means[:, 2]], -1)
    squashed = axes - slope[None, :, None] * axes[:, 1:2, :]
    u, v = squashed[:, 0], squashed[:, 2]
    a, b, c = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    spread, middle = torch.hypot((a - c) / 2, b), (a + c) / 2
    half_turn = -torch.atan2(2 * b, a - c) / 4  # of -φ about y, which turns x to (cos φ, 0, sin φ)
    zero = torch.zeros_like(half_turn)
    quats = torch.stack([half_turn.cos(), zero, half_turn.sin(), zero], -1)
    first, second = (middle + spread).sqrt(), (middle - spread).clamp_min(0).sqrt()
    return means, quats, torch.stack([first, 1e-3 * second + 1e-6, second + 1e-6], -1)


def sky_directions(n: int) -> Float[Tensor, "n 3"]:
    """Directions above `LOWEST_SINE`, more of them near the zenith, as the cosine of the light on the ground."""
    share = (torch.arange(n) + 0.5) / n * (1 - LOWEST_SINE**2)
    return _spiral(share.sqrt(), (1 - share).sqrt())


def box_directions(n: int) -> Float[Tensor, "n 3"]:
    """Directions of a round light about the zenith."""
    radius = ((torch.arange(n) + 0.5) / n).sqrt() * math.radians(BOX_DEG)
    return _spiral(radius.sin(), radius.cos())


def _spiral(flat: Float[Tensor, " n"], up: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Directions with these horizontal and vertical parts, turned by the golden angle from one to the next."""
    turn = torch.arange(len(flat)) * (math.pi * (3 - math.sqrt(5)))
    return torch.stack([flat * turn.cos(), up, flat * turn.sin()], -1)


def light(seen: Rendering, camera: Cameras) -> Rendering:
    """One camera's rendering, brighter where the surface looks up, and darker where it looks down."""
    normals = normals_from_depth(seen.expected_depth(), camera.viewmats, camera.Ks)
    weights = seen.alpha
    side = max(3, round(SMOOTH * min(seen.rgb.shape[1:3])) // 2 * 2 + 1)
    up = _blur(normals[..., 1:2] * weights, side) / _blur(weights, side).clamp_min(1e-6)
    return replace(seen, rgb=(seen.rgb * (1 + CONTRAST * (up - 0.5))).clamp(max=1))


def _blur(values: Float[Tensor, "1 h w k"], side: int) -> Float[Tensor, "1 h w k"]:
    """Means over squares of `side` pixels, twice."""
    planes = values.movedim(-1, 1)
    for _ in range(2):
        planes = F.avg_pool2d(planes, side, stride=1, padding=side // 2, count_include_pad=False)
    return planes.movedim(1, -1)
