"""OpenVINO's calls against torch's, their bits in other processes, and the cache of converted networks."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build
from fakes import draw

from segdream_cli.accel import openvino_engine
from segdream_cli.accel.openvino_engine import OpenVinoCalls, choose_engine, row_counts
from segdream_cli.config import Config, PriorConfig
from segdream_cli.errors import EnvironmentProblem, UsageProblem
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from segdream_cli.runs.load import load_clouds

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")

CPU = torch.device("cpu")
SHIPPED = Path(weights.PRIORS[weights.choose("auto", cuda=False)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("openvino") / "tiny", prediction_type="v_prediction")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def load(folder: Path, warn: Any = pytest.fail, **settings: Any) -> DiffusionPrior:
    checkpoint = weights.resolve(PriorConfig(model=str(folder)), cuda=False, offline=True, announce=pytest.fail)
    return DiffusionPrior.load(checkpoint, CPU, PriorConfig(**{"dtype": "fp32"} | settings), warn=warn)


def inputs(prior: DiffusionPrior, rows: int, side: int, width: int | None = None) -> tuple[torch.Tensor, ...]:
    latents = draw(rows, prior.latent_shape[0], side, width or side, dtype=torch.float32)
    return latents, torch.arange(rows) * 99, prior.encode_text(["a red car", *[""] * (rows - 1)])


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def linear_calls(network: torch.nn.Linear) -> OpenVinoCalls:
    """A network so small that it is converted in no time; its rows are images of two pixels."""
    return OpenVinoCalls("a layer", network, network.forward, [torch.zeros(2, 1, 2)], largest=100)


@pytest.fixture
def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3).requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("shipped", [False, True], ids=["tiny", "shipped"])
def test_predict_noise_equals_that_of_torch(folder: Path, cache: Path, shipped: bool) -> None:
    """For several numbers of rows and sizes of one conversion, square or not, also one that torch must compute."""
    path = SHIPPED if shipped else folder
    fast, plain = load(path, engine="openvino"), load(path, engine="torch")
    sizes = [(1, 16, 16), (5, 16, 32)] if shipped else [(1, 8, 8), (7, 16, 8), (2, 9, 8)]
    for rows, height, width in sizes:
        arguments = inputs(plain, rows, height, width)
        assert relative(fast.predict_noise(*arguments), plain.predict_noise(*arguments)) < 1e-5
    assert len(list(cache.iterdir())) == 1
    assert fast.chains[0].failed == []


@pytest.mark.slow
@pytest.mark.skipif(not openvino_engine.has_bf16(), reason="this processor has no bf16 instructions")
def test_bf16_is_close_and_includes_the_autoencoder(folder: Path, cache: Path) -> None:
    fast, plain = load(folder, engine="openvino", dtype="bf16"), load(folder, engine="torch")
    latents, *others = inputs(plain, 3, 8)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, *plain.latent_shape[:1], 8, 8, generator=torch.Generator().manual_seed(1))
    assert 1e-4 < relative(fast.predict_noise(latents, *others), plain.predict_noise(latents, *others)) < 0.03
    assert 1e-4 < relative(fast.decode(latents), plain.decode(latents)) < 0.03
    assert 1e-4 < relative(fast.encode_image(images), plain.encode_image(images)) < 0.03
    gradients = []
    for prior in (fast, plain):
        pixels = images.clone().requires_grad_()
        (weights * prior.encode_image(pixels)).sum().backward()
        gradients.append(pixels.grad)
    assert 1e-4 < relative(*gradients) < 0.05
    assert len(list(cache.iterdir())) == 1  # OpenVINO computes the U-Net alone


@pytest.mark.parametrize(
    ("settings", "capable", "bf16"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"dtype": "fp32"}, True, False),
        ({"dtype": "bf16", "engine": "openvino"}, True, True),
        ({"dtype": "bf16", "engine": "openvino"}, False, False),
        ({"engine": "torch"}, True, False),
    ],
)
def test_networks_compute_in_bf16_where_the_processor_does(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], capable: bool, bf16: bool
) -> None:
    """The U-Net, the autoencoder and the prior's own Point-E, of which this test sees the dtype alone."""
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: capable)
    config = PriorConfig(**{"dtype": "auto"} | settings)
    assert openvino_engine.computes_bf16(config, CPU) == bf16
    found, plain = load(folder, **{"dtype": "auto"} | settings), load(folder, engine="torch")
    latents = draw(1, *plain.latent_shape, dtype=torch.float32)
    assert torch.equal(found.decode(latents), plain.decode(latents)) != bf16
    if found.chains:
        assert found.chains[0]._implementations[0][1]._precision == ("bf16" if bf16 else "f32")
    resolved = Config().set({"init.shape": "point-e"} | {f"prior.{name}": value for name, value in settings.items()})
    own = weights.resolve(PriorConfig(name="mini"), cuda=False, offline=True, announce=pytest.fail)
    clouds = load_clouds(resolved, own.profile.point_e, lambda: own, CPU, lambda event: None, offline=True)
    assert clouds is not None
    requested = settings.get("dtype") == "bf16"  # torch can compute in it on any processor
    assert clouds.dtype == (torch.bfloat16 if bf16 or requested else torch.float32)


