"""`--devices`: the assets of a list shared out among devices, one process each.

Every process is given the same command line, and in its environment which device it has and which share is its own.
"""

import dataclasses
import os
import signal
import subprocess
import sys

import typer

from segdream_cli.errors import UsageProblem
from segdream_cli.runs.jobs import Job
from segdream_cli.runs.load import Request
from segdream_cli.util.devices import visible_device

SHARE = "SEGDREAM_SHARE"


def own_share(devices: str, request: Request, jobs: list[Job]) -> tuple[Request, list[Job]]:
    """The request and the jobs of this process, in one that was started for a device.

    The first process starts the others instead, waits for them, and does not come back.

    Args:
        devices: the option's value.
        request: what the command line says.
        jobs: all that it asks for.

    Raises:
        UsageProblem: the devices can't be read.
        EnvironmentProblem: one of them is not there.
        typer.Exit: in the first process, with 0 if all went well, else with the code of one that failed.
    """
    names = parse_devices(devices)[: len(jobs)]
    if SHARE in os.environ:
        number = int(os.environ[SHARE])
        return dataclasses.replace(request, device=names[number]), jobs[number :: len(names)]
    for name in names:
        visible_device(name, instead="--devices cpu")
    raise typer.Exit(_run(len(names)))


def parse_devices(text: str) -> list[str]:
    """Names of devices: `0,1` are cuda:0 and cuda:1.

    Raises:
        UsageProblem: the text is something else.
    """
    parts = text.replace(" ", "").split(",")
    if not all(part.isdecimal() or part == "cpu" for part in parts):
        raise UsageProblem(f"--devices {text!r} is not a list of devices", hint="--devices 0,1")
    return [part if part == "cpu" else f"cuda:{part}" for part in parts]


def _run(count: int) -> int:
    """Starts the processes, hands signals on to them, and returns the code to end with."""
    command = [sys.executable, "-m", "segdream_cli", *sys.argv[1:]]
    running = [
        # of a session of its own: Ctrl-C reaches it through this process, once, and not from the terminal as well
        subprocess.Popen(
            command, env=os.environ | {SHARE: str(number), "SEGDREAM_NO_PROGRESS": "1"}, start_new_session=True
        )
        for number in range(count)
    ]

    def hand_on(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [process.wait() for process in running]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = [code if code > 0 else 1 for code in codes if code]
    return max(failed, default=0)
