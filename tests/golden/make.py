"""Writes golden/sctd.json, gradients of the literal reference: `python tests/golden/make.py`."""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE / "sctd.json"
CASES: dict[str, dict[str, Any]] = {
    "released": {},
    "released-single-guidance": {"double_guidance": False, "weight": "none"},
    "released-b_t": {"weight": "b_t", "guidance_scale": 20.0},
    "eq10": {"loss": "eq10"},
    "eq10-exact": {"loss": "eq10", "approximate": False, "weight": "b_t", "double_guidance": False},
}


def main() -> None:
    """Computes every case with and without Perp-Neg and replaces the file."""
    sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE.parent / "unit")]
    if not GOLDEN.exists():
        GOLDEN.write_text("[]")
    from test_sctd import ROWS, expected, problem

    from segdream_cli.config.distill import SctdConfig

    times = ROWS["mixed"]
    cases = [
        {
            "name": name + "-perp-neg" * perp_neg,
            "settings": settings,
            "perp_neg": perp_neg,
            "times": times,
            "gradient": expected(SctdConfig(**settings), problem(times, perp_neg=perp_neg)).tolist(),
        }
        for name, settings in CASES.items()
        for perp_neg in (False, True)
    ]
    GOLDEN.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
