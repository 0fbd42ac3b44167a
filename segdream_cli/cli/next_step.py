"""The command that usually comes next, which `Output.suggest` shows on a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from segdream_cli.config import SD21

FIRST_ASSET = "segdream", "generate", "a yellow school bus", "-o", "bus.ply"
MOST_BESIDE = 4
"""Assets that a turntable shows side by side."""
AFTER_FETCH: Mapping[str, Sequence[str]] = MappingProxyType(
    dict.fromkeys((SD21, "point-e"), ("segdream", "generate", "a corgi", "-o", "corgi.ply", "--prior", SD21))
)


def after_assets(outputs: Sequence[Path]) -> list[str]:
    """After `generate` and `refine`: a turntable, or the table of many assets; empty if segdream can't read them."""
    from segdream_cli.formats import FORMATS, format_of

    local = [path for path in outputs if "://" not in str(path)]  # no command reads an address
    shown = [path for path in local if FORMATS[format_of(path)].readable]
    if len(shown) > MOST_BESIDE:
        return ["segdream", "evaluate", *sorted({str(path.parent) for path in shown})]
    return ["segdream", "render", *map(str, shown), "--turntable"] if shown else []


def after_export(outputs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """After `export`: the page of the first output that segdream can read; `names` are the formats."""
    from segdream_cli.formats import FORMATS

    readable = [path for path, name in zip(outputs, names, strict=True) if name in FORMATS and FORMATS[name].readable]
    return ["segdream", "view", str(readable[0])] if readable else []


def after_init(path: Path, prompt: str) -> list[str]:
    """After `init`: the asset that starts from the file."""
    return ["segdream", "generate", prompt, "--init", str(path)] if path.suffix.lower() == ".ply" else []


def after_render(assets: Sequence[Path]) -> list[str]:
    """After `render` of one asset: its page to share, unless that exists."""
    page = assets[0].with_suffix(".html")
    return [] if len(assets) > 1 or page.exists() else ["segdream", "export", str(assets[0]), "-o", str(page)]
