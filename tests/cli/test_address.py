"""`--out-dir` in an object store: fsspec's store in memory, and S3 as moto serves it."""

import json
import os
import signal
import sys
from importlib import import_module

import pytest
from commands import SIX
from test_cli import Interrupted

from segdream_cli.errors import SegdreamError
from segdream_cli.runs import address
from segdream_cli.runs.address import AddressPath, Store, is_address

fsspec = pytest.importorskip("fsspec")
NAMES = ("a_red_ball", "a_blue_ball")
URL = "memory://bucket/assets"


@pytest.fixture
def listed(folder, monkeypatch):
    """The arguments that make a list of two, without an --out-dir, and a cache of its own."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "cache"))
    (folder / "list.txt").write_text("a red ball\na blue ball")
    return ("generate", "--prompts", "list.txt", *SIX)


@pytest.fixture
def store():
    """The store in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def content(system, root="/bucket/assets"):
    """Name -> content of all files of a store."""
    return {path.removeprefix(f"{root}/"): system.cat_file(path) for path in system.find(root)}


def test_assets_and_records_go_to_the_store(segdream, listed, store, folder):
    assert segdream(*listed, "--out-dir", "alone").code == 0
    done = segdream(*listed, "--out-dir", URL, "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["output"] for line in lines] == [f"{URL}/{name}.ply" for name in NAMES]
    assert lines[0]["run"] == f"{URL}/a_red_ball.run"
    found = content(store)
    assert sorted(found) == sorted(
        f"{name}{end}" for name in NAMES for end in (".ply", ".run/events.jsonl", ".run/run.json")
    )
    for name in NAMES:
        assert found[f"{name}.ply"] == (folder / "alone" / f"{name}.ply").read_bytes()
    assert not [path for path in (folder / "cache" / "staging").rglob("*") if path.is_file()]
    again = segdream(*listed, "--out-dir", URL)
    assert (again.code, again.out) == (0, "")
    assert again.err.count("exists, skipped") == 2
    assert content(store) == found


def test_another_machine_resumes_what_is_in_the_store(segdream, prior, listed, store, folder, monkeypatch):
    assert segdream(*listed, "--out-dir", "alone").code == 0
    prior(lambda profile: Interrupted(profile, 8, signal.SIGTERM))
    stopped = segdream(*listed, "--out-dir", URL)
    assert stopped.code == 143
    assert f"{URL}/a_red_ball.run was saved after step" in stopped.err
    assert "a_red_ball.run/checkpoint.safetensors" in content(store)
    prior()
    monkeypatch.setenv("SEGDREAM_CACHE", str(folder / "other"))
    done = segdream(*listed, "--out-dir", URL)
    assert done.code == 0, done.err
    assert f"resuming {URL}/a_red_ball.run after step" in done.err
    found = content(store)
    assert not [name for name in found if "checkpoint" in name]
    for name in NAMES:
        assert found[f"{name}.ply"] == (folder / "alone" / f"{name}.ply").read_bytes()


def test_force_makes_assets_again(segdream, listed, store):
    assert segdream(*listed, "--out-dir", URL).code == 0
    store.pipe_file("/bucket/assets/a_red_ball.ply", b"another one")
    done = segdream(*listed, "--out-dir", URL, "--force")
    assert done.code == 0, done.err
    assert content(store)["a_red_ball.ply"] != b"another one"


def test_asset_that_could_not_be_put_is_put_by_the_next_command(segdream, listed, store):
    def refuse(self, path, target, **_):
        raise PermissionError("no access to the bucket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "put_file", refuse)
        failed = segdream(*listed, "--out-dir", URL)
    assert failed.code == 1
    assert f"{URL} can't be written: no access to the bucket" in failed.err
    done = segdream(*listed, "--out-dir", URL)
    assert done.code == 0, done.err
    assert len([name for name in content(store) if name.endswith(".ply")]) == 2


def test_checkpoints_go_to_the_store_during_a_run(segdream, listed, store, monkeypatch):
    monkeypatch.setattr(address, "SHIP_S", 0.0)
    put = []
    monkeypatch.setattr(Store, "_put", lambda self, path, real=Store._put: put.append(path.name) or real(self, path))
    assert segdream(*listed, "--out-dir", URL, "--set", "output.checkpoint_every=2").code == 0
    assert put.count("checkpoint.safetensors") >= 4


def test_is_address():
    assert is_address("s3://bucket/folder")
    assert is_address("gs://bucket")
    assert not any(map(is_address, ("assets", "/a/b", "C:\\assets", "s3:/bucket", "a b://c")))


def test_address_path_prints_as_it_was_given():
    path = AddressPath("s3://bucket/folder/bus.ply")
    assert str(path) == "s3://bucket/folder/bus.ply"
    assert str(path.with_suffix(".run")) == "s3://bucket/folder/bus.run"
    assert path.name == "bus.ply"


@pytest.mark.parametrize(
    ("given", "code", "text", "hint"),
    [
        ("nothing://bucket", 2, "there is no kind of address nothing://", "--out-dir assets"),
        ("file:///tmp/assets", 2, "is a folder of this machine", "--out-dir /tmp/assets"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(segdream, listed, given, code, text, hint):
    done = segdream(*listed, "--out-dir", given)
    assert done.code == code
    assert text in done.err
    assert hint in done.err


def test_missing_packages_are_named(segdream, listed, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "gs", raising=False)
    done = segdream(*listed, "--out-dir", "gs://bucket/assets")
    assert done.code == 3
    assert "gs://bucket/assets needs a package that is missing" in done.err
    assert "pip install gcsfs" in done.err
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    done = segdream(*listed, "--out-dir", "s3://bucket/assets")
    assert done.code == 3
    assert 'pip install "segdream[cluster]"' in done.err
    monkeypatch.setitem(sys.modules, "fsspec", None)
    done = segdream(*listed, "--out-dir", "s3://bucket/assets")
    assert done.code == 3
    assert "needs the package fsspec" in done.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_s3_as_moto_serves_it(segdream, listed, folder, monkeypatch):
    pytest.importorskip("s3fs", reason='the extra "cluster" is not installed')
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    serving = server.ThreadedMotoServer(port=0, verbose=False)
    serving.start()
    try:
        host, port = serving.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(
            SegdreamError, match="s3://absent/assets can't be read: The specified bucket does not exist"
        ):
            Store("s3://absent/assets")
        fsspec.filesystem("s3").mkdir("bucket")
        assert segdream(*listed, "--out-dir", "alone").code == 0
        done = segdream(*listed, "--out-dir", "s3://bucket/assets")
        assert done.code == 0, done.err
        assert done.out.split() == [f"s3://bucket/assets/{name}.ply" for name in NAMES]
        found = content(fsspec.filesystem("s3", use_listings_cache=False), "bucket/assets")
        for name in NAMES:
            assert found[f"{name}.ply"] == (folder / "alone" / f"{name}.ply").read_bytes()
        assert segdream(*listed, "--out-dir", "s3://bucket/assets").err.count("exists, skipped") == 2
    finally:
        serving.stop()
        os.environ.pop("AWS_ENDPOINT_URL", None)
