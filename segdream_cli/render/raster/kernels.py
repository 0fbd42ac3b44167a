"""The CPU rasteriser's numba kernels: projection and compositing, each with its derivative.

A splat stores the factors of its inverse covariance, the conic:

    sigma(dx, dy) = (sharpness_x (dx + shear dy)^2 + sharpness_y dy^2) / 2

    conic xx = sharpness_x,  conic xy = sharpness_x shear,  conic yy = sharpness_x shear^2 + sharpness_y

The factors stay accurate for needles, and cost one square per pixel of a row. Compositing walks the splats of a row
front to back, in blocks of pixels that the compiler turns into vector instructions. The backward pass walks the same
way and keeps the sum over the splats that are still behind, so it stores no list. Projection computes in float64,
compositing in float32. docs/raster.md derives the equations.

Importing this module compiles the kernels, or loads them from numba's cache.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from segdream_cli.render.raster.kernel_cache import compile_kernel

BLUR = 0.3  # px^2, added to the diagonal of the projected covariance
NEAR, FAR = 0.01, 1e10
JACOBIAN_MARGIN = 0.15  # share of the image's size, beyond which the projection's Jacobian no longer changes
ALPHA_CAP = np.float32(0.999)  # gsplat 1.5.3's; later versions cap at 0.99
ALPHA_MIN = np.float32(1 / 255)
TRANSMITTANCE_MIN = np.float32(1e-4)

BLOCK = 8  # pixels composited together: one vector register of float32 with AVX2
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)

# exp(-sigma) = p(sigma)^8 up to SIGMA_MAX, where alpha is below 1/255: unlike math.exp, a polynomial vectorises.
SIGMA_MAX = np.float32(7)
_ROOT = Chebyshev.interpolate(lambda sigma: np.exp(-sigma / 8), 6, domain=[0, 7]).convert(kind=Polynomial).coef
E0, E1, E2, E3, E4, E5, E6 = (np.float32(coefficient) for coefficient in _ROOT)

# Columns of a splat, one Gaussian in one view as compositing reads it, and of its gradient. X and Y are pixels;
# SHARPNESS_X, SHEAR and SHARPNESS_Y are the factors of the conic above; DEPTH is z in camera space.
X, Y, SHARPNESS_X, SHEAR, SHARPNESS_Y, OPACITY, RED, GREEN, BLUE, DEPTH = range(10)
COLUMNS = 10

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
_helper = numba.njit(**_OPTIONS)


def _kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles for one signature, and caches the code on disk if one of numba's cache folders can be written."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        return compile_kernel(function, signature, _OPTIONS)

    return compile_function


@_helper
def _rotation(quat, rotation):  # type: ignore[no-untyped-def]
    """Fills the matrix of a quaternion (w, x, y, z) of any length; a zero one is no rotation.

    numba inlines this formula of `splats.transform.rotation_matrices` in float64; a test compares the two.
    """
    w, x, y, z = float(quat[0]), float(quat[1]), float(quat[2]), float(quat[3])
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    inverse = 1.0 / norm if norm > 0.0 else 0.0
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    rotation[1, 0], rotation[1, 1], rotation[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    rotation[2, 0], rotation[2, 1], rotation[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)


@_helper
def _rotation_backward(quat, g, v_quat):  # type: ignore[no-untyped-def]
    """Fills the gradient of a quaternion, given `g`, that of its matrix."""
    w, x, y, z = float(quat[0]), float(quat[1]), float(quat[2]), float(quat[3])
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    inverse = 1.0 / norm if norm > 0.0 else 0.0
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    turn_x, turn_y, turn_z = g[2, 1] - g[1, 2], g[0, 2] - g[2, 0], g[1, 0] - g[0, 1]
    xy, xz, yz = g[0, 1] + g[1, 0], g[0, 2] + g[2, 0], g[1, 2] + g[2, 1]
    v_w = 2 * (x * turn_x + y * turn_y + z * turn_z)
    v_x = 2 * (w * turn_x + y * xy + z * xz - 2 * x * (g[1, 1] + g[2, 2]))
    v_y = 2 * (w * turn_y + x * xy + z * yz - 2 * y * (g[0, 0] + g[2, 2]))
    v_z = 2 * (w * turn_z + x * xz + y * yz - 2 * z * (g[0, 0] + g[1, 1]))
    along = v_w * w + v_x * x + v_y * y + v_z * z  # changes the norm only, which has no effect
    v_quat[0], v_quat[1] = (v_w - along * w) * inverse, (v_x - along * x) * inverse
    v_quat[2], v_quat[3] = (v_y - along * y) * inverse, (v_z - along * z) * inverse


@_helper
def _to_camera(view, mean, point):  # type: ignore[no-untyped-def]
    """Fills a centre in camera space."""
    for r in range(3):
        point[r] = view[r, 3]
        for k in range(3):
            point[r] += float(view[r, k]) * mean[k]


@_helper
def _clamp_slope(K, size, point, r):  # type: ignore[no-untyped-def]
    """x/z (r = 0) or y/z (r = 1), clamped to the image and a margin, as gsplat does for the Jacobian."""
    focal, centre = float(K[r, r]), float(K[r, 2])
    margin = JACOBIAN_MARGIN * size[r] / focal
    return min(max(point[r] / point[2], -centre / focal - margin), (size[r] - centre) / focal + margin)


@_helper
def _screen_axes(view, K, size, point, rotation, scale, jacobian, axes):  # type: ignore[no-untyped-def]
    """Fills the projection's Jacobian (2 3, by world axes) and the Gaussian's own axes on the screen (2 3)."""
    for r in range(2):
        slope = _clamp_slope(K, size, point, r)
        for i in range(3):
            jacobian[r, i] = K[r, r] / point[2] * (view[r, i] - slope * view[2, i])
        for k in range(3):
            axes[r, k] = 0.0
            for i in range(3):
                axes[r, k] += jacobian[r, i] * rotation[i, k] * scale[k]


@_helper
def _factors(axes):  # type: ignore[no-untyped-def]
    """Blurred variances (xx, yy) on the screen, and the factors (sharpness_x, shear, sharpness_y)."""
    p, q = axes[0], axes[1]
    xx = p[0] * p[0] + p[1] * p[1] + p[2] * p[2]
    xy = p[0] * q[0] + p[1] * q[1] + p[2] * q[2]
    yy = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    # xx yy - xy^2 by Lagrange's identity: the difference of the products would lose a needle's thickness.
    area = (p[1] * q[2] - p[2] * q[1]) ** 2 + (p[2] * q[0] - p[0] * q[2]) ** 2 + (p[0] * q[1] - p[1] * q[0]) ** 2
    determinant = area + BLUR * (xx + yy) + BLUR * BLUR
    xx, yy = xx + BLUR, yy + BLUR
    return xx, yy, yy / determinant, -xy / yy, 1.0 / yy


@_helper
def _factors_backward(axes, v_splat, v_axes):  # type: ignore[no-untyped-def]
    """Fills the gradient of the axes on the screen, given the splat's gradient."""
    v_sharpness_x, v_shear, v_sharpness_y = v_splat[SHARPNESS_X], v_splat[SHEAR], v_splat[SHARPNESS_Y]
    _, _, sharpness_x, shear, sharpness_y = _factors(axes)
    v_xx = -(sharpness_x**2) * v_sharpness_x
    v_xy = 2 * shear * v_xx - sharpness_y * v_shear
    v_yy = shear**2 * v_xx - sharpness_y * (shear * v_shear + sharpness_y * v_sharpness_y)
    for k in range(3):
        v_axes[0, k] = 2 * v_xx * axes[0, k] + v_xy * axes[1, k]
        v_axes[1, k] = 2 * v_yy * axes[1, k] + v_xy * axes[0, k]


