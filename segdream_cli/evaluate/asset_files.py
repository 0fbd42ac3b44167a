"""The files of the assets of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from segdream_cli import formats
from segdream_cli.errors import UsageProblem
from segdream_cli.formats.sniff import META
from segdream_cli.util.files import is_folder, lexists


def find_assets(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files of assets: those given, and those in given folders, in order of their names.

    Returns:
        The files, and messages about those left out: a file that is named twice, and a file of a folder whose stem has
        an earlier suffix of `formats.READABLE_SUFFIXES` there too: one asset is often exported to several formats.

    Raises:
        UsageProblem: a file or folder can't be read, or a folder holds no asset.
    """
    found: dict[Path, Path] = {}
    notes = []
    for path in paths:
        if is_folder(path) and not (path / META).is_file():  # the folder of an unbundled SOG is one asset
            members, left_out = _members(path)
            notes += left_out
        elif not path.suffix and not lexists(path):
            raise UsageProblem(f"there is no folder or file {path}", hint=formats.make_hint(path / "bus.ply"))
        else:
            formats.kind_of(path)
            members = [path]
        for member in members:
            if member.resolve() in found:
                notes.append(f"{member} is named twice and counts once")
            found.setdefault(member.resolve(), member)
    return list(found.values()), notes


def _members(folder: Path) -> tuple[list[Path], list[str]]:
    """The assets in a folder, one per stem, and messages about the others."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as problem:
        raise UsageProblem(
            f"{folder} can't be read: {problem.strerror}", hint=f"ls -ld {quote(str(folder))}"
        ) from problem
    chosen: dict[str, Path] = {}
    notes = []
    for suffix in formats.READABLE_SUFFIXES:
        for path in files:
            if formats.readable_suffix(path) != suffix:
                continue
            stem = path.name[: -len(suffix)]
            if stem in chosen:
                notes.append(f"{path} is left out, because {chosen[stem].name} is beside it")
            else:
                chosen[stem] = path
    if not chosen:
        raise UsageProblem(
            f"the folder {folder} holds no asset",
            hint=formats.make_hint(folder / "bus.ply"),
        )
    return sorted(chosen.values()), list(dict.fromkeys(notes))


def parts_of(path: Path) -> list[Path]:
    """The files of an asset: that of its path and, of an unbundled SOG, the images beside its description."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == META:
        return sorted(each for each in folder.iterdir() if each.is_file())
    return [path]


def stem_of(path: Path) -> str:
    """The file's name without the suffix of its format."""
    suffix = formats.readable_suffix(path)
    return (path.name[: -len(suffix)] if suffix else path.stem) or path.name
