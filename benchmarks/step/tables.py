"""Results of `benchmarks.step` as tables and as figures in results.json."""

from typing import Any

from benchmarks.record import record

NESTED = ("stages", "waits", "kernels")
OTHER = ("pieces", "throughput", "methods", "whole")
"""Parts that are no column of the table of loops."""


def show(found: dict[str, Any]) -> None:
    """Prints the tables, with what a part had found before it failed."""
    loops = {name: part for name, part in found.items() if part and name not in OTHER}
    if loops:
        _show_loops(loops)
    if pieces := _rows(found.get("pieces")):
        print("\n| piece | ms | latents or noise, error | gradient, error |\n| --- | --- | --- | --- |")
        for name, row in pieces.items():
            print(
                f"| {name} | {cell(row['ms'])} | {row['error']:.1e} | {row.get('gradient_error', float('nan')):.1e} |"
            )
    for name, title in (("throughput", "assets"), ("methods", "method")):
        if rows := _rows(found.get(name)):
            keys = next(iter(rows.values()))
            print(f"\n| {title} | " + " | ".join(keys) + " |\n| --- |" + " --- |" * len(keys))
            for label, row in rows.items():
                print(f"| {label} | " + " | ".join(map(cell, row.values())) + " |")
    if whole := found.get("whole"):
        print("\n" + ", ".join(f"{key} {cell(value)}" for key, value in whole.items()))
    slower = [name for name, part in found.items() if part and part.get("given_up")]
    if slower:
        print(f"\nnetworks ran in a slower way than they should, and nothing is recorded: {', '.join(slower)}")
    missing = [name for name, part in found.items() if not _measured(name, part)]
    print(f"\nnot measured: {', '.join(missing) or 'nothing'}", flush=True)


def _rows(part: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The rows of a part that is a table, without what is said of the whole part."""
    return {name: row for name, row in (part or {}).items() if isinstance(row, dict)}


def _measured(name: str, part: dict[str, Any] | None) -> bool:
    """Whether a part came as far as its figures."""
    return bool(_rows(part)) if name in ("pieces", "throughput", "methods") else "ms" in (part or {})


def _show_loops(loops: dict[str, dict[str, Any]]) -> None:
    """A column for each way to run the loop."""
    print("\n| | " + " | ".join(loops) + " |\n| --- |" + " --- |" * len(loops))
    for key in dict.fromkeys(key for part in loops.values() for key in part if key not in NESTED):
        print(f"| {key} | " + " | ".join(cell(part.get(key)) for part in loops.values()) + " |")
    stages = {name: part.get("stages", {}) for name, part in loops.items()}
    for stage in dict.fromkeys(stage for part in stages.values() for stage in part):
        print(f"| {stage}, ms | " + " | ".join(cell(part.get(stage)) for part in stages.values()) + " |")
    for title in ("waits", "kernels") if len(loops) == 1 else ():
        for name, part in loops.items():
            for place, value in part.get(title, {}).items():
                print(f"{name} {title[:-1]}: {value:.3f} a step, {place[:90]}")


def cell(value: Any) -> str:
    """A number as a table shows it."""
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def record_all(found: dict[str, Any], device: str, *, perp_neg: bool) -> None:
    """Records what was measured in results.json, unless the networks ran in a slower way than they should."""
    found = {name: part for name, part in found.items() if part and not part.get("given_up")}
    cfg, eager, low, whole = (found.get(name) or {} for name in ("cfg", "eager", "lowvram", "whole"))
    done = whole and whole["steps"] == whole["of"]
    perpneg = found.get("perpneg") or {}
    means = {"cfg": cfg.get("ms"), "perpneg": perpneg.get("ms")}
    if done:
        means["perpneg" if perp_neg else "cfg"] = whole["ms"]
    values = {f"sd21_{name}_ms_per_iteration": (ms, "ms") for name, ms in means.items()}
    values["sd21_peak_gib"] = (whole["peak_gib"] if done else cfg.get("peak_gib"), "GiB")
    values["sd21_reserved_gib"] = (cfg.get("reserved_gib"), "GiB")
    values["sd21_lowvram_peak_gib"] = (low.get("peak_gib"), "GiB")
    values["sd21_lowvram_reserved_gib"] = (low.get("reserved_gib"), "GiB")
    values["sd21_eager_ratio"] = (eager["ms"] / cfg["ms"] if "ms" in eager and "ms" in cfg else None, "1")
    for count, row in _rows(found.get("throughput")).items():
        values[f"sd21_assets_an_hour_{count}"] = (row["assets_an_hour"], "1/h")
    for method, row in _rows(found.get("methods")).items():
        values[f"sd21_{method}_ms"], values[f"sd21_{method}_ratio"] = (row["ms"], "ms"), (row["ratio"], "ratio")
        values[f"sd21_{method}_rows"] = (row["unet_rows"], "1")
    for metric, (value, unit) in values.items():
        if value is not None:
            record(metric, value, unit, device)
