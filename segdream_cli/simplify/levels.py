"""Levels of detail: an asset and thinner and thinner versions of it."""

from segdream_cli.simplify.merging import merge
from segdream_cli.splats import Splats

FACTOR = 4
"""Gaussians per Gaussian of the next level: at twice the distance, an asset covers a quarter of the pixels."""
FEWEST, MOST = 10_000, 5
"""Gaussians that a level has at least, and number of levels, unless it is given."""


def build_levels(splats: Splats, count: int | None = None) -> list[Splats]:
    """The asset, and levels that are each merged from the one before.

    Args:
        splats: the asset, which is level 0.
        count: number of levels, at least 1; fewer if a level has a single Gaussian. By default, at most five, of at
            least 10,000 Gaussians.
    """
    levels = [splats]
    while len(levels) < (MOST if count is None else count):
        fewer = -(-len(levels[-1]) // FACTOR)
        if fewer == len(levels[-1]) or (count is None and fewer < FEWEST):
            break
        levels.append(merge(levels[-1], fewer))
    return levels
