"""From jobs to assets: check a job, begin it or take it up again, make as many together as the machine is meant to."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import Self

import torch
import typer

from segdream_cli import __version__, formats
from segdream_cli.cli.output import Output
from segdream_cli.cli.view import Watch
from segdream_cli.config import AUTO, Config
from segdream_cli.distill.schedule import trajectory_segments
from segdream_cli.distill.view_prompts import clean_negative, clean_prompt
from segdream_cli.errors import OutOfMemory, OutputExists, SegdreamError, UsageProblem
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.start import check_start, cloud_words
from segdream_cli.pointe.clouds import Clouds
from segdream_cli.priors.checkpoint import Checkpoint
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.load import Request, open_checkpoint, open_clouds, open_pipeline
from segdream_cli.runs.run_dir import RunDir, RunRecord, installed_versions
from segdream_cli.runs.runner import Follower, Growing
from segdream_cli.util.devices import choose_device
from segdream_cli.util.files import check_output

METHOD = "sctd"


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
        batch: how many assets are made at once.
        clouds: makes the clouds of a start from Point-E; a run that goes on needs none.
        watch: the page on which the assets are shown while they are being made.
    """

    config: Config
    checkpoint: Checkpoint
    device: torch.device
    quality: str
    sink: Output
    negative: str | None
    batch: int = 1
    clouds: Clouds | None = None
    watch: Watch | None = None

    @classmethod
    def open(cls, request: Request, sink: Output, negative: str | None, batch: int | None = None) -> Self:
        """Resolves device, weights and configuration; the prior itself is loaded when it is first needed.

        Without a `batch`, as many assets as the prior suggests are made at once on CUDA, and one on a CPU.

        Raises:
            SegdreamError: any of them can't be had.
        """
        device = choose_device(request.device)
        checkpoint = open_checkpoint(request, device, sink)
        config = request.resolve(checkpoint.profile)
        model = config.prior.model
        if model is not None and Path(model).expanduser().is_dir():  # so that the run can be resumed from elsewhere
            config = config.set({"prior.model": str(Path(model).expanduser().resolve())})
        trajectory_segments(config.distill)  # these refuse what would otherwise fail late
        check_start(config.init.shape)
        cloud_words(config.init, None, checkpoint.profile.vocabulary)
        if negative is not None:
            clean_negative(negative, checkpoint.profile.vocabulary)
        clouds = open_clouds(
            config, checkpoint.profile.point_e, lambda: checkpoint, device, sink, offline=request.offline
        )
        batch = batch or (checkpoint.profile.batch if device.type == "cuda" else 1)
        return cls(config, checkpoint, device, request.quality, sink, negative, batch, clouds)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline with its prior."""
        return open_pipeline(self.config, self.checkpoint, self.device, self.sink, self.clouds, self.batch)

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

    def make_all(self, jobs: Sequence[Job], *, force: bool) -> None:
        """Makes assets that must all be possible before the first is begun, `batch` at once.

        Raises:
            typer.Exit: a signal stopped the run; it has been saved.
            SegdreamError: an asset is not possible, or failed; those that ran with it are done.
        """
        for job in jobs:
            self.check(job, force=force)
        for start in range(0, len(jobs), self.batch):
            self._finish([self._begin(job) for job in jobs[start : start + self.batch]])

    def resume(self, run: RunDir) -> None:
        """Continues a run to its end; raises as `make_all`, and UsageProblem for a run that can't be continued."""
        self._finish([self._restore(run)])

    def make_list(self, jobs: Sequence[Job], *, force: bool) -> None:
        """Makes what is not there yet, continues what was stopped, and goes on after a failure.

        What can't be made is told before the first is begun. Assets at the same step are made together, up to `batch`
        at once.

        Raises:
            typer.Exit: with 1 if any failed, or a signal's code.
            OutOfMemory: several at once do not fit.
        """
        tally: Counter[str] = Counter()
        possible = [
            (number, job)
            for number, job in enumerate(jobs, 1)
            if _is_there(job, force=force)
            or self._planned(job, f"{job.output}: {job.prompt}", tally, force=force) is not None
        ]
        waiting: dict[int, list[Callable[[], Growing]]] = {}
        for number, job in possible:  # looked at again: what was free hours ago may be taken
            place = f"[{number}/{len(jobs)}]"
            if _is_there(job, force=force):
                tally["skipped"] += 1
                self.sink.skipped(job.output, f"{place} {job.output} is there")
                continue
            self.pipeline  # noqa: B018 - a prior that can't be loaded ends the list, not one item after the other
            words = f"{place} {job.prompt}"
            plan = self._planned(job, words, tally, force=force)
            if plan is None:
                continue
            step, begin = plan
            self.sink.note(words)
            waiting.setdefault(step, []).append(begin)
            if len(waiting[step]) == self.batch:
                self._make_together(waiting.pop(step), tally)
        for begins in waiting.values():
            self._make_together(begins, tally)
        self.sink.note(f"{tally['made']} made, {tally['skipped']} there already, {tally['failed']} failed")
        if tally["failed"]:
            raise typer.Exit(1)

    def _planned(
        self, job: Job, words: str, tally: Counter[str], *, force: bool
    ) -> tuple[int, Callable[[], Growing]] | None:
        """The plan of a job of a list; None for one that is not possible, which is counted and shown after `words`."""
        try:
            return self._plan(job, force=force)
        except SegdreamError as problem:
            tally["failed"] += 1
            self.sink.note(words)
            self.sink.error(problem, job.output)
            return None

    def _plan(self, job: Job, *, force: bool) -> tuple[int, Callable[[], Growing]]:
        """At which step a job's asset is, and what begins it or takes it up again; raises as `check`."""
        run = RunDir.beside(job.output)
        if not force and run.unfinished() and self._same_run(run, job):
            return run.step(), partial(self._restore, run)
        self.check(job, force=force)
        return 0, partial(self._begin, job)

    def _make_together(self, begins: Sequence[Callable[[], Growing]], tally: Counter[str]) -> None:
        """Makes assets of a list that are at the same step, and counts and shows those that fail."""
        growing: list[Growing] = []
        for begin in begins:
            try:
                growing.append(begin())
            except SegdreamError as problem:
                self.sink.error(problem)
        made = 0
        self._put_clouds_away()
        try:
            failures = self._follower.follow(growing)
            made = len(growing) - len(failures)
        except SegdreamError as problem:
            if isinstance(problem, OutOfMemory) and len(growing) > 1:  # nor would the next ones fit
                raise
            failures = [problem]
        except typer.Exit:
            self.sink.note("or the same command again, which goes on with the whole list")
            raise
        for failure in failures:
            self.sink.error(failure)
        tally["made"] += made
        tally["failed"] += len(begins) - made

    def _begin(self, job: Job) -> Growing:
        """An asset, which has been checked, before its first step."""
        asset = self.pipeline.prepare(job.prompt, job.seed, self.negative)
        run = RunDir.beside(job.output)
        run.create(self._record(job))
        return Growing(asset, run, job.output, asset.step)

    def _restore(self, run: RunDir) -> Growing:
        """An asset where its run was stopped.

        Raises:
            UsageProblem: it can't be continued.
        """
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
        return Growing(asset, run, run.path.parent / record.output, asset.step)

    def _finish(self, growing: Sequence[Growing]) -> None:
        """Runs assets together to their end.

        Raises:
            typer.Exit: a signal stopped them; they have been saved.
            SegdreamError: the first failure; others are shown.
        """
        self._put_clouds_away()
        failures = self._follower.follow(growing)
        for failure in failures[1:]:
            self.sink.error(failure)
        if failures:
            raise failures[0]

    def _put_clouds_away(self) -> None:
        """Frees what made the first Gaussians: while an asset grows, memory is scarce and Point-E idle."""
        if self.clouds is not None:
            self.clouds.release()

    @property
    def _follower(self) -> Follower:
        origin = {
            "generator": f"segdream {__version__}",
            "method": METHOD,
            "prior": self.checkpoint.name,
            "prior_digest": self.checkpoint.digest,
            "quality": self.quality,
        }
        return Follower(self.pipeline, self.sink, origin, self.watch)

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
        config = Config().set(record.config).flat()  # settings that a record is too old to know are at their defaults
        return dataclasses.replace(record, config=config, versions=wanted.versions, device=wanted.device) == wanted


def _is_there(job: Job, *, force: bool) -> bool:
    """Whether a list need not make a job's asset."""
    return job.output.exists() and not force


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
