"""Sizes of files as people read them."""

from decimal import ROUND_HALF_EVEN, Decimal

import pytest

from segdream_cli.util.text import format_size

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (30_412, "30.4 kB"), (999_949, "999.9 kB"),
        (999_960, "1.0 MB"), (2_600_000_000, "2.6 GB"), (10**15, "1000.0 TB"),
    ],
)  # fmt: skip
def test_format_size_takes_the_largest_unit_that_shows_a_number(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("size", [7**power for power in range(17)])
def test_format_size_is_right_to_a_tenth_of_its_unit(size: int) -> None:
    number, unit = format_size(size).split()
    step = Decimal("1") if unit == "B" else Decimal("0.1")
    assert Decimal(number) == (Decimal(size) / UNITS[unit]).quantize(step, ROUND_HALF_EVEN)
    assert 1 <= Decimal(number) < 1000
