"""The ablations of SCTD (paper, section 6) on the embedded prior, judged: `python -m benchmarks.ablations --help`.

    python -m benchmarks.ablations --device cuda --json out/ablations.json --budget-s 540
    python -m benchmarks.ablations --device cuda --json out/ablations.json --sheet out/ablations.webp --record
    python -m benchmarks.ablations --smoke

Each row changes the release's settings in one point. Their guidance scale is the preset's, since the release's 7.5
exaggerates colours with this prior. `comparison` says what the rows share.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.comparison import Comparison, Variant, figures, open_comparison, record_over, record_row, table
from benchmarks.record import metric_name
from segdream_cli.config import AUTO
from training.assets import held_out
from training.world.catalog import Combination

GUIDANCE = "guidance_scale=3"
CHANGES = {
    "release": "",
    "1 segment": "segments=1",
    "2 segments": "segments=2",
    "3 segments": "segments=3",
    "10 segments": "segments=10",
    "segments of 0..T": "segmentation=full",
    "growing segments": "segmentation=mono",
    "10 growing segments": "segmentation=mono segments=10",
    "t_tau 0, always two steps": "t_tau=0",
    "t_tau 500": "t_tau=500",
    "t_tau 1000, always one step": "t_tau=1000",
    "without the approximation": "approximate=false",
    "loss of Eq. 10": "loss=eq10",
    "guidance once": "double_guidance=false",
    "Eq. 10, guidance once": "loss=eq10 double_guidance=false",
    "weight b(t)": "weight=b_t",
    "weight 1": "weight=none",
    "cross weight 1": "cross_weight=1",
    "with the generative prior": "prior_weight=1",
    "fresh noise": "fixed_noise=false",
    "weight 1, loss of Eq. 10": "weight=none loss=eq10",
    "weight 1, 2 segments": "weight=none segments=2",
    "weight 1, 2 segments, gap 200": "weight=none segments=2 min_gap=200",
    "weight 1, fresh noise without offset": "weight=none fixed_noise=false noise_offset=0",
    "weight 1, t from t_min": "weight=none window=lower_fixed",
    "no noise offset": "noise_offset=0",
    "reused noise": "reuse_noise=true",
    "reused noise, always one step": "reuse_noise=true t_tau=1000",
    "t annealed": "t_schedule=annealed",
    "70 steps": "steps=70",
    "70 steps, t annealed": "steps=70 t_schedule=annealed",
    "70 steps, t falls": "steps=70 t_schedule=falling",
}
"""Changes by row, without `distill.sctd.`; `steps` is the number of steps."""
PROMPTS = 40


def variants(shown: Sequence[Combination], seeds: int, steps: int) -> dict[str, Variant]:
    """The variant of each row."""
    made = {}
    for title, row in CHANGES.items():
        changes = dict(part.split("=") for part in f"{GUIDANCE} {row}".split())
        own_steps = int(changes.pop("steps", steps))
        assignments = tuple(f"{key}={value}" for key, value in changes.items())
        made[title] = Variant(title, tuple(shown), tuple(range(seeds)), own_steps, "sctd", assignments)
    return made


def show(comparison: Comparison, *, keep: bool) -> None:
    """Prints the table, and keeps its figures."""
    rows = {title: figures(comparison.entries[title]) for title in (*CHANGES, "world") if title in comparison.entries}
    print(f"\n{table('change', rows)}")
    if keep:
        for title, cells in rows.items():
            record_row(f"ablations_{metric_name(title)}", cells, comparison.found["provenance"])
        for title in rows.keys() - {"release", "world"}:
            found, base = comparison.entries[title], comparison.entries["release"]
            record_over(f"ablations_{metric_name(title)}", found, base, comparison.found["provenance"])


def main(
    device: str = AUTO,
    out: Annotated[Path | None, typer.Option("--json", help="JSON file of all figures, to read and to write.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="WebP contact sheet to write.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A row; repeatable.")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = PROMPTS,
    seeds: Annotated[int, typer.Option(help="Seeds of each.")] = 1,
    steps: int = 100,
    batch: Annotated[int, typer.Option(help="Assets in lock step.")] = 24,
    workers: Annotated[int | None, typer.Option(help="Processes that share a GPU; 0: this one alone.")] = None,
    budget_s: Annotated[float, typer.Option(help="Seconds after which the command stops.")] = 540.0,
    keep_figures: Annotated[bool, typer.Option("--record", help="Keep the figures in results.json.")] = False,
    smoke: Annotated[bool, typer.Option(help="The smallest assets of a few rows, on any machine.")] = False,
) -> None:
    """Makes assets for every row, judges them, and prints the table."""
    if smoke:
        prompts, seeds, steps, batch = 2, 1, 3, 2
        only = only or ["release", "10 segments", "without the approximation", "loss of Eq. 10"]
    shown = held_out()[:prompts]
    if unknown := set(only or ()) - CHANGES.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(CHANGES)}")
    setup = {"prompts": prompts, "seeds": seeds, "steps": steps}
    with open_comparison(out, device, batch, workers, budget_s, setup, smoke=smoke) as comparison:
        chosen = [each for title, each in variants(shown, seeds, steps).items() if not only or title in only]
        world = comparison.world(shown, ["world", *(each.name for each in chosen)])
        comparison.make(chosen, world)
        comparison.judge_world(Variant("world", tuple(shown), (0,), 0), world)
    show(comparison, keep=keep_figures and not smoke)
    comparison.show_left_out()
    if sheet:
        comparison.write_sheet(sheet, {title: title for title in CHANGES})


if __name__ == "__main__":
    typer.run(main)
