"""The metric `image-reward`: how much people would like the views of an asset for its prompt.

ImageReward-1.0 (Xu et al., NeurIPS 2023, arXiv:2304.05977): BLIP's encoder reads the prompt with cross-attention to the
patches of the image, and linear layers map the state of its first token to the score. The networks are transformers';
the weights are the published `ImageReward.pt`.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate.metrics import Array, Asset, Figure, Metric, Setup, Views
from segdream_cli.priors.checkpoint import check_keys
from segdream_cli.util.hub import HubModel, absent_files
from segdream_cli.util.weights import read_errors, read_pickled

FALLBACK_HINT = "--metrics judge,health"
WEIGHTS = HubModel(id="THUDM/ImageReward", marker="ImageReward.pt", fallback_hint=FALLBACK_HINT)
"""The published checkpoint, 1.8 GB."""
VOCABULARY = HubModel(id="google-bert/bert-base-uncased", marker="vocab.txt", fallback_hint=FALLBACK_HINT)
"""The words of the text encoder."""

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of raw scores, by which the release normalizes them."""
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS = 35
"""Longest prompt in tokens, with the start and end tokens."""
HEAD_LAYERS = "02467"
"""Indices of the linear layers of the score; the release has dropout between them, which inference skips."""
HEAD_WIDTH = 64
"""Features per attention head, in both networks."""

_TRANSFORMERS_NAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"norm(?=\.)", "post_layernorm"),
    (r"blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"),
    (r"blocks\.(\d+)\.attn\.qkv", r"encoder.layers.\1.self_attn.qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layers.\1.self_attn.projection"),
    (r"blocks\.(\d+)\.mlp", r"encoder.layers.\1.mlp"),
)
"""How names of the vision network in the checkpoint begin, and how they do in transformers."""


class ImageReward(nn.Module):
    """The network of a checkpoint in the published layout, in float32, for inference.

    Args:
        state: the checkpoint, whose shapes give the sizes.
        tokenizer: turns a prompt into token ids.

    Raises:
        WeightsUnavailable: a weight is missing or has another shape.
    """

    def __init__(self, state: Mapping[str, Tensor], tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        seen, text, head = (
            _part(state, name) for name in ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")
        )
        try:
            self.vision = BlipVisionModel(_vision_config(seen))
            self.text = BlipTextModel(_text_config(text), add_pooling_layer=False)
            sizes = {i: head[f"{i}.weight"].shape for i in HEAD_LAYERS}
        except KeyError as problem:
            raise WeightsUnavailable(f"the checkpoint of ImageReward lacks {problem}", hint=FALLBACK_HINT) from problem
        self.head = nn.Sequential(OrderedDict((i, nn.Linear(sizes[i][1], sizes[i][0])) for i in HEAD_LAYERS))
        for network, weights in ((self.vision, seen), (self.text, text), (self.head, head)):
            own = network.state_dict()
            wrong = [name for name, value in own.items() if name not in weights or weights[name].shape != value.shape]
            check_keys("the checkpoint of ImageReward", {"missing_keys": wrong}, FALLBACK_HINT)
            network.load_state_dict(weights, strict=False)  # the release also saves constants
        self.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Side in pixels of the images that the network reads."""
        side: int = self.vision.config.image_size
        return side

    @torch.no_grad()
    def score(self, images: UInt8[Tensor, "v 3 s s"], prompt: str, batch: int = 16) -> Float[Tensor, " v"]:
        """The normalized scores of views for a prompt, about -2 to 2, `batch` views at a time; on the CPU."""
        device = next(self.parameters()).device
        ids = self.tokenizer(prompt, truncation=True, max_length=TOKENS, return_tensors="pt").input_ids.to(device)
        scores = [self(prepare(part, self.size).to(device), ids) for part in images.split(batch)]
        return torch.cat(scores).cpu()

    def forward(self, pixels: Float[Tensor, "m 3 t t"], ids: Tensor) -> Float[Tensor, " m"]:
        """The normalized scores of prepared images for the tokens [1, l] of a prompt."""
        patches = self.vision(pixels).last_hidden_state  # [m, patches + 1, d]
        states = self.text(ids.expand(len(pixels), -1), encoder_hidden_states=patches).last_hidden_state
        raw: Tensor = self.head(states[:, 0])[:, 0]
        return (raw - MEAN) / STD


def prepare(images: UInt8[Tensor, "m 3 s s"], size: int) -> Float[Tensor, "m 3 t t"]:
    """Images as the network reads them: resized to t = `size` by Pillow's bicubic filter, and normalized."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in pixels]
    values = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (PIXEL_MEAN, PIXEL_STD))
    return (values - mean) / std


