"""References: what a folder of them holds, what is refused, and images drawn from the embedded prior."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segdream_cli as segdream
from segdream_cli.errors import OutputExists, UsageProblem
from segdream_cli.evaluate import references
from segdream_cli.evaluate.reference_folder import make_another
from segdream_cli.evaluate.references import MANIFEST, References, sample_images, write_references

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), np.uint8)


def write(folder: Path) -> None:
    drawn = ((f"prompt {i // 4}", 90.0 * (i % 4), image) for i, image in enumerate(PIXELS))
    assert write_references(folder, drawn, {"prior": "mini", "seed": 3}) == len(PIXELS)


def test_write_references_writes_images_and_a_manifest_of_their_hashes(tmp_path: Path) -> None:
    write(tmp_path / "kept")
    manifest = json.loads((tmp_path / "kept" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["origin"] == {"prior": "mini", "seed": 3}
    assert [row["prompt"] for row in manifest["images"]] == [f"prompt {i // 4}" for i in range(20)]
    assert [row["azimuth_deg"] for row in manifest["images"][:5]] == [0, 90, 180, 270, 0]
    for row, pixels in zip(manifest["images"], PIXELS, strict=True):
        path = tmp_path / "kept" / row["file"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    batches = list(References.read(tmp_path / "kept").images())
    assert [len(batch) for batch in batches] == [16, 4]
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1), PIXELS)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_write_references_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    def drawn():
        yield "a", 0.0, PIXELS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_references(tmp_path / "kept", drawn(), {})
    assert not list(tmp_path.iterdir())
    write(tmp_path / "kept")
    with pytest.raises(OutputExists) as problem:
        write(tmp_path / "kept")
    assert problem.value.hint == f"segdream evaluate --make-references {tmp_path / 'kept-2'} --prompts prompts.txt"


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / MANIFEST
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return apply


def accept(folder: Path) -> None:
    """Puts the hash of the 18th image into the manifest."""
    found = hashlib.sha256((folder / "00017.png").read_bytes()).hexdigest()
    edit(lambda content: content["images"][17].update(sha256=found))(folder)


def resize(folder: Path) -> None:
    """Replaces the 18th image by a larger one that the manifest knows."""
    Image.fromarray(PIXELS[0]).resize((8, 8)).save(folder / "00017.png")
    accept(folder)


def damage_header(folder: Path) -> None:
    """Flips bits of the 18th image's header, for which Pillow raises a SyntaxError, and keeps the manifest right."""
    content = bytearray((folder / "00017.png").read_bytes())
    content[content.index(b"IDAT")] ^= 0xFF
    (folder / "00017.png").write_bytes(content)
    accept(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "No such file"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "not a manifest"),
        (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "nested too deeply"),
        (edit(lambda content: content.update(version=2)), "version 1"),
        (edit(lambda content: content.update(images=content["images"][:1])), "two images"),
        (edit(lambda content: content["images"][0].update(colour="red")), "colour"),
        (edit(lambda content: content["images"][0].update(file=5)), "5 is not the name of a file"),
        (damage_header, "00017.png can't be read"),
        (lambda folder: (folder / "00003.png").unlink(), "00003.png can't be read"),
        (lambda folder: (folder / "00003.png").write_bytes((folder / "00004.png").read_bytes()), "SHA-256 differs"),
        (resize, "00017.png is not a square image of the first one's size"),
    ],
)
def test_read_refuses_a_damaged_folder(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "my kept")
    damage(tmp_path / "my kept")
    with pytest.raises(UsageProblem, match=message) as problem:
        list(References.read(tmp_path / "my kept").images())
    assert f"--make-references '{tmp_path / 'my kept-2'}' --prompts" in str(problem.value.hint)


def test_make_another_names_a_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    for folder, named in (("new", "new"), ("kept", "kept-2"), (".", "references")):
        assert f"--make-references {named} " in make_another(Path(folder))


@pytest.mark.slow
def test_sample_images_equals_the_ddim_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDIMScheduler

    settings = {"prior.dtype": "fp32"}
    pipeline = segdream.load(quality="draft", prior="mini", device="cpu", settings=settings).pipeline
    prior, views = pipeline.prior, pipeline.prior.profile.views
    monkeypatch.setattr(references, "DDIM_STEPS", 5)
    azimuths = torch.tensor([0.0, 180.0])
    generator = torch.Generator().manual_seed(3)
    found = sample_images(pipeline, ["a red truck"], azimuths, torch.zeros(2), generator, 4.0)

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(5)
    phrases = [views.ring[0], views.ring[len(views.ring) // 2]] if views.ring else [views.front, views.back]
    texts = [f"a red truck, {phrase}" for phrase in phrases]
    embeddings = prior.encode_text([*texts, *[prior.profile.negative_prompt] * 2])
    latents = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise, base = prior.predict_noise(latents.repeat(2, 1, 1, 1), t.repeat(4), embeddings).chunk(2)
            latents = scheduler.step(base + 4.0 * (noise - base), t, latents).prev_sample
        expected = prior.decode(latents).clamp(0, 1)
    assert found.shape == (1, 2, 3, prior.image_size, prior.image_size)
    assert float((expected[0] - expected[1]).abs().mean()) > 0.01
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-3)
