"""Takes runs from their current step to the last, keeps their folders up to date, and writes the assets."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from jaxtyping import UInt8

from segdream_cli import formats
from segdream_cli.errors import Diverged, Interrupted, OutOfMemory, OutputExists, SegdreamError
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.report import StepReport
from segdream_cli.optimize.state import AssetState
from segdream_cli.priors.prompt import describe_prompt
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.images import contact_sheet, write_png
from segdream_cli.runs.reporter import (
    AssetFinished,
    CheckpointSaved,
    JobFailed,
    Note,
    Reporter,
    RunEnded,
    RunSaved,
    RunStarted,
    Stepped,
)
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.source import Start
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.timings import Timing, Timings
from segdream_cli.splats import Splats
from segdream_cli.util.download import format_time
from segdream_cli.util.failures import convert_failures
from segdream_cli.util.files import free_name, other_path, sweep, write_policy
from segdream_cli.util.memory import peak_memory_gib
from segdream_cli.viewer.live import LivePage

LOOK_EVERY = 10
"""Steps between two reads of the gradients' norm on CUDA; each read waits for the device."""

SAVE_S = {"cpu": 20.0, "cuda": 60.0}
"""Longest time without a checkpoint, in seconds, by type of device; on CUDA a checkpoint waits for the device."""


@dataclass(frozen=True, slots=True)
class Destination:
    """An asset's file, and the folder of its run.

    Args:
        output: the file.
        run: the run folder, which this process has acquired.
        force: replace a file that appears at `output` during the run.
    """

    output: Path
    run: RunDir
    force: bool = False


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """An asset that is being made.

    Args:
        asset: its state.
        first: number of steps that it had taken when this program began or resumed it.
        destination: its file and run folder; None keeps the asset in memory.
        start: the asset that it refines, if there is one.
    """

    asset: AssetState
    first: int
    destination: Destination | None = None
    start: Start | None = None

    @property
    def name(self) -> str:
        """Its file's name, or its prompt if it stays in memory."""
        return self.asset.prompt if self.destination is None else self.destination.output.name

    @property
    def output(self) -> Path | None:
        """Its file; None if it stays in memory."""
        return None if self.destination is None else self.destination.output


@dataclass(slots=True)
class Pace:
    """How far a run is, as a line of text.

    Args:
        first: number of steps before it began.
        begin: time at which it began, of `time.monotonic`.
    """

    first: int
    begin: float
    _quantity: str = ""

    def describe(self, step: int, steps: int, norms: Sequence[float] | None, loss: float | None) -> str:
        """Steps, time left, and the loss of a refinement or the largest gradient norm, the latest that is known."""
        if loss is not None:
            self._quantity = f", loss {loss:.3g}"
        elif norms is not None:
            self._quantity = f", gradient {max(norms):.2g}"
        left = (time.monotonic() - self.begin) / max(1, step - self.first) * (steps - step)
        return f"Step {step:,} of {steps:,}, {format_time(left)} left{self._quantity}"


