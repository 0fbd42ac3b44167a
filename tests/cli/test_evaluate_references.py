"""`segdream evaluate` with reference images, drawn and kept, and with ImageReward."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_reward_weights import WORDS, published
from test_evaluate import BALL

from segdream_cli import formats
from segdream_cli.evaluate.image_reward import load_files
from segdream_cli.evaluate.references import References, write_references
from segdream_cli.evaluate.views import ViewProtocol
from segdream_cli.splats.gaussians import Gaussians


@pytest.fixture
def ball(folder):
    """An asset with a prompt, and one without."""
    formats.write(folder / "nameless.ply", BALL)
    formats.write(folder / "ball.ply", replace(BALL, provenance={"prompt": "a red ball"}))
    return folder / "ball.ply"


def views(count, size):
    protocol = ViewProtocol(n=count, size=size)
    return torch.cat([part.images for part in protocol.render(Gaussians.from_splats(BALL))])


def test_make_references_draws_images_of_each_prompt(segdream, folder):
    (folder / "prompts.txt").write_text("a red car\na blue duck\na Red car!\n")
    done = segdream(
        "evaluate", "--make-references", "kept", "--prompts", "prompts.txt", "--prior", "mini", "--count", "3", "--json"
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["output"], result["images"], result["prompts"]) == ("kept", 6, 2)
    rows = References.read(folder / "kept").rows
    assert [(row.prompt, row.azimuth_deg) for row in rows[:4]] == [
        ("a red car", 0),
        ("a red car", 120),
        ("a red car", 240),
        ("a blue duck", 0),
    ]
    (images,) = References.read(folder / "kept").images()
    assert images.shape == (6, 3, 32, 32)
    again = segdream("evaluate", "--make-references", "kept", "--prompts", "prompts.txt", "--prior", "mini")
    assert (again.code, again.out) == (6, "")


def test_distances_from_the_views_themselves_are_zero(segdream, ball, folder):
    shown = views(12, 64).permute(0, 2, 3, 1).numpy()
    write_references(folder / "kept", (("a red ball", 30.0 * i, image) for i, image in enumerate(shown)), {})
    inverted = ((f"a red ball {i}", 0.0, 255 - image) for i, image in enumerate(shown))
    write_references(folder / "other", inverted, {})
    found = {}
    for name in ("kept", "other"):
        options = ("--reference", name, "--views", "12", "--size", "64", "--no-fit")
        done = segdream("evaluate", ball, "--metrics", "frechet", *options, "--json")
        assert done.code == 0, done.err
        row, summary = (json.loads(line) for line in done.out.splitlines())
        assert row["values"] == {}
        found[name] = summary["over_all"]
    assert (found["kept"]["frechet.images"], found["kept"]["frechet.references"]) == (12, 12)
    assert abs(found["kept"]["frechet.frechet"]) < 1e-6 * found["other"]["frechet.frechet"]
    assert found["kept"]["frechet.kid"] < 0 < found["other"]["frechet.kid"]


def test_image_reward_is_the_mean_and_the_lowest_score_of_the_views(segdream, ball, folder):
    (folder / "weights").mkdir()
    torch.save(published(), folder / "weights" / "ImageReward.pt")
    (folder / "weights" / "vocab.txt").write_text("\n".join(WORDS))
    network = load_files(folder / "weights" / "ImageReward.pt", folder / "weights" / "vocab.txt")
    scores = network.score(views(5, 64), "a red ball").numpy()
    arguments = (
        "--metrics",
        "image-reward",
        "--weights",
        "image-reward=weights",
        "--views",
        "5",
        "--size",
        "64",
        "--no-fit",
    )
    done = segdream("evaluate", ball, *arguments, "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out.splitlines()[0])["values"]
    assert np.ptp(scores) > 0.01
    assert values["image-reward.mean"] == pytest.approx(scores.mean(), rel=1e-4)
    assert values["image-reward.lowest"] == pytest.approx(scores.min(), rel=1e-4)
    assert math.isfinite(values["image-reward.mean"])
    nameless = segdream("evaluate", "nameless.ply", *arguments)
    assert nameless.code == 2
    assert "nameless.ply has no prompt" in nameless.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ball.ply", "--metrics", "fid"], 2, "--reference names no folder"),
        (["ball.ply", "--metrics", "frechet", "--reference", "empty"], 2, "references.json can't be read"),
        (["ball.ply", "--reference", "empty"], 2, "--reference has no effect"),
        (["ball.ply", "--metrics", "image-reward", "--weights", "image-reward=empty"], 4, "has no ImageReward.pt"),
        (["ball.ply", "--make-references", "new", "--prompts", "prompts.txt"], 2, "measures no ASSET"),
        (["--make-references", "new"], 2, "--make-references needs --prompts"),
        (["--make-references", "no/new", "--prompts", "prompts.txt"], 2, "the folder no does not exist"),
        (["--make-references", "new", "--prompts", "nothing.txt"], 2, "nothing.txt can't be read"),
        (["--make-references", "new", "--prompts", "odd.txt", "--prior", "mini"], 2, "does not know 'corgi'"),
    ],
)
def test_evaluate_refuses_in_a_sentence(segdream, ball, folder, arguments, code, message):
    (folder / "empty").mkdir()
    (folder / "prompts.txt").write_text("a red car\n")
    (folder / "odd.txt").write_text("a corgi\n")
    before = sorted(folder.iterdir())
    done = segdream("evaluate", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "hint" in done.err
    assert sorted(folder.iterdir()) == before


def test_fid_without_weights_is_exit_4(segdream, ball, folder, monkeypatch):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_references(folder / "kept", (("a", 0.0, image) for image in images), {})
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    done = segdream("evaluate", ball, "--metrics", "fid", "--reference", "kept", "--offline")
    assert done.code == 4
    assert "the weights of Inception are not in" in done.err
    assert "hint: segdream fetch fid" in done.err
