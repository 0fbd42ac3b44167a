"""Checks of a command line that need no torch, so that an error is answered before the seconds of its import.

A `Session` makes them again: other programs write files too, and Python callers come without them.
"""

from collections.abc import Sequence
from pathlib import Path

from segdream_cli import formats
from segdream_cli.config import AUTO
from segdream_cli.config.start import POINT_E, check_start, is_file
from segdream_cli.errors import OutputExists
from segdream_cli.formats.common import open_asset
from segdream_cli.priors.checkpoint import profile_of
from segdream_cli.priors.profile import PriorProfile
from segdream_cli.priors.prompt import read_negative, read_prompt
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.run_dir import RunDir
from segdream_cli.runs.spec import JobSpec, Request
from segdream_cli.splats.frames import check_frame
from segdream_cli.util.devices import check_device, may_have_cuda
from segdream_cli.util.files import check_output

MESHES = (".gltf", ".obj", ".off", ".stl")
"""Suffixes that `runs.source` judges itself."""


def check_spec(spec: JobSpec, *, makes_folders: bool = False) -> None:
    """Refuses jobs that can't end well; those of a list are checked one by one when their turn comes.

    Args:
        spec: the jobs.
        makes_folders: folders that do not exist will be created.

    Raises:
        UsageProblem: a setting, a prompt or an output can't be used.
        OutputExists: an asset or an unfinished run of it exists.
        WeightsUnavailable: the prior's profile can't be read.
    """
    profile = check_request(spec.request)
    if profile is not None and spec.negative_prompt is not None:
        read_negative(spec.negative_prompt, profile.vocabulary)
    if spec.as_list:
        return
    for job in spec.jobs:
        if spec.skip_existing and (job.output.is_file() or RunDir.beside(job.output).can_resume()):
            continue
        if profile is not None:
            read_prompt(job.prompt, profile.vocabulary)
        formats.check_format(job.output)
        if job.output.parent.exists() or not makes_folders:
            check_files(job, force=spec.force, several=len(spec.jobs) > 1)


def check_request(request: Request, prompts: Sequence[str] = ()) -> PriorProfile | None:
    """Refuses settings and prompts that can't be used.

    Returns:
        the profile of their prior; None, without a look at the prompts, if only torch can choose it.

    Raises:
        UsageProblem: the device, a setting or a prompt can't be used.
        WeightsUnavailable: the profile can't be read.
    """
    check_device(request.device)
    prior = request.prior()
    if prior.name == AUTO and prior.model is None and request.device == AUTO and may_have_cuda():
        return None
    profile = profile_of(prior, cuda=request.device.startswith("cuda"))
    config = request.resolve(profile)
    if not request.refines:
        check_start(config.init.shape)
        if is_file(config.init.shape):
            formats.kind_of(Path(config.init.shape))
        if config.init.frame is not None:
            check_frame(config.init.frame)
        if config.init.shape == POINT_E and config.init.prompt is not None:
            read_prompt(config.init.prompt, profile.vocabulary)
    request.notes_on_idle(config)
    for prompt in prompts:
        read_prompt(prompt, profile.vocabulary)
    return profile


def check_files(job: Job, *, force: bool, several: bool = False) -> None:
    """Refuses a job whose files can't be written; `several` says that it is one of many.

    Raises:
        UsageProblem: the output can't be used.
        OutputExists: the asset or an unfinished run of it exists.
    """
    try:
        check_output(job.output, force=force)
    except OutputExists as problem:
        if several:
            problem.hint = "--skip-existing"
        raise
    formats.check_format(job.output)
    RunDir.beside(job.output).check_free(force=force)


def check_asset(path: Path) -> None:
    """Refuses a file that can't be opened, or is neither an asset nor a mesh.

    Raises:
        UsageProblem: it is one of these.
    """
    if path.suffix.lower() not in MESHES:
        formats.kind_of(path)
        return
    with open_asset(path):
        pass
