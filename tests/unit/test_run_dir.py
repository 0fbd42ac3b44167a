"""The run folder: records, checkpoints and events, whole and damaged."""

import dataclasses
import json
import os
import shlex
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segdream_cli.config import Config
from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem
from segdream_cli.optimize.report import HostCopy, StepReport
from segdream_cli.runs import run_dir
from segdream_cli.runs.run_dir import RunDir, RunRecord, package_versions

RECORD = RunRecord(
    prompt="ein süßer Bus, 日本",
    seed=3,
    negative_prompt=None,
    output="bus.ply",
    quality="standard",
    config=Config().set({"optim.steps": 7, "distill.sctd.segments": 3}).flat(),
    prior={"name": "a folder", "digest": "0123"},
    device="cpu",
    versions=package_versions(),
)


@dataclasses.dataclass
class Asset:
    """As much of an asset as a run folder asks for."""

    values: dict

    def tensors(self):
        return self.values


def asset(step=5):
    transposed = torch.arange(6.0).reshape(2, 3).T
    return Asset({"step": torch.tensor(step), "a": transposed, "empty": torch.zeros(4, 0, 3), "big": torch.rand(999)})


@pytest.fixture
def run(tmp_path):
    """A run folder with a record."""
    run = RunDir(tmp_path / "bus.run")
    run.create(RECORD)
    return run


def report(step):
    norms, timesteps = HostCopy(torch.tensor([0.5])), ({"t": 9, "s": 5, "e": 1},)
    return StepReport(step, timesteps, norms, n_gaussians=(12,), seconds=0.1, memory_gib=1.5).event(0)


def test_beside_replaces_the_suffix():
    assert RunDir.beside(Path("my assets/bus.ply")).path == Path("my assets/bus.run")
    assert RunDir.beside(Path("a.b.splat")).path == Path("a.b.run")


def test_record_is_read_as_written(run):
    assert run.exists()
    assert not run.can_resume()
    assert run.record() == RECORD
    assert run.config() == Config().set({"optim.steps": 7, "distill.sctd.segments": 3})
    assert {"python", "torch", "numba"} <= set(run.record().versions)


def test_save_replaces_the_checkpoint_that_load_reads(run):
    for step in (5, 6):
        saved = asset(step)
        run.save(saved)
        assert run.can_resume()
        assert run.step() == step
        loaded = run.load()
        assert set(loaded) == set(saved.values)
        for name, value in saved.values.items():
            assert torch.equal(loaded[name], value)
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoint.safetensors", "run.json"]
    run.finish()
    assert not run.can_resume()
    assert run.step() == 0
    assert run.exists()


def test_create_clears_an_earlier_run(run):
    run.append_event(report(1))
    (run.path / "preview-000001.png").write_bytes(b"")
    run.create(dataclasses.replace(RECORD, seed=4))
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
    assert run.record().seed == 4


def test_check_free_protects_an_unfinished_run(run):
    run.check_free(force=False)
    run.save(asset(41))
    with pytest.raises(OutputExists, match=r"bus\.run holds an unfinished run at step 41") as caught:
        run.check_free(force=False)
    assert "--resume" in caught.value.hint
    assert "--force" in caught.value.message
    run.check_free(force=True)


@pytest.mark.parametrize("force", [True, False])
def test_check_free_protects_a_foreign_folder(tmp_path, force):
    (tmp_path / "bus.run").mkdir()
    RunDir(tmp_path / "bus.run").check_free(force=force)
    (tmp_path / "bus.run" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="is not a run folder"):
        RunDir(tmp_path / "bus.run").check_free(force=force)
    (tmp_path / "car.run").write_text("mine")
    with pytest.raises(OutputExists, match="is not a run folder"):
        RunDir(tmp_path / "car.run").check_free(force=force)


def test_resume_command_is_quoted(tmp_path):
    assert RunDir(Path("my assets/it's.run")).resume_command() == (
        "segdream generate --resume 'my assets/it'\"'\"'s.run'"
    )


def case(text):
    return pytest.param(text, id=text[:24] or "empty")


WHOLE = dataclasses.asdict(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        case(""),
        case("{"),
        case(json.dumps({"format": 1})),
        case(json.dumps(WHOLE | {"surplus": 1})),
        case(json.dumps(WHOLE | {"prompt": 3})),
        case(json.dumps(WHOLE | {"config": 3})),
        case(json.dumps(WHOLE | {"prior": {"name": "x"}})),
        case(json.dumps(WHOLE | {"output": None})),
    ],
)
def test_record_names_the_damaged_file(run, text):
    (run.path / "run.json").write_text(text)
    with pytest.raises(UsageProblem, match=r"run\.json is damaged") as caught:
        run.record()
    assert shlex.split(str(caught.value.hint))[:3] == ["mv", str(run.path), str(run.path.with_name("bus-2.run"))]


def test_repair_restores_the_record_from_a_checkpoint(run):
    content = (run.path / "run.json").read_bytes()
    assert run.repair() is None
    run.save(asset())
    run.release()
    for state, spoil in (
        ("damaged", lambda path: path.write_text("{")),
        ("damaged", lambda path: path.write_text(json.dumps(WHOLE | {"format": 2}))),
        ("missing", lambda path: path.unlink()),
    ):
        spoil(run.path / "run.json")
        assert run.repair() == f"{run.path / 'run.json'} was {state}, and is restored from the checkpoint"
        assert (run.path / "run.json").read_bytes() == content


