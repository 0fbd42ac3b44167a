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
from segdream_cli.priors.checkpoint import Checkpoint, check_keys, translate_errors
from segdream_cli.util import hub


class TextEncoder:
    """A frozen CLIP text encoder with its tokenizer.

    Args:
        tokenizer: turns text into token ids; its text is taken as it is, as the Hub's pipelines do.
        network: returns the last hidden state of every token as its first output.
        device: where it computes. Between texts it waits in the host's memory: a GPU's is scarce.
        warn: receives one line whenever a text is longer than the encoder reads.
    """

    def __init__(self, tokenizer: Any, network: Any, device: torch.device, *, warn: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.network = network.eval().requires_grad_(False)
        self.device = device
        self.limit = min(tokenizer.model_max_length, network.config.max_position_embeddings)
        self._warn = warn

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, warn: Callable[[str], None]
    ) -> "TextEncoder":
        """Loads the `tokenizer` and `text_encoder` of a verified checkpoint.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the two have different vocabularies.
        """
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        with translate_errors(checkpoint, "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(checkpoint.folder / "tokenizer", local_files_only=True)
        with translate_errors(checkpoint, "text_encoder"):
            network, info = CLIPTextModel.from_pretrained(
                checkpoint.folder / "text_encoder",
                dtype=dtype,
                variant=checkpoint.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        check_keys(checkpoint, "text_encoder", info)
        if len(tokenizer) != network.config.vocab_size:
            raise WeightsUnavailable(
                f"the tokenizer of {checkpoint.name} has {len(tokenizer)} tokens, "
                f"its text encoder {network.config.vocab_size}",
                hint="--model with a folder whose tokenizer belongs to its text encoder",
            )
        return cls(tokenizer, network, device, warn=warn)

    def output(self, ids: Tensor) -> Any:
        """What the network says of token ids."""
        try:
            return self.network.to(self.device)(ids.to(self.device))
        finally:
            self.network.to("cpu")

    def cut_off(self, text: str) -> str:
        """The end of `text` that does not fit the encoder's limit; empty if it fits."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        beyond = encoded["offset_mapping"][self.limit - 2 :]  # the start and end tokens take two places
        return text[beyond[0][0] :] if beyond else ""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """The encoder's hidden states of each text, padded or cut to its limit; a cut is warned of.

        Returns:
            p texts, l tokens (the limit), d features, in the network's dtype and on its device.
        """
        cuts = {text: cut for text in texts if (cut := self.cut_off(text))}
        if cuts:
            others = f" (and the end of {len(cuts) - 1} more texts)" if len(cuts) > 1 else ""
            cut = next(iter(cuts.values()))
            self._warn(f"the prior reads {self.limit - 2} tokens of a text; not read: {cut!r}{others}")
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.output(ids)[0]
        return embeddings


class TextVector:
    """One vector of unit length for a whole text, as Point-E is conditioned on.

    Args:
        encoder: around a `CLIPTextModelWithProjection` the vector is the projected feature of the end token, as in the
            release; around a prior's own `CLIPTextModel`, trained without one, the mean of the hidden states that the
            prior reads, those after the end included.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    @classmethod
    def load(cls, folder: Path, device: torch.device, *, warn: Callable[[str], None]) -> "TextVector":
        """Loads tokenizer and text encoder of a CLIP checkpoint, the whole of it or its text half, in float32.

        Args:
            folder: with the files of a CLIP repository of the Hub; see `pointe.clip.resolve_clip`.
            device: where the encoder runs.
            warn: receives one line when a text is longer than the encoder reads.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        hint = "--point-e-dir with a folder clip-vit-large-patch14 in it, or --init sphere"
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            network, info = CLIPTextModelWithProjection.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except MemoryError:
            raise
        except Exception as problem:  # the Rust parts of the library raise bare Exceptions
            said = f"the text encoder in {folder} can't be read: {hub.reason(problem)}"
            raise WeightsUnavailable(said, hint=hint) from problem
        lacking = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ()))
        if lacking:
            raise WeightsUnavailable(
                f"the text encoder in {folder} lacks {len(lacking)} weights, the first is {lacking[0]}", hint=hint
            )
        if len(tokenizer) != network.config.vocab_size:
            raise WeightsUnavailable(
                f"the tokenizer in {folder} has {len(tokenizer)} tokens, its text encoder {network.config.vocab_size}",
                hint=hint,
            )
        return cls(TextEncoder(tokenizer, network, device, warn=warn))

    @torch.no_grad()
    def encode(self, text: str) -> Float[Tensor, " d"]:
        """The vector of a text, float32 on the encoder's device. A text over the limit is cut, and warned of."""
        encoder, text = self._encoder, text.translate(_STRAIGHT)
        if cut := encoder.cut_off(text):
            encoder._warn(f"Point-E reads {encoder.limit - 2} tokens of a text; not read: {cut!r}")
        if isinstance(encoder.network, CLIPTextModelWithProjection):
            ids = encoder.tokenizer(text, max_length=encoder.limit, truncation=True, return_tensors="pt").input_ids
            pooled = encoder.output(ids).text_embeds[0]
        else:
            pooled = encoder.encode([text])[0].mean(0)
        return torch.nn.functional.normalize(pooled.float(), dim=0)


_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
"""Curly quotes to straight ones: CLIP's own tokenizer, which Point-E was trained with, straightens them first."""
