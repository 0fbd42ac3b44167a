"""The assets of an evaluation: finding their files, reading them, and moving them to the frame of the views."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.metrics import Asset
from segdream_cli.evaluate.views import FOV_RAD, RADIUS
from segdream_cli.formats.common import ANOTHER_FILE, DEFAULT, Reading
from segdream_cli.formats.sniff import META
from segdream_cli.splats import Splats
from segdream_cli.splats.bounds import bounds
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.placement import place
from segdream_cli.util.files import lexists

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
    """

    name: str
    path: Path
    prompt: str | None
    fitted: bool

    @property
    def key(self) -> str:
        """Its prompt, or the stem of its file: assets with the same key show the same thing."""
        return self.prompt or stem_of(self.path)

    def read(self, device: torch.device) -> Asset:
        """The asset on a device; raises the errors of `list_assets` if its file has changed."""
        splats = _read(self.path)
        placed = _fit(splats, self.path) if self.fitted else splats
        gaussians = Gaussians.from_splats(placed).to(device)
        return Asset(name=self.name, path=self.path, prompt=self.prompt, splats=splats, gaussians=gaussians)


def find_assets(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files of assets: those given, and those in given folders, in order of their names.

    Returns:
        The files, and messages about those left out: a file that is named twice, and a file of a folder whose stem has
        an earlier suffix of `formats.READABLE_SUFFIXES` there too: one asset is often exported to several formats.

    Raises:
        UsageProblem: a folder can't be read, or holds no asset.
    """
    found: dict[Path, Path] = {}
    notes = []
    for path in paths:
        if path.is_dir() and not (path / META).is_file():  # the folder of an unbundled SOG is one asset
            members, left_out = _members(path)
            notes += left_out
        elif not path.suffix and not lexists(path):
            raise UsageProblem(f"there is no folder or file {path}", hint=make_hint(path))
        else:
            members = [path]
        for member in members:
            if member.resolve() in found:
                notes.append(f"{member} is named twice and counts once")
            found.setdefault(member.resolve(), member)
    return list(found.values()), notes


def _members(folder: Path) -> tuple[list[Path], list[str]]:
    """The assets in a folder, one per stem, and messages about the others."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as problem:
        raise UsageProblem(
            f"{folder} can't be read: {problem.strerror}", hint=f"ls -ld {quote(str(folder))}"
        ) from problem
    chosen: dict[str, Path] = {}
    notes = []
    for suffix in formats.READABLE_SUFFIXES:
        for path in files:
            if formats.readable_suffix(path) != suffix:
                continue
            stem = path.name[: -len(suffix)]
            if stem in chosen:
                notes.append(f"{path} is left out, because {chosen[stem].name} is beside it")
            else:
                chosen[stem] = path
    if not chosen:
        raise UsageProblem(
            f"the folder {folder} holds no asset",
            hint=make_hint(folder),
        )
    return sorted(chosen.values()), list(dict.fromkeys(notes))


def make_hint(folder: Path) -> str:
    """A command that makes assets in a folder."""
    return f"segdream generate --prompts prompts/quickstart.txt --out-dir {quote(str(folder))}"


def list_assets(
    paths: Sequence[Path], *, fit: bool | None, note: Callable[[str], object] = DEFAULT.note
) -> list[Entry]:
    """Reads every asset once, so that none is refused in the middle of an evaluation.

    Args:
        paths: files, each a different one.
        fit: move assets into the views and scale them to fill these; None moves those that are cut off or small.
        note: receives the notes of the readers.

    Raises:
        UsageProblem: a file can't be read, or its asset has no usable size.
    """
    stems = Counter(stem_of(path) for path in paths)
    entries = []
    for path in paths:
        splats = _read(path, Reading(note=note))
        fitted = fit if fit is not None else not _fits(splats)
        if fitted:
            _fit(splats, path)
        prompt = splats.provenance.get("prompt")
        prompt = prompt.strip() if isinstance(prompt, str) and prompt.strip() else None
        name = stem_of(path) if stems[stem_of(path)] == 1 else str(path)
        entries.append(Entry(name, path, prompt, fitted))
    return entries


def with_prompts(entries: Sequence[Entry], prompts: Sequence[str]) -> list[Entry]:
    """The entries with one given prompt each."""
    return [replace(entry, prompt=prompt) for entry, prompt in zip(entries, prompts, strict=True)]


def stem_of(path: Path) -> str:
    """The file's name without the suffix of its format."""
    suffix = formats.readable_suffix(path)
    return (path.name[: -len(suffix)] if suffix else path.stem) or path.name


def _read(path: Path, reading: Reading = DEFAULT) -> Splats:
    splats = formats.read(path, reading)
    if not len(splats):
        raise UsageProblem(f"{path} has no Gaussians", hint=ANOTHER_FILE)
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
        raise UsageProblem(f"{path} has no usable size: {problem}", hint=ANOTHER_FILE) from problem
