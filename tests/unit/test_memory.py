"""Pauses of garbage collection."""

import gc

import pytest

from segdream_cli.util.memory import without_collection


@without_collection()
def fail() -> None:
    with without_collection():
        assert not gc.isenabled()
    assert not gc.isenabled()
    raise ValueError("inside")


@pytest.mark.parametrize("enabled", [True, False])
def test_without_collection_restores_what_it_found(enabled: bool) -> None:
    found = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="inside"):
            fail()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if found else gc.disable)()
