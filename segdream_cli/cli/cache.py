"""`segdream cache`: lists, verifies and cleans the cache."""

from collections.abc import Sequence
from enum import StrEnum
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import CachePart, Removed
from segdream_cli.errors import OptionProblem, SegdreamError, WeightsUnavailable
from segdream_cli.util.download import cache_folder
from segdream_cli.util.text import format_size

if TYPE_CHECKING:
    from segdream_cli.util.cache import Store

NAMES = ("point-e", "inception", "first-use", "clouds", "openvino", "hashes", "timings", "inductor", "compiled")
PartName = StrEnum("PartName", {name: name for name in NAMES})  # type: ignore[misc]


def cache(
    context: typer.Context,
    parts: Annotated[
        list[PartName] | None, typer.Argument(metavar="PART", help="Part of the cache; default: all.")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove the parts; without PART, all that segdream makes again at once.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files, and compare their hashes.")] = False,
    yes: shared.YesOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """List, verify or clean the cache.

    segdream cache

    segdream cache --verify

    segdream cache --clean clouds openvino

    Downloads and compiled networks are removed only by name. Models of the
    Hub are shared with other programs: hf cache rm removes them.
    """
    from segdream_cli.util.cache import COMPUTED, stores
    from segdream_cli.util.hashes import forget_hashes

    sink = Output(json=json, quiet=quiet)
    if clean and verify:
        raise OptionProblem("--clean and --verify exclude each other", without=["--verify"])
    if not clean:
        shared.refuse_options(context, {"yes"}, "only affects --clean", "segdream cache --clean --yes")
    chosen = [store for store in stores() if not parts or store.name in parts]
    if clean:
        _clean([each for each in chosen if parts or each.part.kind == COMPUTED], context, sink, yes=yes)
        return
    if verify:
        forget_hashes()
    bad: list[str] = []
    for store in chosen:
        bad += _show(store, sink, verify=verify)
    sink.note(f"in {cache_folder()}; SEGDREAM_CACHE chooses another folder")
    if bad:
        raise WeightsUnavailable(f"{shared.count(len(bad), 'part')} of the cache damaged: {', '.join(bad)}")


def _show(store: "Store", sink: Output, *, verify: bool) -> list[str]:
    """Prints a part; returns its name if it is damaged, else nothing."""
    from segdream_cli.util.cache import SHARED

    files = store.files()
    size = sum(file.stat().st_size for file in files)
    damaged = dict(store.find_damage()) if verify else {}
    state = "damaged" if damaged else "ok" if verify and store.part.check else "unchecked"
    remedy = f"rm {' '.join(quote(str(path)) for path in damaged)}"
    hint = None if not damaged else remedy if store.part.kind == SHARED else f"segdream cache --clean {store.name}"
    line = CachePart(
        name=store.name,
        path=store.folder,
        title=store.part.title,
        kind=store.part.kind,
        files=len(files),
        bytes=size,
        state=state,
        hint=hint,
    )
    counted = shared.count(len(files), "file")
    text = f"{format_size(size):>9}  {counted:>9}  {store.part.kind:10}  {store.name:10}  {store.part.title}"
    reasons = [f"{'':9}  {path}: {reason}" for path, reason in damaged.items()]
    sink.result(line, f"{state:9}  {text}" if verify else text, *reasons, *([f"{'':9}  hint: {hint}"] if hint else []))
    return [store.name] if damaged else []


def _clean(chosen: "Sequence[Store]", context: typer.Context, sink: Output, *, yes: bool) -> None:
    """Removes parts, after a question.

    Raises:
        SegdreamError: a part can't be removed; the others are gone.
    """
    sizes = {store: sum(file.stat().st_size for file in store.files()) for store in chosen if store.files()}
    if not sizes:
        sink.note("nothing to remove")
        return
    for store, size in sizes.items():
        sink.note(f"{format_size(size):>9}  {store.folder}")
    total = format_size(sum(sizes.values()))
    shared.confirm(sink, f"remove {shared.count(len(sizes), 'part')} of the cache, {total}?", yes=yes)
    kept = []
    for store in sizes:
        try:
            removed = store.remove()
        except OSError as problem:
            kept.append(f"{store.folder} stays: {problem.strerror or problem}")
        else:
            sink.result(Removed(path=store.folder, bytes=removed), f"removed {store.folder}")
    if kept:
        raise SegdreamError("; ".join(kept))
