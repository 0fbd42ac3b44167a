"""What zip files that come from anywhere have in common."""

import struct
import zipfile
import zlib

BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)
"""What Python's reader raises for a damaged one."""


def leads_out(name: str) -> bool:
    """Whether the name of a member is a path to somewhere else."""
    return name.startswith(("/", "\\")) or ".." in name or ":" in name
