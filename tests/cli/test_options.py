"""Every option of every command changes the result, is refused, or is told to have no effect; alone and beside others.

The commands run up to the point where work begins: the jobs, the resolved settings and the messages are compared.
"""

import inspect
import itertools
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from commands import BUS

from segdream_cli import cli, formats, mesh
from segdream_cli.cli import doctor, evaluate, fetch, render, view, workers
from segdream_cli.evaluate import blind
from segdream_cli.evaluate import references as drawing
from segdream_cli.evaluate.evaluation import Evaluation, Measurement
from segdream_cli.evaluate.measuring import Measuring
from segdream_cli.evaluate.metrics import Figure
from segdream_cli.evaluate.statistics import estimate
from segdream_cli.priors import checkpoint
from segdream_cli.render.job import RenderJob
from segdream_cli.render.studio import Ground
from segdream_cli.runs import best_of, listing, ownership, session
from segdream_cli.runs.jobs import slug
from segdream_cli.runs.reporter import JobFinished, discard
from segdream_cli.simplify import polish
from segdream_cli.splats import Splats
from segdream_cli.util import cache

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
EXAMPLES = {
    "--prompts": ("--prompts", "list.txt"),
    "--out-dir": ("--out-dir", "assets"),
    "--batch": ("--batch", "3"),
    "--seed": ("--seed", "7"),
    "--seeds": ("--seeds", "3-4"),
    "--best-of": ("--best-of", "3"),
    "--best-by": ("--best-by", "clip"),
    "--negative": ("--negative", "a red ball"),
    "--init": ("--init", "box"),
    "--init-prompt": ("--init-prompt", "a red ball"),
    "--init-color": ("--init-color", "gray"),
    "--init-points": ("--init-points", "100"),
    "--init-scale": ("--init-scale", "1.5"),
    "--count": ("--count", "50"),
    "--quality": ("--quality", "draft"),
    "--method": ("--method", "sds"),
    "--steps": ("--steps", "11"),
    "--guidance-scale": ("--guidance-scale", "5"),
    "--perp-neg": ("--perp-neg",),
    "--no-perp-neg": ("--no-perp-neg",),
    "--refine": ("--refine",),
    "--no-refine": ("--no-refine",),
    "--beg": ("--beg",),
    "--no-beg": ("--no-beg",),
    "--config": ("--config", "settings.toml"),
    "--set": ("--set", "init.opacity=0.2"),
    "--prior": ("--prior", "mini"),
    "--model": ("--model", "mini"),
    "--device": ("--device", "cuda:9"),
    "--devices": ("--devices", "cpu,cpu"),
    "--ray": ("--ray", "auto"),
    "--gpus-per-worker": ("--gpus-per-worker", "0.5"),
    "--cpus-per-worker": ("--cpus-per-worker", "3"),
    "--dtype": ("--dtype", "bf16"),
    "--low-vram": ("--low-vram",),
    "--point-e-dir": ("--point-e-dir", "there"),
    "--offline": ("--offline",),
    "--preview-every": ("--preview-every", "3"),
    "--view": ("--view",),
    "--no-browser": ("--no-browser",),
    "--resume": ("--resume", "there.run"),
    "--skip-existing": ("--skip-existing",),
    "--dry-run": ("--dry-run",),
    "--force": ("--force",),
    "--json": ("--json",),
    "--quiet": ("--quiet",),
    "--list-words": ("--list-words",),
    "--output": ("-o", "other.ply"),
    "--front": ("--front", "-x"),
    "--up": ("--up", "z"),
    "--sh": ("--sh", "1"),
    "--max-gaussians": ("--max-gaussians", "20"),
    "--strength": ("--strength", "0.1"),
    "--distil": ("--distil", "4"),
    "--split": ("--split",),
    "--no-split": ("--no-split",),
    "--preview": ("--preview",),
    "--turntable": ("--turntable",),
    "--camera-path": ("--camera-path", "path.json"),
    "--contact-sheet": ("--contact-sheet",),
    "--frames": ("--frames",),
    "--channel": ("--channel", "normals"),
    "--size": ("--size", "64x48"),
    "--supersample": ("--supersample", "2"),
    "--n-frames": ("--n-frames", "5"),
    "--fps": ("--fps", "12"),
    "--elevation": ("--elevation", "40"),
    "--background": ("--background", "black"),
    "--caption": ("--caption", "a bus"),
    "--frame": ("--frame", "ruf"),
    "--for": ("--for", "quest"),
    "--output-frame": ("--output-frame", "ruf"),
    "--mirror": ("--mirror", "x"),
    "--shadow": ("--shadow",),
    "--format": ("--format", "spz4"),
    "--formats": ("--formats",),
    "--prune-opacity": ("--prune-opacity", "0.5"),
    "--crop": ("--crop", "0.4"),
    "--remove-floaters": ("--remove-floaters",),
    "--largest-cluster": ("--largest-cluster",),
    "--levels": ("--levels", "2"),
    "--keep": ("--keep", "30%"),
    "--polish": ("--polish",),
    "--center": ("--center",),
    "--rotate": ("--rotate", "0,90,0"),
    "--scale": ("--scale", "2"),
    "--strict": ("--strict",),
    "--picture": ("--picture",),
    "--as-splats": ("--as-splats",),
    "--height": ("--height", "2m"),
    "--unit": ("--unit", "cm"),
    "--pivot": ("--pivot", "ground"),
    "--spz-bits": ("--spz-bits", "12"),
    "--faces": ("--faces", "500"),
    "--texture-size": ("--texture-size", "64"),
    "--colors": ("--colors", "vertex"),
    "--compress": ("--compress",),
    "--collision": ("--collision",),
    "--opacity": ("--opacity", "0.3"),
    "--clean": ("--clean",),
    "--stopped": ("--stopped",),
    "--yes": ("--yes",),
    "--verify": ("--verify",),
    "--metrics": ("--metrics", "health"),
    "--list-metrics": ("--list-metrics",),
    "--weights": ("--weights", "judge=there"),
    "--views": ("--views", "8"),
    "--elevations": ("--elevations", "0,30"),
    "--fit": ("--fit",),
    "--no-fit": ("--no-fit",),
    "--reference": ("--reference", "there"),
    "--make-references": ("--make-references", "drawn"),
    "--compare": ("--compare",),
    "--blind": ("--blind", "vote.html"),
    "--votes": ("--votes", "votes.json"),
    "--csv": ("--csv", "table.csv"),
    "--html": ("--html", "page.html"),
    "--build-kernels": ("--build-kernels",),
}
"""An example of every option; one that is what a command does anyway has the opposite beside it."""
OWN = {
    ("render", "--view"): ("--view", "30,20"),
    ("render", "--output"): ("-o", "other.mp4"),
    ("init", "--prior"): ("--prior", "sd21"),
    ("init", "--model"): ("--model", "somebody/something"),
    ("evaluate", "--prior"): ("--prior", "sd21"),
    ("evaluate", "--prompts"): ("--prompts", "others.txt"),
    ("evaluate", "--size"): ("--size", "64"),
    ("render", "--format"): ("--format", "jpg"),
    ("report", "--output"): ("-o", "other.html"),
}
USUAL = {
    EXAMPLES[name]
    for name in (
        "--no-perp-neg",
        "--refine",
        "--split",
        "--no-beg",
        "--init-color",
        "--turntable",
        "--quiet",
        "--force",
        "--strict",
        "--fit",
        "--skip-existing",
    )
}
"""Examples that a command does anyway, or that need something: an output that exists, a damaged asset, a message."""
HIDING = {EXAMPLES[name] for name in ("--quiet", "--dry-run", "--skip-existing", "--force")}
HIDING.add(("--metrics", "health"))
"""Examples that hide what others do, or that others hide: messages, settings, outputs that exist already; a single
figure, whose interval two seeds may draw alike."""
LINES = {
    "one asset": ("generate", BUS, "--seed", "1"),
    "of a sphere": ("generate", BUS, "--init", "sphere"),
    "several seeds": ("generate", BUS, "--seeds", "0-1"),
    "a list": ("generate", "--prompts", "list.txt", "--out-dir", "assets"),
    "a list on a cluster": ("generate", "--prompts", "list.txt", "--out-dir", "assets", "--ray", "auto"),
    "a resumed run": ("generate", "--resume", "there.run"),
    "initial Gaussians": ("init", BUS, "--init", "sphere"),
    "a refinement": ("refine", "there.ply", BUS),
    "a turntable": ("render", "there.ply"),
    "a view": ("render", "there.ply", "--view", "10,10"),
    "a sheet": ("render", "there.ply", "--contact-sheet"),
    "depth": ("render", "there.ply", "--channel", "depth", "--frames"),
    "a path": ("render", "there.ply", "--camera-path", "path.json"),
    "facts": ("info", "there.ply"),
    "a splat": ("export", "there.ply", "-o", "there.spz"),
    "levels of detail": ("lod", "there.ply"),
    "a mesh": ("export", "there.ply", "-o", "there.obj"),
    "run folders": ("runs", "runs"),
    "removed run folders": ("runs", "runs", "--clean", "--yes"),
    "the cache": ("cache", "clouds"),
    "a removed cache": ("cache", "clouds", "--clean", "--yes"),
    "figures": ("evaluate", "toys"),
    "figures of views": ("evaluate", "toys", "--metrics", "frechet", "--reference", "there"),
    "a comparison": ("evaluate", "--compare", "toys", "others"),
    "votes": ("evaluate", "--compare", "toys", "others", "--votes", "votes.json"),
    "reference images": ("evaluate", "--make-references", "drawn", "--prompts", "list.txt"),
    "metrics": ("evaluate", "--list-metrics"),
    "a report": ("report", "there.ply"),
    "a page": ("view", "there.ply"),
    "weights": ("fetch", "clip"),
    "this machine": ("doctor",),
}
MANY = {
    "of a sphere", "several seeds", "a list", "a list on a cluster", "a resumed run", "a sheet", "depth", "a path",
    "a mesh", "figures", "figures of views", "votes", "reference images", "metrics",
}  # fmt: skip
"""Command lines whose options are not tried in pairs: others of the same command are."""


