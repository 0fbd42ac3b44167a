"""CLIP tokenizers and text encoders, loaded from local folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.pointe.clip import CLIP
from segdream_cli.priors.checkpoint import FALLBACK_HINT, Checkpoint, check_keys, read_errors


class TextEncoder:
    """A frozen CLIP text encoder with its tokenizer.

    Args:
        tokenizer: turns text into token ids; text is passed unchanged, as the Hub's pipelines do.
        network: returns the last hidden state of every token as its first output.
        device: where the network computes. Between texts it stays in host memory, because GPU memory is scarce.
        warn: receives a line for each text that is longer than `limit`.

    Attributes:
        limit: maximum tokens per text, with the start and end tokens.
    """

    def __init__(self, tokenizer: Any, network: Any, device: torch.device, *, warn: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.network = network.eval().requires_grad_(False)
        self.device = device
        self.limit = min(tokenizer.model_max_length, network.config.max_position_embeddings)
        self.warn = warn

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, warn: Callable[[str], None]
    ) -> "TextEncoder":
        """Loads the `tokenizer` and `text_encoder` of a verified checkpoint.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the two have different vocabularies.
        """
        tokenizer, network = load_clip(
            CLIPTextModel,
            checkpoint.folder / "tokenizer",
            checkpoint.folder / "text_encoder",
            where=f"of {checkpoint.name}",
            hint=FALLBACK_HINT,
            dtype=dtype,
            variant=checkpoint.variant,
        )
        return cls(tokenizer, network, device, warn=warn)

    def run(self, ids: Tensor) -> Any:
        """The network's outputs for token ids."""
        try:
            return self.network.to(self.device)(ids.to(self.device))
        finally:
            self.network.to("cpu")

    def cut_off(self, text: str) -> str:
        """The end of `text` beyond the limit; empty if the text fits."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        beyond = encoded["offset_mapping"][self.limit - 2 :]  # the start and end tokens count too
        return text[beyond[0][0] :] if beyond else ""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """The hidden states of each text, padded or truncated to the limit; warns of truncation.

        Returns:
            p texts, l tokens (the limit), d features, in the network's dtype and on its device.
        """
        cuts = {text: cut for text in texts if (cut := self.cut_off(text))}
        if cuts:
            others = f" (and the end of {len(cuts) - 1} more texts)" if len(cuts) > 1 else ""
            cut = next(iter(cuts.values()))
            self.warn(f"the prior reads {self.limit - 2} tokens of a text; not read: {cut!r}{others}")
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.run(ids)[0]
        return embeddings


class TextVector:
    """Encodes a whole text as one vector of unit length, the condition of Point-E.

    Args:
        encoder: with a `CLIPTextModelWithProjection` the vector is the projected feature of the end token, as in the
            release. With a prior's own `CLIPTextModel`, which has no projection, it is the mean of the hidden states
            that the prior reads, also those after the end token.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    @classmethod
    def load(cls, folder: Path, device: torch.device, *, warn: Callable[[str], None]) -> "TextVector":
        """Loads tokenizer and text encoder of a CLIP checkpoint in float32.

        Args:
            folder: a CLIP repository, complete or only its text half; see `resolve_clip`.
            device: where the encoder runs.
            warn: receives a line for each text that is longer than the encoder's limit.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        tokenizer, network = load_clip(
            CLIPTextModelWithProjection,
            folder,
            folder,
            where=f"in {folder}",
            hint=CLIP.fallback_hint,
            dtype=torch.float32,
        )
        return cls(TextEncoder(tokenizer, network, device, warn=warn))

    @torch.no_grad()
    def encode(self, text: str) -> Float[Tensor, " d"]:
        """The vector of a text, float32 on the encoder's device; warns of truncation."""
        encoder, text = self._encoder, text.translate(_STRAIGHT_QUOTES)
        if cut := encoder.cut_off(text):
            encoder.warn(f"Point-E reads {encoder.limit - 2} tokens of a text; not read: {cut!r}")
        if isinstance(encoder.network, CLIPTextModelWithProjection):
            ids = encoder.tokenizer(text, max_length=encoder.limit, truncation=True, return_tensors="pt").input_ids
            pooled = encoder.run(ids).text_embeds[0]
        else:
            pooled = encoder.encode([text])[0].mean(0)
        return torch.nn.functional.normalize(pooled.float(), dim=0)


def load_clip(
    kind: Any,
    tokenizer_folder: Path,
    network_folder: Path,
    *,
    where: str,
    hint: str,
    part: str = "text encoder",
    **options: Any,
) -> tuple[Any, Any]:
    """Loads a CLIP tokenizer and a network; every weight must come from the file.

    Args:
        kind: class of the network: a text encoder, or a whole CLIP.
        tokenizer_folder: folder of the tokenizer.
        network_folder: folder of the network.
        where: the end of "the tokenizer ..." in errors.
        hint: hint of the errors.
        part: what errors call the network.
        options: keyword arguments of the network's `from_pretrained`.

    Raises:
        WeightsUnavailable: a file can't be read, a weight is missing, or the two have different vocabularies.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with read_errors(f"the tokenizer {where}", hint):
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    title = f"the {part} {where}"
    with read_errors(title, hint):
        network, info = kind.from_pretrained(
            network_folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    check_keys(title, info, hint)
    words = getattr(network.config, "text_config", network.config).vocab_size
    if len(tokenizer) != words:
        raise WeightsUnavailable(
            f"the tokenizer {where} has {len(tokenizer)} tokens, its {part} {words}",
            hint=hint,
        )
    return tokenizer, network


_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")
"""Maps curly quotes to straight ones, as CLIP's own tokenizer does, which Point-E was trained with."""
