"""The charts of a report: where points and ticks lie."""

import math
import re

import pytest

from segdream_cli.runs.charts import MOST_POINTS, MOST_TICKS, Chart, draw, linear_ticks


def curve(svg):
    """Corners of the curve, in pixels."""
    (path,) = re.findall(r'class="curve" d="M([^"]+)"', svg)
    return [tuple(map(float, corner.split())) for corner in path.split("L")]


def labels(svg):
    """Label of a horizontal line -> its height in pixels."""
    found = re.findall(r'<path class="grid" d="M\d+ ([\d.]+)H\d+"/><text [^>]*>([^<]+)</text>', svg)
    return {float(label.replace(",", "")): float(y) for y, label in found}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1, 10), (0.013, 0.9, 0.2), (4096, 6000, 11_828), (3, 3), (1e-9, 1e7)])
def test_draw_places_values_where_the_ticks_say(log, values):
    """A curve through the values of the ticks themselves passes through the lines of the grid."""
    places = labels(draw(Chart("t", list(enumerate(values, 1)), log=log), len(values), {}))
    assert 2 <= len(places) <= 2 * MOST_TICKS
    assert min(places) <= min(values)
    assert max(places) >= max(values)
    again = draw(Chart("t", list(enumerate([*values, *places], 1)), log=log), 99, {})
    corners = curve(again)[len(values) :]
    assert labels(again) == pytest.approx(places)
    assert [y for _, y in corners] == pytest.approx(list(places.values()), abs=0.11)
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)


def test_draw_leaves_out_numbers_without_a_place():
    points = [(1, 2.0), (2, math.nan), (3, math.inf), (4, 0.0), (5, 3.0)]
    assert len(curve(draw(Chart("t", points), 5, {}))) == 3
    assert len(curve(draw(Chart("t", points, log=True), 5, {}))) == 2
    assert draw(Chart("t", [(1, 0.0)], log=True), 1, {}) == ""
    many = [(step, 1.0 + step) for step in range(3 * MOST_POINTS)]
    assert MOST_POINTS / 2 < len(curve(draw(Chart("t", many), 9, {}))) <= MOST_POINTS


def test_draw_escapes_names():
    svg = draw(Chart("<b>", [(1, 1.0), (2, 2.0)]), 2, {"<i>": 1})
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "&lt;i&gt;" in svg


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0, 0.3), (-5, 17), (0, 11_828), (0, 1e-7), (0, 1e12)])
def test_linear_ticks_are_round_and_cover_the_range(low, high):
    ticks = linear_ticks(low, high)
    gap = ticks[1] - ticks[0]
    assert ticks[0] <= low
    assert ticks[-1] >= high - 1e-12
    assert len(ticks) <= MOST_TICKS + 1
    assert f"{gap:.0e}"[0] in "125"
    assert gap == pytest.approx(float(f"{gap:.0e}"))
