"""Point-E: official shapes, results against float64 numpy, clouds in the inner frame, and the text vector."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jaxtyping
import numpy as np
import pointe_reference as reference
import pytest
import torch
from checkpoints import build, edit_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from segdream_cli.accel.cuda_graphs import CompileNotices
from segdream_cli.config import PriorConfig
from segdream_cli.errors import WeightsUnavailable
from segdream_cli.pointe import model
from segdream_cli.pointe.checkpoint import open_point_e
from segdream_cli.pointe.model import PointE, to_inner_frame
from segdream_cli.pointe.sampler import Denoiser, sample
from segdream_cli.pointe.schedule import Sampling, alphas_cumprod, noise_levels, timestep
from segdream_cli.pointe.transformer import (
    BASE,
    UPSAMPLE,
    PointTransformer,
    PointTransformerConfig,
    embed_time,
    infer_config,
)
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.text import TextEncoder, TextVector
from training.train_points import text_vectors

CPU = torch.device("cpu")
SMALL = {"width": 16, "layers": 2, "heads": 2, "text_width": 8}
LOW = PointTransformerConfig(points=5, sampling=Sampling(steps=4), **SMALL)
HIGH = PointTransformerConfig(
    points=7,
    condition="points",
    low_points=5,
    grid_tokens=3,
    grid_width=6,
    schedule="linear",
    sampling=replace(UPSAMPLE.sampling, steps=3),
    **SMALL,
)


def network(config: PointTransformerConfig, seed: int = 0) -> PointTransformer:
    """Random weights, also where training starts from zero, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = PointTransformer(config)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made.double().eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictor(made: PointTransformer) -> reference.Predict:
    arrays = {key: tensor.numpy() for key, tensor in made.state_dict().items()}
    config = made.config
    grid = (config.grid_tokens, config.grid_width)
    return lambda points, t, given: reference.network(arrays, config.heads, grid, points, t, given)


def near(ours: Tensor, expected: np.ndarray, atol: float) -> None:
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), atol=atol, rtol=0)


@pytest.mark.parametrize(("config", "values", "tensors"), [(BASE, 40_333_836, 158), (UPSAMPLE, 40_470_552, 164)])
def test_point_transformer_has_the_official_shapes(config: PointTransformerConfig, values: int, tensors: int) -> None:
    with torch.device("meta"):
        state = PointTransformer(config).state_dict()
    assert (sum(tensor.numel() for tensor in state.values()), len(state)) == (values, tensors)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    expected = {
        "time_embed.c_fc.weight": (2048, 512),
        "time_embed.c_proj.weight": (512, 2048),
        "ln_pre.weight": (512,),
        "backbone.resblocks.11.attn.c_qkv.weight": (1536, 512),
        "backbone.resblocks.0.attn.c_proj.bias": (512,),
        "backbone.resblocks.5.ln_1.weight": (512,),
        "backbone.resblocks.5.ln_2.bias": (512,),
        "backbone.resblocks.5.mlp.c_fc.weight": (2048, 512),
        "backbone.resblocks.5.mlp.c_proj.weight": (512, 2048),
        "ln_post.bias": (512,),
        "input_proj.weight": (512, 6),
        "output_proj.weight": (12, 512),
    }
    expected |= (
        {"clip_embed.weight": (512, 768)}
        if config is BASE
        else {
            "clip_embed.0.weight": (1024,),
            "clip_embed.1.weight": (512, 1024),
            "cond_point_proj.weight": (512, 6),
            "channel_scales": (6,),
            "channel_biases": (6,),
        }
    )
    assert expected.items() <= shapes.items()
    assert infer_config(state) == config


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_alphas_cumprod_of_both_schedules(kind: Any) -> None:
    alphas, expected = alphas_cumprod(kind), reference.alphas_cumprod(kind)
    np.testing.assert_allclose(alphas.numpy(), expected, rtol=1e-9)
    sigmas = (1 / expected - 1) ** 0.5
    low, high = {"linear": (0.0099, 157.3), "cosine": (0.0063, 20778)}[kind]
    assert sigmas[0] == pytest.approx(low, rel=0.01)
    assert sigmas[-1] == pytest.approx(high, rel=1e-3)
    for sigma in [1e-3, 0.5, *np.geomspace(sigmas[0], sigmas[-1] * 2, 200)]:
        assert timestep(float(sigma), alphas) == reference.timestep(float(sigma), expected)
    assert timestep(1e-3, alphas) == 0
    assert timestep(1e6, alphas) == 1023


