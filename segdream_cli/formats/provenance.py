"""The part of a file's metadata that segdream keeps: known keys with plain values, whatever else the file holds."""

import math
from collections.abc import Mapping
from typing import Any

KNOWN = frozenset(
    {
        *("generator", "version", "prompt", "prompt_read", "negative_prompt", "seed", "init"),
        *("method", "prior", "prior_digest", "quality", "steps", "unet_rows", "seconds", "strength"),
        *("file", "sha256", "turn_deg"),
    }
)
"""Keys whose values are texts, numbers or truth values."""
LISTS = ("comments", "offset")
"""Keys of lists of such values."""
OBJECTS = ("source", "provenance")
"""The asset that a refinement began with, and the metadata of one."""
SCENE = "scene"
"""The list of the assets that a file joins."""
DEEPEST = 16
"""Levels that are kept; each refinement of a refinement takes two."""
LONGEST = 10_000
"""Characters of a text."""
MOST = 1000
"""Entries of a list."""


def known_provenance(found: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The entries of untrusted metadata that segdream writes, with values that any format can hold."""
    kept: dict[str, Any] = {key: value for key, value in found.items() if key in KNOWN and _is_plain(value)}
    for key in LISTS:
        if isinstance(values := found.get(key), list):
            kept[key] = [value for value in values[:MOST] if _is_plain(value)]
    if depth == DEEPEST:
        return kept
    for key in OBJECTS:
        if isinstance(value := found.get(key), Mapping):
            kept[key] = known_provenance(value, depth + 1)
    if isinstance(parts := found.get(SCENE), list):
        kept[SCENE] = [known_provenance(part, depth + 1) for part in parts[:MOST] if isinstance(part, Mapping)]
    return kept


def _is_plain(value: Any) -> bool:
    """Whether a JSON value is a text of usual length, a finite number or a truth value, or nothing."""
    if isinstance(value, str):
        return len(value) <= LONGEST
    if isinstance(value, (int, float)):
        return abs(value) < 1 << 63 and math.isfinite(value)
    return value is None
