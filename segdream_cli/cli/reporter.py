"""The command line as the reporter of a run: results to stdout, everything else to stderr."""

import os
import re
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, cast

from segdream_cli.cli.next_step import after_assets
from segdream_cli.cli.options import count
from segdream_cli.cli.output import Output, Said
from segdream_cli.cli.schema import Chosen, Done, ListMade, Made, Planned, Ready, Skipped, Stopped
from segdream_cli.errors import PromptProblem, SegdreamError
from segdream_cli.runs.reporter import (
    AssetFinished,
    AssetPlanned,
    DownloadEnded,
    DownloadProgress,
    Event,
    JobFailed,
    JobFinished,
    JobSkipped,
    ListEnded,
    ListProgress,
    Note,
    PageServed,
    RunEnded,
    RunSaved,
    RunStarted,
    SeedChosen,
    Stepped,
)
from segdream_cli.util.text import printable_command

if TYPE_CHECKING:
    from segdream_cli.cli.download_bar import DownloadBar
    from segdream_cli.cli.progress import ListTable, RunProgress


@dataclass(frozen=True, slots=True)
class TerminalReporter:
    """Shows the events of runs.

    Args:
        output: where lines go.
        browser: open the pages that are served.
        prompts: the file of a list of prompts, whose lines hints correct.
    """

    output: Output
    browser: bool = True
    prompts: str | None = None
    _runs: "dict[str, RunProgress]" = field(default_factory=dict)
    _downloads: "dict[str, DownloadBar]" = field(default_factory=dict)
    _tables: "list[ListTable]" = field(default_factory=list)
    _made: list[Path] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    """Notes on the steps of runs, each of which is said once."""

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case Note():
                self.output.note(event.text)
            case RunStarted():
                self._begin(event)
            case Stepped():
                self._runs[event.run].update(event)
            case RunEnded():
                self._runs.pop(event.run).stop()
            case ListProgress():
                self._show_state(event)
            case ListEnded():
                self._show_end(event)
            case AssetFinished():
                self._show_result(event)
            case JobFinished():
                self._show_lines(event)
            case AssetPlanned():
                self._show_plan(event)
            case SeedChosen():
                self._show_choice(event)
            case JobSkipped():
                title = f"[{event.number}/{event.count}] " if event.count > 1 else ""
                self.output.report(Skipped(output=event.output), f"{title}{event.output} exists, skipped")
            case JobFailed():
                if event.output is not None:
                    complete_restart(event.problem, event.output.with_suffix(".run"))
                if isinstance(event.problem, PromptProblem) and self.prompts is not None:
                    correct_list(event.problem, self.prompts)
                self.output.error(event.problem, event.output)
            case RunSaved():
                self._show_checkpoint(event)
            case PageServed():
                self.output.report(Ready(url=event.url), f"live page: {event.url}")
                if self.browser:
                    open_browser(event.url)
            case DownloadProgress():
                self._show_download(event)
            case DownloadEnded():
                if event.name in self._downloads:
                    self._downloads.pop(event.name).stop()

    def _begin(self, event: RunStarted) -> None:
        from segdream_cli.cli.progress import RunProgress, describe_steps  # rich's bars are a slow import

        about = describe_steps(event)
        if about is not None and about not in self._told:
            self.output.note(about)
            self._told.add(about)
        run = RunProgress(event, self.output)
        run.start()
        self._runs[event.run] = run

    def _show_download(self, event: DownloadProgress) -> None:
        from segdream_cli.cli.download_bar import DownloadBar

        if event.name not in self._downloads:
            self._downloads[event.name] = DownloadBar(event.name, self.output)
            self._downloads[event.name].start()
        self._downloads[event.name].update(event.done, event.total)

    def suggest(self) -> None:
        """Shows what can be done next with the assets that were made."""
        self.output.suggest(after_assets(self._made))

    def _show_result(self, event: AssetFinished) -> None:
        self._made.append(event.output)
        made = Made(
            output=event.output,
            prompt=event.prompt,
            prompt_read=event.prompt_read,
            seed=event.seed,
            prior=event.prior,
            gaussians=event.gaussians,
            steps=event.steps,
            total_steps=event.total_steps,
            seconds=round(event.seconds, 3),
            memory_gib=round(event.memory_gib, 3),
            run=event.run,
        )
        self.output.done(made)

    def _show_lines(self, event: JobFinished) -> None:
        """Shows the lines of a command that a worker has run."""
        for line, message in cast("Sequence[Said]", event.result):
            if isinstance(line, Done):
                self.output.done(line)
            elif message is not None:
                self.output.report(line, message)

    def _show_state(self, event: ListProgress) -> None:
        from segdream_cli.cli.progress import ListTable

        if not self._tables:
            self._tables.append(ListTable(self.output))
            self._tables[0].start()
        self._tables[0].update(event)

    def _show_end(self, event: ListEnded) -> None:
        if self._tables:
            self._tables.pop().stop()
        parts = [
            (event.lost, "worker", "lost"),
            (event.retried, "attempt", "repeated"),
            (event.moved, "asset", "moved from slow workers"),
        ]
        happened = [f"{count(number, noun)} {text}" for number, noun, text in parts if number]
        text = f"{event.made} made, {event.skipped} skipped, {event.failed} failed"
        if left := event.count - event.made - event.skipped - event.failed:
            text += f", {left} left"
        line = ListMade(
            made=event.made,
            skipped=event.skipped,
            failed=event.failed,
            count=event.count,
            lost=event.lost,
            retried=event.retried,
            moved=event.moved,
            given_up=event.given_up,
        )
        self.output.report(line, "; ".join([text, *happened]))
        for path in event.given_up:
            self.output.note(f"given up: {path}")

    def _show_plan(self, event: AssetPlanned) -> None:
        from segdream_cli.util.download import format_time
        from segdream_cli.util.text import format_size

        parts = [f"{event.prompt}, seed {event.seed}", f"{event.steps:,} steps"]
        if event.seconds is None:
            parts.append("no time measured on this machine yet")
        else:
            parts += [f"about {format_time(event.seconds)}", f"{event.gaussians or 0:,} Gaussians"]
            parts += [format_size(event.bytes)] if event.bytes else []
        exists = "exists" if event.action == "skip" else "; ".join(parts)
        planned = Planned(
            output=event.output,
            action=event.action,
            prompt=event.prompt,
            seed=event.seed,
            steps=event.steps,
            seconds=event.seconds,
            gaussians=event.gaussians,
            bytes=event.bytes,
        )
        self.output.result(planned, f"{event.action:6}  {event.output}: {exists}")

    def _show_choice(self, event: SeedChosen) -> None:
        scores = ", ".join(f"{seed}: {score:.3f}" for seed, score in event.scores.items())
        message = (
            f"seed {event.seed} is the best of {len(event.scores)} by {event.by} after step {event.step} ({scores})"
        )
        seeds = [{"seed": seed, "score": score} for seed, score in event.scores.items()]
        chosen = Chosen(output=event.output, by=event.by, step=event.step, seed=event.seed, seeds=seeds)
        self.output.report(chosen, message)

    def _show_checkpoint(self, event: RunSaved) -> None:
        stopped = Stopped(run=event.run, step=event.step, total_steps=event.steps, resume=event.resume)
        if event.resume is None:
            self.output.report(stopped, f"kept as it was after step {event.step}: {event.run}")
            return
        self.output.report(stopped, f"stopped after step {event.step} of {event.steps}; resume with:")
        self.output.note(f"  {printable_command(event.resume)}")


