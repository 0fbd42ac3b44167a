"""The metric `fid`: FID and KID of the views of all assets, in the features of Inception."""

from pathlib import Path

from segdream_cli.evaluate import inception
from segdream_cli.evaluate.distances import DistanceMetric, find_references
from segdream_cli.evaluate.metrics import Metric, Setup


def load(setup: Setup) -> Metric:
    """The metric with the published weights, or those in the folder `setup.weights["fid"]`.

    Raises:
        WeightsUnavailable: the weights can't be found, downloaded or read.
        UsageProblem: there are no reference images, or they can't be read.
    """
    references = find_references("fid", setup)  # before a download starts
    given = setup.weights.get("fid")
    folder = None if given is None else Path(given).expanduser()
    network = inception.load(folder, setup.device, offline=setup.offline, announce=setup.announce)
    return DistanceMetric(network.features, references)
