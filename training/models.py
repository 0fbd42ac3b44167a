"""The networks of the embedded prior, in Stable Diffusion's folder layout, and its tokenizer."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.world.catalog import COARSE_VIEWS, COLORS, OVERHEAD, VIEWS, combinations

TEXT_WIDTH = 192
MAX_TOKENS = 20
UNET_CHANNELS = (96, 160, 224)
AUTOENCODER_CHANNELS = (16, 32, 64, 128)
LATENT_CHANNELS = 8


def autoencoder(
    channels: tuple[int, ...] = AUTOENCODER_CHANNELS, latent_channels: int = LATENT_CHANNELS
) -> AutoencoderKL:
    """An autoencoder of 128 px images whose latents are 16 px square for four levels."""
    return AutoencoderKL(
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def unet(latent_channels: int = LATENT_CHANNELS, channels: tuple[int, ...] = UNET_CHANNELS) -> UNet2DConditionModel:
    """The denoiser of 16 px latents, and of larger ones: three levels, text in the lower two."""
    lower = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * lower,
        up_block_types=("CrossAttnUpBlock2D",) * lower + ("UpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(channel // 16 for channel in channels),  # the number of heads, despite its name
        use_linear_projection=True,
        norm_num_groups=16,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of two layers for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=TEXT_WIDTH // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1-base's schedule: scaled-linear betas, epsilon prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def vocabulary() -> set[str]:
    """Every word of every caption."""
    captions = {one.caption(view=view) for one in combinations() for view in (*VIEWS, *COARSE_VIEWS, OVERHEAD)}
    return {word for caption in captions for word in caption.replace(",", " , ").split()} | {"a", "an", *COLORS}


def make_tokenizer(folder: Path, words: Iterable[str]) -> CLIPTokenizer:
    """Writes byte-pair files in CLIP's format whose merges make each word one token, and loads them.

    Any other text still becomes tokens, letter by letter.
    """
    spellings = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for spelling in spellings.values() for pair in pairwise(spelling)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spellings = {word: _merged(spelling, best) for word, spelling in spellings.items()}
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `make_tokenizer` wrote."""
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def _merged(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    """The spelling with every occurrence of the pair joined, from the left."""
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
