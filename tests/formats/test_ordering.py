"""Fast stable orders against numpy's own sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.formats.ordering import argsort, argsort_descending


@given(st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])))
def test_argsort_descending_is_stable(values: list[float]) -> None:
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(argsort_descending(array), np.argsort(-array, kind="stable"))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@given(data=st.data())
def test_argsort_matches_numpy(dtype: type, data: st.DataObject) -> None:
    top = int(np.iinfo(dtype).max)
    numbers = st.integers(0, top) | st.sampled_from([0, 1, 1 << 15, 1 << 16 & top, top])
    array = np.array(data.draw(st.lists(numbers)), dtype)
    np.testing.assert_array_equal(argsort(array), np.argsort(array, kind="stable"))