@pytest.mark.parametrize("spoil", ["flip", "no copy", "later format", "none"])
def test_repair_leaves_a_record_without_a_whole_copy(run, spoil):
    if spoil == "later format":
        run._record = dataclasses.replace(RECORD, format=2)
    run.save(asset())
    if spoil == "flip":
        content = bytearray(run.checkpoint.read_bytes())
        content[-1] ^= 1
        run.checkpoint.write_bytes(content)
    elif spoil == "no copy":
        save_file({"step": torch.tensor(4)}, run.checkpoint)
    elif spoil == "none":
        run.checkpoint.unlink()
    (run.path / "run.json").write_text("{")
    assert run.repair() is None
    assert (run.path / "run.json").read_text() == "{"


def test_repair_refuses_a_run_in_use(run):
    run.save(asset())
    (run.path / "run.json").write_text("{")
    with pytest.raises(OutputExists, match="another process works on"):
        RunDir(run.path).repair()
    assert (run.path / "run.json").read_text() == "{"


def test_record_refuses_bytes_that_are_no_text(run):
    (run.path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageProblem, match=r"run\.json is damaged"):
        run.record()


def test_record_refuses_a_later_format(run):
    (run.path / "run.json").write_text(json.dumps(WHOLE | {"format": 2}))
    with pytest.raises(UsageProblem, match="another version of segdream"):
        run.record()


def test_record_refuses_a_folder_without_one(tmp_path):
    with pytest.raises(UsageProblem, match="is not a run folder"):
        RunDir(tmp_path).record()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "cut"])
def test_load_and_step_name_the_damaged_checkpoint(run, content):
    if content == "cut":
        run.save(asset())
        content = run.checkpoint.read_bytes()[:-100]
    run.checkpoint.write_bytes(content)
    if content.endswith(b"{}      "):  # whole, but nothing in it
        with pytest.raises(UsageProblem, match=r"checkpoint\.safetensors is damaged"):
            run.step()
        return
    for use in (run.load, run.step, lambda: run.check_free(force=False)):
        with pytest.raises(UsageProblem, match=r"checkpoint\.safetensors is damaged") as caught:
            use()
        assert "--force" in caught.value.hint
    run.check_free(force=True)


def test_load_names_a_checkpoint_with_a_flipped_bit(run):
    run.save(asset())
    content = bytearray(run.checkpoint.read_bytes())
    content[-1000] ^= 16
    run.checkpoint.write_bytes(content)
    with pytest.raises(UsageProblem, match=r"checkpoint\.safetensors is damaged: .*SHA-256"):
        run.load()


def test_load_reads_a_checkpoint_without_a_hash(run):
    save_file({"step": torch.tensor(4)}, run.checkpoint)
    assert run.load() == {"step": torch.tensor(4)}


def test_step_refuses_a_checkpoint_without_it(run):
    save_file({"other": torch.zeros(1)}, run.checkpoint)
    with pytest.raises(UsageProblem, match="damaged"):
        run.step()


def test_append_event_flushes_one_line(run):
    for step in range(1, 4):
        run.append_event(report(step))
        lines = (run.path / "events.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == {
            "step": step, "times": [[9, 5, 1]], "grad_norm": [0.5], "n_gaussians": [12], "seconds": 0.1,
            "memory_gib": 1.5,
            "stage": "distil",
        }  # fmt: skip
        assert len(lines) == step


@pytest.mark.parametrize("torn", ['{"step":5,"ti', "", "\x00\x00\x00", "5", "[]", '{"other":1}', '"half'])
def test_trim_events_drops_later_steps_and_a_torn_line(run, torn):
    for step in range(1, 6):
        run.append_event(report(step))
    with (run.path / "events.jsonl").open("a") as stream:
        stream.write(torn)
    run.trim_events(3)
    run.append_event(report(4))
    steps = [json.loads(line)["step"] for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_trim_events_survives_bytes_that_are_no_text(run):
    run.append_event(report(1))
    with (run.path / "events.jsonl").open("ab") as stream:
        stream.write(b"\xff\xfe{")
    run.trim_events(9)
    assert len((run.path / "events.jsonl").read_text().splitlines()) == 1


def test_trim_events_creates_no_file(run):
    run.trim_events(3)
    assert not (run.path / "events.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_run(run, tmp_path, monkeypatch):
    run.save(asset(5))

    def mkstemp(dir=None, prefix="", suffix=""):
        name = Path(dir) / f"{prefix}full{suffix}"
        name.symlink_to("/dev/full")
        return os.open("/dev/null", os.O_RDONLY), str(name)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    with pytest.raises(SegdreamError, match=r"disk is full.*checkpoint") as caught:
        run.save(asset(6))
    assert caught.value.exit_code == 1
    assert run.step() == 5
    monkeypatch.setattr(run_dir, "_open_here", lambda *_: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(SegdreamError, match=r"disk is full.*events\.jsonl"):
        run.append_event(report(1))
    other = RunDir(tmp_path / "car.run")
    with pytest.raises(SegdreamError, match=r"disk is full.*run\.json"):
        other.create(RECORD)
    assert not other.path.exists()


def test_create_refuses_a_folder_that_cannot_be_created(tmp_path):
    with pytest.raises(UsageProblem, match=r"none/bus\.run can't be written"):
        RunDir(tmp_path / "none" / "bus.run").create(RECORD)
