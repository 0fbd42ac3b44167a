"""`--ray`: workers on the machines of a Ray cluster. This is the only file that knows Ray.

A worker is an actor with a thread of its own for the tasks. The driver asks it for messages all the time, and gets
them in portions: at once if a task ends, else after an interval that grows with the number of workers.
"""

import dataclasses
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import Any

from segdream_cli import __version__
from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.runs.crew import Ended, Lost, Message, Ready, Task, Unfit
from segdream_cli.runs.jobs import FileJob
from segdream_cli.runs.reporter import AssetFinished, JobFailed, JobFinished, Reporter, note_to
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util.compat import silence_ray
from segdream_cli.util.download import cache_folder
from segdream_cli.util.files import atomic_write, scratch_file, sweep, write_problem

LOCAL, AUTO = "local", "auto"
ANSWER_S = 20.0
"""Seconds that an address has to answer."""
LOOK_S = 2.0
"""Seconds between two looks at the machines of the cluster."""
POLL_S = 10.0
"""Longest wait of a worker for a message to hand over."""
PORTIONS_PER_S = 100.0
"""Portions of messages that the driver handles per second, of all workers together."""
SHIP_S, BYTES_PER_S, CHECKPOINT = 5.0, 200e6, 100e6
"""Least seconds between two checkpoints of a worker that travel; bytes per second that the driver takes from all of
them together; bytes of a checkpoint, roughly."""
PORTION = 8 * 2**20
"""Bytes of files in a portion."""
STORE = 512 * 2**20
"""Bytes of the object store of a local cluster."""
EXTRA = 'pip install "segdream[cluster]"'
SETTINGS_FRAME = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of a client of HTTP/2, which gRPC uses: the preface, and an empty frame of settings."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How to use a cluster.

    Args:
        address: of its head, "auto" for the cluster that this machine belongs to, "local" for one that is started here.
        gpus: per worker, at most 1; 0 computes on CPUs.
        cpus: per worker; the number of its threads.
    """

    address: str
    gpus: float = 1.0
    cpus: int = 1


def run_on_ray(spec: JobSpec, options: ClusterOptions, reporter: Reporter, stop: StopRequest) -> Tally:
    """Makes the jobs of a spec with the workers of a cluster.

    Raises:
        EnvironmentProblem: Ray is missing or of another version, the cluster does not answer, or has no room for a
            worker.
        Interrupted, SegdreamError: see `Dispatcher.run`.
    """
    ray = _library()
    from segdream_cli.runs.dispatcher import Dispatcher  # slow imports
    from segdream_cli.runs.survey import survey

    request = dataclasses.replace(
        spec.request,
        device="cuda" if options.gpus else "cpu",
        file=spec.request.file and spec.request.file.absolute(),
    )
    spec = dataclasses.replace(spec, request=request)
    found = survey(spec, note_to(reporter), cuda=options.gpus > 0)
    with _connection(ray, options), _probes(spec) as probes:
        crew = RayCrew(ray, spec, options, probes)
        crew.check_room()
        return Dispatcher(spec, found, crew, reporter, stop).run()


def _library() -> Any:
    """Ray.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as problem:
        raise EnvironmentProblem(f"--ray needs the package ray, which is missing: {problem}", hint=EXTRA) from problem
    silence_ray()
    return ray


