"""Imports assets of segdream into Blender, upright and facing the front view (-Y), and saves the scene.

    blender --background --python examples/blender_import.py -- bus.ply car.glb -o scene.blend
    blender --background --python examples/blender_import.py -- bus.glb -o bus.fbx
    blender --background --python examples/blender_import.py -- bus.ply -o bus.png

A .ply file of Gaussians becomes points with attributes (rotation, scale, colour, opacity), at which geometry nodes put
ellipsoids. That is a preview: Blender blends no Gaussians. A .glb mesh goes through Blender's own importer, whose axes
are right. -o chooses the result by its suffix: .blend, .fbx with textures inside, .glb, .usdc, or an image .png.

Everything before `main` is arithmetic that needs numpy alone.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PLY_TO_BLENDER = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Rotation from the frame of the PLY file (y down, z away from the front) to Blender's (z up, y away from it)."""
SH0 = 0.28209479177387814
"""Constant spherical harmonic."""
DEVIATIONS = 1.5
"""Radius of an ellipsoid in standard deviations."""
COLUMNS = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def read_ply(path: Path) -> dict[str, NDArray[np.float32]]:
    """The Gaussians of a PLY file in Blender's frame.

    Returns:
        position [n, 3]; rotation [n, 4], unit quaternions wxyz; scale [n, 3], standard deviations; color [n, 4],
        linear RGB and opacity.

    Raises:
        ValueError: it holds no Gaussians in 32-bit floats.
    """
    content = path.read_bytes()
    head, _, data = content.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    counts = [int(words[2]) for words in lines if words[:2] == ["element", "vertex"]]
    names = [words[2] for words in lines if words[:2] == ["property", "float"]]
    if ["format", "binary_little_endian", "1.0"] not in lines or not counts or not {*COLUMNS} <= {*names}:
        raise ValueError(f"{path} holds no Gaussians in 32-bit floats: segdream export {path} -o asset.ply")
    rows = np.frombuffer(data, dtype=[(name, "<f4") for name in names], count=counts[0])
    found = np.stack([rows[name] for name in COLUMNS], axis=1).astype(np.float64)
    position, sh0, logit, log_scale, quaternion = np.split(found, [3, 6, 7, 10], axis=1)
    color = np.concatenate([srgb_to_linear(0.5 + SH0 * sh0), 1 / (1 + np.exp(-logit))], axis=1)
    values = {
        "position": position @ PLY_TO_BLENDER.T,
        "rotation": turn(quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)),
        "scale": np.exp(log_scale),
        "color": color,
    }
    return {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}


