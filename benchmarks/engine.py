"""Network calls of the embedded prior on a CPU: OpenVINO and torch, in fp32 and in bf16, times and differences.

    OMP_NUM_THREADS=1 python -m benchmarks.engine --record
    python -m benchmarks.engine --smoke    # one small call of each

The engines take turns call by call, and a row shows the medians, so that other work on the machine slows both.
Differences are relative to torch in fp32, which is the time of the first column too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.record import record
from segdream_cli.accel.openvino_engine import OpenVinoCalls
from segdream_cli.config import MINI, PriorConfig
from segdream_cli.priors.checkpoint import resolve
from segdream_cli.priors.stable_diffusion import LATENT_PIXELS, DiffusionPrior

UNET = [(2, 16), (4, 16), (8, 16), (16, 16), (64, 16), (4, 32), (16, 32), (64, 32)]
"""Rows and side of the latents of each call of the U-Net."""
IMAGE_PIXELS = 4 * 128**2
"""Most pixels of all images in one call of OpenVINO."""
AUTOENCODER = [(1, 16), (4, 16), (16, 16), (4, 32)]
RECORDED = 4, 16
"""The call of a step of SCTD whose ratio is recorded."""
BUDGET_S = 4.0
"""Seconds of torch's calls per row of the table."""


@dataclass(frozen=True)
class Call:
    """A call of a network, and its inputs for a number of rows and a side of the latents."""

    name: str
    torch: Callable[..., Tensor]
    others: dict[str, Callable[..., Tensor]]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    sizes: list[tuple[int, int]]


def calls_of(prior: DiffusionPrior) -> list[Call]:
    """The U-Net, the decoder and the encoder of a prior whose engine is torch."""
    channels, side, _ = prior.latent_shape
    text = prior.encode_text(["a yellow school bus"])
    factor = prior.image_size // side

    def latents(rows: int, side: int) -> Tensor:
        return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(0))

    def unet(rows: int, side: int) -> tuple[Tensor, ...]:
        return latents(rows, side), torch.arange(rows) * 9, text.expand(rows, -1, -1)

    def images(rows: int, side: int) -> tuple[Tensor, ...]:
        shape = rows, 3, factor * side, factor * side
        return (torch.rand(shape, generator=torch.Generator().manual_seed(0)),)

    def mean(rgb: Tensor) -> Tensor:
        return prior.vae.encode(rgb).latent_dist.mean

    def predict(*inputs: Tensor) -> Tensor:
        return prior.unet(*inputs, return_dict=False)[0]

    def decode(z: Tensor) -> Tensor:
        return prior.vae.decode(z).sample

    def call(name, network, function, inputs, sizes, largest):
        engines = {
            title: OpenVinoCalls(name, network, function, inputs(2, side), largest=largest, bf16=bf16)
            for title, bf16 in (("OpenVINO", False), ("OpenVINO, bf16", True))
        }
        engines["torch, bf16"] = torch.autocast("cpu", torch.bfloat16)(function)
        return Call(name, function, engines, inputs, sizes)

    return [
        call("U-Net", prior.unet, predict, unet, UNET, LATENT_PIXELS),
        call("decoder", prior.vae, decode, lambda *size: (latents(*size),), AUTOENCODER, LATENT_PIXELS),
        call("encoder", prior.vae, mean, images, AUTOENCODER, IMAGE_PIXELS),
    ]


def measure(call: Call, rows: int, side: int, budget_s: float) -> dict[str, float]:
    """Median milliseconds of each engine, and the relative difference of its results from torch's in fp32."""
    inputs = call.inputs(rows, side)
    engines = {"torch": call.torch, **call.others}
    results = {name: engine(*inputs) for name, engine in engines.items()}  # also compiles
    times: dict[str, list[float]] = {name: [] for name in engines}
    begin = time.perf_counter()
    while len(times["torch"]) < 3 or time.perf_counter() - begin < budget_s:
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(*inputs)
            times[name].append(1000 * (time.perf_counter() - start))
    found = {name: statistics.median(values) for name, values in times.items()}
    expected = results["torch"]
    return found | {f"{name}_error": float((results[name] - expected).norm() / expected.norm()) for name in call.others}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the ratio in results.json")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    config = PriorConfig(name=MINI, engine="torch")
    checkpoint = resolve(config, cuda=False, offline=True, announce=print)
    prior = DiffusionPrior.load(checkpoint, "cpu", config, warn=print)
    print(f"{torch.get_num_threads()} threads, milliseconds per call\n")
    calls = calls_of(prior)
    columns = "".join(f" {name} | ratio | difference |" for name in calls[0].others)
    print(f"| call | rows | latents | torch |{columns}")
    print("| --- " * (4 + 3 * len(calls[0].others)) + "|")
    with torch.no_grad():
        for call in calls:
            for rows, side in [(1, 16)] if options.smoke else call.sizes:
                found = measure(call, rows, side, 0 if options.smoke else BUDGET_S)
                cells = [call.name, str(rows), f"{side} x {side}", f"{found['torch']:.1f}"]
                for name in call.others:
                    ratio = found["torch"] / found[name]
                    cells += [f"{found[name]:.1f}", f"{ratio:.2f}", f"{found[name + '_error']:.0e}"]
                print("| " + " | ".join(cells) + " |", flush=True)
                if options.record and call.name == "U-Net" and (rows, side) == RECORDED:
                    record("unet_cpu_engine_ratio", found["torch"] / found["OpenVINO"], "ratio", "cpu")


if __name__ == "__main__":
    main()
