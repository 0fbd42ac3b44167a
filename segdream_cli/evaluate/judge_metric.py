"""The metric `judge`: whether the embedded judge reads the prompt's object, colour and attribute in an asset's views.

The judge knows the world of the embedded prior only, so other prompts have no values. It reads eight views of its own,
like those that it was trained on, over white.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float

from segdream_cli.config import MINI, PriorConfig
from segdream_cli.errors import UsageProblem
from segdream_cli.evaluate.judge import EMBEDDED, SECTORS, Judge, Label, Verdict
from segdream_cli.evaluate.measures import READABLE, SECTOR_OF_AXIS
from segdream_cli.evaluate.metrics import Array, Asset, AssetMetric, Figure, Metric, Setup
from segdream_cli.priors.checkpoint import profile_of
from segdream_cli.priors.profile import Vocabulary
from segdream_cli.priors.prompt import read_prompt
from segdream_cli.render.cameras import frame_sphere, turntable_azimuths
from segdream_cli.render.view import render
from segdream_cli.util.home import expand

VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
AWAY = slice(2, 7)
"""The views 90 to 270 degrees from the front, from which a front is a second face."""


class JudgeMetric(AssetMetric):
    """Shares of the eight views that the judge reads right, and the Janus rate.

    Args:
        judge: the judge.
        vocabulary: the phrases of the prompts that it can judge.
    """

    figures: Mapping[str, Figure] = {
        "object": Figure("right object", "higher", main=True),
        "color": Figure("right colour", "higher", main=True),
        "attribute": Figure("right attribute", "higher", main=True),
        "probability": Figure("certainty about the prompt", "higher"),
        "view": Figure("right side seen", "higher", main=True),
        "janus": Figure("extra fronts (Janus)", "lower", main=True),
    }

    def __init__(self, judge: Judge, vocabulary: Vocabulary) -> None:
        self.judge, self.vocabulary = judge, vocabulary

    def label(self, prompt: str | None) -> Label | None:
        """The classes that the judge should read; None for a prompt outside its world, or no prompt."""
        try:
            phrases = read_prompt(prompt or "", self.vocabulary).phrases
        except UsageProblem:
            return None
        kinds = self.vocabulary.objects, self.vocabulary.colors, self.vocabulary.attributes
        label = Label(*(next((one for one in phrases if one in kind), "") for kind in kinds))
        return label if label.object in self.judge.classes["objects"] else None

    @torch.no_grad()
    def measure(self, asset: Asset, observed: Float[Array, "v f"]) -> dict[str, float]:
        """The values of one asset; those of the azimuth only for objects whose azimuth the judge can read."""
        label = self.label(asset.prompt)
        if label is None:
            return dict.fromkeys(self.figures, float("nan"))
        device = asset.gaussians.device
        cameras = frame_sphere(turntable_azimuths(VIEWS), torch.full((VIEWS,), ELEVATION_DEG), SIZE).to(device)
        images = render(asset.gaussians, cameras).over(torch.ones(3, device=device)).permute(0, 3, 1, 2).clamp(0, 1)
        readable = self.judge.azimuth_accuracy.get(label.object, 0) >= READABLE
        return read_verdict(self.judge.verdict(images), self.judge.classes, label, readable=readable)


def read_verdict(
    verdict: Verdict, classes: Mapping[str, list[str]], label: Label, *, readable: bool
) -> dict[str, float]:
    """The figures of eight views, 45 degrees apart from the front on, which should show a label.

    `probability` is the mean probability of the right object, colour and attribute over the views. `view` is the share
    of the four views along the axes whose sector (front, side, back) is right. `janus` is the share of the views 90 to
    270 degrees from the front that look like a front.

    Args:
        verdict: the judge's, on the eight views.
        classes: of the judge.
        label: the classes to read; without a colour, every colour is right and the share is NaN.
        readable: whether the azimuths of the object count.
    """

    def share(head: str, name: str, found: torch.Tensor) -> float:
        return float((found == classes[head].index(name)).float().mean()) if name in classes[head] else float("nan")

    rows = {"objects": verdict.objects, "colors": verdict.colors, "attributes": verdict.attributes}
    right = [
        float(rows[head][:, classes[head].index(name)].mean())
        for head, name in zip(rows, label, strict=True)
        if name in classes[head]
    ]
    sectors = verdict.sector.cpu().numpy()
    return {
        "object": share("objects", label.object, verdict.object),
        "color": share("colors", label.color, verdict.color),
        "attribute": share("attributes", label.attribute, verdict.attribute),
        "probability": float(np.mean(right)) if right else float("nan"),
        "view": float((sectors[::2] == SECTOR_OF_AXIS).mean()) if readable else float("nan"),
        "janus": float(np.mean(sectors[AWAY] == SECTORS.index("front"))) if readable else float("nan"),
    }


def load(setup: Setup) -> Metric:
    """The metric with the embedded judge, or that of `setup.weights["judge"]`; raises the errors of `Judge.load`."""
    folder = expand(setup.weights.get("judge", EMBEDDED))
    vocabulary = profile_of(PriorConfig(name=MINI), cuda=False).vocabulary
    assert vocabulary is not None, "the embedded prior has a vocabulary"
    return JudgeMetric(Judge.load(folder, setup.device), vocabulary)