@_kernel(
    "void(f4[:,::1],f4[:,::1],f4[:,::1],f4[::1],f4[:,:,::1],f4[:,:,::1],f4[:,:,::1],i8,i8,i8,i8,"
    "f4[:,:,::1],f4[:,:,::1],i4[:,::1])"
)
def project(  # type: ignore[no-untyped-def]
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, start, stop, means2d, splats, radii
):
    """Fills `means2d` (c n 2), `splats` (c n 10) and `radii` (c n), zero before, for the Gaussians start..stop.

    Culled ones stay zero. `colors` are (1 n 3) or (c n 3); columns X and Y of the splats repeat `means2d`.
    """
    rotation, jacobian, axes, point = np.empty((3, 3)), np.empty((2, 3)), np.empty((2, 3)), np.empty(3)
    for n in range(start, stop):
        if not opacities[n] >= ALPHA_MIN:
            continue
        reach = 2.0 * math.log(opacities[n] / ALPHA_MIN)  # 2 sigma where alpha falls to ALPHA_MIN
        _rotation(quats[n], rotation)
        for v in range(len(viewmats)):
            K, splat = Ks[v], splats[v, n]
            _to_camera(viewmats[v], means[n], point)
            if not NEAR <= point[2] <= FAR:
                continue
            _screen_axes(viewmats[v], K, (width, height), point, rotation, scales[n], jacobian, axes)
            xx, yy, sharpness_x, shear, sharpness_y = _factors(axes)
            x, y = K[0, 0] * point[0] / point[2] + K[0, 2], K[1, 1] * point[1] / point[2] + K[1, 2]
            radius_x, radius_y = np.ceil(math.sqrt(reach * xx)), np.ceil(math.sqrt(reach * yy))
            # Written so that a centre that is not a number fails the test too.
            if x + radius_x > 0 and x - radius_x < width and y + radius_y > 0 and y - radius_y < height:
                means2d[v, n, 0], means2d[v, n, 1] = x, y
                splat[X], splat[Y], splat[OPACITY], splat[DEPTH] = x, y, opacities[n], point[2]
                splat[SHARPNESS_X], splat[SHEAR], splat[SHARPNESS_Y] = sharpness_x, shear, sharpness_y
                for k in range(3):
                    splat[RED + k] = colors[v % len(colors), n, k]
                radii[v, n] = min(max(radius_x, radius_y), 1e9)


