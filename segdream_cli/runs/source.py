"""The asset that a refinement starts from: a splat or a mesh from any tool, in its own frame and scale."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from segdream_cli import formats
from segdream_cli.config import Config
from segdream_cli.errors import UsageProblem
from segdream_cli.formats import glb
from segdream_cli.formats.common import DEFAULT, SIGNATURE, Reading, open_asset
from segdream_cli.formats.ply_header import read_header
from segdream_cli.mesh import surface
from segdream_cli.runs.jobs import Source
from segdream_cli.splats import BANDS, Splats
from segdream_cli.splats.edits import Edits, apply_edits
from segdream_cli.splats.frames import UPRIGHT, check_frame
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.splats.placement import Placement, place
from segdream_cli.util.download import file_sha256
from segdream_cli.util.home import abbreviate, expand

ALPHA_MIN = 1 / 255
"""Opacity below which a Gaussian is not drawn."""
OTHER_MESHES = (".gltf", ".off", ".stl")
"""Suffixes of meshes that trimesh reads and segdream does not."""
FEWEST = 100
"""Smallest number of Gaussians that can be refined."""


@dataclass(frozen=True, slots=True)
class Start:
    """A source in the working frame.

    Args:
        gaussians: the Gaussians to refine.
        anchor: all Gaussians of the source; the views of the result should resemble theirs.
        placement: from the source's frame to the working frame.
        origin: the source's entries for the provenance of the result.
    """

    gaussians: Gaussians
    anchor: Gaussians
    placement: Placement
    origin: dict[str, Any]

    def finish(self, splats: Splats) -> Splats:
        """The refined asset in the frame and scale of its source, which its provenance names."""
        placed = self.placement.undo(splats)
        return dataclasses.replace(placed, provenance={**splats.provenance, "source": self.origin})


def source_of(path: Path, front_deg: float = 0.0, sh: int = 3, up: str = "y", reading: Reading = DEFAULT) -> Source:
    """The source in a file, to be read as `reading` says.

    Raises:
        UsageProblem: it can't be read, or has no suffix of an asset or a mesh, `up` is no axis, or there is no such
            frame, or it is given for a mesh.
    """
    if up not in UPRIGHT:
        raise UsageProblem(f"up can't be {up!r}; it is one of {', '.join(UPRIGHT)}", hint="--up z")
    suffix = path.suffix.lower()
    if suffix in OTHER_MESHES and not (suffix == ".gltf" and glb.holds_gaussians(path)):
        script = f"import trimesh; trimesh.load({str(path)!r}).export({f'{path}.glb'!r})"
        raise UsageProblem(
            f"{path} is a mesh, and segdream reads only .glb and .obj meshes", hint=f"python -c {quote(script)}"
        )
    if suffix != ".obj":
        formats.kind_of(path)
    frame = reading.frame if reading.frame is None else check_frame(reading.frame)
    if frame is not None and surface.is_mesh(path):
        raise UsageProblem(
            f"{path} is a mesh, which glTF and segdream read as y up; a frame can't be given", hint="--up z"
        )
    return Source(abbreviate(path), _hash(path), front_deg, sh, up, frame, reading.strict, reading.as_splats)


def load_source(source: Source, config: Config, note: Callable[[str], None], again: str) -> Start:
    """Reads a source, thins it to the limit on Gaussians, and moves it to the working frame.

    Args:
        source: the file.
        config: `densify.cap` and `refine.surface`.
        note: receives what was changed.
        again: the command that starts over.

    Raises:
        UsageProblem: the file can't be read, has changed, or can't be refined.
    """
    path = expand(source.path)
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())  # shorter in messages
    if _hash(path) != source.sha256:
        raise UsageProblem(f"{path} has changed since the run began", hint=again)
    how = Reading(strict=source.strict, as_splats=source.as_splats, frame=source.frame, note=note)
    splats = _read(path, config, how)
    highest = float(1 / (1 + np.exp(-splats.opacity_logits.max().astype(np.float64))))
    if highest < config.refine.prune_opacity:
        raise UsageProblem(
            f"{path} is transparent: the highest opacity of its Gaussians is {highest:.2g}",
            hint=f"--set refine.prune_opacity={highest / 2:.2g}" if highest > ALPHA_MIN else None,
        )
    try:
        placement = place(splats, source.front_deg, source.up)
    except ValueError as problem:
        raise UsageProblem(f"{path} has no usable size: {problem}") from problem
    whole = placement.apply(apply_edits(splats, Edits(sh=source.sh)))
    thin = whole
    if config.densify.cap is not None:
        from segdream_cli.simplify.merging import merge  # compiles its kernel, which few runs need

        thin = merge(whole, config.densify.cap)
    for change in _changes(splats, thin, source):
        note(f"{path.name}: {change}")
    origin: dict[str, Any] = {"file": path.name, "sha256": source.sha256}
    if splats.provenance:
        origin["provenance"] = dict(splats.provenance)
    if comments := _comments(path):
        origin["comments"] = comments
    return Start(Gaussians.from_splats(thin), Gaussians.from_splats(whole), placement, origin)


def _read(path: Path, config: Config, reading: Reading) -> Splats:
    """The splat, or the Gaussians on the surface of the mesh, in a file.

    Raises:
        UsageProblem: it can't be read, or has too few Gaussians.
    """
    if surface.is_mesh(path):
        return surface.read(path, min(config.refine.surface, config.densify.cap or config.refine.surface))
    splats = formats.read(path, reading)
    if len(splats) < FEWEST:
        raise UsageProblem(f"{path} has {len(splats)} Gaussians, and a refinement needs at least {FEWEST}")
    return splats


def _changes(splats: Splats, thin: Splats, source: Source) -> Iterator[str]:
    """Messages about the parts of the asset that the refinement drops or keeps as they are."""
    if surface.is_mesh(expand(source.path)):
        yield f"{len(splats):,} Gaussians on its surface; --set refine.surface=N changes their number"
    degree = BANDS.index(splats.shN.shape[1])
    if degree > source.sh:
        yield f"spherical harmonics of degree {degree} reduced to {source.sh}"
    elif degree:
        yield "spherical harmonics kept, but only the base colour is refined; --sh 0 drops them"
    if len(thin) < len(splats):
        yield f"{len(splats):,} Gaussians merged into {len(thin):,}; see --max-gaussians"


def _hash(path: Path) -> str:
    """SHA-256 of a file; raises the errors of `open_asset`."""
    with open_asset(path):  # for its errors
        return file_sha256(path)


def _comments(path: Path) -> list[str]:
    """The comments that other tools left in the header of a .ply."""
    if surface.is_mesh(path) or formats.kind_of(path) not in ("ply", "compressed-ply"):
        return []
    with open_asset(path) as stream:
        return [line for line in read_header(path, stream).comments if not line.startswith(SIGNATURE)]
