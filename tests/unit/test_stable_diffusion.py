"""The diffusion prior against diffusers' own pipeline parts, closed forms and finite differences."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from checkpoints import build, edit_json, edit_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from fakes import AnalyticPrior
from safetensors.torch import load_file

from segdream_cli.config import PriorConfig
from segdream_cli.errors import WeightsUnavailable
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors import stable_diffusion as diffusion
from segdream_cli.priors.stable_diffusion import DiffusionPrior
from segdream_cli.util import compat


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("diffusion")
    return {
        "epsilon": build(root / "epsilon"),
        "v_prediction": build(root / "v", prediction_type="v_prediction"),
        "shipped": Path(weights.PRIORS[weights.choose("auto", cuda=False)]),
    }


@pytest.fixture(scope="module")
def priors(folders: dict[str, Path]) -> dict[str, DiffusionPrior]:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["epsilon"], tmp_path / "copy"))


def load(folder: Path, dtype: Any = "fp32", **how: Any) -> DiffusionPrior:
    checkpoint = weights.resolve(PriorConfig(model=str(folder)), cuda=False, offline=True, announce=pytest.fail)
    return DiffusionPrior.load(checkpoint, "cpu", PriorConfig(dtype=dtype, **how), warn=pytest.fail)


draw = functools.partial(fakes.draw, dtype=torch.float32)

ALL = pytest.mark.parametrize("name", ["epsilon", "v_prediction", "shipped"])


@ALL
def test_predict_noise_matches_unet_and_scheduler_of_diffusers(
    priors: dict[str, DiffusionPrior], folders: dict[str, Path], name: str
) -> None:
    """diffusers' DDIM step says which epsilon it took: in x_prev with x0 forced through its own formula."""
    prior, folder = priors[name], folders[name]
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32, low_cpu_mem_usage=False)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(10)
    t = int(scheduler.timesteps[3])
    latents, text = draw(2, *prior.latent_shape), prior.encode_text(["a red car", ""])
    with torch.no_grad():
        output = unet(latents, t, text).sample
        step = scheduler.step(output, t, latents, return_dict=True)
        epsilon = prior.predict_noise(latents, torch.tensor([t, t]), text)
    alpha_bar = scheduler.alphas_cumprod[t]
    x0 = (latents - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    torch.testing.assert_close(x0, step.pred_original_sample, atol=2e-4, rtol=2e-4)
    before = scheduler.alphas_cumprod[t - 100]
    torch.testing.assert_close(
        before.sqrt() * x0 + (1 - before).sqrt() * epsilon, step.prev_sample, atol=2e-4, rtol=2e-4
    )


@ALL
def test_predict_noise_treats_rows_independently(priors: dict[str, DiffusionPrior], name: str) -> None:
    prior = priors[name]
    latents, text = draw(3, *prior.latent_shape), prior.encode_text(["a red car", "", "a blue car"])
    timesteps = torch.tensor([20, 500, 980])
    together = prior.predict_noise(latents, timesteps, text)
    for i in range(3):
        alone = prior.predict_noise(latents[i : i + 1], timesteps[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert not together.requires_grad


def test_predict_noise_converts_v_to_epsilon(priors: dict[str, DiffusionPrior]) -> None:
    """Both tiny checkpoints hold the same U-Net, so its output is known from one and converted in the other."""
    latents, timesteps = draw(3, 4, 8, 8), torch.tensor([20, 500, 980])
    text = priors["epsilon"].encode_text(["a", "b", "c"])
    v = priors["epsilon"].predict_noise(latents, timesteps, text)
    epsilon = priors["v_prediction"].predict_noise(latents, timesteps, text)
    alpha = priors["epsilon"].alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alpha**2).sqrt()
    torch.testing.assert_close(epsilon.double(), alpha * v + sigma * latents, atol=1e-5, rtol=1e-5)
    x0 = (latents - sigma * epsilon) / alpha
    torch.testing.assert_close(v.double(), alpha * epsilon - sigma * x0, atol=1e-4, rtol=1e-4)


def test_alphas_cumprod_is_the_scaled_linear_schedule(priors: dict[str, DiffusionPrior]) -> None:
    alphas = priors["epsilon"].alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert alphas.dtype == torch.float64
    torch.testing.assert_close(alphas, (1 - betas).cumprod(0), atol=1e-7, rtol=2e-5)


@pytest.mark.slow
@ALL
def test_predict_noise_gradient_matches_finite_differences(priors: dict[str, DiffusionPrior], name: str) -> None:
    prior = priors[name]
    latents, text = draw(1, *prior.latent_shape).requires_grad_(), prior.encode_text(["a red car"])
    timesteps = torch.tensor([300])
    weight, direction = draw(1, *prior.latent_shape, seed=1), draw(1, *prior.latent_shape, seed=2)
    (prior.predict_noise(latents, timesteps, text) * weight).sum().backward()
    assert latents.grad is not None
    step = 0.01
    up, down = (
        (prior.predict_noise(latents.detach() + sign * step * direction, timesteps, text) * weight).double().sum()
        for sign in (1, -1)
    )
    torch.testing.assert_close(
        (latents.grad * direction).double().sum(), (up - down) / (2 * step), atol=2e-2, rtol=5e-3
    )
    assert all(parameter.grad is None for parameter in prior.unet.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["epsilon", "shipped"])
def test_encode_image_and_decode_match_the_autoencoder(
    priors: dict[str, DiffusionPrior], folders: dict[str, Path], name: str
) -> None:
    prior = priors[name]
    vae = AutoencoderKL.from_pretrained(folders[name] / "vae", dtype=torch.float32, low_cpu_mem_usage=False)
    factor = json.loads((folders[name] / "vae" / "config.json").read_text(encoding="utf-8"))["scaling_factor"]
    rgb = torch.rand(2, 3, prior.image_size, prior.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = vae.encode(rgb * 2 - 1).latent_dist
        latents = prior.encode_image(rgb)
        rebuilt = vae.decode(latents / factor).sample / 2 + 0.5
    assert latents.shape == (2, *prior.latent_shape)
    torch.testing.assert_close(latents, posterior.mean * factor, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prior.decode(latents), rebuilt, atol=1e-4, rtol=1e-4)
    noise = draw(*latents.shape, seed=5)
    drawn = prior.encode_image(rgb, noise)
    torch.testing.assert_close(drawn, (posterior.mean + posterior.std * noise) * factor, atol=1e-4, rtol=1e-4)


def test_analytic_prior_encodes_what_it_decodes() -> None:
    """Its further channels are the mean of the first three, so latents with that property return unchanged."""
    prior = AnalyticPrior(latent_shape=(4, 8, 8), image_size=32)
    colors = draw(2, 3, 8, 8)
    latents = torch.cat([colors, colors.mean(1, keepdim=True)], 1)
    torch.testing.assert_close(prior.encode_image(prior.decode(latents), None), latents)


def test_decode_restores_an_encoded_image(priors: dict[str, DiffusionPrior]) -> None:
    prior = priors["shipped"]
    ramp = torch.linspace(0, 1, 64)
    rgb = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.3)])[None]
    assert (prior.decode(prior.encode_image(rgb)) - rgb).abs().mean() < 0.05


