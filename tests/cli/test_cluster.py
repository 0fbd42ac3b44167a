"""Lists on a Ray cluster of this machine, with faults: each asset is made once, with the bits of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cluster_workers
import pytest
import torch
from commands import TINY

from segdream_cli.errors import EnvironmentProblem, UsageProblem
from segdream_cli.runs import cluster
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.spec import JobSpec, Request

SMALL = tuple(part for part in TINY if part not in ("--device", "cpu"))
COLORS = ("red", "blue", "green", "white", "black", "yellow", "orange", "purple")
STEPS = 12
LIMIT_S = 400


def ended(process: SimpleNamespace) -> dict[str, Any]:
    """The last line of a list with `--json`."""
    return next(line for line in map(json.loads, process.out.splitlines()) if line["event"] == "list")


class Nodes:
    """A cluster whose head computes nothing, and the machines that a test adds."""

    def __init__(self, made: Any, faults: Path) -> None:
        self._made, self.faults, self.added = made, faults, []

    @property
    def address(self) -> str:
        return self._made.address

    def add(self, count: int = 1) -> list[Any]:
        new = [cluster_workers.add_machine(self._made) for _ in range(count)]
        self.added += new
        return new

    def kill(self, node: Any) -> None:
        self.added.remove(node)
        self._made.remove_node(node, allow_graceful=False)

    def hold(self) -> None:
        """Lets each worker pause in the middle of its first asset, until `proceed`."""
        (self.faults / "hold").touch()

    def proceed(self) -> None:
        (self.faults / "hold").unlink()

    def held(self) -> int:
        """Number of workers that pause."""
        return len(list(self.faults.glob("held-*")))

    def workers(self, node: Any) -> list[int]:
        """Processes of the workers that have started on a machine."""
        return [
            int(path.name.partition("-")[2])
            for path in self.faults.glob("worker-*")
            if path.read_text() == node.node_id
        ]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[tuple[Any, Path]]:
    pytest.importorskip("ray", reason='the extra "cluster" is not installed')
    faults = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster_workers.settings(faults).items():
            patch.setenv(name, value)
        made = cluster_workers.start_head()
        try:
            yield made, faults
        finally:
            made.shutdown()


@pytest.fixture
def nodes(head) -> Iterator[Nodes]:
    """A cluster without machines, and no faults."""
    made, faults = head
    for path in faults.iterdir():
        path.unlink()
    found = Nodes(made, faults)
    yield found
    for node in list(found.added):
        found.kill(node)


@pytest.fixture
def listed(segdream, folder, prior) -> Iterator[Callable[..., Any]]:
    """A list of prompts; the bits that one process makes of it; and a driver that makes it on a cluster."""
    prior(lambda profile: cluster_workers.AnalyticPrior(profile=profile))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU

    def start(nodes: Nodes, count: int, *arguments: str) -> Any:
        prompts = [f"a {color} ball" for color in COLORS[:count]]
        (folder / "list.txt").write_text("\n".join(prompts))
        command = ("generate", "--prompts", "list.txt", *SMALL, "--steps", STEPS, *arguments)
        alone = segdream(*command, "--device", "cpu", "--out-dir", "alone")
        assert alone.code == 0, alone.err
        return Driver(
            folder,
            [*command, "--out-dir", "assets", "--ray", nodes.address, "--gpus-per-worker", "0"],
            count,
            nodes.faults,
        )

    yield start
    torch.set_num_threads(threads)


DRIVER = "from segdream_cli.runs import dispatcher; dispatcher.LOSSES = 2\n" + cluster_workers.DRIVER


class Driver:
    """A process that makes a list on a cluster."""

    def __init__(self, folder: Path, command: list[Any], count: int, faults: Path) -> None:
        self.folder, self.command, self.count = folder, [str(part) for part in command], count
        self.faults = faults

    def start(self, *arguments: str) -> "Driver":
        """Starts it."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *self.command, *arguments, "--json"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """The first true value of a condition."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and self.process.poll() is None:
            if found := condition():
                return found
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError("\n".join(self.process.communicate()))

    def steps(self) -> dict[str, int]:
        """Number of steps of each run that has begun."""
        return {
            path.parent.stem: len(path.read_text().splitlines())
            for path in (self.folder / "assets").glob("*.run/events.jsonl")
        }

    def end(self) -> SimpleNamespace:
        """Waits for its end."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        assert "Traceback" not in err, err
        return SimpleNamespace(code=self.process.returncode, out=out, err=err)

    def check(self, done: SimpleNamespace) -> dict[str, Any]:
        """Each asset was made once, with the bits of one process; returns the summary."""
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in done.out.splitlines()]
        outputs = [line["output"] for line in lines if line["event"] in ("done", "skipped")]
        assert len(outputs) == len(set(outputs)) == self.count
        written = (self.faults / "written").read_text().splitlines()
        assert len(written) == len(set(written))
        for path in (self.folder / "alone").glob("*.ply"):
            assert (self.folder / "assets" / path.name).read_bytes() == path.read_bytes(), path.name
            events = (self.folder / "assets" / f"{path.stem}.run" / "events.jsonl").read_text().splitlines()
            assert [json.loads(event)["step"] for event in events] == list(range(1, STEPS + 1))
        assert not list((self.folder / "assets").glob(".*"))
        summary = ended(done)
        assert summary["made"] + summary["skipped"] == self.count
        return summary


@pytest.mark.slow
def test_killed_machine_and_killed_worker_are_replaced_and_their_assets_resume(nodes, listed):
    """The machine is replaced by one that joins late, the worker on the same machine."""
    first, second = nodes.add(2)
    nodes.hold()
    driver = listed(nodes, 4, "--set", "output.checkpoint_every=2").start()
    driver.wait_for(lambda: nodes.held() == 2)
    nodes.kill(first)
    nodes.add()
    os.kill(nodes.workers(second)[0], signal.SIGKILL)
    nodes.proceed()
    done = driver.end()
    summary = driver.check(done)
    assert summary["lost"] == 2
    assert summary["retried"] == 2
    assert done.err.count("resuming assets/") == 2
    assert done.err.count("was lost with its ") == 2
    assert "was lost with its process" in done.err


@pytest.mark.slow
def test_killed_driver_is_started_again(nodes, listed):
    nodes.add()
    nodes.hold()
    driver = listed(nodes, 3, "--set", "output.checkpoint_every=2").start()
    driver.wait_for(nodes.held)
    nodes.add()  # pauses too
    driver.wait_for(lambda: nodes.held() == 2)
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.process.communicate()
    nodes.proceed()
    done = driver.start().end()
    driver.check(done)
    assert done.err.count("resuming assets/") == 2


@pytest.mark.slow
def test_signal_saves_all_assets(nodes, listed):
    nodes.add(2)
    driver = listed(nodes, 3).start("--steps", "100000")
    driver.wait_for(lambda: len(driver.steps()) == 2)
    driver.process.send_signal(signal.SIGTERM)
    done = driver.end()
    assert done.code == 143
    assert done.err.count("segdream generate --resume assets/") == 2
    assert "repeat the command to resume the whole list" in done.err
    assert len(list((driver.folder / "assets").glob("*.run/checkpoint.safetensors"))) == 2


@pytest.mark.slow
def test_assets_of_a_machine_with_a_full_disk_are_made_elsewhere(nodes, listed):
    full, _ = nodes.add(2)
    (nodes.faults / f"full-{full.node_id}").touch()
    nodes.hold()
    driver = listed(nodes, 8).start()
    driver.wait_for(lambda: nodes.held() == 2)
    nodes.proceed()
    done = driver.end()
    summary = driver.check(done)
    assert summary["retried"] >= 1
    assert "the disk is full" in done.err


@pytest.mark.slow
def test_asset_of_a_slow_machine_moves(nodes, listed):
    slow, _ = nodes.add(2)
    nodes.hold()
    driver = listed(nodes, 3).start()
    driver.wait_for(lambda: nodes.held() == 2)
    (nodes.faults / f"slow-{nodes.workers(slow)[0]}").touch()
    nodes.proceed()
    assert driver.check(driver.end())["moved"] == 1


@pytest.mark.slow
def test_asset_that_kills_its_workers_is_given_up(nodes, listed):
    nodes.add(2)
    (nodes.faults / "poison").write_text("a blue ball")
    driver = listed(nodes, 3).start()
    done = driver.end()
    assert done.code == 1
    assert ended(done)["given_up"] == ["assets/a_blue_ball.ply"]
    assert ended(done)["made"] == 2
    assert "given up after 2 attempts" in done.err


@pytest.mark.slow
def test_files_travel_from_a_machine_without_the_folder(nodes, listed, monkeypatch):
    """A machine is killed, and its asset resumes on the other one from the checkpoint that has travelled."""
    blind, other = nodes.add(2)
    (nodes.faults / f"blind-{blind.node_id}").touch()
    (nodes.faults / f"blind-{other.node_id}").touch()
    nodes.hold()
    driver = listed(nodes, 4, "--set", "output.checkpoint_every=2", "--set", "output.preview_every=6").start()
    driver.wait_for(lambda: nodes.held() == 2)
    driver.wait_for(lambda: len(list((driver.folder / "assets").glob("*.run/checkpoint.safetensors"))) == 2)
    nodes.kill(blind)
    nodes.proceed()
    done = driver.end()
    driver.check(done)
    assert "it does not see the folder of the assets" in done.err
    assert "resuming" in done.err
    assert len(list((driver.folder / "assets").glob("*.run/preview-*.png"))) == 8
    assert not list((driver.folder / "assets").glob("*.run/checkpoint.safetensors"))


FILES = (
    ("export", "made", "-o", "{place}/{stem}.spz", "-o", "{place}/{stem}.splat"),
    ("evaluate", "made", "--metrics", "health", "--csv", "{place}.csv"),
)
MANY = f"""
import sys
sys.path[:0] = {cluster_workers.PATHS!r}
import cluster_workers
from segdream_cli.runs import cluster
cluster.Actor = cluster_workers.TestActor
from segdream_cli.cli import run
address, *commands = sys.argv[1:]
sys.exit(max(run([*each.split("|"), "--ray", address, "--gpus-per-worker", "0"]) for each in commands))
"""


@pytest.mark.slow
def test_files_of_many_assets_are_made_on_machines_with_and_without_the_folders(nodes, segdream, folder):
    blind, _ = nodes.add(2)
    (nodes.faults / f"blind-{blind.node_id}").touch()
    (folder / "made").mkdir()
    for color in COLORS[:4]:
        options = ("--init", "sphere", "--set", "init.count=20")
        assert segdream("init", f"a {color} ball", *options, "-o", f"made/{color}.ply").code == 0
    commands = [[word.replace("{place}", "there") for word in command] for command in FILES]
    (folder / "there").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MANY, nodes.address, *("|".join(command) for command in commands)],
        text=True, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("4 made, 0 skipped, 0 failed") == 2
    assert "it does not see the folder" in done.stderr
    assert "Traceback" not in done.stderr
    (folder / "here").mkdir()
    for color in COLORS[:4]:
        words = [word.replace("{place}", "here").replace("made", f"made/{color}.ply") for word in FILES[0]]
        assert segdream(*words).code == 0
    assert segdream(*(word.replace("{place}", "here") for word in FILES[1])).code == 0
    there, here = ({path.name: path.read_bytes() for path in (folder / place).iterdir()} for place in ("there", "here"))
    assert len(here) == 8
    assert there == here
    assert (folder / "there.csv").read_bytes() == (folder / "here.csv").read_bytes()
    assert not list((folder / "made").glob(".*"))


def test_cluster_without_room_is_refused(nodes, segdream, folder):
    nodes.add()
    (folder / "list.txt").write_text("a red ball")
    command = ("generate", "--prompts", "list.txt", "--out-dir", "assets", *SMALL, "--ray", nodes.address)
    done = segdream(*command)
    assert done.code == 3
    assert "the cluster has no GPU: 2 machines, 0 GPUs, 1 CPUs" in done.err
    done = segdream(*command, "--gpus-per-worker", "0", "--cpus-per-worker", "64")
    assert done.code == 3
    assert "no machine of the cluster has 64 CPUs for a worker" in done.err
    assert "--cpus-per-worker 1" in done.err


# ---------------------------------------------------------------------------------------------------- without Ray


class FakeRay:
    """Machines, each with GPUs and CPUs, and a list of what each actor asks for."""

    def __init__(self, *machines: tuple[int, int]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._nodes = [
            {"Alive": True, "NodeID": f"node {number}", "Resources": {"GPU": gpus, "CPU": cpus}}
            for number, (gpus, cpus) in enumerate(machines)
        ]
        self.poll = self.assign = SimpleNamespace(remote=lambda *_: object())

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def remote(self, *_: Any) -> "FakeRay":
        return self

    def options(self, **asked: Any) -> "FakeRay":
        self.asked.append(asked)
        return self


@pytest.mark.parametrize(
    ("gpus", "cpus", "machines", "workers"),
    [
        (1.0, 1, [(2, 32)], 2),
        (0.5, 1, [(2, 32)], 4),
        (1.0, 16, [(8, 32), (1, 4)], 2),
        (0.3, 1, [(1, 8)], 3),
        (0.0, 2, [(0, 5), (0, 2)], 3),
    ],
)
def test_workers_ask_for_gpus_as_far_as_there_is_room(tmp_path, gpus, cpus, machines, workers):
    spec = JobSpec(request=Request(), jobs=())
    ray = FakeRay(*machines)
    crew = cluster.RayCrew(ray, spec, cluster.ClusterOptions("local", gpus, cpus), {})
    crew.check_room()
    assert len(crew.hire(2, ())) == min(2, workers)
    assert len(crew.hire(100, ())) == workers - min(2, workers)
    assert [(asked["num_gpus"], asked["num_cpus"]) for asked in ray.asked] == [(gpus, cpus)] * workers
    assert {asked["scheduling_strategy"] for asked in ray.asked} == {"SPREAD"}


def test_ray_that_is_missing_is_named(segdream, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (folder / "list.txt").write_text("a red ball")
    done = segdream("generate", "--prompts", "list.txt", "--out-dir", "assets", *SMALL, "--ray", "auto")
    assert done.code == 3
    assert "--ray needs the package ray" in done.err
    assert 'pip install "segdream[cluster]"' in done.err


def test_probes_are_removed_also_those_of_a_killed_driver(tmp_path):
    left = tmp_path / ".probe.aaaaaaaa.partial.txt"
    left.touch()
    spec = JobSpec(request=Request(), jobs=(Job("a red ball", 0, tmp_path / "a.ply"),))
    with cluster._probes(spec) as probes:
        (probe,) = tmp_path.iterdir()
        assert probes == {tmp_path: str(probe)}
        assert probe != left
    assert not list(tmp_path.iterdir())


@pytest.fixture
def server() -> Iterator[Callable[[bytes], str]]:
    """Listens at an address, and answers with some bytes, or not at all."""
    sockets = []

    def listen(answer: bytes) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve() -> None:
            with listening.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(answer)
                if not answer:
                    connection.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield listen
    for each in sockets:
        each.close()


def test_find_head_wants_an_answer_of_grpc(server, monkeypatch):
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    address = server(settings)
    assert cluster._find_head(address) == address
    monkeypatch.setenv("RAY_ADDRESS", address := server(settings))
    assert cluster._find_head("auto") == address
    with pytest.raises(EnvironmentProblem, match="it is another service"):
        cluster._find_head(server(b"HTTP/1.1 400 Bad Request\r\n"))
    monkeypatch.setattr(cluster, "ANSWER_S", 0.2)
    with pytest.raises(EnvironmentProblem, match="no answer within 20 s"):
        cluster._find_head(server(b""))
    with pytest.raises(EnvironmentProblem, match="Connection refused"):
        cluster._find_head("127.0.0.1:1")


def test_find_head_names_a_machine_without_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="belongs to no Ray cluster"):
        cluster._find_head("auto")


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head:10001", "http://head:8265"])
def test_find_head_refuses_other_texts(address):
    with pytest.raises(UsageProblem, match="is not local, auto or HOST:PORT"):
        cluster._find_head(address)


@pytest.mark.parametrize(("address", "given"), [("local", "local"), ("auto", "auto"), ("head:1", "head:1")])
def test_ray_is_asked_for_the_right_cluster(monkeypatch, address, given):
    """Without "local", Ray joins a cluster that this machine belongs to; it looks for a token with "auto" alone."""
    asked = []
    ray = SimpleNamespace(init=lambda **options: asked.append(options["address"]), shutdown=lambda: None)
    monkeypatch.setattr(cluster, "_find_head", lambda address: "head:1")
    with cluster._connection(ray, cluster.ClusterOptions(address)):
        pass
    assert asked == [given]


@pytest.mark.parametrize(("mode", "hint"), [(None, "export RAY_AUTH_MODE=token"), ("token", "ray status")])
def test_cluster_that_refuses_names_the_token(monkeypatch, mode, hint):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)

    def init(**_):
        raise ConnectionError("Failed to connect to Ray cluster at head:1")

    options = cluster.ClusterOptions("local")
    with (
        pytest.raises(EnvironmentProblem, match="Failed to connect") as raised,
        cluster._connection(SimpleNamespace(init=init), options),
    ):
        pass
    assert raised.value.hint.startswith(hint)


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: {}
    Python: {}
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.mark.parametrize(
    ("ray", "python", "hint"),
    [
        ("2.50.0", "3.11.7", "pip install ray==2.50.0"),
        ("2.60.0", "3.12.1", 'uv venv --python 3.12.1 && pip install "segdream[cluster]"'),
    ],
)
def test_other_versions_of_the_cluster_are_named(ray, python, hint):
    def init(**_):
        raise RuntimeError(MISMATCH.format(ray, python))

    options = cluster.ClusterOptions("local")
    with pytest.raises(EnvironmentProblem) as raised, cluster._connection(SimpleNamespace(init=init), options):
        pass
    message = f"the cluster has Ray {ray} and Python {python}, and this machine Ray 2.60.0 and Python 3.11.7"
    assert (raised.value.message, raised.value.hint) == (message, hint)


def test_options_of_workers_need_ray(segdream):
    done = segdream("generate", "a red ball", "--cpus-per-worker", "2")
    assert done.code == 2
    assert "--cpus-per-worker only affects the workers of --ray" in done.err


def test_ray_and_devices_exclude_each_other(segdream):
    done = segdream("generate", "a red ball", "--ray", "auto", "--devices", "0")
    assert done.code == 2
    assert "--devices can't be combined with --ray" in done.err