def turn(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternions wxyz [n, 4] after `PLY_TO_BLENDER`, which is a turn by -90° about x."""
    w, x, y, z = quaternions.T
    c, s = np.sqrt(0.5), -np.sqrt(0.5)
    return np.stack([c * w - s * x, c * x + s * w, c * y - s * z, c * z + s * y], axis=1)


def srgb_to_linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear light of sRGB values, which Blender's attributes hold (IEC 61966-2-1)."""
    clipped = np.clip(values, 0, 1)
    light: NDArray[np.float64] = np.where(clipped <= 0.04045, clipped / 12.92, ((clipped + 0.055) / 1.055) ** 2.4)
    return light


def main(arguments: list[str]) -> None:
    """Imports the assets side by side, and saves the result."""
    import bpy

    parser = argparse.ArgumentParser(prog="blender_import.py", description="Import assets of segdream into Blender.")
    parser.add_argument("assets", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    for index, path in enumerate(options.assets):
        before = set(bpy.data.objects)
        if path.suffix.lower() == ".ply":
            add_gaussians(path)
        else:
            bpy.ops.import_scene.gltf(filepath=str(path))
        for each in set(bpy.data.objects) - before:
            if each.parent is None:
                each.location.x += 2.5 * index
    save(options.output.resolve(), len(options.assets))


def add_gaussians(path: Path) -> None:
    """Adds a point cloud with the Gaussians of a file, and nodes that show them as ellipsoids."""
    import bpy

    gaussians = read_ply(path)
    mesh = bpy.data.meshes.new(path.stem)
    mesh.vertices.add(len(gaussians["position"]))
    mesh.vertices.foreach_set("co", gaussians["position"].ravel())
    for name, kind, key in (("rotation", "QUATERNION", "value"), ("scale", "FLOAT_VECTOR", "vector")):
        mesh.attributes.new(name, kind, "POINT").data.foreach_set(key, gaussians[name].ravel())
    mesh.attributes.new("color", "FLOAT_COLOR", "POINT").data.foreach_set("color", gaussians["color"].ravel())
    cloud = bpy.data.objects.new(path.stem, mesh)
    bpy.context.collection.objects.link(cloud)
    cloud.modifiers.new("Gaussians", "NODES").node_group = ellipsoid_nodes()


def ellipsoid_nodes():  # type: ignore[no-untyped-def]
    """Geometry nodes: an icosphere at each point, turned and stretched, in a material of the point's colour."""
    import bpy

    group = bpy.data.node_groups.new("Gaussians", "GeometryNodeTree")
    group.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    add, link = group.nodes.new, group.links.new
    given, result = add("NodeGroupInput"), add("NodeGroupOutput")
    points, ball, instances = (
        add(f"GeometryNode{name}") for name in ("MeshToPoints", "MeshIcoSphere", "InstanceOnPoints")
    )
    ball.inputs["Radius"].default_value, ball.inputs["Subdivisions"].default_value = DEVIATIONS, 2
    rotation, scale = add("GeometryNodeInputNamedAttribute"), add("GeometryNodeInputNamedAttribute")
    rotation.data_type, rotation.inputs["Name"].default_value = "QUATERNION", "rotation"
    scale.data_type, scale.inputs["Name"].default_value = "FLOAT_VECTOR", "scale"
    coloured = add("GeometryNodeSetMaterial")
    coloured.inputs["Material"].default_value = colour_material()
    link(given.outputs[0], points.inputs["Mesh"])
    link(points.outputs[0], instances.inputs["Points"])
    link(ball.outputs["Mesh"], coloured.inputs["Geometry"])
    link(coloured.outputs["Geometry"], instances.inputs["Instance"])
    link(rotation.outputs["Attribute"], instances.inputs["Rotation"])
    link(scale.outputs["Attribute"], instances.inputs["Scale"])
    link(instances.outputs[0], result.inputs[0])
    return group


def colour_material():  # type: ignore[no-untyped-def]
    """A material that glows in the colour of its instance, since the colours of an asset hold their light."""
    import bpy

    material = bpy.data.materials.new("Gaussians")
    material.use_nodes = True
    nodes, link = material.node_tree.nodes, material.node_tree.links.new
    nodes.clear()
    attribute, clear, glow, mix, result = (
        nodes.new(f"ShaderNode{name}")
        for name in ("Attribute", "BsdfTransparent", "Emission", "MixShader", "OutputMaterial")
    )
    attribute.attribute_type, attribute.attribute_name = "INSTANCER", "color"
    link(attribute.outputs["Color"], glow.inputs["Color"])
    link(attribute.outputs["Alpha"], mix.inputs["Fac"])
    link(clear.outputs[0], mix.inputs[1])
    link(glow.outputs[0], mix.inputs[2])
    link(mix.outputs[0], result.inputs["Surface"])
    return material


def save(path: Path, count: int) -> None:
    """Saves the scene in the format of the suffix.

    Raises:
        ValueError: it is none of those of the module's docstring.
    """
    import bpy

    suffix = path.suffix.lower()
    if suffix == ".blend":
        bpy.ops.wm.save_as_mainfile(filepath=str(path))
    elif suffix == ".fbx":
        light_materials()
        bpy.ops.export_scene.fbx(filepath=str(path), path_mode="COPY", embed_textures=True)
    elif suffix == ".glb":
        bpy.ops.export_scene.gltf(filepath=str(path))
    elif suffix == ".usdc":
        light_materials()
        bpy.ops.wm.usd_export(filepath=str(path))
    elif suffix == ".png":
        render(path, count)
    else:
        raise ValueError(f"{path} has none of the suffixes .blend .fbx .glb .usdc .png")


def light_materials() -> None:
    """Puts textures into lit materials: an asset's own are unlit, and the exporters of FBX and USD leave these out."""
    import bpy

    for material in bpy.data.materials:
        nodes = material.node_tree.nodes
        textures = [node for node in nodes if node.type == "TEX_IMAGE"]
        for node in [node for node in nodes if node not in textures]:
            nodes.remove(node)
        surface, result = nodes.new("ShaderNodeBsdfPrincipled"), nodes.new("ShaderNodeOutputMaterial")
        surface.inputs["Roughness"].default_value = 1.0
        for texture in textures[:1]:
            material.node_tree.links.new(texture.outputs["Color"], surface.inputs["Base Color"])
        material.node_tree.links.new(surface.outputs[0], result.inputs["Surface"])


def render(path: Path, count: int) -> None:
    """Renders a front view of a row of assets with Cycles, on a transparent background."""
    import bpy

    scene, middle = bpy.context.scene, 2.5 * (count - 1) / 2
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.data.type, camera.data.ortho_scale = "ORTHO", 2.5 * count
    camera.location, camera.rotation_euler = (middle, -5, 0), (np.pi / 2, 0, 0)
    scene.collection.objects.link(camera)
    scene.render.film_transparent = True
    scene.camera, scene.render.engine = camera, "CYCLES"
    scene.cycles.samples, scene.cycles.transparent_max_bounces = 16, 64
    scene.view_settings.view_transform = "Standard"
    scene.render.resolution_x, scene.render.resolution_y = 400 * count, 400
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:])
