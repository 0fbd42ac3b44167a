"""The commands of the storm, and the stand-ins for networks and servers.

Children inherit the stand-ins by the fork: a prior in closed form (`tests/fakes.py`), clouds in closed form, the files
of the prior, which are found once, and a cache in the working directory.
"""

import hashlib
import io
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numba
import torch
from huggingface_hub import constants
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import hub_server  # noqa: E402
from checkpoints import build  # noqa: E402
from commands import BUS, TINY  # noqa: E402
from fakes import AnalyticPrior  # noqa: E402
from file_server import running  # noqa: E402

import segdream_cli.evaluate.health  # noqa: E402 - the children get these imports for nothing
import segdream_cli.evaluate.judge_metric  # noqa: E402
import segdream_cli.evaluate.report  # noqa: E402
import segdream_cli.render.job  # noqa: E402
import segdream_cli.runs.best_of  # noqa: E402, F401
from benchmarks.faults import KILL, Fault  # noqa: E402
from segdream_cli import cli  # noqa: E402
from segdream_cli.config import SD21_MODEL  # noqa: E402
from segdream_cli.evaluate import inception  # noqa: E402
from segdream_cli.pointe.clouds import Clouds  # noqa: E402
from segdream_cli.pointe.model import PointCloud  # noqa: E402
from segdream_cli.priors import checkpoint as weights  # noqa: E402
from segdream_cli.priors import published  # noqa: E402
from segdream_cli.priors.checkpoint import Checkpoint  # noqa: E402
from segdream_cli.priors.stable_diffusion import DiffusionPrior  # noqa: E402
from segdream_cli.render import raster  # noqa: E402

CACHE, HUB, PRIOR, KERNELS = "cache", "hub", "mini", "numba"
"""Folders of a trial: segdream's cache, the Hub's, a copy of the embedded prior, and numba's cache."""
MODEL = "org/tiny"
FILE_BYTES = 3_000_000
_RESOLVE, _LOAD = weights.resolve, DiffusionPrior.load


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command and what stands before it.

    Args:
        command: its arguments.
        outputs: the files that it writes, as paths or patterns.
        before: commands that are run first, each with a fault.
        texts: name and content of files that are written first.
        copies: paths of files and folders that are copied first, below the package's data.
        run: the run folder that must keep a checkpoint until the first output is whole; None if there is none.
        again: the command that makes the outputs from nothing, once a hint has moved a damaged run away.
        passing: patterns of what must be gone at the end.
        fails: whether calls fail and processes are killed.
        flips: patterns of the files whose bits are flipped.
        refuses: a flipped bit must be refused, because the stand-ins would not let it change the result.
        prepare: what the children do before each command.
    """

    command: Sequence[str]
    outputs: Sequence[str]
    before: Sequence[tuple[Sequence[str], Fault | None]] = ()
    texts: Sequence[tuple[str, str]] = ()
    copies: Sequence[str] = ()
    run: str | None = None
    again: Sequence[str] | None = None
    passing: Sequence[str] = ()
    fails: bool = True
    flips: Sequence[str] = ()
    refuses: bool = False
    prepare: Callable[[], None] | None = None

    def execute(self, arguments: Sequence[str]) -> int:
        """Runs a command of the scenario in this process, and returns its exit code."""
        if self.prepare is not None:
            self.prepare()
        return cli.run(arguments)


def use_real_networks() -> None:
    """Loads networks and finds their files as outside the storm."""
    weights.resolve, DiffusionPrior.load = _RESOLVE, _LOAD  # type: ignore[method-assign]
    published.REVISION, published.SHA256 = hub_server.COMMIT, {}


def use_prior_of_folder() -> None:
    """Takes the embedded prior from the working directory, and looks at its files anew."""
    weights.resolve = _RESOLVE
    weights.PRIORS = {**weights.PRIORS, PRIOR: PRIOR}


def import_kernels_again() -> None:
    """Imports the rasteriser again, from numba's cache in the working directory."""
    numba.config.CACHE_DIR = str(Path(KERNELS).absolute())
    for name in ("cpu", "kernels"):
        sys.modules.pop(f"{raster.__name__}.{name}", None)
        vars(raster).pop(name, None)