@dataclass(frozen=True, slots=True)
class Runner:
    """Takes runs that share a pipeline to their end.

    Args:
        pipeline: optimises the assets.
        origin: provenance of their assets, for the files.
        reporter: receives the events.
        stop: stops the runs between two steps.
        page: shows the first asset while it is made.
    """

    pipeline: Pipeline
    origin: Mapping[str, str]
    reporter: Reporter
    stop: StopRequest
    page: LivePage | None = None

    def iterate(self, active: Sequence[ActiveRun]) -> Generator[StepReport, None, list[JobFailed]]:
        """Runs assets at the same step together to their end and writes them; yields the report of each step.

        If the caller closes the generator early, it saves the runs.

        Returns:
            the errors of the assets that failed; the others are done.

        Raises:
            Interrupted: `stop` was set; the runs have been saved.
            SegdreamError: an error that ends all of them; the runs have been saved if possible.
        """
        left, begin = list(active), time.monotonic()
        failures: list[JobFailed] = []
        if not left:
            return failures
        title = left[0].name + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        name = str(left[0].destination.output) if left[0].destination else title
        self.reporter(self._start_event(left, name, title))
        self._schedule_stop(left)
        try:
            with self.stop:
                while left:
                    try:
                        yield from self._advance(left, name)
                        break
                    except Diverged as problem:
                        failed = left.pop(problem.index)
                        self._keep(failed, problem)
                        failures.append(JobFailed(problem, failed.output))
                    except (SegdreamError, Interrupted) as end:
                        if isinstance(end, SegdreamError):
                            for each in left:
                                self._keep(each, end)
                        for failure in failures:  # the caller gets `end` only
                            self.reporter(failure)
                        raise
                done = [each for each in left if self._write(each, failures)]
        finally:
            for each in active:
                if each.destination is not None:
                    each.destination.run.release()
            self.reporter(RunEnded(name))
        seconds = time.monotonic() - begin
        self._report_early_end(done)
        for each in done:
            self._report_result(each, seconds)
        if done and len(done) == len(active):
            self._record_timing(done, seconds / len(done))
        return failures

    def _start_event(self, active: Sequence[ActiveRun], name: str, title: str) -> RunStarted:
        """The event of runs that begin together."""
        config = self.pipeline.config
        known = Timings(config, self.origin["prior_digest"], self.pipeline.device).recall(len(active))
        return RunStarted(
            run=name,
            title=title,
            steps=config.last_step - active[0].asset.skipped,
            done=active[0].first,
            rounds=tuple(each.iterations for each in config.refine.rounds),
            seconds=None if known is None else known.seconds * len(active),
        )

    def _advance(self, active: Sequence[ActiveRun], name: str) -> Generator[StepReport, None, None]:
        """Takes steps until the last one, or until `stop` is set; then saves the runs."""
        options, first = self.pipeline.config.output, active[0].asset
        limit, saved = SAVE_S.get(self.pipeline.device.type, SAVE_S["cpu"]), time.monotonic()
        look_every = LOOK_EVERY if self.pipeline.device.type == "cuda" else 1
        pace = Pace(first.steps_taken, time.monotonic())
        self._show(active[0])
        for report in self._steps(active):
            look, preview, save = (
                every > 0 and report.step % every == 0
                for every in (look_every, options.preview_every, options.checkpoint_every)
            )
            if options.checkpoint_every and time.monotonic() - saved + report.seconds >= limit:
                save = True  # the next step would end too late
            step, steps = first.steps_taken, self.pipeline.config.last_step - first.skipped
            self._schedule_stop(active)  # first, since saving this step takes time too
            stopping = self.stop.is_set() and step < steps
            if (look or preview or save or stopping) and report.first_nonfinite() is not None:
                continue  # the pipeline is about to roll this step back, and raises Diverged
            norms, loss = (report.grad_norm, report.fit_loss) if look else (None, None)
            try:
                facts = report.n_gaussians, norms, report.memory_gib, report.stage, loss
                self.reporter(Stepped(name, step, steps, *facts))
            except BaseException:  # the caller's own error, or its way to leave
                self._save_finite(active, report)
                raise
            self._show(active[0], pace.describe(step, steps, norms, loss))
            with convert_failures():
                for index, each in enumerate(active):
                    if each.destination is None:
                        continue
                    self._restore_folder(each.destination.run)
                    if look or report.change is not None:
                        each.destination.run.append_event(report.event(index))
                    if preview:
                        self._preview(each, each.destination.run, report.step)
                    if save or stopping:
                        each.destination.run.save(each.asset)
            if save:
                saved = time.monotonic()
                self._report_saved(active)
            if stopping:
                for each in active:
                    self._report_checkpoint(each)
                raise Interrupted(f"stopped after step {step} of {steps}", exit_code=self.stop.exit_code)
            try:
                yield report
            except GeneratorExit:
                self._save_finite(active, report)
                raise

    def _schedule_stop(self, active: Sequence[ActiveRun]) -> None:
        """Notes when a stop takes effect: after the next step, or once the assets are written if that is the last."""
        first = active[0].asset
        if first.steps_taken + 1 < self.pipeline.config.last_step - first.skipped:
            self.stop.when = "after this step"
        else:
            self.stop.when = f"once the asset{'s are' if len(active) > 1 else ' is'} written"

    def _steps(self, active: Sequence[ActiveRun]) -> Generator[StepReport, None, None]:
        """The pipeline's steps; unlike those of the reporter, its exceptions become errors with one sentence."""
        with convert_failures():
            yield from self.pipeline.run([each.asset for each in active])

    def _save_finite(self, active: Sequence[ActiveRun], report: StepReport) -> None:
        """Saves runs that the caller leaves after a step, unless the pipeline would roll the step back."""
        if report.first_nonfinite() is None:
            for each in active:  # all of them before the reporter, which may be what failed
                self._save(each)
            for each in active:
                self._report_checkpoint(each)

    def _write(self, each: ActiveRun, failures: list[JobFailed]) -> bool:
        """Writes a finished asset; returns whether that worked."""
        if each.destination is None:
            return True
        output, run = each.destination.output, each.destination.run
        sweep(output.parent, output.stem)  # of a worker that was killed while it wrote the same asset
        try:
            with convert_failures(), write_policy(replace=each.destination.force):
                formats.write(output, self.snapshot(each))
        except OutputExists as problem:
            command = f"{run.resume_command()} -o {quote(str(free_name(output)))}"
            self._keep(each, problem, command, finished=True)
            failures.append(JobFailed(OutputExists(problem.message, hint=command), output))
            return False
        except SegdreamError as problem:
            cause = problem.__cause__
            other = other_path(cause, output) if isinstance(cause, OSError) else None
            elsewhere = None if other is None else f"{run.resume_command()} -o {quote(str(other))}"
            if self._keep(each, problem, elsewhere, finished=True):
                problem.hint = elsewhere or problem.hint
            elif other is not None:
                self._rescue(each, problem, other)
            failures.append(JobFailed(problem, output))
            return False
        run.finish(keep=self.pipeline.config.output.keep_run)
        return True

    def _rescue(self, each: ActiveRun, problem: SegdreamError, other: Path) -> None:
        """Writes a finished asset whose state can't be saved beside it to another disk, and says so in its error."""
        with suppress(SegdreamError), convert_failures(), write_policy(replace=False):
            formats.write(other, self.snapshot(each))
            problem.message, problem.hint = f"{problem.message}; the asset is {other} instead", None

    def _keep(
        self, each: ActiveRun, problem: SegdreamError, command: str | None = None, *, finished: bool = False
    ) -> bool:
        """Saves a failed run, unless its state may be that within a step; returns whether it did.

        Args:
            each: the run.
            problem: its failure.
            command: resumes it; None for the usual command.
            finished: the run has taken its last step.
        """
        saved = False
        if finished or isinstance(problem, (Diverged, OutOfMemory)) or isinstance(problem.__cause__, OSError):
            with suppress(SegdreamError), convert_failures():  # of two errors, the first is the one to report
                self._save(each)
                saved = True
        self._report_checkpoint(each, command, resumable=not isinstance(problem, Diverged))
        return saved

    def _save(self, each: ActiveRun) -> None:
        """Writes a checkpoint, if the run has a folder."""
        if each.destination is not None:
            self._restore_folder(each.destination.run)
            each.destination.run.save(each.asset)

    def _report_saved(self, active: Sequence[ActiveRun]) -> None:
        """Reports the checkpoints of runs that continue."""
        for each in active:
            if each.destination is not None:
                self.reporter(CheckpointSaved(each.destination.run.path))

    def _restore_folder(self, run: RunDir) -> None:
        """Creates a run folder again that was removed or renamed during the run, and reports that."""
        if message := run.restore():
            self.reporter(Note(message))

    def _report_checkpoint(self, each: ActiveRun, command: str | None = None, *, resumable: bool = True) -> None:
        """Reports the latest checkpoint of a run, which may be older than its last step.

        Args:
            each: the run.
            command: resumes it; None for the usual command.
            resumable: false if it would fail in the same step again.
        """
        if each.destination is None:
            return
        run, steps = each.destination.run, self.pipeline.config.last_step
        with suppress(SegdreamError):  # a checkpoint that can't be read is none
            if run.can_resume():
                resume = command or run.resume_command()
                skipped = run.skipped()
                saved = RunSaved(run.path, run.step() - skipped, steps - skipped, resume if resumable else None)
                self.reporter(saved)

    def _report_early_end(self, done: Sequence[ActiveRun]) -> None:
        """Reports after how many steps the distillation of finished assets ended, if that was early."""
        optim = self.pipeline.config.optim
        for skipped in sorted({each.asset.skipped for each in done} - {0}):
            text = f"the distillation ended after {optim.steps - skipped} of {optim.steps} steps: in the last "
            text += f"{optim.stop_every}, the views changed by less than {optim.stop_change:g} (optim.stop_change)"
            self.reporter(Note(text))

    def _report_result(self, each: ActiveRun, seconds: float) -> None:
        """Reports a finished asset that has a file; the time covers all assets that ran with it."""
        if each.destination is None:
            return
        finished = AssetFinished(
            output=each.destination.output,
            prompt=each.asset.prompt,
            seed=each.asset.seed,
            prior=self.origin["prior"],
            gaussians=len(each.asset.gaussians),
            steps=each.asset.steps_taken - each.first,
            total_steps=each.asset.steps_taken,
            seconds=seconds,
            memory_gib=peak_memory_gib(self.pipeline.device),
            run=each.destination.run.path if self.pipeline.config.output.keep_run else None,
            prompt_read=self._describe(each).get("prompt_read"),
        )
        self.reporter(finished)

    def _record_timing(self, done: Sequence[ActiveRun], seconds: float) -> None:
        """Keeps the time per asset, and the size of one that was made from its first step on and has a file."""
        last = done[-1]
        if last.destination is None or any(each.first or each.asset.skipped for each in done):
            return
        output = last.destination.output
        with suppress(OSError):  # it may have been moved away
            timing = Timing(seconds, len(last.asset.gaussians), {output.suffix.lower(): output.stat().st_size})
            timings = Timings(self.pipeline.config, self.origin["prior_digest"], self.pipeline.device)
            timings.record(len(done), timing)

    def snapshot(self, each: ActiveRun) -> Splats:
        """The current state of an asset, with its provenance; a refined one stands where its source stood."""
        asset = each.asset
        own = {**self._describe(each), "seed": asset.seed, "steps": asset.steps_taken}
        splats = asset.gaussians.splats({**self.origin, **own, "unet_rows": self.pipeline.unet_rows(asset)})
        return splats if each.start is None else each.start.finish(splats)

    def _describe(self, each: ActiveRun) -> dict[str, str]:
        """The provenance of an asset's prompt."""
        return describe_prompt(each.asset.prompt, self.pipeline.prior.profile.vocabulary)

    def _show(self, each: ActiveRun, progress: str = "") -> None:
        """Shows the asset's current state on the page, if there is one, with a line about the progress."""
        if self.page is not None:
            self.page.show(lambda: self.snapshot(each), each.asset.prompt, progress)

    def _preview(self, each: ActiveRun, run: RunDir, step: int) -> None:
        """Writes an image of the asset from four sides into the run folder."""
        write_png(run.path / f"preview-{step:06d}.png", four_sides(self.pipeline, each.asset))


def four_sides(pipeline: Pipeline, asset: AssetState) -> UInt8[np.ndarray, "h w 3"]:
    """An asset from four sides, beside each other."""
    cameras = frame_sphere(turntable_azimuths(4), torch.full((4,), 15.0), pipeline.config.output.preview_size)
    images = pipeline.render(asset.gaussians, cameras).over(torch.ones(3, device=pipeline.device))
    return contact_sheet(list(images.cpu().numpy()), columns=4)