def test_predict_noise_of_the_shipped_prior_finds_the_noise(priors: dict[str, DiffusionPrior]) -> None:
    """A trained model's error lies far below 1, the error of predicting nothing."""
    prior = priors["shipped"]
    latents, noise = (
        prior.encode_image(torch.full((4, 3, prior.image_size, prior.image_size), 0.5)),
        draw(4, *prior.latent_shape),
    )
    alpha_bar = float(prior.alphas_cumprod[400])
    noisy = alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise
    epsilon = prior.predict_noise(noisy, torch.full((4,), 400), prior.encode_text([""] * 4))
    assert (epsilon - noise).square().mean() < 0.3


def test_encode_image_subtracts_the_shift_factor(copy: Path, priors: dict[str, DiffusionPrior]) -> None:
    edit_json(copy / "vae" / "config.json", shift_factor=0.25)
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, shifted = priors["epsilon"].encode_image(rgb), load(copy).encode_image(rgb)
    torch.testing.assert_close(plain - shifted, torch.full_like(plain, 0.25 * 0.18215), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(load(copy).decode(shifted), priors["epsilon"].decode(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampled", [False, True])
def test_encode_image_gradient_matches_finite_differences(copy: Path, sampled: bool) -> None:
    prior = load(copy)
    prior.vae.double()
    prior.dtype = torch.float64
    rgb = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    rgb.requires_grad_()
    weight, direction = draw(1, 4, 4, 4, seed=1), draw(1, 3, 32, 32, seed=2).double()

    noise = draw(1, 4, 4, 4, seed=3) if sampled else None

    def value(image: torch.Tensor) -> torch.Tensor:
        latents = prior.encode_image(image, noise)
        assert latents.dtype == torch.float32
        return (latents * weight).double().sum()

    value(rgb).backward()
    assert rgb.grad is not None
    step = 1e-3
    numeric = (value(rgb.detach() + step * direction) - value(rgb.detach() - step * direction)) / (2 * step)
    torch.testing.assert_close((rgb.grad * direction).sum(), numeric, atol=1e-4, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.08), ("fp16", 0.02)])
def test_half_precision_agrees_with_single(
    folders: dict[str, Path], priors: dict[str, DiffusionPrior], dtype: str, tolerance: float
) -> None:
    half, single = load(folders["shipped"], dtype), priors["shipped"]
    latents, timesteps = draw(2, *single.latent_shape), torch.tensor([100, 800])
    expected = single.predict_noise(latents, timesteps, single.encode_text(["a red car", ""]))
    got = half.predict_noise(latents, timesteps, half.encode_text(["a red car", ""]))
    assert got.dtype == torch.float32
    assert (got - expected).square().mean().sqrt() < tolerance
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert half.encode_image(rgb).dtype == torch.float32
    assert (half.encode_image(rgb) - single.encode_image(rgb)).square().mean().sqrt() < tolerance


def test_load_reads_half_precision_files(tmp_path: Path, priors: dict[str, DiffusionPrior]) -> None:
    half = load(build(tmp_path / "half", variant="fp16"))
    latents, timesteps, texts = draw(1, 4, 8, 8), torch.tensor([500]), ["a red car"]
    expected = priors["epsilon"].predict_noise(latents, timesteps, priors["epsilon"].encode_text(texts))
    got = half.predict_noise(latents, timesteps, half.encode_text(texts))
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)


