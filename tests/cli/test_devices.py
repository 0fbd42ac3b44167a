"""A list shared out among devices: every asset is made once, as one process would have made it, and can be stopped."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import workers
from commands import TINY

from segdream_cli import cli
from segdream_cli.config import MINI
from segdream_cli.errors import Interrupted, OutOfMemory, OutputExists, UsageProblem, WeightsUnavailable
from segdream_cli.runs import processes
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.processes import parse_devices
from segdream_cli.runs.reporter import AssetFinished, Event, JobFailed, ListEnded, Note, Reporter
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util.devices import visible_device

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
PROMPTS = "a red car\na blue mug\na green cactus\n"
LIMIT_S = 240
SMALL = tuple(part for part in TINY if part not in ("--device", "cpu"))


def start(folder: Path, *arguments: str, prompts: str = "list.txt") -> subprocess.Popen[str]:
    (folder / "list.txt").write_text(PROMPTS)
    command = [sys.executable, "-m", "segdream_cli", "generate", "--prompts", prompts, *SMALL, *arguments]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread, as the processes do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_devices_make_what_one_process_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = start(tmp_path, "--out-dir", "shared", "--devices", "cpu,cpu", "--steps", "2", prompts="-")
    out, err = shared.communicate(PROMPTS, timeout=LIMIT_S)
    assert shared.returncode == 0, err
    names = {"a_red_car.ply", "a_blue_mug.ply", "a_green_cactus.ply"}
    assert {Path(line).name for line in out.splitlines()} == names
    assert len(out.splitlines()) == 3
    for title in ("[1/3] a red car", "[2/3] a blue mug", "[3/3] a green cactus"):
        assert err.count(title) == 1
    monkeypatch.chdir(tmp_path)
    alone = ("generate", "--prompts", "list.txt", *SMALL, "--out-dir", "alone", "--device", "cpu", "--steps", "2")
    assert cli.run(alone) == 0
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_devices_exit_with_the_code_of_a_failed_one(tmp_path: Path) -> None:
    taken = tmp_path / "assets" / "a_blue_mug.run"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    process = start(tmp_path, "--out-dir", "assets", "--devices", "cpu,cpu", "--steps", "1")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "is not a run folder" in err
    assert (tmp_path / "assets" / "a_green_cactus.ply").exists()


@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)])
def test_devices_are_all_stopped_by_one_signal(tmp_path: Path, number: int, group: bool, code: int) -> None:
    """Ctrl-C in a terminal reaches the whole group of processes, `kill` the first one only."""
    process = start(tmp_path, "--out-dir", "assets", "--devices", "cpu,cpu", "--steps", "100000")
    runs = [tmp_path / "assets" / f"{name}.run" for name in ("a_red_car", "a_blue_mug")]
    end = time.monotonic() + LIMIT_S
    while not all((run / "events.jsonl").exists() for run in runs) and time.monotonic() < end:
        time.sleep(0.1)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.count("segdream generate --resume") == 2
    assert all((run / "checkpoint.safetensors").exists() for run in runs)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tally]:
    """Makes three jobs in two processes that do `work`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def start(
        work: Callable[[JobSpec, Connection], None],
        reporter: Reporter,
        stop: StopRequest | None = None,
        **options: bool,
    ) -> Tally:
        jobs = tuple(Job("a red car", seed, Path(f"{seed}.ply")) for seed in range(3))
        spec = JobSpec(request=Request(settings={"prior.name": MINI}), jobs=jobs, **options)
        monkeypatch.setattr(processes, "_work", work)
        return processes.run_on_devices(spec, ["cpu", "cpu"], reporter, stop or StopRequest())

    return start


def test_run_on_devices_relays_events_and_adds_up(run) -> None:
    events: list[Event] = []
    assert run(workers.make_all, events.append) == Tally(made=3)
    texts = [event.text for event in events if isinstance(event, Note)]
    assert sorted(text[:6] for text in texts if text.startswith("seed")) == ["seed 0", "seed 1", "seed 2"]
    assert [type(event) for event in events].count(AssetFinished) == 3


def test_run_on_devices_replaces_a_process_that_crashes(run) -> None:
    events: list[Event] = []
    assert run(workers.crash_once_with_seed_0, events.append) == Tally(made=3)
    assert [event.text for event in events if isinstance(event, Note) and "ended" in event.text] == [
        "the process of cpu ended with exit code 9"
    ]
    (ended,) = [event for event in events if isinstance(event, ListEnded)]
    assert (ended.made, ended.lost, ended.retried) == (3, 1, 1)


def test_run_on_devices_gives_up_an_asset_that_crashes_every_process(run) -> None:
    events: list[Event] = []
    assert run(workers.crash_with_seed_0, events.append, as_list=True) == Tally(made=2, failed=1)
    (failed,) = [event for event in events if isinstance(event, JobFailed)]
    assert failed.output == Path("0.ply")
    assert failed.problem.message == "given up after 4 attempts: the process of cpu ended with exit code 9"
    assert failed.problem.hint == "--device cpu  # shows what happens in one process"


def test_run_on_devices_raises_the_highest_exit_code_and_reports_the_rest(run) -> None:
    events: list[Event] = []
    with pytest.raises(OutputExists):
        run(workers.fail, events.append)
    assert {type(event.problem) for event in events if isinstance(event, JobFailed)} <= {OutputExists, OutOfMemory}


def test_run_on_devices_raises_why_no_process_can_begin(run) -> None:
    with pytest.raises(WeightsUnavailable, match="no weights"):
        run(workers.lack_weights, lambda _: None, as_list=True)


def test_run_on_devices_passes_a_stop_on(run) -> None:
    stop = StopRequest()
    stop.exit_code = 143
    with pytest.raises(Interrupted) as stopped:
        run(workers.wait_for_stop, lambda event: event == Note("started") and stop.set(), stop)
    assert stopped.value.exit_code == 143


def test_run_on_devices_leaves_no_process_behind(run) -> None:
    def interrupt(event: Event) -> None:
        if event == Note("started"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(workers.wait_for_stop, interrupt)
    assert not multiprocessing.active_children()


def test_parse_devices() -> None:
    assert parse_devices("0, 1,3") == ["cuda:0", "cuda:1", "cuda:3"]
    assert parse_devices("cpu,0") == parse_devices("cpu,cuda:0") == ["cpu", "cuda:0"]


def test_visible_device_ignores_leading_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for written, meant in (("cuda:00", "cuda:0"), ("cuda:01", "cuda:1"), ("cuda", "cuda"), ("cpu:0", "cpu:0")):
        assert visible_device(written) == torch.device(meant)


@pytest.mark.parametrize("text", ["", "gpu", "0,,1", "0;1", "-1"])
def test_parse_devices_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageProblem, match="not a list of devices"):
        parse_devices(text)


def test_devices_and_device_exclude_each_other(segdream):
    done = segdream("generate", "a red car", "--devices", "0", "--device", "cpu")
    assert done.code == 2
    assert "--device can't be combined with --devices" in done.err