def fork_workers() -> None:
    """Forks the processes of `--devices`, which then have the stand-ins too."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda *_: fork  # type: ignore[assignment]


def _generate(*arguments: str) -> tuple[str, ...]:
    return ("generate", *arguments, *SETTINGS)


SETTINGS = (*TINY, "--steps", "2", "--set", "output.checkpoint_every=1", "--set", "prior.engine=torch")
STOPPED = Fault(KILL, 2, r"^replace .*\.checkpoint")
"""Kills a run before its second checkpoint gets its name."""
_ROUNDS = {"t0": [300, 200], "steps": [1, 1], "views": [2, 2], "iterations": [1, 1]}
_ROUNDS |= {"image_size": [32, 32], "gaussians": [0, 0]}
_ROUND_SETTINGS = tuple(f"--set=refine.{key}={value}" for key, value in _ROUNDS.items())
_MINI = ("--prior", "mini", "--device", "cpu")
_REFINE = ("refine", "ball.ply", BUS, *_MINI, *_ROUND_SETTINGS, "--set=output.checkpoint_every=1")
_REFINE += ("--set=prior.engine=torch", "-o", "r.ply")
_LIST = (("list.txt", "a red ball\na blue ball\n"),)
_LISTED = _generate("--prompts", "list.txt", "--out-dir", "out")
_SHARED = ("generate", "--prompts", "list.txt", "--out-dir", "out", "--devices", "cpu,cpu")
_SHARED += tuple(word for word in SETTINGS if word not in ("--device", "cpu"))
_ASSETS = ("out/a_red_ball.ply", "out/a_blue_ball.ply")
_BALL = (("init", BUS, *TINY[:-3], "-o", "ball.ply"), None)
_LARGE_BALL = (("init", BUS, *_MINI, "--init", "sphere", "--count", "120", "-o", "ball.ply"), None)
_RUN = ("bus.run/checkpoint.safetensors", "bus.run/run.json", "bus.run/events.jsonl")
_CLOUD = ("init", BUS, *_MINI, "--init", "point-e")
_OF_HUB = ("generate", BUS, "--model", MODEL, *(word for word in SETTINGS if word not in ("--prior", "mini")))
_VIEW = ("render", "ball.ply", "--view", "45,20", "--size", "32", "-o", "v.png")
SCENARIOS = {
    "new run": Scenario(_generate(BUS, "-o", "bus.ply", "--preview-every", "1"), ["bus.ply"]),
    "force": Scenario(
        _generate(BUS, "-o", "bus.ply", "--force"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply", "--seed", "1"), None)],
    ),
    "force over a stopped run": Scenario(
        _generate(BUS, "-o", "bus.ply", "--force"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply", "--seed", "1"), STOPPED)],
    ),
    "resume": Scenario(
        ("generate", "--resume", "bus.run"),
        ["bus.ply"],
        [(_generate(BUS, "-o", "bus.ply"), STOPPED)],
        run="bus.run",
        again=_generate(BUS, "-o", "bus.ply", "--force"),
        flips=_RUN,
    ),
    "best of two": Scenario(
        _generate(BUS, "-o", "bus.ply", "--best-of", "2", "--best-by", "judge"),
        ["bus.ply"],
        passing=["bus.try-*.run"],
    ),
    "list": Scenario(_LISTED, _ASSETS, texts=_LIST),
    "batch": Scenario((*_LISTED, "--batch", "2"), _ASSETS, texts=_LIST),
    "devices": Scenario(_SHARED, _ASSETS, texts=_LIST, prepare=fork_workers),
    "refine": Scenario(_REFINE, ["r.ply"], [_LARGE_BALL]),
    "resume in a round": Scenario(
        ("generate", "--resume", "r.run"),
        ["r.ply"],
        [_LARGE_BALL, (_REFINE, STOPPED)],
        run="r.run",
        again=(*_REFINE, "--force"),
        flips=("r.run/checkpoint.safetensors", "r.run/run.json"),
    ),
    "init": Scenario(("init", BUS, *TINY[:-3], "--preview", "-o", "i.ply"), ["i.ply", "i.png"]),
    "init from a cloud": Scenario((*_CLOUD, "-o", "i.ply"), ["i.ply"]),
    "cached cloud": Scenario(
        (*_CLOUD, "-o", "i.ply"),
        ["i.ply"],
        [((*_CLOUD, "-o", "other.ply"), None)],
        fails=False,
        flips=[f"{CACHE}/clouds/*"],
    ),
    "export": Scenario(("export", "ball.ply", "-o", "ball.spz", "-o", "ball.html"), ["ball.spz", "ball.html"], [_BALL]),
    "render view": Scenario(_VIEW, ["v.png"], [_BALL]),
    "render frames": Scenario(
        ("render", "ball.ply", "--frames", "--n-frames", "3", "--size", "32", "-o", "turn"),
        [f"turn/frame-{i:04d}.png" for i in range(3)],
        [_BALL],
    ),
    "render gif": Scenario(
        ("render", "ball.ply", "--n-frames", "2", "--size", "16", "-o", "t.gif"), ["t.gif"], [_BALL]
    ),
    "evaluate": Scenario(
        ("evaluate", "ball.ply", "--metrics", "health", "--views=2", "--size=64", "--csv", "m.csv", "--html", "m.html"),
        ["m.csv", "m.html"],
        [_BALL],
    ),
    "fetch": Scenario(
        ("fetch", "sd21", "fid"),
        [f"{HUB}/models--{SD21_MODEL.replace('/', '--')}/snapshots/*/**/*", f"{CACHE}/inception/*.pth"],
        prepare=use_real_networks,
    ),
    "Hub's prior": Scenario((*_OF_HUB, "-o", "bus.ply"), ["bus.ply"], prepare=use_real_networks),
    "Hub's cache": Scenario(
        (*_OF_HUB, "-o", "bus.ply"),
        ["bus.ply"],
        [((*_OF_HUB, "-o", "other.ply"), None)],
        fails=False,
        flips=[f"{HUB}/models--*/blobs/*", f"{HUB}/models--*/refs/*", f"{CACHE}/first-use/*", f"{CACHE}/hashes/*"],
        prepare=use_real_networks,
    ),
    "embedded prior": Scenario(
        _generate(BUS, "-o", "bus.ply"),
        ["bus.ply"],
        copies=(PRIOR, f"{PRIOR}.sha256"),
        fails=False,
        flips=[f"{PRIOR}/**/*", f"{PRIOR}.sha256"],
        refuses=True,
        prepare=use_prior_of_folder,
    ),
    "compiled kernels": Scenario(
        _VIEW,
        ["v.png"],
        [_BALL, ((*_VIEW[:-1], "other.png"), None)],
        fails=False,
        flips=[f"{KERNELS}/**/*"],
        prepare=import_kernels_again,
    ),
}


def _sample_cloud(_: Clouds, prompt: str, seed: int) -> PointCloud:
    """A cloud in closed form."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {prompt}".encode()))
    return PointCloud(torch.randn(64, 3, generator=generator), torch.rand(64, 3, generator=generator))


