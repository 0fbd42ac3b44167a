"""Following runs from their present step to their last: keep the run folders up to date, stop, write the assets."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from segdream_cli import formats
from segdream_cli.cli.output import Output
from segdream_cli.cli.progress import RunProgress
from segdream_cli.cli.view import Watch
from segdream_cli.errors import Diverged, OutOfMemory, SegdreamError
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.state import AssetState
from segdream_cli.render.cameras import turntable_azimuths, viewing
from segdream_cli.render.images import contact_sheet, write_png
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.splats import Splats
from segdream_cli.util.memory import peak_memory_gib

LOOK_EVERY = 10
"""Steps between two looks at the gradients on CUDA: each waits for the device."""


@dataclass(frozen=True, slots=True)
class Growing:
    """An asset under way.

    Args:
        asset: its state.
        run: its run folder.
        output: where it will be written.
        first: its step when this program took it up.
    """

    asset: AssetState
    run: RunDir
    output: Path
    first: int


@dataclass(frozen=True, slots=True)
class Follower:
    """Runs assets that share a pipeline.

    Args:
        pipeline: what optimises them.
        sink: where results and words go.
        origin: where they come from, for their files.
        watch: the page on which one of them, the first, is shown while it grows.
    """

    pipeline: Pipeline
    sink: Output
    origin: Mapping[str, object]
    watch: Watch | None = None

    def follow(self, growing: Sequence[Growing]) -> list[SegdreamError]:
        """Runs assets at the same step together to their end and writes them.

        Returns:
            why some of them failed, each by itself; the others are done.

        Raises:
            typer.Exit: a signal stopped them; they have been saved.
            SegdreamError: what ends them all; they have been saved if that was possible.
        """
        if not growing:
            return []
        left, begin = list(growing), time.monotonic()
        failures: list[SegdreamError] = []
        title = left[0].output.name + (f" and {len(left) - 1} more" if len(left) > 1 else "")
        shown = RunProgress(title, self.pipeline.config.optim.steps, left[0].first, self.sink)
        with StopRequest() as stop, shown as progress:
            while left:
                try:
                    self._advance(left, stop, progress)
                    break
                except Diverged as problem:
                    broken = left.pop(problem.place)
                    self._keep(broken, problem)
                    failures.append(problem)
                except (SegdreamError, typer.Exit) as end:
                    if isinstance(end, SegdreamError):
                        for each in left:
                            self._keep(each, end)
                    for failure in failures:  # nobody would hear of them
                        self.sink.error(failure)
                    raise
            done = [each for each in left if self._write(each, failures)]
        seconds = time.monotonic() - begin
        for each in done:
            self._tell(each, seconds)
        return failures

    def _advance(self, growing: Sequence[Growing], stop: StopRequest, progress: RunProgress) -> None:
        """Takes steps until the last or until a signal comes, then saves and leaves."""
        options, steps = self.pipeline.config.output, self.pipeline.config.optim.steps
        look_every = LOOK_EVERY if self.pipeline.device.type == "cuda" else 1
        self._show(growing[0])
        for report in self.pipeline.run([each.asset for each in growing]):
            look, preview, save = (
                every > 0 and report.step % every == 0
                for every in (look_every, options.preview_every, options.checkpoint_every)
            )
            stopping = stop.received and report.step < steps
            if (look or preview or save or stopping) and report.taken.broken() is not None:
                continue  # the run is about to take this step back, and says so
            progress.update(report, gradient=look)
            self._show(growing[0])
            for place, each in enumerate(growing):
                if look:
                    each.run.append_event(report.event(place))
                if preview:
                    self._preview(each)
                if save or stopping:
                    each.run.save(each.asset)
            if stopping:
                for each in growing:
                    self._tell_how_to_go_on(each)
                raise typer.Exit(stop.exit_code)

    def _write(self, each: Growing, failures: list[SegdreamError]) -> bool:
        """Writes a finished asset; whether that worked."""
        try:
            formats.write(each.output, self._splats(each))
            each.run.finish()
        except SegdreamError as problem:
            self._keep(each, problem)
            failures.append(problem)
            return False
        return True

    def _tell(self, each: Growing, seconds: float) -> None:
        """Reports a finished asset; the time is that of all that ran with it."""
        self.sink.result(
            each.output,
            prompt=each.asset.prompt,
            seed=each.asset.seed,
            prior=self.origin["prior"],
            gaussians=len(each.asset.gaussians),
            steps=each.asset.step - each.first,
            seconds=round(seconds, 3),
            memory_gib=round(peak_memory_gib(self.pipeline.device), 3),
            run=str(each.run.path),
        )

    def _keep(self, each: Growing, problem: SegdreamError) -> None:
        """Saves what a failed run has reached, unless the failure is in the asset itself."""
        if isinstance(problem, (Diverged, OutOfMemory)) or isinstance(problem.__cause__, OSError):
            with suppress(SegdreamError):  # of two errors, the first is the one to show
                each.run.save(each.asset)
        if each.run.unfinished() and isinstance(problem, Diverged):  # going on would meet the same step again
            self.sink.note(f"kept as it was after step {each.asset.step}: {each.run.path}")
        elif each.run.unfinished():
            self._tell_how_to_go_on(each)

    def _tell_how_to_go_on(self, each: Growing) -> None:
        step, steps = each.asset.step, self.pipeline.config.optim.steps
        self.sink.stopped(each.run.path, step, f"stopped after step {step} of {steps}; to go on:")
        self.sink.note(f"  {each.run.resume_command()}")

    def _splats(self, each: Growing) -> Splats:
        """An asset as it is now, with where it comes from."""
        asset = each.asset
        return asset.gaussians.splats({**self.origin, "prompt": asset.prompt, "seed": asset.seed, "steps": asset.step})

    def _show(self, each: Growing) -> None:
        """Lets whoever watches see the asset as it is now."""
        if self.watch is not None:
            self.watch.show(lambda: self._splats(each), each.asset.prompt)

    def _preview(self, each: Growing) -> None:
        """Saves a picture of the asset from four sides."""
        pipeline, asset = self.pipeline, each.asset
        cameras = viewing(turntable_azimuths(4), torch.full((4,), 15.0), pipeline.config.output.preview_size)
        pictures = pipeline.render(asset.gaussians, cameras).over(torch.ones(3, device=pipeline.device))
        sheet = contact_sheet(list(pictures.cpu().numpy()), columns=4)
        write_png(each.run.path / f"preview-{asset.step:06d}.png", sheet)
