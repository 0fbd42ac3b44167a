"""A list shared out among devices: every asset is made once, as one process would have made it, and can be stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import TINY

from segdream_cli.errors import UsageProblem
from segdream_cli.runs.processes import parse_devices
from segdream_cli.util.devices import visible_device

PROMPTS = "a red car\na blue mug\na green cactus\n"
LIMIT_S = 240
SMALL = tuple(part for part in TINY if part not in ("--device", "cpu"))


def start(folder: Path, *arguments: str, prompts: str = "list.txt") -> subprocess.Popen[str]:
    (folder / "list.txt").write_text(PROMPTS)
    command = [sys.executable, "-m", "segdream_cli", "generate", "--prompts", prompts, *SMALL, *arguments]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip


def test_devices_make_what_one_process_makes(tmp_path: Path) -> None:
    shared = start(tmp_path, "--out-dir", "shared", "--devices", "cpu,cpu", "--steps", "2", prompts="-")
    out, err = shared.communicate(PROMPTS, timeout=LIMIT_S)
    assert shared.returncode == 0, err
    names = {"a_red_car.ply", "a_blue_mug.ply", "a_green_cactus.ply"}
    assert {Path(line).name for line in out.splitlines()} == names
    assert len(out.splitlines()) == 3
    assert "[1/2] a red car" in err  # the first process has the first and the third
    assert "[2/2] a green cactus" in err
    assert "[1/1] a blue mug" in err
    alone = start(tmp_path, "--out-dir", "alone", "--device", "cpu", "--steps", "2")
    assert alone.communicate(timeout=LIMIT_S)
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_devices_exit_with_the_code_of_a_failed_one(tmp_path: Path) -> None:
    taken = tmp_path / "assets" / "a_blue_mug.run"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    process = start(tmp_path, "--out-dir", "assets", "--devices", "cpu,cpu", "--steps", "1")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "is not a run folder" in err
    assert (tmp_path / "assets" / "a_green_cactus.ply").exists()


def test_devices_are_all_stopped_by_one_signal(tmp_path: Path) -> None:
    process = start(tmp_path, "--out-dir", "assets", "--devices", "cpu,cpu", "--steps", "100000")
    runs = [tmp_path / "assets" / f"{name}.run" for name in ("a_red_car", "a_blue_mug")]
    end = time.monotonic() + LIMIT_S
    while not all((run / "events.jsonl").exists() for run in runs) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert err.count("segdream generate --resume") == 2
    assert all((run / "checkpoint.safetensors").exists() for run in runs)


def test_parse_devices() -> None:
    assert parse_devices("0, 1,3") == ["cuda:0", "cuda:1", "cuda:3"]
    assert parse_devices("cpu,0") == ["cpu", "cuda:0"]


def test_visible_device_ignores_leading_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for written, meant in (("cuda:00", "cuda:0"), ("cuda:01", "cuda:1"), ("cuda", "cuda"), ("cpu:0", "cpu:0")):
        assert visible_device(written) == torch.device(meant)


@pytest.mark.parametrize("text", ["", "gpu", "0,,1", "0;1", "-1"])
def test_parse_devices_refuses_other_texts(text: str) -> None:
    with pytest.raises(UsageProblem, match="not a list of devices"):
        parse_devices(text)


def test_devices_and_device_exclude_each_other(segdream):
    done = segdream("generate", "a red car", "--devices", "0", "--device", "cpu")
    assert done.code == 2
    assert "--device can't be combined with --devices" in done.err
