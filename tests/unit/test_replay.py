"""How calls are cut into pieces, and what is said about the work that is done once."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.accel import cuda_graphs as replay
from segdream_cli.accel.cuda_graphs import (
    COMPILER_CACHE,
    FirstCalls,
    FirstWorking,
    RowCalls,
    compiled,
    fastest,
    piece_sizes,
)
from segdream_cli.errors import EnvironmentProblem


@pytest.mark.parametrize(
    ("rows", "unit", "most", "sizes"),
    [
        (4, 4, 8, [4]),
        (8, 4, 8, [8]),
        (9, 4, 8, [8, 4]),
        (13, 4, 8, [8, 8]),
        (16, 4, 8, [8, 8]),
        (13, 4, None, [16]),
        (5, 1, None, [5]),
        (5, 1, 2, [2, 2, 1]),
    ],
)
def test_pieces(rows: int, unit: int, most: int | None, sizes: list[int]) -> None:
    assert piece_sizes(rows, unit, most) == sizes


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4) | st.none())
def test_pieces_hold_every_row_and_are_of_few_sizes(rows: int, unit: int, times: int | None) -> None:
    most = None if times is None else times * unit
    sizes = piece_sizes(rows, unit, most)
    assert 0 <= sum(sizes) - rows < unit
    assert all(size % unit == 0 and (most is None or size <= most) for size in sizes)
    if times is not None:
        assert len(set(sizes)) <= 2


def test_perp_negs_many_numbers_of_rows_are_two_sizes() -> None:
    """One to two branches of four views each may count, on top of eight rows of guidance."""
    assert {size for rows in (4, 8, *range(9, 17)) for size in piece_sizes(rows, 4, 8)} == {4, 8}


@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, None]))
def test_a_call_in_pieces_is_one_call(rows: int, unit: int, times: int | None) -> None:
    seen = []

    def function(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x * scale[:, None]

    x, scale = torch.randn(rows, 3), torch.randn(rows)
    found = RowCalls(function, unit, times and times * unit)(x, scale)
    assert torch.equal(found, x * scale[:, None])
    assert all(size % unit == 0 for size in seen)


@pytest.mark.parametrize(("compiling", "hint"), [(True, "--set prior.compile=off"), (False, None)])
def test_what_can_not_be_done_once_names_the_setting_if_it_may_end_a_run(compiling: bool, hint: str | None) -> None:
    """Only prior.compile=on allows one way alone, which is the compiled one."""
    first = FirstCalls("the U-Net", lambda _: None, compiling=compiling)
    with pytest.raises(EnvironmentProblem, match=r"the U-Net can't be .*: no kernel") as caught, first(4):
        raise RuntimeError("no kernel\nat line 7")
    assert caught.value.hint == hint


def test_memory_that_runs_out_is_no_fault_of_the_compiler() -> None:
    first = FirstCalls("the U-Net", lambda _: None, compiling=True)
    with pytest.raises(torch.cuda.OutOfMemoryError), first(4):
        raise torch.cuda.OutOfMemoryError


def test_only_compiling_is_announced() -> None:
    said: list[str] = []
    for compiling in (False, True):
        with FirstCalls("the U-Net", said.append, compiling=compiling)(4):
            pass
    assert len(said) == 2
    assert "the U-Net" in said[0]
    assert said[1] == "compiled the U-Net in 0 s"


def test_a_size_is_announced_once() -> None:
    said: list[str] = []
    first = FirstCalls("the U-Net", said.append, compiling=True)
    for rows in (4, 4, 8, 4):
        with first(rows):
            pass
    assert [line.split()[0] for line in said] == ["compiling", "compiled"] * 2


def test_of_several_errors_the_first_is_told() -> None:
    """A capture that an error ends can't be ended in order, and says so instead."""

    @contextmanager
    def captured() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture has failed")

    first = FirstCalls("the U-Net", lambda _: None, compiling=True)
    with pytest.raises(EnvironmentProblem, match="no such kernel"), first(4), captured():
        raise RuntimeError("no such kernel")


def test_a_way_that_can_not_be_gone_gives_way_to_the_next_for_good() -> None:
    said: list[str] = []
    tried: list[str] = []

    def broken(x: torch.Tensor) -> torch.Tensor:
        tried.append("broken")
        raise EnvironmentProblem("the U-Net can't be compiled: no compiler", hint="")

    double = FirstWorking([("compiled", broken), ("kernel by kernel", lambda x: 2 * x)], said.append)
    for number in (1.0, 2.0):
        assert double(torch.tensor(number)) == 2 * number
    assert tried == ["broken"]
    (line,) = said
    assert "no compiler; computing it kernel by kernel instead" in line


