"""Keeps measured figures in `results.json`, and writes the tables of `RESULTS.md` from them.

    python -m benchmarks.record    # after a benchmark with --record: writes the tables again

`results.json` has one object per metric and device, with the versions and the commit of the measurement.
"""

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from segdream_cli.config.distill import METHOD_NAMES
from segdream_cli.runs.run_dir import package_versions

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).with_name("RESULTS.md")
FIGURES: dict[str, list[tuple[str, str, str]]] = {
    "main job": [
        ("wall time, median of three runs", "mini_cpu_seconds", "40 s"),
        ("loop alone", "mini_cpu_loop_seconds", ""),
        ("peak memory", "mini_cpu_peak_gib", "1.2 GiB"),
    ],
    "quality": [
        ("object right", "mini_heldout_object", "99.5 %"),
        ("color right", "mini_heldout_colour", "99.5 %"),
        ("attribute right", "mini_heldout_attribute", "98 %"),
        ("front, side or back right, of the prompts whose azimuth the judge reads", "mini_heldout_view", "97 %"),
        ("one of eight azimuths right, of the same prompts", "mini_heldout_azimuth", "93 %"),
        ("alpha outside the largest connected component", "mini_heldout_floaters", "0.05 %"),
        ("mean gradient magnitude inside the silhouette, over that of the samples", "mini_heldout_gradient", "0.9"),
        ("root mean square gradient there at 256 px, over that of the world's renders", "mini_edges_ratio", "0.85"),
        ("Frechet distance to the world's renders in the judge's features", "mini_frechet", ""),
        ("pixels of alpha 0.97 and more, of those over 4 px inside the silhouette at 512 px", "mini_solid", "99 %"),
        ("width of a roof's edge at 512 px, from alpha 0.1 to 0.9", "mini_roof_px", "5 px"),
        ("width of a side's edge", "mini_side_px", "5 px"),
        ("Gaussians", "mini_gaussians", ""),
        ("compact PLY", "mini_ply_bytes", "3 MB"),
        ("SPZ", "mini_spz_bytes", "0.5 MB"),
        ("objects that two readers named without the prompt", "mini_blind_named", "97 %"),
        ("pairs in which a reader preferred the asset to that of version 1 of the prior", "mini_preferred", "95 %"),
    ],
    "new words": [
        ("object right", "mini_new_object", "99.5 %"),
        ("color right", "mini_new_colour", "99.5 %"),
        ("attribute right", "mini_new_attribute", "98 %"),
        ("front, side or back right, of the prompts whose azimuth the judge reads", "mini_new_view", "97 %"),
        ("one of eight azimuths right, of the same prompts", "mini_new_azimuth", "93 %"),
        ("alpha outside the largest connected component", "mini_new_floaters", "0.05 %"),
        ("mean gradient magnitude inside the silhouette, over that of the samples", "mini_new_gradient", "0.9"),
    ],
    "mini on a GPU": [
        ("one asset", "mini_gpu_seconds", "4 s"),
        ("each of 24 assets at once", "mini_gpu_batch24_seconds_each", "0.35 s"),
        ("the prior's own point cloud", "mini_point_e_gpu_seconds", ""),
        ("a step of a 64 px prior before version 1", "mini_step_ms", ""),
        ("the same without `prior.cuda_graphs`", "mini_step_no_graphs_ms", ""),
    ],
    "engine": [
        ("a call of the U-Net, 4 rows of 16 x 16: time of torch over that of OpenVINO", "unet_cpu_engine_ratio", "")
    ],
    "full size": [
        ("mean step of a whole run, classifier-free guidance", "sd21_cfg_ms_per_iteration", "80 ms, aim 60"),
        ("mean step of a whole run, Perp-Neg", "sd21_perpneg_ms_per_iteration", "95 ms, aim 75"),
        ("peak memory handed out", "sd21_peak_gib", "7.5 GiB"),
        ("peak memory reserved", "sd21_reserved_gib", ""),
        ("`--low-vram`: peak memory handed out", "sd21_lowvram_peak_gib", ""),
        ("`--low-vram`: peak memory reserved", "sd21_lowvram_reserved_gib", ""),
        ("time of plain arithmetic over ours", "sd21_eager_ratio", ""),
    ],
    "throughput": [(f"{n} at once", f"sd21_assets_an_hour_{n}", "") for n in (1, 2, 4, 8)],
    "two GPUs, full size": [
        ("a step, one asset alone", "two_gpus_full_size_alone_ms", ""),
        ("a step, an asset on each of two GPUs", "two_gpus_full_size_at_once_ms", ""),
        ("two assets one after the other, over both at once", "two_gpus_full_size_times_as_fast", ""),
        ("cores busy, alone", "two_gpus_full_size_alone_cores", ""),
        ("cores busy, both", "two_gpus_full_size_at_once_cores", ""),
        ("start of the process to its first step, nothing compiled", "two_gpus_full_size_alone_first_step_s", ""),
        ("the same with the other worker's compiled code", "two_gpus_full_size_shared_first_step_s", ""),
    ],
    "point-e": [
        ("a cloud, fp16 with CUDA graphs (default)", "point_e_gpu_seconds", "1.5 s"),
        ("peak memory handed out", "point_e_peak_gib", "2 GiB"),
        ("time of the official sampler in fp32 over ours", "point_e_official_ratio", ""),
    ],
    "start-up": [
        ("`segdream --help` over importing typer and rich", "help_import_ratio", "2"),
        ("`segdream --version`", "startup_version_s", "0.5 s"),
        ("`segdream --help`", "startup_help_s", "0.5 s"),
        ("`generate`: the output exists", "startup_generate_existing_s", "0.5 s"),
        ("`generate`: unknown words in the prompt", "startup_generate_prompt_s", "0.5 s"),
        ("`render`: no such asset", "startup_render_missing_s", "0.5 s"),
        ("`export`: the output exists", "startup_export_existing_s", "0.5 s"),
        ("`evaluate`: no such asset", "startup_evaluate_missing_s", "0.5 s"),
        ("`generate --resume`: no such run", "startup_resume_missing_s", "0.5 s"),
    ],
    "thinning": [
        (f"{title}, {share} %: {what}", f"thin_{name}_{share}_{key}", "")
        for name, title in (
            ("bus", "draft bus"),
            ("guitar", "guitar"),
            ("biker", "biker"),
            ("scan_100000", "synthetic scan of 100,000"),
        )
        for share in (50, 25, 10)
        for what, key in (
            ("mean PSNR of eight views", "db"),
            ("splat-transform's", "theirs_db"),
            ("with `--polish`", "polish_db"),
            ("processor time", "s"),
            ("splat-transform's time", "theirs_s"),
            ("time of the polish", "polish_s"),
        )
    ]
    + [
        ("levels of detail of a million Gaussians", "lod_1000000_s", "300 s"),
        ("levels of detail: processor time", "lod_1000000_processor_s", ""),
        ("levels of detail: peak memory", "lod_1000000_peak_gib", "4 GiB"),
    ],
    "small files": [
        ("compact PLY, SH 0: time over numpy's for as many bytes", "formats_ply_compact_sh0_over_numpy", "3.5"),
        ("compact PLY, SH 3: the same", "formats_ply_compact_sh3_over_numpy", "3.5"),
        ("SOG of 20,000 Gaussians, SH 3, written", "formats_sog_write_sh3_20000_s", ""),
        ("splat-transform's time over that", "formats_sog_write_sh3_20000_times_faster", "5"),
        ("SOG of 20,000 Gaussians, SH 3, read", "formats_sog_read_sh3_20000_s", ""),
        ("splat-transform's time over that", "formats_sog_read_sh3_20000_times_faster", ""),
        ("HTML of 20,000 Gaussians, SH 3, written", "formats_html_write_sh3_20000_s", ""),
        ("splat-transform's time over that", "formats_html_write_sh3_20000_times_faster", "5"),
        ("viewer: 200,000 Gaussians shown in headless Chromium", "formats_viewer_ready_s", "2 s"),
        ("viewer: a sort in its worker", "formats_viewer_sort_ms", "30 ms"),
        ("viewer: 1,000,000 Gaussians shown in headless Chromium", "formats_viewer_1000000_ready_s", "10 s"),
        ("viewer: a sort of 1,000,000 in its worker", "formats_viewer_1000000_sort_ms", "150 ms"),
        ("viewer: a new view of 1,000,000, graphics in software", "formats_viewer_1000000_view_ms", ""),
        ("textured mesh of 20,000 Gaussians that cover a ball", "formats_mesh_20000_s", "30 s"),
        ("textured mesh of 20,000 Gaussians that do not touch", "formats_mesh_of_crumbs_20000_s", "30 s"),
        ("processor time of the former", "formats_mesh_20000_processor_s", ""),
        ("processor time of the latter", "formats_mesh_of_crumbs_20000_processor_s", ""),
    ],
}
"""Tables of single figures: label, metric and goal of each row; rows without a measurement are left out."""
VARIANT_COLUMNS = {
    "object": ("object", "share"),
    "color": ("colour", "share"),
    "attribute": ("attribute", "share"),
    "view": ("view", "share"),
    "azimuth": ("azimuth", "share"),
    "frechet": ("frechet", "1"),
    "clipped": ("clipped", "share"),
    "floaters": ("floaters", "share"),
    "rows": ("rows", "1"),
    "seconds": ("seconds", "s"),
}
"""Columns of a table of variants of the distillation -> end of the metric, and unit."""
VARIANT_TITLES = {"color": "colour", "frechet": "Frechet distance", "rows": "U-Net rows", "seconds": "s per asset"}
ABLATIONS = (
    "release",
    "1 segment",
    "2 segments",
    "3 segments",
    "10 segments",
    "segments of 0..T",
    "growing segments",
    "10 growing segments",
    "t_tau 0, always two steps",
    "t_tau 500",
    "t_tau 1000, always one step",
    "without the approximation",
    "loss of Eq. 10",
    "guidance once",
    "Eq. 10, guidance once",
    "weight b(t)",
    "weight 1",
    "cross weight 1",
    "with the generative prior",
    "fresh noise",
    "weight 1, loss of Eq. 10",
    "weight 1, 2 segments",
    "weight 1, 2 segments, gap 200",
    "weight 1, fresh noise without offset",
    "weight 1, t from t_min",
    "no noise offset",
    "reused noise",
    "reused noise, always one step",
    "t annealed",
    "70 steps",
    "70 steps, t annealed",
    "70 steps, t falls",
    "world",
)
"""Rows of `benchmarks.ablations`."""
CURVE_STEPS = (50, 100, 200, 400, 800)
"""Columns of the table of methods by steps."""
STORMS = (
    "new run",
    "force",
    "force over a stopped run",
    "resume",
    "best of two",
    "list",
    "batch",
    "devices",
    "refine",
    "resume in a round",
    "init",
    "init from a cloud",
    "cached cloud",
    "export",
    "render view",
    "render frames",
    "render gif",
    "evaluate",
    "fetch",
    "Hub's prior",
    "Hub's cache",
    "embedded prior",
    "compiled kernels",
)
"""Rows of `benchmarks.storm`."""
READ_ONLY = ("ksplat", "old-spz", "old-sog", "ply-variants", "points-as-splats", "ply-gz", "packed-glb", "gltf", "usda")
"""Kinds of files that segdream reads and does not write."""
FORMATS = ("ply", "ply-compact", "compressed-ply", "spz", "spz4", "sog", "glb", "usdz", "splat", "html", "points")


