"""`segdream cache`: parts are listed, verified and removed; files of others stay."""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from json_lines import check_lines

from segdream_cli.cli.cache import NAMES
from segdream_cli.cli.output import Output
from segdream_cli.util.cache import PARTS
from segdream_cli.util.tensor_files import dump_tensors

KEY = "0123456789abcdef" * 2
BLOB = b"a model of the Hub"
INCEPTION = b"inception"


@pytest.fixture
def cache(folder, monkeypatch) -> Path:
    """A cache with a file in each part but those of torch, and a file of somebody else in each."""
    root = folder / "cache"
    monkeypatch.setenv("SEGDREAM_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    tensors = dump_tensors({"points": torch.zeros(3)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model.xml", "<net/>")
    record = json.dumps({"converted_sha256": hashlib.sha256(tensors).hexdigest()}).encode()
    files = {
        "point-e/base_40m_textvec.safetensors": tensors,
        "point-e/base_40m_textvec.json": record,
        f"inception/weights-inception-2015-12-05-{hashlib.sha256(INCEPTION).hexdigest()[:8]}.pth": INCEPTION,
        "first-use/owner--model@main.json": b"{}",
        f"clouds/{KEY}.safetensors": tensors,
        f"openvino/{KEY}.zip": archive.getvalue(),
        f"hashes/{KEY}.json": b"{}",
        f"timings/{KEY}.json": b"{}",
        "inductor/ab/code.py": b"pass",
        "compiled/unet.bin": b"code",
        f"../hub/models--owner--model/blobs/{hashlib.sha256(BLOB).hexdigest()}": BLOB,
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name in PARTS:
        if name != "inductor":
            (root / name / "mine.txt").write_text("mine")
    return root


def listed(segdream, *arguments) -> dict[str, dict]:
    return {
        line["name"]: line
        for line in check_lines(segdream("cache", *arguments, "--json").out)
        if line["event"] == "cached"
    }


def test_names_are_those_of_the_parts():
    assert tuple(PARTS) == NAMES


def test_cache_lists_own_files_only(segdream, cache):
    found = listed(segdream)
    assert {name: line["files"] for name, line in found.items()} == {
        **dict.fromkeys(PARTS, 1), "point-e": 2, "owner/model": 1,
    }  # fmt: skip
    assert (found["owner/model"]["bytes"], found["owner/model"]["kind"]) == (len(BLOB), "shared")
    assert {line["state"] for line in found.values()} == {"unchecked"}
    assert f"{len(BLOB)} B " in segdream("cache").out


def test_verify_finds_damage_in_each_part(segdream, cache, folder):
    sound = listed(segdream, "--verify")
    assert {name for name, line in sound.items() if line["state"] != "ok"} == {"inductor", "compiled"}
    (hashed,) = (cache / "hashes").glob("*.json")  # that of the model's blob; those of before were forgotten
    assert json.loads(hashed.read_text())["sha256"] == hashlib.sha256(BLOB).hexdigest()
    broken = {}
    for path in [*cache.rglob("*"), *(folder / "hub").rglob("*")]:
        if path.is_file() and path.suffix in (".safetensors", ".zip", ".pth", ""):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            broken[path.parent.name] = path
        elif path.parent.name in ("timings", "first-use") and path.suffix == ".json":
            path.write_text("{")
            broken[path.parent.name] = path
    assert broken.keys() == {"point-e", "inception", "clouds", "openvino", "timings", "first-use", "blobs"}
    done = segdream("cache", "--verify", "--json")
    lines = {line["name"]: line for line in check_lines(done.out) if line["event"] == "cached"}
    damaged = {name for name, line in lines.items() if line["state"] == "damaged"}
    assert (done.code, damaged) == (4, {*broken, "owner/model"} - {"blobs"})
    assert lines["clouds"]["hint"] == "segdream cache --clean clouds"
    assert lines["owner/model"]["hint"] == f"rm {broken['blobs']}"
    assert str(broken["clouds"]) in segdream("cache", "clouds", "--verify").out


def test_clean_removes_what_is_made_again(segdream, cache):
    done = segdream("cache", "--clean", "--yes", "--json")
    removed = {Path(line["path"]).name for line in check_lines(done.out)}
    assert removed == {"clouds", "openvino", "hashes", "timings"}
    left = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())
    kept = ["compiled/unet.bin", "first-use/owner--model@main.json", "inductor/ab/code.py"]
    kept += [name for name in left if name.startswith(("point-e/base", "inception/weights"))]
    assert left == sorted([*kept, *(f"{name}/mine.txt" for name in PARTS if name != "inductor")])
    assert segdream("cache", "--clean", "--yes").err == "nothing to remove"


def test_clean_by_name_removes_downloads_too_but_nothing_of_others(segdream, cache):
    done = segdream("cache", "--clean", "--yes", *NAMES)
    assert done.code == 0, done.err
    files = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())
    mine = [f"{name}/mine.txt" for name in PARTS if name != "inductor"]
    locks = {"inception/.lock", "point-e/.lock"}  # another process may wait for them
    assert sorted(set(files) - locks) == sorted(mine)
    assert (cache.parent / "hub/models--owner--model/blobs" / hashlib.sha256(BLOB).hexdigest()).exists()
    for name in mine:
        (cache / name).unlink()
    (cache / "clouds" / f"{KEY}.safetensors").touch()
    segdream("cache", "--clean", "--yes", "clouds")
    assert not (cache / "clouds").exists()


def test_clean_fails_for_what_stays(segdream, cache):
    (cache / "inductor").rename(cache / "elsewhere")
    (cache / "inductor").symlink_to(cache / "elsewhere")
    done = segdream("cache", "--clean", "--yes", "inductor", "compiled")
    assert (done.code, "inductor stays: " in done.err) == (1, True)
    assert not (cache / "compiled/unet.bin").exists()
    assert (cache / "elsewhere/ab/code.py").exists()


def test_clean_asks(segdream, cache, monkeypatch):
    refused = segdream("cache", "--clean", "clouds")
    assert (refused.code, "hint: segdream cache --clean clouds --yes" in refused.err) == (2, True)
    monkeypatch.setattr(Output, "can_ask", lambda _: True)
    for answer, exists in (("no\n", True), ("yes\n", False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert segdream("cache", "--clean", "clouds").code == 0
        assert (cache / "clouds" / f"{KEY}.safetensors").exists() == exists
    assert segdream("cache", "--clean", "--verify").code == 2
    assert segdream("cache", "--yes").code == 2


def test_an_empty_cache_is_no_error(segdream, folder, monkeypatch):
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "none"))
    assert segdream("cache", "--verify").code == 0
    assert not (folder / "none").exists()
