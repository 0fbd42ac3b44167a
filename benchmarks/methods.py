"""All distillation methods on the embedded prior, judged: `python -m benchmarks.methods --help`.

    python -m benchmarks.methods --device cuda --json out/methods.json --budget-s 540
    python -m benchmarks.methods --device cuda --json out/methods.json --sheets out --record    # again, for the rest
    python -m benchmarks.methods --smoke

The parts, in order: the time of a step; a search of settings per method on prompts of the training, with the same
number of trials; the table on held-out prompts, with published and with tuned settings; quality by number of steps.
`comparison` says what the variants share and how the gradients are scaled. Published schedules are rescaled to the
steps. The row `sctd, preset` has the settings of `standard`, which took more trials than the search.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.comparison import (
    Comparison,
    Variant,
    accuracy,
    figures,
    open_comparison,
    record_over,
    record_row,
    table,
)
from benchmarks.record import CURVE_STEPS, record
from segdream_cli.config import AUTO
from segdream_cli.distill import METHODS
from training.assets import choose, held_out, keep_known
from training.world.catalog import Combination, combinations

PROMPTS, SEEDS, SEARCH_PROMPTS, CURVE_PROMPTS = 40, 3, 12, 12
"""Numbers of prompts of the table, the first of `prompts/heldout.txt`; of their seeds; and of other prompts."""
SEARCH_SEED = 16
PARTS = ("times", "search", "table", "curves")
MODES = ("published", "tuned")
TIMED_STEPS, TIMED_ASSETS = 40, 24
TRIALS: dict[str, tuple[str, ...]] = {
    "sctd": (
        "",
        "guidance_scale=5",
        "guidance_scale=3",
        "guidance_scale=3 gradient=0.3",
        "guidance_scale=3 gradient=3",
        "guidance_scale=3 segments=2",
        "guidance_scale=3 fixed_noise=false noise_offset=0",
        "guidance_scale=3 warmup_shift=240",
    ),
    "sds": (
        "",
        "guidance_scale=25",
        "guidance_scale=7.5",
        "guidance_scale=7.5 gradient=0.3",
        "guidance_scale=7.5 gradient=3",
        "guidance_scale=7.5 weight=sigma_over_alpha",
        "guidance_scale=7.5 t_max=740",
        "guidance_scale=25 t_max=500",
    ),
    "ism": (
        "",
        "guidance_scale=15",
        "guidance_scale=5",
        "guidance_scale=7.5 gradient=0.3",
        "guidance_scale=7.5 gradient=3",
        "guidance_scale=7.5 interval=50 interval_start=50",
        "guidance_scale=7.5 fixed_noise=true noise_offset=0",
        "guidance_scale=7.5 warmup_shift=240",
    ),
    "cds": (
        "",
        "guidance_scale=21",
        "guidance_scale=7.5",
        "guidance_scale=7.5 guidance_end=1",
        "guidance_scale=7.5 gradient=0.3",
        "guidance_scale=7.5 gradient=3",
        "guidance_scale=7.5 t_first=500",
        "guidance_scale=7.5 weight=sigma_squared",
    ),
    "gcs": (
        "",
        "guidance_scale=5",
        "guidance_scale=3",
        "guidance_scale=5 gradient=0.3",
        "guidance_scale=5 gradient=3",
        "guidance_scale=5 pixel_weight=0",
        "guidance_scale=5 fixed_noise=on noise_offset=0",
        "guidance_scale=5 warmup_shift=240",
    ),
    "csd": (
        "",
        "gradient=0.3",
        "gradient=3",
        "t_max=740",
        "t_max_start=980",
        "t_max_start=980 gradient=3",
        "weight=none",
        "weight=none t_max_start=980",
    ),
}
"""Settings that the search tries, the published ones first. `gradient` is that of `comparison.Variant`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare.

    Args:
        trials: settings to try by method, the published ones first.
        shown: what the assets of the table show.
        training: what those of the search show.
        seeds: number of seeds of the table.
        steps: steps of the search and of the table.
        curve_steps: steps of the curves.
    """

    trials: Mapping[str, Sequence[str]]
    shown: Sequence[Combination]
    training: Sequence[Combination]
    seeds: int
    steps: int
    curve_steps: Sequence[int]

    def searched(self) -> list[Variant]:
        """The variants of the search."""
        return [
            variant(search_name(method, i), method, trial, self.training, 1, self.steps)
            for method, trials in self.trials.items()
            for i, trial in enumerate(trials)
        ]

    def tuned(self, comparison: Comparison) -> dict[str, str]:
        """The settings with the best accuracy of each method whose search is done."""
        found = {}
        for method, trials in self.trials.items():
            names = {trial: search_name(method, i) for i, trial in enumerate(trials)}
            if all(name in comparison.entries or name in comparison.failed for name in names.values()):
                made = [trial for trial, name in names.items() if name in comparison.entries]
                if made:
                    found[method] = max(made, key=lambda trial: accuracy(comparison.entries[names[trial]]))
        return found

    def compared(self, tuned: Mapping[str, str]) -> list[Variant]:
        """The variants of the table."""
        published = dict.fromkeys(self.trials, "")
        return [
            variant(f"{mode} {method}", method, trial, self.shown, self.seeds, self.steps)
            for mode, chosen in (("published", published), ("tuned", tuned))
            for method, trial in chosen.items()
        ] + [Variant("preset", tuple(self.shown), tuple(range(self.seeds)), self.steps)]

    def curves(self, tuned: Mapping[str, str]) -> list[Variant]:
        """The variants of the curves."""
        return [
            variant(curve_name(method, steps), method, trial, self.shown[:CURVE_PROMPTS], 1, steps)
            for steps in self.curve_steps
            for method, trial in tuned.items()
        ]


def search_name(method: str, i: int) -> str:
    """Name of the variant of a trial."""
    return f"search {method} {i}"


def curve_name(method: str, steps: int) -> str:
    """Name of the variant of a point of a curve."""
    return f"curve {method} {steps}"


def variant(name: str, method: str, trial: str, shown: Sequence[Combination], seeds: int, steps: int) -> Variant:
    """The variant of a trial's settings."""
    changes = dict(part.split("=", 1) for part in trial.split())
    gradient = float(changes.pop("gradient", "1"))
    assignments = tuple(f"{key}={value}" for key, value in changes.items())
    return Variant(name, tuple(shown), tuple(range(seeds)), steps, method, assignments, gradient)