@contextmanager
def _connection(ray: Any, options: ClusterOptions) -> Iterator[None]:
    """Connects to the cluster, or starts one here; leaves it after the block.

    Raises:
        EnvironmentProblem: that fails.
    """
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if options.address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            head = _find_head(options.address)
            ray.init(address=AUTO if options.address == AUTO else head, **quiet)  # "auto" also finds a token of Ray
    except RuntimeError as problem:
        if "ersion mismatch" not in str(problem):
            raise EnvironmentProblem(f"Ray does not start: {_first_line(problem)}", hint="ray status") from problem
        raise _version_problem(str(problem)) from problem
    except (ConnectionError, OSError, ValueError, SystemExit) as problem:
        lacks_token = isinstance(problem, ConnectionError) and "RAY_AUTH_MODE" not in os.environ
        raise EnvironmentProblem(
            f"the cluster {options.address} can't be used from this machine: {_first_line(problem)}",
            hint="export RAY_AUTH_MODE=token  # if the cluster wants a token" if lacks_token else "ray status",
        ) from problem
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _version_problem(text: str) -> EnvironmentProblem:
    """The error for a cluster with other versions, from Ray's message, which names both sides."""
    values = [
        line.partition(":")[2].strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))
    ]
    if len(values) != 4:
        return EnvironmentProblem(f"the cluster has another version of Ray: {text.strip().splitlines()[0]}")
    ray, python, own_ray, own_python = values
    hint = f"pip install ray=={ray}" if ray != own_ray else f"uv venv --python {python} && {EXTRA}"
    return EnvironmentProblem(
        f"the cluster has Ray {ray} and Python {python}, and this machine Ray {own_ray} and Python {own_python}",
        hint=hint,
    )


