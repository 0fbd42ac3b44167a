"""The lists of held-out prompts, and the world's renders that assets are compared with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segdream_cli.evaluate.measures import silhouette_iou
from segdream_cli.splats.gaussians import Gaussians
from training import assets
from training.assets import edge_ratio, held_out, new_words, render_views, world_views
from training.world.catalog import Combination, build
from training.world.render import sample_surface


def test_held_out_is_a_list_of_64_prompts_that_training_never_shows() -> None:
    found = held_out()
    assert len(set(found)) == 64
    assert all(one.held_out for one in found)
    assert len({one.object for one in found}) == 62


def test_new_words_are_those_that_the_held_out_list_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a list of 20 objects and without stripes, all others are new."""
    old = [one for one in held_out() if one.attribute != "striped"][:20]
    path = tmp_path / "heldout.txt"
    path.write_text("# a comment\n" + "\n".join(one.caption() for one in old) + "\n")
    monkeypatch.setattr(assets, "HELD_OUT", path)
    assert held_out() == old
    found, objects = new_words(), {one.object for one in old}
    assert len(set(found)) == 64
    assert all(one.held_out for one in found)
    kinds = [one for one in found if one.object not in objects]
    assert len(kinds) == 40
    assert len({one.object for one in kinds}) == 40
    assert len({one.attribute for one in kinds}) > 3
    assert not {one.attribute for one in found if one.object in objects} & {one.attribute for one in old}


def test_world_views_frame_an_object_as_render_views_does() -> None:
    """Gaussians on the surface of the same instance have nearly its silhouette from each azimuth, and no other."""
    bus, seed = Combination("school bus", "yellow", ""), 3
    points, colors = sample_surface(*build([bus], np.random.default_rng(seed)), 3000, torch.Generator().manual_seed(0))
    n = points.shape[1]
    splats = Gaussians(
        {
            "means": points[0],
            "quats": torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
            "log_scales": torch.full((n, 3), math.log(0.015)),
            "opacity_logits": torch.full((n,), 4.0),
            "sh0": (colors[0] - 0.5) / 0.28209479,
            "shN": torch.zeros(n, 0, 3),
        }
    )
    world, own = world_views([bus], seed, 64), render_views([splats], seed, 64)
    overlaps = silhouette_iou(own.alphas[0].numpy(), world.alphas[0].numpy())
    assert overlaps.min() > 0.8
    assert silhouette_iou(own.alphas[0, 0].numpy(), world.alphas[0, 2].numpy()) < 0.7
    outside = (world.alphas[0] == 0) & (own.alphas[0] < 1e-3)
    difference = (world.images - own.images)[0].abs().amax(1)
    assert difference[outside].max() < 0.01  # the same backgrounds


def test_world_views_of_several_instances_differ() -> None:
    views = world_views([Combination("duck", "blue", "")], 0, 32, instances=2)
    assert views.images.shape == (1, 16, 3, 32, 32)
    overlaps = silhouette_iou(views.alphas[0, :8].numpy(), views.alphas[0, 8:].numpy())
    assert (overlaps < 0.999).all()
    assert (overlaps > 0.5).all()


def test_edge_ratio_is_over_views_where_both_are_finite() -> None:
    own, world = np.array([[1.0, 2.0, np.nan]]), np.array([[4.0, np.nan, 8.0]])
    assert edge_ratio(own, world) == 0.25
    assert math.isnan(edge_ratio(own * np.nan, world))
