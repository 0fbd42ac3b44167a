"""Assets from real Stable Diffusion 2.1 weights: contact sheets, timings, and a row for RESULTS.md.

    python -m benchmarks.real prompts/dreamfusion40.txt --out-dir real --quality standard

The authors could not run it, since they had no access to the weights. If you have them, please send the output.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from segdream_cli.config import SD21


def segdream(*arguments: str) -> list[dict[str, object]]:
    """Runs a command and returns its JSON lines; failures of single prompts are among them."""
    done = subprocess.run(
        [sys.executable, "-m", "segdream_cli", *arguments, "--json"], stdout=subprocess.PIPE, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Makes the assets, then their contact sheets and videos, and prints the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out-dir", type=Path, default=Path("real"))
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--seed", default="0")
    options, rest = parser.parse_known_args()  # unknown options go to segdream generate
    prior = [] if "--model" in rest else ["--prior", SD21]
    events = segdream(
        "generate", "--prompts", str(options.prompts), "--out-dir", str(options.out_dir), "--quality", options.quality,
        "--seed", options.seed, *prior, *rest,
    )  # fmt: skip
    for event in events:
        if event["event"] in ("done", "skipped"):
            segdream("render", str(event["output"]), "--contact-sheet", "--force")
            segdream("render", str(event["output"]), "--turntable", "--force")
    made = [event for event in events if event["event"] == "done"]
    for event in made:
        per_step = 1e3 * float(str(event["seconds"])) / max(1, int(str(event["steps"])))
        print(f"{event['prompt']}: {event['seconds']} s, {per_step:.0f} ms per step, {event['gaussians']} Gaussians")
    if not made:
        sys.exit("no asset was made by this call")
    seconds = statistics.median(float(str(event["seconds"])) for event in made)
    failed = sum(event["event"] == "error" for event in events)
    print("\n| prior | quality | assets | failed | median s per asset |\n| --- | --- | --- | --- | --- |")
    print(f"| {made[0]['prior']} | {options.quality} | {len(made)} | {failed} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
