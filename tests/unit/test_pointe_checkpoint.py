"""Finding, downloading, verifying and converting Point-E's checkpoints; small networks stand for the official ones."""

import dataclasses
import hashlib
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import FileServer, running
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.pointe import checkpoint, transformer
from segdream_cli.pointe.checkpoint import ADDRESS_VARIABLE, open_point_e, read_state, resolve_point_e
from segdream_cli.pointe.transformer import PointTransformer, PointTransformerConfig
from segdream_cli.util import download, hashes

BASE = PointTransformerConfig(points=8, width=16, layers=1, heads=2, text_width=12)
UPSAMPLE = dataclasses.replace(BASE, condition="points", low_points=8, grid_tokens=4, grid_width=6)
NAMES = ("base_40m_textvec.pt", "upsample_40m.pt")


def weights(config: PointTransformerConfig, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {key: torch.randn_like(value) for key, value in PointTransformer(config).state_dict().items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small release, which stands for the official one."""
    monkeypatch.setattr(transformer, "BASE", BASE)
    monkeypatch.setattr(transformer, "UPSAMPLE", UPSAMPLE)
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "release"
    folder.mkdir()
    for name, config, seed in zip(NAMES, (BASE, UPSAMPLE), (1, 2), strict=True):
        torch.save(weights(config, seed), folder / name)
    publish(folder, monkeypatch)
    return folder


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, *, pinned: bool = True) -> None:
    """Takes the files of a folder for the published ones."""
    files = []
    for name, condition in zip(NAMES, ("text", "points"), strict=True):
        content = (folder / name).read_bytes()
        digest = sha256(content) if pinned else None
        files.append(checkpoint.Published(name=name, condition=condition, size=len(content), sha256=digest))
    monkeypatch.setattr(checkpoint, "PUBLISHED", tuple(files))


@pytest.fixture
def server(release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        for name in NAMES:
            server.files[f"/point-e/{name}"] = (release / name).read_bytes()
        monkeypatch.setenv(ADDRESS_VARIABLE, f"{server.address}/point-e/")
        yield server


def resolve(folder: Path | None = None, *, offline: bool = False, said: list[str] | None = None, **options: Any) -> Any:
    announced = [] if said is None else said
    return resolve_point_e(folder, offline=offline, announce=announced.append, **options)


def refuses(words: str, folder: Path | None = None, **options: Any) -> WeightsUnavailable:
    with pytest.raises(WeightsUnavailable, match=words) as caught:
        resolve(folder, **options)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    return caught.value


def cached() -> set[str]:
    """The files of the cache but the lock and the kept hashes."""
    store = download.cache_folder()
    found = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock") and not name.startswith("hashes/")}


def same(path: Path, expected: dict[str, Tensor]) -> None:
    found = read_state(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


COMPLETE = {f"point-e/{Path(name).stem}.{suffix}" for name in NAMES for suffix in ("json", "safetensors")}


def test_published_sizes_fit_the_weights() -> None:
    """A .pt is the weights in float32 and an index of some 300 bytes a tensor."""
    for file, config in zip(checkpoint.PUBLISHED, (transformer.BASE, transformer.UPSAMPLE), strict=True):
        with torch.device("meta"):
            state = PointTransformer(config).state_dict()
        index = file.size - 4 * sum(tensor.numel() for tensor in state.values())
        assert 250 < index / len(state) < 400
        assert config.condition == file.condition
        assert len(bytes.fromhex(str(file.sha256))) == 32


def test_resolve_point_e_downloads_verifies_and_converts_once(server: FileServer, release: Path) -> None:
    said: list[str] = []
    told: list[tuple[int, int]] = []
    found = resolve(said=said, progress=lambda *report: told.append(report))
    same(found.base, weights(BASE, 1))
    same(found.upsample, weights(UPSAMPLE, 2))
    assert cached() == COMPLETE
    total = sum((release / name).stat().st_size for name in NAMES)
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert found.origin == f"{server.address}/point-e/"
    assert f"downloading Point-E, {total / 1e3:.1f} kB" in said[0]
    assert server.address in said[0]
    for line, name in zip(said[1:], NAMES, strict=True):
        assert line == f"{name} has SHA-256 {sha256((release / name).read_bytes())}, as published"

    server.requests.clear()
    assert resolve(said=said, offline=True) == found
    assert server.requests == []
    assert len(said) == 3


def test_resolve_point_e_unpickles_only_once(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    assert resolve() == found


def test_digest_does_not_depend_on_the_folder(server: FileServer, release: Path, tmp_path: Path) -> None:
    digest = resolve().digest
    assert resolve(release).digest == digest
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (resolve().base, resolve().upsample):
        shutil.copy(path, copy)
    assert resolve(copy).digest == digest
    changed = load_file(copy / "upsample_40m.safetensors")
    changed["output_proj.bias"][0] += 1
    save_file(changed, copy / "upsample_40m.safetensors")
    assert resolve(copy).digest != digest


def test_resolve_point_e_hashes_each_file_once(
    server: FileServer, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve()
    resolve(release)
    hashed: list[str] = []
    real = checkpoint.file_sha256
    for module in (checkpoint, hashes):
        monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    resolve()
    assert hashed == []
    resolve(release)
    assert sorted(hashed) == sorted(NAMES)  # to find their conversions
    hashes.forget_hashes()
    hashed.clear()
    resolve()
    assert sorted(hashed) == ["base_40m_textvec.safetensors", "upsample_40m.safetensors"]


def test_open_point_e_reads_the_config_beside_the_weights(release: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file(weights(BASE, 3), path)
    alone = open_point_e(path, origin="mine")
    assert (alone.base, alone.upsample, alone.origin) == (path, None, "mine")
    (tmp_path / "config.json").write_text("{}")
    assert open_point_e(path, origin="mine").digest != alone.digest


def test_resolve_point_e_offline_makes_no_requests(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refuses("is not in the cache", offline=True)
    assert str(error.hint).startswith("segdream fetch point-e")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuses("offline mode is on")
    assert server.requests == []
    assert cached() == set()


def test_resolve_point_e_names_an_unreachable_address(server: FileServer) -> None:
    server.shutdown()
    server.server_close()
    error = refuses("base_40m_textvec.pt can't be reached")
    assert error.hint == "--init sphere"
    assert cached() == set()


def test_resolve_point_e_discards_a_web_page(server: FileServer) -> None:
    server.files = {}
    refuses("answered 404")
    assert cached() == set()
    server.script = [lambda handler: handler.send_page(200, "<html>moved</html>")]
    refuses("answered with a web page instead of the file")
    assert cached() == set()


def test_resolve_point_e_resumes_a_download(server: FileServer) -> None:
    server.script = [lambda handler: handler.send_file(body=3000)] + 3 * [lambda handler: handler.send_file(body=0)]
    refuses("can't be downloaded: the connection ended after 3,000 of")
    assert cached() == {"point-e/base_40m_textvec.pt.part", "point-e/base_40m_textvec.pt.part.json"}
    server.requests.clear()
    resolve()
    assert server.ranges() == ["bytes=3000-", None]
    assert cached() == COMPLETE


def test_resolve_point_e_converts_a_complete_download(server: FileServer, release: Path) -> None:
    store = download.cache_folder() / "point-e"
    store.mkdir(parents=True)
    shutil.copy(release / NAMES[0], store)
    shutil.copy(release / NAMES[0], store / NAMES[1])  # whole, but not what it should be
    same(resolve().base, weights(BASE, 1))
    assert [path for path, _ in server.requests] == ["/point-e/upsample_40m.pt"]
    assert cached() == COMPLETE


def test_resolve_point_e_keeps_the_first_of_two_files(server: FileServer) -> None:
    last = server.files.pop("/point-e/upsample_40m.pt")
    refuses("upsample_40m.pt answered 404")
    server.files["/point-e/upsample_40m.pt"] = last
    server.requests.clear()
    told: list[tuple[int, int]] = []
    resolve(progress=lambda *report: told.append(report))
    assert [path for path, _ in server.requests] == ["/point-e/upsample_40m.pt"]
    assert told[-1] == (len(last), len(last))


def test_resolve_point_e_refuses_an_unpublished_file(server: FileServer) -> None:
    right = server.files["/point-e/upsample_40m.pt"]
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    server.files["/point-e/upsample_40m.pt"] = wrong
    error = refuses(sha256(wrong))
    assert sha256(right) in error.message
    assert error.hint == "--init sphere"
    assert cached() == {name for name in COMPLETE if "base" in name}


def test_resolve_point_e_trusts_a_file_of_unknown_hash_once(
    server: FileServer, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(release, monkeypatch, pinned=False)
    said: list[str] = []
    found = resolve(said=said)
    first = sha256(server.files["/point-e/base_40m_textvec.pt"])
    assert f"base_40m_textvec.pt has SHA-256 {first}, recorded now" in said[1]

    found.base.unlink()
    resolve(said=said)
    assert f"{first}, as recorded" in said[-1]

    found.base.unlink()
    torch.save(weights(BASE, 9), release / "base_40m_textvec.pt")
    other = (release / "base_40m_textvec.pt").read_bytes()
    assert len(other) == len(server.files["/point-e/base_40m_textvec.pt"])
    server.files["/point-e/base_40m_textvec.pt"] = other
    error = refuses(sha256(other))
    assert first in error.message
    record = found.base.with_suffix(".json")
    assert f"rm {record}" in str(error.hint)
    record.unlink()
    same(resolve().base, weights(BASE, 9))


def test_resolve_point_e_refuses_a_changed_cached_file(server: FileServer) -> None:
    found = resolve()
    before = sha256(found.base.read_bytes())
    content = bytearray(found.base.read_bytes())
    content[-1] ^= 1
    found.base.write_bytes(content)
    error = refuses(f"is damaged: its SHA-256 is not the recorded {before}")
    assert f"rm {found.base}" in str(error.hint)
    found.base.unlink()
    assert resolve() == found


@pytest.mark.parametrize("content", ["", "{", "[]", '{"origin": "x"}'])
def test_resolve_point_e_names_a_damaged_record(server: FileServer, content: str) -> None:
    record = resolve().upsample.with_suffix(".json")
    record.write_text(content)
    assert f"rm {record}" in str(refuses("is not a record").hint)


def test_resolve_point_e_downloads_once_for_two_processes(server: FileServer) -> None:
    found: list[Any] = []
    both = [threading.Thread(target=lambda: found.append(resolve())) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(server.requests) == 2


def test_resolve_point_e_checks_the_free_space_first(
    server: FileServer, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    hint = str(refuses("free, and .* are needed").hint)
    assert f"SEGDREAM_CACHE={other_disk / 'segdream-cache'}" in hint
    assert server.requests == []
    assert cached() == set()


@pytest.mark.usefixtures("other_disk")
def test_resolve_point_e_leaves_no_partial_conversion(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if "safetensors" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuses("can't be written: No space left on device")
    assert cached() == set()


def test_resolve_point_e_names_a_cache_that_can_not_be_written(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "file"))
    for folder in (None, release):
        assert "SEGDREAM_CACHE=" in str(refuses("can't be written", folder).hint)


def test_resolve_point_e_caches_the_conversion_of_a_users_folder(release: Path) -> None:
    said: list[str] = []
    found = resolve(release, offline=True, said=said)
    same(found.base, weights(BASE, 1))
    same(found.upsample, weights(UPSAMPLE, 2))
    assert found.origin == str(release)
    assert {path.name for path in release.iterdir()} == set(NAMES)
    assert [line.endswith("as published") for line in said] == [True, True]
    assert resolve(release, offline=True, said=said) == found
    assert len(said) == 2


def test_resolve_point_e_announces_an_unpublished_file_of_the_user(release: Path) -> None:
    first = resolve(release)
    torch.save(weights(BASE, 7), release / NAMES[0])
    said: list[str] = []
    found = resolve(release, said=said)
    same(found.base, weights(BASE, 7))
    assert found.digest != first.digest
    assert found.upsample == first.upsample
    assert said == [
        f"{release / NAMES[0]} has SHA-256 {sha256((release / NAMES[0]).read_bytes())}, "
        "which is not that of the published file"
    ]


def test_resolve_point_e_uses_safetensors_without_a_copy(release: Path) -> None:
    save_file(weights(BASE, 5), release / "base_40m_textvec.safetensors")
    found = resolve(release)
    assert found.base == release / "base_40m_textvec.safetensors"
    assert found.upsample.is_relative_to(download.cache_folder())


def test_resolve_point_e_reads_an_older_torch_format(release: Path) -> None:
    torch.save(weights(BASE, 4), release / NAMES[0], _use_new_zipfile_serialization=False)
    same(resolve(release).base, weights(BASE, 4))


def test_resolve_point_e_converts_shared_or_strided_weights(release: Path) -> None:
    state = weights(BASE, 4)
    state["ln_pre.weight"] = state["ln_pre.bias"]
    state["input_proj.weight"] = state["input_proj.weight"].T.contiguous().T
    torch.save(state, release / NAMES[0])
    same(resolve(release).base, state)


@pytest.mark.parametrize("missing", NAMES)
def test_resolve_point_e_names_a_missing_file(release: Path, missing: str) -> None:
    (release / missing).unlink()
    assert refuses(f"has neither {missing} nor", release).hint == "--init sphere"
    refuses("has neither base_40m_textvec.pt nor", release / "nowhere")


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1])
def test_resolve_point_e_refuses_a_truncated_pt(release: Path, length: int) -> None:
    path = release / NAMES[0]
    path.write_bytes(path.read_bytes()[:length])
    error = refuses("base_40m_textvec.pt can't be read: ", release)
    assert len(error.message) < 300
    assert cached() == set()


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_resolve_point_e_refuses_truncated_safetensors(release: Path, length: int) -> None:
    path = release / "upsample_40m.safetensors"
    save_file(weights(UPSAMPLE, 5), path)
    path.write_bytes(path.read_bytes()[:length])
    refuses("upsample_40m.safetensors can't be read: ", release)


def test_resolve_point_e_refuses_an_error_page_as_weights(release: Path) -> None:
    for name in ("base_40m_textvec.pt", "base_40m_textvec.safetensors"):
        (release / name).write_text("<!DOCTYPE html><html><h1>404 Not Found</h1></html>" * 50)
        refuses(f"{name} can't be read", release)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_resolve_point_e_unpickles_only_weights(release: Path, tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "exploded"
    bomb = {**weights(BASE, 1), "bomb": Bomb(proof)}
    path = release / NAMES[0]
    torch.save(bomb, path, _use_new_zipfile_serialization=zipped)
    error = refuses("holds more than weights, which segdream does not unpickle", release)
    assert "weights_only" not in error.message
    assert not proof.exists()
    path.write_bytes(pickle.dumps(bomb))
    refuses("can't be read", release)
    assert not proof.exists()
    assert cached() == set()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it was a live one


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([1, 2], "holds no weights, only a list"),
        ({}, "holds no weights, only a dict"),
        (torch.zeros(3), "holds no weights, only a Tensor"),
        ({"model": {"a": torch.zeros(1)}}, "'model' is a dict"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({1: torch.zeros(1)}, "1 is a Tensor"),
        ({"conv1.weight": torch.zeros(3)}, "not a Point-E network"),
    ],
)
def test_resolve_point_e_refuses_a_pt_of_another_kind(release: Path, data: Any, reason: str) -> None:
    torch.save(data, release / NAMES[0])
    refuses(reason, release)
    assert cached() == set()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_resolve_point_e_refuses_another_variant(release: Path, suffix: str) -> None:
    state = weights(BASE, 1)
    weight = state.pop("clip_embed.weight")
    state |= {"clip_embed.0.weight": torch.ones(6), "clip_embed.0.bias": torch.ones(6)}
    state |= {"clip_embed.1.weight": weight, "clip_embed.1.bias": state.pop("clip_embed.bias")}
    path = release / f"base_40m_textvec.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    error = refuses("conditioned on an image", release)
    assert str(path) in error.message
    assert cached() == set()


def test_resolve_point_e_discards_a_download_of_another_network(
    server: FileServer, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights(dataclasses.replace(BASE, layers=2), 1), release / NAMES[0])
    publish(release, monkeypatch)
    server.files["/point-e/base_40m_textvec.pt"] = (release / NAMES[0]).read_bytes()
    refuses("resblocks.1")
    assert cached() == set()


def test_resolve_point_e_refuses_swapped_stages(release: Path) -> None:
    shutil.copy(release / NAMES[0], release / NAMES[1])
    refuses("upsample_40m.pt holds the stage that is conditioned on text, and not on points", release)


def test_conversion_holds_only_the_weights(server: FileServer) -> None:
    with safe_open(resolve().base, framework="pt") as file:
        assert file.metadata() is None
        assert set(file.keys()) == set(weights(BASE, 1))