@_kernel(
    "void(f4[:,::1],f4[:,::1],f4[:,::1],f4[:,:,::1],f4[:,:,::1],i8,i8,i8,i8,i4[:,::1],f4[:,:,::1],f4[:,:,::1],"
    "f4[:,::1],f4[:,::1],f4[:,::1],f4[::1],f4[:,:,::1])"
)
def project_backward(  # type: ignore[no-untyped-def]
    means, quats, scales, viewmats, Ks, width, height, start, stop, radii, v_means2d, v_splats,
    v_means, v_quats, v_scales, v_opacities, v_colors,
):  # fmt: skip
    """Fills the gradients of the five parameters, zero before, for the Gaussians start..stop.

    `v_means2d` replaces the columns X and Y of `v_splats`.
    """
    rotation, v_rotation, v_spread = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    jacobian, axes, v_axes = np.empty((2, 3)), np.empty((2, 3)), np.empty((2, 3))
    point, v_point = np.empty(3), np.empty(3)
    for n in range(start, stop):
        _rotation(quats[n], rotation)
        v_spread[:] = 0.0  # gradient of the rotation times the scales
        for v in range(len(viewmats)):
            if radii[v, n] == 0:
                continue
            view, K, v_splat = viewmats[v], Ks[v], v_splats[v, n]
            _to_camera(view, means[n], point)
            _screen_axes(view, K, (width, height), point, rotation, scales[n], jacobian, axes)
            _factors_backward(axes, v_splat, v_axes)
            v_point[0], v_point[1], v_point[2] = 0.0, 0.0, v_splat[DEPTH]
            for r in range(2):
                slope, v_slope = point[r] / point[2], 0.0
                follows = slope == _clamp_slope(K, (width, height), point, r)
                for i in range(3):
                    v_jacobian = 0.0
                    for k in range(3):
                        v_jacobian += rotation[i, k] * scales[n, k] * v_axes[r, k]
                        v_spread[i, k] += jacobian[r, i] * v_axes[r, k]
                    v_point[2] -= v_jacobian * jacobian[r, i] / point[2]
                    v_slope -= K[r, r] / point[2] * view[2, i] * v_jacobian if follows else 0.0
                v_slope += K[r, r] * v_means2d[v, n, r]
                v_point[r] += v_slope / point[2]
                v_point[2] -= v_slope * slope / point[2]
            v_opacities[n] += v_splat[OPACITY]
            for k in range(3):
                v_means[n, k] += view[0, k] * v_point[0] + view[1, k] * v_point[1] + view[2, k] * v_point[2]
                v_colors[v % len(v_colors), n, k] += v_splat[RED + k]
        for k in range(3):
            for i in range(3):
                v_scales[n, k] += rotation[i, k] * v_spread[i, k]
                v_rotation[i, k] = scales[n, k] * v_spread[i, k]
        _rotation_backward(quats[n], v_rotation, v_quats[n])


