"""The assets of an evaluation: reading their files, and moving them to the frame of the views."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.asset_files import stem_of
from segdream_cli.evaluate.metrics import Asset
from segdream_cli.evaluate.views import FOV_RAD, RADIUS
from segdream_cli.formats.common import DEFAULT, Reading
from segdream_cli.splats import Splats
from segdream_cli.splats.bounds import bounds
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.placement import place

REACH = RADIUS * math.sin(FOV_RAD / 2)
"""Radius of the sphere about the origin that the views show whole, 0.950."""
LEAST_RADIUS = 0.5
"""Radius of an asset's sphere below which the views show it too small."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An asset to evaluate, which has been read once.

    Args:
        name: unique among the entries.
        path: its file.
        prompt: its own or a given one; None if it has none.
        fitted: whether its views show it moved and scaled to fill them.
        reading: how to read the file; its notes were told at the first time.
    """

    name: str
    path: Path
    prompt: str | None
    fitted: bool
    reading: Reading = DEFAULT

    @property
    def key(self) -> str:
        """Its prompt, or the stem of its file: assets with the same key show the same thing."""
        return self.prompt or stem_of(self.path)

    def read(self, device: torch.device) -> Asset:
        """The asset on a device; raises the errors of `list_assets` if its file has changed."""
        splats = _read(self.path, replace(self.reading, note=DEFAULT.note))
        placed = _fit(splats, self.path) if self.fitted else splats
        gaussians = Gaussians.from_splats(placed).to(device)
        return Asset(name=self.name, path=self.path, prompt=self.prompt, splats=splats, gaussians=gaussians)


def list_assets(
    paths: Sequence[Path],
    *,
    fit: bool | None,
    reading: Reading = DEFAULT,
) -> list[Entry]:
    """Reads every asset once, so that none is refused in the middle of an evaluation.

    Args:
        paths: files, each a different one.
        fit: move assets into the views and scale them to fill these; None moves those that are cut off or small.
        reading: how to read them.

    Raises:
        UsageProblem: a file can't be read, its asset has no usable size, or there is no such frame.
    """
    stems = Counter(stem_of(path) for path in paths)
    entries = []
    for path in paths:
        splats = _read(path, reading)
        fitted = fit if fit is not None else not _fits(splats)
        if fitted:
            _fit(splats, path)
        prompt = splats.provenance.get("prompt")
        prompt = prompt.strip() if isinstance(prompt, str) and prompt.strip() else None
        name = stem_of(path) if stems[stem_of(path)] == 1 else str(path)
        entries.append(Entry(name, path, prompt, fitted, reading))
    return entries


def with_prompts(entries: Sequence[Entry], prompts: Sequence[str]) -> list[Entry]:
    """The entries with one given prompt each."""
    return [replace(entry, prompt=prompt) for entry, prompt in zip(entries, prompts, strict=True)]


def _read(path: Path, reading: Reading) -> Splats:
    splats = formats.read(path, reading)
    if not len(splats):
        raise UsageProblem(f"{path} has no Gaussians")
    return splats


def _fits(splats: Splats) -> bool:
    """Whether the views show an asset whole and not too small."""
    center, radius = bounds(splats)
    return radius >= LEAST_RADIUS and float(np.linalg.norm(center)) + radius <= REACH


def _fit(splats: Splats, path: Path) -> Splats:
    """The asset moved so that its sphere fills the views.

    Raises:
        UsageProblem: it has no extent, or one that 32-bit floats can't square.
    """
    try:
        return place(splats).apply(splats)
    except ValueError as problem:
        raise UsageProblem(f"{path} has no usable size: {problem}") from problem
