"""Driving runs: check a job, prepare or continue it, follow its steps, save, stop, write the asset."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Self

import torch
import typer

from segdream_cli import __version__, formats
from segdream_cli.asset import AssetState
from segdream_cli.cameras import turntable_azimuths, viewing
from segdream_cli.cli.jobs import Job
from segdream_cli.cli.output import Output
from segdream_cli.cli.progress import RunProgress
from segdream_cli.cli.session import Request, choose_device, open_checkpoint, open_clouds, open_pipeline
from segdream_cli.cli.stopping import StopRequest
from segdream_cli.cli.view import Watch
from segdream_cli.config import AUTO, Config
from segdream_cli.errors import Diverged, OutOfMemory, OutputExists, SegdreamError, UsageProblem
from segdream_cli.files import check_output
from segdream_cli.images import contact_sheet, write_png
from segdream_cli.initial import check_start
from segdream_cli.memory import peak_memory_gib
from segdream_cli.pipeline import Pipeline
from segdream_cli.pointe.clouds import Clouds
from segdream_cli.run_dir import RunDir, RunRecord, installed_versions
from segdream_cli.schedule import trajectory_segments
from segdream_cli.view_prompts import clean_negative, clean_prompt
from segdream_cli.weights import Checkpoint

METHOD = "sctd"
CUDA_EVENT_EVERY = 10


@dataclass
class Session:
    """One prior, one configuration, and the jobs that share them.

    Args:
        config: the resolved configuration.
        checkpoint: the prior's files.
        device: where everything is computed.
        quality: the preset's name.
        sink: where results and words go.
        negative: negative prompt in place of the prior's own.
        clouds: makes the clouds of a start from Point-E; a run that goes on needs none.
        watch: the page on which the assets are shown while they are being made.
    """

    config: Config
    checkpoint: Checkpoint
    device: torch.device
    quality: str
    sink: Output
    negative: str | None
    clouds: Clouds | None = None
    watch: Watch | None = None

    @classmethod
    def open(cls, request: Request, sink: Output, negative: str | None) -> Self:
        """Resolves device, weights and configuration; the prior itself is loaded when it is first needed.

        Raises:
            SegdreamError: any of them can't be had.
        """
        device = choose_device(request.device)
        checkpoint = open_checkpoint(request, device, sink)
        config = request.resolve(checkpoint.profile)
        model = config.prior.model
        if model is not None and Path(model).expanduser().is_dir():  # so that the run can be resumed from elsewhere
            config = config.set({"prior.model": str(Path(model).expanduser().resolve())})
        trajectory_segments(config.distill)  # these two refuse what would otherwise fail late
        check_start(config.init.shape)
        if negative is not None:
            clean_negative(negative, checkpoint.profile.vocabulary)
        clouds = open_clouds(
            config.init, checkpoint.profile.point_e, lambda: checkpoint, device, sink, offline=request.offline
        )
        return cls(config, checkpoint, device, request.quality, sink, negative, clouds)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline with its prior."""
        return open_pipeline(self.config, self.checkpoint, self.device, self.sink, self.clouds)

    def check(self, job: Job, *, force: bool) -> None:
        """Refuses a job that can't end well, before any work.

        Raises:
            UsageProblem: prompt or output can't be used.
            OutputExists: the asset or an unfinished run of it is there.
        """
        clean_prompt(job.prompt, self.checkpoint.profile.vocabulary)
        check_output(job.output, force=force)
        formats.format_of(job.output)
        RunDir.beside(job.output).check_free(force=force)

    def make(self, job: Job) -> None:
        """Makes one asset, which has been checked, from the start.

        Raises:
            typer.Exit: a signal stopped the run; it has been saved.
            SegdreamError: the run failed.
        """
        asset = self.pipeline.prepare(job.prompt, job.seed, self.negative)
        run = RunDir.beside(job.output)
        run.create(self._record(job))
        self._follow(asset, run, job.output)

    def resume(self, run: RunDir) -> None:
        """Continues a run to its end; raises as `make`, and UsageProblem for a run that can't be continued."""
        record = run.record()
        if record.prior["digest"] != self.checkpoint.digest:
            raise UsageProblem(
                f"{run.path} was started on {record.device} with other weights of {record.prior['name']}",
                hint=f"add --device {record.device}, or start over: segdream generate ... --force",
            )
        tensors = run.load()
        try:
            asset = self.pipeline.restore(tensors, record.prompt, record.seed, record.negative_prompt)
        except KeyError as problem:
            raise run.damaged(problem) from problem
        run.trim_events(asset.step)
        self.sink.note(f"continuing {run.path} after step {asset.step} of {self.config.optim.steps}")
        self._follow(asset, run, run.path.parent / record.output)

    def make_all(self, jobs: Sequence[Job], *, force: bool) -> None:
        """Makes assets that must all be possible before the first is begun; raises as `check` and `make`."""
        for job in jobs:
            self.check(job, force=force)
        for job in jobs:
            self.make(job)

    def make_list(self, jobs: Sequence[Job], *, force: bool) -> None:
        """Makes what is not there yet, continues what was stopped, and goes on after a failure.

        Raises:
            typer.Exit: with 1 if any failed, or a signal's code.
        """
        made, skipped, failed = 0, 0, 0
        for number, job in enumerate(jobs, 1):
            if job.output.exists() and not force:
                skipped += 1
                self.sink.skipped(job.output, f"[{number}/{len(jobs)}] {job.output} is there")
                continue
            self.pipeline  # noqa: B018 - a prior that can't be loaded ends the list, not one item after the other
            self.sink.note(f"[{number}/{len(jobs)}] {job.prompt}")
            try:
                run = RunDir.beside(job.output)
                if not force and run.unfinished() and self._same_run(run, job):
                    self.resume(run)
                else:
                    self.check(job, force=force)
                    self.make(job)
                made += 1
            except SegdreamError as problem:
                failed += 1
                self.sink.error(problem)
            except typer.Exit:
                self.sink.note("or the same command again, which goes on with the whole list")
                raise
        self.sink.note(f"{made} made, {skipped} there already, {failed} failed")
        if failed:
            raise typer.Exit(1)

    def _record(self, job: Job) -> RunRecord:
        return RunRecord(
            prompt=job.prompt,
            seed=job.seed,
            negative_prompt=self.negative,
            output=job.output.name,
            quality=self.quality,
            config=self.config.flat(),
            prior={"name": self.checkpoint.name, "digest": self.checkpoint.digest},
            device=str(self.device),
            versions=installed_versions(),
        )

    def _same_run(self, run: RunDir, job: Job) -> bool:
        """Whether an unfinished run is of this very job."""
        record, wanted = run.record(), self._record(job)
        return dataclasses.replace(record, versions=wanted.versions, device=wanted.device) == wanted

    def _follow(self, asset: AssetState, run: RunDir, output: Path) -> None:
        """Runs an asset to its end, keeping its run folder up to date, and writes it."""
        options, begin, first = self.config.output, time.monotonic(), asset.step
        event_every = CUDA_EVENT_EVERY if self.device.type == "cuda" else 1
        progress = RunProgress(output.name, self.config.optim.steps, asset.step, self.sink)
        with StopRequest() as stop, progress:
            try:
                self._show(asset)
                for report in self.pipeline.run([asset]):
                    progress.update(report)
                    self._show(asset)
                    if report.step % event_every == 0:
                        run.append_event(report)
                    if options.preview_every and report.step % options.preview_every == 0:
                        self._preview(asset, run)
                    if stop.received:
                        break
                    if options.checkpoint_every and report.step % options.checkpoint_every == 0:
                        run.save(asset)
                if asset.step < self.config.optim.steps:
                    run.save(asset)
                    self._tell_how_to_go_on(asset, run)
                    raise typer.Exit(stop.exit_code)
                formats.write(output, asset.gaussians.splats(self.provenance(asset.prompt, asset.seed)))
            except SegdreamError as problem:
                self._keep(asset, run, problem)
                raise
            run.finish()
        seconds = time.monotonic() - begin
        self.sink.result(
            output,
            prompt=asset.prompt,
            seed=asset.seed,
            prior=self.checkpoint.name,
            gaussians=len(asset.gaussians),
            steps=asset.step - first,
            seconds=round(seconds, 3),
            memory_gib=round(peak_memory_gib(self.device), 3),
            run=str(run.path),
        )

    def _keep(self, asset: AssetState, run: RunDir, problem: SegdreamError) -> None:
        """Saves what a failed run has reached, unless the failure is in the asset itself."""
        if isinstance(problem, (Diverged, OutOfMemory)) or isinstance(problem.__cause__, OSError):
            with suppress(SegdreamError):  # of two errors, the first is the one to show
                run.save(asset)
        if run.unfinished() and isinstance(problem, Diverged):  # going on would meet the same step again
            self.sink.note(f"kept as it was after step {asset.step}: {run.path}")
        elif run.unfinished():
            self._tell_how_to_go_on(asset, run)

    def _tell_how_to_go_on(self, asset: AssetState, run: RunDir) -> None:
        self.sink.stopped(
            run.path, asset.step, f"stopped after step {asset.step} of {self.config.optim.steps}; to go on:"
        )
        self.sink.note(f"  {run.resume_command()}")

    def provenance(self, prompt: str, seed: int) -> dict[str, object]:
        """Where an asset came from, for its file."""
        return {
            "generator": f"segdream {__version__}",
            "prompt": prompt,
            "seed": seed,
            "method": METHOD,
            "prior": self.checkpoint.name,
            "prior_digest": self.checkpoint.digest,
            "quality": self.quality,
            "steps": self.config.optim.steps,
        }

    def _show(self, asset: AssetState) -> None:
        """Lets whoever watches see the asset as it is now."""
        if self.watch is None:
            return
        so_far = self.provenance(asset.prompt, asset.seed)
        self.watch.show(lambda: asset.gaussians.splats({**so_far, "steps": asset.step}), asset.prompt)

    def _preview(self, asset: AssetState, run: RunDir) -> None:
        """Saves a picture of the asset from four sides."""
        cameras = viewing(turntable_azimuths(4), torch.full((4,), 15.0), self.config.output.preview_size)
        pictures = self.pipeline.render(asset.gaussians, cameras).over(torch.ones(3, device=self.device))
        sheet = contact_sheet(list(pictures.cpu().numpy()), columns=4)
        write_png(run.path / f"preview-{asset.step:06d}.png", sheet)


