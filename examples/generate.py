"""Makes an asset from a prompt, and writes it as a PLY file with an image of it beside it.

python examples/generate.py "a yellow school bus" bus.ply
"""

import argparse
from pathlib import Path

from PIL import Image

import segdream_cli as segdream


def main() -> None:
    """Parses the arguments, makes the asset and writes both files."""
    parser = argparse.ArgumentParser(description="Make an asset with the Python API of segdream.")
    parser.add_argument("prompt", nargs="?", default="a yellow school bus")
    parser.add_argument("output", nargs="?", type=Path, default=Path("bus.ply"))
    parser.add_argument("--steps", type=int, help="distillation steps; by default those of the preset")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    session = segdream.load(prior="mini", quality="draft", settings={"optim.steps": options.steps})
    generation = session.iterate(options.prompt, seed=options.seed)
    for report in generation:
        if report.step % 20 == 0:
            print(f"step {report.step}: {report.n_gaussians[0]:,} Gaussians")
    splats = generation.splats()

    segdream.write(options.output, splats)
    image = segdream.render_image(splats, azimuth=30, elevation=20, size=256)
    Image.fromarray(image).save(options.output.with_suffix(".png"))
    print(f"wrote {options.output} and {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
