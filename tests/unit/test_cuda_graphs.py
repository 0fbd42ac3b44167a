"""Batches of few sizes, fallbacks between implementations, and announcements of compilations."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdream_cli.accel import cuda_graphs
from segdream_cli.accel.cuda_graphs import (
    COMPILER_CACHE,
    RECOMPUTE_OPTIONS,
    CompileNotices,
    FallbackChain,
    PaddedBatches,
    batch_sizes,
    compile_function,
)
from segdream_cli.errors import EnvironmentProblem


@pytest.mark.parametrize(
    ("rows", "multiple", "largest", "sizes"),
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
def test_batch_sizes(rows: int, multiple: int, largest: int | None, sizes: list[int]) -> None:
    assert batch_sizes(rows, multiple, largest) == sizes


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4) | st.none())
def test_batch_sizes_hold_all_rows_in_few_sizes(rows: int, multiple: int, times: int | None) -> None:
    largest = None if times is None else times * multiple
    sizes = batch_sizes(rows, multiple, largest)
    assert 0 <= sum(sizes) - rows < multiple
    assert all(size % multiple == 0 and (largest is None or size <= largest) for size in sizes)
    if times is not None:
        assert len(set(sizes)) <= 2


def test_batch_sizes_of_perp_neg_are_two() -> None:
    """Perp-Neg adds one to two branches of four views to the eight rows of guidance."""
    assert {size for rows in (4, 8, *range(9, 17)) for size in batch_sizes(rows, 4, 8)} == {4, 8}


@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, None]))
def test_padded_batches_equal_one_call(rows: int, multiple: int, times: int | None) -> None:
    seen = []

    def function(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x * scale[:, None]

    x, scale = torch.randn(rows, 3), torch.randn(rows)
    found = PaddedBatches(function, multiple, times and times * multiple)(x, scale)
    assert torch.equal(found, x * scale[:, None])
    assert all(size % multiple == 0 for size in seen)


@pytest.mark.parametrize(("compiling", "hint"), [(True, "--set prior.compile=off"), (False, None)])
def test_compile_notices_name_the_setting_if_the_error_ends_the_run(compiling: bool, hint: str | None) -> None:
    """Only prior.compile=on has no fallback, and compiles."""
    notices = CompileNotices("the U-Net", lambda _: None, compiling=compiling)
    with pytest.raises(EnvironmentProblem, match=r"the U-Net can't be .*: no kernel") as caught, notices.first_call(4):
        raise RuntimeError("no kernel\nat line 7")
    assert caught.value.hint == hint


def test_compile_notices_pass_out_of_memory_on() -> None:
    notices = CompileNotices("the U-Net", lambda _: None, compiling=True)
    with pytest.raises(torch.cuda.OutOfMemoryError), notices.first_call(4):
        raise torch.cuda.OutOfMemoryError


def test_compile_notices_announce_compilations_only() -> None:
    said: list[str] = []
    for compiling in (False, True):
        with CompileNotices("the U-Net", said.append, compiling=compiling).first_call(4):
            pass
    assert len(said) == 2
    assert "the U-Net" in said[0]
    assert said[1] == "compiled the U-Net in 0 s"


def test_compile_notices_announce_each_size_once() -> None:
    said: list[str] = []
    notices = CompileNotices("the U-Net", said.append, compiling=True)
    for rows in (4, 4, 8, 4):
        with notices.first_call(rows):
            pass
    assert [line.split()[0] for line in said] == ["compiling", "compiled"] * 2


def test_compile_notices_report_the_first_of_several_errors() -> None:
    """An error inside a capture makes the end of the capture fail, with an error of its own."""

    @contextmanager
    def capture() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture has failed")

    notices = CompileNotices("the U-Net", lambda _: None, compiling=True)
    with pytest.raises(EnvironmentProblem, match="no such kernel"), notices.first_call(4), capture():
        raise RuntimeError("no such kernel")


def test_fallback_chain_tries_a_failed_implementation_once() -> None:
    said: list[str] = []
    tried: list[str] = []

    def fail(x: torch.Tensor) -> torch.Tensor:
        tried.append("compiled code")
        raise EnvironmentProblem("the U-Net can't be compiled: no compiler", hint="")

    double = FallbackChain([("compiled code", fail), ("eager execution", lambda x: 2 * x)], said.append)
    assert double.failed == []
    for number in (1.0, 2.0):
        assert double(torch.tensor(number)) == 2 * number
    assert tried == double.failed == ["compiled code"]
    (line,) = said
    assert "no compiler; falling back to eager execution" in line


def test_fallback_chain_raises_the_error_of_the_last_implementation() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise EnvironmentProblem("no", hint="try")

    with pytest.raises(EnvironmentProblem, match="no"):
        FallbackChain([("compiled code", fail)], pytest.fail)(torch.ones(1))


@pytest.mark.parametrize(
    ("graphs", "compiling", "allow_fallback", "tried"),
    [
        (True, True, True, ["graph of compiled", "graph of eager", "eager"]),
        (True, False, True, ["graph of eager", "eager"]),
        (False, True, True, ["compiled", "eager"]),
        (False, False, True, ["eager"]),
        (True, True, False, ["graph of compiled"]),
    ],
)
def test_fallback_chain_build_orders_implementations_from_fast_to_slow(
    graphs: bool, compiling: bool, allow_fallback: bool, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every implementation fails here, so that each of them is tried."""
    seen: list[str] = []

    def fail(name: str) -> Callable[..., torch.Tensor]:
        def implementation(*_: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            raise EnvironmentProblem(f"{name} fails", hint="")

        implementation.__name__ = name
        return implementation

    monkeypatch.setattr(cuda_graphs, "compile_function", lambda function, **_: fail("compiled"))
    said: list[str] = []
    call = FallbackChain.build(
        "it",
        fail("eager"),
        lambda function, notices: fail(f"graph of {function.__name__}"),
        said.append,
        graphs=graphs,
        compiling=compiling,
        allow_fallback=allow_fallback,
    )
    with pytest.raises(EnvironmentProblem, match=f"{tried[-1]} fails"):
        call(torch.ones(1))
    assert seen == tried
    assert sum("falling back" in line for line in said) == len(call.failed) == len(tried) - 1


def fail_to_compile(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no C compiler")


def double_argument(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def compile_to(function: Callable[..., torch.Tensor], said: list[str], *, allow_fallback: bool) -> FallbackChain:
    """Twice the argument, compiled but not captured, by a compiler that returns `function`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "compile_function", lambda *_, **__: function)
        return FallbackChain.build(
            "it",
            double_argument,
            pytest.fail,
            said.append,
            graphs=False,
            compiling=True,
            allow_fallback=allow_fallback,
        )


def test_compiled_calls_fall_back_if_the_compiler_fails() -> None:
    """A compiler raises its own errors, and only at the first call of the function."""
    said: list[str] = []
    assert compile_to(fail_to_compile, said, allow_fallback=True)(torch.ones(1)) == 2
    assert said[0].startswith("compiling it for 1 rows")
    assert said[1:] == ["it can't be compiled: no C compiler; falling back to eager execution, which is slower"]
    with pytest.raises(EnvironmentProblem, match="it can't be compiled: no C compiler") as caught:
        compile_to(fail_to_compile, [], allow_fallback=False)(torch.ones(1))
    assert "prior.compile=off" in str(caught.value.hint)


def test_compiled_calls_announce_each_size() -> None:
    said: list[str] = []
    double = compile_to(double_argument, said, allow_fallback=True)
    for rows in (4, 4, 8, 4):
        assert torch.equal(double(torch.ones(rows)), torch.full((rows,), 2.0))
    assert [line.split()[:5] for line in said[::2]] == [["compiling", "it", "for", rows, "rows;"] for rows in "48"]
    assert len(said) == 4


def test_compiled_calls_pass_on_errors_after_the_first_call() -> None:
    calls: list[int] = []

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("something else")
        return x

    call = compile_to(sometimes, [], allow_fallback=True)
    call(torch.ones(1))
    with pytest.raises(RuntimeError, match="something else"):
        call(torch.ones(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what the compiler itself imports
@pytest.mark.parametrize("folder", ["none", "default", "own"])
def test_compile_function_keeps_code_in_the_cache_unless_a_folder_is_set(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing diffusers sets torch's default folder, which counts as not set."""
    default = str(Path(tempfile.gettempdir()) / "torchinductor_somebody")
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(COMPILER_CACHE, {"none": "", "default": default, "own": str(tmp_path / "own")}[folder])
    if folder == "none":
        monkeypatch.delenv(COMPILER_CACHE)
    compile_function(lambda x: x)
    expected = tmp_path / "own" if folder == "own" else tmp_path / "cache" / "inductor"
    assert os.environ[COMPILER_CACHE] == str(expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what the compiler itself imports
def test_compile_function_passes_the_recompute_options_that_torch_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: passed.append(options) or function)
    monkeypatch.setattr(cuda_graphs, "RECOMPUTE_OPTIONS", RECOMPUTE_OPTIONS | {"an_unknown_option": 1})
    for recompute in (True, False):
        compile_function(double_argument, recompute=recompute)
    known = set(torch._inductor.list_options())
    assert passed == [{key: value for key, value in RECOMPUTE_OPTIONS.items() if key in known}, None]
    assert len(passed[0]) == len(RECOMPUTE_OPTIONS)


@pytest.mark.parametrize("recompute", [True, False])
def test_fallback_chain_build_compiles_with_the_recompute_options_if_asked(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        cuda_graphs, "compile_function", lambda function, *, recompute: asked.append(recompute) or function
    )
    FallbackChain.build(
        "it",
        double_argument,
        pytest.fail,
        print,
        graphs=False,
        compiling=True,
        allow_fallback=False,
        recompute=recompute,
    )
    assert asked == [recompute]
