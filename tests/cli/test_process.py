"""The command line as processes: signals, pipes, terminals, shells. A process costs seconds, so runs are shared."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from commands import BUS, SIX, TINY
from test_options import random_splats

from segdream_cli import formats
from segdream_cli.config import MINI

ROOT = Path(__file__).resolve().parents[2]
REAL = [sys.executable, "-m", "segdream_cli"]
ENDLESS = (*TINY, "--steps", "100000")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
LIMIT_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and shells of POSIX")]


def run(command, folder, **options):
    """The finished process of a command."""
    given = {"capture_output": True, "text": True, "cwd": folder, "env": ENVIRONMENT, "timeout": LIMIT_S}
    return subprocess.run([*command], check=False, **(given | options))


class Started:
    """A process that is under way, and its run folder."""

    def __init__(self, command, folder, run_folder):
        self.events = folder / run_folder / "events.jsonl"
        self.process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def steps(self):
        return self.events.read_text().count("\n") if self.events.exists() else 0

    def wait_for(self, steps):
        """Returns once so many steps are done, or fails with what the process said."""
        end = time.monotonic() + LIMIT_S
        while self.steps() < steps:
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                pytest.fail(f"no {steps} steps: {self.process.communicate()}")
            time.sleep(0.01)

    def finish(self):
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_saves_the_run_and_prints_a_command_that_works(launcher, tmp_path, number, code):
    folder = tmp_path / "meine Büsse 日本"
    folder.mkdir()
    started = Started([*launcher, "generate", BUS, "-o", "der gelbe.ply", *ENDLESS], folder, "der gelbe.run")
    started.wait_for(3)
    started.process.send_signal(number)
    ended, out, err = started.finish()
    assert (ended, out) == (code, "")
    assert "Traceback" not in err
    assert "stopping after this step" in err
    done = started.steps()
    assert f"stopped after step {done} of 100000" in err
    words = shlex.split(err.strip().splitlines()[-1])
    assert words == ["segdream", "generate", "--resume", "der gelbe.run"]
    assert sorted(path.name for path in folder.rglob("*")) == [
        "checkpoint.safetensors", "der gelbe.run", "events.jsonl", "run.json",
    ]  # fmt: skip
    if number != signal.SIGINT:
        return  # to go on is the same after either
    again = Started([*launcher, *words[1:]], folder, "der gelbe.run")
    again.wait_for(done + 2)
    again.process.send_signal(number)
    ended, _, err = again.finish()
    assert ended == code
    assert f"resuming der gelbe.run after step {done} of 100000" in err
    lines = [json.loads(line)["step"] for line in started.events.read_text().splitlines()]
    assert lines == list(range(1, len(lines) + 1))


def test_second_ctrl_c_leaves_at_once(tmp_path):
    """A step that would take a minute, so that only the second signal can end the process."""
    script = tmp_path / "slow.py"
    tests = ROOT / "tests"
    script.write_text(
        f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(tests)!r}, {str(tests / "cli")!r}]
from pathlib import Path
from cluster_workers import replace_prior
from fakes import AnalyticPrior
from segdream_cli.cli import main

class Slow(AnalyticPrior):
    def predict_noise(self, latents, timesteps, text):
        if Path("bus.run/events.jsonl").exists():
            Path("asleep").touch()
            for _ in range(6000):
                time.sleep(0.01)
        return super().predict_noise(latents, timesteps, text)

replace_prior(Slow)
main()
"""
    )
    started = Started([sys.executable, str(script), "generate", BUS, "-o", "bus.ply", *ENDLESS], tmp_path, "bus.run")
    started.wait_for(1)
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "asleep").exists() and time.monotonic() < end:
        time.sleep(0.01)
    started.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert started.process.poll() is None  # the first one waits for the step
    begin = time.monotonic()
    started.process.send_signal(signal.SIGINT)
    code, out, err = started.finish()
    assert time.monotonic() - begin < 20
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert not (tmp_path / "bus.run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("writing", [True, False])
def test_ctrl_c_leaves_no_temporary_file(tmp_path, writing):
    script = tmp_path / "write.py"
    block = 'atomic_write(Path("bus.ply"))' if writing else "nullcontext()"
    script.write_text(
        f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from contextlib import nullcontext
from pathlib import Path
from segdream_cli import cli
from segdream_cli.util.files import atomic_write

def app(**_):
    with {block}:
        Path("started").touch()
        time.sleep({LIMIT_S})

cli.app = app
sys.exit(cli.run([]))
"""
    )
    started = Started([sys.executable, str(script)], tmp_path, "none.run")
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    started.process.send_signal(signal.SIGINT)
    assert started.finish() == (130 if writing else -signal.SIGINT, "", "")  # a shell shows 130 for either
    assert sorted(path.name for path in tmp_path.iterdir()) == ["started", "write.py"]


@pytest.mark.slow
def test_resume_after_kill_9_gives_the_same_bits(tmp_path):
    """With the real networks, in a round of refinement: the checkpoint holds everything the next step depends on."""
    arguments = (
        "generate", BUS, "--prior", MINI, "--device", "cpu", "--seed", "7", "--steps", "4", "--quiet",
        "--init", "sphere", "--set", "init.count=400", "--set", "densify.cap=600",
        "--set", "densify.start=1", "--set", "densify.every=2",
        "--set", "output.checkpoint_every=5", "--set", "refine.views=[4,4]", "--set", "refine.steps=[2,2]",
        "--set", "refine.iterations=[4,4]", "--set", "refine.gaussians=[0,0]",
        "--set", "refine.image_size=[0,128]", "--set", "refine.t0=[400,300]",
    )  # fmt: skip
    whole = run([*REAL, *arguments, "-o", "whole.ply"], tmp_path)
    assert (whole.returncode, whole.stdout, whole.stderr) == (0, "whole.ply\n", "")
    started = Started([*REAL, *arguments, "-o", "cut.ply"], tmp_path, "cut.run")
    started.wait_for(6)
    started.process.kill()
    assert started.finish()[0] == -signal.SIGKILL
    assert not (tmp_path / "cut.ply").exists()
    resumed = run([*REAL, "generate", "--resume", "cut.run", "--device", "cpu"], tmp_path)
    assert (resumed.returncode, resumed.stdout) == (0, "cut.ply\n")
    assert "resuming cut.run after step" in resumed.stderr
    assert (tmp_path / "cut.ply").read_bytes() == (tmp_path / "whole.ply").read_bytes()
    events = [json.loads(line) for line in started.events.read_text().splitlines()]
    assert [event["step"] for event in events] == list(range(1, 13))
    assert events[-1]["n_gaussians"] == [600]


@pytest.mark.parametrize(
    ("gib", "command"),
    [
        *((gib, ("generate", BUS, "-o", "bus.ply", *SIX)) for gib in (0.1, 0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 3.9)),
        (0.4, ("render", "bus.ply", "--turntable")),
        (0.4, ("doctor",)),
    ],
)
def test_low_limit_of_address_space_is_refused(tmp_path, gib, command):
    """Below it the libraries abort (torch while it is imported) or hang (oneTBB, which waits for memory)."""
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)

    ended = run([*REAL, *command], tmp_path, preexec_fn=limit)
    assert (ended.returncode, ended.stdout) == (5, "")
    assert ended.stderr.startswith(f"error: this process may use {gib} GiB of address space, and needs ")
    assert ended.stderr.endswith("\nhint:  ulimit -v unlimited\n")
    assert list(tmp_path.iterdir()) == []


def test_generate_leaves_stdin_to_the_loop_around_it(launcher, tmp_path):
    """`generate PROMPT` must leave standard input to the shell's `read`; `--prompts -` is the one that takes it."""
    (tmp_path / "list.txt").write_text("a red ball\na blue cube\n")
    script = '{ read -r p; "$@" generate "$p" -o "asset 1.ply" $OPTIONS && read -r p && echo "$p"; } < list.txt'
    options = " ".join(part for part in SIX)
    looped = run(["sh", "-c", script, "sh", *launcher], tmp_path, env=ENVIRONMENT | {"OPTIONS": options})
    assert (looped.returncode, looped.stdout) == (0, "asset 1.ply\na blue cube\n")
    assert "\x1b" not in looped.stderr  # neither colours nor a bar off a terminal
    assert "6/6" not in looped.stderr
    command = [*launcher, "generate", "--prompts", "-", "--out-dir", "all of them", "--json", *SIX]
    piped = run(command, tmp_path, input="# a list\na thing unheard of\n")
    assert piped.returncode == 1
    assert [json.loads(line)["event"] for line in piped.stdout.splitlines()] == ["error"]
    assert "0 made, 0 skipped, 1 failed" in piped.stderr


def test_closed_pipe_is_no_crash(tmp_path):
    """Standard output is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run(
            [*REAL, "export", "--formats"], tmp_path, capture_output=False, stdout=writing, stderr=subprocess.PIPE
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_standard_output_is_reported(tmp_path):
    ended = run(["sh", "-c", '"$@" export --formats > /dev/full', "sh", *REAL], tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output can't be written: No space left on device\n"


def test_run_continues_after_the_reader_of_its_messages_has_died(launcher, tmp_path):
    """As in `2>&1 | tee log` when tee is killed: both streams are broken pipes, and the asset is made."""
    script = '"$@" 2>&1 | true; test -f bus.ply'
    command = [*launcher, "generate", BUS, "-o", "bus.ply", *SIX]
    assert run(["sh", "-c", script, "sh", *command], tmp_path).returncode == 0


@pytest.mark.slow
def test_closed_terminal_saves_the_run(launcher, tmp_path):
    """The terminal goes away: SIGHUP arrives, and every write fails from then on."""
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    command = ["setsid", "-c", *launcher, "generate", BUS, "-o", "bus.ply", *ENDLESS]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdin=other, stdout=other, stderr=other)
    os.close(other)
    events, end = tmp_path / "bus.run" / "events.jsonl", time.monotonic() + LIMIT_S
    while not (events.exists() and events.read_text().count("\n") > 2) and time.monotonic() < end:
        time.sleep(0.05)
    os.close(main)
    assert process.wait(timeout=LIMIT_S) == 129
    assert (tmp_path / "bus.run" / "checkpoint.safetensors").is_file()


def test_closed_stdout_is_no_crash(tmp_path):
    ended = run(["sh", "-c", '"$@" --version >&-', "sh", *REAL], tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_text_beyond_the_terminals_encoding_is_printed(tmp_path):
    """An ASCII-only terminal: a prompt and a path beyond it are shown in some way, and the exit code stays right."""
    plain = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    command = [*REAL, "generate", "ein süßer 日本", "-o", "süß.ply", "--prior", MINI, "--device", "cpu"]
    ended = run(command, tmp_path, env=plain)
    assert ended.returncode == 2
    assert "error: mini does not know" in ended.stderr
    cloud = [*REAL, "init", BUS, "--init", "sphere", "--count", "9", "-o", "süß 日本.ply", "--prior", MINI]
    ended = run(cloud, tmp_path, env=plain)
    assert (ended.returncode, ended.stdout) == (0, "süß 日本.ply\n"), ended.stderr
    assert (tmp_path / "süß 日本.ply").is_file()


def on_a_terminal(command, folder, environment):
    """What a command writes to a terminal, and its exit code."""
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=other, stdout=other, stderr=other)
    os.close(other)
    said = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not part:
            break
        said += part
    os.close(main)
    return process.wait(timeout=LIMIT_S), said.decode()


COLORS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7]|4[0-7])(?:;\d+)*m")


def test_no_color_is_respected(launcher, tmp_path):
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment["TERM"] = "xterm-256color"
    colored = [*REAL, "generate", "--help"]
    code, said = on_a_terminal(colored, tmp_path, environment)
    assert code == 0
    assert COLORS.search(said)
    for command in (colored, [*launcher, "generate", BUS, "-o", "b.ply", *SIX]):
        code, said = on_a_terminal(command, tmp_path, environment | {"NO_COLOR": "1"})
        assert code == 0
        assert not COLORS.search(said)
    assert "6/6" in said  # the bar is there, in black and white


class Listening(Started):
    """A process that serves a page, and its address."""

    def __init__(self, command, folder, stream):
        super().__init__(command, folder, "bus.run")
        line = getattr(self.process, stream).readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def get(self, path=""):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=LIMIT_S) as answer:
            return answer.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_view_serves_the_page_until_a_signal(tmp_path, number, code):
    formats.write(tmp_path / "bus.ply", replace(random_splats(), provenance={"prompt": BUS}))
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {opened}\n")
    browser.chmod(0o755)
    command = ["env", f"BROWSER={browser} %s", *REAL, "view", "bus.ply"]
    with Listening(command, tmp_path, "stdout") as started:
        page = started.get().decode()
        assert f"<title>{BUS}</title>" in page
        assert "<dt>Gaussians</dt>" in page
        end = time.monotonic() + LIMIT_S
        while not (opened.exists() and opened.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        assert opened.read_text().strip() == started.url
        started.process.send_signal(number)
        ended, out, err = started.finish()
        assert (ended, out) == (code, "")
        assert err == "press Ctrl-C to end\n"


def test_generate_view_serves_newer_editions(launcher, tmp_path):
    command = [*launcher, "generate", BUS, "-o", "bus.ply", "--view", "--no-browser", *ENDLESS]
    with Listening(command, tmp_path, "stderr") as started:
        assert BUS.encode() in started.get()
        seen = []
        end = time.monotonic() + LIMIT_S
        while len(seen) < 3 and time.monotonic() < end:
            content = started.get(f"newer?after={seen[-1]['number'] if seen else 0}")
            seen += [json.loads(content)] if content else []
            time.sleep(0.1)
        steps = [int(each["facts"]["Steps"]) for each in seen]
        assert steps == sorted(set(steps))
        assert len({each["payload"] for each in seen}) == 3
        started.process.send_signal(signal.SIGINT)
        ended, _, err = started.finish()
        assert ended == 130
        assert "Traceback" not in err