def test_gradients_are_those_of_torch(folder: Path, cache: Path) -> None:
    fast, plain = load(folder), load(folder, engine="torch")
    gradients = []
    for prior in (fast, plain):
        latents, *others = inputs(prior, 1, 8)
        prior.predict_noise(latents.requires_grad_(), *others).square().sum().backward()
        gradients.append(latents.grad)
    assert torch.equal(*gradients)
    assert not cache.exists()


def test_compiled_networks_are_those_of_one_size(layer: torch.nn.Linear, cache: Path) -> None:
    """Each holds a copy of the weights: those of the last size are dropped, and compiled again when it returns."""
    calls = linear_calls(layer)
    compiled = []
    for rows, height in ((1, 1), (2, 1), (1, 3), (2, 1), (2, 1)):
        values = torch.rand(rows, height, 2, generator=torch.Generator().manual_seed(rows))
        assert relative(calls(values), layer(values)) < 1e-5
        compiled.append(len(calls._compiled))
    assert compiled == [1, 2, 1, 1, 1]


BITS = """
import hashlib, sys, torch
sys.path[:0] = {paths}
import test_openvino_engine as tests
from pathlib import Path
for threads in (1, 2):
    torch.set_num_threads(threads)
    prior = tests.load(Path({folder!r}))
    rows = [prior.predict_noise(*tests.inputs(prior, rows, 8)) for rows in (1, 6)]
    print(threads, hashlib.sha256(torch.cat(rows).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_bits_are_the_same_in_another_process_and_without_a_cache(folder: Path, cache: Path) -> None:
    """The first process converts, the second reads the conversion, and the third can't write the cache.

    Each computes with one thread and with two.
    """
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", BITS.format(paths=paths, folder=str(folder))]
    blocked = cache.parents[1] / "file"
    blocked.touch()
    found = []
    for place in (cache.parent, cache.parent, blocked):
        environment = os.environ | {"SEGDREAM_CACHE": str(place)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1] == found[2]
    assert len(list(cache.iterdir())) == 1


def test_calls_split_rows_and_return_every_result(layer: torch.nn.Linear, cache: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return layer(x), 2 * x

    calls = OpenVinoCalls("a layer", layer, function, [torch.zeros(2, 1, 2)], largest=8)
    x = torch.randn(11, 1, 2)
    got, doubled = calls(x)
    torch.testing.assert_close(got, layer(x))
    assert torch.equal(doubled, 2 * x)


def test_cache_is_keyed_by_the_weights(layer: torch.nn.Linear, cache: Path) -> None:
    x = torch.ones(1, 1, 2)
    for _ in range(2):
        linear_calls(layer)(x)
    first = set(cache.iterdir())
    assert len(first) == 1
    layer.bias[0] += 1
    torch.testing.assert_close(linear_calls(layer)(x), layer(x))
    assert len(set(cache.iterdir()) - first) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "foreign"])
def test_damaged_file_in_the_cache_is_replaced(layer: torch.nn.Linear, cache: Path, damage: str) -> None:
    x = torch.ones(1, 1, 2)
    linear_calls(layer)(x)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    weight = whole.index(layer.weight.numpy().tobytes())
    if damage == "foreign":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.xml", "<net/>")
            archive.writestr("model.bin", b"")
    else:
        flipped = whole[:weight] + bytes([whole[weight] ^ 1]) + whole[weight + 1 :]
        path.write_bytes({"cut": whole[:-40], "changed": flipped, "empty": b""}[damage])
    torch.testing.assert_close(linear_calls(layer)(x), layer(x))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert layer.weight.numpy().tobytes() in archive.read("model.bin")


def test_calls_read_the_cache_instead_of_converting(
    layer: torch.nn.Linear, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.ones(1, 1, 2)
    expected = linear_calls(layer)(x)
    monkeypatch.setattr(OpenVinoCalls, "_convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(linear_calls(layer)(x), expected)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is known of OpenVINO before a test, nor after it."""
    known = openvino_engine.has_bf16, openvino_engine._core
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


