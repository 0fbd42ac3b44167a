"""The header of a PLY file: elements, properties and comments, of any layout.

The header is read here rather than by plyfile, which refuses text that is not ASCII and trusts row counts before it
checks the size of the file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from segdream_cli.errors import UsageProblem

HEADER_LIMIT = 1 << 20
"""Maximum length of a header in bytes."""
BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    **dict.fromkeys(("char", "int8", "i1"), "i1"),
    **dict.fromkeys(("uchar", "uint8", "u1"), "u1"),
    **dict.fromkeys(("short", "int16", "i2"), "i2"),
    **dict.fromkeys(("ushort", "uint16", "u2"), "u2"),
    **dict.fromkeys(("int", "int32", "i4"), "i4"),
    **dict.fromkeys(("uint", "uint32", "u4"), "u4"),
    **dict.fromkeys(("float", "float32", "f4"), "f4"),
    **dict.fromkeys(("double", "float64", "f8"), "f8"),
}
"""Type of a property -> numpy's name for it."""
LIST = "list"

_PRINTABLE = bytes(code if 32 <= code < 127 or code in b"\t\r\n" else ord("?") for code in range(256))


@dataclass(frozen=True, slots=True)
class Element:
    """A table of a PLY file."""

    name: str
    count: int
    """Rows, as the header claims."""
    properties: list[tuple[str, str]] = field(default_factory=list)
    """Name and type of each; the type `list` for all lists."""

    def dtype(self, path: Path, byte_order: str) -> "np.dtype[np.void]":
        """The numpy type of a row.

        Raises:
            UsageProblem: there are no properties, two of one name, a list, or one of an unknown type.
        """
        seen = set[str]()
        for name, kind in self.properties:
            if kind == LIST:
                problem = f"{path}: the element {self.name[:80]} has the list property {name[:80]}"
                raise UsageProblem(problem)
            if kind not in TYPES:
                raise damage_error(path, f"the property {name[:80]} is of the unknown type {kind[:80]}")
            if name in seen:
                raise damage_error(path, f"the element {self.name[:80]} has the property {name[:80]} twice")
            seen.add(name)
        if not seen:
            raise UsageProblem(f"{path}: the element {self.name[:80]} has no properties")
        return np.dtype([(name, byte_order + TYPES[kind]) for name, kind in self.properties])


@dataclass(frozen=True, slots=True)
class PlyHeader:
    """The content of a header."""

    layout: str
    """`ascii`, `binary_little_endian` or `binary_big_endian`."""
    elements: Mapping[str, Element]
    """By name, in the order of the file."""
    comments: Sequence[str]
    """Without the word `comment`; `?` for what is not printable ASCII."""
    size: int
    """Bytes of the header, after which the first element starts."""


def header_text(layout: str, elements: Sequence[Element], comments: Sequence[str] = ()) -> bytes:
    """The bytes of a header."""
    lines = ["ply", f"format {layout} 1.0", *(f"comment {comment}" for comment in comments)]
    for element in elements:
        lines += [f"element {element.name} {element.count}"]
        lines += [f"property {kind} {name}" for name, kind in element.properties]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def read_header(path: Path, stream: BinaryIO) -> PlyHeader:
    """Reads the header at the start of `stream`; leaves the stream just after the header.

    Raises:
        UsageProblem: the file is not a PLY, or its header is damaged.
    """
    head = stream.read(HEADER_LIMIT)
    start = re.match(rb"ply(\r\n|\n|\r)", head)
    if not start:
        raise UsageProblem(f"{path} is not a PLY file")
    end = re.compile(rb"[\r\n]end_header[ \t]*" + start[1]).search(head)
    if not end:
        raise damage_error(path, "its header has no end")
    stream.seek(end.end())
    layout, elements, comments = "", dict[str, Element](), list[str]()
    for line in head[start.end() : end.start()].translate(_PRINTABLE).decode("ascii").splitlines():
        match line.split():
            case [] | ["obj_info", *_]:
                pass
            case ["comment", *_]:
                comments.append(line.strip().removeprefix("comment").strip())
            case ["format", name, "1.0"] if name in BYTE_ORDERS and not layout and not elements:
                layout = name
            case ["element", *rest]:
                element = _element(path, line, rest)
                if element.name in elements or not layout:
                    raise damage_error(path, f"{line[:80]!r} in its header")
                elements[element.name] = element
            case ["property", kind, name] | ["property", "list" as kind, _, _, name] if elements:
                next(reversed(elements.values())).properties.append((name, kind))
            case _:
                raise damage_error(path, f"{line[:80]!r} in its header")
    return PlyHeader(layout, elements, comments, end.end())


def damage_error(path: Path, reason: Any) -> UsageProblem:
    """The error to raise for a file with invalid content."""
    return UsageProblem(f"{path} is damaged: {reason}")


def _element(path: Path, line: str, fields: Sequence[str]) -> Element:
    """The element of a line `element NAME COUNT`."""
    if len(fields) != 2 or not re.fullmatch(r"[0-9]{1,18}", fields[1]):
        raise damage_error(path, f"{line[:80]!r} does not give a number of rows")
    return Element(fields[0], int(fields[1]))
