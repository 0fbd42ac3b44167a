"""The training stages on CUDA: the same images as on the CPU, replayed steps equal called ones, weights load."""

from pathlib import Path

import pytest
import torch
from torch import nn

from training import train_autoencoder, train_denoiser
from training.bank import render_bank
from training.stage import Replayed, adamw
from training.world.catalog import combinations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:The 'generic' unit for NumPy timedelta:DeprecationWarning"),  # in numba-cuda
    pytest.mark.filterwarnings("ignore:.*Grid size:Warning"),  # of numba-cuda, about so few images
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_draw_matches_the_cpu() -> None:
    seen = list(combinations())[::7]
    ours, theirs = (render_bank(130, 3, device, combinations=seen, size=64) for device in (CUDA, CPU))
    assert torch.equal(ours.objects.cpu(), theirs.objects)
    difference = (ours.rgba.cpu().int() - theirs.rgba.int()).abs()
    assert difference.float().mean() < 0.05
    assert (difference > 8).float().mean() < 1e-3


def test_replayed_step_equals_the_called_step() -> None:
    def train(replay: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        generator = torch.Generator(CUDA).manual_seed(1)
        network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 1)).to(CUDA)
        optimizer = adamw([{"params": list(network.parameters()), "lr": 1e-2}], weight_decay=0.1, device=CUDA)

        def step() -> None:
            x = torch.randn(32, 8, device=CUDA, generator=generator)
            optimizer.zero_grad()
            (network(x) - x.sum(1, keepdim=True)).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

        replayed = Replayed(step, generator)
        for count in range(20):
            optimizer.param_groups[0]["lr"].fill_(1e-2 / (1 + count))
            replayed() if replay else step()
        return [parameter.detach().clone() for parameter in network.parameters()]

    for one, other in zip(train(replay=True), train(replay=False), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore")  # of what the compiler imports
def test_stages_reduce_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    autoencoder, denoiser = tmp_path / "ae", tmp_path / "denoiser"
    train_autoencoder.main(autoencoder, steps=301, batch=32, renders=500)
    train_denoiser.main(
        autoencoder, denoiser, steps=201, batch=64, large_batch=16, renders=500, large_renders=500, backgrounds_each=1
    )
    said = capsys.readouterr().out
    assert float(said.partition("PSNR ")[2].split()[0]) > 15
    assert float(said.partition("hundred or so ")[2].split()[0]) < 0.8
