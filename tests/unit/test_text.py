"""The CLIP text encoder: weights of the file, tokens of the vocabulary, and a warning for each text that is cut."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import build, edit_json, edit_weights
from safetensors.torch import load_file

from segdream_cli.config import PriorConfig
from segdream_cli.errors import WeightsUnavailable
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.text import TextEncoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("text") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def load(model: Path | None, said: list[str] | None = None, dtype: torch.dtype = torch.float32) -> TextEncoder:
    prior = PriorConfig(model=str(model)) if model else PriorConfig()
    checkpoint = weights.resolve(prior, cuda=False, offline=True, announce=lambda _: None)
    warn = (lambda line: pytest.fail(line)) if said is None else said.append
    return TextEncoder.load(checkpoint, CPU, dtype, warn=warn)


def reference(tensors: dict[str, torch.Tensor], ids: torch.Tensor, heads: int, quick: bool) -> torch.Tensor:
    """CLIP's text transformer, written out from the tensors of a file in the Hub's key names."""
    w = {key.removeprefix("text_model."): value.double() for key, value in tensors.items()}
    width = w["embeddings.token_embedding.weight"].shape[1]
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"][: ids.shape[1]]

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(value, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

    later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for layer in range(sum(key.endswith("layer_norm1.weight") for key in w)):
        at = f"encoder.layers.{layer}"
        h = norm(f"{at}.layer_norm1", x)
        q, k, v = (
            linear(f"{at}.self_attn.{name}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv"
        )
        scores = (q @ k.mT / (width // heads) ** 0.5).masked_fill(later, float("-inf"))
        x = x + linear(f"{at}.self_attn.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        h = h * (1.702 * h).sigmoid() if quick else torch.nn.functional.gelu(h)
        x = x + linear(f"{at}.mlp.fc2", h)
    return norm("final_layer_norm", x)


@pytest.mark.parametrize("shipped", [True, False], ids=["shipped", "tiny"])
def test_text_encoder_embeddings_match_the_files_tensors(tiny: Path, shipped: bool) -> None:
    """Fails where a library loads other weights than the file's, as transformers 5.5 does without the prefix."""
    folder = Path(weights.PRIORS[weights.choose("auto", cuda=False)]) if shipped else tiny
    encoder = load(folder)
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    words = ["a</w>", "yellow</w>", "school</w>", "bus</w>"] if shipped else ["a</w>", "red</w>", "car</w>"]
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    pad = end if shipped else vocabulary["!"]
    ids = [start, *(vocabulary[word] for word in words), end]
    ids += [pad] * (config["max_position_embeddings"] - len(ids))
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in tensors)
    expected = reference(tensors, torch.tensor([ids]), config["num_attention_heads"], config["hidden_act"] != "gelu")
    text = " ".join(word.removesuffix("</w>") for word in words)
    embeddings = encoder.encode([f"  {text.upper()} "])
    assert embeddings.shape == (1, config["max_position_embeddings"], config["hidden_size"])
    torch.testing.assert_close(embeddings.double(), expected, atol=2e-5, rtol=1e-4)


def test_shipped_vocabulary_words_are_single_tokens() -> None:
    checkpoint = weights.resolve(PriorConfig(), cuda=False, offline=True, announce=lambda _: None)
    known, views = checkpoint.profile.vocabulary, checkpoint.profile.views
    assert known is not None
    assert (len(known.objects), len(known.colors)) == (104, 12)
    phrases = [
        *known.objects,
        *known.colors,
        *known.attributes,
        *known.fillers,
        *views.ring,
        views.side,
        views.back,
        views.overhead,
    ]
    tokens = json.loads((checkpoint.folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert {word for phrase in phrases for word in phrase.split() if f"{word}</w>" not in tokens} == set()


def test_text_encoder_encodes_texts_independently(tiny: Path) -> None:
    encoder = load(tiny)
    both = encoder.encode(["a red car", ""])
    torch.testing.assert_close(both, torch.cat([encoder.encode(["a red car"]), encoder.encode([""])]))
    assert (both[0] - both[1]).abs().max() > 0.1


def test_text_encoder_is_frozen_in_the_requested_dtype(tiny: Path) -> None:
    encoder = load(tiny, dtype=torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder.network.training
    assert encoder.encode(["a"]).dtype == torch.bfloat16


def test_text_encoder_warns_with_the_end_that_it_cuts(tiny: Path) -> None:
    said: list[str] = []
    encoder = load(tiny, said)
    fits = " ".join(["Red"] * 75)
    assert encoder.cut_off(fits) == ""
    encoder.encode([fits])
    assert said == []
    assert encoder.cut_off(fits + " Car, seen in the Evening") == "Car, seen in the Evening"
    cut = encoder.encode([fits + " Car", fits + " Car, front view", "a car"])
    assert len(said) == 1
    assert "75 tokens" in said[0]
    assert "'Car'" in said[0]
    assert "1 more text" in said[0]
    torch.testing.assert_close(cut[0], encoder.encode([fits])[0])


def test_text_encoder_limit_is_the_shorter_of_two(copy: Path) -> None:
    edit_json(copy / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert load(copy).limit == 77


@pytest.mark.parametrize("key", ["text_model.final_layer_norm.weight", "text_model.encoder.layers.1.mlp.fc1.bias"])
def test_text_encoder_load_refuses_a_missing_weight(copy: Path, key: str) -> None:
    edit_weights(copy / "text_encoder" / "model.safetensors", drop=key)
    with pytest.raises(WeightsUnavailable, match=r"text encoder .* lacks 1 weights"):
        load(copy)


def test_text_encoder_load_refuses_a_weight_of_another_shape(copy: Path) -> None:
    edit_weights(copy / "text_encoder" / "model.safetensors", **{"text_model.final_layer_norm.weight": torch.ones(7)})
    with pytest.raises(WeightsUnavailable, match="text encoder"):
        load(copy)


def test_text_encoder_load_refuses_another_vocabulary(copy: Path) -> None:
    path = copy / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(vocabulary | {"extra</w>": len(vocabulary)}), encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match="520 tokens, its text encoder 519"):
        load(copy)


def test_text_encoder_load_refuses_a_tokenizer_without_json(copy: Path) -> None:
    (copy / "tokenizer" / "vocab.json").write_text("<html>", encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match="tokenizer"):
        load(copy)
