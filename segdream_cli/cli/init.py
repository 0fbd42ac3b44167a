"""`segdream init`: the first Gaussians of a run, as a file to look at, change, or start from."""

from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.output import Output
from segdream_cli.cli.session import Request, choose_device
from segdream_cli.config import AUTO


def init(
    prompt: Annotated[str, typer.Argument(help="What it is to become.")],
    output: shared.OutputOption = None,
    init: shared.InitOption = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=10_000_000, help="Number of Gaussians.", rich_help_panel=shared.QUALITY),
    ] = None,
    seed: shared.SeedOption = 0,
    quality: shared.QualityOption = shared.STANDARD,
    prior: shared.PriorOption = None,
    model: shared.ModelOption = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    force: shared.ForceOption = False,
    json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Write the start of a run as a PLY that generate --init takes.

    segdream init "a yellow school bus" --init box -o cloud.ply
    """
    from pathlib import Path

    from segdream_cli import __version__, formats
    from segdream_cli.asset import build_generators
    from segdream_cli.cli.jobs import slug
    from segdream_cli.files import check_output
    from segdream_cli.initial import initial_gaussians
    from segdream_cli.view_prompts import clean_prompt
    from segdream_cli.weights import profile_of

    request = Request(
        quality=str(quality),
        options={"prior.name": prior and str(prior), "prior.model": model, "init.shape": init, "init.count": count},
        assignments=tuple(assignments or ()),
        file=config,
    )
    profile = profile_of(request.prior(), cuda=choose_device(AUTO).type == "cuda")
    settings = request.resolve(profile).init
    text = clean_prompt(prompt, profile.vocabulary)
    path = output or Path(f"{slug(prompt)}-init.ply")
    formats.check_format(path, None)
    check_output(path, force=force)
    gaussians = initial_gaussians(settings, build_generators(seed)["init"])
    provenance = {"generator": f"segdream {__version__}", "prompt": text, "seed": seed, "init": settings.shape}
    formats.write(path, gaussians.splats(provenance))
    sink = Output(json=json, quiet=quiet)
    sink.note(f"{len(gaussians):,} Gaussians from {settings.shape}")
    sink.result(path, prompt=text, seed=seed, gaussians=len(gaussians), init=settings.shape)
