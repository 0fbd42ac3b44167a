"""`segdream evaluate --make-references`: draws the reference images of a distance from a prior."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Drawn
from segdream_cli.errors import UsageProblem

T = TypeVar("T")


def make_references(
    folder: Path,
    prompts: str | None,
    *,
    count: int,
    prior: str | None,
    seed: int,
    device: str,
    offline: bool,
    sink: Output,
) -> None:
    """Draws `count` images of each prompt of a list, and writes them and their manifest to a new folder.

    Args:
        folder: does not exist yet.
        prompts: the list, "-" for standard input.
        count: azimuths per prompt.
        prior: name of the prior; None chooses by device.
        seed: of the noise.
        device: where the prior computes.
        offline: never use the network.
        sink: receives notes, progress and the result.

    Raises:
        UsageProblem: there is no list, or the prior does not know a word of a prompt.
        OutputExists: the folder exists.
        WeightsUnavailable: the prior's weights are missing.
    """
    from segdream_cli import load
    from segdream_cli.evaluate.reference_folder import check_folder
    from segdream_cli.priors.prompt import read_prompt
    from segdream_cli.runs.checks import check_request
    from segdream_cli.runs.jobs import NEW_LIST, read_prompts
    from segdream_cli.runs.spec import Request
    from segdream_cli.util.files import free_path

    if prompts is None:
        example = free_path(NEW_LIST)
        raise UsageProblem(
            "--make-references needs --prompts, a list of the prompts to draw",
            hint=f"echo 'a yellow school bus' > {example} && --prompts {example}",
        )
    check_folder(folder)
    texts = list(dict.fromkeys(read_prompts(prompts)))
    settings = {"init.shape": "sphere"}  # nothing is distilled, so Point-E need not be found
    check_request(Request(settings={**settings, "prior.name": prior}, device=device), texts)
    from segdream_cli.cli.reporter import TerminalReporter  # slow imports, after the checks that do not need them
    from segdream_cli.evaluate.references import draw_references, write_references

    session = load(prior=prior, settings=settings, device=device, offline=offline, reporter=TerminalReporter(sink))
    readings = [read_prompt(text, session.checkpoint.profile.vocabulary) for text in texts]
    for note in (reading.note for reading in readings if reading.note is not None):
        sink.note(note)
    texts = list(dict.fromkeys(reading.text for reading in readings))
    scale = session.config.refine.guidance_scale
    drawn = draw_references(session.pipeline, texts, count, seed, scale)
    origin = {"prior": session.checkpoint.name, "seed": seed, "guidance_scale": scale, "azimuths": count}
    made = write_references(folder, _show_progress(drawn, len(texts) * count, sink), origin)
    sink.done(Drawn(output=folder, images=made, prompts=len(texts), prior=session.checkpoint.name, seed=seed))


def _show_progress(items: Iterable[T], count: int, sink: Output) -> Iterator[T]:
    """Passes the items on, and shows a bar."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from segdream_cli.cli.progress import LiveBar

    with LiveBar(sink, MofNCompleteColumn(), TimeRemainingColumn()) as live:
        task = live.add_task("drawing", total=count)
        for done, item in enumerate(items):
            if live.claim_line():
                sink.note(f"drawn {done} of {count} images")
            yield item
            live.bar.advance(task)
