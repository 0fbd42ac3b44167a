"""The whole pipeline on CUDA, with the shipped prior."""

import pytest
import torch

from segdream_cli.config import MINI, Config, PriorConfig
from segdream_cli.errors import Diverged
from segdream_cli.optimize.pipeline import Pipeline
from segdream_cli.optimize.report import StepReport
from segdream_cli.priors import checkpoint as weights
from segdream_cli.priors.profile import preset
from segdream_cli.priors.stable_diffusion import DiffusionPrior

pytestmark = pytest.mark.gpu

PROMPT = "a red car"


def build(device: str, *, graphs: bool = True, **settings: object) -> Pipeline:
    checkpoint = weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=pytest.fail)
    how = PriorConfig(dtype="fp32", cuda_graphs=graphs)
    prior = DiffusionPrior.load(checkpoint, device, how, warn=pytest.fail, batch=2)
    config: Config = preset(checkpoint.profile, "draft").with_steps(40)
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return Pipeline(config.set({"init.shape": "sphere"} | changes), prior, torch.device(device))


def norms(pipeline: Pipeline, steps: int) -> list[float]:
    run = pipeline.run([pipeline.prepare(PROMPT, 0)])
    return [next(run).grad_norm[0] for _ in range(steps)]


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorFloat-32, whose roundings depend on the batch: 0.6 % of a gradient's norm."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(
    "settings",
    [{}, {"distill__perp_neg": True}, {"distill__sctd__loss": "eq10", "distill__sctd__approximate": False}],
    ids=["guidance", "perp-neg", "exact"],
)
def test_run_with_graphs_matches_eager_and_cpu_runs(settings: dict[str, object]) -> None:
    """The first gradients agree closely; later ones diverge, since Adam divides by their size."""
    graphed, eager, cpu = (
        norms(build(device, graphs=graphs, **settings), 4)
        for device, graphs in (("cuda", True), ("cuda", False), ("cpu", False))
    )
    assert graphed[0] == pytest.approx(eager[0], rel=1e-4)
    assert graphed[0] == pytest.approx(cpu[0], rel=1e-3)
    assert graphed == pytest.approx(eager, rel=1e-3)
    assert graphed == pytest.approx(cpu, rel=5e-2)


@pytest.mark.parametrize(("here", "there"), [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")])
def test_restore_resumes_on_any_device(here: str, there: str) -> None:
    first, second = build(here), build(there)
    asset = first.prepare(PROMPT, 0)
    run = first.run([asset])
    for _ in range(3):
        next(run)
    tensors = {name: value.detach().cpu().clone() for name, value in asset.tensors().items()}
    restored = second.restore(tensors, PROMPT, 0)
    assert restored.step == 3
    assert all(parameter.device.type == there for parameter in restored.gaussians.params.values())
    expected, found = next(run), next(second.run([restored]))
    assert found.timesteps == expected.timesteps
    assert found.grad_norm[0] == pytest.approx(expected.grad_norm[0], rel=1e-2)


@pytest.mark.usefixtures("full_precision")
def test_batch_equals_solo_runs() -> None:
    """Across densifications, after which the numbers of Gaussians differ; batched arithmetic rounds differently."""
    pipeline = build("cuda", init__count=300, densify__cap=400, densify__start=0, densify__every=2, densify__stop=9)
    starts = [("a red car", 0), ("a blue car", 1), ("a green tree", 2)]
    together = [pipeline.prepare(*start) for start in starts]
    run = pipeline.run(together)
    reports = [next(run) for _ in range(5)]
    for place, start in enumerate(starts):
        alone = pipeline.run([pipeline.prepare(*start)])
        expected = [next(alone) for _ in range(5)]
        assert [report.timesteps[place] for report in reports] == [report.timesteps[0] for report in expected]
        found, wanted = ([report.grad_norm[i] for report in these] for these, i in ((reports, place), (expected, 0)))
        assert found[0] == pytest.approx(wanted[0], rel=1e-4)
        assert found == pytest.approx(wanted, rel=1e-3)
        assert reports[-1].n_gaussians[place] == expected[-1].n_gaussians[0]


def test_nonfinite_gradient_changes_nothing() -> None:
    """The check happens a step later, after the next render."""
    pipeline = build("cuda")
    asset = pipeline.prepare(PROMPT, 0)
    run = pipeline.run([asset])
    for _ in range(3):
        next(run)
    torch.cuda.synchronize()
    before = {name: value.clone() for name, value in asset.tensors().items()}
    asset.embeddings.phrases.fill_(torch.nan)
    reports: list[StepReport] = []
    with pytest.raises(Diverged, match="is not finite in step 4 "):
        reports.extend(run)
    assert [report.step for report in reports] == [4]
    after = asset.tensors()
    assert after.keys() == before.keys()
    assert not [name for name, value in after.items() if not torch.equal(value, before[name])]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_step_waits_only_for_the_rasteriser() -> None:
    """gsplat's own wait, in C++, gives no Python warning; any other wait does, and is an error here."""
    pipeline = build("cuda", distill__perp_neg=True, densify__start=30)
    run = pipeline.run([pipeline.prepare(PROMPT, 0)])
    for _ in range(8):  # with graphs of every number of rows
        next(run)
    try:
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(6):
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore")  # of what the compiler imports, and its advice to compute less exactly
@pytest.mark.parametrize("low_vram", [False, True])
def test_compiled_networks_match_eager_networks(low_vram: bool) -> None:
    """Rows in pieces of two sizes, and a backward pass through two pairs of graphs at once or per view."""
    checkpoint = weights.resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=pytest.fail)
    said: list[str] = []
    fast, plain = (
        DiffusionPrior.load(checkpoint, "cuda", how, warn=said.append, batch=2)
        for how in (
            PriorConfig(dtype="fp32", compile="on", low_vram=low_vram),
            PriorConfig(dtype="fp32", cuda_graphs=False),
        )
    )
    generator = torch.Generator().manual_seed(0)
    for rows in (2, 3, 4, 5, 2):
        latents = torch.randn(rows, *plain.latent_shape, generator=generator).cuda()
        times = torch.randint(0, 1000, (rows,), generator=generator)
        text = plain.encode_text([PROMPT] * rows)
        found, expected = (prior.predict_noise(latents, times, text) for prior in (fast, plain))
        assert (found - expected).norm() < 5e-3 * expected.norm()
    for views in (2, 4, 2):
        shape, weight = (3, plain.image_size, plain.image_size), torch.randn(1, *plain.latent_shape).cuda()
        image = torch.rand(views, *shape, generator=generator).cuda()
        results = []
        for prior in (fast, plain):
            rgb = image.clone().requires_grad_()
            latents = prior.encode_image(rgb)
            (latents * weight).sum().backward()
            results.append((latents.detach(), rgb.grad))
        for found, expected in zip(*results, strict=True):
            assert found is not None
            assert expected is not None
            assert (found - expected).norm() < 5e-3 * expected.norm()
    assert [line.split()[0] for line in said] == ["compiling", "compiled"] * 3
