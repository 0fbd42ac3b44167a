"""A look at all jobs of a list before the first worker starts: what exists, what is impossible, how much is left."""

from collections.abc import Callable
from dataclasses import dataclass

from segdream_cli.errors import SegdreamError
from segdream_cli.priors.checkpoint import profile_of
from segdream_cli.priors.prompt import describe_prompt
from segdream_cli.runs.checks import check_files
from segdream_cli.runs.jobs import FileJob, Job, titles_of
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.spec import JobSpec
from segdream_cli.util.failures import convert_failures
from segdream_cli.util.files import lexists


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A job before its first attempt.

    Args:
        number: its index in the list, from 1.
        job: the job.
        title: a line about it.
        steps: number of steps left.
        last: number of its last step.
        exists: the asset exists, and need not be made.
        problem: the reason why it is impossible.
    """

    number: int
    job: Job
    title: str
    steps: int
    last: int
    exists: bool = False
    problem: SegdreamError | None = None


def survey(spec: JobSpec, note: Callable[[str], None], *, cuda: bool) -> list[Surveyed]:
    """Looks at the jobs of a spec without the prior's networks, so that a machine without a GPU can do it.

    Args:
        spec: the jobs.
        note: receives how the prior reads the prompts.
        cuda: the workers compute on CUDA.

    Raises:
        UsageProblem, WeightsUnavailable: a setting or the prior's profile can't be used.
    """
    if spec.work is not None:
        return _survey_files(spec)
    profile = profile_of(spec.request.prior(), cuda=cuda)
    last = spec.request.resolve(profile).last_step
    skips = (spec.as_list or spec.skip_existing) and not spec.force
    read: set[str] = set()
    found = []
    for number, (job, title) in enumerate(zip(spec.jobs, titles_of(spec.jobs), strict=True), 1):
        if skips and job.output.is_file():
            found.append(Surveyed(number, job, title, 0, last, exists=True))
            continue
        try:
            with convert_failures():
                if job.prompt not in read:
                    describe_prompt(job.prompt, profile.vocabulary, note)
                    read.add(job.prompt)
                found.append(Surveyed(number, job, title, _steps_left(job, last, spec, resume=skips), last))
        except SegdreamError as problem:
            found.append(Surveyed(number, job, title, 0, last, problem=problem))
    return found


def _survey_files(spec: JobSpec) -> list[Surveyed]:
    """The jobs of a `Work`; the bytes that each reads count as its steps, so that large assets go first."""
    found = []
    for number, job in enumerate(spec.jobs, 1):
        assert isinstance(job, FileJob)
        size = sum(path.stat().st_size for path in job.inputs)
        exists = bool(job.proofs) and not spec.force and all(map(lexists, job.proofs))
        title = f"[{number}/{len(spec.jobs)}] {job.asset}"
        found.append(Surveyed(number, job, title, size, size, exists=exists))
    return found


def _steps_left(job: Job, last: int, spec: JobSpec, *, resume: bool) -> int:
    """The number of steps that a job's asset lacks; raises as `Session.check`."""
    run = RunDir.beside(job.output)
    if resume and run.can_resume():
        return max(0, last - run.step())
    check_files(job, force=spec.force)
    return last
