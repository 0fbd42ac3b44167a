"""Text from outside, made safe to show."""

import re

# control characters, line separators, the marks that reorder text between left and right, and undecodable bytes
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for characters that would change or forge what a terminal or page shows."""
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