@pytest.mark.parametrize("config", [BASE, UPSAMPLE], ids=["base", "upsample"])
def test_noise_levels_match_the_reference(config: PointTransformerConfig) -> None:
    levels = noise_levels(config.sampling)
    expected = reference.noise_levels(64, 1e-3, 120 if config is BASE else 160, 7)
    np.testing.assert_allclose(levels.numpy(), expected, rtol=1e-12)
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("t", [0, 1, 700, 1023])
def test_embed_time(t: int) -> None:
    embedded = embed_time(torch.tensor([t]), 512, torch.float64)
    near(embedded[0], reference.time_embedding(t, 512), 1e-10)


@pytest.mark.parametrize("config", [LOW, HIGH], ids=["base", "upsample"])
def test_point_transformer_matches_the_reference(config: PointTransformerConfig) -> None:
    made = network(config)
    noisy, given = normal(2, config.points, 6), normal(2, 8) if config is LOW else 100 * normal(2, 5, 6)
    outputs = made(noisy, torch.tensor([900, 4]), made.embed(given))
    for k, t in enumerate((900, 4)):
        near(outputs[k], predictor(made)(noisy[k].numpy(), t, given[k].numpy()), 1e-10)


def test_point_transformer_is_equivariant_to_permutations() -> None:
    made = network(LOW)
    noisy, condition, order = normal(1, 5, 6), made.embed(normal(1, 8)), torch.tensor([3, 0, 4, 1, 2])
    timesteps = torch.tensor([300])
    shuffled = made(noisy[:, order], timesteps, condition)
    torch.testing.assert_close(shuffled, made(noisy, timesteps, condition)[:, order])


