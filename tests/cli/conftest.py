"""The command line without networks: a prior in closed form takes the place of the one that would be loaded."""

import sys
from dataclasses import dataclass
from functools import partialmethod

import pytest
from commands import LAUNCHER, plain
from fakes import AnalyticPrior
from hints import find_hints, follow_all
from json_lines import check_lines

from segdream_cli import cli as command_line
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from segdream_cli.runs import session


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prior(monkeypatch):
    """Puts a prior in the place of the networks; called with another one, puts that there."""

    def place(made=None):
        def load(checkpoint, *_, **__):
            return AnalyticPrior(profile=checkpoint.profile) if made is None else made(checkpoint.profile)

        monkeypatch.setattr(DiffusionPrior, "load", load)

    place()
    return place


@pytest.fixture(params=[False, True], ids=["awaited", "queued"])
def either_way(request, monkeypatch):
    """Runs a test with gradients that are waited for, as on a CPU, and with steps that are queued, as on CUDA."""
    monkeypatch.setattr(Pipeline, "__init__", partialmethod(Pipeline.__init__, queued=request.param))


@pytest.fixture
def lockstep(monkeypatch):
    """Lets a CPU optimise several assets at once, as CUDA does."""
    monkeypatch.setattr(session, "LOCKSTEP_DEVICES", ("cpu", "cuda"))


@pytest.fixture
def sizes(monkeypatch):
    """How many assets, at which step, each run of the pipeline is given."""
    seen, real = [], Pipeline.run
    monkeypatch.setattr(
        Pipeline, "run", lambda self, assets: seen.append((len(assets), assets[0].step)) or real(self, assets)
    )
    return seen


@pytest.fixture
def segdream(folder, prior, capsys, monkeypatch):
    """Runs a command in this process; lines of `--json` must be those of the schema.

    After the test, the hints of its errors are followed.
    """
    for name in ("SEGDREAM_DEBUG", "SEGDREAM_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    hints = []

    def run(*arguments):
        capsys.readouterr()
        words = [str(argument) for argument in arguments]
        try:
            code = command_line.run(words)
        except SystemExit as end:  # of a second SIGTERM, which leaves at once
            code = end.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        if "--json" in arguments:
            check_lines(said.out)
        hints.extend(find_hints(words, said.err))
        return Outcome(code, said.out, plain(said.err))

    yield run
    prior()  # a fault that a test puts there has no cure
    follow_all(hints, lambda *words: run(*words).err, folder, monkeypatch)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """The arguments that start a process whose prior is in closed form, and slow enough to be interrupted."""
    path = tmp_path_factory.mktemp("launcher") / "launch.py"
    path.write_text(LAUNCHER)
    return [sys.executable, str(path)]