@_kernel("Tuple((i8[::1],i8[::1],i4[:,::1]))(f4[:,::1],i8[::1],i8,i8)")
def bin_spans(splats, order, width, height):  # type: ignore[no-untyped-def]
    """Lists the spans of each row of a view: starts (h), ends (h), and spans (m 3) of splat, first and last + 1 pixel.

    `order` holds the visible splats, front to back; the spans of a row have the same order.
    """
    bounds = np.empty((len(order), 2), np.int32)
    counts = np.zeros(height + 1, np.int64)
    for rank in range(len(order)):
        splat = splats[order[rank]]
        half = math.sqrt(2.0 * math.log(splat[OPACITY] / ALPHA_MIN) / splat[SHARPNESS_Y])
        bounds[rank, 0] = max(np.ceil(splat[Y] - half - 0.5), 0.0)
        bounds[rank, 1] = min(np.floor(splat[Y] + half + 0.5), float(height))
        for row in range(bounds[rank, 0], bounds[rank, 1]):
            counts[row + 1] += 1
    starts = np.cumsum(counts)
    ends = starts[:height].copy()
    spans = np.empty((starts[height], 3), np.int32)
    for rank in range(len(order)):
        splat = splats[order[rank]]
        reach = 2.0 * math.log(splat[OPACITY] / ALPHA_MIN)
        for row in range(bounds[rank, 0], bounds[rank, 1]):
            dy = row + 0.5 - splat[Y]
            half = math.sqrt(max(reach - splat[SHARPNESS_Y] * dy * dy, 0.0) / splat[SHARPNESS_X])
            middle = splat[X] - splat[SHEAR] * dy
            first, last = max(np.ceil(middle - half - 0.5), 0.0), min(np.floor(middle + half + 0.5), float(width))
            if first < last:
                spans[ends[row], 0], spans[ends[row], 1], spans[ends[row], 2] = order[rank], first, last
                ends[row] += 1
    return starts, ends, spans


@_helper
def _exp_minus(sigma):  # type: ignore[no-untyped-def]
    """exp(-sigma) for sigma from 0 to SIGMA_MAX, constant beyond."""
    sigma = sigma if sigma < SIGMA_MAX else SIGMA_MAX
    root = E0 + sigma * (E1 + sigma * (E2 + sigma * (E3 + sigma * (E4 + sigma * (E5 + sigma * E6)))))
    root = root * root
    root = root * root
    return root * root


