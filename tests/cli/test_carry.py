"""Files of a worker that does not see the folder of the assets: checkpoints and assets travel in pieces."""

import dataclasses
from pathlib import Path

import pytest

from segdream_cli.errors import SegdreamError
from segdream_cli.runs import carry
from segdream_cli.runs.carry import Carrier, FilePart, PartPorter, Receiver
from segdream_cli.runs.crew import Ended, Task
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import AssetFinished, CheckpointSaved, Note, discard
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.session import run_jobs
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.worker import Worker

SETTINGS = {
    "prior.name": "mini", "init.shape": "sphere", "init.count": 40, "densify.cap": 60, "camera.batch": 2,
    "refine.enabled": False, "optim.steps": 8, "output.checkpoint_every": 2,
}  # fmt: skip
SPEC = JobSpec(request=Request(settings=SETTINGS, device="cpu"), jobs=())


@pytest.mark.usefixtures("prior")
def test_checkpoints_and_assets_travel_in_pieces(folder, monkeypatch):
    """A run is stopped on one machine and resumes from what has travelled on another, with the bits of one process."""
    monkeypatch.setattr(carry, "PIECE", 10_000)
    Path("assets").mkdir()
    Path("alone").mkdir()
    job, receiver, stop, messages = Job("a red ball", 0, Path("assets/a.ply")), Receiver(force=False), StopRequest(), []

    def send(message):
        messages.append(message)
        match message:
            case FilePart():
                receiver.take("worker 1", message)
            case CheckpointSaved():
                stop.set()
            case AssetFinished():
                receiver.finish(message.output, keep=True)

    porter = PartPorter(send)
    carrier = Carrier(send, porter, lambda: 0.0)
    with Worker(SPEC, carrier.hear, stop) as worker:
        carrier.do(worker, Task(1, (job,)), {})
    assert 0 < RunDir(Path("assets/a.run")).step() < 8
    assert max(part.size for part in messages if isinstance(part, FilePart)) > 10_000
    stop = StopRequest()
    porter.earlier = {job.output: {name: path.read_bytes() for name, path in receiver.earlier(job).items()}}
    monkeypatch.setattr(StopRequest, "set", lambda self: None)
    with Worker(SPEC, carrier.hear, stop) as worker:
        carrier.do(worker, Task(2, (job,), resume=True), {})
    assert messages[-1] == Ended(2, Tally(made=1))
    assert any(isinstance(each, Note) and each.text.startswith("resuming assets/a.run") for each in messages)
    assert sorted(path.name for path in Path("assets/a.run").iterdir()) == ["events.jsonl", "run.json"]
    run_jobs(dataclasses.replace(SPEC, jobs=(dataclasses.replace(job, output=Path("alone/a.ply")),)), discard, stop)
    assert Path("assets/a.ply").read_bytes() == Path("alone/a.ply").read_bytes()


def test_receiver_drops_what_a_lost_worker_began(folder):
    receiver = Receiver(force=False)
    receiver.take("worker 1", FilePart(Path("a.ply"), "a.ply", 0, 6, b"abc"))
    receiver.lose("worker 1")
    receiver.take("worker 1", FilePart(Path("a.ply"), "a.ply", 3, 6, b"def"))
    assert not list(folder.iterdir())
    receiver.take("worker 2", FilePart(Path("a.ply"), "a.ply", 0, 6, b"uvw"))
    receiver.take("worker 2", FilePart(Path("a.ply"), "a.ply", 3, 6, b"xyz"))
    assert [path.name for path in folder.iterdir()] == ["a.ply"]
    assert Path("a.ply").read_bytes() == b"uvwxyz"


@pytest.mark.parametrize("name", ["other.run/run.json", "a.run/../../x", "a.run/other.txt"])
def test_receiver_refuses_other_files(folder, name):
    with pytest.raises(SegdreamError, match="no file of a run"):
        Receiver(force=False).take("worker 1", FilePart(Path("a.ply"), name, 0, 1, b"x"))
    assert not list(folder.iterdir())
