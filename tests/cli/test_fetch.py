"""`segdream fetch`: what is said, downloaded and left behind, against servers on the loopback interface."""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import build
from file_server import running
from hub_server import COMMIT, point_to, serving
from safetensors.torch import save_file

from segdream_cli.cli import download_bar, progress
from segdream_cli.config import SD21, SD21_MODEL, PriorConfig
from segdream_cli.evaluate import image_reward, inception
from segdream_cli.pointe import checkpoint, clip, transformer
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors import published
from segdream_cli.util import download

BASE = transformer.PointTransformerConfig(points=8, width=16, layers=1, heads=2, text_width=12)
STAGES = {
    "base_40m_textvec.pt": BASE,
    "upsample_40m.pt": replace(BASE, condition="points", low_points=8, grid_tokens=4, grid_width=6),
}
CLIP_SIZE = 3_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for name in ("config.json", "tokenizer_config.json", "vocab.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    values = np.random.default_rng(0).standard_normal(CLIP_SIZE // 4, np.float32)
    save_file({"weight": torch.from_numpy(values)}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(bytes(100))
    return folder


@pytest.fixture
def online(tiny, clip_folder, folder, monkeypatch):
    """The two servers; small networks stand for the official ones."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(transformer, "BASE", STAGES["base_40m_textvec.pt"])
    monkeypatch.setattr(transformer, "UPSAMPLE", STAGES["upsample_40m.pt"])
    monkeypatch.setattr(clip, "CLIP", replace(clip.CLIP, pinned={}))
    monkeypatch.setattr(published, "REVISION", COMMIT)
    monkeypatch.setattr(published, "SHA256", {})
    with serving({SD21_MODEL: tiny, clip.CLIP.id: clip_folder}) as (hub, address), running() as server:
        point_to(address, folder / "hub", monkeypatch)
        monkeypatch.setenv(checkpoint.ADDRESS_VARIABLE, server.address)
        stages = []
        for name, config in STAGES.items():
            torch.save(transformer.PointTransformer(config).state_dict(), folder / name)
            server.files[f"/{name}"] = content = (folder / name).read_bytes()
            (folder / name).unlink()
            stages.append(checkpoint.Published(name=name, condition=config.condition, size=len(content), sha256=None))
        monkeypatch.setattr(checkpoint, "PUBLISHED", tuple(stages))
        server.hub = hub
        yield server


def test_fetch_lists_and_downloads_what_offline_work_needs(segdream, online, folder):
    done = segdream("fetch", SD21, "point-e")
    assert done.code == 0
    words = (
        f"{SD21}: {SD21_MODEL}: ",
        "upsample_40m.pt: ",
        f"text encoder {clip.CLIP.id}: 3.0 MB (1 s",
        "downloading",
    )
    places = [done.err.index(part) for part in words]
    assert places == sorted(places)
    assert "SHA-256" in done.err
    assert "Fetching" not in done.err  # the Hub's own bars
    stable, point_e, text = map(Path, done.out.splitlines())

    for remote in (online.requests, online.hub.requests):
        remote.clear()
    assert weights.resolve(PriorConfig(name=SD21), cuda=False, offline=True, announce=print).folder == stable
    assert checkpoint.resolve_point_e(None, offline=True, announce=print).base.parent == point_e
    assert clip.resolve_clip(None, offline=True, announce=print) == text
    assert not (text / "pytorch_model.bin").exists()
    again = segdream("fetch", SD21, "point-e")
    assert (again.code, again.out) == (0, done.out)
    assert again.err.count("complete in the cache") == 3
    assert online.requests == online.hub.requests == []


def test_fetch_downloads_the_weights_of_metrics(segdream, folder, tmp_path_factory, monkeypatch):
    models = {}
    for model in (image_reward.WEIGHTS, image_reward.VOCABULARY):
        models[model.id] = tmp_path_factory.mktemp("model")
        (models[model.id] / model.marker).write_bytes(model.marker.encode() * 100)
    content = b"weights" * 1000
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(models) as (hub, address), running() as server:
        point_to(address, folder / "hub", monkeypatch)
        server.files[f"/{inception.NAME}"] = content
        monkeypatch.setattr(inception, "ADDRESS", f"{server.address}/{inception.NAME}")
        monkeypatch.setattr(inception, "BYTES", len(content))
        monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
        done = segdream("fetch", "image-reward", "fid")
        assert done.code == 0, done.err
        weights, vocabulary, fid = map(Path, done.out.splitlines())
        assert (weights / "ImageReward.pt").read_bytes() == b"ImageReward.pt" * 100
        assert (vocabulary / "vocab.txt").exists()
        assert (fid / inception.NAME).read_bytes() == content
        hub.requests.clear(), server.requests.clear()
        again = segdream("fetch", "image-reward", "fid")
        assert (again.code, again.out) == (0, done.out)
        assert again.err.count("complete in the cache") == 3
        assert hub.requests == server.requests == []
        (fid / inception.NAME).unlink()
        monkeypatch.setattr(inception, "SHA256", "0" * 64)
        refused = segdream("fetch", "fid")
        assert (refused.code, refused.out) == (4, "")
        assert not (fid / inception.NAME).exists()


def test_json_has_a_line_per_item(segdream, online):
    done = segdream("fetch", "point-e", "--json", "--quiet")
    files, text = map(json.loads, done.out.splitlines())
    assert (files["event"], files["name"], files["title"]) == ("done", "point-e", " and ".join(STAGES))
    assert files["downloaded"] == sum(len(content) for content in online.files.values())
    assert text["downloaded"] - CLIP_SIZE < 1000
    assert Path(text["output"]).is_dir()
    assert done.err == ""
    assert [json.loads(line)["downloaded"] for line in segdream("fetch", "point-e", "--json").out.splitlines()] == [
        0,
        0,
    ]


def test_progress_is_reported_for_every_download(segdream, online, monkeypatch):
    told = {}
    monkeypatch.setattr(
        download_bar.DownloadBar, "update", lambda bar, *report: told.setdefault(bar, []).append(report)
    )
    segdream("fetch", SD21, "point-e", "point-e")
    assert len(told) == 3
    for reports in told.values():
        totals = {total for _, total in reports}
        assert len(totals) == 1
        done = [one for one, _ in reports]
        assert done == sorted(done)
        assert done[-1] == totals.pop()


def test_progress_without_a_terminal_prints_lines(segdream, online, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert re.search(r"point-e: (\d+\.\d kB) of \1", segdream("fetch", "point-e").err)


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_is_refused(segdream, online, by_environment, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", by_environment)
    done = segdream("fetch", "point-e", *(() if by_environment else ("--offline",)))
    assert (done.code, done.out) == (2, "")
    assert ("HF_HUB_OFFLINE" if by_environment else "--offline") in done.err
    assert "hint:" in done.err
    assert online.requests == online.hub.requests == []


@pytest.mark.parametrize("arguments", [("sd22",), (), ("--json",)])
def test_fetch_needs_a_name(segdream, arguments):
    done = segdream("fetch", *arguments)
    assert done.code == 2
    assert "point-e" in done.err + done.out or "weights" in done.err


def test_unreachable_address_is_named_and_leaves_no_file(segdream, online, folder, monkeypatch):
    online.files.clear()
    done = segdream("fetch", "point-e", "--json")
    assert done.code == 4
    assert "base_40m_textvec.pt answered 404" in done.err
    assert "hint: " not in done.err
    assert json.loads(done.out)["exit_code"] == 4
    assert [path.name for path in (folder / "cache").rglob("*") if path.is_file()] in ([], [".lock"])


def test_unreachable_hub_is_reported_before_any_download(segdream, online, folder, monkeypatch):
    point_to("http://127.0.0.1:9", folder / "hub", monkeypatch)
    done = segdream("fetch", "point-e")
    assert done.code == 4
    assert "the Hub can't be reached" in done.err
    assert online.requests == []


def test_full_disk_is_reported(segdream, online, monkeypatch, other_disk):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    done = segdream("fetch", "point-e")
    assert done.code == 4
    assert "1.0 MB free, and 3.0 MB are needed" in done.err
    assert f"HF_HOME={other_disk / 'segdream-cache'}" in done.err


def test_clip_folder_beside_the_weights_is_preferred_and_checked(online, folder, clip_folder):
    own = folder / "mine" / "clip-vit-large-patch14"
    own.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"):
        (own / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(download.WeightsUnavailable, match=r"has no merges\.txt"):
        clip.resolve_clip(folder / "mine", offline=True, announce=print)
    (own / "merges.txt").write_text("")
    assert clip.resolve_clip(folder / "mine", offline=True, announce=print) == own
    with pytest.raises(download.WeightsUnavailable, match="is not in the local cache"):
        clip.resolve_clip(None, offline=True, announce=print)
    assert online.hub.requests == []


def test_doctor_verify_notices_damage_that_keeps_size_and_time(segdream, online):
    assert "absent   point-e " in segdream("doctor").out
    segdream("fetch", SD21, "point-e")
    stages = checkpoint.resolve_point_e(None, offline=True, announce=print)
    folder = weights.resolve(PriorConfig(name=SD21), cuda=False, offline=True, announce=print).folder
    text = clip.resolve_clip(None, offline=True, announce=print)
    for path in (stages.upsample, folder / "vae" / "diffusion_pytorch_model.safetensors", text / "model.safetensors"):
        whole, before = path.read_bytes(), path.stat()
        for content, code in ((whole[:-1] + bytes([whole[-1] ^ 1]), 4), (whole, 0)):
            path.resolve().write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert segdream("doctor").code == 0  # trusts size and time
            done = segdream("doctor", "--verify")
            assert done.code == code, (path, done.err)
            assert ("damaged" in done.out) == (code == 4)
            assert code == 0 or f"error: weights are damaged: {path}" in done.err


def test_fetch_completes_a_snapshot_that_lacks_a_link(segdream, online, folder):
    """As a full disk leaves it between the end of a download and the link to it."""
    assert segdream("fetch", SD21).code == 0
    (link,) = (folder / "hub").rglob("text_encoder/model.safetensors")
    link.unlink()
    done = segdream("fetch", SD21)
    assert (done.code, link.is_file()) == (0, True), done.err
