"""Camera paths from JSON: our own, and those of nerfstudio, splat-transform, Blender's NeRF sets and INRIA.

file                        a frame                                     axes of the camera      world
--------------------------  ------------------------------------------  ----------------------  ----------
ours                        position, target, up, fov, roll             looks at the target     y-up
splat-transform             the same; `frameRate` in place of `fps`     looks at the target     playcanvas
nerfstudio camera_path      camera_to_world, fov                        x right, y up, z back   ply
transforms.json, Blender    transform_matrix, camera_angle_x or fl_y    x right, y up, z back   ply
INRIA cameras.json          position, rotation (to world), fy, height   x right, y down, z on   ply

"world" in a file overrides the last column: `ply` for coordinates as in a .ply file, `z-up` for Blender's scene
around an imported .glb.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from segdream_cli.errors import UsageProblem
from segdream_cli.util.files import free_path, parse_json

Floats = NDArray[np.float64]

WORLDS = {
    "y-up": np.eye(3),
    "ply": np.diag([1.0, -1.0, -1.0]),
    "playcanvas": np.diag([-1.0, 1.0, -1.0]),
    "z-up": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
}
"""Name -> the rotation into the inner frame (y up, the object faces +Z)."""
FOV_DEG = 40.0
NEAR_TARGET = 1e-3
MOST_BYTES, MOST_FRAMES, FARTHEST = 64 << 20, 36_000, 1e6
FORM = '{"fps": 30, "frames": [{"position": [0, 0.5, 3], "target": [0, 0, 0], "fov": 40}]}'


@dataclass(frozen=True, slots=True)
class CameraPath:
    """Cameras of a video, in the inner frame."""

    viewmats: Float[Tensor, "c 4 4"]
    fov_rad: Float[Tensor, " c"]
    """Vertical field of view of each camera."""
    fps: float | None
    """Frames per second; None if the file does not say."""


def read_camera_path(path: Path, n: int | None = None) -> CameraPath:
    """The cameras of a JSON file.

    Args:
        path: the file.
        n: number of frames on a smooth curve through the file's cameras; None for the file's own cameras. The curve
            is closed, and the n frames are one round, if the file says `"loop": true` (nerfstudio: `is_cycle`).

    Raises:
        UsageProblem: the file can't be read, or has no cameras or an invalid one.
    """
    content = _json(path)
    top: Mapping[str, Any] = content if isinstance(content, dict) else {}
    entries = content if isinstance(content, list) else top.get("frames", top.get("camera_path"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _problem(path, "has no list of frames")
    if not 1 <= len(entries) <= MOST_FRAMES:
        raise _problem(path, f"has {len(entries)} frames, not 1 to {MOST_FRAMES}")
    keys = np.stack([_key(path, f"frame {i}", entry, top) for i, entry in enumerate(entries)])
    if n is not None:
        keys = _smooth(keys, n, loop=bool(top.get("loop", top.get("is_cycle", False))))
    fps = top.get("fps", top.get("frameRate"))
    if fps is not None:
        fps = float(_numbers(path, "fps", fps, ()))
        if not 1 <= fps <= 120:
            raise _problem(path, f"has fps {fps:g}, which is not between 1 and 120")
    viewmats = np.stack([_look_at(path, f"frame {i}", key) for i, key in enumerate(keys)])
    fov_rad = 2 * np.arctan(np.exp(keys[:, 9]))
    return CameraPath(torch.from_numpy(viewmats).float(), torch.from_numpy(fov_rad).float(), fps)


def _problem(path: Path, what: str) -> UsageProblem:
    example = free_path(Path("example.json"))
    hint = f"echo {quote(FORM)} > {example} && --camera-path {example}"
    return UsageProblem(f"the camera path {path} {what}", hint=hint)


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise _problem(path, f"is larger than {MOST_BYTES >> 20} MiB")
        return parse_json(content.decode("utf-8-sig"))
    except OSError as problem:
        raise UsageProblem(f"{path} can't be read: {problem.strerror}") from problem
    except ValueError as problem:  # neither UTF-8 nor JSON, or nested too deeply
        raise _problem(path, f"is not JSON: {problem}") from problem


def _numbers(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> Floats:
    """`value` as finite numbers of a shape; the nesting of its lists does not matter."""
    try:
        array = np.array(value)
        if array.dtype.kind in "iuf" and array.size == math.prod(shape):
            array = array.astype(np.float64).reshape(shape)
            if (np.abs(array) <= FARTHEST).all():
                return array
    except ValueError:  # lists of several lengths
        pass
    count = math.prod(shape)
    wanted = f"{count} numbers" if count > 1 else "a number"
    raise _problem(path, f"has a {name} that is not {wanted} up to {FARTHEST:g}")


def _key(path: Path, where: str, entry: Mapping[str, Any], top: Mapping[str, Any]) -> Floats:
    """A frame as position, target, up and log tan of half the field of view: 10 numbers."""
    matrix = entry.get("camera_to_world", entry.get("transform_matrix"))
    default = "playcanvas" if "frameRate" in top else "y-up"
    if matrix is not None or "rotation" in entry:
        default = "ply"
        if matrix is not None:
            pose = _numbers(path, f"camera matrix in {where}", matrix, (4, 4))
            position, axes = pose[:3, 3], pose[:3, :3] * (1, -1, -1)
        else:
            position = _numbers(path, f"position in {where}", entry.get("position"), (3,))
            axes = _numbers(path, f"rotation in {where}", entry["rotation"], (3, 3))
        lengths = np.linalg.norm(axes, axis=0)
        axes = axes / np.maximum(lengths, 1e-9)
        if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01 or np.linalg.det(axes) < 0:
            raise _problem(path, f"has a camera matrix in {where} that is not a rotation")
        up = -axes[:, 1]
        target = position + axes[:, 2] * max(float(np.linalg.norm(position)), NEAR_TARGET)
    else:
        position = _numbers(path, f"position in {where}", entry.get("position"), (3,))
        target = _numbers(path, f"target in {where}", entry.get("target", [0, 0, 0]), (3,))
        up = _numbers(path, f"up in {where}", entry.get("up", [0, 1, 0]), (3,))
        roll = math.radians(float(_numbers(path, f"roll in {where}", entry.get("roll", 0), ())))
        if roll:
            forward = (target - position) / max(float(np.linalg.norm(target - position)), 1e-9)
            right = np.cross(forward, up)
            up = math.cos(roll) * np.cross(right, forward) + math.sin(roll) * right
    world = top.get("world", default)
    if not isinstance(world, str) or world not in WORLDS:
        raise _problem(path, f"has the unknown world {world!r}; use one of {', '.join(WORLDS)}")
    turned = [WORLDS[world] @ vector for vector in (position, target, up)]
    return np.concatenate([*turned, [math.log(math.tan(_fov(path, where, entry, top) / 2))]])


def _fov(path: Path, where: str, entry: Mapping[str, Any], top: Mapping[str, Any]) -> float:
    """The vertical field of view in radians, from a frame or else from the file."""

    def number(name: str) -> float:
        value = entry.get(name, top.get(name))
        return math.nan if value is None else float(_numbers(path, f"{name} in {where}", value, ()))

    aspect = number("h") / (number("w") or math.nan)
    angles = (
        math.radians(number("fov")),
        2 * math.atan2(number("height") / 2, number("fy")),
        2 * math.atan2(number("h") / 2, number("fl_y")),
        number("camera_angle_y"),
        2 * math.atan(math.tan(number("camera_angle_x") / 2) * (1 if math.isnan(aspect) else aspect)),
        math.radians(FOV_DEG),
    )
    fov = next(angle for angle in angles if not math.isnan(angle))
    if not 1e-3 <= fov <= math.radians(179):
        raise _problem(path, f"has a field of view in {where} that is not between 0 and 179 degrees")
    return fov


def _smooth(keys: Floats, n: int, *, loop: bool) -> Floats:
    """`n` points of the uniform Catmull-Rom spline through the rows of `keys`."""
    count = len(keys)
    time = np.arange(n) * (count / n) if loop else np.linspace(0, count - 1, n)
    start = np.floor(time).astype(int)
    u = (time - start)[:, None]
    four = start[:, None] + np.arange(-1, 3)
    a, b, c, d = np.moveaxis(keys[four % count if loop else four.clip(0, count - 1)], 1, 0)
    curve: Floats = b + u / 2 * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))
    return curve


def _look_at(path: Path, where: str, key: Floats) -> Floats:
    """The world-to-camera matrix [4, 4] of a frame that `_key` returned."""
    position, target, up = key[:3], key[3:6], key[6:9]
    away = float(np.linalg.norm(target - position))
    if away < 1e-9:
        raise _problem(path, f"has its position at its target in {where}")
    forward = (target - position) / away
    right = np.cross(forward, up)
    sine = float(np.linalg.norm(right))
    if sine < 1e-6 * max(float(np.linalg.norm(up)), 1e-6):
        raise _problem(path, f"looks along its up direction in {where}: give another up")
    right /= sine
    viewmat = np.eye(4)
    viewmat[:3, :3] = right, np.cross(forward, right), forward
    viewmat[:3, 3] = -viewmat[:3, :3] @ position
    return viewmat
