"""Runs the command line, as `python -m segdream_cli` or as `segdream`."""

import os
import sys
from typing import NoReturn

from segdream_cli.util.failures import as_failure


def main() -> NoReturn:
    """Runs the command line of this process and exits.

    `cli` reports the errors of commands. It can't be imported if the package typer can't be, which is reported here.
    """
    try:
        from segdream_cli.cli import main as run
    except Exception as error:
        if os.environ.get("SEGDREAM_DEBUG"):
            raise
        problem = as_failure(error)
        hint = f"hint:  {problem.hint}\n" if problem.hint else ""
        sys.stderr.write(f"error: {problem.message}\n{hint}")
        sys.exit(problem.exit_code)
    run()


if __name__ == "__main__":
    main()