@pytest.fixture
def outcome(segdream, folder, monkeypatch) -> Callable[..., tuple[Any, ...]]:
    """Runs a command line up to its work; returns exit code, messages, files, and what would be done."""
    done: list[Any] = []
    formats.write(folder / "there.ply", random_splats())
    (folder / "list.txt").write_text("a red ball\na blue ball\n")
    (folder / "path.json").write_text('{"frames": [{"position": [0, 1, 3]}, {"position": [1, 1, 3]}]}')
    (folder / "settings.toml").write_text("[loss]\nscale = 0.5\n[init]\ngray = 0.3\n")
    (folder / "runs" / "a.run").mkdir(parents=True)
    (folder / "runs" / "a.run" / "run.json").write_text("{")
    (folder / "mini").symlink_to(checkpoint.PRIORS["mini"])

    def record(name, result=None):
        def call(*arguments, **options):
            done.append((name, *map(text, arguments), *sorted((key, text(value)) for key, value in options.items())))
            return session.Tally() if result is None else result

        return call

    def text(value):
        if inspect.isfunction(value):
            return value.__name__
        if isinstance(value, session.Session):
            values = value.config, value.negative_prompt, value.batch, value.device, value.page, value.reporter.browser
            return repr((values, value.quality, value.reporter.output))
        if isinstance(value, RenderJob):
            values = value.width, value.height, value.channel, value.color, value.supersample, value.captions
            return repr((values, [(asset.gaussians.means.tolist(), asset.ground) for asset in value.assets]))
        if isinstance(value, list) and value and hasattr(value[0], "viewmats"):
            return repr([camera.viewmats.tolist() for camera in value])
        if hasattr(value, "arrays"):
            return repr({name: array.tolist() for name, array in value.arrays().items()})
        return "" if "object at" in repr(value) else repr(value)

    monkeypatch.setattr(session.Session, "generate_all", record("all"))
    monkeypatch.setattr(session.Session, "generate_list", record("list"))
    monkeypatch.setattr(session, "load_clouds", lambda *_, **__: None)
    monkeypatch.setattr(session, "page_for", lambda _: nullcontext("a page"))
    monkeypatch.setattr(best_of, "page_for", lambda _: nullcontext("a page"))
    monkeypatch.setattr(best_of.TrialSession, "generate_best", record("best"))
    for name in ("run_on_devices", "run_on_ray"):
        monkeypatch.setattr(workers, name, measure_after(record(name, session.Tally())))
    monkeypatch.setattr(session, "resume_run", record("resume"))
    monkeypatch.setattr(session, "load_checkpoint", cache_by_prior(session.load_checkpoint))
    made = SimpleNamespace(left_out=0, resolution=mesh.RESOLUTION, faces=[], watertight=True, components=1)
    monkeypatch.setattr(mesh, "extract", record("mesh", made))
    monkeypatch.setattr(mesh, "collide", record("pieces", made))
    monkeypatch.setattr(polish, "VIEWS", 2)
    monkeypatch.setattr(polish, "SIZE", 32)
    monkeypatch.setattr(mesh, "write", write_mesh)
    for name in ("write_image", "write_frames", "write_video", "write_contact_sheet"):
        monkeypatch.setattr(RenderJob, name, record(name))
    stand_in_for_figures(folder, monkeypatch, record)
    stand_in_for_tools(folder, monkeypatch, record)
    monkeypatch.setattr(Ground, "below", lambda *_: "a shadow")
    monkeypatch.setattr(RenderJob, "depth_range", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(render, "check_target", record("target"))

    def run(*arguments):
        done.clear()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        said = segdream(*arguments)
        made = [path for path in folder.rglob("*") if path not in before]
        files = {path.name: path.read_bytes() for path in made if path.is_file()}
        for path in sorted(made, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return said.code, said.out, said.err, files, list(done)

    return run


def stand_in_for_figures(folder, monkeypatch, record):
    """Two folders of assets; figures that depend on the asset and on all that the views depend on."""
    prompts = [f"a {color} ball" for color in ("red", "blue", "green", "white", "black", "pink", "gray")]
    for place in ("toys", "others"):
        (folder / place).mkdir()
        for prompt in prompts:
            splats = replace(random_splats(), provenance={"prompt": prompt})
            formats.write(folder / place / f"{slug(prompt)}.ply", splats)
    (folder / "others.txt").write_text("\n".join(prompts).replace("ball", "car"))

    def load(names, setup):
        record("metrics")(names, setup.prompts, setup.weights, setup.reference, str(setup.device))
        figures = {"figure": Figure("a figure", main=True)}
        return {name: SimpleNamespace(figures=figures, set_figures={}, reads_views=name == "frechet") for name in names}

    def measurement(self, entry):
        reading = (self.protocol,) if any(metric.reads_views for metric in self.metrics.values()) else ()
        drawn = np.random.default_rng(zlib.crc32(repr((entry, reading)).encode()))
        pictures = self.protocol.sides(self.n_pictures) if self.n_pictures else None
        shade = zlib.crc32(repr(pictures).encode()) % 256
        images = [np.full((8, 8, 3), shade, np.uint8)] * self.n_pictures
        return Measurement({f"{name}.figure": 100 * drawn.random() for name in self.metrics}, images, {})

    def count(paths, pairs, seed):
        record("pairs")([pair.key for pair in pairs])
        return blind.Votes(estimate(np.geomspace(1, 2, 20), list(map(str, range(20))), seed), 0.5, len(paths))

    monkeypatch.setattr(evaluate, "_load", load)
    monkeypatch.setattr(Evaluation, "measurement", measurement)
    monkeypatch.setattr(blind, "count_votes", count)
    monkeypatch.setattr(
        drawing, "draw_references", lambda pipeline, *rest: record("drawn")(str(pipeline.device), *rest)
    )
    monkeypatch.setattr(drawing, "write_references", record("written", 3))


def measure_after(record):
    """Workers that record what they would do, and measure in place."""

    def run(spec, where, reporter, stop):
        if isinstance(spec.work, Measuring):
            work = spec.work
            here = Evaluation(evaluate._load(work.names, work.setup), work.protocol, work.setup.device, work.n_pictures)
            for job in spec.jobs:
                reporter(JobFinished(job.output, here.measurement(work.entries[job.asset])))
        return record(spec, where, reporter)

    return run


def stand_in_for_tools(folder, monkeypatch, record):
    """What the other commands work on: runs, a cache, weights, a page, and checks of this machine that are quick."""
    runs = [
        listing.RunInfo(path=folder / f"{state}.run", state=state, bytes=9, modified=0.0)
        for state in ("done", "stopped")
    ]
    monkeypatch.setattr(listing, "list_runs", lambda _: runs)
    monkeypatch.setattr(ownership, "remove_folder", record("removed", True))
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    (folder / "cache" / "clouds").mkdir(parents=True)
    (folder / "cache" / "clouds" / f"{'0' * 32}.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(cache.Store, "remove", record("removed", 7))
    item = fetch._Item(
        name="clip", title="a network", missing=None, fetch=record("fetched"), check=lambda: Path("there")
    )
    monkeypatch.setitem(fetch._ITEMS, "clip", lambda _: iter([item]))
    kept = ("python", "downloads", "point-e")
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in kept})
    monkeypatch.setattr("segdream_cli.runs.report.write_report", record("report", {"steps": 0, "previews": 0}))
    stopped = SimpleNamespace(is_set=lambda: True, exit_code=0)
    monkeypatch.setattr(view, "StopOnSignal", lambda: nullcontext(stopped))
    monkeypatch.setattr(view, "open_browser", record("opened"))
    server = SimpleNamespace(url="an address", start=lambda: None, close=lambda: None, publish=record("shown"))
    monkeypatch.setattr("segdream_cli.viewer.server.PageServer", lambda: server)


def random_splats() -> Splats:
    """200 Gaussians with spherical harmonics, of which edits drop some."""
    rng, n = np.random.default_rng(3), 200
    sizes = {"means": (n, 3), "quats": (n, 4), "log_scales": (n, 3), "opacity_logits": (n,), "sh0": (n, 3)}
    drawn = {name: rng.normal(size=size).astype(np.float32) for name, size in (sizes | {"shN": (n, 8, 3)}).items()}
    return Splats(**drawn | {"means": 0.3 * drawn["means"], "log_scales": drawn["log_scales"] - 4})


def write_mesh(path, _, **__):
    for suffix in (".obj", ".mtl", ".png"):
        path.with_suffix(suffix).touch()


def cache_by_prior(load):
    """`load_checkpoint` with the files read once per prior, and without its notes."""
    found = {}

    def call(request, device, _):
        key = repr((request.prior(), device))
        if key not in found:
            found[key] = load(request, device, discard)
        return found[key]

    return call


def examples(command: str) -> list[tuple[str, ...]]:
    """The examples of the options of a command, from its Typer declaration."""
    names = [
        name
        for parameter in COMMANDS[command].params
        if parameter.opts[0].startswith("-") and not parameter.hidden
        for name in (parameter.opts[-1], *parameter.secondary_opts)
        if name != "--help"
    ]
    return [OWN.get((command, name), EXAMPLES[name]) for name in names]


def explained(option: tuple[str, ...], said: tuple[Any, ...]) -> bool:
    """Whether a command failed, or says that an option has no effect."""
    code, _, err = said[:3]
    return code != 0 or (f"{option[0]} has no effect" in err)


def conflicts(line: tuple[str, ...], option: tuple[str, ...]) -> bool:
    """Whether an option is on the command line already, perhaps as its opposite."""
    name = option[0].removeprefix("--").removeprefix("no-")
    return any(word in (f"--{name}", f"--no-{name}", option[0]) for word in line)


@pytest.mark.parametrize("title", LINES)
def test_option_has_an_effect_or_is_refused(outcome, title, monkeypatch):
    line = LINES[title]
    if title == "a resumed run":
        monkeypatch.setattr("segdream_cli.runs.run_dir.RunDir.record", lambda _: {})
    plain = outcome(*line)
    assert plain[0] == 0, plain[2]
    idle = [
        option
        for option in examples(line[0])
        if option not in USUAL
        and not conflicts(line, option)
        and not explained(option, said := outcome(*line, *option))
        and said == plain
    ]
    assert not idle, "\n".join(map(str, idle))


@pytest.mark.parametrize("title", [title for title in LINES if title not in MANY])
def test_two_options_each_have_an_effect_beside_the_other_or_are_refused(outcome, title):
    line = LINES[title]
    plain = outcome(*line)
    alone = {option: outcome(*line, *option) for option in examples(line[0]) if not conflicts(line, option)}
    able = {option: said for option, said in alone.items() if said != plain and option not in HIDING}
    idle = [
        (one, other)
        for one, other in itertools.combinations(able, 2)
        if not conflicts(one, other)
        and (said := outcome(*line, *one, *other))
        and not explained(one, said)
        and not explained(other, said)
        and said in (able[one], able[other])
    ]
    assert not idle, "\n".join(map(str, idle))
