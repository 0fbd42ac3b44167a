"""Runs the command line as `python -m segdream_cli`."""

from segdream_cli.cli import main

if __name__ == "__main__":
    main()