class ImageRewardMetric:
    """Mean and lowest score of the views; an asset without a prompt has none."""

    figures: Mapping[str, Figure] = {
        "mean": Figure("ImageReward", "higher", main=True),
        "lowest": Figure("ImageReward, lowest view", "higher"),
    }
    set_figures: Mapping[str, Figure] = MappingProxyType({})
    reads_views = True

    def __init__(self, network: ImageReward) -> None:
        self.network = network

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v 1"]:
        """The score of each view."""
        if not asset.prompt:
            return np.full((len(views.images), 1), np.nan)
        return self.network.score(views.images, asset.prompt).numpy()[:, None]

    def measure(self, asset: Asset, observed: Float[Array, "v 1"]) -> dict[str, float]:
        """The values of one asset."""
        return {"mean": float(observed.mean()), "lowest": float(observed.min())}

    def summarize(self, observed: Sequence[Float[Array, "v 1"]]) -> dict[str, float]:
        """Nothing."""
        return {}


def load(setup: Setup) -> Metric:
    """The metric with the published weights, or those that `setup.weights["image-reward"]` names.

    Raises:
        WeightsUnavailable: the weights can't be found, downloaded or read.
    """
    given = setup.weights.get("image-reward")
    return ImageRewardMetric(load_network(given, setup.device, offline=setup.offline, announce=setup.announce))


def load_network(
    given: str | None, device: torch.device, *, offline: bool, announce: Callable[[str], None]
) -> ImageReward:
    """Loads a checkpoint and its vocabulary from a folder or the Hub's cache, or downloads them.

    Args:
        given: a folder with ImageReward.pt and vocab.txt, or a Hub id of the checkpoint; None is the published one.
        device: where the network computes.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts.

    Raises:
        WeightsUnavailable: a file is missing, can't be downloaded or read, or holds another network.
    """
    folder = None if given is None else Path(given).expanduser()
    if folder is not None and folder.is_dir():
        if absent := absent_files(folder, [WEIGHTS.marker, VOCABULARY.marker]):
            raise WeightsUnavailable(f"{folder} has no {' and no '.join(absent)}", hint=FALLBACK_HINT)
        return load_files(folder / WEIGHTS.marker, folder / VOCABULARY.marker).to(device)
    source = WEIGHTS if given is None else replace(WEIGHTS, id=given)
    weights, vocabulary = (
        model.locate_files([model.marker], offline=offline, announce=announce) / model.marker
        for model in (source, VOCABULARY)
    )
    return load_files(weights, vocabulary).to(device)


def load_files(weights: Path, vocabulary: Path) -> ImageReward:
    """Loads a checkpoint and a vocabulary, one word per line; raises the errors of `load_network`."""
    with read_errors(vocabulary, FALLBACK_HINT):
        words = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    return ImageReward(read_pickled(weights, FALLBACK_HINT), tokenizer)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a network, in transformers' names."""
    return {_rename(name[len(prefix) :]): value for name, value in state.items() if name.startswith(prefix)}


def _rename(name: str) -> str:
    for pattern, own in _TRANSFORMERS_NAMES:
        if found := re.match(pattern, name):
            return found.expand(own) + name[found.end() :]
    return name


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    patches = state["embeddings.position_embedding"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(state),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round(patches**0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor]) -> BlipTextConfig:
    words, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(state),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        bos_token_id=None,  # a generator of text would use these; other values than the release has are warned of
        sep_token_id=None,
    )


def _layers(state: Mapping[str, Tensor]) -> int:
    """The number of layers of an encoder."""
    return len({name.split(".")[2] for name in state if name.startswith("encoder.layer")})
