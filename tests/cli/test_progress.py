"""The progress of a run: its stages, and the time left."""

import pytest

from segdream_cli.cli import progress
from segdream_cli.cli.output import Output
from segdream_cli.cli.progress import FEWEST_STEPS, WARM_UP_STEPS, RunProgress, TimeLeft, describe_stage, describe_steps
from segdream_cli.cli.reporter import TerminalReporter
from segdream_cli.runs.reporter import ListEnded, RunStarted, Stepped


def stepped(step, steps, stage="distil"):
    return Stepped("bus.ply", step, steps, (20,), (0.5,), 1.25, stage)


def estimates(durations, expected=None, stages=None):
    """The estimate after each step of a run with these durations in seconds, beside the time that was left."""
    left, now = TimeLeft(len(durations), expected), 1000.0
    for index, seconds in enumerate(durations):
        now += seconds
        stage = "distil" if stages is None else stages[index]
        yield left.update(index + 1, stage, now), sum(durations[index + 1 :])


def test_time_left_does_not_count_the_first_steps():
    """A first step of 60 s in a run of 100 s, whose other 400 steps take 0.1 s each."""
    found = list(estimates([60.0, *[0.1] * 400]))
    early = WARM_UP_STEPS + FEWEST_STEPS
    assert [estimate for estimate, _ in found[:early]] == [None] * early
    for estimate, truth in found[early:]:
        assert estimate == pytest.approx(truth, abs=1e-6)


def test_time_left_begins_with_that_of_an_earlier_run():
    found = list(estimates([60.0, *[0.1] * 400], expected=100.0))
    assert found[0][0] == pytest.approx(100.0 * 400 / 401)
    assert found[200][0] == pytest.approx(found[200][1])


def test_time_left_measures_each_stage():
    """The second stage begins with a repaint of 20 s, and its steps take ten times as long."""
    durations = [*[0.1] * 50, 20.0, *[1.0] * 49]
    found = list(estimates(durations, stages=[*["distil"] * 50, *["refine 1/1"] * 50]))
    assert found[50][0] is None
    assert found[60][0] == pytest.approx(found[60][1])


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (1, "distil 1/30"),
        (30, "distil 30/30"),
        (31, "refine 1/2: 1/75"),
        (105, "refine 1/2: 75/75"),
        (106, "refine 2/2: 1/50"),
        (155, "refine 2/2: 50/50"),
    ],
)
def test_describe_stage_counts_the_steps_of_each(step, text):
    assert describe_stage(stepped(step, 155), (75, 50)) == text


def test_describe_steps_explains_their_number():
    assert describe_steps(RunStarted("a", "a", 30, 0)) is None
    assert describe_steps(RunStarted("a", "a", 155, 0, (75, 50))) == (
        "155 steps: 30 of distillation and 125 of refinement in 2 rounds"
    )
    assert describe_steps(RunStarted("a", "a", 1300, 0, (1300,))) == "1,300 steps: 1,300 of refinement in one round"


def test_run_progress_prints_lines_with_stage_and_time(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run = RunProgress(RunStarted("bus.ply", "a bus", 40, 0, (10,)), Output())
    with run:
        for step in range(1, 41):
            run.update(stepped(step, 40, "distil" if step <= 30 else "refine 1/1"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/40  distil 1/30  20 Gaussians  gradient 0.5  1.2 GiB"
    assert lines[9].startswith("step 10/40  distil 10/30  about 2 min left  ")  # two readings of the clock per step
    assert lines[30].startswith("step 31/40  refine 1/1: 1/10  20 Gaussians")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1, 1, 2), "2 made, 0 skipped, 0 failed; 1 worker lost; 1 attempt repeated; 2 assets moved from slow workers"),
        ((0, 24, 0), "2 made, 0 skipped, 0 failed; 24 attempts repeated"),
    ],
)
def test_end_of_a_list_says_what_happened(capsys, counts, text):
    TerminalReporter(Output(json=False))(ListEnded(2, 0, 0, 2, *counts, ()))
    assert capsys.readouterr().err.strip() == text
