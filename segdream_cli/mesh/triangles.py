"""Triangle meshes in memory: `Mesh`, its size and its frame."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdream_cli.splats.frames import axes
from segdream_cli.splats.sizing import Sizing

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles in the inner frame, with a texture or colours of the vertices, or in convex pieces without colour."""

    vertices: Floats
    """[v, 3]; they repeat along the seams of the texture."""
    normals: Floats | None
    """Unit, outward and smooth across seams, [v, 3]; convex pieces have none."""
    uvs: Floats | None
    """Texture coordinates in 0..1, v upwards from the last row of the texture, [v, 2]."""
    faces: Indices
    """Counter-clockwise seen from outside, [f, 3]."""
    texture: Bytes | None
    """sRGB colours of the asset's images, with the light in them, [h, w, 3]."""
    watertight: bool
    """Whether every edge belongs to two triangles after the seams are closed."""
    components: int
    """Number of parts that do not touch, or of convex pieces."""
    left_out: int
    """Number of parts dropped because the requested triangles are too few for them."""
    resolution: int
    """Steps of the grid along its longest side: fewer than requested if the surface had too many holes."""
    enough: int
    """Triangles to request for the full resolution; 0 if the grid has it, or if parts were dropped."""
    coverage: float
    """Share of the surface that at least one image shows; the rest takes the colours around it."""
    provenance: dict[str, Any] = field(default_factory=dict)
    colors: Floats | None = None
    """sRGB colours of the vertices in place of a texture, [v, 3]."""
    pieces: tuple[int, ...] = ()
    """Number of faces of each convex piece, in order."""

    def split(self) -> list[tuple[Floats, Indices]]:
        """The vertices [v, 3] and faces [f, 3] of each convex piece."""
        found = []
        for faces in np.split(self.faces, np.cumsum(self.pieces)[:-1]):
            kept, corners = np.unique(faces, return_inverse=True)
            found.append((self.vertices[kept], corners.reshape(-1, 3)))
        return found


def resize(mesh: Mesh, sizing: Sizing) -> Mesh:
    """The mesh in its real size, with the origin of its coordinates at the pivot; raises the error of `solve`."""
    vertices = mesh.vertices.astype(np.float64)
    factor, offset = sizing.solve(vertices.min(axis=0), vertices.max(axis=0))
    return replace(mesh, vertices=(factor * vertices + offset).astype(np.float32))


def to_frame(mesh: Mesh, name: str) -> Mesh:
    """The mesh in the frame `name`; its triangles agree with its normals by the right-hand rule in every frame."""
    turn = axes(name).astype(np.float32)  # from the frame to the inner one, so its transpose on columns leads back
    mirrors = np.linalg.det(turn) < 0
    return replace(
        mesh,
        vertices=mesh.vertices @ turn,
        normals=None if mesh.normals is None else mesh.normals @ turn,
        faces=mesh.faces[:, ::-1] if mirrors else mesh.faces,
    )
