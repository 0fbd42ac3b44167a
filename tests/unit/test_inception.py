"""Inception's features against those of torchmetrics, and the search for its weights.

`golden/make_inception.py` wrote the features; torchmetrics needs torchvision for its network, and the tests do without.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate import inception
from segdream_cli.evaluate.inception import NAME, Inception

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "inception.json").read_text(encoding="utf-8"))
IMAGES = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 140, 140), np.uint8))
CPU = torch.device("cpu")


def weights(layers: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random weights with the published names, of a scale that keeps the size of activations."""
    rng, state = np.random.default_rng(0), {}
    for name, (outputs, inputs, height, width) in layers.items():
        scale = (2 / (inputs * height * width)) ** 0.5
        values = {
            "conv.weight": scale * rng.standard_normal((outputs, inputs, height, width)),
            "bn.weight": rng.uniform(0.7, 1.3, outputs),
            "bn.bias": rng.uniform(-0.3, 0.3, outputs),
            "bn.running_mean": rng.uniform(-0.3, 0.3, outputs),
            "bn.running_var": rng.uniform(0.5, 1.5, outputs),
        }
        state |= {f"{name}.{key}": torch.from_numpy(value.astype(np.float32)) for key, value in values.items()}
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of the published name and layout."""
    made = tmp_path_factory.mktemp("inception")
    torch.save(weights(GOLDEN["layers"]), made / NAME)
    return made


@pytest.mark.slow
def test_features_equal_those_of_torchmetrics(folder: Path) -> None:
    said: list[str] = []
    network = inception.load(folder, CPU, offline=True, announce=said.append)
    expected = torch.tensor(GOLDEN["features"])
    assert expected.shape == (2, 2048)
    assert float((expected[0] - expected[1]).abs().mean()) > 0.02
    torch.testing.assert_close(network.features(IMAGES, batch=1), expected, rtol=0, atol=1e-4)
    assert "not that of the published file" in said[0]


def test_load_refuses_files_that_lack_a_weight_or_hold_code(folder: Path, tmp_path: Path) -> None:
    state = weights(GOLDEN["layers"])
    with pytest.raises(WeightsUnavailable, match=r"Mixed_7c\.branch_pool\.bn\.bias"):
        Inception({name: value for name, value in state.items() if name != "Mixed_7c.branch_pool.bn.bias"}, CPU)
    with pytest.raises(WeightsUnavailable, match="do not fit"):
        Inception(state | {"Mixed_6a.branch3x3.conv.weight": torch.zeros(384, 5, 3, 3)}, CPU)
    torch.save({"fc.weight": print}, tmp_path / NAME)
    with pytest.raises(WeightsUnavailable, match="more than weights"):
        inception.load(tmp_path, CPU, offline=True, announce=lambda _: None)


def test_load_without_weights_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsUnavailable, match=f"has no {NAME}"):
        inception.load(tmp_path, CPU, offline=True, announce=lambda _: None)
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match="offline") as problem:
        inception.load(None, CPU, offline=True, announce=lambda _: None)
    assert problem.value.hint == "segdream fetch fid"


def test_resolve_refuses_a_damaged_file_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"published").hexdigest())
    path = inception.cached_file()
    path.parent.mkdir()
    path.write_bytes(b"published")
    assert inception.resolve(offline=True, announce=print) == path
    path.write_bytes(b"publishee")
    with pytest.raises(WeightsUnavailable, match="is damaged: its SHA-256") as caught:
        inception.resolve(offline=True, announce=print)
    assert caught.value.hint == f"rm {path}"
