"""Fewer Gaussians that look the same: stray ones dropped (`cleaning`), neighbours merged (`merging`)."""

import math
from dataclasses import dataclass

from segdream_cli.splats import Splats
from segdream_cli.splats.edits import Tell


@dataclass(frozen=True, slots=True)
class Reduction:
    """Ways to have fewer Gaussians, applied in the order of the fields; None and False change nothing."""

    max_gaussians: int | None = None
    """Merge neighbours until at most this many are left."""
    keep: float | None = None
    """The same for a share of the Gaussians, 0..1."""

    def apply(self, splats: Splats, tell: Tell) -> Splats:
        """The reduced asset; `tell` hears how many Gaussians each step leaves."""
        if self.keep is not None or self.max_gaussians is not None:
            from segdream_cli.simplify.merging import merge

            before = len(splats)
            count = max(1, math.ceil(before * self.keep)) if self.keep is not None else self.max_gaussians
            assert count is not None
            splats = merge(splats, count)
            tell("--max-gaussians" if self.keep is None else "--keep", len(splats), before)
        return splats