def resume(path: Path, request: Request, sink: Output, *, force: bool, watch: Watch | None = None) -> None:
    """Continues the run in `path` with the settings it was started with.

    Raises:
        UsageProblem: it is not a run folder, it was stopped before its first checkpoint, or its asset's folder can't be
            written.
        OutputExists: the run is done, or its asset is there and `force` is false.
    """
    path = path if path.name not in ("", "..") else path.resolve()  # the asset goes beside the folder, not into it
    run = RunDir(path)
    record = run.record()
    output = path.parent / record.output
    if not run.unfinished():
        if output.exists():
            raise OutputExists(
                f"{path} is done: {output} is there", hint=f"segdream render {quote(str(output))} --turntable"
            )
        raise UsageProblem(
            f"{path} has no checkpoint: the run was stopped before its first one",
            hint=f"segdream generate {quote(record.prompt)} --seed {record.seed} --quality {record.quality} "
            + (f"--negative {quote(record.negative_prompt)} " if record.negative_prompt is not None else "")
            + f"--config {quote(str(path / 'run.json'))} -o {quote(str(output))}",
        )
    check_output(output, force=force)
    config = run.config()
    kept = {key: value for key, value in request.options.items() if key == "output.preview_every" and value is not None}
    # another device has other arithmetic and may have other weight files
    device = choose_device(record.device if request.device == AUTO else request.device)
    settings = config.flat()
    if config.prior.model is None:
        settings["prior.name"] = record.prior["name"]  # "auto" may stand for another on this machine
    prior = Request(quality=record.quality, options=settings, offline=request.offline)
    checkpoint = open_checkpoint(prior, device, sink)
    session = Session(config.set(kept), checkpoint, device, record.quality, sink, record.negative_prompt, watch=watch)
    session.resume(run)
