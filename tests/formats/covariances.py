"""The ellipsoids of an asset, which do not change where a quaternion turns about an axis of its own by half a turn."""

import numpy as np

from segdream_cli.splats import Splats


def covariances(splats: Splats) -> np.ndarray:
    """[n, 3, 3], from the rotated axes v + 2 u x (u x v + w v) rather than from a matrix formula."""
    w, u = splats.quats[:, :1].astype(float), splats.quats[:, 1:].astype(float)
    total = np.zeros((len(splats), 3, 3))
    for i, v in enumerate(np.eye(3)):
        axis = v + 2 * np.cross(u, np.cross(u, v) + w * v)
        total += np.exp(2 * splats.log_scales[:, i].astype(float))[:, None, None] * axis[:, :, None] * axis[:, None, :]
    return total
