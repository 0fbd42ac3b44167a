"""Fewer Gaussians that look the same: stray ones dropped (`cleaning`), neighbours merged (`merging`)."""

import math
from dataclasses import dataclass

from segdream_cli.splats import Splats
from segdream_cli.splats.edits import Tell


@dataclass(frozen=True, slots=True)
class Reduction:
    """Ways to have fewer Gaussians, applied in the order of the fields; None and False change nothing."""

    remove_floaters: bool = False
    """Drop small parts that touch nothing else, as `cleaning.without_floaters`."""
    largest_cluster: bool = False
    """Keep the largest part only, as `cleaning.largest_part`."""
    max_gaussians: int | None = None
    """Merge neighbours until at most this many are left."""
    keep: float | None = None
    """The same for a share of the Gaussians, 0..1."""

    def apply(self, splats: Splats, tell: Tell) -> Splats:
        """The reduced asset; `tell` hears how many Gaussians each step leaves."""
        if self.remove_floaters or self.largest_cluster:
            from segdream_cli.simplify.cleaning import largest_part, without_floaters

            before = len(splats)
            splats = largest_part(splats) if self.largest_cluster else without_floaters(splats)
            tell("--largest-cluster" if self.largest_cluster else "--remove-floaters", len(splats), before)
        if self.keep is not None or self.max_gaussians is not None:
            from segdream_cli.simplify.merging import merge

            before = len(splats)
            count = max(1, math.ceil(before * self.keep)) if self.keep is not None else self.max_gaussians
            assert count is not None
            splats = merge(splats, count)
            tell("--max-gaussians" if self.keep is None else "--keep", len(splats), before)
        return splats
