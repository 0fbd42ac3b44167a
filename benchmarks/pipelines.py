"""The pipeline of a request, as the commands open it."""

from segdream_cli.cli.output import Output
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.runs.load import Request, open_checkpoint, open_clouds, open_pipeline
from segdream_cli.util.devices import choose_device


def pipeline_of(request: Request) -> Pipeline:
    """The pipeline with its prior loaded, and with Point-E for a start from it; nothing is downloaded for that."""
    device, sink = choose_device(request.device), Output()
    checkpoint = open_checkpoint(request, device, sink)
    config = request.resolve(checkpoint.profile)
    clouds = open_clouds(config, checkpoint.profile.point_e, lambda: checkpoint, device, sink, offline=True)
    return open_pipeline(config, checkpoint, device, sink, clouds)