def time_steps(comparison: Comparison, variants: Iterable[Variant], steps: int) -> None:
    """Milliseconds per step and asset of variants, one after the other on an idle device."""
    count, times = 2 if comparison.smoke else TIMED_ASSETS, comparison.found["times"]
    for each in variants:
        if each.name not in times and comparison.has_time():
            times[each.name] = comparison.shop.milliseconds(replace(each, steps=steps), count) / count
            comparison.save()
            print(f"{each.name}: {times[each.name]:.2f} ms per step and asset, {count} at once", flush=True)


def show_search(comparison: Comparison, plan: Plan) -> None:
    """Prints the accuracy of every trial."""
    print("\n| trial | accuracy, % | settings |\n| --- | --- | --- |")
    for each in plan.searched():
        if entry := comparison.entries.get(each.name):
            print(f"| {each.name} | {100 * accuracy(entry):.2f} | {entry['settings']} |")


def show_tables(comparison: Comparison, methods: Iterable[str], *, keep: bool) -> None:
    """Prints the tables of both kinds of settings, and keeps their figures."""
    entries, times = comparison.entries, comparison.found["times"]
    for mode in MODES:
        rows = {}
        for title, name in row_names(mode, methods).items():
            if entry := entries.get(name):
                ms = times.get(name.replace("tuned", "published"), math.nan)
                rows[title] = figures(entry, ms * entry["steps"] / 1e3)
                if keep:
                    record_row(f"methods_{mode}_{title}", rows[title], comparison.found["provenance"])
                if keep and title != "world" and (base := entries.get(f"{mode} sctd")) and entry is not base:
                    record_over(f"methods_{mode}_{title}", entry, base, comparison.found["provenance"])
        print(f"\n{table(mode, rows)}")


def row_names(mode: str, methods: Iterable[str]) -> dict[str, str]:
    """The variant of each row of a table."""
    return {method: f"{mode} {method}" for method in methods} | {"preset": "preset", "world": "world"}


