"""Asset files, one file per format: `read`, `write`, and the tables of formats.

A new format is a file here with `read(path, reading)` and `write(path, splats)`, a row of `FORMATS` if segdream writes
it, and a row of `READERS` and a rule of `sniff.py` if segdream reads it.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

from segdream_cli.errors import UsageProblem
from segdream_cli.formats.common import DEFAULT, Reading
from segdream_cli.formats.provenance import known_provenance
from segdream_cli.formats.sniff import sniff
from segdream_cli.splats import Splats
from segdream_cli.splats.frames import INNER, PLY, check_frame, from_frame, to_frame
from segdream_cli.util.files import free_path, is_file, is_folder, lexists


@dataclass(frozen=True, slots=True)
class Format:
    """A row of `FORMATS`; its module is imported on first use, so that listing the table costs nothing."""

    suffix: str
    """Suffix of its file names."""
    description: str
    module: str
    """File of this folder with `write(path, splats, **options)`, and with `check_packages()` if it needs a package that
    is no dependency."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `write`."""
    readable: bool = True
    """Whether segdream reads its files as assets."""
    frame: str | None = PLY
    """Frame of its files; None if they name theirs, so `write` takes it, and the module has `check_frame(name)`."""
    beside: str = ""
    """Suffix of a second file, which `write` puts beside the first; empty if there is none."""

    def check_packages(self) -> None:
        """Raises EnvironmentProblem if the module needs a package that is missing."""
        check = getattr(import_module(f"{__name__}.{self.module}"), "check_packages", None)
        if check is not None:
            check()

    def check_frame(self, name: str) -> None:
        """Raises UsageProblem if files of this format name their frame and can't name this one."""
        if self.frame is None:
            import_module(f"{__name__}.{self.module}").check_frame(name)

    def write(self, path: Path, splats: Splats, frame: str | None = None, **options: Any) -> None:
        """Writes `path` with the axes of `frame`; raises the errors of the module's `write`."""
        if self.frame is None:
            options["frame"] = frame
        elif frame is not None and frame != self.frame:
            splats = from_frame(to_frame(splats, frame), self.frame)
        import_module(f"{__name__}.{self.module}").write(path, splats, **{**self.options, **options})


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "ply": Format(".ply", "Gaussians as every viewer reads them, padded to SH degree 3", "ply"),
        "ply-compact": Format(".ply", "the same without the padding", "ply", {"pad_sh": False}),
        "compressed-ply": Format(
            ".compressed.ply", "a quarter of a compact PLY and less, for SuperSplat", "compressed"
        ),
        "spz": Format(".spz", "about a tenth of a PLY, for web viewers", "spz", frame=None),
        "spz4": Format(".spz", "the same with zstandard, for newer readers", "spz", {"version": 4}, frame=None),
        "sog": Format(".sog", "the smallest for many Gaussians, for PlayCanvas", "sog"),
        "glb": Format(".glb", "glTF with KHR_gaussian_splatting", "glb", frame=INNER),
        "3dtiles": Format(
            ".glb", "the same packed as SPZ, with a tileset for Cesium", "tiles", frame=INNER, beside=".tileset.json"
        ),
        "usdz": Format(
            ".usdz",
            "OpenUSD's ParticleField, for Omniverse, Houdini and Apple; needs the extra usd",
            "usd",
            frame=INNER,
        ),
        "html": Format(".html", "one page with its viewer, works offline", "page", readable=False, frame=INNER),
        "splat": Format(".splat", "32 bytes per Gaussian, colours without view dependence", "splat"),
        "points": Format(".ply", "a coloured point cloud for mesh tools", "points", readable=False, frame=INNER),
    }
)
"""Format name -> suffix, description, read and write. The first row of a suffix is what the suffix alone means."""


READERS: Mapping[str, str] = MappingProxyType(
    {
        "ply": "ply",
        "compressed-ply": "compressed",
        "points": "points",
        "spz": "spz",
        "sog": "sog",
        "glb": "glb",
        "usd": "usd",
        "ksplat": "ksplat",
        "splat": "splat",
    }
)
"""Kind of file, as `sniff` names it -> file of this folder with its `read(path, reading)`."""
READABLE_SUFFIXES = (
    *dict.fromkeys(row.suffix for row in FORMATS.values() if row.readable),
    *(".gltf", ".usda", ".usdc", ".ksplat", ".ply.gz"),
)
"""Usual suffixes of readable files."""


def format_of(path: Path) -> str:
    """The name of the format that the suffix of `path` means.

    Raises:
        UsageProblem: the suffix is unknown; the message lists the known ones.
    """
    for key in FORMATS:
        if goes_with(path, key):
            return key
    known = _suffixes()
    if is_folder(path):
        inside = quote(str(free_path(path / f"asset{known[0]}")))
        raise UsageProblem(f"{path} is a folder", hint=f"-o {inside}", without=[f"-o {path}"])
    nearest = difflib.get_close_matches(path.suffix.lower(), known, n=1, cutoff=0.6) or known
    stem = path.name[: len(path.name) - len(readable_suffix(path) or path.suffix)]
    other = path.with_name(stem + nearest[0]) if stem else path / f"asset{nearest[0]}"
    raise UsageProblem(
        f"{path} has no known suffix; use one of {', '.join(known)}",
        hint=f"-o {quote(str(free_path(other)))}",
        without=[f"-o {path}"],
    )