@contextmanager
def stand_ins() -> Iterator[None]:
    """Puts the stand-ins in place for all children, and serves files for them, while the block runs.

    The working directory of this process has no `cache` folder of its own.
    """
    found: dict[str, Checkpoint] = {}

    def resolve(config: object, **options: object) -> Checkpoint:
        return found.setdefault("mini", found.get("mini") or _RESOLVE(config, **options))  # type: ignore[arg-type]

    DiffusionPrior.load = lambda checkpoint, *_, **__: AnalyticPrior(profile=checkpoint.profile)  # type: ignore
    weights.resolve = resolve  # type: ignore[assignment]
    Clouds._sample = _sample_cloud  # type: ignore[method-assign]
    os.environ.update(SEGDREAM_CACHE=CACHE, no_proxy="127.0.0.1")
    Image.init()
    cwd = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):  # compiles the rasteriser
            os.chdir(folder)
            cli.run(_generate(BUS, "-o", "bus.ply"))
            os.chdir(cwd)
        content = random.Random(0).randbytes(FILE_BYTES)
        reading, writing = multiprocessing.Pipe(duplex=False)
        server = os.fork()
        if not server:
            _serve(build(Path(folder) / "tiny"), content, writing)
        hub, files = reading.recv()
        constants.ENDPOINT, constants.HF_HUB_CACHE = hub, HUB
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub + "/{repo_id}/resolve/{revision}/{filename}"
        inception.ADDRESS, inception.BYTES = f"{files}/{inception.NAME}", FILE_BYTES
        inception.SHA256 = hashlib.sha256(content).hexdigest()
        try:
            yield
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _serve(model: Path, content: bytes, address: Connection) -> None:
    """Serves a model as the Hub does, and a file, until this process is killed."""
    os.setpgid(0, 0)
    with hub_server.serving({MODEL: model, SD21_MODEL: model}) as (_, hub), running() as files:
        files.files[f"/{inception.NAME}"] = content
        address.send((hub, files.address))
        signal.pause()
        os._exit(0)