def test_load_accepts_any_number_of_latent_channels(tmp_path: Path) -> None:
    prior = load(build(tmp_path / "wide", latent_channels=8))
    latents = prior.encode_image(torch.rand(1, 3, 128, 128))
    assert latents.shape == (1, 8, 16, 16)
    assert prior.latent_shape == (8, 8, 8)
    assert prior.predict_noise(latents, torch.tensor([9]), prior.encode_text(["a"])).shape == latents.shape


@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_load_freezes_the_networks(priors: dict[str, DiffusionPrior], part: str) -> None:
    network = getattr(priors["shipped"], part)
    network = getattr(network, "network", network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_load_takes_every_tensor_from_the_file(priors: dict[str, DiffusionPrior], folders: dict[str, Path]) -> None:
    for part in ("unet", "vae"):
        loaded = getattr(priors["shipped"], part).state_dict()
        stored = load_file(folders["shipped"] / part / "diffusion_pytorch_model.safetensors")
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[key], stored[key].float()) for key in stored)


@pytest.mark.parametrize(
    ("part", "key"),
    [("unet", "conv_in.weight"), ("vae", "encoder.mid_block.attentions.0.query.weight"), ("vae", "quant_conv.bias")],
)
def test_load_refuses_a_missing_weight(copy: Path, part: str, key: str) -> None:
    edit_weights(copy / part / "diffusion_pytorch_model.safetensors", drop=key)
    with pytest.raises(WeightsUnavailable, match=f"{part} of .* lacks 1 weights"):
        load(copy)


def test_load_refuses_a_weight_of_another_shape(copy: Path) -> None:
    edit_weights(copy / "unet" / "diffusion_pytorch_model.safetensors", **{"conv_in.bias": torch.ones(3)})
    with pytest.raises(WeightsUnavailable, match="unet"):
        load(copy)


