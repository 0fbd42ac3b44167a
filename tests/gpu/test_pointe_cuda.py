"""Point-E on CUDA: replayed and compiled networks make the same clouds as eager ones, without host waits."""

from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import Tensor

from segdream_cli.accel.cuda_graphs import CompileNotices, GraphedCalls
from segdream_cli.config import MINI, PriorConfig
from segdream_cli.pointe.checkpoint import open_point_e
from segdream_cli.pointe.model import PointE
from segdream_cli.pointe.sampler import Denoiser, sample
from segdream_cli.pointe.transformer import BASE, UPSAMPLE, PointTransformer, PointTransformerConfig
from segdream_cli.priors import checkpoint as weights

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SIZE = {"width": 64, "layers": 3, "heads": 2}
LOW = replace(BASE, points=96, sampling=replace(BASE.sampling, steps=6), **SIZE)
HIGH = replace(UPSAMPLE, points=160, low_points=96, sampling=replace(UPSAMPLE.sampling, steps=4), **SIZE)


def stage(config: PointTransformerConfig, dtype: torch.dtype) -> PointTransformer:
    """A random network whose predictions are small, so that rounding hardly grows along a trajectory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PointTransformer(config)
        torch.nn.init.normal_(network.output_proj.weight, std=0.01)
    return network.eval().requires_grad_(False).compute_in(dtype).to(CUDA)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Disables the shape checks, which the compiler can't trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def text(width: int, seed: int) -> Tensor:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)


def clouds(point_e: PointE) -> list[Tensor]:
    """Points and colours of three prompts, the first repeated at the end: a replay must not change earlier results."""
    made = [point_e.sample(text(point_e.text_width, seed), torch.Generator().manual_seed(seed)) for seed in (1, 2, 1)]
    return [torch.cat([cloud.points, cloud.colors], dim=-1) for cloud in made]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_graphed_calls_match_eager_calls(dtype: torch.dtype) -> None:
    stages = stage(LOW, dtype), stage(HIGH, dtype)
    eager = clouds(PointE(*stages))
    graphed = clouds(PointE(*stages).speed_up(pytest.fail, graphs=True, compiling=False))
    assert torch.equal(graphed[0], graphed[2])
    for found, expected in zip(graphed, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 2e-3)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.filterwarnings("ignore")  # of what the compiler imports, and its advice to compute less exactly
def test_compiled_point_e_samples_the_same_cloud() -> None:
    said: list[str] = []
    stages = stage(LOW, torch.float32), stage(HIGH, torch.float32)
    (expected, *_), (found, *_) = (
        clouds(point_e)
        for point_e in (PointE(*stages), PointE(*stages).speed_up(said.append, graphs=True, compiling=True))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert [line.split()[0] for line in said] == ["compiling", "compiled"] * 2


def test_point_e_samples_the_same_cloud_on_the_cpu() -> None:
    stages = stage(LOW, torch.float32), stage(HIGH, torch.float32)
    found = clouds(PointE(*stages).speed_up(pytest.fail, graphs=True, compiling=False))
    expected = clouds(PointE(*(network.cpu() for network in stages)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@torch.no_grad()
def test_sample_never_waits_for_the_device() -> None:
    network = stage(LOW, torch.float16)
    evaluate = GraphedCalls(network, CompileNotices("it", pytest.fail, compiling=False))
    denoise = Denoiser(network, text(LOW.text_width, 1)[None].to(CUDA), evaluate=evaluate)
    noise = torch.randn(LOW.sampling.draws, LOW.points, 6, device=CUDA)
    expected = sample(denoise, noise, LOW.sampling)  # captures
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = sample(denoise, noise, LOW.sampling)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


def test_half_precision_attention_uses_fused_kernels() -> None:
    """The matrix of all pairs, 606 MB in the official upsampler, is never stored: the peak is far below it."""
    config = replace(UPSAMPLE, layers=1)
    network = stage(config, torch.float16)
    points, given = torch.zeros(1, 3072, 6, device=CUDA), torch.zeros(1, 1280, 512, device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network(points, torch.zeros(1, dtype=torch.long, device=CUDA), given)
    assert torch.cuda.max_memory_allocated() - before < 200e6


def test_graphed_point_e_of_the_embedded_prior_samples_the_same_cloud() -> None:
    checkpoint = weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=pytest.fail)
    assert checkpoint.profile.point_e is not None
    files = open_point_e(checkpoint.folder / checkpoint.profile.point_e / "model.safetensors", origin="here")
    eager = clouds(PointE.load(files, CUDA, torch.float16))
    fast = PointE.load(files, CUDA, torch.float16).speed_up(pytest.fail, graphs=True, compiling=False)
    for found, expected in zip(clouds(fast), eager, strict=True):
        assert (found - expected).abs().median() < 1e-3  # a few points may go another way
