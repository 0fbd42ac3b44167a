"""A latent diffusion prior: images to latents, and noisy latents to the noise in them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.profile import PriorProfile
from segdream_cli.text import TextEncoder
from segdream_cli.weights import Checkpoint, check_keys, reading

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DiffusionPrior:
    """A frozen Stable Diffusion 1.x or 2.x model, or any of the same layout.

    Args:
        unet: predicts epsilon or v from noisy latents.
        vae: encodes images in -1..1 to a Gaussian over latents, and decodes latents.
        text: encodes prompts.
        scheduler: holds the noise schedule and the kind of prediction.
        profile: what the model calls views, which words it knows, and its presets.
        cuda_graphs: replay `predict_noise` without a gradient, and `encode_image` with one, as CUDA graphs.

    Attributes:
        alphas_cumprod: cumulative product of alpha at timesteps 0..999, float64, on the CPU.
        image_size: side in pixels of the images the prior was trained on.
        latent_shape: channels, height and width of the latents of such an image.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        profile: PriorProfile,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self.profile = profile
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text = text
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self.alphas_cumprod: Float[Tensor, " 1000"] = scheduler.alphas_cumprod.to("cpu", torch.float64)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.latent_shape = (vae.config.latent_channels, side, side)
        self.image_size: int = side * factor
        self._scale: float = vae.config.scaling_factor
        self._shift: float = vae.config.get("shift_factor") or 0.0
        self._predicts_v = scheduler.config.prediction_type == "v_prediction"
        self._alphas = self.alphas_cumprod.sqrt().float().to(self.device)
        self._sigmas = (1 - self.alphas_cumprod).sqrt().float().to(self.device)
        self._encoders: dict[torch.Size, Callable[..., Any]] = {}
        self._graphs = _GraphedCalls(self._unet) if cuda_graphs and self.device.type == "cuda" else None

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str,
        dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        *,
        warn: Callable[[str], None],
        cuda_graphs: bool = True,
    ) -> "DiffusionPrior":
        """Loads a verified checkpoint.

        Args:
            checkpoint: what `weights.resolve` returned.
            device: where the networks run.
            dtype: their arithmetic; "auto" is fp16 on CUDA and fp32 elsewhere.
            warn: receives one line when a prompt is longer than the text encoder reads.
            cuda_graphs: replay the networks as CUDA graphs.

        Raises:
            WeightsUnavailable: a file can't be read, a weight is missing, or the vocabulary does not fit.
        """
        device = torch.device(device)
        kind = DTYPES["fp16" if device.type == "cuda" else "fp32"] if dtype == "auto" else DTYPES[dtype]
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        text = TextEncoder.load(checkpoint, device, kind, warn=warn)
        unet = _network(UNet2DConditionModel, checkpoint, "unet", device, kind)
        vae = _network(AutoencoderKL, checkpoint, "vae", device, kind)
        with reading(checkpoint, "scheduler"):
            scheduler = DDIMScheduler.from_pretrained(checkpoint.folder / "scheduler", local_files_only=True)
        return cls(unet, vae, text, scheduler, checkpoint.profile, cuda_graphs=cuda_graphs)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "p l d"]:
        """The text embeddings of each prompt: p texts, l tokens, d features; see `TextEncoder.encode`."""
        return self.text.encode(texts)

    def encode_image(
        self, rgb: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c h8 w8"] | None = None
    ) -> Float[Tensor, "b c h8 w8"]:
        """Scaled latents of images, differentiable with respect to them.

        Args:
            rgb: colours, 0..1 where they can be shown; not clamped, so that gradients pass outside.
            noise: standard normal numbers that draw from the posterior; None takes its mean.

        Returns:
            float32 latents, (z - shift) * scale as the U-Net was trained on.
        """
        images = (2 * rgb - 1).to(self.dtype)
        graphed = self._graphs is not None and images.requires_grad and torch.is_grad_enabled()
        mean, std = self._graphed_posterior(images) if graphed else self._posterior(images)
        latents: Tensor = mean.float()
        if noise is not None:
            latents = latents + std.float() * noise
        return (latents - self._shift) * self._scale

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the unscaled latents of images in -1..1."""
        posterior = self.vae.encode(images).latent_dist
        return posterior.mean, posterior.std

    def _graphed_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same as CUDA graphs of the forward and the backward pass, one pair a shape."""
        if images.shape not in self._encoders:
            # the capture's stream differs from that of the Gaussians' gradients, which costs one wait a step
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
            sample = images.detach().clone().requires_grad_()
            self._encoders[images.shape] = torch.cuda.make_graphed_callables(self._posterior, (sample,))
        mean, std = self._encoders[images.shape](images)
        return mean, std

    def decode(self, latents: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Images of scaled latents, float32, about 0..1 and not clamped."""
        rgb: Tensor = self.vae.decode((latents / self._scale + self._shift).to(self.dtype)).sample
        return (rgb.float() + 1) / 2

    def predict_noise(
        self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"], text: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise epsilon in noisy latents, differentiable with respect to them.

        A model that predicts v (Salimans and Ho 2022, alpha eps - sigma x0) is converted:
        eps = alpha v + sigma z.

        Args:
            latents: z_t, float32.
            timesteps: t of each, 0..999.
            text: its embeddings.

        Returns:
            float32 epsilon.
        """
        timesteps = timesteps.to(self.device, non_blocking=True)
        if latents.requires_grad and torch.is_grad_enabled():
            output = self._unet(latents, timesteps, text)
        else:
            with torch.no_grad():
                output = (self._graphs or self._unet)(latents, timesteps, text)
        if not self._predicts_v:
            return output.float()
        alpha, sigma = (
            table.index_select(0, timesteps.long())[:, None, None, None] for table in (self._alphas, self._sigmas)
        )
        epsilon: Tensor = alpha * output.float() + sigma * latents
        return epsilon

    def _unet(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = self.unet(latents.to(self.dtype), timesteps, text.to(self.dtype), return_dict=False)[0]
        return output


class _GraphedCalls:
    """Calls of a function replayed as CUDA graphs, one for each set of input shapes.

    A replay costs one launch where the eager call costs one a kernel, which is most of the time of a small batch.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._captured:
            self._captured[key] = self._capture(inputs)
        graph, places, output = self._captured[key]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()  # the next replay, of any shape, may write over it

    def _capture(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        places = [tensor.detach().clone() for tensor in inputs]
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries choose kernels and allocate workspaces, which no graph may do
            for _ in range(3):
                self._function(*places)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._function(*places)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            raise EnvironmentProblem(
                f"the U-Net can't be captured as a CUDA graph: {str(problem).splitlines()[0]}",
                hint="--set prior.cuda_graphs=false",
            ) from problem
        self._pool = self._pool or graph.pool()
        return graph, places, output


def _network(kind: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusers network of a checkpoint, every weight of it from the file."""
    with reading(checkpoint, part):
        network, info = kind.from_pretrained(
            checkpoint.folder / part,
            dtype=dtype,
            variant=checkpoint.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the default asks for accelerate; initial values are skipped in either case
        )
    check_keys(checkpoint, part, info)
    if device.type == "cpu":  # convolutions are a fifth faster there with the channels innermost
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)
