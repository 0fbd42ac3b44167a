"""Fewer Gaussians that look the same: stray ones dropped, neighbours merged, the rest fitted to renders."""

import math
from collections.abc import Callable
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

    polish: bool = False
    """Fit what was merged to renders of the asset before, as `polish.polish`."""

    def apply(self, splats: Splats, tell: Tell, note: Callable[[str], None] = lambda text: None) -> Splats:
        """The reduced asset; `tell` hears how many Gaussians each step leaves, `note` how well the polish went."""
        if self.remove_floaters or self.largest_cluster:
            from segdream_cli.simplify.cleaning import largest_part, without_floaters

            before = len(splats)
            splats = largest_part(splats) if self.largest_cluster else without_floaters(splats)
            tell("--largest-cluster" if self.largest_cluster else "--remove-floaters", len(splats), before)
        if self.keep is not None or self.max_gaussians is not None:
            from segdream_cli.simplify.merging import merge

            whole = splats
            count = max(1, math.ceil(len(whole) * self.keep)) if self.keep is not None else self.max_gaussians
            assert count is not None
            splats = merge(whole, count)
            tell("--max-gaussians" if self.keep is None else "--keep", len(splats), len(whole))
            if self.polish and len(splats) < len(whole):
                splats = _polish(whole, splats, note)
            elif self.polish:
                note("--polish has no effect: nothing was merged")
        return splats


def _polish(whole: Splats, thin: Splats, note: Callable[[str], None]) -> Splats:
    """The polished asset, or the given one if that looks better, with a note of the PSNR of both."""
    from segdream_cli.simplify.polish import polish, similarity

    polished = polish(whole, thin)
    before, after = similarity(whole, thin), similarity(whole, polished)
    if after <= before:
        note(f"--polish has no effect: the PSNR of renders would fall from {before:.1f} to {after:.1f} dB")
        return thin
    note(f"--polish raises the PSNR of renders from {before:.1f} to {after:.1f} dB")
    return polished
