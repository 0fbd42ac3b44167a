"""The text encoder that Point-E was trained with: CLIP ViT-L/14, from a folder or the Hub."""

from collections.abc import Callable
from pathlib import Path

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util import hub

MODEL = "openai/clip-vit-large-patch14"
"""Hub id of the text encoder that Point-E was trained with."""
_FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "merges.txt")
_MORE = ("tokenizer.json", "special_tokens_map.json")

_FOLDER = MODEL.split("/")[1]
_ELSEWHERE = f"--point-e-dir with a folder {_FOLDER} in it, or --init sphere"


def resolve_clip(folder: Path | None, *, offline: bool, announce: Callable[[str], None]) -> Path:
    """The folder of the text encoder that Point-E was trained with.

    Args:
        folder: looked into first, for a folder clip-vit-large-patch14; that of `resolve_point_e`.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts.

    Raises:
        WeightsUnavailable: it is not there and can't be fetched.
    """
    if folder is not None and (own := folder / _FOLDER).is_dir():
        if absent := [name for name in _FILES if not (own / name).is_file()]:
            raise WeightsUnavailable(f"{own} has no {', '.join(absent)}", hint=_ELSEWHERE)
        return own
    if whole := _whole_clip():
        return whole
    if hub.is_offline(offline):
        partly = hub.cached_folder(MODEL, None, _FILES[0], _ELSEWHERE) is not None
        raise hub.not_cached(MODEL, partly=partly, elsewhere=_ELSEWHERE)
    return _clip_files().fetch(announce)


def pending_clip() -> hub.HubFiles | None:
    """What `resolve_clip` would download; none if all of it is in the Hub's cache.

    Raises:
        WeightsUnavailable: the Hub is out of reach, or lacks a file.
    """
    return None if _whole_clip() else _clip_files()


def _whole_clip() -> Path | None:
    folder = hub.cached_folder(MODEL, None, _FILES[0], _ELSEWHERE)
    return folder if folder is not None and all((folder / name).is_file() for name in _FILES) else None


def _clip_files() -> hub.HubFiles:
    listed = hub.listing(MODEL, None, [*_FILES, *_MORE], _ELSEWHERE)
    if absent := [name for name in _FILES if name not in listed]:
        raise WeightsUnavailable(f"{MODEL} has no {', '.join(absent)} on the Hub", hint=_ELSEWHERE)
    return hub.wanted_files(MODEL, None, listed, listed, _ELSEWHERE)
