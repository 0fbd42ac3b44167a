"""From Gaussians to images: cameras, the rasteriser, images and videos."""

from segdream_cli.errors import UsageProblem

MIN_SIDE, MAX_SIDE, MAX_SAMPLES = 16, 4096, 8192


def check_size(size: int | tuple[int, int], supersample: int, name: str | None = None) -> None:
    """Refuses images that are too small or too large.

    Args:
        size: side in pixels, or width and height.
        supersample: side of the square of samples per pixel.
        name: what the message calls the size.

    Raises:
        UsageProblem: a side is out of range, or has too many samples.
    """
    sides = (size, size) if isinstance(size, int) else size
    name = name or f"size {size}"
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise UsageProblem(
            f"{name} is not SIDE or WIDTHxHEIGHT, each {MIN_SIDE} to {MAX_SIDE} pixels", hint="--size 1280x720"
        )
    if supersample < 1:
        raise UsageProblem(f"--supersample {supersample} is not at least 1", hint="--supersample 1")
    if supersample * max(sides) > MAX_SAMPLES:
        raise UsageProblem(
            f"{name} with --supersample {supersample} needs more than {MAX_SAMPLES} samples along a side",
            hint=f"--supersample {MAX_SAMPLES // max(sides)}",
        )
