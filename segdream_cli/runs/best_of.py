"""The best of several seeds: distils all of them for a part of the steps, and takes the best one to the end.

Each seed is an ordinary run, in a folder beside that of the asset, until the best is chosen. So a repeated command
resumes them. The run of the best then moves to the asset's own run folder, with an image and the score of every seed.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from segdream_cli.errors import Interrupted, SegdreamError, UsageProblem, WeightsAbsent, WeightsUnavailable
from segdream_cli.evaluate.metrics import METRICS, Asset, Metric, Setup
from segdream_cli.evaluate.views import ViewProtocol
from segdream_cli.optimize.state import AssetState
from segdream_cli.render.images import write_png
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.ownership import EVENTS, TRIED, remove_contents, remove_folder
from segdream_cli.runs.reporter import Event, JobSkipped, Note, Reporter, RunSaved, SeedChosen, note_to
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.runner import ActiveRun, Destination, four_sides
from segdream_cli.runs.session import Begin, Session, drain, page_for
from segdream_cli.runs.spec import JobSpec
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.util.files import atomic_write

TRIAL_SHARE = 0.4
"""Share of the distillation steps after which the seeds are compared."""
JUDGE, CLIP = "judge", "clip"
VIEWS = ViewProtocol(n=8, elevations_deg=(15.0,))
"""The views that CLIP reads."""


class StopAt(StopRequest):
    """Stops runs that are together at a step, or when another request is made.

    Args:
        inner: the other request, which handles signals.
        active: the runs.
        step: the step.
    """

    def __init__(self, inner: StopRequest, active: Sequence[ActiveRun], step: int) -> None:
        super().__init__()
        self.inner, self.active, self.step = inner, active, step

    def is_set(self) -> bool:
        """Whether the step is reached, or the other request was made."""
        return self.inner.is_set() or max(each.asset.step for each in self.active) >= self.step

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inner.__exit__(kind, value, trace)


def scores_by(name: str, metric: Metric, asset: Asset) -> float:
    """The score of an asset, higher is better; NaN if the metric has none.

    By the judge it is the mean of the probability of the right classes, the share of right views, and one minus the
    Janus rate, as far as they are defined. By CLIP it is the mean cosine of eight views, times 100.
    """
    observed = [metric.observe(asset, views) for views in VIEWS.render(asset.gaussians)] if metric.reads_views else []
    values = metric.measure(asset, np.concatenate(observed) if observed else np.zeros((0, 0)))
    if name == CLIP:
        return float(values["score"])  # type: ignore[arg-type]
    parts = [values["probability"], values["view"], 1 - values["janus"]]  # type: ignore[operator]
    known = [float(part) for part in parts if not math.isnan(part)]  # type: ignore[arg-type]
    return sum(known) / len(known) if known else float("nan")


@dataclass
class TrialSession(Session):
    """A session that chooses between seeds."""

    def generate_best(self, job: Job, count: int, by: str | None, *, force: bool) -> None:
        """Makes the asset of the best of `count` seeds, from the job's own seed on.

        Args:
            job: prompt, first seed and file.
            count: number of seeds.
            by: the metric; None is the judge for a prompt of its world and CLIP for others.
            force: replace what exists.

        Raises:
            UsageProblem: a job can't be used, or there are too few steps to compare seeds.
            OutputExists: another process works on the asset or on a seed.
            WeightsUnavailable: the metric's weights are missing.
            Interrupted: `stop` was set; the runs have been saved.
            SegdreamError: every seed failed, or the best one did later.
        """
        self.check(job, force=force)
        step = max(1, round(TRIAL_SHARE * self.config.optim.steps))
        if self.config.optim.steps == 0 or step >= self.config.last_step:
            raise UsageProblem("--best-of compares seeds between two distillation steps", hint="--steps 100")
        if self.config.optim.stop_change > 0:  # seeds could end before they are compared
            raise UsageProblem("--best-of can't be combined with optim.stop_change", hint="--set optim.stop_change=0")
        name, metric = self._metric(job.prompt, by)
        output = job.output
        trials = [
            replace(job, seed=seed, output=output.with_name(f"{output.stem}.try-{seed}{output.suffix}"))
            for seed in range(job.seed, job.seed + count)
        ]
        run = RunDir.beside(output)
        run.create(self._record(job), force=force)  # so that no other process begins the asset meanwhile
        try:
            self._reach(trials, step, force=force)
            with _claim(trials, step) as tried:
                assets = {
                    seed: self.pipeline.restore(each.load(), job.prompt, seed, self.negative_prompt)
                    for seed, each in tried.items()
                }
                scores = {seed: scores_by(name, metric, self._asset(asset, output)) for seed, asset in assets.items()}
                best = max(scores, key=lambda seed: -math.inf if math.isnan(scores[seed]) else scores[seed])
                run.create(self._record(replace(job, seed=best)), force=force)
                self._keep_best(run, assets, tried[best], name, scores)
                self.reporter(SeedChosen(output, name, step, scores, best))
                for each in tried.values():
                    remove_contents(each.path)
        except BaseException:
            run.release()
            with suppress(OSError):
                remove_folder(run.path, resumable=False)
            raise
        drain(self._finish([ActiveRun(assets[best], step, Destination(output, run, force))]))

    def _metric(self, prompt: str, by: str | None) -> tuple[str, Metric]:
        """The name and the metric that compares, loaded before any step.

        Raises:
            UsageProblem: the judge was asked for, and does not know the prompt.
            WeightsUnavailable: the weights are missing.
        """
        from segdream_cli.evaluate.judge_metric import JudgeMetric

        setup = Setup(
            device=self.device, prompts=(prompt,), offline=self.request.offline, announce=note_to(self.reporter)
        )
        if by != CLIP:
            metric = METRICS[JUDGE].load(setup)
            if isinstance(metric, JudgeMetric) and metric.label(prompt) is not None:
                return JUDGE, metric
            if by == JUDGE:
                raise UsageProblem(f"the judge does not know the prompt {prompt!r}", hint="--best-by clip")
        try:
            return CLIP, METRICS[CLIP].load(setup)
        except WeightsAbsent as problem:  # whose hint names an option of evaluate, as that of the other
            raise WeightsAbsent(problem.message, hint="segdream fetch clip") from problem
        except WeightsUnavailable as problem:
            raise WeightsUnavailable(problem.message, without=["--best-of", "--best-by"]) from problem

    def _reach(self, trials: Sequence[Job], step: int, *, force: bool) -> None:
        """Takes trials to a step, `batch` at once, and saves them there; those stopped before are resumed."""
        waiting: dict[int, list[Begin]] = {}
        for trial in trials:
            at, begin = self.plan(trial, force=force, resume=not force)
            if at < step:
                waiting.setdefault(at, []).append(begin)
        for begins in waiting.values():
            for start in range(0, len(begins), self.batch):
                self._check_stop()
                self._run_until([begin() for begin in begins[start : start + self.batch]], step)

    def _run_until(self, active: Sequence[ActiveRun], step: int) -> None:
        """Takes runs together to a step and saves them; reports those that fail."""
        if self.clouds is not None:
            self.clouds.release()  # as `_iterate` does
        stop = StopAt(self.stop, active, step)
        runner = replace(self._runner, reporter=_without_checkpoints(self.reporter), stop=stop)
        try:
            failures = drain(runner.iterate(active))
        except Interrupted as end:
            if self.stop.is_set():
                self.reporter(Note("repeat the command to resume the seeds"))
                raise Interrupted(str(end), exit_code=self.stop.exit_code) from end
            return
        for failure in failures:
            self.reporter(failure)

    def _asset(self, asset: AssetState, output: Path) -> Asset:
        """An asset as metrics read it."""
        splats = self._runner.snapshot(ActiveRun(asset, asset.step))
        return Asset(name=str(asset.seed), path=output, prompt=asset.prompt, splats=splats, gaussians=asset.gaussians)

    def _keep_best(
        self, run: RunDir, assets: Mapping[int, AssetState], best: RunDir, by: str, scores: Mapping[int, float]
    ) -> None:
        """Puts state and events of the best seed's run into the run folder of the asset, and what was tried."""
        chosen = run.record().seed
        for seed, asset in assets.items():
            write_png(run.path / f"tried-{seed}.png", four_sides(self.pipeline, asset))
        table = [{"seed": seed, "score": None if math.isnan(score) else score} for seed, score in scores.items()]
        content = {"by": by, "step": assets[chosen].step, "seeds": table, "chosen": chosen}
        with atomic_write(run.path / TRIED) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if (best.path / EVENTS).is_file():
            with atomic_write(run.path / EVENTS) as temporary:
                temporary.write_bytes((best.path / EVENTS).read_bytes())
        run.save(assets[chosen])


