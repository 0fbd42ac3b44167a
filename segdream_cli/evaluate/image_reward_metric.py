"""The metric `image-reward`: how much people would like the views of an asset for its prompt."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from segdream_cli.evaluate import image_reward
from segdream_cli.evaluate.image_reward import ImageReward
from segdream_cli.evaluate.metrics import Array, Asset, Figure, Metric, Setup, Views


class ImageRewardMetric:
    """Mean and lowest score of the views; an asset without a prompt has none."""

    figures: Mapping[str, Figure] = {
        "mean": Figure("ImageReward", "higher", main=True),
        "lowest": Figure("ImageReward, lowest view", "higher"),
    }
    set_figures: Mapping[str, Figure] = MappingProxyType({})
    reads_views = True

    def __init__(self, network: ImageReward) -> None:
        self.network = network

    def observe(self, asset: Asset, views: Views) -> Float[Array, "v 1"]:
        """The score of each view."""
        if not asset.prompt:
            return np.full((len(views.images), 1), np.nan)
        return self.network.score(views.images, asset.prompt).numpy()[:, None]

    def measure(self, asset: Asset, observed: Float[Array, "v 1"]) -> dict[str, float]:
        """The values of one asset."""
        return {"mean": float(observed.mean()), "lowest": float(observed.min())}

    def summarize(self, observed: Sequence[Float[Array, "v 1"]]) -> dict[str, float]:
        """Nothing."""
        return {}


def load(setup: Setup) -> Metric:
    """The metric with the published weights, or those that `setup.weights["image-reward"]` names.

    Raises:
        WeightsUnavailable: the weights can't be found, downloaded or read.
    """
    given = setup.weights.get("image-reward")
    return ImageRewardMetric(image_reward.load(given, setup.device, offline=setup.offline, announce=setup.announce))
