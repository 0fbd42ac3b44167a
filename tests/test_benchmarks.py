"""The benchmark that needs a GPU, on a small model: every part runs, and a whole run goes on where it was stopped."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def benchmark(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "sd21_step.py"), "--smoke", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables by the first of them."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: values for name, *values in cells}


def test_every_part_ends_in_a_table() -> None:
    said = benchmark("--steps", "4")
    assert "not measured: nothing" in said
    found = rows(said)
    assert found[""] == ["cfg", "perpneg", "lowvram", "eager"]
    for key in (
        "ms",
        "first_step_s",
        "peak_gib",
        "encode, ms",
        "losses and encoder, backward, ms",
        "density control, ms",
    ):
        assert all(float(value) > 0 for value in found[key]), key
    cfg, perpneg, lowvram, eager = map(float, found["unet_rows"])
    assert cfg == lowvram == eager == 10  # two views: two up, two for the guidance, one for the consistency function
    assert 10 < perpneg <= 14
    assert float(found["encoder, eager"][1]) == float(found["U-Net, 4 rows, eager"][1]) == 0


def test_a_whole_run_spans_two_commands(tmp_path: Path) -> None:
    run = str(tmp_path / "whole.run")
    stopped = benchmark("--whole", "--run", run, "--stop-at", "5")
    assert "steps 5, of 12" in stopped
    done = benchmark("--whole", "--run", run)
    assert "steps 12, of 12" in done
    assert "finite True" in done
