"""The metric `clip`: cosines between the views of an asset and its prompt, by OpenAI's CLIP ViT-L/14 in float32.

The score of a view is 100 times the cosine with the bare prompt, not clamped; that of an asset is the mean over its
views. The paper names neither the checkpoint nor the scale, but its scores of about 30 fit these.

Shapes: v views, p prompts, d features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate.metrics import Array, Asset, Figure, Metric, Setup, Views
from segdream_cli.pointe.clip import CLIP as TEXT_ENCODER
from segdream_cli.priors.checkpoint import read_errors
from segdream_cli.priors.text import load_clip
from segdream_cli.util.hub import HubDownload, HubModel, absent_files

FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
OPTIONAL_FILES = ("tokenizer.json", "special_tokens_map.json")
HINT = "--metrics judge,health"
MODEL = replace(TEXT_ENCODER, fallback_hint=HINT)
"""The model on the Hub, whose text half Point-E uses too."""


class Clip:
    """A frozen CLIP with its tokenizer and the preprocessing of its images.

    Args:
        network: the network, in float32.
        tokenizer: turns texts into tokens.
        processor: resizes, crops and normalises images.
        device: where the network computes.
    """

    def __init__(self, network: Any, tokenizer: Any, processor: Any, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.tokenizer, self.processor, self.device = tokenizer, processor, device
        self.limit = min(tokenizer.model_max_length, network.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Clip":
        """Loads a CLIP from a folder in the Hub's layout.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        where = f"in {folder}"
        tokenizer, network = load_clip(
            CLIPModel, folder, folder, where=where, hint=HINT, part="network", dtype=torch.float32
        )
        with read_errors(f"the image preprocessing {where}", HINT):
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(network, tokenizer, processor, device)

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "v 3 s s"]) -> Float[Tensor, "v d"]:
        """The unit embedding of each image, on the CPU."""
        pixels = self.processor(list(images.numpy()), return_tensors="pt", input_data_format="channels_first")
        found = self.network.get_image_features(pixels.pixel_values.to(self.device))
        return F.normalize(found.pooler_output, dim=-1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "p d"]:
        """The unit embedding of each text, truncated to the network's limit, on the CPU."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.device)
        return F.normalize(self.network.get_text_features(**tokens).pooler_output, dim=-1).cpu()

    def is_truncated(self, text: str) -> bool:
        """Whether the network reads only the beginning of a text."""
        tokens: list[int] = self.tokenizer(text, verbose=False).input_ids
        return len(tokens) > int(self.limit)


class ClipMetric:
    """Mean and lowest score of the views, and their R-precision.

    Args:
        clip: the network.
        prompts: the distinct prompts of all assets.
        announce: receives a line for each prompt that is longer than the network reads.
    """

    figures: Mapping[str, Figure] = {
        "score": Figure("CLIP", "higher", 2, main=True),
        "worst": Figure("CLIP, worst view", "higher", 2),
        "r_precision": Figure("R-precision", "higher", main=True),
    }
    set_figures: Mapping[str, Figure] = MappingProxyType({})
    reads_views = True

    def __init__(self, clip: Clip, prompts: Sequence[str], announce: Callable[[str], None]) -> None:
        self.clip, self.prompts = clip, list(prompts)
        for prompt in filter(clip.is_truncated, self.prompts):
            announce(f"CLIP reads the first {clip.limit} tokens of {prompt!r}")
        self.texts = clip.embed_texts(self.prompts).double().numpy() if prompts else np.zeros((0, 0))

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v p"]:
        """The cosine of each view with every prompt."""
        if asset.prompt is None:
            return np.zeros((len(views.images), len(self.prompts)))
        cosines: Array = self.clip.embed_images(views.images).double().numpy() @ self.texts.T
        return cosines

    def measure(self, asset: Asset, observed: Float[Array, "v p"]) -> dict[str, float]:
        """The values of one asset.

        `r_precision` is the share of views that are closer to the asset's prompt than to every other prompt; NaN if
        all assets have the same prompt.
        """
        if asset.prompt is None:
            return dict.fromkeys(self.figures, float("nan"))
        own = self.prompts.index(asset.prompt)
        scores = 100 * observed[:, own]
        nearest = float((observed.argmax(1) == own).mean()) if len(self.prompts) > 1 else float("nan")
        return {"score": float(scores.mean()), "worst": float(scores.min()), "r_precision": nearest}

    def summarize(self, observed: Sequence[Float[Array, "v p"]]) -> dict[str, float]:
        """Nothing."""
        return {}


def resolve(given: str | None, *, offline: bool, announce: Callable[[str], None]) -> Path:
    """The folder of a CLIP: a given one, else the Hub's cached or downloaded copy.

    Args:
        given: a folder or a Hub id; None is OpenAI's CLIP ViT-L/14.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts.

    Raises:
        WeightsUnavailable: a file is missing, damaged, or not the one that was used first; or the Hub can't be reached.
    """
    if given is not None and (folder := Path(given).expanduser()).is_dir():
        if absent := absent_files(folder, FILES):
            raise WeightsUnavailable(f"{folder} has no {', '.join(absent)}", hint=HINT)
        return folder
    model = MODEL if given is None else HubModel(id=given, marker=FILES[0], fallback_hint=HINT)
    return model.locate_files(FILES, OPTIONAL_FILES, offline=offline, announce=announce)


def plan_download() -> HubDownload | None:
    """The files that `resolve` would download; None if the Hub's cache has all of them.

    Raises:
        WeightsUnavailable: the Hub can't be reached, or lacks a file.
    """
    return MODEL.plan_files(FILES, OPTIONAL_FILES)


def load(setup: Setup) -> Metric:
    """The metric with OpenAI's weights, or those that `setup.weights["clip"]` names; raises the errors of `resolve`."""
    folder = resolve(setup.weights.get("clip"), offline=setup.offline, announce=setup.announce)
    return ClipMetric(Clip.load(folder, setup.device), setup.prompts, setup.announce)
