"""The texture of a mesh, or the colours of its vertices, from images of the Gaussians from all sides."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from segdream_cli.mesh.solid import count_pairs
from segdream_cli.render.cameras import Cameras, frame_sphere
from segdream_cli.render.images import push_pull
from segdream_cli.render.view import render
from segdream_cli.splats import Splats
from segdream_cli.splats.gaussians import Gaussians

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]

VIEWS = 24
VIEW_SIZE = 512
"""Number of images for the texture, and their side in pixels."""
SHARPNESS = 2
"""Weight of an image: this power of the cosine between the surface's normal and the line of sight."""
GRAY = 0.5
"""Colour of vertices that no image shows."""
GRAZING = 0.1
"""Cosine below which an image is not used for a surface."""


def bake(
    splats: Splats, closed: Any, corners: Indices, uvs: Floats, size: int, step: float, device: torch.device
) -> tuple[Bytes, float]:
    """The texture [size, size, 3] from images from all sides, and the share of the surface that they show."""
    row_down = np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1) * np.float32(size)
    face, weights, pixel = _cover_pixels(row_down[corners], size)
    points = np.einsum("tc,tcd->td", weights, np.asarray(closed.vertices, np.float32)[closed.faces[face]])
    normals = np.einsum("tc,tcd->td", weights, np.asarray(closed.vertex_normals, np.float32)[closed.faces[face]])
    sums = _gather(splats, closed, points, normals, step, device)
    shown = np.zeros((size * size, 4), np.float32)
    shown[pixel] = sums
    return _fill_holes(shown.reshape(size, size, 4)), float(_seen(sums).mean())


def color_vertices(splats: Splats, closed: Any, step: float, device: torch.device) -> tuple[Floats, float]:
    """The colours [v, 3] of the vertices in images from all sides, and the share that they show.

    A vertex that no image shows takes the colour of the nearest one that is shown.
    """
    points = np.asarray(closed.vertices, np.float32)
    sums = _gather(splats, closed, points, np.asarray(closed.vertex_normals, np.float32), step, device)
    seen = _seen(sums)
    if not seen.any():
        return np.full((len(points), 3), GRAY, np.float32), 0.0
    nearest = KDTree(points[seen]).query(points)[1]
    known = sums[seen][nearest]
    return np.clip(known[:, :3] / known[:, 3:], 0, 1), float(seen.mean())


def _gather(splats: Splats, closed: Any, points: Floats, normals: Floats, step: float, device: torch.device) -> Floats:
    """Sums of premultiplied colour and of alpha [t, 4] over the images that show the points of the surface."""
    normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)
    corners3d = np.asarray(closed.vertices, np.float32)[closed.faces]  # [f, 3, 3]
    sums = np.zeros((len(points), 4), np.float32)
    cameras, images = _render_views(splats, closed.bounds, device)
    for view in range(len(cameras)):
        _add_view(sums, points, normals, corners3d, cameras, view, images[view], step)
    return sums


def _seen(sums: Floats) -> NDArray[np.bool_]:
    """Where an image shows a point [t]."""
    seen: NDArray[np.bool_] = sums[:, 3] > 1e-6
    return seen


def _render_views(splats: Splats, box: Any, device: torch.device) -> tuple[Cameras, Floats]:
    """Cameras evenly spread over a sphere, and their images: premultiplied colour and alpha, [c, h, w, 4]."""
    turn = torch.arange(VIEWS) * math.degrees(math.pi * (3 - math.sqrt(5)))  # Fibonacci's spiral
    height = 1 - (torch.arange(VIEWS) + 0.5) * 2 / VIEWS
    low, high = torch.from_numpy(np.asarray(box, np.float32))
    cameras = frame_sphere(
        turn, height.asin().rad2deg(), VIEW_SIZE, center=(low + high) / 2, extent=float((high - low).norm()) / 2
    )
    gaussians = Gaussians.from_splats(splats).to(device)
    images = np.empty((VIEWS, VIEW_SIZE, VIEW_SIZE, 4), np.float32)
    with torch.no_grad():
        for view in range(VIEWS):
            seen = render(gaussians, cameras.view(view).to(device))
            images[view] = torch.cat([seen.rgb, seen.alpha], dim=-1)[0].cpu().numpy()
    return cameras, images


