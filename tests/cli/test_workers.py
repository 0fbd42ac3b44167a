"""`render`, `export` and `evaluate` of many assets on several workers: the same bytes as one command per asset."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segdream_cli import cli as command_line
from segdream_cli.cli import export, workers
from segdream_cli.cli.workers import CommandWork
from segdream_cli.runs.carry import Carrier, FilePart, PartPorter, Receiver
from segdream_cli.runs.crew import Ended, Message, Task
from segdream_cli.runs.dispatcher import Dispatcher
from segdream_cli.runs.jobs import FileJob
from segdream_cli.runs.reporter import JobFinished
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.survey import survey
from segdream_cli.runs.worker import FileWorker, worker_for

COLORS = ("red", "blue", "green")
VIEW = ("--view", "45,20", "--size", "32")
MANY = ("render", "assets", *VIEW)


class OneWorker:
    """A crew of one worker in this process."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec, self.messages, self.worker = spec, list[Message](), None

    def hire(self, wanted: int, unfit: Any) -> list[str]:
        if self.worker is not None:
            return []
        request = dataclasses.replace(self.spec.request, device="cpu")
        self.worker = worker_for(dataclasses.replace(self.spec, request=request), self.messages.append, None)
        self.worker.__enter__()
        return ["one"]

    def assign(self, worker: str, task: Task) -> None:
        self.worker.do(task)

    def receive(self, timeout_s: float) -> list[tuple[str, Message]]:
        found, self.messages[:] = [("one", message) for message in self.messages], []
        return found

    def has_room(self, unfit: Any) -> bool:
        return not unfit

    def recall(self, worker: str, task: int) -> None:
        pass

    def dismiss(self, worker: str) -> None:
        pass

    def close(self) -> None:
        pass

    def now(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    """A folder of three assets, each larger than the one before."""
    folder = tmp_path_factory.mktemp("balls")
    for number, color in enumerate(COLORS, 1):
        options = ("--init", "sphere", "--set", f"init.count={20 * number}")
        assert command_line.run(["init", f"a {color} ball", *options, "-o", str(folder / f"{color}.ply")]) == 0
    return folder


@pytest.fixture
def assets(balls, folder) -> Path:
    """A copy of that folder in the empty one."""
    return Path(shutil.copytree(balls, folder / "assets"))


@pytest.fixture
def one_worker(monkeypatch) -> None:
    """`--devices` has one worker, in this process."""

    def run(spec: JobSpec, devices: Any, reporter: Any, stop: Any) -> Tally:
        return Dispatcher(spec, survey(spec, print, cuda=False), OneWorker(spec), reporter, stop).run()

    monkeypatch.setattr(workers, "run_on_devices", run)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_devices_render_what_one_command_per_asset_renders(segdream, assets, folder):
    done = segdream(*MANY, "-o", "shared/{stem}.png", "--devices", "cpu")
    assert done.code == 0, done.err
    assert sorted(done.out.split()) == [f"shared/{color}.png" for color in sorted(COLORS)]
    assert "3 made, 0 skipped, 0 failed" in done.err
    for color in COLORS:
        assert segdream("render", f"assets/{color}.ply", *VIEW, "-o", "alone/{stem}.png", "--device", "cpu").code == 0
    assert content(folder / "shared") == content(folder / "alone")


@pytest.mark.usefixtures("one_worker")
def test_export_of_many_prints_the_lines_of_one_per_asset_the_largest_first(segdream, assets, folder):
    options = ("--for", "unity", "--scale", "2", "--json")
    done = segdream("export", "assets", *options, "-o", "shared/{stem}.ply", "--devices", "cpu")
    assert done.code == 0, done.err
    assert done.err.count("--for unity suits") == 1
    lines = [line for line in map(json.loads, done.out.splitlines()) if line["event"] == "done"]
    assert [line["output"] for line in lines] == [f"shared/{color}.ply" for color in reversed(COLORS)]
    for color, line in zip(reversed(COLORS), lines, strict=True):
        alone = segdream("export", f"assets/{color}.ply", *options, "-o", "alone/{stem}.ply")
        expected = json.loads(alone.out.splitlines()[-1].replace("alone/", "shared/"))
        assert {**line, "command": None} == {**expected, "command": None}
    assert content(folder / "shared") == content(folder / "alone")


@pytest.mark.usefixtures("one_worker")
def test_asset_that_fails_does_not_end_the_list_and_is_made_by_the_next_command(segdream, assets, folder):
    whole = (assets / "blue.ply").read_bytes()
    (assets / "blue.ply").write_bytes(whole[:-8])
    command = ("export", "assets", "-o", "out/{stem}.spz", "-o", "out/{stem}.splat", "--devices", "cpu")
    done = segdream(*command)
    assert done.code == 1
    assert done.err.count("error:") == 1
    assert "assets/blue.ply" in done.err
    assert "2 made, 0 skipped, 1 failed" in done.err
    assert sorted(content(folder / "out")) == ["green.splat", "green.spz", "red.splat", "red.spz"]
    (assets / "blue.ply").write_bytes(whole)
    (folder / "out" / "red.spz").unlink()
    done = segdream(*command)
    assert done.code == 0, done.err
    assert sorted(done.out.split()) == ["out/blue.splat", "out/blue.spz", "out/red.spz"]
    assert "[1/3] out/blue" not in done.err
    assert "2 made, 1 skipped, 0 failed" in done.err


@pytest.mark.usefixtures("one_worker")
def test_frames_are_complete_or_made_again(segdream, assets, folder):
    command = ("render", "assets/red.ply", "assets/blue.ply", "--frames", "--n-frames", "3", "--size", "16")
    command += ("-o", "out/{stem}", "--devices", "cpu")
    assert segdream(*command).code == 0
    first = content(folder / "out")
    assert len(first) == 6
    (folder / "out" / "red" / "frame-0002.png").unlink()
    done = segdream(*command)
    assert done.code == 0, done.err
    assert done.out.split() == ["out/red"]
    assert content(folder / "out") == first


@pytest.mark.usefixtures("one_worker")
def test_evaluate_on_workers_has_the_table_of_one_process(segdream, assets, folder):
    command = ("evaluate", "assets", "--metrics", "health,cost", "--force")
    run = folder / "assets" / "red.run"
    run.mkdir()
    (run / "events.jsonl").write_text('{"step": 1, "seconds": 2.5}\n')
    alone = segdream(*command, "--csv", "alone.csv", "--device", "cpu")
    done = segdream(*command, "--csv", "shared.csv", "--devices", "cpu")
    assert done.code == 0, done.err
    assert (folder / "shared.csv").read_text() == (folder / "alone.csv").read_text()
    assert done.out == alone.out.replace("alone.csv", "shared.csv")
    compared = segdream("evaluate", "--compare", "assets/red.ply", "assets/blue.ply", "--metrics", "health")
    shared = ("--metrics", "health", "--devices", "cpu")
    assert segdream("evaluate", "--compare", "assets/red.ply", "assets/blue.ply", *shared).out == compared.out


@pytest.mark.usefixtures("one_worker")
def test_evaluate_shows_what_was_measured_before_a_signal(segdream, assets, monkeypatch):
    real = Dispatcher.run

    def stop_early(self: Dispatcher) -> Tally:
        report = self.reporter

        def stop_after_one(event: Any) -> None:
            report(event)
            if isinstance(event, JobFinished):
                self.stop.exit_code = 130
                self.stop.set()

        self.reporter = stop_after_one
        return real(self)

    monkeypatch.setattr(Dispatcher, "run", stop_early)
    done = segdream("evaluate", "assets", "--metrics", "health", "--devices", "cpu")
    assert done.code == 130
    assert "stopped after 1 of 3 assets" in done.err
    assert "green" in done.out
    assert "blue" not in done.out


@pytest.mark.parametrize(
    ("words", "text", "hint"),
    [
        (
            (*MANY, "-o", "a.png", "--devices", "cpu"),
            "a.png would be written for both",
            "{stem}.png",
        ),
        ((*MANY, "--devices", "gpu"), "is not a list of devices", "--devices 0,1"),
        (
            (*MANY, "--devices", "cpu", "--caption", "x"),
            "--caption can't be combined",
            "--devices cpu",
        ),
        (
            (*MANY, "--devices", "cpu", "--device", "cpu"),
            "--device can't be combined",
            "--devices cpu",
        ),
        (("render", "assets/red.ply", *VIEW, "--gpus-per-worker", "1"), "only affects the workers of --ray", "render"),
        (("evaluate", "assets", "--ray", "local", "--devices", "cpu"), "--devices can't be combined", "--ray local"),
        (("export", "assets/red.ply@1,0,0", "-o", "{stem}.spz", "--devices", "cpu"), "has a place", "-o '{stem}.spz'"),
        (
            ("export", "assets", "-o", "x/{stem}.spz", "-o", "y/{stem}.ply", "--ray", "local"),
            "must be in the same folder",
            "-o 'x/{stem}.spz' --ray local",
        ),
    ],
)
def test_workers_refuse_what_has_no_effect(segdream, assets, words, text, hint):
    done = segdream(*words)
    assert done.code == 2
    assert text in done.err
    assert hint in done.err.partition("hint:")[2]


def test_files_travel_to_a_machine_without_the_folders(assets, folder):
    """A machine with other folders gets the input, and sends all outputs; another attempt replaces the first one's."""
    receiver, messages = Receiver(force=False), []

    def send(message: Any) -> None:
        if isinstance(message, FilePart):
            receiver.take("worker 1", message)
        else:
            messages.append(message)

    outputs = Path("out/red.spz"), Path("out/red.splat")
    job = FileJob("", 0, outputs[0], asset=Path("assets/red.ply"), inputs=(Path("assets/red.ply"),), outputs=outputs)
    work, porter = CommandWork(export.export, ("--quiet", "--skip-existing"), takes_device=False), PartPorter(send)
    (folder / "out").mkdir()
    porter.earlier = {job.output: {name: path.read_bytes() for name, path in job.cargo().items()}}
    shutil.move("assets", "hidden")
    carrier = Carrier(send, porter)
    with FileWorker(work, "cpu", carrier.hear) as worker:
        for number in (1, 2):
            messages.clear()
            carrier.do(worker, Task(number, (job,)), {})
            finished, ended = messages[-2:]
            assert ended == Ended(number, Tally(made=1))
            assert finished.output == job.output
            lines = [line for line, _ in finished.result]
            assert [(line.output, line.asset) for line in lines] == [(path, job.asset) for path in outputs]
    assert sorted(content(folder / "out")) == ["red.splat", "red.spz"]


@pytest.mark.parametrize("name", ["red-frames/../x.png", "other/x.png", "red-frames/..", "../x.png"])
def test_receiver_refuses_files_outside_a_folder_of_frames(folder, name):
    part = FilePart(Path("red-frames"), name, 0, 1, b"x")
    with pytest.raises(Exception, match="no file of a run"):
        Receiver(force=False).take("worker 1", part)
    Receiver(force=False).take("worker 1", FilePart(Path("red-frames"), "red-frames/frame-0000.png", 0, 1, b"x"))
    assert list(content(folder)) == ["red-frames/frame-0000.png"]


def test_process_of_a_missing_device_is_refused(segdream, assets):
    done = segdream(*MANY, "-o", "{stem}.png", "--devices", "7")
    assert done.code == 3
    assert "--devices cpu" in done.err