@pytest.mark.slow
def test_low_vram_gives_equal_results_and_stores_less(
    folders: dict[str, Path], priors: dict[str, DiffusionPrior]
) -> None:
    small = load(folders["epsilon"], low_vram=True)
    noise, weight = (draw(3, *small.latent_shape, seed=seed) for seed in (1, 2))
    found = []
    for prior in (small, priors["epsilon"]):
        kept = []
        rgb = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        keep, give = lambda tensor, kept=kept: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, give):
            latents = prior.encode_image(rgb, noise)
        (latents * weight).sum().backward()
        timesteps, text = torch.tensor([20, 500, 980]), prior.encode_text(["a", "b", "c"])
        eps = prior.predict_noise(noise, timesteps, text)
        found.append((latents.detach(), rgb.grad, eps, prior.decode(noise), sum(kept)))
    for got, expected in zip(found[0][:4], found[1][:4], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert found[0][4] < found[1][4] / 10


def test_low_vram_decodes_one_image_at_a_time(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = DiffusionPrior._decoder_output
    monkeypatch.setattr(
        DiffusionPrior, "_decoder_output", lambda self, latents: sizes.append(len(latents)) or real(self, latents)
    )
    prior = load(folders["epsilon"], low_vram=True)
    prior.decode(draw(3, *prior.latent_shape))
    assert sizes == [1, 1, 1]


def test_compiles_depends_on_setting_size_steps_and_triton(
    priors: dict[str, DiffusionPrior], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting decides, and "auto" by size, length of the run, and whether there is a compiler."""
    unet = priors["epsilon"].unet
    monkeypatch.setattr(compat, "has_triton", lambda: True)
    assert diffusion.compiles(PriorConfig(compile="on"), unet, 1)
    assert not diffusion.compiles(PriorConfig(), unet, 5000)
    monkeypatch.setattr(diffusion, "COMPILED_PARAMETERS", 1000)
    assert diffusion.compiles(PriorConfig(), unet, 5000)
    assert not diffusion.compiles(PriorConfig(), unet, 999)
    assert not diffusion.compiles(PriorConfig(compile="off"), unet, 5000)
    monkeypatch.setattr(compat, "has_triton", lambda: False)
    assert not diffusion.compiles(PriorConfig(), unet, 5000)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("decodes", [0.0, 2.0])
def test_diffusion_prior_builds_chains_by_its_settings(
    folders: dict[str, Path], recompute: bool, compile: str, decodes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, bool, bool]] = []

    def build(network: str, *_: Any, recompute: bool, allow_fallback: bool, **__: Any) -> diffusion.FallbackChain:
        built.append((network, recompute, allow_fallback))
        return object.__new__(diffusion.FallbackChain)

    monkeypatch.setattr(diffusion.FallbackChain, "build", build)
    prior = load(folders["shipped"])
    config = PriorConfig(recomputed_values=recompute, compile=compile)
    prior._speed_up(config, pytest.fail, 2, decodes, compiling=compile == "on")
    networks = ["the autoencoder", "the U-Net"] + ["the decoder"] * (compile == "on" and decodes > 0)
    assert built == [(network, recompute, compile == "off") for network in networks]
    assert len(prior.chains) == len(networks)


@pytest.mark.gpu
def test_predict_noise_with_graphs_equals_eager_for_interleaved_shapes(folders: dict[str, Path]) -> None:
    checkpoint = weights.resolve(
        PriorConfig(model=str(folders["shipped"])), cuda=True, offline=True, announce=pytest.fail
    )
    graphed, eager = (
        DiffusionPrior.load(checkpoint, "cuda", PriorConfig(cuda_graphs=graphs), warn=pytest.fail)
        for graphs in (True, False)
    )
    kept = []
    for seed, batch in enumerate((2, 4, 2, 4, 2)):
        latents = draw(batch, *graphed.latent_shape, seed=seed).cuda()
        timesteps = torch.randint(0, 1000, (batch,), generator=torch.Generator().manual_seed(seed)).cuda()
        text = graphed.encode_text(["a red car"] * batch)
        kept.append((graphed.predict_noise(latents, timesteps, text), eager.predict_noise(latents, timesteps, text)))
    for got, expected in kept:  # compared last, so that a replay that wrote over an earlier result would show
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
    latents = draw(1, *graphed.latent_shape).cuda().requires_grad_()
    graphed.predict_noise(latents, timesteps[:1], text[:1]).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


@pytest.mark.gpu
def test_encode_image_with_graphs_equals_eager(folders: dict[str, Path]) -> None:
    checkpoint = weights.resolve(
        PriorConfig(model=str(folders["shipped"])), cuda=True, offline=True, announce=pytest.fail
    )
    graphed, eager = (
        DiffusionPrior.load(checkpoint, "cuda", PriorConfig(dtype="fp32", cuda_graphs=graphs), warn=pytest.fail)
        for graphs in (True, False)
    )
    for seed, batch in enumerate((2, 4, 2)):
        noise, weight = (draw(batch, *graphed.latent_shape, seed=seed + k).cuda() for k in (10, 20))
        found = []
        for prior in (graphed, eager):
            rgb = (draw(batch, 3, prior.image_size, prior.image_size, seed=seed) * 0.1 + 0.5).cuda().requires_grad_()
            latents = prior.encode_image(rgb, noise)
            (latents * weight).sum().backward()
            assert rgb.grad is not None
            found.append((latents.detach().clone(), rgb.grad.clone()))
        for got, expected in zip(*found, strict=True):
            assert (got - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.gpu
def test_compiled_decoder_equals_eager_for_any_number_of_rows(folders: dict[str, Path]) -> None:
    checkpoint = weights.resolve(
        PriorConfig(model=str(folders["shipped"])), cuda=True, offline=True, announce=pytest.fail
    )
    told: list[str] = []
    compiled, eager = (
        DiffusionPrior.load(
            checkpoint, "cuda", PriorConfig(dtype="fp32", compile=how), warn=told.append, batch=2, decodes=decodes
        )
        for how, decodes in (("on", 2.0), ("off", 0.0))
    )
    for seed, rows in enumerate((2, 1, 5)):
        latents = draw(rows, *eager.latent_shape, seed=seed).cuda()
        got, expected = compiled.decode(latents), eager.decode(latents)
        assert got.shape == expected.shape
        assert (got - expected).norm() < 2e-3 * expected.norm()
    assert [line for line in told if "the decoder for" in line] == [
        "compiling the decoder for 2 rows; the first time on a machine takes minutes"
    ]


def test_load_prints_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load(folders["shipped"])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
