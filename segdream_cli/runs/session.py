"""A pipeline and the jobs that share it: checks jobs, begins or resumes them, and makes several together."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import Any, Self, TypeVar

import torch

from segdream_cli import __version__, formats
from segdream_cli.config import AUTO, Config
from segdream_cli.config.start import check_start
from segdream_cli.distill import build_method
from segdream_cli.errors import Interrupted, OutOfMemory, OutputExists, SegdreamError, UsageProblem
from segdream_cli.formats.common import Reading
from segdream_cli.optimize.change import notes_on_change
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.report import StepReport
from segdream_cli.optimize.start import cloud_text
from segdream_cli.optimize.state import AssetState
from segdream_cli.pointe.clouds import Clouds
from segdream_cli.priors.checkpoint import Checkpoint
from segdream_cli.priors.prompt import describe_prompt, read_negative
from segdream_cli.runs.checks import check_files
from segdream_cli.runs.jobs import Job, Source, check_seed, titles_of
from segdream_cli.runs.load import load_checkpoint, load_clouds, load_pipeline, needs_network
from segdream_cli.runs.reporter import JobFailed, JobSkipped, Note, PageServed, Reporter, discard, note_to
from segdream_cli.runs.run_dir import RunDir, RunRecord, package_versions
from segdream_cli.runs.runner import ActiveRun, Destination, Runner
from segdream_cli.runs.source import Start, load_source, source_of
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.runs.stopping import StopRequest
from segdream_cli.runs.timings import Timings
from segdream_cli.splats import Splats
from segdream_cli.util.devices import choose_device, describe_machine
from segdream_cli.util.download import format_time
from segdream_cli.util.failures import convert_failures
from segdream_cli.util.files import check_output
from segdream_cli.util.home import abbreviate, expand
from segdream_cli.viewer.live import LivePage

Begin = Callable[[], ActiveRun]
Planned = tuple[Job, Begin]
T = TypeVar("T")

LOCKSTEP_DEVICES = ("cuda",)
"""Types of devices that optimise several assets at once. On a CPU, an asset's bits would then depend on the others."""

LEAST_TOLD_S = 5.0
"""Seconds; a shorter time is not worth a line."""


class Generation(Iterator[StepReport]):
    """An asset while it is made: an iterator over the reports of its steps.

    To leave the iteration early, call `close`; a run that has a folder is then saved there.
    """

    def __init__(self, steps: Generator[StepReport, None, object], snapshot: Callable[[], Splats]) -> None:
        self._steps, self._snapshot = steps, snapshot

    def __next__(self) -> StepReport:
        return next(self._steps)

    def close(self) -> None:
        """Ends the iteration."""
        self._steps.close()

    def splats(self) -> Splats:
        """A copy of the asset's current state, with its provenance."""
        return self._snapshot().copy()