def test_point_transformer_never_waits_for_values() -> None:
    """On the meta device there are no values, so code that reads one, and so can't be captured, raises."""
    with torch.device("meta"):
        made = PointTransformer(HIGH)
        outputs = made(torch.empty(2, 7, 6), torch.empty(2, dtype=torch.long), made.embed(torch.empty(2, 5, 6)))
    assert outputs.shape == (2, 7, 12)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Disables the shape checks, which the compiler can't trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself imports
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
@pytest.mark.parametrize("config", [LOW, HIGH], ids=["base", "upsample"])
def test_point_transformer_compiles_without_graph_breaks(config: PointTransformerConfig) -> None:
    made = network(config)
    condition = made.embed(normal(2, 8) if config is LOW else 100 * normal(2, 5, 6))
    inputs = normal(2, config.points, 6), torch.tensor([900, 4]), condition
    whole = torch.compile(made, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(whole(*inputs), made(*inputs), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compute_in_changes_only_the_blocks_products(dtype: torch.dtype) -> None:
    exact = network(LOW).float()
    half = network(LOW).float().compute_in(dtype)
    for key, tensor in half.state_dict().items():
        inside = "resblocks" in key and ".ln_" not in key
        assert tensor.dtype == (dtype if inside else torch.float32), key
    noisy, t, given = normal(1, 5, 6).float(), torch.tensor([5]), normal(1, 8).float()
    expected, outputs = exact(noisy, t, exact.embed(given)), half(noisy, t, half.embed(given))
    assert outputs.dtype == torch.float32
    assert 0 < (outputs - expected).std() < 0.03 * expected.std()


def test_point_transformer_first_predicts_zero() -> None:
    made = PointTransformer(LOW)
    assert not made(torch.ones(1, 5, 6), torch.tensor([5]), made.embed(torch.ones(1, 8))).any()
    assert made.backbone.resblocks[0].mlp.c_fc.weight.std().item() == pytest.approx(0.25 / math.sqrt(16), rel=0.1)


@pytest.mark.parametrize("churn", [0.0, 3.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_sample_with_churn_and_guidance_matches_the_reference(churn: float, guidance_scale: float) -> None:
    sampling = Sampling(steps=7, churn=churn, guidance_scale=guidance_scale)
    made = network(replace(LOW, sampling=sampling))
    noise, given = normal(sampling.draws, 5, 6), normal(8)
    assert sampling.draws == (8 if churn else 1)
    expected = reference.trajectory(
        predictor(made),
        "cosine",
        given.numpy(),
        noise[0].numpy(),
        [fresh.numpy() for fresh in noise[1:]],
        steps=7,
        sigma_min=1e-3,
        sigma_max=120,
        churn=churn,
        guidance_scale=None if guidance_scale == 1 else guidance_scale,
    )
    near(sample(Denoiser(made, given[None]), noise, sampling), expected, 1e-8)


def test_point_e_sample_of_two_stages_matches_the_reference() -> None:
    low, high = network(LOW), network(HIGH, seed=1)
    text = torch.nn.functional.normalize(normal(8), dim=0)
    cloud = PointE(low, high).sample(text.float(), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    start, *fresh = torch.randn(5, 5, 6, generator=generator).double().numpy()
    given = text.float().double().numpy()
    common = {"sigma_min": 1e-3, "churn": 3.0, "guidance_scale": 3.0}
    first = reference.world(
        reference.trajectory(predictor(low), "cosine", given, start, fresh, steps=4, sigma_max=120, **common)
    )
    (start,) = torch.randn(1, 7, 6, generator=generator).double().numpy()
    common |= {"churn": 0.0, "guidance_scale": None}
    second = reference.world(
        reference.trajectory(predictor(high), "linear", first, start, [], steps=3, sigma_max=160, **common)
    )
    world = np.concatenate([first, second])
    assert cloud.points.dtype == cloud.colors.dtype == torch.float32
    near(cloud.points, world[:, [0, 2, 1]] * [1, 1, -1], 1e-6)
    near(cloud.colors, np.clip(world[:, 3:] / 255, 0, 1), 1e-6)


def counting(made: PointTransformer, batches: list[int]) -> PointTransformer:
    made.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    return made


def test_point_e_counts_evaluations_and_progress() -> None:
    low_batches: list[int] = []
    high_batches: list[int] = []
    pointe = PointE(counting(network(LOW), low_batches), counting(network(HIGH), high_batches))
    told: list[tuple[int, int]] = []
    pointe.sample(normal(8), torch.Generator(), progress=lambda done, total: told.append((done, total)))
    assert pointe.evaluations == (7, 5)
    assert low_batches == [2] * 7  # both halves of the guidance in one call
    assert high_batches == [1] * 5
    assert told == [(k + 1, 12) for k in range(12)]
    for stage in (0, 1):
        pointe.evaluate(stage)
    assert (low_batches[7:], high_batches[5:]) == ([2], [1])
    assert (PointE(network(BASE_OF_ONE)).evaluations, pointe.count, pointe.text_width) == ((127,), 12, 8)


class Captures:
    """Stands in for `GraphedCalls` without CUDA: records the rows of its calls, or fails to capture."""

    works = True
    rows: ClassVar[list[int]] = []

    def __init__(self, function: Callable[..., Tensor], notices: CompileNotices) -> None:
        self.function, self.notices = function, notices

    def __call__(self, *inputs: Tensor) -> Tensor:
        with self.notices.first_call(len(inputs[0])):
            if not self.works:
                raise RuntimeError("no graphs here")
        self.rows.append(len(inputs[0]))
        return self.function(*inputs)


@pytest.mark.parametrize("works", [True, False])
def test_point_e_speed_up_gives_the_same_cloud_and_announces_fallbacks(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captures, "works", works)
    monkeypatch.setattr(Captures, "rows", [])
    monkeypatch.setattr(model, "GraphedCalls", Captures)
    said: list[str] = []
    plain = PointE(network(LOW).float(), network(HIGH, seed=1).float())
    fast = PointE(*plain.stages).speed_up(said.append, graphs=True, compiling=False)
    text = torch.nn.functional.normalize(normal(8), dim=0).float()
    expected, found = (made.sample(text, torch.Generator().manual_seed(0)) for made in (plain, fast))
    assert torch.equal(found.points, expected.points)
    assert torch.equal(found.colors, expected.colors)
    fast.evaluate(1)
    assert Captures.rows == ([2] * 7 + [1] * 6 if works else [])
    failed = "can't be captured as a CUDA graph: no graphs here; falling back to eager execution, which is slower"
    stages = () if works else ("base", "upsampling")
    assert said == [f"Point-E's {stage} stage {failed}" for stage in stages]
    assert [chain.failed for chain in fast.chains] == [[] if works else ["CUDA graphs without compilation"]] * 2


BASE_OF_ONE = replace(LOW, sampling=BASE.sampling)


def test_point_e_sample_depends_on_the_seed() -> None:
    pointe = PointE(network(LOW).float())

    def cloud(seed: int) -> Tensor:
        return pointe.sample(normal(8).float(), torch.Generator().manual_seed(seed)).points

    assert torch.equal(cloud(1), cloud(1))
    assert (cloud(1) - cloud(2)).abs().max() > 0.01


class Knowing(PointTransformer):
    """Predicts the noise that is in the way of one certain cloud."""

    def __init__(self, config: PointTransformerConfig, cloud: Tensor) -> None:
        super().__init__(config)
        self.cloud = cloud

    def forward(self, points: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        alpha = alphas_cumprod(self.config.schedule)[timesteps][:, None, None]
        noise = (points - alpha.sqrt() * self.cloud) / (1 - alpha).sqrt()
        return torch.cat([noise, torch.zeros_like(noise)], dim=-1).float()


def test_to_inner_frame_rotates_without_mirroring() -> None:
    """A right hand in Point-E's frame: up the thumb, ahead (-y) the fingers, red to blue along the knuckles."""
    origin, knuckles, fingers, thumb = [0, 0, 0], [0.3, 0, 0], [0, -0.6, 0], [0, 0, 0.9]
    xyz = torch.tensor([origin, knuckles, fingers, thumb, [0.1, 0.1, 0.1]], dtype=torch.float32)
    rgb = torch.tensor([[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]], dtype=torch.float32)
    made = Knowing(LOW, torch.cat([xyz, rgb], dim=-1))
    cloud = PointE(made).sample(torch.ones(8), torch.Generator().manual_seed(0))
    expected = torch.tensor([[0, 0, 0], [0.15, 0, 0], [0, 0, 0.3], [0, 0.45, 0]])
    torch.testing.assert_close(cloud.points[:4], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cloud.colors, (rgb + 1) / 2, atol=1e-5, rtol=0)
    before, after = (torch.linalg.det(points[1:4]).item() for points in (xyz, cloud.points))
    assert after == pytest.approx(before / 8, rel=1e-4)  # half the size, the same hand
    turn = to_inner_frame(torch.eye(3))
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3))
    assert torch.linalg.det(turn) == 1


def state_of(config: PointTransformerConfig) -> dict[str, Tensor]:
    return dict(network(config).float().state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("ln_post.bias"), "lacks ln_post.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "also holds extra"),
        (lambda state: state.update({"ln_post.bias": torch.ones(3)}), r"ln_post.bias is \[3\], not \[16\]"),
    ],
)
def test_from_state_refuses_other_weights(change: Callable[[dict[str, Tensor]], Any], said: str) -> None:
    state = state_of(LOW)
    PointTransformer.from_state(LOW, state)
    change(state)
    with pytest.raises(WeightsUnavailable, match=said):
        PointTransformer.from_state(LOW, state)


def official(config: PointTransformerConfig = BASE) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(PointTransformer(config).state_dict())


def of_images() -> dict[str, Tensor]:
    state = official()
    del state["clip_embed.weight"], state["clip_embed.bias"]
    grid = {"0.weight": (1024,), "0.bias": (1024,), "1.weight": (2048, 1024), "1.bias": (2048,)}
    return state | {f"clip_embed.{key}": torch.empty(*shape, device="meta") for key, shape in grid.items()}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (of_images, "conditioned on an image .*width 2048"),
        (lambda: {k: v for k, v in official().items() if "clip_embed" not in k}, "not conditioned on a text"),
        (lambda: {"encoder.resblocks.0.ln_1.weight": torch.ones(256)}, "signed-distance"),
        (lambda: {"conv.weight": torch.ones(3)}, "not a Point-E network"),
        (lambda: official() | {"clip_embed.weight": torch.empty(512, 512)}, r"base40M.*\[512, 512\], not \[512, 768\]"),
        (lambda: official(replace(UPSAMPLE, layers=13)), "upsample: it also holds backbone"),
        (lambda: official(replace(BASE, layers=3)), "lacks backbone.* and 107 more weights"),
    ],
    ids=["image", "unconditional", "sdf", "other", "clip", "upsampler", "shallow"],
)
def test_infer_config_names_other_variants(state: Callable[[], dict[str, Tensor]], said: str) -> None:
    with pytest.raises(WeightsUnavailable, match=said):
        infer_config(state())


def test_config_survives_json() -> None:
    for config in (BASE, UPSAMPLE, LOW, HIGH):
        assert PointTransformerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert PointTransformerConfig.from_json({"points": 1024}) == BASE


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"points": 4, "depth": 3}, "no field 'depth'"),
        ({"points": "many"}, "points can't be 'many'"),
        ({"points": 4, "condition": "image"}, "condition can't be 'image'"),
        ({"points": 4, "sampling": {"steps": 1.5}}, "steps can't be 1.5"),
        ({"points": 4, "sampling": 3}, "3 is not a set of fields"),
        ({"width": 64}, "points"),
        ({"points": 4, "width": 60, "heads": 8}, "width 60 with 8 heads"),
        ([], "is not a set of fields"),
    ],
)
def test_config_from_json_refuses_wrong_fields(data: Any, said: str) -> None:
    with pytest.raises(WeightsUnavailable, match=said):
        PointTransformerConfig.from_json(data)


