"""State of one asset under optimisation: everything the next step depends on, and nothing else."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.distill.view_prompts import PromptEmbeddings
from segdream_cli.optimize.adam import Optimizers, build_optimizers
from segdream_cli.optimize.density import DensityStats
from segdream_cli.splats import GROUPS
from segdream_cli.splats.gaussians import Gaussians

PURPOSES = ("init", "noise", "times", "cameras", "backgrounds", "augment", "posterior", "densify", "refine")


def build_generators(seed: int) -> dict[str, torch.Generator]:
    """One random generator per purpose, so that a change in the use of one leaves the numbers of the others alone."""
    return {
        purpose: torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")
        )
        for purpose in PURPOSES
    }


@dataclass(frozen=True, slots=True)
class Targets:
    """The repainted views that a round of refinement fits.

    Args:
        round: index of the round.
        images: the views, quantised so that a checkpoint holds them exactly.
        backgrounds: colour behind each view.
        anchors: coarse views of the asset that was given, if there is one.
    """

    round: int
    images: UInt8[Tensor, "v h w 3"]
    backgrounds: Float[Tensor, "v 3"]
    anchors: UInt8[Tensor, "v g g 3"] | None = None


@dataclass(slots=True)
class AssetState:
    """An asset after `step` optimisation steps.

    Args:
        prompt: text that describes the asset.
        seed: source of all its random numbers.
        embeddings: the prior's encoding of the prompt.
        gaussians: its Gaussians.
        optimizers: Adam's moments, one optimizer per parameter group.
        stats: gradients accumulated for the next densification.
        method_state: tensors of the distillation method, such as SCTD's ε*.
        generators: random generators by purpose.
        step: number of steps done.
        targets: those of the round of refinement that began last.
        anchor: the asset that was given, whose views the result should resemble; it is no part of a checkpoint.
        last_views: those of the last measurement of its change.
        skipped: number of distillation steps that were left out, since it hardly changed; `step` counts them as done.
    """

    prompt: str
    seed: int
    embeddings: PromptEmbeddings
    gaussians: Gaussians
    optimizers: Optimizers
    stats: DensityStats
    method_state: dict[str, Tensor]
    generators: dict[str, torch.Generator]
    step: int = 0
    targets: Targets | None = None
    anchor: Gaussians | None = None
    last_views: Float[Tensor, "v h w 3"] | None = None
    skipped: int = 0

    @property
    def steps_taken(self) -> int:
        """Number of steps done without those left out."""
        return self.step - self.skipped

    def rng_states(self) -> dict[str, Tensor]:
        """State of each random generator."""
        return {purpose: generator.get_state() for purpose, generator in self.generators.items()}

    def rollback(self, step: int, rng_states: Mapping[str, Tensor]) -> None:
        """Undoes a step that has not moved the parameters.

        Args:
            step: its number.
            rng_states: states of the random generators before it.
        """
        self.step = step - 1
        for purpose, generator in self.generators.items():
            generator.set_state(rng_states[purpose])

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint, without prompt, seed and embeddings."""
        named: dict[str, Tensor] = {"step": torch.tensor(self.step), **self.method_state}
        named |= {"stats.grad_sum": self.stats.grad_sum, "stats.count": self.stats.count}
        for group, parameter in self.gaussians.params.items():
            named[f"gaussians.{group}"] = parameter.detach()
            for key, value in self.optimizers[group].state[parameter].items():
                named[f"adam.{group}.{key}"] = value
        if self.targets is not None:
            named["refine.round"] = torch.tensor(self.targets.round)
            named |= {"refine.images": self.targets.images, "refine.backgrounds": self.targets.backgrounds}
            if self.targets.anchors is not None:
                named["refine.anchors"] = self.targets.anchors
        if self.last_views is not None:
            named |= {"stop.views": self.last_views, "stop.skipped": torch.tensor(self.skipped)}
        named |= {f"generator.{purpose}": state for purpose, state in self.rng_states().items()}
        return named

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        prompt: str,
        seed: int,
        embeddings: PromptEmbeddings,
        device: torch.device,
        method_state: Iterable[str],
    ) -> "AssetState":
        """The state that `tensors` describes, in memory of its own.

        Args:
            tensors: what `AssetState.tensors` returned.
            prompt: as the field.
            seed: as the field.
            embeddings: as the field.
            device: where the Gaussians live.
            method_state: names of the method's tensors.

        Raises:
            KeyError: a tensor is missing.
        """
        tensors = {name: value.clone() for name, value in tensors.items()}
        gaussians = Gaussians({group: tensors[f"gaussians.{group}"].to(device) for group in GROUPS})
        optimizers = build_optimizers(gaussians)
        for group, parameter in gaussians.params.items():
            for key, value in optimizers[group].state[parameter].items():
                value.copy_(tensors[f"adam.{group}.{key}"])
        targets = None
        if "refine.round" in tensors:
            images, backgrounds = (tensors[f"refine.{name}"].to(device) for name in ("images", "backgrounds"))
            anchors = tensors["refine.anchors"].to(device) if "refine.anchors" in tensors else None
            targets = Targets(int(tensors["refine.round"]), images, backgrounds, anchors)
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
            method_state={name: tensors[name].to(device) for name in method_state},
            generators=generators,
            step=int(tensors["step"]),
            targets=targets,
            last_views=tensors["stop.views"].to(device) if "stop.views" in tensors else None,
            skipped=int(tensors.get("stop.skipped", 0)),
        )