def metric_name(title: str) -> str:
    """The part of a metric's name that stands for a row."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())


def variant_grid(prefix: str, rows: Iterable[str]) -> tuple[list[str], dict[str, list[tuple[str, ...]]]]:
    """A table of variants; halves of their intervals are in brackets."""
    columns = [VARIANT_TITLES.get(name, name) for name in VARIANT_COLUMNS]
    metrics = [metric for metric, _ in VARIANT_COLUMNS.values()]
    cells = {row: [f"{prefix}_{metric_name(row)}_{metric}" for metric in metrics] for row in rows}
    return columns, {row: [(name, f"{name}_ci") for name in names] for row, names in cells.items()}


def over(stem: str) -> tuple[str, ...]:
    """A difference in accuracy and the ends of its interval."""
    return (f"{stem}_over", f"{stem}_over_low", f"{stem}_over_high")


GRIDS: dict[str, tuple[list[str], dict[str, list[tuple[str, ...]]]]] = {
    "formats": (
        ["written, SH 0", "read, SH 0", "written, SH 3", "read, SH 3"],
        {
            name: [
                (stem + "_s", stem + "_times_faster")
                for sh in (0, 3)
                for stem in (f"formats_{name}_write_sh{sh}_1000000", f"formats_{name}_read_sh{sh}_1000000")
            ]
            for name in FORMATS
        },
    ),
    "formats, processor time": (
        ["written, SH 0", "read, SH 0"],
        {
            name: [
                (f"{stem}_processor_s", f"{stem}_processor_times_faster")
                for stem in (f"formats_{name}_write_sh0_1000000", f"formats_{name}_read_sh0_1000000")
            ]
            for name in FORMATS
        },
    ),
    "refine": (
        ["object right", "color right", "attribute right", "view right", "PSNR to the intact asset"],
        {
            title: [
                (f"refine_{spoil}_after_{name}", f"refine_{spoil}_before_{name}")
                for name in ("object", "colour", "attribute", "view", "psnr")
            ]
            for spoil, title in (
                ("centers", "noise on the centers"),
                ("colors", "noise on the colors"),
                ("holes", "holes"),
                ("tenth", "a tenth of the Gaussians"),
            )
        }
        | {"number of assets each": [("refine_prompts",)]},
    ),
    "methods, published": variant_grid("methods_published", (*METHOD_NAMES, "preset", "world")),
    "methods, tuned": variant_grid("methods_tuned", (*METHOD_NAMES, "preset", "world")),
    "methods, differences": (
        ["accuracy over SCTD, published settings", "accuracy over SCTD, tuned settings"],
        {
            method: [over(f"methods_published_{method}"), over(f"methods_tuned_{method}")]
            for method in (*METHOD_NAMES[1:], "preset")
        },
    ),
    "methods by steps": (
        [f"{steps} steps" for steps in CURVE_STEPS],
        {
            method: [
                (f"methods_curve_{method}_{steps}_accuracy", f"methods_curve_{method}_{steps}_frechet")
                for steps in CURVE_STEPS
            ]
            for method in METHOD_NAMES
        },
    ),
    "methods at full size": (
        ["ms per step", "U-Net rows", "over what its rows cost in the loop of SCTD"],
        {method: [(f"sd21_{method}_{key}",) for key in ("ms", "rows", "ratio")] for method in METHOD_NAMES},
    ),
    "two GPUs": (
        ["assets", "whole list", "until the first step", "until the second worker's", "per asset after it", "cores"],
        {
            title: [
                (f"two_gpus_{name}_{key}",) for key in ("assets", "wall_s", "first_s", "second_s", "each_s", "cores")
            ]
            for name, title in (
                ("one", "one GPU"),
                ("devices", "`--devices 0,1`"),
                ("ray", "`--ray local`"),
                ("one_killed", "one GPU, process killed and the command repeated"),
                ("devices_killed", "`--devices 0,1`, a worker killed"),
                ("ray_killed", "`--ray local`, a worker killed"),
            )
        },
    ),
    "ablations": variant_grid("ablations", ABLATIONS),
    "ablations, differences": (
        ["accuracy over the release's settings"],
        {title: [over(f"ablations_{metric_name(title)}")] for title in ABLATIONS if title not in ("release", "world")},
    ),
    "storm": (
        ["kills at a call", "random kills", "failing calls", "flipped bits", "failed at first", "failed at last"],
        {
            name: [(f"storm_{metric_name(name)}_{key}",) for key in ("kills", "random", "errors", "flips", "found")]
            + [(f"storm_{metric_name(name)}_failed",)]
            for name in (*STORMS, "all")
        },
    ),
    "fuzz": (
        ["files", "failures", "slowest", "memory grew by"],
        {
            name: [(f"fuzz_{name}_{key}",) for key in ("files", "failures", "slowest_ms", "growth_mib")]
            for name in (*FORMATS, *READ_ONLY)
            if name not in ("html", "points")
        },
    ),
}
"""Tables of several figures per row: the columns, and the metrics of each cell; a second metric is in brackets."""


def device_name(device: str) -> str:
    """The name of the device that a figure is measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def load() -> dict[str, dict[str, Any]]:
    """The entries of `results.json` by metric; with several devices, the last one measured."""
    return {entry["metric"]: entry for entry in json.loads(RESULTS.read_text(encoding="utf-8"))}


