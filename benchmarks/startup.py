"""How long `segdream --help` takes, against importing the two libraries it cannot do without.

python benchmarks/startup.py --runs 9
"""

import argparse
import statistics
import subprocess
import sys
import time

from record import record

HELP = [sys.executable, "-m", "segdream_cli", "--help"]
LIBRARIES = [sys.executable, "-c", "import typer, rich.console, rich.progress"]


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Runs the two in turn and prints the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="keep the ratio in results.json")
    options = parser.parse_args()
    seconds(HELP), seconds(LIBRARIES)  # fill the caches
    pairs = [(seconds(HELP), seconds(LIBRARIES)) for _ in range(options.runs)]
    ratio = statistics.median(own / base for own, base in pairs)
    print(f"help {statistics.median(own for own, _ in pairs):.3f} s, ratio to the libraries {ratio:.2f}")
    if options.record:
        record("help_import_ratio", ratio, "1", "cpu")


if __name__ == "__main__":
    main()
