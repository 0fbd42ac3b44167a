"""Several assets in one scene."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_cleaning import balls

from segdream_cli.errors import UsageProblem
from segdream_cli.splats.scene import Placed, join, parse_placed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.ply", Placed(Path("a.ply"))),
        ("a@2.ply", Placed(Path("a@2.ply"))),
        ("b.spz@1,0,-0.5", Placed(Path("b.spz"), (1, 0, -0.5))),
        ("x@y/b.spz@1e1,+2,0,90", Placed(Path("x@y/b.spz"), (10, 2, 0), 90)),
    ],
)
def test_parse_placed(text: str, expected: Placed) -> None:
    assert parse_placed(text) == expected


def test_parse_placed_prefers_a_file_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "b.spz@1,0,0"
    path.touch()
    assert parse_placed(str(path)) == Placed(path)


@pytest.mark.parametrize("place", ["1", "1,2", "1,2,3,4,5", "1,,2", "1e9,0,0", "e,1,2"])
def test_parse_placed_refuses(place: str) -> None:
    with pytest.raises(UsageProblem, match="is not X,Y,Z") as refused:
        parse_placed(f"b c.spz@{place}")
    assert list(refused.value.words.values()) == ["b c.spz@1,0,0"]


def test_join_places_each_and_keeps_its_provenance() -> None:
    one, two = balls([5]), balls([7], seed=2)
    joined = join([one, two], [parse_placed("a.ply"), parse_placed("d/b.ply@1,2,3,90")])
    turn = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    np.testing.assert_array_equal(joined.means[:5], one.means)
    np.testing.assert_allclose(joined.means[5:], two.means @ turn.T + [1, 2, 3], atol=1e-6)
    assert joined.provenance == {
        "scene": [
            {"file": "a.ply", "offset": [0, 0, 0], "turn_deg": 0, "provenance": {"seed": 1}},
            {"file": "b.ply", "offset": [1, 2, 3], "turn_deg": 90, "provenance": {"seed": 1}},
        ]
    }
    assert join([one], [parse_placed("a.ply")]) is one
    assert join([one], [parse_placed("a.ply@1,0,0")]).provenance == one.provenance
