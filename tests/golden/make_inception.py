"""Writes golden/inception.json, features of torchmetrics' Inception: `python tests/golden/make_inception.py`.

It needs torchmetrics[image], and so a torchvision for the installed torch.
"""

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
GOLDEN = HERE / "inception.json"


def main() -> None:
    """Computes the features of the test's images with the test's weights, and replaces the file."""
    sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "unit")]
    from torchmetrics.image.fid import NoTrainInceptionV3

    layers: dict[str, list[int]] = {}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps({"layers": layers, "features": []}))
    from test_inception import IMAGES, weights

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    for name, value in network.state_dict().items():
        if name.endswith(".conv.weight"):
            layers[name.removesuffix(".conv.weight")] = list(value.shape)
    own = network.state_dict() | weights(layers)
    network.load_state_dict(own)
    with torch.no_grad():
        features = network(IMAGES)
    golden = {"layers": layers, "features": [[round(value, 5) for value in row] for row in features.tolist()]}
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