def _find_head(address: str) -> str:
    """The address of a cluster's head, which has answered; "auto" may stay as it is.

    Raises:
        UsageProblem: it is not an address.
        EnvironmentProblem: nothing answers there.
    """
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or _started_here() or AUTO
        if address == AUTO:
            raise EnvironmentProblem("this machine belongs to no Ray cluster", hint="ray start --head")
    host, _, port = address.rpartition(":")
    if "://" in address or not (host and port.isdecimal()):
        raise UsageProblem(f"--ray {address!r} is not local, auto or HOST:PORT", hint="--ray auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            connection.sendall(SETTINGS_FRAME)
            answer = connection.recv(9)
    except OSError as problem:
        reason = "no answer within 20 s" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
        raise EnvironmentProblem(f"no Ray cluster answers at {address}: {reason}", hint="ray status") from problem
    if answer[3:4] != b"\x04":
        raise EnvironmentProblem(f"no Ray cluster answers at {address}: it is another service", hint="ray status")
    return address


def _code_folder() -> Path:
    """Where a driver keeps the code that workers have compiled."""
    return cache_folder() / "compiled"


def _started_here() -> str:
    """The address of the cluster that `ray start` has joined this machine to; empty if there is none."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    with suppress(OSError):
        return (folder / "ray_current_cluster").read_text(encoding="utf-8").strip()
    return ""


@contextmanager
def _probes(spec: JobSpec) -> Iterator[dict[Path, str]]:
    """Puts a file into each folder of the jobs, by which a worker knows whether it sees the folder.

    Yields:
        folder as in the jobs -> path of the file; empty for one that is only read and can't be written.

    Raises:
        UsageProblem: a folder can't be written.
    """
    with ExitStack() as stack:
        files = {}
        written = {job.output.parent for job in spec.jobs if job.proofs}
        for folder in sorted({folder for job in spec.jobs for folder in job.folders}):
            probe = folder.absolute() / "probe.txt"
            sweep(probe.parent, probe.stem)  # those of drivers that were killed
            try:
                files[folder] = str(stack.enter_context(scratch_file(probe)))
            except OSError as problem:
                if folder in written:
                    raise write_problem(problem, folder) from problem
                files[folder] = ""  # inputs that can't be probed travel
        yield files


@dataclass(slots=True)
class _Member:
    """An actor, as seen by the driver."""

    actor: Any
    poll: Any
    host: str = ""
    place: str = ""
    carries: bool = False


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """What a worker has compiled, for other machines of its kind."""

    kind: str
    content: bytes


class RayCrew:
    """The workers of a cluster, as many as its machines have room for.

    Args:
        ray: the library, connected.
        spec: the settings of the jobs.
        options: what a worker gets.
        probes: see `_probes`.
    """

    def __init__(self, ray: Any, spec: JobSpec, options: ClusterOptions, probes: Mapping[Path, str]) -> None:
        from segdream_cli.runs.carry import Receiver

        self._ray, self._options, self._probes = ray, options, dict(probes)
        self._spec = ray.put(dataclasses.replace(spec, jobs=()))
        self._actor = ray.remote(Actor)
        self._members: dict[str, _Member] = {}
        self._count = 0
        self._nodes: list[Mapping[str, Any]] = []
        self._looked_at = float("-inf")
        self._receiver = Receiver(force=spec.force)
        self._code = {path.stem: ray.put(path.read_bytes()) for path in _code_folder().glob("*.bin")}
        """Kind of machines -> compiled code in the object store, for new workers."""

    def _alive(self) -> list[Mapping[str, Any]]:
        """The machines that are up; asks the cluster now and then."""
        if time.monotonic() - self._looked_at > LOOK_S:
            self._nodes = [node for node in self._ray.nodes() if node["Alive"]]
            self._looked_at = time.monotonic()
        return self._nodes

    def _room(self, node: Mapping[str, Any]) -> int:
        """The number of workers that a machine has room for."""
        resources = node["Resources"]
        by_gpu = resources.get("GPU", 0) / self._options.gpus if self._options.gpus else float("inf")
        return int(min(by_gpu, resources.get("CPU", 0) // self._options.cpus) + 1e-9)

    def check_room(self) -> None:
        """Refuses a cluster none of whose machines has room for a worker.

        Raises:
            EnvironmentProblem: it is one.
        """
        nodes = self._alive()
        if any(self._room(node) for node in nodes):
            return
        gpus, cpus = (sum(int(node["Resources"].get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
        largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes), default=0)
        has = f"{len(nodes)} machine{'s' * (len(nodes) != 1)}, {gpus} GPUs, {cpus} CPUs"
        if self._options.gpus and not gpus:
            raise EnvironmentProblem(f"the cluster has no GPU: {has}", hint="--gpus-per-worker 0")
        raise EnvironmentProblem(
            f"no machine of the cluster has {self._options.cpus} CPUs for a worker: {has}",
            hint=f"--cpus-per-worker {max(1, largest)}",
        )

    def hire(self, wanted: int, unfit: Collection[str]) -> list[str]:
        """See `Crew`."""
        room = sum(self._room(node) for node in self._alive() if node["NodeID"] not in unfit)
        started = []
        while len(self._members) < min(wanted, room):
            self._count += 1
            name = f"worker {self._count}"
            options: dict[str, Any] = {
                "num_gpus": self._options.gpus,
                "num_cpus": self._options.cpus,
                "scheduling_strategy": "SPREAD",
                "max_concurrency": 4,
            }
            if unfit:
                options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(unfit))})"}
            files = {folder: (str(folder.absolute()), probe) for folder, probe in self._probes.items()}
            actor = self._actor.options(**options).remote(
                self._spec, files, self._options.cpus, __version__, self._code
            )
            self._members[name] = _Member(actor, actor.poll.remote(*self._intervals()))
            started.append(name)
        return started

    def _intervals(self) -> tuple[float, float]:
        """Seconds between two portions of messages of a worker, and between two of its checkpoints that travel."""
        workers = len(self._members) + 1
        return max(1.0, workers / PORTIONS_PER_S), max(SHIP_S, workers * CHECKPOINT / BYTES_PER_S)

    def has_room(self, unfit: Collection[str]) -> bool:
        """See `Crew`; a machine may join."""
        nodes = self._alive()
        return not nodes or any(node["NodeID"] not in unfit for node in nodes if self._room(node))

    def assign(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        member, files = self._members[worker], dict[Path, Mapping[str, Any]]()
        for job in task.jobs:
            found: Mapping[str, Path] = {}
            if not member.carries:
                self._receiver.release(job.output)
            elif isinstance(job, FileJob):
                found = job.cargo()
            elif task.resume:
                found = self._receiver.earlier(job)
            if found:
                files[job.output] = {name: self._ray.put(path.read_bytes()) for name, path in found.items()}
        member.actor.assign.remote(task, files)

    def recall(self, worker: str, task: int) -> None:
        """See `Crew`."""
        self._members[worker].actor.recall.remote(task)

    def receive(self, timeout_s: float) -> list[tuple[str, Message]]:
        """See `Crew`."""
        polls = {member.poll: name for name, member in self._members.items()}
        if not polls:
            time.sleep(timeout_s)
            return []
        done, _ = self._ray.wait(list(polls), num_returns=1, timeout=timeout_s)
        if done:
            done, _ = self._ray.wait(list(polls), num_returns=len(polls), timeout=0)
        messages = []
        for poll in done:
            name = polls[poll]
            messages += [(name, message) for each in self._collect(name) if (message := self._open(name, each))]
        return messages

    def _collect(self, name: str) -> Sequence[Message]:
        """The messages of a worker whose poll has an answer, after which it is asked again."""
        member = self._members[name]
        try:
            found: Sequence[Message] = self._ray.get(member.poll)
        except self._ray.exceptions.RayError as problem:
            self._forget(name)
            return [self._loss(name, member, problem)]
        if any(isinstance(message, Unfit) for message in found):
            self._forget(name)
        else:
            member.poll = member.actor.poll.remote(*self._intervals())
        return found

    def _loss(self, name: str, member: _Member, problem: Exception) -> Message:
        """The message for an actor that does not answer."""
        text = str(problem)
        if "No module named" in text:
            lacking = text.rpartition("No module named")[2].split()[0].strip("'\"")
            return Unfit(
                EnvironmentProblem(
                    f"the machines of the cluster lack the package {lacking.partition('.')[0]}",
                    hint="ray job submit --working-dir . -- segdream generate --prompts list.txt --ray auto",
                )
            )
        place = f" on {member.place}" if member.place else ""
        gone = "its node has died" in text
        what = "machine" if gone else "process"
        return Lost(f"{name}{place} was lost with its {what}", member.host, hint="ray status", machine_gone=gone)

    def _open(self, name: str, message: Any) -> Message | None:
        """A message for the dispatcher; takes the files out that came with it."""
        from segdream_cli.runs.carry import FilePart

        member = self._members.get(name)
        if isinstance(message, FilePart):
            self._receiver.take(name, message)
            return None
        if isinstance(message, CompiledCode):
            self._keep(message)
            return None
        if isinstance(message, Ready) and member is not None:
            member.host, member.place, member.carries = message.host, message.place, bool(message.detail)
        if isinstance(message, AssetFinished):
            self._receiver.finish(message.output, keep=message.run is not None)
        return message  # type: ignore[no-any-return]

    def _keep(self, code: CompiledCode) -> None:
        """Keeps compiled code for the workers to come, also those of later commands."""
        if code.kind in self._code:
            return
        self._code[code.kind] = self._ray.put(code.content)
        with suppress(OSError, SegdreamError):  # without a writable cache it lasts as long as this command
            _code_folder().mkdir(parents=True, exist_ok=True)
            with atomic_write(_code_folder() / f"{code.kind}.bin") as temporary:
                temporary.write_bytes(code.content)

    def _forget(self, name: str) -> None:
        """Ends an actor, and forgets it."""
        member = self._members.pop(name)
        self._receiver.lose(name)
        with suppress(Exception):
            self._ray.kill(member.actor)

    def dismiss(self, worker: str) -> None:
        """See `Crew`."""
        if worker in self._members:
            self._forget(worker)

    def close(self) -> None:
        """See `Crew`."""
        for name in list(self._members):
            self._forget(name)
        self._receiver.close()

    def now(self) -> float:
        """See `Crew`."""
        return time.monotonic()


class _TaskStop(StopRequest):
    """Set for one task."""

    def __init__(self) -> None:
        super().__init__()
        self.task = self.recalled = 0

    def is_set(self) -> bool:
        """Whether the present task is recalled."""
        return self.recalled == self.task > 0


class Actor:
    """A worker in a cluster; Ray calls its methods in threads of their own.

    Args:
        spec: the settings of the jobs.
        folders: folder of assets -> its absolute path, and that of the file in it to look for.
        threads: number of threads to compute with.
        version: segdream's version on the driver.
        code: kind of machines -> their compiled code, in the object store.
    """

    def __init__(
        self,
        spec: JobSpec,
        folders: Mapping[Path, tuple[str, str]],
        threads: int,
        version: str,
        code: Mapping[str, Any],
    ) -> None:
        self._spec, self._threads, self._version, self._code = spec, threads, version, code
        self._roots = {folder: Path(path) for folder, (path, _) in folders.items()}
        self._shares = all(os.path.exists(probe) for _, probe in folders.values())  # noqa: PTH110
        self._tasks: SimpleQueue[tuple[Task, Mapping[Path, Mapping[str, Any]]]] = SimpleQueue()
        self._box: SimpleQueue[Any] = SimpleQueue()
        self._stop, self._urgent = _TaskStop(), Flag()
        self._step_every_s = self._ship_every_s = 1.0
        Thread(target=self._work, daemon=True).start()

    def assign(self, task: Task, files: Mapping[Path, Mapping[str, Any]]) -> None:
        """Queues a task, with the files of earlier attempts."""
        self._tasks.put((task, files))

    def recall(self, task: int) -> None:
        """Asks for the end of a task."""
        self._stop.recalled = task

    def poll(self, step_every_s: float, ship_every_s: float) -> list[Any]:
        """The messages since the last call; waits for the first one, and then a little for more.

        Args:
            step_every_s: longest wait for more.
            ship_every_s: least seconds between two checkpoints that travel.
        """
        self._step_every_s, self._ship_every_s = step_every_s, ship_every_s
        try:
            found = [self._box.get(timeout=POLL_S)]
        except Empty:
            return []
        self._urgent.wait(step_every_s)
        self._urgent.clear()
        size = 0
        while not self._box.empty() and size < PORTION:
            found.append(self._box.get())
            size += len(getattr(found[-1], "data", b""))
        return found

    def _send(self, message: Any) -> None:
        """Queues a message, and hands it over at once if the driver acts on it."""
        from segdream_cli.runs.carry import FilePart

        if isinstance(message, Ready):
            message = self._introduce(message)
        self._box.put(message)
        if isinstance(message, Ready | Ended | Unfit | AssetFinished | JobFinished | JobFailed | FilePart):
            self._urgent.set()

    def _introduce(self, ready: Ready) -> Ready:
        detail = "" if self._shares else "it does not see the folder of the assets, so its files travel"
        host, place = self._host()
        return dataclasses.replace(ready, host=host, place=place, detail=detail)

    def _host(self) -> tuple[str, str]:
        """The machine's identity and name."""
        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname()

    def _work(self) -> None:
        """Does tasks until the process ends."""
        try:
            self._check_version()
            self._do_tasks()
        except Exception as problem:
            from segdream_cli.util.failures import as_failure

            self._send(Unfit(as_failure(problem), self._host()[0]))

    def _check_version(self) -> None:
        """Refuses a driver with another version, whose settings may mean something else."""
        if self._version != __version__:
            raise EnvironmentProblem(
                f"{socket.gethostname()} has segdream {__version__}, and the driver {self._version}",
                hint=f"pip install segdream=={self._version}",
            )

    def _do_tasks(self) -> None:
        """Loads segdream, and does the tasks that come."""
        import torch

        from segdream_cli.accel.compiled_code import export_code
        from segdream_cli.runs.carry import Carrier, PartPorter
        from segdream_cli.runs.worker import worker_for

        torch.set_num_threads(self._threads)
        porter = None if self._shares else PartPorter(self._send)
        carrier = Carrier(self._send, porter, lambda: self._ship_every_s)
        with worker_for(self._spec, carrier.hear, self._stop, lambda: self._step_every_s) as worker:
            kind = self._load_code(worker.device)
            while True:
                task, files = self._tasks.get()
                self._stop.task = task.number
                if porter is not None:
                    porter.earlier = self._fetch(files)
                carrier.do(worker, task, self._roots)
                if kind not in self._code and (content := export_code()) is not None:
                    self._code = {**self._code, kind: None}
                    self._send(CompiledCode(kind, content))

    def _load_code(self, device: Any) -> str:
        """Loads the compiled code of this kind of machine, if there is some; returns the kind."""
        import ray

        from segdream_cli.accel.compiled_code import load_code, machine_kind

        kind = machine_kind(device)
        if kind in self._code:
            load_code(ray.get(self._code[kind]))
        return kind

    def _fetch(self, files: Mapping[Path, Mapping[str, Any]]) -> dict[Path, dict[str, bytes]]:
        """The content of files in the object store."""
        import ray

        return {output: {name: ray.get(each) for name, each in found.items()} for output, found in files.items()}