def saved(folder: Path, config: PointTransformerConfig, name: str, seed: int = 0) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.half() for key, tensor in network(config, seed).state_dict().items()}, path)
    return path


def test_point_e_load_reads_the_config_of_a_small_base_stage(tmp_path: Path) -> None:
    path = saved(tmp_path, LOW, "base")
    (tmp_path / "config.json").write_text(json.dumps(LOW.to_json()), encoding="utf-8")
    pointe = PointE.load(open_point_e(path, origin="here"), CPU, torch.float32)
    (made,) = pointe.stages
    assert made.config == LOW
    for key, tensor in load_file(path).items():
        assert torch.equal(made.state_dict()[key], tensor.float())
    assert not any(parameter.requires_grad for parameter in made.parameters())
    cloud = pointe.sample(torch.ones(8), torch.Generator().manual_seed(0))
    assert cloud.points.shape == cloud.colors.shape == (5, 3)
    assert PointE.load(open_point_e(path, origin="here"), CPU, torch.bfloat16).evaluations == (7,)


def test_point_e_load_refuses_a_damaged_or_absent_config(tmp_path: Path) -> None:
    path = saved(tmp_path, LOW, "base")
    with pytest.raises(WeightsUnavailable, match="base40M-textvec"):
        PointE.load(open_point_e(path, origin="here"), CPU, torch.float32)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match=r"config.json can't be read"):
        PointE.load(open_point_e(path, origin="here"), CPU, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(HIGH.to_json()), encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match="not the base"):
        PointE.load(open_point_e(saved(tmp_path, HIGH, "base"), origin="here"), CPU, torch.float32)


