"""The part of a file's metadata that segdream keeps: known keys with plain values, whatever else the file holds."""

import math
from collections.abc import Mapping
from typing import Any

KNOWN = frozenset(
    {
        *("generator", "version", "prompt", "prompt_read", "negative_prompt", "seed", "init"),
        *("method", "prior", "prior_digest", "quality", "steps", "unet_rows", "seconds", "strength"),
        *("file", "sha256"),
    }
)
"""Keys whose values are texts, numbers or truth values."""
SOURCE, NESTED, COMMENTS = "source", "provenance", "comments"
"""What a refined asset was made from: another asset's name, hash, metadata, and its file's comments."""
DEEPEST = 8
"""Refinements of refinements whose metadata is kept."""
LONGEST = 10_000
"""Characters of a text."""
MOST_COMMENTS = 100


def known_provenance(found: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The entries of untrusted metadata that segdream writes, with values that any format can hold."""
    kept = {key: value for key, value in found.items() if key in KNOWN and _is_plain(value)}
    comments = found.get(COMMENTS)
    if isinstance(comments, list):
        kept[COMMENTS] = [text for text in comments if isinstance(text, str) and _is_plain(text)][:MOST_COMMENTS]
    for key in (SOURCE, NESTED):
        value = found.get(key)
        if isinstance(value, Mapping) and depth < 2 * DEEPEST:
            kept[key] = known_provenance(value, depth + 1)
    return kept


def _is_plain(value: Any) -> bool:
    """Whether a JSON value is a text of usual length, a finite number or a truth value, or nothing."""
    if isinstance(value, str):
        return len(value) <= LONGEST
    if isinstance(value, (int, float)):
        return abs(value) < 1 << 63 and math.isfinite(value)
    return value is None