def number(entry: dict[str, Any], *, bare: bool = False) -> str:
    """A value with its unit, to three digits; `bare` leaves the unit out."""
    value, unit = float(entry["value"]), entry["unit"]
    if unit == "share":
        return f"{100 * value:.3g} %"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text if bare or unit in ("1", "ratio") else f"{text} {unit.replace('1/h', 'per hour')}"


def table(name: str, entries: dict[str, dict[str, Any]]) -> str:
    """A table of `RESULTS.md`, from the entries of `results.json`."""
    if name in FIGURES:
        lines = ["| | measured | goal | device | commit |"]
        for label, metric, goal in FIGURES[name]:
            if (entry := entries.get(metric)) is None:
                continue
            lines.append(f"| {label} | {number(entry)} | {goal} | {entry['device']} | {entry['commit']} |")
    else:
        columns, rows = GRIDS[name]
        lines = ["| | " + " | ".join(columns) + " |"]
        for label, cells in rows.items():
            if not any(metric in entries for metric, *_ in cells):
                continue
            texts = []
            for metric, *others in cells:
                text = number(entries[metric]) if metric in entries else ""
                also = " to ".join(number(entries[other], bare=True) for other in others if other in entries)
                texts.append(f"{text} ({also})" if also else text)
            lines.append(f"| {label} | " + " | ".join(texts) + " |")
        devices = {entries[metric]["device"] for cells in rows.values() for metric, *_ in cells if metric in entries}
        lines += ["", f"Device: {', '.join(sorted(devices)) or 'not measured yet'}."]
    lines.insert(1, "| --- |" + " --- |" * (lines[0].count("|") - 2))
    return "\n".join(lines)


def render_page(page: str) -> str:
    """The page with each table between `<!-- table: NAME -->` and `<!-- end -->` written again."""
    entries = load()
    return re.sub(
        r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{table(found[2], entries)}\n\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def provenance(device: str) -> dict[str, Any]:
    """Device, versions and commit of a measurement in this process."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    known = shutil.which("git") is not None
    done = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent, check=False) if known else None
    commit = done.stdout.strip() if done else ""
    return {"device": device_name(device), "versions": package_versions(), "commit": commit}


def record(metric: str, value: float, unit: str, device: str | Mapping[str, Any]) -> None:
    """Replaces the entry of `metric` on this kind of device.

    Args:
        metric: its name.
        value: the figure.
        unit: of the value.
        device: on which this process measured it, or the `provenance` of a measurement by another process.
    """
    entries = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    source = provenance(device) if isinstance(device, str) else device
    entries = [entry for entry in entries if (entry["metric"], entry["device"]) != (metric, source["device"])]
    entries.append({"metric": metric, "value": round(value, 4), "unit": unit, **source})
    lines = (json.dumps(entry) for entry in sorted(entries, key=lambda entry: entry["metric"]))
    RESULTS.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
