"""The text encoder that Point-E was trained with: CLIP ViT-L/14, from a folder or the Hub."""

from collections.abc import Callable
from pathlib import Path

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.hub import HubDownload, HubModel, absent_files

_FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "merges.txt")
_OPTIONAL_FILES = ("tokenizer.json", "special_tokens_map.json")

CLIP = HubModel(
    id="openai/clip-vit-large-patch14",
    marker=_FILES[0],
    fallback_hint="--init sphere",
    pinned={"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
)
"""The model on the Hub."""


def resolve_clip(folder: Path | None, *, offline: bool, announce: Callable[[str], None]) -> Path:
    """Finds the folder of the text encoder that Point-E was trained with, or downloads it.

    Args:
        folder: the folder of `resolve_point_e`; a folder clip-vit-large-patch14 in it is used first.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts.

    Raises:
        WeightsUnavailable: a file is missing, damaged, or not the one that was used first; or the Hub can't be reached.
    """
    if folder is not None and (own := folder / CLIP.id.split("/")[1]).is_dir():
        if absent := absent_files(own, _FILES):
            raise WeightsUnavailable(f"{own} has no {', '.join(absent)}", hint=CLIP.fallback_hint)
        return own
    return CLIP.locate_files(_FILES, _OPTIONAL_FILES, offline=offline, announce=announce)


def plan_clip_download() -> HubDownload | None:
    """The files that `resolve_clip` would download; None if the Hub's cache has all of them.

    Raises:
        WeightsUnavailable: the Hub can't be reached, or lacks a file.
    """
    return CLIP.plan_files(_FILES, _OPTIONAL_FILES)
