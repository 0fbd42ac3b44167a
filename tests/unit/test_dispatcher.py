"""The dispatcher with simulated machines: every asset is made exactly once, whatever fails, and the end says so."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.fleet import Machine, SimulatedCrew, Times
from segdream_cli.errors import (
    Diverged,
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    OutputExists,
    SegdreamError,
    UsageProblem,
)
from segdream_cli.runs import dispatcher
from segdream_cli.runs.dispatcher import LOSSES, TRIES, Dispatcher
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import AssetFinished, Event, JobFailed, JobSkipped, ListEnded, ListProgress, Note
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.survey import Surveyed

FULL = SegdreamError("the disk is full: a.ply was not written", hint="df -h")


@dataclass
class Done:
    """A list that has ended."""

    tally: Tally
    events: list[Event]
    crew: SimulatedCrew

    @property
    def ended(self) -> ListEnded:
        (found,) = [event for event in self.events if isinstance(event, ListEnded)]
        return found

    @property
    def notes(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Note))

    def failures(self) -> list[JobFailed]:
        return [event for event in self.events if isinstance(event, JobFailed)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Done]:
    """Makes assets, whose files say which attempt wrote them."""

    def run(
        crew: SimulatedCrew,
        count: int = 6,
        stop: StopRequest | None = None,
        steps: dict[int, int] | None = None,
        events: list[Event] | None = None,
        **options: bool,
    ) -> Done:
        jobs = tuple(Job(f"prompt {number}", number, tmp_path / f"{number}.ply") for number in range(count))
        spec = JobSpec(request=Request(), jobs=jobs, **{"as_list": True, **options})
        left = steps or {}
        for job in jobs:
            crew.saved[job] = crew.steps - left.get(job.seed, crew.steps)
        found = [
            Surveyed(number, job, f"[{number}/{count}]", left.get(job.seed, crew.steps), crew.steps)
            for number, job in enumerate(jobs, 1)
        ]
        crew.made = lambda job: job.output.write_text("x" * (1 + crew.finished[job]))
        events = [] if events is None else events
        return Done(Dispatcher(spec, found, crew, events.append, stop or StopRequest()).run(), events, crew)

    return run


def check_once(done: Done, count: int = 6) -> None:
    """Each asset was made, and reported, exactly once."""
    assert done.tally == Tally(made=count)
    assert sorted(job.seed for job in done.crew.finished.elements()) == list(range(count))
    told = [event.output for event in done.events if isinstance(event, AssetFinished | JobSkipped)]
    assert len(told) == len(set(told)) == count


def test_makes_each_asset_once_on_all_machines(make):
    done = make(SimulatedCrew([Machine("a"), Machine("b", workers=2)]))
    check_once(done)
    assert done.ended == ListEnded(6, 0, 0, 6, 0, 0, 0, ())
    assert done.crew.clock < 2 * 102 + 30 + 5  # three workers, two rounds
    progress = [event for event in done.events if isinstance(event, ListProgress)]
    assert max(len(event.workers) for event in progress) == 3
    assert [event.made for event in progress] == sorted(event.made for event in progress)


def test_begins_the_longest_first(make):
    done = make(SimulatedCrew([Machine("a")]), 4, steps={0: 10, 1: 90, 2: 40})
    order = [event.seed for event in done.events if isinstance(event, AssetFinished)]
    assert order == [3, 1, 2, 0]


@pytest.mark.parametrize("dies", [5.0, 31.0, 95.0, 131.5])
def test_machine_that_dies_loses_what_came_after_its_checkpoint(make, dies):
    crew = SimulatedCrew([Machine("a", dies=dies), Machine("b", joins=60.0)])
    done = make(crew, 2)
    check_once(done, 2)
    assert done.ended.lost == 1
    wasted = crew.steps_done - 2 * crew.steps
    assert wasted == min(100, max(0, int(dies - 31))) % 60  # one checkpoint per 60 s, one step per second
    assert "was lost" in done.notes


def test_worker_killed_after_its_file_was_written_is_not_repeated(make):
    """The asset is complete, but nobody has said so."""
    crew = SimulatedCrew([Machine("a")])
    report = crew._finish
    crew._finish = lambda worker, number, job: (report(worker, number, job), crew._kill("a"))[1]  # type: ignore[method-assign]
    done = make(crew, 1)
    check_once(done, 1)
    assert "was finished by a worker that was lost" in done.notes
    assert done.ended.lost == 1


def test_machines_that_die_before_they_begin_do_not_end_the_list(make):
    machines = [Machine(f"short {number}", dies=5.0) for number in range(LOSSES + 1)]
    check_once(make(SimulatedCrew([*machines, Machine("late", joins=100.0)], Times(start=30.0))))


def test_machine_with_many_workers_that_dies_is_not_blamed(make):
    crew = SimulatedCrew([Machine("large", workers=8, dies=50.0), Machine("b", workers=2)])
    done = make(crew, 20)
    check_once(done, 20)
    assert done.ended.lost == 8
    assert "gets no more work" not in done.notes


def test_worker_lost_with_others_on_its_host_may_be_dismissed(make):
    """The message of its loss comes with the one that ends the work of its host."""
    crew = SimulatedCrew(
        [Machine("bad", workers=4), Machine("b")], kills=tuple((50 + 0.02 * i, "bad") for i in range(4))
    )
    done = make(crew, 12)
    check_once(done, 12)
    assert "bad gets no more work" in done.notes


def test_killed_worker_with_a_batch_is_one_fault_of_its_host(make):
    crew = SimulatedCrew([Machine("a", workers=2)], batch=8, kills=((60.0, "a"),))
    done = make(crew, 32)
    check_once(done, 32)
    assert "gets no more work" not in done.notes
    assert done.ended.lost == 1


def test_asset_that_kills_its_workers_does_not_take_its_batch_along(make):
    sizes = []
    crew = SimulatedCrew([Machine("a")], batch=24)
    assign, report = crew.assign, crew._finish

    def give(worker, task):
        sizes.extend([len(task.jobs)] * any(job.seed == 5 for job in task.jobs))
        assign(worker, task)

    def finish(worker, number, job):
        task = crew._members[worker].task
        poisoned = task is not None and task.number == number and any(each.seed == 5 for each in task.jobs)
        return crew._lose(worker, 0.0) if poisoned else report(worker, number, job)

    crew.assign, crew._finish = give, finish  # type: ignore[method-assign]
    done = make(crew, 48)
    assert sizes == [24, 24, 3, 1]
    assert "gets no more work" not in done.notes
    assert done.tally == Tally(made=47, failed=1)
    assert [path.name for path in done.ended.given_up] == ["5.ply"]


def test_machines_that_join_late_get_work(make):
    crew = SimulatedCrew([Machine("a"), Machine("late", workers=5, joins=50.0)])
    done = make(crew)
    check_once(done)
    assert crew.clock < 50 + 30 + 102 + 10


def test_asset_that_always_fails_is_given_up_at_the_end(make):
    crew = SimulatedCrew([Machine("a"), Machine("b")], fails=lambda job, host: FULL if job.seed == 2 else None)
    done = make(crew)
    assert done.tally == Tally(made=5, failed=1)
    (failure,) = done.failures()
    assert failure.problem.message == f"given up after {TRIES} attempts: the disk is full: a.ply was not written"
    assert failure.problem.hint == "df -h"
    assert [path.name for path in done.ended.given_up] == ["2.ply"]
    assert isinstance(done.events[-1], ListEnded)


def test_asset_that_loses_every_worker_is_given_up(make):
    crew = SimulatedCrew([Machine("a"), Machine("b")])
    report = crew._finish

    def finish(worker, number, job):
        return crew._lose(worker, 0.0) if job.seed == 2 else report(worker, number, job)

    crew._finish = finish  # type: ignore[method-assign]
    done = make(crew)
    assert done.tally == Tally(made=5, failed=1)
    assert done.ended.lost == LOSSES


@pytest.mark.parametrize(
    "problem", [UsageProblem("a bad prompt"), Diverged("not finite"), OutputExists("a.run holds other files")]
)
def test_error_of_the_asset_itself_is_not_tried_again(make, problem):
    attempts = []
    crew = SimulatedCrew(
        [Machine("a"), Machine("b")],
        fails=lambda job, host: attempts.append(job.seed) or (problem if job.seed == 2 else None),
    )
    done = make(crew)
    assert done.tally == Tally(made=5, failed=1)
    assert attempts.count(2) == 1
    assert done.failures()[0].problem is problem


def test_machine_with_a_full_disk_gets_no_more_work(make):
    crew = SimulatedCrew([Machine("full"), Machine("b")], fails=lambda job, host: FULL if host == "full" else None)
    done = make(crew, 12)
    check_once(done, 12)
    assert "full gets no more work: the disk is full" in done.notes
    assert done.ended.given_up == ()
    assert done.ended.retried == dispatcher.STRIKES


def test_list_ends_with_the_error_if_every_machine_fails(make):
    crew = SimulatedCrew([Machine("a"), Machine("b")], fails=lambda job, host: FULL)
    with pytest.raises(SegdreamError, match="the disk is full"):
        make(crew, 12)


def test_machine_that_lacks_something_is_replaced_at_once(make):
    lacking = EnvironmentProblem("no compiler")
    crew = SimulatedCrew([Machine("bare"), Machine("b")])
    end = crew._end

    def fail(worker, number):
        message = end(worker, number)
        return replace(message, outcome=lacking) if message and worker == "worker 1" else message

    crew._end, report = fail, crew._finish  # type: ignore[method-assign]
    crew._finish = lambda worker, number, job: None if worker == "worker 1" else report(worker, number, job)  # type: ignore[method-assign]
    done = make(crew)
    check_once(done)
    assert "bare gets no more work: no compiler" in done.notes


def test_fewer_at_once_after_a_lack_of_memory(make):
    sizes = []
    crew = SimulatedCrew([Machine("a")], batch=4)
    assign, report, end = crew.assign, crew._finish, crew._end
    crew.assign = lambda worker, task: (sizes.append(len(task.jobs)), assign(worker, task))[1]  # type: ignore[method-assign]
    crew._finish = lambda worker, number, job: None if sizes[-1] > 2 else report(worker, number, job)  # type: ignore[method-assign]

    def lack(worker, number):
        message, many = end(worker, number), sizes[-1] > 2
        return replace(message, outcome=OutOfMemory("no memory")) if message and many else message

    crew._end = lack  # type: ignore[method-assign]
    done = make(crew)
    check_once(done)
    assert sizes == [4, 2, 2, 2]
    assert "4 assets at once do not fit on a: 2 from now on" in done.notes


def test_batches_leave_work_for_other_machines(make):
    sizes = []
    crew = SimulatedCrew([Machine("a"), Machine("b")], batch=4)
    assign = crew.assign
    crew.assign = lambda worker, task: (sizes.append(len(task.jobs)), assign(worker, task))[1]  # type: ignore[method-assign]
    check_once(make(crew))
    assert sizes[:2] == [3, 2]


def test_asset_of_a_slow_machine_moves_to_an_idle_fast_one(make):
    alone = make(SimulatedCrew([Machine("fast")]), 3).crew.clock
    crew = SimulatedCrew([Machine("fast"), Machine("slow", slowness=50.0)])
    for job in list(Path().glob("*.ply")):
        job.unlink()
    done = make(crew, 3, force=True)
    check_once(done, 3)
    assert done.ended.moved == 1
    assert crew.steps_done == 3 * crew.steps  # nothing was computed twice
    assert crew.clock < alone + 60
    assert "slow is slow: its asset moves to another worker" in done.notes


def test_no_asset_moves_between_equals(make):
    done = make(SimulatedCrew([Machine("a"), Machine("b", slowness=1.5)]), 5)
    check_once(done, 5)
    assert done.ended.moved == 0


def test_stop_recalls_all_tasks(make):
    stop, events = StopRequest(), []
    stop.exit_code = 143
    crew = SimulatedCrew([Machine("a"), Machine("b")], times=Times(report_every=10))
    receive = crew.receive

    def receive_until(timeout_s):
        if crew.clock > 70:
            stop.set()
        return receive(timeout_s)

    crew.receive = receive_until  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stopped:
        make(crew, stop=stop, events=events)
    assert stopped.value.exit_code == 143
    assert sorted(crew.saved.values())[-2:] >= [30, 30]
    assert crew.clock < 90
    texts = [event.text for event in events if isinstance(event, Note)]
    assert "repeat the command to resume the whole list" in texts


def test_first_failure_ends_several_seeds(make):
    events: list[Event] = []
    crew = SimulatedCrew([Machine("a")], fails=lambda job, host: Diverged("not finite") if job.seed == 1 else None)
    with pytest.raises(Diverged):
        make(crew, 4, events=events, as_list=False)
    assert sorted(job.seed for job in crew.finished) == [0]
    texts = [event.text for event in events if isinstance(event, Note)]
    assert "the remaining seeds have not been made; --seeds 2,3 makes them" in texts


def test_force_replaces_an_asset_once_even_if_its_worker_is_lost(make, tmp_path):
    (tmp_path / "0.ply").write_text("before")
    crew = SimulatedCrew([Machine("a")], kills=((50.0, "a"),))
    check_once(make(crew, 2, force=True), 2)
    assert (tmp_path / "0.ply").read_text() == "xx"


def test_list_without_machines_ends(make, monkeypatch):
    crew = SimulatedCrew([Machine("a", dies=40.0), Machine("never", joins=1e9)])
    with pytest.raises(SegdreamError, match="was lost"):
        make(crew)
    assert dispatcher.PATIENCE_S < crew.clock < 2 * dispatcher.PATIENCE_S


@pytest.mark.parametrize("seed", range(12))
def test_storm_loses_nothing_and_makes_nothing_twice(make, seed):
    """Random machines, speeds, deaths, kills, batches and passing faults."""
    draw = random.Random(seed)
    machines = [
        Machine(
            f"host {number}",
            workers=draw.randint(1, 3),
            slowness=draw.choice([1.0, 1.2, 8.0]),
            joins=draw.choice([0.0, draw.uniform(0, 500)]),
            dies=draw.choice([float("inf"), draw.uniform(10, 900)]),
        )
        for number in range(6)
    ] + [Machine("steady")]
    kills = tuple((draw.uniform(0, 900), f"host {draw.randrange(6)}") for _ in range(8))
    faults = Counted(draw, 5)
    crew = SimulatedCrew(machines, batch=draw.randint(1, 4), kills=kills, fails=faults)
    done = make(crew, 30)
    check_once(done, 30)
    assert done.ended.count == 30


class Counted:
    """A fault of some attempts, at most one per asset."""

    def __init__(self, draw: random.Random, count: int) -> None:
        self.left = set(draw.sample(range(30), count))

    def __call__(self, job: Job, host: str) -> SegdreamError | None:
        if job.seed in self.left:
            self.left.remove(job.seed)
            return FULL
        return None
