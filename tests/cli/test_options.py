"""Every option of every command changes the result, is refused, or is told to have no effect; alone and beside others.

The commands run up to the point where work begins: the jobs, the resolved settings and the messages are compared.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from commands import BUS

from segdream_cli import cli, formats, mesh
from segdream_cli.cli import render
from segdream_cli.priors import checkpoint
from segdream_cli.render.job import RenderJob
from segdream_cli.render.studio import Ground
from segdream_cli.runs import best_of, session
from segdream_cli.runs.reporter import discard
from segdream_cli.simplify import polish
from segdream_cli.splats import Splats

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
    "--opacity": ("--opacity", "0.3"),
    "--clean": ("--clean",),
    "--stopped": ("--stopped",),
    "--yes": ("--yes",),
    "--verify": ("--verify",),
}
"""An example of every option; one that is what a command does anyway has the opposite beside it."""
OWN = {
    ("render", "--view"): ("--view", "30,20"),
    ("render", "--output"): ("-o", "other.mp4"),
    ("init", "--prior"): ("--prior", "sd21"),
    ("init", "--model"): ("--model", "somebody/something"),
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
    )
}
"""Examples that a command does anyway, or that need something: an output that exists, a damaged asset, a message."""
HIDING = {EXAMPLES["--quiet"], EXAMPLES["--dry-run"], EXAMPLES["--skip-existing"]}
"""Examples that hide what others do, or that others hide: messages, settings, assets that exist already."""
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
    "the cache": ("cache", "point-e"),
}


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
    monkeypatch.setattr("segdream_cli.cli.generate.run_on_devices", record("devices"))
    monkeypatch.setattr("segdream_cli.cli.generate.run_on_ray", record("ray"))
    monkeypatch.setattr(session, "resume_run", record("resume"))
    monkeypatch.setattr(session, "load_checkpoint", cache_by_prior(session.load_checkpoint))
    made = SimpleNamespace(left_out=0, resolution=mesh.RESOLUTION, faces=[], watertight=True, components=1)
    monkeypatch.setattr(mesh, "extract", record("mesh", made))
    monkeypatch.setattr(polish, "VIEWS", 2)
    monkeypatch.setattr(polish, "SIZE", 32)
    monkeypatch.setattr(mesh, "write", write_mesh)
    for name in ("write_image", "write_frames", "write_video", "write_contact_sheet"):
        monkeypatch.setattr(RenderJob, name, record(name))
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


def random_splats() -> Splats:
    """200 Gaussians with spherical harmonics, of which edits drop some."""
    rng, n = np.random.default_rng(3), 200
    sizes = {"means": (n, 3), "quats": (n, 4), "log_scales": (n, 3), "opacity_logits": (n,), "sh0": (n, 3)}
    drawn = {name: rng.normal(size=size).astype(np.float32) for name, size in (sizes | {"shN": (n, 8, 3)}).items()}
    return Splats(**drawn | {"means": 0.3 * drawn["means"], "log_scales": drawn["log_scales"] - 4})


def write_mesh(path, _):
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


@pytest.mark.parametrize("title", ["one asset", "initial Gaussians", "a turntable", "a splat"])
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