@pytest.fixture(scope="module")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("prior") / "tiny")


@pytest.fixture
def clip(tiny_prior: Path, tmp_path: Path) -> Path:
    """A tiny CLIP with both halves, laid out as the Hub's."""
    folder = tmp_path / "clip"
    shutil.copytree(tiny_prior / "tokenizer", folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": 2,  # as in the Hub's configuration, where it is not the end token
        "projection_dim": 24,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPConfig(text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 4}, projection_dim=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def text_vector(folder: Path, said: list[str] | None = None) -> TextVector:
    warn = (lambda line: pytest.fail(line)) if said is None else said.append
    return TextVector.load(folder, CPU, warn=warn)


def test_text_vector_is_the_projected_feature_of_the_end_token(clip: Path) -> None:
    text = text_vector(clip)
    vector = text.encode("a red car")
    assert vector.shape == (24,)
    assert vector.norm().item() == pytest.approx(1)
    tensors = load_file(clip / "model.safetensors")
    assert tensors["text_projection.weight"].shape == (24, 32)
    vocabulary = json.loads((clip / "vocab.json").read_text(encoding="utf-8"))
    ids = [vocabulary[word] for word in ("<|startoftext|>", "a</w>", "red</w>", "car</w>", "<|endoftext|>")]
    hidden = text._encoder.network(torch.tensor([ids])).last_hidden_state[0]
    feature = hidden[-1] @ tensors["text_projection.weight"].T
    torch.testing.assert_close(vector, feature / feature.norm(), atol=1e-5, rtol=1e-4)
    assert (vector - text.encode("a car")).abs().max() > 0.01


def test_text_vector_straightens_curly_quotes(clip: Path) -> None:
    text = text_vector(clip)
    assert torch.equal(text.encode("“a car’s ‘red’”"), text.encode("\"a car's 'red'\""))


def test_text_vector_cuts_a_long_text_with_a_warning(clip: Path) -> None:
    said: list[str] = []
    text = text_vector(clip, said)
    fits = " ".join(["red"] * 75)
    whole = text.encode(fits)
    assert said == []
    assert torch.equal(text.encode(fits + " car"), whole)
    assert said == ["Point-E reads 75 tokens of a text; not read: 'car'"]


def test_text_vector_of_the_prior_is_the_mean_that_training_used() -> None:
    checkpoint = weights.resolve(PriorConfig(), cuda=False, offline=True, announce=lambda _: None)
    text = TextVector(TextEncoder.load(checkpoint, CPU, torch.float32, warn=pytest.fail))
    texts = ["a red mushroom", "a red apple", "a brown dog wearing a red hat"]
    vectors = torch.stack([text.encode(each) for each in texts])
    torch.testing.assert_close(vectors, text_vectors(checkpoint.folder, texts, CPU), atol=1e-5, rtol=1e-4)
    alike = vectors @ vectors.T
    assert alike.diag().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert alike.fill_diagonal_(0).max() < 0.9  # no two prompts have nearly the same vector


def test_text_vector_load_refuses_an_incomplete_clip(clip: Path) -> None:
    edit_weights(clip / "model.safetensors", drop="text_projection.weight")
    with pytest.raises(WeightsUnavailable, match=r"lacks 1 weights, the first is text_projection.weight"):
        text_vector(clip)
    (clip / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        text_vector(clip)


def test_text_vector_load_refuses_a_clip_without_its_vocabulary(clip: Path) -> None:
    path = clip / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(vocabulary | {"extra</w>": len(vocabulary)}), encoding="utf-8")
    with pytest.raises(WeightsUnavailable, match="520 tokens, its text encoder 519"):
        text_vector(clip)
