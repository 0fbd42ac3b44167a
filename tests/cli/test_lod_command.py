"""`segdream lod`: the folder, its line, and what is refused before any work."""

import json

import numpy as np
import pytest
from test_options import random_splats

from segdream_cli import formats


@pytest.fixture
def asset(segdream, folder):
    formats.write(folder / "a.ply", random_splats())
    return "a.ply"


def test_lod_writes_a_folder(segdream, folder, asset):
    done = segdream("lod", asset, "--levels", "3", "--json")
    assert "levels of 200, 50, 13 Gaussians" in done.err
    line = json.loads(done.out)
    files = [path for path in (folder / "a-lod").rglob("*") if path.is_file()]
    assert (line["output"], line["gaussians"], line["files"]) == ("a-lod", [200, 50, 13], len(files))
    assert line["bytes"] == sum(path.stat().st_size for path in files)
    found = formats.read(folder / "a-lod" / "0_0" / "meta.json")
    np.testing.assert_allclose(found.means.mean(axis=0), random_splats().means.mean(axis=0), atol=1e-3)


def test_lod_replaces_only_levels_of_detail(segdream, folder, asset):
    def refused(code, told, *arguments):
        done = segdream("lod", *arguments)
        assert done.code == code
        assert told in done.err
        assert "hint: " in done.err

    assert segdream("lod", asset, "-o", "scene").code == 0
    refused(6, "scene exists", asset, "-o", "scene")
    assert segdream("lod", asset, "-o", "scene", "--force", "--levels", "2").code == 0
    assert (folder / "scene" / "1_0" / "meta.json").exists()
    (folder / "mine").mkdir()
    refused(2, "mine is a folder without lod-meta.json", asset, "-o", "mine", "--force")
    refused(2, "a.ply is not a folder", asset, "-o", "a.ply", "--force")
    refused(2, "can't be replaced as a whole", asset, "-o", ".", "--force")
    refused(2, "does not exist", asset, "-o", "none/scene")
    assert sorted(path.name for path in folder.iterdir()) == ["a.ply", "mine", "scene"]
