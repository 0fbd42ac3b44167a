"""segdream: 3D Gaussian-splat assets from a sentence."""

__version__ = "0.1.0"
