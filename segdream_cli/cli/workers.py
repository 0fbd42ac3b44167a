"""`--devices` and `--ray`: several workers, which make assets or each run a command on one asset after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.command_line import Command, options_of
from segdream_cli.cli.output import Output, Said, relay
from segdream_cli.cli.reporter import TerminalReporter
from segdream_cli.cli.schema import Line
from segdream_cli.cli.signals import StopOnSignal
from segdream_cli.errors import UsageProblem
from segdream_cli.runs.cluster import ClusterOptions, run_on_ray
from segdream_cli.runs.jobs import FileJob
from segdream_cli.runs.processes import parse_devices, run_on_devices
from segdream_cli.runs.reporter import Reporter
from segdream_cli.runs.spec import JobSpec, Request, Tally
from segdream_cli.runs.stopping import StopRequest

PER_WORKER = {"gpus_per_worker", "cpus_per_worker"}
OWN = {"devices", "ray", "device", "output", "outputs", "skip_existing", "force", "json", "quiet", *PER_WORKER}
"""Parameters that the command of a worker gets in another way, or does not get."""
STOPPING = "stopping after the assets in progress; a second Ctrl-C exits at once"
"""For workers that run a command on one asset after another."""
STOPPING_RUNS = (
    "stopping once each worker has saved its run or written its asset; a second Ctrl-C exits at once, without saving"
)
"""For workers that make assets."""


def has_workers(context: typer.Context) -> bool:
    """Whether the command line asks for several workers.

    Raises:
        OptionProblem: an option about workers has no effect.
    """
    devices, ray = context.params["devices"], context.params["ray"]
    if ray is None:
        shared.refuse_options(context, PER_WORKER, "only affects the workers of --ray")
    else:
        shared.refuse_options(context, {"device", "devices"}, "can't be combined with --ray")
    if devices is not None:
        shared.refuse_options(context, {"device"}, "can't be combined with --devices")
    return devices is not None or ray is not None


def run_on_workers(context: typer.Context, spec: JobSpec, reporter: Reporter, stop: StopRequest) -> Tally:
    """Does the jobs of a spec on the workers that the command line asks for; raises as `Dispatcher.run`."""
    given = context.params
    if given["ray"] is not None:
        cluster = ClusterOptions(given["ray"], given["gpus_per_worker"], given["cpus_per_worker"])
        return run_on_ray(spec, cluster, reporter, stop)
    return run_on_devices(spec, parse_devices(given["devices"]), reporter, stop)


def stop_request(sink: Output) -> StopRequest:
    """The request that the first signal makes while workers do jobs on assets."""
    return StopOnSignal(sink.note, STOPPING)


@dataclass(frozen=True, slots=True)
class CommandWork:
    """A `Work` that runs a command on the asset of a job; its result are the lines that the command prints.

    Args:
        command: the function of the command.
        words: its options, but for its outputs.
        takes_device: it has the option --device.
    """

    command: Callable[..., None]
    words: tuple[str, ...]
    takes_device: bool

    def __call__(self, job: FileJob, device: str, note: Callable[[str], None]) -> tuple[Said, ...]:
        """The lines, with the paths as they were given."""
        asset, name = str(job.here(job.asset)), self.command.__name__
        words = [f"./{asset}" if asset.startswith("-") else asset]
        words += [str(job.here(Path(word))) if Path(word) in job.places else word for word in self.words]
        words += ["--device", device] if self.takes_device else []
        words += [word for output in job.outputs for word in ("-o", str(job.here(output)))]
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command(name, cls=Command)(self.command)
        said: list[Said] = []
        with relay(said, note):
            app(args=words, prog_name=f"segdream {name}", standalone_mode=False, obj=[name, *words])
        return tuple((_translate_line(line, job), message and job.translate(message)) for line, message in said)


def _translate_line(line: Line, job: FileJob) -> Line:
    """A line with the paths as they were given."""

    def amend(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(job.translate(str(value)))
        if isinstance(value, str):
            return job.translate(value)
        return [amend(each) for each in value] if isinstance(value, (list, tuple)) else value

    return replace(line, **{each.name: amend(getattr(line, each.name)) for each in fields(line)})


def share_command(
    context: typer.Context,
    command: Callable[..., None],
    sink: Output,
    jobs: Sequence[FileJob],
    extra: Sequence[str] = (),
) -> None:
    """Runs the command on each asset on the workers that its command line asks for.

    Args:
        context: the command's.
        command: its function.
        sink: shows the lines and the progress.
        jobs: one per asset.
        extra: options in place of those of the command line with the same name, which name files.

    Raises:
        UsageProblem: two assets have the same output.
        typer.Exit: a job failed, which has been reported.
        Interrupted, SegdreamError: see `Dispatcher.run`.
    """
    if context.params["skip_existing"]:
        sink.note("--skip-existing has no effect: --devices and --ray always skip output that exists")
    _check_outputs(context, jobs)
    named = {each.name for each in context.command.params if {*each.opts} & {*extra}}
    force = context.params["force"]
    words = *options_of(context, {*OWN, *map(str, named)}), *extra, "--quiet", "--force" if force else "--skip-existing"
    work = CommandWork(command, words, takes_device="device" in context.params)
    spec = JobSpec(request=Request(), jobs=tuple(jobs), force=force, as_list=True, work=work)
    tally = run_on_workers(context, spec, TerminalReporter(sink), stop_request(sink))
    if tally.failed:
        raise typer.Exit(1)


def _check_outputs(context: typer.Context, jobs: Sequence[FileJob]) -> None:
    """Refuses outputs that several assets share, and those of an asset that lie in several folders with --ray."""
    taken: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            other = taken.setdefault(path, job.asset)
            if other != job.asset:
                raise _shared_output(context, path, other, job.asset)
    given: Sequence[Path] = context.params.get("outputs") or ()
    others = [path for path in given if path.parent != given[0].parent]
    if context.params["ray"] is not None and others:
        raise UsageProblem(
            f"with --ray, each -o must be in the same folder, and {others[0].parent} is not {given[0].parent}",
            without=[f"-o {path}" for path in others],
        )


def _shared_output(context: typer.Context, path: Path, one: Path, other: Path) -> UsageProblem:
    """The error for the output of two assets."""
    given = context.params.get("outputs") or [context.params.get("output")]
    template = path.with_name(f"{{stem}}{path.suffix}")
    hint = f"-o {quote(str(template))}" if path in given else None
    return UsageProblem(f"{path} would be written for both {one} and {other}", hint=hint)