def test_the_last_way_fails_as_it_does() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise EnvironmentProblem("no", hint="try")

    with pytest.raises(EnvironmentProblem, match="no"):
        FirstWorking([("compiled", broken)], pytest.fail)(torch.ones(1))


@pytest.mark.parametrize(
    ("graphs", "compiling", "only", "tried"),
    [
        (True, True, False, ["graph of compiled", "graph of plain", "plain"]),
        (True, False, False, ["graph of plain", "plain"]),
        (False, True, False, ["compiled", "plain"]),
        (False, False, False, ["plain"]),
        (True, True, True, ["graph of compiled"]),
    ],
)
def test_the_fastest_way_is_tried_first_and_all_that_are_wanted_in_turn(
    graphs: bool, compiling: bool, only: bool, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way fails here, as it may on a machine that lacks what it needs."""
    seen: list[str] = []

    def fail(name: str) -> Callable[..., torch.Tensor]:
        def way(*_: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            raise EnvironmentProblem(f"{name} fails", hint="")

        way.__name__ = name
        return way

    monkeypatch.setattr(replay, "compiled", lambda function, **_: fail("compiled"))
    said: list[str] = []
    call = fastest(
        "it",
        fail("plain"),
        lambda function, first: fail(f"graph of {function.__name__}"),
        said.append,
        graphs=graphs,
        compiling=compiling,
        only=only,
    )
    with pytest.raises(EnvironmentProblem, match=f"{tried[-1]} fails"):
        call(torch.ones(1))
    assert seen == tried
    assert sum("takes longer" in line for line in said) == len(tried) - 1


def broken_compiler(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no C compiler")


def working_compiler(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def without_graphs(function: Callable[..., torch.Tensor], said: list[str], *, only: bool) -> FirstWorking:
    """Twice the argument, compiled but not captured, by a compiler that gives `function`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "compiled", lambda *_, **__: function)
        return fastest("it", working_compiler, pytest.fail, said.append, graphs=False, compiling=True, only=only)


def test_a_compiler_that_fails_without_graphs_gives_way_too() -> None:
    """It raises when the function is called for the first time, and errors of its own kind."""
    said: list[str] = []
    assert without_graphs(broken_compiler, said, only=False)(torch.ones(1)) == 2
    assert said[0].startswith("compiling it for 1 rows")
    assert said[1:] == [
        "it can't be compiled: no C compiler; computing it kernel by kernel instead, which takes longer"
    ]
    with pytest.raises(EnvironmentProblem, match="it can't be compiled: no C compiler") as caught:
        without_graphs(broken_compiler, [], only=True)(torch.ones(1))
    assert "prior.compile=off" in str(caught.value.hint)


def test_each_size_is_announced_when_it_is_compiled_without_graphs() -> None:
    said: list[str] = []
    double = without_graphs(working_compiler, said, only=False)
    for rows in (4, 4, 8, 4):
        assert torch.equal(double(torch.ones(rows)), torch.full((rows,), 2.0))
    assert [line.split()[:5] for line in said[::2]] == [["compiling", "it", "for", rows, "rows;"] for rows in "48"]
    assert len(said) == 4


def test_an_error_after_the_first_call_is_no_fault_of_the_compiler() -> None:
    calls: list[int] = []

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("something else")
        return x

    call = without_graphs(sometimes, [], only=False)
    call(torch.ones(1))
    with pytest.raises(RuntimeError, match="something else"):
        call(torch.ones(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what the compiler itself imports
@pytest.mark.parametrize("place", ["none", "default", "own"])
def test_what_is_compiled_outlives_the_process_and_the_next_start(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody named a place for it, that is; importing diffusers names torch's default."""
    default = str(Path(tempfile.gettempdir()) / "torchinductor_somebody")
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(COMPILER_CACHE, {"none": "", "default": default, "own": str(tmp_path / "own")}[place])
    if place == "none":
        monkeypatch.delenv(COMPILER_CACHE)
    compiled(lambda x: x)
    expected = tmp_path / "own" if place == "own" else tmp_path / "cache" / "inductor"
    assert os.environ[COMPILER_CACHE] == str(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what the compiler itself imports
def test_the_compiler_is_told_to_compute_values_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what this torch's compiler has, as its own list of options says, and only where it is wanted."""
    told: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: told.append(options) or function)
    monkeypatch.setattr(replay, "RECOMPUTING", replay.RECOMPUTING | {"an_option_that_went": 1})
    for wanted in (True, False):
        fastest("it", working_compiler, pytest.fail, print, graphs=False, compiling=True, only=True, recomputing=wanted)
    known = set(torch._inductor.list_options())
    assert told == [{key: value for key, value in replay.RECOMPUTING.items() if key in known}, None]
    assert len(told[0]) == len(replay.RECOMPUTING) - 1
