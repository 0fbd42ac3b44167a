"""Reference images of a distance: a folder with a manifest, and its images drawn from a prior.

Shapes: p prompts, v views of each, m images, s pixels square.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from segdream_cli.distill.guidance import guided_noise
from segdream_cli.distill.schedule import NoiseSchedule
from segdream_cli.distill.view_prompts import conditions, view_weights
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.reference_folder import check_folder, make_another
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.render.images import write_png
from segdream_cli.util.download import file_sha256
from segdream_cli.util.files import atomic_write, parse_json, write_problem

MANIFEST = "references.json"
VERSION = 1
DDIM_STEPS = 50
AT_ONCE = 16
"""Images that are read, or drawn, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A row of a manifest."""

    file: str
    """Name of the image in the folder."""
    prompt: str
    azimuth_deg: float
    sha256: str
    """Hash of the file."""


@dataclass(frozen=True, slots=True)
class References:
    """The images of a folder, in the order of its manifest."""

    folder: Path
    rows: Sequence[Reference]

    @classmethod
    def read(cls, folder: Path) -> "References":
        """Reads the manifest of a folder; the images are read by `images`.

        Raises:
            UsageProblem: there is no manifest, or it is not one.
        """
        path = folder / MANIFEST
        hint = make_another(folder)
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            rows = [_parse(row) for row in content["images"]]
            if content["version"] != VERSION or len(rows) < 2:
                raise UsageProblem(f"{path} is not a manifest of version {VERSION} with two images or more", hint=hint)
        except OSError as problem:
            raise UsageProblem(f"{path} can't be read: {problem.strerror}", hint=hint) from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise UsageProblem(f"{path} is not a manifest of references: {problem}", hint=hint) from problem
        return cls(folder, rows)

    def images(self) -> Iterator[UInt8[Tensor, "m 3 s s"]]:
        """The images, a few at a time.

        Raises:
            UsageProblem: an image is missing, has changed since the manifest was written, or has another size than the
                first.
        """
        side = 0
        for start in range(0, len(self.rows), AT_ONCE):
            pixels = [self._read(row) for row in self.rows[start : start + AT_ONCE]]
            side = pixels[0].shape[0] if start == 0 else side
            for row, each in zip(self.rows[start:], pixels, strict=False):
                if each.shape != (side, side, 3):
                    raise UsageProblem(
                        f"{self.folder / row.file} is not a square image of the first one's size",
                        hint=self._hint,
                    )
            yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def _read(self, row: Reference) -> UInt8[np.ndarray, "s s 3"]:
        path = self.folder / row.file
        try:
            if file_sha256(path) != row.sha256:
                raise UsageProblem(
                    f"{path} is not the image that {MANIFEST} lists: its SHA-256 differs",
                    hint=self._hint,
                )
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
            raise UsageProblem(f"{path} can't be read: {problem}", hint=self._hint) from problem
        return pixels

    @property
    def _hint(self) -> str:
        return make_another(self.folder)


def _parse(fields: Mapping[str, Any]) -> Reference:
    """A row of a manifest; raises a TypeError if it is something else."""
    row = Reference(**fields)
    if not isinstance(row.file, str):
        raise TypeError(f"{row.file!r} is not the name of a file")
    return row


def write_references(
    folder: Path,
    drawn: Iterator[tuple[str, float, UInt8[np.ndarray, "s s 3"]]],
    origin: Mapping[str, Any],
) -> int:
    """Writes images and their manifest to a folder, which appears when it is complete; returns their number.

    Args:
        folder: does not exist yet.
        drawn: prompt, azimuth in degrees, and image.
        origin: where the images come from, for the manifest.

    Raises:
        OutputExists, UsageProblem, SegdreamError: the folder can't be written.
    """
    check_folder(folder)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:32]}."))
    try:
        rows = []
        for i, (prompt, azimuth, image) in enumerate(drawn):
            path = scratch / f"{i:05d}.png"
            write_png(path, image, {"prompt": prompt})
            rows.append(Reference(file=path.name, prompt=prompt, azimuth_deg=azimuth, sha256=file_sha256(path)))
        content = {"version": VERSION, "origin": dict(origin), "images": [asdict(row) for row in rows]}
        with atomic_write(scratch / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp lets nobody else read
        scratch.rename(folder)
    except OSError as problem:
        raise write_problem(problem, folder) from problem
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(rows)


def draw_references(
    pipeline: Pipeline, prompts: Sequence[str], count: int, seed: int, guidance_scale: float
) -> Iterator[tuple[str, float, UInt8[np.ndarray, "s s 3"]]]:
    """The prior's images of each prompt from `count` azimuths, evenly spaced from the front on, at elevation 0."""
    azimuths = torch.arange(count) * (360 / count)
    generator = torch.Generator().manual_seed(seed)
    for prompt in prompts:
        for part in azimuths.split(AT_ONCE):
            images = sample_images(pipeline, [prompt], part, torch.zeros(len(part)), generator, guidance_scale)[0]
            pixels = (images * 255 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
            for azimuth, image in zip(part.tolist(), pixels, strict=True):
                yield prompt, azimuth, image


@torch.no_grad()
def sample_images(
    pipeline: Pipeline,
    prompts: Sequence[str],
    azimuth_deg: Float[Tensor, " v"],
    elevation_deg: Float[Tensor, " v"],
    generator: torch.Generator,
    guidance_scale: float,
) -> Float[Tensor, "p v 3 s s"]:
    """The prior's images of prompts with the phrases of views, in 0..1: 50 steps of DDIM from noise.

    The timesteps are those of Stable Diffusion's scheduler: 981, 961, ..., 1 of 1000, then 0.
    """
    prior, config = pipeline.prior, pipeline.config
    p, v = len(prompts), len(azimuth_deg)
    seen = azimuth_deg.repeat(p), elevation_deg.repeat(p)
    weights = view_weights(*seen, prior.profile.views, config.view, perp_neg=False)
    texts = conditions([pipeline.embed(prompt) for prompt in prompts], weights)
    schedule = NoiseSchedule(prior.alphas_cumprod)
    stride = len(prior.alphas_cumprod) // DDIM_STEPS
    times = [*range((DDIM_STEPS - 1) * stride + 1, 0, -stride), 0]
    latents = torch.randn(p * v, *prior.latent_shape, generator=generator).to(pipeline.device)
    for t, e in pairwise(torch.full((p * v,), time) for time in times):
        eps = guided_noise(prior.predict_noise, latents, t, texts, guidance_scale)
        latents = schedule.step(latents, eps, t, e)
    images: Tensor = prior.decode(latents).clamp(0, 1).unflatten(0, (p, v))
    return images
