"""`--dry-run`: the assets that a command would make, with the time and the size that they are expected to have."""

import dataclasses
from collections import Counter

from segdream_cli import formats
from segdream_cli.config import SD21
from segdream_cli.errors import SegdreamError, WeightsAbsent
from segdream_cli.priors.checkpoint import FALLBACK_HINT
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.reporter import AssetPlanned, Event, JobFailed, Note, Reporter
from segdream_cli.runs.session import Session
from segdream_cli.runs.spec import JobSpec, Tally
from segdream_cli.runs.timings import Timings
from segdream_cli.util.download import format_time
from segdream_cli.util.failures import convert_failures


def plan_jobs(spec: JobSpec, reporter: Reporter, *, makes_folders: bool) -> Tally:
    """Reports an `AssetPlanned` for each job, after the checks that its start would make.

    It makes no file, and downloads nothing.

    Args:
        spec: the jobs.
        reporter: receives the events.
        makes_folders: the start would create the folders of the assets.

    Raises:
        WeightsAbsent: the prior or Point-E is not in the cache.
        SegdreamError: the first job of a prompt that is not possible; those of a list are reported and counted.
    """
    request = dataclasses.replace(spec.request, offline=True)

    def report(event: Event) -> None:
        """Leaves out the note on --offline, which nobody gave."""
        if spec.request.offline or not (isinstance(event, Note) and event.text.startswith("--offline ")):
            reporter(event)

    try:
        session = Session.load(request, spec.negative_prompt, spec.batch, reporter=report)
    except WeightsAbsent as problem:
        text = problem.message.partition(", and")[0]
        if FALLBACK_HINT not in (problem.hint or ""):  # the prior is there, and Point-E is not
            hint = "segdream fetch point-e"
        else:
            hint = f"segdream fetch {SD21}" if request.prior().model is None else FALLBACK_HINT
        raise WeightsAbsent(f"{text}, and a dry run downloads nothing", hint=hint) from problem
    counts: Counter[str] = Counter()
    total: float | None = 0.0
    for job in spec.jobs:
        try:
            with convert_failures():
                planned = _plan(session, job, spec, makes_folders=makes_folders)
        except SegdreamError as problem:
            if not spec.as_list:
                raise
            counts["failed"] += 1
            reporter(JobFailed(problem, job.output))
            continue
        counts[planned.action] += 1
        total = None if total is None or planned.seconds is None else total + planned.seconds
        reporter(planned)
    kinds = {"make": "to make", "resume": "to resume", "skip": "to skip", "failed": "impossible"}
    summary = ", ".join(f"{counts[kind]} {title}" for kind, title in kinds.items() if counts[kind])
    time = "" if total is None else f"; about {format_time(total)}"
    reporter(Note(f"dry run: {summary}{time}"))
    return Tally(counts["make"] + counts["resume"], counts["skip"], counts["failed"])


def _plan(session: Session, job: Job, spec: JobSpec, *, makes_folders: bool) -> AssetPlanned:
    """The plan of one job; raises the errors of `Session.check`."""
    skips = spec.as_list or spec.skip_existing
    if skips and not spec.force and job.output.is_file():
        return AssetPlanned(job.output, job.prompt, job.seed, "skip", 0, 0.0, None, None)
    if makes_folders and not job.output.parent.exists():
        session.check_prompt(job.prompt)
        formats.check_format(job.output)
        step = 0
    else:
        step, _ = session.plan(job, force=spec.force, resume=skips and not spec.force)
    last = session.config.last_step
    timings = Timings(session.config, session.checkpoint.digest, session.device)
    known = timings.recall(min(session.batch, len(spec.jobs)))
    return AssetPlanned(
        job.output,
        job.prompt,
        job.seed,
        "resume" if step else "make",
        last - step,
        None if known is None else known.seconds * (last - step) / max(1, last),
        None if known is None else known.gaussians,
        None if known is None else known.bytes.get(job.output.suffix.lower()),
    )
