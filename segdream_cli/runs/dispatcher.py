"""Gives the jobs of a list to the workers of a crew, and sees to it that each asset is made exactly once.

The longest jobs go first. A failure that may be the machine's is tried again, elsewhere if possible; an asset whose
attempts all fail is given up, and a machine on which several assets fail gets no more work. A worker that is lost is
replaced, and its assets resume from their last checkpoint. At the end of the list, an asset of a slow worker moves to
an idle fast one: the slow worker saves it, and the other resumes it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeAlias

from segdream_cli.errors import (
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    OutputExists,
    SegdreamError,
    WeightsUnavailable,
)
from segdream_cli.runs.crew import Crew, Ended, Lost, Message, Outcome, Ready, Task, Unfit
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import (
    AssetFinished,
    Event,
    JobFailed,
    JobFinished,
    JobSkipped,
    ListEnded,
    ListProgress,
    Note,
    Reporter,
    RunEnded,
    RunSaved,
    RunStarted,
    Stepped,
    WorkerProgress,
)
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.survey import Surveyed
from segdream_cli.util.files import sweep

TRIES = 3
"""Attempts at an asset that ends with an error."""
LOSSES = 4
"""Workers that an asset may lose; a machine that dies says little about the asset."""
SPLIT = 8
"""A batch that has lost more than one process is divided by this for each further one, to find the asset that does it:
a batch of 64 has 64, 64, 8 and 1 assets in its four attempts."""
STRIKES = 3
"""Different assets in succession that fail on a host before it gets no more work; one asset is not the host's fault."""
PATIENCE_S = 600.0
"""Seconds without any worker before a list ends."""
BUSY_S = 5.0
"""Seconds before another attempt at an asset whose folder a lost worker still holds."""
POLL_S = 0.1
PROGRESS_S = 1.0
MOVE_FACTOR, MOVE_S = 2.0, 20.0
"""An asset moves if it ends this many times sooner elsewhere, and sooner by at least these seconds."""
START_S = 10.0
"""Seconds to save an asset and to resume it elsewhere, for that comparison."""
Signature: TypeAlias = tuple[int, int, int] | None


@dataclass(slots=True)
class _Item:
    """A job that has not ended."""

    found: Surveyed
    proofs: list[Signature]
    record: Signature
    """Signatures of its files and of its `run.json` before the first attempt."""
    steps: int
    failures: int = 0
    losses: int = 0
    crashes: int = 0
    """Losses of a worker whose machine lives on."""
    tried: bool = False
    not_before: float = 0.0
    hosts: set[str] = field(default_factory=set)
    """Hosts on which it failed."""


@dataclass(slots=True)
class _Worker:
    """A worker, as its messages describe it."""

    name: str
    ready: Ready | None = None
    task: int = 0
    items: list[_Item] = field(default_factory=list)
    """The assets of its task that have not ended; empty if it is idle."""
    busy: bool = False
    recalled: bool = False
    first: int = 0
    step: int = 0
    steps: int = 0
    begun: float = 0.0
    pace: float | None = None
    """Seconds per step and asset, of its latest task that took steps."""
    batch: int = 1

    @property
    def host(self) -> str:
        return "" if self.ready is None else self.ready.host

    @property
    def place(self) -> str:
        return self.name if self.ready is None else self.ready.place or self.name

    def left(self) -> float | None:
        """Seconds until its task is done."""
        return None if self.pace is None else (self.steps - self.step) * self.pace * max(1, len(self.items))