@dataclass
class Session:
    """A prior, a configuration, and the jobs that share them.

    Args:
        config: the resolved configuration.
        checkpoint: the prior's files.
        device: computes everything.
        quality: the preset's name.
        negative_prompt: replaces the prior's own negative prompt.
        batch: how many assets are made at once; 1 on a CPU, whatever is given.
        clouds: samples the clouds for a start from Point-E; resumed runs need none.
        reporter: receives the events.
        stop: tells runs to save and stop.
        page: shows the assets while they are made.
        request: the configuration's origin, from which `refine` derives its own.
    """

    config: Config
    checkpoint: Checkpoint
    device: torch.device
    quality: str
    negative_prompt: str | None = None
    batch: int = 1
    clouds: Clouds | None = None
    reporter: Reporter = discard
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    page: LivePage | None = None
    request: Request = dataclasses.field(default_factory=Request)
    _noted: set[str] = dataclasses.field(default_factory=set)
    """Prompts whose reading was reported."""

    def __post_init__(self) -> None:
        if self.device.type not in LOCKSTEP_DEVICES:
            self.batch = 1

    @classmethod
    def load(
        cls,
        request: Request,
        negative_prompt: str | None = None,
        batch: int | None = None,
        *,
        reporter: Reporter = discard,
        stop: StopRequest | None = None,
        page: LivePage | None = None,
    ) -> Self:
        """Resolves device, weights and configuration; the prior itself is loaded when it is first needed.

        Args:
            request: settings and hardware.
            negative_prompt: replaces the prior's own negative prompt.
            batch: how many assets to make at once on CUDA, by default as many as the prior suggests; a CPU makes one.
            reporter: receives the events.
            stop: tells runs to save and stop.
            page: shows the assets while they are made.

        Raises:
            SegdreamError: the device or the weights are unavailable, or a setting is invalid.
        """
        device = choose_device(request.device)
        checkpoint = load_checkpoint(request, device, reporter)
        config = request.resolve(checkpoint.profile)
        model = config.prior.model
        if model is not None and expand(model).is_dir():  # so that the run can be resumed from elsewhere
            config = config.set({"prior.model": abbreviate(expand(model))})
        if not request.refines:
            check_start(config.init.shape)
        # building the method also finds errors that would otherwise come late
        for text in (*request.notes_on_idle(config), *build_method(config).notes, *notes_on_change(config.optim)):
            reporter(Note(text))
        vocabulary = checkpoint.profile.vocabulary
        if negative_prompt is not None:
            note = read_negative(negative_prompt, vocabulary).note
            if note is not None:
                reporter(Note(note))
        clouds = None
        if not request.refines:
            if cloud_text(config.init, None, vocabulary) is not None:
                describe_prompt(config.init.prompt or "", vocabulary, note_to(reporter))
            clouds = load_clouds(
                config, checkpoint.profile.point_e, lambda: checkpoint, device, reporter, offline=request.offline
            )
        if request.offline and not needs_network(config, checkpoint.profile.point_e, device):
            reporter(Note("--offline has no effect: prior and start need no download"))
        session = cls(
            config,
            checkpoint,
            device,
            request.quality,
            negative_prompt,
            batch or checkpoint.profile.batch,
            clouds,
            reporter,
            stop or StopRequest(),
            page,
            request,
        )
        if batch is not None and batch > session.batch:
            reporter(Note("--batch has no effect: a CPU optimises one asset at a time"))
        return session

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline with its prior, which is loaded on first use."""
        return load_pipeline(self.config, self.checkpoint, self.device, self.reporter, self.clouds, self.batch)

    def iterate(
        self, prompt: str, *, seed: int = 0, output: str | Path | None = None, force: bool = False
    ) -> Generation:
        """Begins an asset, and returns an iterator that takes a step and yields its report.

        Args:
            prompt: what to make.
            seed: seeds all random numbers.
            output: file to write at the end, with its run folder beside it; None keeps the asset in memory.
            force: overwrite existing output.

        Raises:
            UsageProblem: the prompt or the output can't be used.
            OutputExists: the asset or an unfinished run of it exists.
            SegdreamError: while iterating, a step failed.
        """
        return self._iterate_job(prompt, seed, output, force=force)

    def generate(self, prompt: str, *, seed: int = 0, output: str | Path | None = None, force: bool = False) -> Splats:
        """Makes an asset; for arguments and errors see `iterate`."""
        return _last(self.iterate(prompt, seed=seed, output=output, force=force))

    def refine(
        self,
        asset: str | Path,
        prompt: str,
        *,
        front: float = 0.0,
        up: str = "y",
        frame: str | None = None,
        strict: bool = False,
        as_splats: bool = False,
        strength: float | None = None,
        distil: int = 0,
        sh: int = 3,
        seed: int = 0,
        output: str | Path | None = None,
        force: bool = False,
    ) -> Splats:
        """Refines a splat or a mesh from any tool, as `segdream refine` does; the result keeps its frame and scale.

        Args:
            asset: the file.
            prompt: what it shows.
            front: azimuth of the object's front in degrees, once `up` is +y: 0 is +z, 90 is +x.
            up: the axis of the asset that points up: x, y, z, -x, -y or -z.
            frame: where the axes of a splat file point, such as "rdf"; None is what the file or its format says.
            strict: refuse a splat file with rows that are not finite, which are dropped otherwise.
            as_splats: read a plain point cloud as small Gaussians.
            strength: highest noise level of the repaint, 0 to 1; lower changes less. None leaves it to the preset.
            distil: number of distillation steps before the refinement.
            sh: highest degree of spherical harmonics to keep.
            seed: seeds all random numbers.
            output: file to write at the end, with its run folder beside it; None keeps the result in memory.
            force: overwrite existing output.

        Raises:
            UsageProblem: the asset, the prompt, a setting or the output can't be used.
            OutputExists: the output or an unfinished run of it exists.
            SegdreamError: a step failed.
        """
        source = source_of(Path(asset), front, sh, up, Reading(strict=strict, as_splats=as_splats, frame=frame))
        session = self._for_refinement({"refine.strength": strength, "optim.steps": distil})
        return _last(session._iterate_job(prompt, seed, output, force=force, source=source))

    def _for_refinement(self, settings: Mapping[str, Any]) -> "Session":
        """A session with the same prior and the settings of a refinement."""
        request = dataclasses.replace(self.request, refines=True, settings={**self.request.settings, **settings})
        session = dataclasses.replace(self, request=request, config=request.resolve(self.checkpoint.profile))
        session.pipeline = Pipeline(session.config, self.pipeline.prior, self.device)
        return session

    def _iterate_job(
        self, prompt: str, seed: int, output: str | Path | None, *, force: bool, source: Source | None = None
    ) -> Generation:
        """Begins an asset, from nothing or from a source; raises the errors of `iterate`."""
        self._check_stop()
        seed = check_seed(seed)
        if output is None:
            self.check_prompt(prompt)
            active = self._begin(prompt, seed, None, source)
        else:
            job = Job(prompt, seed, Path(output), source)
            self.check(job, force=force)
            active = self._begin_job(job, force=force)
        return Generation(self._finish([active]), partial(self._runner.snapshot, active))

    def check(self, job: Job, *, force: bool) -> None:
        """Refuses a job that can't end well, before any work.

        Raises:
            UsageProblem: prompt or output can't be used, or the settings leave nothing to do.
            OutputExists: the asset or an unfinished run of it exists.
        """
        self.check_prompt(job.prompt)
        check_files(job, force=force)
        if job.source is not None and not self.config.last_step:
            raise UsageProblem(
                "refine.enabled=false and no distillation steps leave nothing to do", hint="--set refine.enabled=true"
            )

    def check_prompt(self, prompt: str) -> None:
        """Refuses a prompt that can't be used, and reports once how the prior reads it; raises as `read_prompt`."""
        tell = note_to(discard if prompt in self._noted else self.reporter)
        describe_prompt(prompt, self.checkpoint.profile.vocabulary, tell)
        self._noted.add(prompt)

    def generate_all(self, jobs: Sequence[Job], *, force: bool, skip_existing: bool = False) -> Tally:
        """Makes assets of one prompt, `batch` seeds at once, after a check of all of them.

        Args:
            jobs: the assets.
            force: replace what exists.
            skip_existing: leave assets out that exist, and resume those whose run was stopped.

        Raises:
            Interrupted: `stop` was set; the runs have been saved, and the seeds that have not begun reported.
            SegdreamError: an asset is not possible, or failed; those that ran with it are done.
        """
        waiting: list[tuple[int, int, Begin]] = []
        for index, job in enumerate(jobs):
            if skip_existing and job.output.is_file():
                self.reporter(JobSkipped(job.output, index + 1, len(jobs)))
            else:
                waiting.append((index, *self.plan(job, force=force, resume=skip_existing and not force)))
        titles, made = titles_of(jobs), len(waiting)
        self._tell_time([step for _, step, _ in waiting])
        try:
            while waiting:
                self._check_stop()
                together = [each for each in waiting if each[1] == waiting[0][1]][: self.batch]
                waiting = [each for each in waiting if each not in together]
                for index, _, _ in together if len(jobs) > 1 else []:
                    self.reporter(Note(titles[index]))
                drain(self._finish([begin() for _, _, begin in together]))
        except (SegdreamError, Interrupted):
            if waiting:
                seeds = ",".join(str(jobs[index].seed) for index, _, _ in waiting)
                self.reporter(Note(f"the remaining seeds have not begun; --seeds {seeds} makes them"))
            raise
        return Tally(made=made, skipped=len(jobs) - made)

    def resume(self, run: RunDir, output: Path, *, force: bool) -> None:
        """Resumes a run to its end, and writes the asset to `output`.

        Raises:
            UsageProblem, OutputExists: it can't be resumed.
            Interrupted, SegdreamError: see `generate_all`.
        """
        active = self._restore(run, output, force=force)
        self._tell_time([active.asset.step])
        drain(self._finish([active]))

    def generate_list(self, jobs: Sequence[Job], *, force: bool) -> Tally:
        """Makes missing assets, resumes stopped runs, and continues after a failure.

        Impossible jobs are reported before the first asset begins. Assets at the same step are made
        together, up to `batch` at once.

        Raises:
            Interrupted: `stop` was set; the runs have been saved.
            OutOfMemory: several at once do not fit.
        """
        counts: Counter[str] = Counter()
        titles = titles_of(jobs)
        possible, steps = [], []
        for number, job in enumerate(jobs, 1):
            exists = _exists(job, force=force)
            plan = None if exists else self._plan_or_report(job, f"{job.output}: {job.prompt}", counts, force=force)
            possible += [(number, job)] if exists or plan is not None else []
            steps += [plan[0]] if plan is not None else []
        self._tell_time(steps)
        waiting: dict[int, list[Planned]] = {}
        try:
            for number, job in possible:  # checked again: another program may have written the file since
                if _exists(job, force=force):
                    counts["skipped"] += 1
                    self.reporter(JobSkipped(job.output, number, len(jobs)))
                    continue
                self.pipeline  # noqa: B018 - a prior that can't be loaded ends the list, not one item after the other
                title = titles[number - 1]
                plan = self._plan_or_report(job, title, counts, force=force)
                if plan is None:
                    continue
                step, begin = plan
                self.reporter(Note(title))
                waiting.setdefault(step, []).append((job, begin))
                if len(waiting[step]) == self.batch:
                    self._make_together(waiting.pop(step), counts)
            for planned in waiting.values():
                self._make_together(planned, counts)
        except Interrupted:
            self.reporter(Note("repeat the command to resume the whole list"))
            raise
        self.reporter(Note(f"{counts['made']} made, {counts['skipped']} skipped, {counts['failed']} failed"))
        return Tally(counts["made"], counts["skipped"], counts["failed"])

    def generate_share(self, jobs: Sequence[Job], *, force: bool, resume: bool) -> Tally:
        """Makes a few assets for a dispatcher, together as far as they are at the same step.

        Each of them ends with an `AssetFinished` or a `JobFailed` that names its file, unless an error ends all.

        Args:
            jobs: the assets.
            force: replace what exists.
            resume: resume stopped runs instead of refusing them.

        Raises:
            Interrupted: `stop` was set; the runs have been saved.
            SegdreamError: the prior can't be loaded, or several assets at once do not fit.
        """
        counts: Counter[str] = Counter()
        waiting: dict[int, list[Planned]] = {}
        self.pipeline  # noqa: B018 - a prior that can't be loaded is the fault of this machine, not of an asset
        for job in jobs:
            plan = self._plan_or_report(job, None, counts, force=force, resume=resume)
            if plan is not None:
                waiting.setdefault(plan[0], []).append((job, plan[1]))
        for planned in waiting.values():
            self._make_together(planned, counts)
        return Tally(made=counts["made"], failed=counts["failed"])

    def _tell_time(self, steps: Sequence[int]) -> None:
        """Reports the time that assets are expected to take, if it is known and long.

        Args:
            steps: the step that each asset has reached.
        """
        if not steps:
            return
        last, timings = max(1, self.config.last_step), Timings(self.config, self.checkpoint.digest, self.device)
        known = timings.recall(min(self.batch, len(steps)))
        seconds = 0.0 if known is None else known.seconds * sum((last - step) / last for step in steps)
        if seconds >= LEAST_TOLD_S:
            assets = f" for {len(steps)} assets" if len(steps) > 1 else ""
            text = f"about {format_time(seconds)}{assets}, as the latest with these settings took on this machine"
            self.reporter(Note(text))

    def _plan_or_report(
        self, job: Job, title: str | None, counts: Counter[str], *, force: bool, resume: bool | None = None
    ) -> tuple[int, Begin] | None:
        """The plan of a job of a list; counts and reports an impossible job, and returns None.

        Args:
            job: the job.
            title: a line about it, reported before an error.
            counts: its "failed" goes up.
            force: replace what exists.
            resume: resume a stopped run; None means unless `force`.
        """
        try:
            with convert_failures():
                return self.plan(job, force=force, resume=not force if resume is None else resume)
        except SegdreamError as problem:
            counts["failed"] += 1
            if title is not None:
                self.reporter(Note(title))
            self.reporter(JobFailed(problem, job.output))
            return None

    def plan(self, job: Job, *, force: bool, resume: bool) -> tuple[int, Begin]:
        """The step of a job's asset, and the function that begins it or, with `resume`, continues a stopped run of it.

        Raises:
            UsageProblem, OutputExists: see `check`.
        """
        run = RunDir.beside(job.output)
        if resume:
            repair(run, self.reporter)
        if resume and run.can_resume() and self._is_run_of(run, job):
            return run.step(), partial(self._restore, run, job.output, force=force)
        self.check(job, force=force)
        return 0, partial(self._begin_job, job, force=force)

    def _make_together(self, planned: Sequence[Planned], counts: Counter[str]) -> None:
        """Makes assets of a list that are at the same step, and counts and reports those that fail."""
        active: list[ActiveRun] = []
        failures: list[JobFailed] = []
        try:
            self._check_stop()
            for job, begin in planned:
                try:
                    with convert_failures():
                        active.append(begin())
                except SegdreamError as problem:
                    failures.append(JobFailed(problem, job.output))
                    self.reporter(failures[-1])
            ended = drain(self._iterate(active))
        except SegdreamError as problem:
            if isinstance(problem, OutOfMemory) and len(active) > 1:  # the next ones would not fit either
                raise
            ended = [JobFailed(problem, each.output) for each in active]
        for failure in ended:
            self.reporter(failure)
        counts["failed"] += len(failures) + len(ended)
        counts["made"] += len(active) - len(ended)

    def _check_stop(self) -> None:
        """Raises if `stop` was set before an asset or a batch of them.

        Raises:
            Interrupted: it was.
        """
        if self.stop.is_set():
            self.reporter(Note("stopped before the next asset"))
            raise Interrupted("stopped before the next asset", exit_code=self.stop.exit_code)

    def _begin(
        self, prompt: str, seed: int, destination: Destination | None, source: Source | None = None
    ) -> ActiveRun:
        """An asset before its first step.

        Raises:
            UsageProblem: the source can't be refined; found before the prior is loaded.
        """
        start = self._open(source)
        gaussians = None if start is None else start.gaussians
        asset = self.pipeline.prepare(prompt, seed, self.negative_prompt, gaussians)
        return ActiveRun(self._anchor(asset, start), asset.steps_taken, destination, start)

    def _open(self, source: Source | None, again: str = "run the command again") -> Start | None:
        """The source in the working frame; raises the errors of `load_source`."""
        return None if source is None else load_source(source, self.config, note_to(self.reporter), again)

    def _anchor(self, asset: AssetState, start: Start | None) -> AssetState:
        """The asset with the views of its source to resemble."""
        asset.anchor = None if start is None else start.anchor.to(self.device)
        return asset

    def _begin_job(self, job: Job, *, force: bool) -> ActiveRun:
        """The asset of a job, which has been checked, with its new run folder."""
        run = RunDir.beside(job.output)
        active = self._begin(job.prompt, job.seed, Destination(job.output, run, force), job.source)
        run.create(self._record(job), force=force)
        return active

    def _restore(self, run: RunDir, output: Path, *, force: bool) -> ActiveRun:
        """An asset in the state in which its run was stopped.

        Raises:
            UsageProblem: it can't be resumed.
            OutputExists: another process works on it.
        """
        run.acquire()
        try:
            return self._restore_acquired(run, output, force=force)
        except BaseException:
            run.release()  # the exception may keep the object, and with it the lock
            raise

    def _restore_acquired(self, run: RunDir, output: Path, *, force: bool) -> ActiveRun:
        """The asset of `_restore`, whose run this process has locked."""
        record = run.record()
        again = f"{run.repeat_command(record)} --force"
        if record.prior["digest"] != self.checkpoint.digest:
            raise UsageProblem(
                f"{run.path} was started on {record.device} with other weights of {record.prior['name']}",
                hint=again
                if str(self.device) == record.device
                else f"--device {record.device}  # or start over: {again}",
            )
        read_now = describe_prompt(record.prompt, self.checkpoint.profile.vocabulary).get("prompt_read")
        if record.prompt_read != read_now:
            raise UsageProblem(
                f"{run.path} was begun with the prompt read as {record.prompt_read or record.prompt!r}", hint=again
            )
        tensors = run.load()
        run.check_edits()
        start = self._open(None if record.source is None else Source(**record.source), again)
        try:
            asset = self.pipeline.restore(tensors, record.prompt, record.seed, record.negative_prompt)
        except KeyError as problem:
            raise run.damage_error(problem) from problem
        run.trim_events(asset.step)
        steps = self.config.last_step - asset.skipped
        self.reporter(Note(f"resuming {run.path} after step {asset.steps_taken} of {steps}"))
        destination = Destination(output, run, force)
        return ActiveRun(self._anchor(asset, start), asset.steps_taken, destination, start)

    def _iterate(self, active: Sequence[ActiveRun]) -> Generator[StepReport, None, list[JobFailed]]:
        """Runs assets together to their end; see `Runner.iterate`."""
        if self.clouds is not None:
            self.clouds.release()  # while assets are optimised, memory is scarce and Point-E idle
        return self._runner.iterate(active)

    def _finish(self, active: Sequence[ActiveRun]) -> Generator[StepReport, None, None]:
        """Runs assets together to their end.

        Raises:
            Interrupted: `stop` was set; they have been saved.
            SegdreamError: the first failure; others are reported.
        """
        failures = yield from self._iterate(active)
        for failure in failures[1:]:
            self.reporter(failure)
        if failures:
            raise failures[0].problem

    @property
    def _runner(self) -> Runner:
        origin = {
            "generator": f"segdream {__version__}",
            "method": self.config.distill.method,
            "prior": self.checkpoint.name,
            "prior_digest": self.checkpoint.digest,
            "quality": self.quality,
        }
        return Runner(self.pipeline, origin, self.reporter, self.stop, self.page)

    def _record(self, job: Job) -> RunRecord:
        described = describe_prompt(job.prompt, self.checkpoint.profile.vocabulary)
        return RunRecord(
            prompt=job.prompt,
            seed=job.seed,
            negative_prompt=self.negative_prompt,
            output=job.output.name,
            quality=self.quality,
            config=self.config.flat(),
            prior={"name": self.checkpoint.name, "digest": self.checkpoint.digest},
            device=str(self.device),
            versions=package_versions(),
            source=None if job.source is None else dataclasses.asdict(job.source),
            prompt_read=described.get("prompt_read"),
            machine=describe_machine(self.device),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _is_run_of(self, run: RunDir, job: Job) -> bool:
        """Whether an unfinished run belongs to this job."""
        record, wanted = run.record(), self._record(job)
        config = Config().set(record.config).flat()  # settings newer than the record have their defaults
        circumstances = {name: getattr(wanted, name) for name in ("versions", "device", "machine", "began")}
        return dataclasses.replace(record, config=config, **circumstances) == wanted


def _last(generation: Generation) -> Splats:
    """Takes all steps, and returns the asset."""
    for _ in generation:
        pass
    return generation.splats()


def drain(steps: Generator[StepReport, None, T]) -> T:
    """Takes all steps, and returns the generator's result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _exists(job: Job, *, force: bool) -> bool:
    """Whether a list need not make a job's asset."""
    return job.output.is_file() and not force


def repair(run: RunDir, reporter: Reporter) -> None:
    """Restores the record of a stopped run if it is damaged, and reports that; raises the errors of `RunDir.repair`."""
    if run.checkpoint.exists() and (message := run.repair()):
        reporter(Note(message))


def run_jobs(spec: JobSpec, reporter: Reporter, stop: StopRequest) -> Tally:
    """Does the jobs of a spec in this process; raises as `Session.load`, `generate_list`, `generate_all`."""
    with page_for(reporter) if spec.live else nullcontext() as page:
        session = Session.load(spec.request, spec.negative_prompt, spec.batch, reporter=reporter, stop=stop, page=page)
        if spec.as_list:
            return session.generate_list(spec.jobs, force=spec.force)
        return session.generate_all(spec.jobs, force=spec.force, skip_existing=spec.skip_existing)


def page_for(reporter: Reporter) -> LivePage:
    """A page that reports its address."""
    return LivePage(lambda url: reporter(PageServed(url)))


def resume_run(
    path: Path,
    request: Request,
    reporter: Reporter,
    stop: StopRequest,
    output: Path | None = None,
    *,
    force: bool,
    live: bool = False,
) -> None:
    """Resumes the run in `path` with its original settings.

    Args:
        path: the run folder.
        request: device, offline and `output.preview_every`; all other settings are the run's own.
        reporter: receives the events.
        stop: tells the run to save and stop.
        output: the asset's file; None for the one that the run began with.
        force: replace the asset.
        live: serve a page that shows the asset while it is made.

    Raises:
        UsageProblem: it is not a run folder, it was stopped before its first checkpoint, or its asset's folder can't be
            written.
        OutputExists: the run is done, or its asset exists and `force` is false.
    """
    path = path if path.name not in ("", "..") else path.resolve()  # the asset goes beside the folder, not into it
    run = RunDir(path)
    repair(run, reporter)
    record = run.record()
    output = output or path.parent / record.output
    if not run.can_resume():
        run.check_idle()
        if output.exists():
            raise OutputExists(
                f"{path} is done: {output} exists", hint=f"segdream render {quote(str(output))} --turntable"
            )
        raise UsageProblem(
            f"{path} has no checkpoint: the run was stopped before its first one", hint=run.repeat_command(record)
        )
    run.check_edits()
    check_output(output, force=force)
    formats.check_format(output)
    config = run.config()
    kept = {
        key: value for key, value in request.settings.items() if key == "output.preview_every" and value is not None
    }
    # another device has other arithmetic and may have other weight files
    device = choose_device(record.device if request.device == AUTO else request.device)
    settings = config.flat()
    if config.prior.model is None:
        settings["prior.name"] = record.prior["name"]  # "auto" may mean another prior on this machine
    own = Request(quality=record.quality, settings=settings, offline=request.offline)
    checkpoint = load_checkpoint(own, device, reporter)
    negative = record.negative_prompt
    with page_for(reporter) if live else nullcontext() as page:
        session = Session(
            config.set(kept),
            checkpoint,
            device,
            record.quality,
            negative,
            reporter=reporter,
            stop=stop,
            page=page,
        )
        session.resume(run, output, force=force)
