"""ImageReward: small random weights in the published layout, against the network written out in float64.

The network was also compared with the authors' code (github.com/THUDM/ImageReward, c1392c6) on such weights: the scores
agree to 6e-6 of the largest.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_reward_weights import HEAD, PATCH, SIZE, WORDS, published
from PIL import Image

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate import image_reward
from segdream_cli.evaluate.image_reward import HEAD_WIDTH, TOKENS, load_files, prepare


def reference(state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The scores of prepared images for the token ids of a prompt, padded to 35 with a mask as the release does."""
    w = {name: value.double() for name, value in state.items() if value.is_floating_point()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
        q, k, v = (each.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for each in (q, k, v))
        return ((q @ k.mT / math.sqrt(HEAD_WIDTH) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    proj = f"{eye}.patch_embed.proj"
    x = F.conv2d(pixels.double(), w[f"{proj}.weight"], w[f"{proj}.bias"], PATCH).flatten(2).mT
    x = torch.cat([w[f"{eye}.cls_token"].expand(len(x), 1, -1), x], 1) + w[f"{eye}.pos_embed"]
    for i in range(2):
        block = f"{eye}.blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6))
        x = x + linear(f"{block}.attn.proj", attend(*qkv.chunk(3, -1)))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    patches = norm(f"{eye}.norm", x, 1e-6)

    padded = torch.tensor(ids + [0] * (TOKENS - len(ids)))
    mask = torch.where(torch.arange(TOKENS) < len(ids), 0.0, -10000.0).double()
    embeddings = f"{text}.embeddings"
    h = w[f"{embeddings}.word_embeddings.weight"][padded] + w[f"{embeddings}.position_embeddings.weight"][:TOKENS]
    h = norm(f"{embeddings}.LayerNorm", h, 1e-12).expand(len(patches), -1, -1)
    for i in range(3):
        layer = f"{text}.encoder.layer.{i}"
        for kind, source, bias in (("attention", None, mask), ("crossattention", patches, 0.0)):
            own = f"{layer}.{kind}"
            other = h if source is None else source
            mixed = attend(
                linear(f"{own}.self.query", h),
                linear(f"{own}.self.key", other),
                linear(f"{own}.self.value", other),
                bias,
            )
            h = norm(f"{own}.output.LayerNorm", linear(f"{own}.output.dense", mixed) + h, 1e-12)
        inner = F.gelu(linear(f"{layer}.intermediate.dense", h))
        h = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + h, 1e-12)
    y = h[:, 0]
    for i in HEAD:
        y = linear(f"mlp.layers.{i}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("image-reward")
    torch.save(published(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder / "ImageReward.pt", folder / "vocab.txt"


IMAGES = torch.randint(0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_score_equals_the_network_written_out(files: tuple[Path, Path]) -> None:
    network = load_files(*files)
    assert network.size == SIZE
    pixels = prepare(IMAGES, SIZE)
    for prompt, ids in (("A red bus, blue cars", [2, 5, 6, 10, 11, 7, 8, 9, 3]), ("spoon", [2, 1, 3])):
        expected = reference(published(), pixels, ids)
        scores = network.score(IMAGES, prompt, batch=2)
        assert expected.std() > 1
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_score_reads_35_tokens_of_a_prompt(files: tuple[Path, Path]) -> None:
    network = load_files(*files)
    long = network.score(IMAGES, " ".join(["car"] * 60))
    torch.testing.assert_close(long, network.score(IMAGES, " ".join(["car"] * (TOKENS - 2))))
    assert not torch.allclose(long, network.score(IMAGES, " ".join(["car"] * (TOKENS - 3))))


def test_prepare_resizes_as_pillow_does_and_normalizes() -> None:
    image = IMAGES[0]
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = (np.asarray(resized, np.float64) / 255 - mean) / std
    np.testing.assert_allclose(prepare(IMAGES, SIZE)[0].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "blip.visual_encoder.norm.bias",
        "blip.text_encoder.encoder.layer.1.output.dense.weight",
        "mlp.layers.7.bias",
        "mlp.layers.0.weight",
    ],
)
def test_load_refuses_a_checkpoint_that_lacks_a_weight(files: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    state = published()
    del state[name]
    torch.save(state, tmp_path / "lacking.pt")
    with pytest.raises(WeightsUnavailable, match="lacks"):
        load_files(tmp_path / "lacking.pt", files[1])


def test_load_never_unpickles_code(files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"mlp.layers.0.weight": print}, tmp_path / "code.pt")
    with pytest.raises(WeightsUnavailable, match="more than weights"):
        load_files(tmp_path / "code.pt", files[1])


def test_load_without_weights_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="THUDM/ImageReward is not in the local cache") as problem:
        image_reward.load_network(None, torch.device("cpu"), offline=True, announce=lambda _: None)
    assert "--metrics" in str(problem.value.hint)
