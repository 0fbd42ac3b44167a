"""The line about a run's progress."""

import pytest

from segdream_cli.runs import runner
from segdream_cli.runs.runner import Pace


def test_pace_has_time_left_and_the_latest_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 of 150 steps in 20 s, from step 50 on: 2.5 steps per second for the other 100."""
    now = [1000.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    pace = Pace(50, now[0])
    now[0] += 20
    assert pace.describe(100, 200, (0.25, 1.5), None) == "Step 100 of 200, 40 s left, gradient 1.5"
    assert pace.describe(100, 200, None, None).endswith("gradient 1.5")  # CUDA reads it now and then
    assert pace.describe(100, 200, (0.01,), 0.12345).endswith("loss 0.123")
    now[0] += 400
    assert pace.describe(150, 1200, None, None) == "Step 150 of 1,200, 74 min left, loss 0.123"