class Dispatcher:
    """Makes the jobs of a spec with a crew.

    Args:
        spec: the jobs.
        found: the jobs after their survey.
        crew: the workers; `run` closes it.
        reporter: receives the events; progress of single runs becomes a `ListProgress`.
        stop: tells all workers to save and stop.
    """

    def __init__(
        self, spec: JobSpec, found: Iterable[Surveyed], crew: Crew, reporter: Reporter, stop: StopRequest
    ) -> None:
        self.spec, self.crew, self.reporter, self.stop = spec, crew, reporter, stop
        self._found = list(found)
        self._workers: dict[str, _Worker] = {}
        self._waiting: list[_Item] = []
        self._unfit: set[str] = set()
        self._strikes: dict[str, set[int]] = {}
        self._noted: set[str] = set()
        self._tally = Tally()
        self._problems: list[JobFailed] = []
        self._given_up: list[Path] = []
        self._cause: SegdreamError | None = None
        """Why the latest worker failed."""
        self._tasks = self._lost = self._crashes = self._retried = self._moved = 0
        self._stopping = False
        self._done_steps, self._begun, self._progress_at, self._idle_since = 0, 0.0, -math.inf, math.inf

    def run(self) -> Tally:
        """Makes all assets, and reports how that went.

        Raises:
            Interrupted: `stop` was set; the runs have been saved.
            SegdreamError: no worker is left, or, unless the spec is a list, an asset failed.
        """
        try:
            self._begin()
            with self.stop:
                while self._goes_on():
                    self._hire()
                    self._assign()
                    self._move_stragglers()
                    self._report_progress()
                    for worker, message in self.crew.receive(POLL_S):
                        if worker in self._workers:
                            self._handle(self._workers[worker], message)
        finally:
            self.crew.close()
            self._report_end()
        if self._stopping:
            raise Interrupted("stopped on all devices", exit_code=self.stop.exit_code)
        if self._is_halted():
            self._raise_problem()
        return self._tally

    def _begin(self) -> None:
        """Reports the jobs that are not to be made, and queues the others, the longest first.

        Raises:
            SegdreamError: a job is impossible, and the spec is not a list.
        """
        for each in self._found:
            if each.exists:
                self._tally += Tally(skipped=1)
                self.reporter(JobSkipped(each.job.output, each.number, len(self._found)))
            elif each.problem is not None:
                self._fail(each, each.problem)
            else:
                record = RunDir.beside(each.job.output).path / "run.json"
                self._waiting.append(_Item(each, _signatures(each.job), _signature(record), each.steps))
        if self._problems and not self.spec.as_list:
            self._raise_problem()
        self._waiting.sort(key=lambda item: (-item.steps, item.found.number))

    # ------------------------------------------------------------------------------------------------ workers

    def _goes_on(self) -> bool:
        """Whether there is something to wait for; passes a stop on.

        Raises:
            SegdreamError: there is work, but no worker for it.
        """
        busy = [worker for worker in self._workers.values() if worker.busy]
        if self.stop.is_set() and not self._stopping:
            self._stopping = True
            for worker in busy:
                self.crew.recall(worker.name, worker.task)
        if busy:
            return True
        if self._stopping or not self._waiting or self._is_halted():
            return False
        if self._workers:
            self._idle_since = math.inf
        elif not self.crew.has_room(self._unfit) or self._crashes >= LOSSES:
            self._raise_no_worker()
        elif self._idle_since == math.inf:
            self._idle_since = self.crew.now()
        elif self.crew.now() - self._idle_since > PATIENCE_S:
            self._raise_no_worker()
        return True

    def _is_halted(self) -> bool:
        """Whether a failure ends all: that of one asset does unless the spec is a list."""
        return bool(self._problems) and not self.spec.as_list

    def _raise_no_worker(self) -> None:
        self._note(f"{len(self._waiting)} assets have not been made; repeat the command to resume the whole list")
        raise self._cause or SegdreamError("no worker is left", hint="ray status")

    def _hire(self) -> None:
        """Starts workers, one for each asset that is not done, as far as there is room."""
        if self._stopping or self._is_halted() or not self._waiting or self._crashes >= LOSSES:
            return
        wanted = len(self._waiting) + sum(worker.busy for worker in self._workers.values())
        for name in self.crew.hire(wanted, self._unfit):
            self._workers[name] = _Worker(name)

    def _handle(self, worker: _Worker, message: Message) -> None:
        """Handles a message of a worker."""
        match message:
            case Ready():
                worker.ready, worker.batch, self._crashes = message, max(1, message.batch), 0
                if message.detail:
                    self._note(f"{worker.place}: {message.detail}")
            case Ended():
                self._end_task(worker, message.outcome)
            case Unfit():
                del self._workers[worker.name]
                self._cause = message.problem
                self._crashes += not message.host
                if message.host:
                    self._retire(message.host, message.problem)
            case Lost():
                self._lose(worker, message)
            case _:
                self._hear(worker, message)

    def _lose(self, worker: _Worker, message: Lost) -> None:
        """Puts the assets of a lost worker back."""
        del self._workers[worker.name]
        self._lost += 1
        host = worker.host or message.host
        self._cause = SegdreamError(message.reason, hint=message.hint)
        self._crashes += worker.ready is None and not message.machine_gone
        self._note(message.reason, once=False)
        items = [item for item in worker.items if not self._has_appeared(item)]
        for item in worker.items:
            if item not in items:
                self._finish_unreported(item)
        for item in items:
            item.losses += 1
            item.crashes += not message.machine_gone
            item.hosts.add(host)
            if item.losses >= LOSSES:
                self._give_up(item, self._cause)
            else:
                self._return(item, last=item.crashes > 1)
        if host and not message.machine_gone and (items or not worker.items):
            numbers = [item.found.number for item in items]
            self._strike(host, min(numbers, default=-self._lost))  # one fault, however many assets

    def _retire(self, host: str, problem: SegdreamError) -> None:
        """Gives a host no more work."""
        self._cause = problem
        self._unfit.add(host)
        workers = [worker for worker in self._workers.values() if worker.host == host]
        for worker in workers:
            if not worker.busy:
                self.crew.dismiss(worker.name)
                del self._workers[worker.name]
        if self._workers or self.crew.has_room(self._unfit):
            self._note(f"{workers[0].place if workers else host or 'a worker'} gets no more work: {problem.message}")

    def _strike(self, host: str, number: int) -> None:
        """Counts an asset that failed on a host, and retires the host after several."""
        struck = self._strikes.setdefault(host, set())
        struck.add(number)
        if len(struck) >= STRIKES and self._cause is not None and host not in self._unfit:
            self._retire(host, self._cause)

    # ------------------------------------------------------------------------------------------------ tasks

    def _assign(self) -> None:
        """Gives work to idle workers, the fastest first."""
        if self._stopping or self._is_halted():
            return
        idle = [worker for worker in self._workers.values() if self._works(worker) and not worker.busy]
        for worker in sorted(idle, key=lambda each: math.inf if each.pace is None else each.pace):
            items = self._choose(worker)
            if items:
                self._give(worker, items)

    def _choose(self, worker: _Worker) -> list[_Item]:
        """Takes the next items for a worker from the queue: of equally many steps, as many as it does at once.

        Near the end of the list they are fewer, so that all workers have some.
        """
        now = self.crew.now()
        able = [
            item
            for item in self._waiting
            if item.not_before <= now and (worker.host not in item.hosts or not self._has_untried_host(item))
        ]
        if able and able[0].failures:
            limit = 1  # an asset that has failed does not take others with it
        else:
            limit = max(1, worker.batch // SPLIT ** max(0, able[0].crashes - 1 if able else 0))
        count = min(limit, math.ceil(len(able) / max(1, len(self._workers))))
        items = [item for item in able if item.steps == able[0].steps][:count] if able else []
        for item in items:
            self._waiting.remove(item)
        return items

    def _has_untried_host(self, item: _Item) -> bool:
        """Whether a host works on which an asset has not failed."""
        return any(self._works(worker) and worker.host not in item.hosts for worker in self._workers.values())

    def _works(self, worker: _Worker) -> bool:
        return worker.ready is not None and worker.host not in self._unfit

    def _give(self, worker: _Worker, items: list[_Item]) -> None:
        """Gives items to an idle worker, but for those that a lost worker has finished."""
        for item in [item for item in items if self._has_appeared(item)]:
            self._finish_unreported(item)
            items.remove(item)
        if not items:
            return
        self._tasks += 1
        self._begun = self._begun or self.crew.now()
        worker.task, worker.items, worker.busy, worker.recalled = self._tasks, items, True, False
        worker.first = worker.step = worker.steps = 0
        worker.begun = self.crew.now()
        resume = (self.spec.as_list or self.spec.skip_existing) and not self.spec.force
        again = [item for item in items if item.tried and self._has_begun(item)]
        if again and len(again) < len(items) and not resume:  # those of an earlier command must not be resumed
            self._waiting[:0] = [item for item in items if item not in again]
            worker.items = items = again
        for item in items:
            item.tried = True
            where = f" on {worker.place}" if len(self._workers) > 1 else ""
            self._note(f"{item.found.title}{where}", once=False)
        jobs = tuple(item.found.job for item in items)
        self.crew.assign(worker.name, Task(worker.task, jobs, self.spec.force, resume or bool(again)))

    def _end_task(self, worker: _Worker, outcome: Outcome) -> None:
        """Makes a worker idle, and decides about the assets of its task that have not ended."""
        items, worker.items = worker.items, []
        many = len(items) > 1
        if isinstance(outcome, OutOfMemory) and many:
            worker.batch = max(1, len(items) // 2)
            self._note(f"{len(items)} assets at once do not fit on {worker.place}: {worker.batch} from now on")
        for item in items:
            if isinstance(outcome, Interrupted) or (isinstance(outcome, OutOfMemory) and many):
                self._moved += worker.recalled
                self._return(item)
            elif isinstance(outcome, SegdreamError):
                self._fail_attempt(worker, item, outcome)
            else:
                self._fail_attempt(worker, item, SegdreamError(f"{worker.place} ended a task without a word on it"))
        if isinstance(outcome, EnvironmentProblem | WeightsUnavailable) and worker.host not in self._unfit:
            self._retire(worker.host, outcome)
        worker.busy = False
        if worker.host in self._unfit:
            self.crew.dismiss(worker.name)
            del self._workers[worker.name]

    def _hear(self, worker: _Worker, event: Event) -> None:
        """Keeps what an event says, and reports it unless the list has its own report of that."""
        match event:
            case RunStarted():
                worker.first = worker.step = event.done
                worker.steps, worker.begun = event.steps, self.crew.now()
            case Stepped():
                self._advance(worker, event.step)
            case AssetFinished() | JobFinished():
                if item := self._take(worker, event.output):
                    self._advance(worker, worker.steps)
                    self._strikes.pop(worker.host, None)
                    self._done_steps += item.steps
                    self._tally += Tally(made=1)
                    self.reporter(event)
            case JobFailed():
                if event.output is not None and (item := self._take(worker, event.output)):
                    self._fail_attempt(worker, item, event.problem)
            case Note():
                self._note(event.text)
            case RunSaved():
                if self._stopping:
                    self.reporter(event)
            case RunEnded():
                pass
            case _:
                self.reporter(event)

    def _advance(self, worker: _Worker, step: int) -> None:
        """Updates a worker's step and pace."""
        worker.step = step
        if step > worker.first:
            assets = max(1, len(worker.items))
            worker.pace = (self.crew.now() - worker.begun) / (step - worker.first) / assets

    def _take(self, worker: _Worker, output: Path) -> _Item | None:
        """Removes the item of a file from a worker's task."""
        for item in worker.items:
            if item.found.job.output == output:
                worker.items.remove(item)
                return item
        return None

    # ------------------------------------------------------------------------------------------------ assets

    def _fail_attempt(self, worker: _Worker, item: _Item, problem: SegdreamError) -> None:
        """Decides about an asset after an error: it exists, is tried again, or has failed."""
        if isinstance(problem, OutputExists) and self._exists_now(item):
            return
        busy = isinstance(problem, OutputExists) and item.tried and item.losses > 0
        item.hosts.add(worker.host)
        if not (busy or _may_be_the_machine(problem, elsewhere=self._has_untried_host(item))):
            self._fail(item.found, problem)
            return
        item.failures += 1
        self._cause = problem
        if not busy:
            self._strike(worker.host, item.found.number)
        if item.failures >= TRIES + 3 * busy:
            self._give_up(item, problem)
            return
        item.not_before = self.crew.now() + BUSY_S * busy
        self._note(f"{item.found.job.output}: attempt {item.failures} failed on {worker.place}: {problem.message}")
        self._return(item, last=True)

    def _exists_now(self, item: _Item) -> bool:
        """Ends an asset of a list that exists by now; its file may have been written since the survey."""
        skips = (self.spec.as_list or self.spec.skip_existing) and not self.spec.force
        if item.losses and self._has_appeared(item):
            self._finish_unreported(item)
            return True
        if skips and all(path.is_file() for path in item.found.job.proofs):
            self._tally += Tally(skipped=1)
            self.reporter(JobSkipped(item.found.job.output, item.found.number, len(self._found)))
            return True
        return False

    def _return(self, item: _Item, *, last: bool = False) -> None:
        """Puts an asset back into the queue: before those with as many steps or, if it may fail again, `last`."""
        if self._stopping:
            return
        self._retried += item.failures + item.losses > 0
        later = (index for index, each in enumerate(self._waiting) if each.steps <= item.steps and not last)
        self._waiting.insert(next(later, len(self._waiting)), item)

    def _give_up(self, item: _Item, problem: SegdreamError) -> None:
        """Ends an asset whose attempts have all failed."""
        self._given_up.append(item.found.job.output)
        attempts = item.failures + item.losses
        self._fail(item.found, _after(attempts, problem) if attempts > 1 else problem)

    def _fail(self, found: Surveyed, problem: SegdreamError) -> None:
        """Ends a failed asset; the errors of a spec that is not a list are reported at its end."""
        self._tally += Tally(failed=1)
        self._problems.append(JobFailed(problem, found.job.output))
        if self.spec.as_list:
            self._note(found.title, once=False)
            self.reporter(self._problems[-1])

    def _has_appeared(self, item: _Item) -> bool:
        """Whether an earlier attempt has written the asset."""
        now = _signatures(item.found.job) if item.tried else []
        return bool(now) and all(each and each != before for each, before in zip(now, item.proofs, strict=True))

    def _has_begun(self, item: _Item) -> bool:
        """Whether an earlier attempt has begun a run that can be resumed."""
        run = RunDir.beside(item.found.job.output)
        return run.can_resume() and _signature(run.path / "run.json") != item.record

    def _finish_unreported(self, item: _Item) -> None:
        """Counts an asset that a worker wrote before it was lost."""
        output = item.found.job.output
        sweep(output.parent, output.stem)
        self._note(f"{output} was finished by a worker that was lost", once=False)
        self._tally += Tally(made=1)
        self.reporter(JobSkipped(output, item.found.number, len(self._found)))

    # ------------------------------------------------------------------------------------------------ stragglers

    def _move_stragglers(self) -> None:
        """Recalls the task that ends last, if an idle worker would end it much sooner."""
        if self._stopping or self._waiting:
            return
        paces = [worker.pace for worker in self._workers.values() if worker.pace is not None]
        idle = [worker for worker in self._workers.values() if self._works(worker) and not worker.busy]
        busy = [worker for worker in self._workers.values() if worker.busy and worker.pace and worker.step]
        if not idle or not busy or any(worker.recalled for worker in busy):
            return
        best = min(median(paces) if worker.pace is None else worker.pace for worker in idle)
        slowest = max(busy, key=lambda worker: worker.left() or 0.0)
        here = slowest.left() or 0.0
        there = START_S + here * best / (slowest.pace or best)
        if here > MOVE_FACTOR * there and here - there > MOVE_S:
            slowest.recalled = True
            self._note(f"{slowest.place} is slow: its asset moves to another worker", once=False)
            self.crew.recall(slowest.name, slowest.task)

    # ------------------------------------------------------------------------------------------------ reports

    def _note(self, text: str, *, once: bool = True) -> None:
        """Reports a text; what every worker says is reported once."""
        if not once or text not in self._noted:
            self._noted.add(text)
            self.reporter(Note(text))

    def _report_progress(self) -> None:
        """Reports the state of all workers, once per second."""
        now = self.crew.now()
        if now - self._progress_at < PROGRESS_S:
            return
        self._progress_at = now
        rows = [
            WorkerProgress(
                worker.name,
                worker.place,
                ", ".join(item.found.job.output.name for item in worker.items),
                worker.step,
                worker.steps,
                worker.left() if worker.busy else None,
            )
            for worker in self._workers.values()
            if worker.ready is not None
        ]
        tally = self._tally
        self.reporter(
            ListProgress(
                tally.made,
                tally.skipped,
                tally.failed,
                len(self._found),
                tuple(rows),
                len(self._workers) - len(rows),
                self._seconds_left(now),
            )
        )

    def _seconds_left(self, now: float) -> float | None:
        """Seconds until the list is done, at the mean speed so far."""
        running = [worker for worker in self._workers.values() if worker.busy]
        done = self._done_steps + sum((worker.step - worker.first) * len(worker.items) for worker in running)
        left = sum(item.steps for item in self._waiting)
        left += sum((worker.steps - worker.step) * len(worker.items) for worker in running)
        left += sum(item.steps for worker in running if not worker.steps for item in worker.items)
        return left * (now - self._begun) / done if done > 0 else None

    def _report_end(self) -> None:
        """Reports the counts of a list that has begun."""
        if not self._tasks and self._waiting:
            return
        tally, count = self._tally, len(self._found)
        events = self._lost, self._retried, self._moved
        self.reporter(ListEnded(tally.made, tally.skipped, tally.failed, count, *events, tuple(self._given_up)))
        if self._stopping and self.spec.as_list:
            self._note("repeat the command to resume the whole list")

    def _raise_problem(self) -> None:
        """Raises the error with the highest exit code, after a report of the others and of the seeds that are left."""
        if self._waiting:
            seeds = ",".join(str(item.found.job.seed) for item in sorted(self._waiting, key=lambda i: i.found.number))
            self._note(f"the remaining seeds have not been made; --seeds {seeds} makes them")
        problems = sorted(self._problems, key=lambda each: each.problem.exit_code)
        for failed in problems[:-1]:
            self.reporter(failed)
        raise problems[-1].problem


def _may_be_the_machine(problem: SegdreamError, *, elsewhere: bool) -> bool:
    """Whether an error may not occur at another time, or `elsewhere`, on another machine."""
    lasting = isinstance(problem, OutOfMemory) and elsewhere
    return type(problem) is SegdreamError or isinstance(problem, EnvironmentProblem | WeightsUnavailable) or lasting


def _after(attempts: int, problem: SegdreamError) -> SegdreamError:
    """The error of an asset that was given up."""
    error = type(problem)(f"given up after {attempts} attempts: {problem.message}", hint=problem.hint)
    error.__notes__ = list(getattr(problem, "__notes__", ()))
    return error


def _signatures(job: Job) -> list[Signature]:
    """Those of the files that exist once a job is done."""
    return [_signature(path) for path in job.proofs]


def _signature(path: Path) -> Signature:
    """Identifies the content of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