@contextmanager
def _claim(trials: Sequence[Job], step: int) -> Iterator[dict[int, RunDir]]:
    """Yields the runs that have reached a step, by seed; no other process works on them during the block.

    Raises:
        OutputExists: another process works on one.
        SegdreamError: none has.
    """
    with ExitStack() as held:
        runs = {}
        for trial in trials:
            run = RunDir.beside(trial.output)
            if run.can_resume() and run.step() >= step:
                run.acquire()
                held.callback(run.release)
                runs[trial.seed] = run
        if not runs:
            raise SegdreamError(f"no seed reached step {step}", hint=f"--seed {trials[-1].seed + 1}")
        yield runs


def _without_checkpoints(reporter: Reporter) -> Reporter:
    """Hides the commands that would resume single seeds."""

    def forward(event: Event) -> None:
        if not isinstance(event, RunSaved):
            reporter(event)

    return forward


def make_best(spec: JobSpec, count: int, by: str | None, reporter: Reporter, stop: StopRequest) -> None:
    """Makes the best of `count` seeds of the one job of a spec, in this process; raises as `generate_best`."""
    job = spec.jobs[0]
    if spec.skip_existing and job.output.is_file():
        reporter(JobSkipped(job.output, 1, 1))
        return
    with page_for(reporter) if spec.live else nullcontext() as page:
        session = TrialSession.load(
            spec.request, spec.negative_prompt, spec.batch, reporter=reporter, stop=stop, page=page
        )
        session = replace(session, batch=spec.batch or count)
        session.generate_best(job, count, by, force=spec.force)