@_kernel("void(f4[:,::1],i8[::1],i8[::1],i4[:,::1],i8,i8,f4[:,:,::1],f4[:,:,::1],f4[:,:,::1])")
def composite(splats, starts, ends, spans, share, shares, rgb, alpha, depth):  # type: ignore[no-untyped-def]
    """Fills rgb, alpha and depth (h w 3, 1, 1) of one view, in the rows share, share + shares, ...

    Drops the spans of which nothing is seen from `spans` and `ends`, which spares `composite_backward` half of a solid
    object.
    """
    height, width, _ = rgb.shape
    row = np.empty(((width + BLOCK - 1) // BLOCK, 6, BLOCK), np.float32)  # transmittance; r, g, b, alpha, depth
    light = np.empty(len(row), np.float32)  # sum of a block's transmittances; at zero, the block is complete
    for y in range(share, height, shares):
        row[:, 0], row[:, 1:], light[:] = ONE, ZERO, ONE
        kept = starts[y]
        for s in range(starts[y], ends[y]):
            splat = splats[spans[s, 0]]
            dy = np.float32(y) + HALF - splat[Y]
            middle = splat[X] - splat[SHEAR] * dy - HALF
            half_x, sigma_y = HALF * splat[SHARPNESS_X], HALF * splat[SHARPNESS_Y] * dy * dy
            opacity, red, green, blue, z = splat[OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
            is_seen = False
            for b in range(spans[s, 1] // BLOCK, (spans[s, 2] + BLOCK - 1) // BLOCK):
                if light[b] == ZERO:
                    continue
                is_seen = True
                block, left = row[b], ZERO
                offset = np.float32(b * BLOCK) - middle
                for i in range(BLOCK):
                    u = np.float32(i) + offset
                    a = opacity * _exp_minus(half_x * u * u + sigma_y)
                    a = ALPHA_CAP if a > ALPHA_CAP else a
                    a = a if a >= ALPHA_MIN else ZERO
                    after = block[0, i] * (ONE - a)
                    weight = a * block[0, i] if after > TRANSMITTANCE_MIN else ZERO
                    after = after if after > TRANSMITTANCE_MIN else ZERO  # zero closes the pixel
                    left += after
                    block[0, i] = after
                    block[1, i] += weight * red
                    block[2, i] += weight * green
                    block[3, i] += weight * blue
                    block[4, i] += weight
                    block[5, i] += weight * z
                light[b] = left
            if is_seen:
                spans[kept, 0], spans[kept, 1], spans[kept, 2] = spans[s, 0], spans[s, 1], spans[s, 2]
                kept += 1
        ends[y] = kept
        for x in range(width):
            block, i = row[x // BLOCK], x % BLOCK
            rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2] = block[1, i], block[2, i], block[3, i]
            alpha[y, x, 0], depth[y, x, 0] = block[4, i], block[5, i]


@_kernel("void(f4[:,::1],i8[::1],i8[::1],i4[:,::1],i8,i8,i8,f4[::1])")
def composite_weights(splats, starts, ends, spans, share, shares, width, weights):  # type: ignore[no-untyped-def]
    """Adds each splat's weights in the pixels of the rows share, share + shares, ... of one view to `weights` (n)."""
    row = np.empty(((width + BLOCK - 1) // BLOCK, BLOCK), np.float32)  # transmittance
    light = np.empty(len(row), np.float32)  # as in `composite`
    for y in range(share, len(ends), shares):
        row[:], light[:] = ONE, ONE
        for s in range(starts[y], ends[y]):
            splat = splats[spans[s, 0]]
            dy = np.float32(y) + HALF - splat[Y]
            middle = splat[X] - splat[SHEAR] * dy - HALF
            half_x, sigma_y = HALF * splat[SHARPNESS_X], HALF * splat[SHARPNESS_Y] * dy * dy
            opacity, total = splat[OPACITY], ZERO
            for b in range(spans[s, 1] // BLOCK, (spans[s, 2] + BLOCK - 1) // BLOCK):
                if light[b] == ZERO:
                    continue
                block, left = row[b], ZERO
                offset = np.float32(b * BLOCK) - middle
                for i in range(BLOCK):
                    u = np.float32(i) + offset
                    a = opacity * _exp_minus(half_x * u * u + sigma_y)
                    a = ALPHA_CAP if a > ALPHA_CAP else a
                    a = a if a >= ALPHA_MIN else ZERO
                    after = block[i] * (ONE - a)
                    total += a * block[i] if after > TRANSMITTANCE_MIN else ZERO
                    after = after if after > TRANSMITTANCE_MIN else ZERO
                    left += after
                    block[i] = after
                light[b] = left
            weights[spans[s, 0]] += total


@_kernel(
    "void(f4[:,::1],i8[::1],i8[::1],i4[:,::1],i8,i8,f4[:,:,::1],f4[:,:,::1],f4[:,:,::1],"
    "f4[:,:,::1],f4[:,:,::1],f4[:,:,::1],f4[:,::1])"
)
def composite_backward(  # type: ignore[no-untyped-def]
    splats, starts, ends, spans, share, shares, rgb, alpha, depth, v_rgb, v_alpha, v_depth, v_splats
):
    """Adds the contribution of the rows share, share + shares, ... to the gradient of one view's splats.

    With f the derivative of the loss by a splat's weight, and T the transmittance before it,
    dloss/dalpha = T f - (sum of weight f behind) / (1 - alpha).
    """
    height, width, _ = rgb.shape
    row = np.zeros(((width + BLOCK - 1) // BLOCK, 7, BLOCK), np.float32)  # transmittance; sum behind; derivatives
    light = np.empty(len(row), np.float32)  # as in `composite`
    for y in range(share, height, shares):
        row[:, 0], light[:] = ONE, ONE
        for x in range(width):
            block, i = row[x // BLOCK], x % BLOCK
            block[2, i], block[3, i], block[4, i] = v_rgb[y, x, 0], v_rgb[y, x, 1], v_rgb[y, x, 2]
            block[5, i], block[6, i] = v_alpha[y, x, 0], v_depth[y, x, 0]
            block[1, i] = block[5, i] * alpha[y, x, 0] + block[6, i] * depth[y, x, 0]
            for k in range(3):
                block[1, i] += block[2 + k, i] * rgb[y, x, k]
        for s in range(starts[y], ends[y]):
            splat = splats[spans[s, 0]]
            dy = np.float32(y) + HALF - splat[Y]
            middle = splat[X] - splat[SHEAR] * dy - HALF
            half_x, sigma_y = HALF * splat[SHARPNESS_X], HALF * splat[SHARPNESS_Y] * dy * dy
            opacity, red, green, blue, z = splat[OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
            v_red = v_green = v_blue = v_z = m0 = m1 = m2 = ZERO  # m: moments in u of the gradient of sigma
            for b in range(spans[s, 1] // BLOCK, (spans[s, 2] + BLOCK - 1) // BLOCK):
                if light[b] == ZERO:
                    continue
                block, left = row[b], ZERO
                offset = np.float32(b * BLOCK) - middle
                for i in range(BLOCK):
                    u = np.float32(i) + offset
                    uncapped = opacity * _exp_minus(half_x * u * u + sigma_y)
                    a = ALPHA_CAP if uncapped > ALPHA_CAP else uncapped
                    a = a if a >= ALPHA_MIN else ZERO
                    before = block[0, i]
                    after = before * (ONE - a)
                    a = a if after > TRANSMITTANCE_MIN else ZERO
                    weight = a * before
                    f = block[2, i] * red + block[3, i] * green + block[4, i] * blue + block[5, i] + block[6, i] * z
                    behind = block[1, i] - weight * f
                    after = after if after > TRANSMITTANCE_MIN else ZERO
                    left += after
                    block[0, i], block[1, i] = after, behind
                    v_sigma = a * (behind / (ONE - a) - before * f)
                    v_sigma = v_sigma if uncapped <= ALPHA_CAP else ZERO
                    v_red += weight * block[2, i]
                    v_green += weight * block[3, i]
                    v_blue += weight * block[4, i]
                    v_z += weight * block[6, i]
                    m0 += v_sigma
                    m1 += v_sigma * u
                    m2 += v_sigma * u * u
                light[b] = left
            v_splat = v_splats[spans[s, 0]]
            v_splat[X] -= splat[SHARPNESS_X] * m1
            v_splat[Y] -= splat[SHARPNESS_X] * splat[SHEAR] * m1 + splat[SHARPNESS_Y] * dy * m0
            v_splat[SHARPNESS_X] += HALF * m2
            v_splat[SHEAR] += splat[SHARPNESS_X] * dy * m1
            v_splat[SHARPNESS_Y] += HALF * dy * dy * m0
            v_splat[OPACITY] -= m0 / opacity
            v_splat[RED] += v_red
            v_splat[GREEN] += v_green
            v_splat[BLUE] += v_blue
            v_splat[DEPTH] += v_z
