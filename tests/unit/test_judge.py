"""The judge: what its verdict says, and which files it refuses."""

import json
from pathlib import Path

import pytest
import torch

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.evaluate.judge import CLASSES_FILE, SECTORS, WEIGHTS_FILE, Judge, Verdict
from segdream_cli.util.hashes import write_sums
from training.train_judge import save

CLASSES = {
    "objects": ["duck", "cube", "mug"],
    "colors": ["red", "blue"],
    "attributes": ["", "striped"],
    "azimuths": [str(45 * k) for k in range(8)],
}


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(CLASSES).eval()


@pytest.fixture
def folder(judge: Judge, tmp_path: Path) -> Path:
    """A judge as training leaves it."""
    save(judge, tmp_path, {"azimuth_accuracy": {"duck": 0.9}})
    return tmp_path


def verdict(azimuths: torch.Tensor) -> Verdict:
    m = len(azimuths)
    return Verdict(torch.eye(3)[[1] * m], torch.eye(2)[[1] * m], torch.eye(2)[[0] * m], azimuths)


def test_verdict_holds_probabilities_in_batches_of_any_size(judge: Judge) -> None:
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = judge.verdict(images)
    in_parts = judge.verdict(images, batch=2)
    for head in CLASSES:
        shares = getattr(found, head)
        assert shares.shape == (5, len(CLASSES[head]))
        torch.testing.assert_close(shares.sum(-1), torch.ones(5))
        torch.testing.assert_close(getattr(in_parts, head), shares)
        torch.testing.assert_close(shares, judge(images)[head].softmax(-1))


def test_features_are_what_the_heads_read(judge: Judge) -> None:
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    features = judge.features(images, batch=2)
    for name, head in judge.heads.items():
        torch.testing.assert_close(head(features), judge(images)[name])


def test_verdict_names_the_most_probable_class() -> None:
    found = verdict(torch.eye(8)[[3, 6]])
    assert found.object.tolist() == [1, 1]
    assert found.color.tolist() == [1, 1]
    assert found.attribute.tolist() == [0, 0]
    assert found.azimuth.tolist() == [3, 6]


@pytest.mark.parametrize(("azimuth_deg", "sector"), [(0, "front"), (90, "side"), (180, "back"), (270, "side")])
def test_sector_of_an_azimuth_on_an_axis(azimuth_deg: int, sector: str) -> None:
    assert SECTORS[verdict(torch.eye(8)[[azimuth_deg // 45]]).sector.item()] == sector


def test_sector_splits_diagonal_azimuths_between_their_neighbors() -> None:
    """By the sums written out: front 0.2 + (0.3 + 0.1) / 2 = 0.4, sides 0.1 + 0.3 / 2 + 0.1 / 2 + 0.3 / 2 = 0.45."""
    found = verdict(torch.tensor([[0.2, 0.3, 0.1, 0.0, 0.0, 0.3, 0.0, 0.1], [0.3, 0.3, 0.1, 0.0, 0.0, 0.2, 0.0, 0.1]]))
    assert [SECTORS[i] for i in found.sector.tolist()] == ["side", "front"]


def test_load_restores_weights_classes_and_accuracy(judge: Judge, folder: Path) -> None:
    loaded = Judge.load(folder, "cpu")
    assert loaded.classes == CLASSES
    assert loaded.azimuth_accuracy == {"duck": 0.9}
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, judge.state_dict()[name].half().float(), rtol=0, atol=0)


def test_load_refuses_files_that_are_missing_damaged_or_of_other_classes(folder: Path) -> None:
    about, weights = (folder / name for name in (CLASSES_FILE, WEIGHTS_FILE))
    good, good_weights = json.loads(about.read_text(encoding="utf-8")), weights.read_bytes()
    for text in ("{", "[]", "{}", json.dumps({**good, "objects": ["zeppelin"]}), json.dumps({**good, "colors": 3})):
        about.write_text(text, encoding="utf-8")
        with pytest.raises(WeightsUnavailable, match="can't be read"):
            Judge.load(folder, "cpu")
    about.write_text(json.dumps(good), encoding="utf-8")
    weights.write_bytes(good_weights[:100])
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        Judge.load(folder, "cpu")
    weights.unlink()
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        Judge.load(folder, "cpu")


def test_load_refuses_other_files_than_those_of_the_list(judge: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    save(judge, folder, {"azimuth_accuracy": {}})
    assert not folder.with_name("judge.sha256").exists()
    write_sums(folder)
    Judge.load(folder, "cpu")
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=rf"differs from .*judge\.sha256: {WEIGHTS_FILE}$"):
        Judge.load(folder, "cpu")
    save(judge, folder, {"azimuth_accuracy": {"duck": 0.5}})  # which knows of the list
    assert Judge.load(folder, "cpu").azimuth_accuracy == {"duck": 0.5}
