"""One asset while it is being optimised: everything that the next step depends on, and nothing else."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.distill.view_prompts import PromptEmbeddings
from segdream_cli.optimize.adam import Optimizers, build_optimizers
from segdream_cli.optimize.density import DensityStats
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians

PURPOSES = ("init", "noise", "times", "cameras", "backgrounds", "augment", "posterior", "densify")


def build_generators(seed: int) -> dict[str, torch.Generator]:
    """A random generator for each purpose, so that a change in how one is used leaves the others' draws alone."""
    return {
        purpose: torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")
        )
        for purpose in PURPOSES
    }


@dataclass(slots=True)
class AssetState:
    """An asset after `step` optimisation steps.

    Args:
        prompt: what it is to become.
        seed: what all its random numbers come from.
        embeddings: the prompt as the prior's text encoder reads it.
        gaussians: its Gaussians.
        optimizers: their optimisers.
        stats: gradients gathered for the next densification.
        noise: ε*, one slice a view of a step.
        generators: random generators by purpose.
        step: how many steps are done.
    """

    prompt: str
    seed: int
    embeddings: PromptEmbeddings
    gaussians: Gaussians
    optimizers: Optimizers
    stats: DensityStats
    noise: Float[Tensor, "v c h w"]
    generators: dict[str, torch.Generator]
    step: int = 0

    def draws(self) -> dict[str, Tensor]:
        """Where each random generator stands."""
        return {purpose: generator.get_state() for purpose, generator in self.generators.items()}

    def rewind(self, step: int, draws: Mapping[str, Tensor]) -> None:
        """Takes back a step that has not moved the parameters.

        Args:
            step: its number.
            draws: where the random generators stood before it.
        """
        self.step = step - 1
        for purpose, generator in self.generators.items():
            generator.set_state(draws[purpose])

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint; prompt, seed and embeddings are not among them."""
        named: dict[str, Tensor] = {"step": torch.tensor(self.step), "noise": self.noise}
        named |= {"stats.grad_sum": self.stats.grad_sum, "stats.count": self.stats.count}
        for group, parameter in self.gaussians.params.items():
            named[f"gaussians.{group}"] = parameter.detach()
            for key, value in self.optimizers[group].state.get(parameter, {}).items():
                named[f"adam.{group}.{key}"] = value
        named |= {f"generator.{purpose}": state for purpose, state in self.draws().items()}
        return named

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        prompt: str,
        seed: int,
        embeddings: PromptEmbeddings,
        config: Config,
        device: torch.device,
    ) -> "AssetState":
        """The state that `tensors` came from, in memory of its own.

        Raises:
            KeyError: a tensor is missing.
        """
        tensors = {name: value.clone() for name, value in tensors.items()}
        gaussians = Gaussians({group: tensors[f"gaussians.{group}"].to(device) for group in GROUPS})
        optimizers = build_optimizers(gaussians, config.optim)
        for group, parameter in gaussians.params.items():
            prefix = f"adam.{group}."
            saved = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if saved:
                # Adam counts its steps on the CPU unless it is fused
                optimizers[group].state[parameter] = {
                    key: value if key == "step" and not parameter.is_cuda else value.to(device)
                    for key, value in saved.items()
                }
        generators = {purpose: torch.Generator() for purpose in PURPOSES}
        for purpose, generator in generators.items():
            generator.set_state(tensors[f"generator.{purpose}"])
        return cls(
            prompt=prompt,
            seed=seed,
            embeddings=embeddings,
            gaussians=gaussians,
            optimizers=optimizers,
            stats=DensityStats(tensors["stats.grad_sum"].to(device), tensors["stats.count"].to(device)),
            noise=tensors["noise"].to(device),
            generators=generators,
            step=int(tensors["step"]),
        )
