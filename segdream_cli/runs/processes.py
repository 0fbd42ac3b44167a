"""`--devices`: one process per device of this host, which takes tasks from the dispatcher.

Tasks go to a process through a pipe, and its messages come back. A message to a process with a task, or the end of its
parent, asks it to save its runs. Without a parent, it gets `GRACE_S` for that.
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from threading import Thread

from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.runs.crew import Lost, Message, Ready, Task, Unfit
from segdream_cli.runs.reporter import Reporter, note_to
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.stopping import StopRequest

GRACE_S = 20.0
"""Seconds that a process without a parent has to save its runs; it may be busy with something that asks no pipe."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


def parse_devices(text: str) -> list[str]:
    """Names of devices: `0,1` are cuda:0 and cuda:1, and full names are accepted too.

    Raises:
        UsageProblem: the text is something else.
    """
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"cpu|(cuda:)?\d+", part) for part in parts):
        raise UsageProblem(f"--devices {text!r} is not a list of devices", hint="--devices 0,1")
    return [f"cuda:{part}" if part.isdecimal() else part for part in parts]


def run_on_devices(spec: JobSpec, devices: Sequence[str], reporter: Reporter, stop: StopRequest) -> Tally:
    """Makes the jobs of a spec with one process per device.

    Raises:
        UsageProblem, EnvironmentProblem: a device does not exist.
        Interrupted, SegdreamError: see `Dispatcher.run`.
    """
    from segdream_cli.runs.dispatcher import Dispatcher  # slow imports
    from segdream_cli.runs.survey import survey
    from segdream_cli.util.devices import visible_device

    cuda = [visible_device(device, instead="--devices cpu").type == "cuda" for device in devices]
    found = survey(spec, note_to(reporter), cuda=any(cuda))
    return Dispatcher(spec, found, ProcessCrew(spec, devices), reporter, stop).run()


@contextmanager
def _block_signals() -> Iterator[None]:
    """Holds signals back while the block runs; a process that it starts inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ProcessCrew:
    """A crew of processes, at most one per device that is given.

    Args:
        spec: the settings of the jobs.
        devices: full names; one that is given twice has two processes.
    """

    def __init__(self, spec: JobSpec, devices: Sequence[str]) -> None:
        self._spec = spec
        count, seen = Counter(devices), Counter[str]()
        self._slots: dict[str, str] = {}
        for device in devices:
            seen[device] += 1
            self._slots[device if count[device] == 1 else f"{device} #{seen[device]}"] = device
        self._members: dict[str, _Member] = {}

    def hire(self, wanted: int, unfit: Collection[str]) -> list[str]:
        """See `Crew`; a worker has the name of its slot, which is its host too."""
        free = [slot for slot in self._slots if slot not in self._members and slot not in unfit]
        started = free[: max(0, wanted - len(self._members))]
        for slot in started:
            request = dataclasses.replace(self._spec.request, device=self._slots[slot])
            self._members[slot] = _Member(dataclasses.replace(self._spec, request=request, jobs=()))
        return started

    def has_room(self, unfit: Collection[str]) -> bool:
        """See `Crew`."""
        return not set(self._slots) <= set(unfit)

    def assign(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        with suppress(OSError):  # the process has just ended, which `receive` finds
            self._members[worker].pipe.send(task)

    def recall(self, worker: str, task: int) -> None:
        """See `Crew`; a process without a task ignores the message."""
        with suppress(OSError):
            self._members[worker].pipe.send(None)

    def receive(self, timeout_s: float) -> list[tuple[str, Message]]:
        """See `Crew`; one message per worker."""
        pipes = {member.pipe: slot for slot, member in self._members.items()}
        if not pipes:
            time.sleep(timeout_s)
            return []
        return [(slot, self._receive(slot)) for slot in [pipes[pipe] for pipe in wait(list(pipes), timeout_s)]]  # type: ignore[index]

    def _receive(self, slot: str) -> Message:
        """The next message of a worker; one that says goodbye, or is gone, is forgotten."""
        member = self._members[slot]
        try:
            message: Message = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._members.pop(slot).end()
            device = self._slots[slot]
            reason = f"the process of {device} ended with exit code {member.exit_code}"
            return Lost(reason, slot, hint=f"--device {device}  # shows what happens in one process")
        if isinstance(message, Ready):
            return dataclasses.replace(message, host=slot, place=slot)
        if isinstance(message, Unfit):
            self._members.pop(slot).end()
            return Unfit(message.problem, slot)
        return message

    def dismiss(self, worker: str) -> None:
        """See `Crew`."""
        if member := self._members.pop(worker, None):
            member.end()

    def close(self) -> None:
        """See `Crew`."""
        while self._members:
            _, member = self._members.popitem()
            member.end()

    def now(self) -> float:
        """See `Crew`."""
        return time.monotonic()


class _Member:
    """A worker process, as seen by its parent."""

    def __init__(self, spec: JobSpec) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA can't be used in a forked process
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(spec, theirs))
        with _block_signals():  # a process that is importing its libraries can't save anything yet
            self._process.start()
        theirs.close()

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process, once it has ended."""
        return self._process.exitcode

    def end(self) -> None:
        """Kills the process; whoever has a task that matters has been recalled."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


class _StopFromParent(StopRequest):
    """Set by any message from the parent, and by its end."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def is_set(self) -> bool:
        """Whether there is a message, or the parent has ended."""
        return self._pipe.poll()


def _end_with_parent() -> None:
    """Ends this process some time after its parent has ended, whatever it does."""
    if parent := parent_process():
        parent.join()
        time.sleep(GRACE_S)
        os._exit(1)


def _work(spec: JobSpec, pipe: Connection) -> None:
    """Does the tasks from a pipe until it is closed; the main function of a worker process."""
    for number in SIGNALS:  # a terminal sends signals to every process; the parent's pipe decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()
    from segdream_cli.runs.worker import worker_for

    def send(message: Message) -> None:
        with suppress(OSError):  # the parent has ended: save the runs anyway
            pipe.send(message)

    try:
        with worker_for(spec, send, _StopFromParent(pipe)) as worker, suppress(EOFError, ConnectionResetError):
            while True:
                task: Task | None = pipe.recv()
                if task is not None:  # else a recall that came too late
                    worker.do(task)
    except SegdreamError as problem:
        send(Unfit(problem))
