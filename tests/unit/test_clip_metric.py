"""The CLIP metric on small random weights in the Hub's layout, against transformers' and torchmetrics' own numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CLIP_NORMALIZATION, CLIP_SIDE, build_clip, edit_weights
from PIL import Image
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate.clip_metric import Clip, ClipMetric, load
from segdream_cli.evaluate.metrics import METRICS, Asset, Setup, Views
from segdream_cli.splats.gaussians import Gaussians

CPU = torch.device("cpu")
PROMPTS = ["a red car", "a bus", "a car"]
MEAN, STD = CLIP_NORMALIZATION
SIDE = CLIP_SIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(5, 3, 6, 6, generator=generator)
    large = torch.nn.functional.interpolate(coarse, (80, 80), mode="bilinear")
    return (large * 255).round().to(torch.uint8)


def asset(prompt: str | None) -> Asset:
    values = {"means": 3, "quats": 4, "log_scales": 3, "sh0": 3}
    params = {name: torch.zeros(1, width) for name, width in values.items()}
    gaussians = Gaussians(params | {"opacity_logits": torch.zeros(1), "shN": torch.zeros(1, 0, 3)})
    return Asset(name="x", path=Path("x.ply"), prompt=prompt, splats=gaussians.splats({}), gaussians=gaussians)


def views(images: torch.Tensor) -> Views:
    return Views(images=images, azimuth_deg=torch.zeros(len(images)), elevation_deg=torch.zeros(len(images)))


def cosines_by_transformers(folder: Path, images: torch.Tensor) -> np.ndarray:
    """Preprocessing with Pillow alone, then CLIP's own logits without their temperature."""
    network, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    resized = [Image.fromarray(each.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.BICUBIC) for each in images]
    pixels = torch.stack([torch.from_numpy(np.asarray(each, np.float32) / 255).permute(2, 0, 1) for each in resized])
    normalized = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        logits = network(**tokenizer(PROMPTS, padding=True, return_tensors="pt"), pixel_values=normalized)
        return (logits.logits_per_image / network.logit_scale.exp()).numpy()


class OldInterface:
    """CLIP with the interface that torchmetrics 1.9 expects: features as tensors."""

    def __init__(self, network: CLIPModel) -> None:
        self.network, self.config = network, network.config

    def to(self, device: torch.device) -> "OldInterface":
        return self

    @torch.no_grad()
    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network.get_image_features(pixels).pooler_output

    @torch.no_grad()
    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.network.get_text_features(ids, mask).pooler_output


def test_scores_are_those_of_transformers_and_torchmetrics(folder: Path, images: torch.Tensor) -> None:
    metric = load(Setup(device=CPU, prompts=PROMPTS, weights={"clip": str(folder)}))
    observed = np.concatenate([metric.observe(asset("a bus"), views(part)) for part in images.split(2)])
    expected = cosines_by_transformers(folder, images)
    assert expected.std() > 0.05
    np.testing.assert_allclose(observed, expected, atol=2e-6)
    found = metric.measure(asset("a bus"), observed)
    assert found["score"] == pytest.approx(100 * expected[:, 1].mean(), abs=2e-4)
    assert found["worst"] == pytest.approx(100 * expected[:, 1].min(), abs=2e-4)
    assert found["r_precision"] == (expected.argmax(1) == 1).mean()

    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(folder), tokenizer=CLIPTokenizer.from_pretrained(folder)
    )
    network = CLIPModel.from_pretrained(folder).eval()
    positive = [i for i in range(3) if expected[:, i].mean() > 0]  # torchmetrics clamps the mean at 0
    assert positive
    for i in positive:
        theirs = clip_score(list(images), [PROMPTS[i]] * len(images), lambda: (OldInterface(network), processor))
        ours = metric.measure(asset(PROMPTS[i]), observed)["score"]
        assert ours == pytest.approx(float(theirs), abs=1e-3)


def test_scores_are_not_clamped(folder: Path, images: torch.Tensor) -> None:
    metric = ClipMetric(Clip.load(folder, CPU), PROMPTS, lambda _: None)
    observed = -np.abs(metric.observe(asset("a bus"), views(images)))
    assert metric.measure(asset("a bus"), observed)["score"] < 0


def test_r_precision_is_the_share_of_views_nearest_to_their_prompt(folder: Path) -> None:
    metric = ClipMetric(Clip.load(folder, CPU), PROMPTS, lambda _: None)
    observed = np.array([[0.1, 0.3, 0.2], [0.5, 0.4, 0.1], [0.0, 0.2, 0.1], [0.1, 0.2, 0.3]])
    assert metric.measure(asset("a bus"), observed)["r_precision"] == 0.5
    assert metric.measure(asset("a bus"), observed)["worst"] == pytest.approx(20)
    alone = ClipMetric(metric.clip, ["a bus"], lambda _: None)
    assert math.isnan(alone.measure(asset("a bus"), observed[:, 1:2])["r_precision"])


def test_an_asset_without_a_prompt_has_no_scores(folder: Path, images: torch.Tensor) -> None:
    metric = ClipMetric(Clip.load(folder, CPU), [], lambda _: None)
    found = metric.measure(asset(None), metric.observe(asset(None), views(images)))
    assert all(math.isnan(value) for value in found.values())


def test_a_long_prompt_is_truncated_with_a_note(folder: Path) -> None:
    notes: list[str] = []
    long = "red car " * 60
    metric = ClipMetric(Clip.load(folder, CPU), ["a bus", long], notes.append)
    assert [note.startswith("CLIP reads the first 77 tokens of 'red car") for note in notes] == [True]
    torch.testing.assert_close(metric.clip.embed_texts([long]), metric.clip.embed_texts([long + "bus"]))


def test_weights_that_lack_a_part_are_refused(folder: Path, tmp_path: Path) -> None:
    def attempt(change: str) -> str:
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        if change == "missing file":
            (tmp_path / "preprocessor_config.json").unlink()
        elif change == "missing weight":
            edit_weights(tmp_path / "model.safetensors", drop="visual_projection.weight")
        else:
            (tmp_path / "model.safetensors").write_bytes(b"broken")
        with pytest.raises(WeightsUnavailable) as problem:
            METRICS["clip"].load(Setup(device=CPU, prompts=PROMPTS, weights={"clip": str(tmp_path)}))
        assert problem.value.hint == "--metrics judge,health"
        return problem.value.message

    assert "has no preprocessor_config.json" in attempt("missing file")
    assert "lacks 1 weights, the first is visual_projection.weight" in attempt("missing weight")
    assert "can't be read" in attempt("broken file")
