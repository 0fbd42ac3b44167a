"""The metric `frechet`: the distances of `fid` in the features of the embedded judge, which needs no download."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.evaluate.distances import DistanceMetric, find_references
from segdream_cli.evaluate.judge import EMBEDDED, Judge
from segdream_cli.evaluate.metrics import Metric, Setup

SIZE = 128
"""Side in pixels of the images that the judge was trained on."""


def load(setup: Setup) -> Metric:
    """The metric with the embedded judge, or that of `setup.weights["frechet"]`.

    Raises:
        WeightsUnavailable: the judge can't be read.
        UsageProblem: there are no reference images, or they can't be read.
    """
    judge = Judge.load(Path(setup.weights.get("frechet", EMBEDDED)).expanduser(), setup.device)

    def extract(images: UInt8[Tensor, "m 3 s s"]) -> Float[Tensor, "m 640"]:
        small = F.interpolate(images.to(torch.float32) / 255, (SIZE, SIZE), mode="bilinear", antialias=True)
        return judge.features(small)

    return DistanceMetric(extract, find_references("frechet", setup))
