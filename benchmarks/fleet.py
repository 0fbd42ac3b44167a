"""A crew that takes no time: machines, their speeds, failures and preemptions as a discrete-event simulation.

The dispatcher is the real one. `benchmarks/scale.py` feeds the simulation with measured times, and the tests of the
dispatcher use it with scripted faults.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from segdream_cli.errors import Interrupted, SegdreamError
from segdream_cli.runs.crew import Ended, Lost, Message, Ready, Task
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import AssetFinished, JobFailed, RunStarted, Stepped
from segdream_cli.runs.spec import Tally

WAKE_S = 5.0
"""Longest simulated time between two looks of the dispatcher."""


@dataclass(frozen=True)
class Machine:
    """A machine with workers; it takes `slowness` times as long as others per step."""

    host: str
    workers: int = 1
    slowness: float = 1.0
    joins: float = 0.0
    dies: float = math.inf


@dataclass(frozen=True)
class Times:
    """Seconds of a worker's life.

    Args:
        start: from the request for a worker until it is ready.
        load: before the first task: the prior is loaded.
        compile: before the first task of a machine without compiled code.
        begin: before the first step of an asset.
        step: per step and asset.
        write: after the last step of an asset.
        save_every: between two checkpoints.
        detect: until a dead machine is known to be dead.
        report_every: between two step reports.
    """

    start: float = 10.0
    load: float = 20.0
    compile: float = 0.0
    begin: float = 1.0
    step: float = 1.0
    write: float = 1.0
    save_every: float = 60.0
    detect: float = 10.0
    report_every: float = 30.0


@dataclass
class _Member:
    machine: Machine
    task: Task | None = None
    loaded: bool = False
    first: int = 0
    begun: float = 0.0
    pace: float = 1.0


@dataclass
class SimulatedCrew:
    """The crew of some machines.

    Args:
        machines: where workers run.
        times: how long they take.
        steps: number of steps of an asset.
        batch: how many assets a worker makes at once.
        fails: the error of an attempt at a job on a host; None if it succeeds.
        made: receives the job of each asset that is written.
        kills: times and hosts of workers that are killed.
        compiled: hosts that have compiled code; add all of them for a shared cache.
    """

    machines: list[Machine]
    times: Times = field(default_factory=Times)
    steps: int = 100
    batch: int = 1
    fails: Callable[[Job, str], SegdreamError | None] = lambda job, host: None
    made: Callable[[Job], object] = lambda job: None
    kills: tuple[tuple[float, str], ...] = ()
    compiled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock, self.busy_s, self.messages = 0.0, 0.0, 0
        self.saved: Counter[Job] = Counter()
        self.finished: Counter[Job] = Counter()
        self.steps_done = 0.0
        self.idle_since: dict[str, float] = {}
        """Worker without a task -> since when."""
        self._order, self._names = itertools.count(), itertools.count(1)
        self._queue: list[tuple[float, int, str, Callable[[], Message | None]]] = []
        self._members: dict[str, _Member] = {}
        for machine in self.machines:
            if machine.dies < math.inf:
                self._at(machine.dies, "", lambda machine=machine: self._die(machine))
        for when, host in self.kills:
            self._at(when, "", lambda host=host: self._kill(host))

    def now(self) -> float:
        """See `Crew`."""
        return self.clock

    def _at(self, when: float, name: str, what: Callable[[], Message | None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), name, what))

    def hire(self, wanted: int, unfit: Collection[str]) -> list[str]:
        """See `Crew`."""
        hosts = Counter(member.machine.host for member in self._members.values())
        started = []
        for machine in self.machines:
            alive = machine.joins <= self.clock < machine.dies and machine.host not in unfit
            while alive and hosts[machine.host] < machine.workers and len(self._members) < wanted:
                name = f"worker {next(self._names)}"
                self._members[name] = _Member(machine)
                hosts[machine.host] += 1
                ready = Ready(self.batch, "simulated", machine.host, machine.host)
                self._at(self.clock + self.times.start, name, lambda ready=ready: ready)
                started.append(name)
        return started

    def has_room(self, unfit: Collection[str]) -> bool:
        """See `Crew`."""
        return any(machine.dies > self.clock and machine.host not in unfit for machine in self.machines)

    def assign(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        member, times = self._members[worker], self.times
        self.idle_since.pop(worker, None)
        host, count = member.machine.host, len(task.jobs)
        delay = times.begin * count + (0 if member.loaded else times.load)
        if host not in self.compiled:
            self.compiled.add(host)
            delay += times.compile
        member.task, member.loaded, member.begun = task, True, self.clock + delay
        member.first = self.saved[task.jobs[0]]
        member.pace = times.step * member.machine.slowness * count
        number, name = task.number, str(task.jobs[0].output)
        left = self.steps - member.first
        for second in range(round(times.report_every), int(left * member.pace), max(1, round(times.report_every))):
            step = member.first + int(second / member.pace)
            report = Stepped(name, step, self.steps, (1,) * count, None, 1.0, "distil")
            self._at(
                member.begun + second, worker, lambda report=report: report if self._runs(worker, number) else None
            )
        begin = RunStarted(name, name, self.steps, member.first)
        self._at(member.begun, worker, lambda: begin if self._runs(worker, number) else None)
        end = member.begun + left * member.pace
        for index, job in enumerate(task.jobs, 1):
            self._at(end + index * times.write, worker, lambda job=job: self._finish(worker, number, job))
        self._at(end + count * times.write, worker, lambda: self._end(worker, number))

    def _runs(self, worker: str, number: int) -> bool:
        task = self._members[worker].task
        return task is not None and task.number == number

    def _finish(self, worker: str, number: int, job: Job) -> Message | None:
        if not self._runs(worker, number):
            return None
        problem = self.fails(job, self._members[worker].machine.host)
        if problem is not None:
            return JobFailed(problem, job.output)
        self.finished[job] += 1
        self.made(job)
        return AssetFinished(
            output=job.output, prompt=job.prompt, seed=job.seed, prior="simulated", gaussians=1, steps=self.steps,
total_steps=self.steps,
            seconds=1.0, memory_gib=1.0, run=job.output.with_suffix(".run"),
        )  # fmt: skip

    def _end(self, worker: str, number: int) -> Message | None:
        if not self._runs(worker, number):
            return None
        task = self._leave(self._members[worker], self.steps)
        return Ended(task.number, Tally(made=len(task.jobs)))

    def _leave(self, member: _Member, step: int) -> Task:
        """Ends the task of a worker after a step."""
        task, member.task = member.task, None
        assert task is not None
        self.busy_s += self.clock - member.begun
        self.idle_since.update({name: self.clock for name, each in self._members.items() if each is member})
        self.steps_done += max(0, step - member.first) * len(task.jobs)
        return task

    def _step(self, member: _Member, every: float = 0.0) -> int:
        """The step of a worker's task; with `every`, that of the latest checkpoint."""
        seconds = max(0.0, self.clock - member.begun)
        seconds = seconds // every * every if every else seconds
        return min(self.steps, member.first + int(seconds / member.pace))

    def recall(self, worker: str, task: int) -> None:
        """See `Crew`."""

        def stop() -> Message | None:
            if not self._runs(worker, task):
                return None
            member = self._members[worker]
            step = self._step(member)
            left = self._leave(member, step)
            self.saved.update({job: step - self.saved[job] for job in left.jobs})
            return Ended(task, Interrupted("stopped"))

        self._at(self.clock + self._members[worker].pace, worker, stop)

    def _die(self, machine: Machine) -> None:
        for name, member in list(self._members.items()):
            if member.machine is machine:
                self._lose(name, self.times.detect, machine_gone=True)

    def _kill(self, host: str) -> None:
        for name, member in list(self._members.items()):
            if member.machine.host == host:
                self._lose(name, 0.0)
                return

    def _lose(self, name: str, delay: float, *, machine_gone: bool = False) -> None:
        member = self._members[name]
        if member.task is not None:
            saved, step = self._step(member, self.times.save_every), self._step(member)
            self.saved.update({job: max(0, saved - self.saved[job]) for job in member.task.jobs})
            self._leave(member, step)
        self.idle_since.pop(name, None)
        lost = Lost(f"{name} on {member.machine.host} was lost", member.machine.host, machine_gone=machine_gone)
        self._at(self.clock + delay, name, lambda: self._members.pop(name) and lost)

    def receive(self, timeout_s: float) -> list[tuple[str, Message]]:
        """See `Crew`."""
        end = min(self._queue[0][0] if self._queue else math.inf, self.clock + WAKE_S)
        self.clock = max(self.clock, end)
        found = []
        while self._queue and self._queue[0][0] <= self.clock + timeout_s:
            when, _, name, what = heapq.heappop(self._queue)
            self.clock = max(self.clock, when)
            if (not name or name in self._members) and (message := what()) is not None:
                found.append((name, message))
        self.messages += len(found)
        return found

    def dismiss(self, worker: str) -> None:
        """See `Crew`."""
        self._members.pop(worker, None)

    def close(self) -> None:
        """See `Crew`."""
        self._members.clear()