def _add_view(
    sums: Floats,
    points: Floats,
    normals: Floats,
    corners3d: Floats,
    cameras: Cameras,
    view: int,
    image: Floats,
    step: float,
) -> None:
    """Adds an image's values to `sums` [t, 4], at the `points` that face it and that no other triangle hides."""
    eye = cameras.positions[view].numpy()
    sight = eye - points
    cosine = np.einsum("td,td->t", sight, normals) / np.linalg.norm(sight, axis=1)
    facing = np.flatnonzero(cosine > GRAZING)
    where, depth = _project(points[facing], cameras, view)
    towards = np.einsum("fd,fd->f", eye - corners3d[:, 0], _face_normals(corners3d)) > 0
    nearest = _depth_map(corners3d[towards], cameras, view)
    column, row = np.floor(where).astype(np.int64).clip(0, VIEW_SIZE - 1).T
    open_ = depth < nearest[row, column] + 2 * step
    facing, where = facing[open_], where[open_]
    sums[facing] += _bilinear(image, where) * (cosine[facing, None] ** SHARPNESS)


def _face_normals(corners3d: Floats) -> Floats:
    return np.cross(corners3d[:, 1] - corners3d[:, 0], corners3d[:, 2] - corners3d[:, 0])


def _project(points: Floats, cameras: Cameras, view: int) -> tuple[Floats, Floats]:
    """Pixel coordinates [n, 2], with pixel centres at half integers, and depths [n]."""
    viewmat, K = cameras.viewmats[view].numpy(), cameras.Ks[view].numpy()
    inside = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels: Floats = inside[:, :2] / inside[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
    return pixels, inside[:, 2]


def _depth_map(corners3d: Floats, cameras: Cameras, view: int) -> Floats:
    """Depth of the nearest triangle at each pixel, infinite where there is none."""
    where, depth = _project(corners3d.reshape(-1, 3), cameras, view)
    face, weights, pixel = _cover_pixels(where.reshape(-1, 3, 2), VIEW_SIZE)
    nearest = np.full(VIEW_SIZE**2, np.inf, np.float32)
    np.minimum.at(nearest, pixel, np.einsum("tc,tc->t", weights, depth.reshape(-1, 3)[face]))
    return nearest.reshape(VIEW_SIZE, VIEW_SIZE)


def _cover_pixels(triangles: Floats, size: int) -> tuple[Indices, Floats, Indices]:
    """The pixel centres in triangles [f, 3, 2]: the triangle's index, barycentric weights, and row * size + column."""
    low = np.clip(np.ceil(triangles.min(axis=1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(triangles.max(axis=1) - 0.5) + 1, low, size).astype(np.int64)
    sides = high - low
    a, b, c = triangles.transpose(1, 0, 2)
    area = _cross(b - a, c - a)
    safe = np.where(area == 0, np.inf, area)
    found = []
    for face, number in count_pairs(sides.prod(axis=1)):
        row, column = np.divmod(number, sides[face, 0])
        row, column = row + low[face, 1], column + low[face, 0]
        centre = np.stack([column, row], axis=1).astype(np.float32) + np.float32(0.5)
        second = _cross(centre - a[face], (c - a)[face]) / safe[face]
        third = _cross((b - a)[face], centre - a[face]) / safe[face]
        weights = np.stack([1 - second - third, second, third], axis=1)
        inside = (weights.min(axis=1) >= 0) & (area[face] != 0)
        found.append((face[inside], weights[inside], (row * size + column)[inside]))
    faces, shares, pixels = zip(*found, strict=True)
    return np.concatenate(faces), np.concatenate(shares).astype(np.float32), np.concatenate(pixels)


def _cross(one: Floats, other: Floats) -> Floats:
    product: Floats = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    return product


def _bilinear(image: Floats, where: Floats) -> Floats:
    """Values between the pixel centres of `image` [h, w, 4]."""
    corner = np.clip(np.floor(where - 0.5), 0, VIEW_SIZE - 2).astype(np.int64)
    x, y = np.clip(where - 0.5 - corner, 0, 1).T[:, :, None].astype(np.float32)
    column, row = corner.T
    above = image[row, column] * (1 - x) + image[row, column + 1] * x
    below = image[row + 1, column] * (1 - x) + image[row + 1, column + 1] * x
    values: Floats = above * (1 - y) + below * y
    return values


def _fill_holes(shown: Floats) -> Bytes:
    """Colours [h, w, 3] from sums of premultiplied colour and of alpha [h, w, 4]; holes take colours around them."""
    alpha = shown[:, :, 3:]
    known = alpha > 1e-6
    colours = np.where(known, shown[:, :, :3] / np.maximum(alpha, 1e-6), 0)
    filled = push_pull(colours, known.astype(np.float32), renormalize=True)
    pixels: Bytes = np.rint(np.clip(filled, 0, 1) * 255).astype(np.uint8)
    return pixels
