"""An independent Point-E in float64 numpy, formula by formula and one sample at a time.

Nothing here is shared with the package: weights come in as arrays under the official names.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]

erf = np.vectorize(math.erf)


def alphas_cumprod(schedule: str) -> Array:
    products, product = [], 1.0
    for i in range(1024):
        if schedule == "linear":
            first, last = 0.1 / 1024, 20 / 1024
            beta = first + (last - first) * i / 1023
        else:
            now, then = (math.cos((u / 1024 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (i, i + 1))
            beta = min(1 - then / now, 0.999)
        product *= 1 - beta
        products.append(product)
    return np.array(products)


def noise_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    return [
        (sigma_max ** (1 / rho) + i / (steps - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
        for i in range(steps)
    ] + [0.0]


def timestep(sigma: float, alphas: Array) -> int:
    """Linear interpolation of the step over alpha-bar, its fraction cut off."""
    alpha = 1 / (1 + sigma**2)
    return int(np.interp(alpha, alphas[::-1], np.arange(1024)[::-1]))


def time_embedding(t: int, width: int) -> Array:
    half = width // 2
    frequencies = [10_000 ** (-i / half) for i in range(half)]
    return np.array([math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies])


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: Array) -> Array:
    h = linear(w, f"{name}.c_fc", x)
    return linear(w, f"{name}.c_proj", h * (1 + erf(h / math.sqrt(2))) / 2)


def attention(w: Weights, name: str, x: Array, heads: int) -> Array:
    qkv = linear(w, f"{name}.c_qkv", x)
    size = x.shape[-1] // heads
    mixed = np.empty_like(x)
    for head in range(heads):
        q, k, v = (qkv[:, (3 * head + part) * size : (3 * head + part + 1) * size] for part in range(3))
        scores = q @ k.T / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head * size : (head + 1) * size] = weights / weights.sum(-1, keepdims=True) @ v
    return linear(w, f"{name}.c_proj", mixed)


def network(w: Weights, heads: int, grid: tuple[int, int], points: Array, t: int, given: Array) -> Array:
    """Noise and variance, n x 12. `given` is a text vector, or points in world units."""
    width = len(w["ln_pre.weight"])
    time = mlp(w, "time_embed", time_embedding(t, width))[None]
    if given.ndim == 1:
        tokens = [linear(w, "clip_embed", math.sqrt(len(given)) * given)[None], time]
    else:
        images = linear(w, "clip_embed.1", norm(w, "clip_embed.0", np.zeros(grid)))
        tokens = [time, images, linear(w, "cond_point_proj", given * w["channel_scales"] + w["channel_biases"])]
    x = norm(w, "ln_pre", np.concatenate([*tokens, linear(w, "input_proj", points)]))
    layer = 0
    while f"backbone.resblocks.{layer}.ln_1.weight" in w:
        name = f"backbone.resblocks.{layer}"
        x = x + attention(w, f"{name}.attn", norm(w, f"{name}.ln_1", x), heads)
        x = x + mlp(w, f"{name}.mlp", norm(w, f"{name}.ln_2", x))
        layer += 1
    return linear(w, "output_proj", norm(w, "ln_post", x)[-len(points) :])


Predict = Callable[[Array, int, Array], Array]


def trajectory(
    predict: Predict,
    schedule: str,
    given: Array,
    start: Array,
    fresh: list[Array],
    *,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    churn: float,
    guidance_scale: float | None,
) -> Array:
    """A stage's points in model units, after all Heun steps."""
    alphas = alphas_cumprod(schedule)

    def seen(x: Array, sigma: float, condition: Array) -> Array:
        t = timestep(sigma, alphas)
        scaled = x / math.sqrt(1 + sigma**2)
        eps = predict(scaled, t, condition)[:, :6]
        return np.clip((scaled - math.sqrt(1 - alphas[t]) * eps) / math.sqrt(alphas[t]), -1, 1)

    def denoise(x: Array, sigma: float) -> Array:
        cond = seen(x, sigma, given)
        if guidance_scale is None:
            return cond
        return guidance_scale * cond + (1 - guidance_scale) * seen(x, sigma, np.zeros_like(given))

    sigmas = noise_levels(steps, sigma_min, sigma_max, 7.0)
    x = start * sigmas[0]
    for i in range(steps):
        hat = sigmas[i] * (1 + min(churn / steps, math.sqrt(2) - 1))
        if churn:
            x = x + math.sqrt(hat**2 - sigmas[i] ** 2) * fresh[i]
        d = (x - denoise(x, hat)) / hat
        x_next = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] > 0:
            d_next = (x_next - denoise(x_next, sigmas[i + 1])) / sigmas[i + 1]
            x_next = x + (sigmas[i + 1] - hat) * (d + d_next) / 2
        x = x_next
    return x


def world(points: Array) -> Array:
    """From model units, -1..1, to a cube of side 1 and bytes."""
    return np.concatenate([points[:, :3] / 2, (points[:, 3:] + 1) * 127.5], axis=1)
