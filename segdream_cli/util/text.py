"""Text from outside, made safe to show; sizes and lists as people read them."""

import re
from collections.abc import Sequence

# control characters, line separators, the marks that reorder text between left and right, and undecodable bytes
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_QUOTED = re.compile("\"[^\"]*\"|'[^']*'")
_ANSI = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?)")


def printable(text: str) -> str:
    r"""The text with escapes such as `\x1b` for characters that would change or forge what a terminal or page shows."""
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_command(command: str) -> str:
    r"""A command for a shell, with `$'\033'` for such characters in its quoted words, so that it stays the same one."""

    def spell(found: re.Match[str]) -> str:
        word = found[0]
        if word.startswith('"') or not _UNPRINTABLE.search(word):
            return word
        return "$" + _UNPRINTABLE.sub(_octal, word.replace("\\", "\\\\"))

    return printable(_QUOTED.sub(spell, command))


def join_names(names: Sequence[str]) -> str:
    """Names as in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def format_size(size: float) -> str:
    """A number of bytes with a decimal unit, rounded to a tenth: "512 B", "30.4 kB", "2.6 GB"."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if round(size, 1) < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def _octal(found: re.Match[str]) -> str:
    """The bytes of a character as the shell spells them."""
    is_byte = "\udc80" <= found[0] <= "\udcff"  # of a file name that is no UTF-8
    content = found[0].encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\{each:03o}" for each in content)


def strip_ansi(text: str) -> str:
    """The text without the sequences that change the colours or the title of a terminal."""
    return _ANSI.sub("", text)