@contextmanager
def restart_hints(folder: Path, *, repeat: bool = False) -> Iterator[None]:
    """Completes the hint of an error that ends the block, as `complete_restart` does."""
    try:
        yield
    except SegdreamError as problem:
        complete_restart(problem, folder, repeat=repeat)
        raise


def complete_restart(problem: SegdreamError, folder: Path, *, repeat: bool = True) -> None:
    """Makes settings in the hint of a run, whose own are fixed once it is saved, start it over.

    Args:
        problem: the error; other hints stay as they are.
        folder: of the run.
        repeat: replace the command line: it resumes the run, or makes a list, of which --force would replace all.
    """
    from segdream_cli.runs.run_dir import RunDir

    run, options = RunDir(folder), (problem.hint or "").removeprefix("--force ")
    if options.startswith(("--set ", "--prior ")) and run.can_resume():
        with suppress(SegdreamError):  # a record that can't be read has no command
            problem.hint = f"{f'{run.repeat_command(run.record())} ' if repeat else ''}--force {options}"


def correct_list(problem: PromptProblem, source: str) -> None:
    """Makes the message of a prompt name its first line in a list, and the hint correct the lines and repeat the list.

    A list of another encoding than UTF-8, or from stdin, has no lines that a command can edit.
    """
    lines: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        lines = Path(source).read_bytes().decode("utf-8-sig").split("\n")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip() == problem.prompt]
    if not numbers:
        return
    problem.message = f"line {numbers[0]} of {source}: {problem.message}"
    if problem.instead is not None:
        text = re.sub(r"[\\/&]", r"\\\g<0>", problem.instead)
        script = ";".join(f"{number}s/.*/{text}/" for number in numbers)
        problem.hint = f"sed -i.bak {quote(script)} {quote(source)} && --prompts {quote(source)}"
        problem.words = {}


def open_browser(url: str) -> None:
    """Opens the page in a browser on the desktop, if there is one; a text browser would take over the terminal."""
    desktop = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & set(os.environ)
    if desktop or not sys.platform.startswith("linux"):
        webbrowser.open(url)
