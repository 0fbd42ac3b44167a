"""Differences between two assets."""

import numpy as np

from segdream_cli.splats import Splats


def angles(quats: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Degrees between rotations, [n]."""
    products = np.abs(np.einsum("nq,nq->n", quats.astype(np.float64), others.astype(np.float64)))
    norms = np.linalg.norm(quats.astype(np.float64), axis=1) * np.linalg.norm(others.astype(np.float64), axis=1)
    return np.degrees(2 * np.arccos(np.minimum(products / norms, 1)))


def opacities(splats: Splats) -> np.ndarray:
    return 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