def test_auto_falls_back_if_openvino_cannot_be_imported(
    folder: Path, cache: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(openvino_engine, "import_openvino", fail)
    said: list[str] = []
    prior, plain = load(folder, warn=said.append, dtype="auto"), load(folder, engine="torch")
    for _ in range(2):
        assert torch.equal(prior.predict_noise(*inputs(prior, 2, 8)), plain.predict_noise(*inputs(prior, 2, 8)))
    assert said == [
        "OpenVINO can't compute the U-Net: libopenvino.so: cannot open shared object file; falling back to torch,"
        " which is slower"
    ]
    with pytest.raises(EnvironmentProblem, match="cannot open") as caught:
        load(folder, engine="openvino").predict_noise(*inputs(prior, 2, 8))
    assert caught.value.hint == "--set prior.engine=torch"


def test_choose_engine_without_openvino(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_engine(PriorConfig(), CPU, full_size=False) == ("torch", "OpenVINO is not installed")
    assert load(folder).chains == ()
    with pytest.raises(UsageProblem, match="not installed") as caught:
        load(folder, engine="openvino")
    assert caught.value.hint == "pip install openvino"


@pytest.mark.parametrize(
    ("settings", "device", "full_size", "engine"),
    [
        ({}, "cpu", False, "openvino"),
        ({"dtype": "fp32"}, "cpu", False, "openvino"),
        ({"dtype": "bf16"}, "cpu", False, "torch"),
        ({"dtype": "fp16"}, "cpu", False, "torch"),
        ({"engine": "torch"}, "cpu", False, "torch"),
        ({}, "cpu", True, "torch"),
        ({"engine": "openvino"}, "cpu", True, "openvino"),
        ({"engine": "openvino", "dtype": "bf16"}, "cpu", False, "openvino"),
        ({}, "cuda", False, "torch"),
    ],
)
def test_choose_engine(settings: dict[str, Any], device: str, full_size: bool, engine: str) -> None:
    assert choose_engine(PriorConfig(**settings), torch.device(device), full_size=full_size)[0] == engine


@pytest.mark.parametrize(
    ("settings", "device", "reason"), [({}, "cuda", "run on CUDA"), ({"dtype": "fp16"}, "cpu", "dtype is fp16")]
)
def test_choose_engine_refuses_openvino(settings: dict[str, Any], device: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason) as caught:
        choose_engine(PriorConfig(engine="openvino", **settings), torch.device(device), full_size=False)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("rows", "largest", "counts"),
    [(4, 16, [4]), (7, 16, [4, 2, 1]), (64, 16, [16] * 4), (37, 16, [16, 16, 4, 1]), (3, 1, [1] * 3), (5, 6, [4, 1])],
)
def test_row_counts(rows: int, largest: int, counts: list[int]) -> None:
    assert row_counts(rows, largest) == counts


def test_largest_below_one_row_computes_rows_one_by_one() -> None:
    assert row_counts(3, 0) == [1, 1, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_process_is_told_instead_of_hanging(layer: torch.nn.Linear, cache: Path) -> None:
    calls, x = linear_calls(layer), torch.ones(1, 1, 2)
    calls(x)
    child = os.fork()
    if child == 0:
        try:
            calls(x)
        except EnvironmentProblem as problem:
            os._exit(7 if "forked" in problem.message else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_import_reports_nothing_to_the_vendor(tmp_path: Path) -> None:
    """With its telemetry, importing OpenVINO writes an identifier into the home folder."""
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from segdream_cli.accel.openvino_engine import import_openvino
assert import_openvino().Core().available_devices
assert "openvino_telemetry" not in sys.modules
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=Path(__file__).parents[2])
    assert list(tmp_path.iterdir()) == []


def test_file_name_depends_on_the_version(layer: torch.nn.Linear, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear_calls(layer)(torch.ones(1, 1, 2))
    monkeypatch.setattr(openvino_engine, "version", lambda name: version(name) + ".1")
    linear_calls(layer)(torch.ones(1, 1, 2))
    assert len(list(cache.iterdir())) == 2


def test_file_name_depends_on_the_configuration_but_not_on_its_folder(layer: torch.nn.Linear, cache: Path) -> None:
    """A second environment on a machine finds what the first has converted."""
    for config in ({"heads": 2, "_name_or_path": "/a"}, {"heads": 2, "_name_or_path": "/b"}, {"heads": 4}):
        layer.config = config
        linear_calls(layer)(torch.zeros(2, 1, 2))
    assert len(list(cache.iterdir())) == 2
