"""The Inception network of FID and KID (Heusel et al., NeurIPS 2017; Szegedy et al., CVPR 2016).

The weights are TensorFlow's of 2015, as torch-fidelity publishes them. torch-fidelity has the network too, but imports
torchvision, whose wheel from PyPI fails beside a torch without CUDA, and then transformers can't be imported either.

Shapes: m images, s pixels square.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util.download import Progress, cache_folder, check_space, describe_download, download, file_sha256
from segdream_cli.util.hashes import has_sha256
from segdream_cli.util.hub import first_line, is_offline, removal
from segdream_cli.util.weights import read_errors, read_pickled

NAME = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
BYTES, SHA256 = 95_628_359, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The published file. pytorch-fid publishes the same bytes as pt_inception-2015-12-05-6726825d.pth."""
FALLBACK_HINT = "--metrics frechet"

SIZE = 299
"""Side in pixels of the images that the network reads."""
_POOL = "branch_pool"


class Inception:
    """The network up to the features of its last pooling, in float32.

    Args:
        state: weights with the published names.
        device: where it computes.

    Raises:
        WeightsUnavailable: a weight is missing or has another shape.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self._weights = {name: value.to("meta") for name, value in state.items()}
        try:
            self._forward(torch.empty(1, 3, SIZE, SIZE, device="meta"))  # computes shapes alone
        except (KeyError, RuntimeError) as problem:
            raise WeightsUnavailable(
                f"the weights of Inception do not fit: {first_line(problem)}", hint=FALLBACK_HINT
            ) from problem
        self._weights = {name: value.to(device) for name, value in state.items()}
        self._device = device

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "m 3 s s"], batch: int = 16) -> Float[Tensor, "m 2048"]:
        """The features of images, `batch` at a time; on the CPU."""
        return torch.cat([self._forward(part.to(self._device)).cpu() for part in images.split(batch)])

    def _forward(self, images: Tensor) -> Float[Tensor, "m 2048"]:
        # with antialiasing, as torchmetrics and clean-fid resize; the original does without
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        x = self._conv((x - 128) / 128, "Conv2d_1a_3x3", stride=2)
        x = self._conv(x, "Conv2d_2a_3x3", padded=False)
        x = F.max_pool2d(self._conv(x, "Conv2d_2b_3x3"), 3, 2)
        x = self._conv(self._conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", padded=False)
        x = F.max_pool2d(x, 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._block(x, name, ("1x1",), ("5x5_1", "5x5_2"), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"))
        x = self._reduction(x, "Mixed_6a", ("3x3",), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"))
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            chains = (tuple(f"{kind}_{i + 1}" for i in range(n)) for kind, n in (("7x7", 3), ("7x7dbl", 5)))
            x = self._block(x, name, ("1x1",), *chains)
        x = self._reduction(x, "Mixed_7a", ("3x3_1", "3x3_2"), ("7x7x3_1", "7x7x3_2", "7x7x3_3", "7x7x3_4"))
        x = self._wide_block(x, "Mixed_7b", _average)
        # the original pools by the maximum here, and by the mean everywhere else
        x = self._wide_block(x, "Mixed_7c", lambda values: F.max_pool2d(values, 3, 1, 1))
        return x.mean((2, 3))

    def _conv(self, x: Tensor, name: str, *, stride: int = 1, padded: bool = True) -> Tensor:
        """Convolution, batch normalization and ReLU; padding keeps the size at stride 1."""
        w, bn = self._weights, f"{name}.bn"
        kernel = w[f"{name}.conv.weight"]
        padding = [side // 2 for side in kernel.shape[2:]] if padded and stride == 1 else 0
        y = F.conv2d(x, kernel, stride=stride, padding=padding)
        y = F.batch_norm(
            y, w[f"{bn}.running_mean"], w[f"{bn}.running_var"], w[f"{bn}.weight"], w[f"{bn}.bias"], eps=1e-3
        )
        return y.relu()

    def _chain(self, x: Tensor, block: str, branches: tuple[str, ...], stride: int = 1) -> Tensor:
        """Convolutions in turn; the stride is that of the last one."""
        for i, branch in enumerate(branches):
            x = self._conv(x, f"{block}.branch{branch}", stride=stride if i == len(branches) - 1 else 1)
        return x

    def _block(self, x: Tensor, name: str, *chains: tuple[str, ...]) -> Tensor:
        parts = [self._chain(x, name, chain) for chain in chains]
        return torch.cat([*parts, self._conv(_average(x), f"{name}.{_POOL}")], 1)

    def _reduction(self, x: Tensor, name: str, *chains: tuple[str, ...]) -> Tensor:
        """A block of stride 2."""
        return torch.cat([*(self._chain(x, name, chain, 2) for chain in chains), F.max_pool2d(x, 3, 2)], 1)

    def _wide_block(self, x: Tensor, name: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """A block whose chains end in a horizontal and a vertical convolution side by side."""
        parts = [self._chain(x, name, ("1x1",))]
        for chain, last in ((("3x3_1",), "3x3_2"), (("3x3dbl_1", "3x3dbl_2"), "3x3dbl_3")):
            inner = self._chain(x, name, chain)
            parts += [self._conv(inner, f"{name}.branch{last}{side}") for side in "ab"]
        return torch.cat([*parts, self._conv(pool(x), f"{name}.{_POOL}")], 1)


def _average(x: Tensor) -> Tensor:
    """The mean of 3x3 neighbors inside the image."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def load(folder: Path | None, device: torch.device, *, offline: bool, announce: Callable[[str], None]) -> Inception:
    """Loads the published weights.

    Args:
        folder: has the published file under its name; None means segdream's cache, which a download fills.
        device: where the network computes.
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts, and one for a file with another SHA-256.

    Raises:
        WeightsUnavailable: the file is missing, can't be downloaded or read, or is damaged.
    """
    path = resolve(offline=offline, announce=announce) if folder is None else folder / NAME
    if not path.is_file():
        raise WeightsUnavailable(f"{folder} has no {NAME}", hint=FALLBACK_HINT)
    if folder is not None:
        with read_errors(path, FALLBACK_HINT):
            found = file_sha256(path)
        if found != SHA256:
            announce(f"{path} has SHA-256 {found}, which is not that of the published file")
    return Inception(read_pickled(path, FALLBACK_HINT), device)


def cached_file() -> Path:
    """The published file in segdream's cache; it need not exist."""
    return cache_folder() / "inception" / NAME


def resolve(*, offline: bool, announce: Callable[[str], None], progress: Progress | None = None) -> Path:
    """The published file in segdream's cache, downloaded if it is missing.

    Args:
        offline: never use the network; HF_HUB_OFFLINE has the same effect.
        announce: receives a line with the size before a download starts.
        progress: receives the bytes done and in total.

    Raises:
        WeightsUnavailable: it is missing and offline mode is on, it is damaged, or the download fails.
    """
    path = cached_file()
    if path.is_file():
        with read_errors(path, removal(path)):
            whole = has_sha256(path, SHA256)
        if not whole:
            raise WeightsUnavailable(
                f"{path} is damaged: its SHA-256 is not the published {SHA256}", hint=removal(path)
            )
        return path
    if is_offline(offline):
        raise WeightsUnavailable(
            f"the weights of Inception are not in {path.parent}, and offline mode is on",
            hint="segdream fetch fid",
        )
    check_space(path.parent, BYTES)
    announce(f"downloading {NAME}, {describe_download(BYTES)}, from {ADDRESS} to {path.parent}")
    download(ADDRESS, path, hint=FALLBACK_HINT, size=BYTES, sha256=SHA256, progress=progress)
    return path