def show_curves(comparison: Comparison, plan: Plan, *, keep: bool) -> None:
    """Prints accuracy and Frechet distance by number of steps, and keeps them."""
    columns = " | ".join(map(str, plan.curve_steps))
    print(f"\n| accuracy, %; Frechet distance | {columns} |\n| --- |{' --- |' * len(plan.curve_steps)}")
    for method in plan.trials:
        cells = []
        for steps in plan.curve_steps:
            entry = comparison.entries.get(curve_name(method, steps))
            cells.append(f"{100 * accuracy(entry):.1f}; {entry['frechet']:.1f}" if entry else "")
            if keep and entry:
                source, name = comparison.found["provenance"], f"methods_curve_{method}_{steps}"
                record(f"{name}_accuracy", accuracy(entry), "share", source)
                record(f"{name}_frechet", entry["frechet"], "1", source)
        print(f"| {method} | {' | '.join(cells)} |")


def main(
    device: str = AUTO,
    out: Annotated[Path | None, typer.Option("--json", help="JSON file of all figures, to read and to write.")] = None,
    sheets: Annotated[Path | None, typer.Option(help="Folder for the contact sheets.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A method; repeatable.")] = None,
    parts: Annotated[str, typer.Option(help="Parts to run.")] = ",".join(PARTS),
    prompts: Annotated[int, typer.Option(help="Held-out prompts of the table.")] = PROMPTS,
    seeds: Annotated[int, typer.Option(help="Seeds of each.")] = SEEDS,
    steps: Annotated[int, typer.Option(help="Steps of the search and of the table.")] = 100,
    batch: Annotated[int, typer.Option(help="Assets in lock step.")] = 24,
    workers: Annotated[int | None, typer.Option(help="Processes that share a GPU; 0: this one alone.")] = None,
    budget_s: Annotated[float, typer.Option(help="Seconds after which the command stops.")] = 540.0,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="The smallest assets, a trial per method, on any machine.")] = False,
) -> None:
    """Searches settings, makes assets by every method, judges them, and prints the tables."""
    methods, wanted = only or list(METHODS), parts.split(",")
    if unknown := {*methods, *wanted} - {*METHODS, *PARTS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join((*METHODS, *PARTS))}")
    trials = {method: TRIALS[method][: 1 if smoke else None] for method in methods}
    if smoke:
        prompts, seeds, steps, batch = 2, 1, 3, 2
    shown = held_out()[:prompts]
    setup = {"prompts": prompts, "seeds": seeds, "steps": steps}
    with open_comparison(out, device, batch, workers, budget_s, setup, smoke=smoke) as comparison:
        known = keep_known(comparison.shop.session.pipeline, [one for one in combinations() if not one.held_out])
        training = choose(known, 1 if smoke else SEARCH_PROMPTS, SEARCH_SEED)
        plan = Plan(trials, shown, training, seeds, steps, (2, 3) if smoke else CURVE_STEPS)
        comparison.calibrate(plan.searched())  # of all trials, before the clock of `times` runs and on training prompts
        if "times" in wanted:
            time_steps(comparison, comparison.calibrate(plan.compared({})), 2 if smoke else TIMED_STEPS)
        names = [curve_name(method, each) for method in methods for each in plan.curve_steps]
        names += [name for mode in MODES for name in row_names(mode, methods).values()]
        world = comparison.world(shown, names)
        if "search" in wanted:
            comparison.make(plan.searched())
        tuned = plan.tuned(comparison)
        if "table" in wanted:
            comparison.make(plan.compared(tuned), world)
            comparison.judge_world(Variant("world", tuple(shown), (0,), 0), world)
        if "curves" in wanted:
            comparison.make(plan.curves(tuned), world)
    show_search(comparison, plan)
    show_tables(comparison, methods, keep=keep_figures and not smoke)
    show_curves(comparison, plan, keep=keep_figures and not smoke)
    comparison.show_left_out()
    for mode in MODES:
        if sheets:
            comparison.write_sheet(sheets / f"methods-{mode}.webp", row_names(mode, methods))


if __name__ == "__main__":
    typer.run(main)
