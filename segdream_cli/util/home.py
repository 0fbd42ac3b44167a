"""The user's home folder as `~`, so that files made here don't name it, and machines without one."""

import os
import tempfile
from pathlib import Path


def expand(path: str | Path) -> Path:
    """A path with its `~` replaced by the home folder; as given if there is no home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where a user has no home


def abbreviate(path: Path) -> str:
    """The absolute path, with `~` for the home folder; `expand` is the inverse."""
    path, home = path.resolve(), expand("~")
    if home.is_absolute() and path.is_relative_to(home := home.resolve()):
        return str("~" / path.relative_to(home))
    return str(path)


def user_cache() -> Path:
    """The folder of the user's caches: $XDG_CACHE_HOME, else ~/.cache; without a home, one for temporary files."""
    given = expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if given.is_absolute():
        return given
    home = expand("~/.cache")
    return home if home.is_absolute() else Path(tempfile.gettempdir()) / f"cache-{getattr(os, 'getuid', int)()}"