def goes_with(path: Path, name: str) -> bool:
    """Whether the file name `path` fits the format `name`; the longest suffix counts, as in `.compressed.ply`."""
    return FORMATS[name].suffix == _suffix_of(path)


def _suffix_of(path: Path) -> str:
    """The longest suffix of a format that a file name ends with; empty if there is none."""
    return max((suffix for suffix in _suffixes() if path.name.lower().endswith(suffix)), key=len, default="")


def _suffixes() -> list[str]:
    return list(dict.fromkeys(row.suffix for row in FORMATS.values()))


def readable_suffix(path: Path) -> str:
    """The longest of `READABLE_SUFFIXES` that a file name ends with; empty if there is none."""
    return max((each for each in READABLE_SUFFIXES if path.name.lower().endswith(each)), key=len, default="")


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """The asset in `path`, which may come from another tool, in the inner frame; its bytes say what it is.

    Raises:
        UsageProblem: the file can't be opened or read, or holds no asset, or there is no such frame.
    """
    if reading.frame is not None:
        reading = dataclasses.replace(reading, frame=check_frame(reading.frame))
    splats: Splats = import_module(f"{__name__}.{READERS[kind_of(path)]}").read(path, reading)
    return dataclasses.replace(splats, provenance=known_provenance(splats.provenance))


def kind_of(path: Path) -> str:
    """The kind of the file `path`, a key of `READERS`: that of its bytes or, if they are unknown, of its suffix.

    Raises:
        UsageProblem: the file can't be opened, or neither its bytes nor its suffix are those of an asset.
    """
    try:
        found = sniff(path)
    except UsageProblem as problem:
        if is_folder(path):
            problem.words = _other_asset(path, path, cutoff=0)
            if not problem.words:
                problem.hint = make_hint(path / "bus.ply")
        elif not lexists(path) and not isinstance(problem.__cause__, PermissionError):
            is_asset = any(goes_with(path, name) and FORMATS[name].readable for name in FORMATS)
            if is_asset and is_file(path.with_suffix(".run") / "checkpoint.safetensors"):
                problem.hint = f"segdream generate --resume {quote(str(path.with_suffix('.run')))}"
                raise
            problem.words = _other_asset(path, path.parent, cutoff=0)
            if is_asset and not problem.words:
                problem.hint = make_hint(path)
        raise
    if found is not None:
        return found
    known = ", ".join(READABLE_SUFFIXES)
    for name in FORMATS:
        if goes_with(path, name):
            if not FORMATS[name].readable:
                raise UsageProblem(
                    f"segdream can write {FORMATS[name].suffix} files but not read them: {path}; "
                    f"give the asset as one of {known}"
                )
            return next(kind for kind, module in READERS.items() if module == FORMATS[name].module)
    raise UsageProblem(
        f"{path} is no asset that segdream reads; it reads {known}", words=_other_asset(path, path.parent)
    )


def make_hint(path: Path) -> str:
    """A command that makes an asset at a path, and its folder if that is missing."""
    folder = "" if is_folder(path.parent) else f"mkdir -p {quote(str(path.parent))} && "
    return f"{folder}segdream generate 'a yellow school bus' -o {quote(str(path))}"


def _other_asset(path: Path, folder: Path, *, cutoff: float = 0.6) -> dict[str, str]:
    """The path, and the asset in a folder whose name is most like its own; empty if none is like it.

    Args:
        path: a file that can't be read.
        folder: where to look.
        cutoff: least likeness of the names, 0 to 1.
    """
    names: list[str] = []
    with suppress(OSError):
        names = sorted(
            other.name for other in folder.iterdir() if readable_suffix(other) and other != path and other.is_file()
        )
    same = [name for name in names if name.partition(".")[0] == path.name.partition(".")[0]]
    close = same or difflib.get_close_matches(path.name, names, n=1, cutoff=cutoff)
    return {str(path): str(folder / close[0])} if close else {}


def check_format(path: Path, format: str | None = None) -> str:
    """The name of the format to write `path` in: `format`, or the one of the suffix.

    Raises:
        UsageProblem: the format is not known, or does not go with the suffix.
        EnvironmentProblem: it needs a package that is missing.
    """
    name = format_of(path) if format is None else format
    if name not in FORMATS:
        nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)
        raise UsageProblem(
            f"there is no format {name!r}; use one of {', '.join(FORMATS)}", hint=f"--format {nearest[0]}"
        )
    suffix = FORMATS[name].suffix
    if not goes_with(path, name):
        raise UsageProblem(
            f"the format {name} is written to {suffix} files, not to {path.name}",
            hint=f"-o {quote(str(free_path(path.with_suffix(suffix))))}",
            without=[f"-o {path}"],
        )
    FORMATS[name].check_packages()
    return name


def write(path: Path, splats: Splats, format: str | None = None, *, frame: str | None = None, **options: Any) -> None:
    """Writes `splats` to `path` in `format`, or in the format of the suffix.

    Args:
        path: the file.
        splats: the asset, in the inner frame.
        format: a key of `FORMATS`.
        frame: where the axes of the file point, such as "ruf"; None is the format's own. Only SPZ records it.
        options: keyword arguments of the format's `write`.

    Raises:
        UsageProblem: the format or frame is not known, the format does not go with the suffix, or the folder can't be
            written.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
    """
    row = FORMATS[check_format(path, format)]
    row.write(path, splats, frame if frame is None else check_frame(frame), **options)
