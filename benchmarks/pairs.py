"""Sheets for blind comparison and blind naming of assets.

    python -m benchmarks.pairs compare OLD NEW out/pairs --answers out/pairs.json
    python -m benchmarks.pairs name NEW out/naming --answers out/naming.json

`compare` writes a PNG per asset that both folders have, of the same file name: its prompt, A on the left and B on the
right, two views each over white and over black. `name` writes PNGs of numbered assets without their prompts. The
answers are in a file of their own.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from segdream_cli import formats
from segdream_cli.config import AUTO
from segdream_cli.render.cameras import frame_sphere
from segdream_cli.render.images import Bytes, caption_strip, contact_sheet, write_png
from segdream_cli.render.view import render
from segdream_cli.splats.gaussians import Gaussians
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import atomic_write

AZIMUTHS_DEG, ELEVATIONS_DEG, SIZE = (30.0, 215.0), (15.0, 30.0), 256
ROWS = 4
"""Rows of two assets in a sheet for naming."""

Folder = Annotated[Path, typer.Argument(help="Folder of PLY files of the working radius, named after their prompts.")]
Out = Annotated[Path, typer.Argument(help="Folder for the sheets.")]
Answers = Annotated[Path, typer.Option(help="JSON file for the answers.")]
Device = Annotated[str, typer.Option(help="Device that renders.")]

app = typer.Typer(help=__doc__)


@torch.no_grad()
def draw(path: Path, backgrounds: Sequence[float], device: torch.device) -> Bytes:
    """Two views of an asset side by side over each background, one below the other: bytes [h, w, 3]."""
    gaussians = Gaussians.from_splats(formats.read(path)).to(device)
    cameras = frame_sphere(torch.tensor(AZIMUTHS_DEG), torch.tensor(ELEVATIONS_DEG), SIZE)
    rendering = render(gaussians, cameras.to(device))
    tiles = [tile for gray in backgrounds for tile in rendering.over(torch.tensor(gray, device=device)).cpu().numpy()]
    return contact_sheet(tiles, len(AZIMUTHS_DEG))


def prompt_of(path: Path) -> str:
    """The prompt that a file is named after."""
    return path.stem.replace("-", " ")


def write_answers(path: Path, answers: Any) -> None:
    """Writes the answers as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


@app.command()
def compare(old: Folder, new: Folder, out: Out, answers: Answers, seed: int = 0, device: Device = AUTO) -> None:
    """Writes a sheet per asset of both folders, in random order; the answers say which folder A is."""
    place, rng = choose_device(device), random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    names = sorted({path.name for path in old.glob("*.ply")} & {path.name for path in new.glob("*.ply")})
    if not names:
        raise typer.BadParameter("the folders have no files of the same name")
    rng.shuffle(names)
    # each folder is A equally often, so that a reader who prefers a side gains nothing
    sides = [("old", "new"), ("new", "old")] * (len(names) // 2 + 1)
    sides = rng.sample(sides[: len(names)], len(names))
    rows = []
    for i, (name, order) in enumerate(zip(names, sides, strict=True)):
        left, right = (draw({"old": old, "new": new}[which] / name, (1.0, 0.0), place) for which in order)
        gap = np.full((len(left), 16, 3), 128, np.uint8)
        strip = caption_strip([f"{i:02d}, {prompt_of(Path(name))}: A left, B right"], 4 * SIZE + 16, (1, 1, 1))
        write_png(out / f"{i:02d}.png", np.concatenate([strip, np.concatenate([left, gap, right], 1)]))
        rows.append({"sheet": f"{i:02d}.png", "prompt": prompt_of(Path(name)), "A": order[0], "B": order[1]})
    write_answers(answers, rows)
    print(f"{len(rows)} sheets in {out}, answers in {answers}")


@app.command()
def name(folder: Folder, out: Out, answers: Answers, seed: int = 0, device: Device = AUTO) -> None:
    """Writes sheets of numbered assets, in random order; the answers have their prompts."""
    place, paths = choose_device(device), sorted(folder.glob("*.ply"))
    if not paths:
        raise typer.BadParameter(f"{folder} has no PLY files")
    out.mkdir(parents=True, exist_ok=True)
    random.Random(seed).shuffle(paths)
    for start in range(0, len(paths), 2 * ROWS):
        part = paths[start : start + 2 * ROWS]
        labels = [f"{start + i:02d}" for i in range(len(part))]
        sheet = contact_sheet([draw(path, (1.0,), place) for path in part], 2, labels)
        write_png(out / f"{start:02d}.png", sheet)
    write_answers(answers, {f"{i:02d}": prompt_of(path) for i, path in enumerate(paths)})
    print(f"{len(paths)} assets in {out}, answers in {answers}")


if __name__ == "__main__":
    app()
