"""Fast layers against the layers that they replace, in an encoder of Stable Diffusion and in odd shapes."""

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from fakes import draw
from torch import Tensor, nn

from segdream_cli.accel.fast_layers import (
    ChannelNorm,
    FrozenConvolution,
    drop_separate_projections,
    replace_convolutions,
    replace_norms,
)

pytestmark = pytest.mark.slow

EXACT, SINGLE = 1e-11, 2e-5


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    """Stable Diffusion's own shape with fewer channels, and weights moved away from their start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=2,
            norm_num_groups=8,
            sample_size=64,
        )
        for parameter in vae.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return vae.eval().requires_grad_(False)


REWRITES: dict[str, Callable[[AutoencoderKL], None]] = {
    "attention": lambda vae: vae.set_attn_processor(AttnProcessor()),
    "convolutions": lambda vae: replace_convolutions(vae.encoder),
    "norms": lambda vae: replace_norms(vae.encoder),
}


@pytest.fixture(params=[False, True], ids=["eager", "as compiled"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and convolutions in both of their forms; the compiler itself is tested below."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param)


def encoded(vae: nn.Module, images: Tensor, function: Callable[..., Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, and the gradient of the images under random weights."""
    images = images.clone().requires_grad_()
    moments = (function or (lambda x: vae.encode(x).latent_dist.parameters))(images)
    (moments * draw(*moments.shape, seed=1).to(moments)).sum().backward()
    assert images.grad is not None
    return moments.detach(), images.grad


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("names", [["attention"], ["convolutions"], ["norms"], list(REWRITES)], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("form")
def test_replacements_give_the_encoder_and_gradient_of_diffusers(
    autoencoder: AutoencoderKL, names: list[str], dtype: torch.dtype, channels_last: bool
) -> None:
    plain = copy.deepcopy(autoencoder).double()
    other = copy.deepcopy(autoencoder).to(dtype)
    for name in names:
        REWRITES[name](other)
    if channels_last:
        other.to(memory_format=torch.channels_last)
    images = draw(2, 3, 32, 48).clamp(-1, 1)
    for found, expected in zip(encoded(other, images.to(dtype)), encoded(plain, images), strict=True):
        # diffusers takes the softmax of this attention in single precision whatever the rest is in
        exact = dtype == torch.float64 and "attention" not in names
        assert relative(found.double(), expected) < (EXACT if exact else SINGLE)


def test_replacements_keep_the_parameters(autoencoder: AutoencoderKL) -> None:
    vae = copy.deepcopy(autoencoder)
    before = vae.state_dict()
    for rewrite in REWRITES.values():
        rewrite(vae)
    after = vae.state_dict()
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] or torch.equal(after[key], before[key]) for key in before)
    kinds = [type(layer) for layer in vae.encoder.modules()]
    strided = [layer for layer in vae.encoder.modules() if type(layer) is nn.Conv2d]
    assert {layer.stride for layer in strided} == {(2, 2)}
    assert kinds.count(FrozenConvolution) == 2 + 2 * 10 + 1  # in and out, two a residual block, one shortcut
    assert nn.GroupNorm not in kinds
    assert nn.Conv2d in map(type, vae.decoder.modules())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own doing
def test_replacements_compile_without_graph_breaks(autoencoder: AutoencoderKL) -> None:
    """A break would leave parts of it uncompiled, and could not be captured with the rest."""
    vae = copy.deepcopy(autoencoder).double()
    for rewrite in REWRITES.values():
        rewrite(vae)
    whole = torch.compile(
        lambda images: vae.encode(images).latent_dist.parameters, backend="aot_eager", fullgraph=True, dynamic=False
    )
    images = draw(1, 3, 32, 32)
    for found, expected in zip(encoded(vae, images, whole), encoded(vae, images), strict=True):
        assert relative(found, expected) < 1e-6
    torch.compiler.reset()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (3, 0), ((5, 3), (1, 2)), (4, 2)])
@pytest.mark.usefixtures("form")
def test_frozen_convolution_matches_conv2d(kernel: int, padding: int, bias: bool) -> None:
    layer = nn.Conv2d(3, 5, kernel, padding=padding, bias=bias).double().requires_grad_(False)
    x, other = (draw(2, 3, 9, 11).requires_grad_() for _ in range(2))
    found, expected = FrozenConvolution(layer)(x), layer(other)
    torch.testing.assert_close(found, expected)
    weights = draw(*found.shape, seed=3)
    (found.square() * weights).sum().backward()
    (expected.square() * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_frozen_convolution_saves_only_its_weights() -> None:
    kept = []
    layer = FrozenConvolution(nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.ones(1, 3, 8, 8, requires_grad=True))
    assert [tensor.shape for tensor in kept] == [(5, 3, 3, 3)]


@pytest.mark.parametrize(
    "change", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}, {"padding": 3}]
)
def test_replace_convolutions_skips_other_convolutions(change: dict[str, object]) -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, **{"padding": 1, **change}))
    replace_convolutions(layer)
    assert type(layer[0]) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drop_separate_projections_keeps_the_prediction(dtype: torch.dtype) -> None:
    """Self-attention and cross-attention of a U-Net in Stable Diffusion's layout."""
    torch.manual_seed(0)
    plain = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=12, attention_head_dim=(1, 2),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        use_linear_projection=True, norm_num_groups=4,
    ).double().requires_grad_(False)  # fmt: skip
    fused = copy.deepcopy(plain).to(dtype)
    fused.fuse_qkv_projections()
    drop_separate_projections(fused)
    assert sum(map(torch.numel, fused.parameters())) == sum(map(torch.numel, plain.parameters()))
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    inputs = draw(2, 4, 8, 8), torch.tensor([7, 900]), draw(2, 5, 12, seed=1)
    found = fused(inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)).sample
    assert relative(found.double(), plain(*inputs).sample) < (EXACT if dtype == torch.float64 else SINGLE)


@pytest.mark.parametrize("shape", [(2, 12, 7), (2, 12, 5, 7), (1, 12, 1, 1)])
def test_channel_norm_matches_group_norm(shape: tuple[int, ...]) -> None:
    layer = nn.GroupNorm(4, 12, eps=1e-5).double()
    layer.weight.data, layer.bias.data = draw(12, seed=1), draw(12, seed=2)
    layer.requires_grad_(False)
    x, other = ((100 + draw(*shape)).requires_grad_() for _ in range(2))
    found, expected = ChannelNorm(layer).by_channel(x), layer(other)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for output in (found, expected):
        (output * draw(*shape, seed=3)).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-9, rtol=1e-9)


def test_channel_norm_in_half_precision_has_single_statistics() -> None:
    layer = nn.GroupNorm(2, 4).half()
    x = (200 + draw(1, 4, 64, 64)).half()  # the squares alone would be beyond half precision
    expected = nn.GroupNorm(2, 4)(x.float())
    found = ChannelNorm(layer).by_channel(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)
