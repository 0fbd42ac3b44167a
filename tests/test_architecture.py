"""The layers, and the rules that a reader may rely on, looked up in the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from segdream_cli.config import MINI, SD21

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segdream_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [file.relative_to(PACKAGE).with_suffix("").as_posix() for file in FILES]

LAYERS = {
    0: ("__init__", "errors", "settings", "config", "profile", "files", "memory", "download"),
    1: ("schedule", "guidance", "distill", "view_prompts", "cameras", "losses"),
    2: (
        "gaussians",
        "densify",
        "diffusion",
        "replay",
        "rewrites",
        "estimate",
        "text",
        "hub",
        "weights",
        "pointe",
        "initial",
        "raster",
        "formats",
    ),
    3: ("asset", "prior", "report", "pipeline"),
    4: ("run_dir", "images", "video", "mesh", "serve"),
    5: ("cli", "__main__"),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}

HEAVY = {
    "diffusers": ("diffusion",),
    "transformers": ("text",),
    "gsplat": ("raster/cuda", "densify"),
    "imageio_ffmpeg": ("video",),
    "numba": ("raster/cpu", "raster/kernels"),
    "plyfile": ("formats/ply",),
    "scipy": ("initial",),
    "typer": ("cli/*",),
    "rich": ("cli/*",),
    "huggingface_hub": ("hub",),
    "filelock": ("pointe/checkpoint", "raster/cuda"),
}


def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file):
    """Every dotted name that a file imports, wherever in it."""
    found = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer_of(dotted):
    """The layer of an imported name of the package."""
    parts = dotted.split(".")[1:]
    return LAYER[parts[0]] if parts and parts[0] in LAYER else LAYER["__init__"]


each_file = pytest.mark.parametrize(("file", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)


def test_every_file_has_a_layer():
    assert {name.split("/")[0] for name in NAMES} == set(LAYER)


@each_file
def test_imports_point_down(file, name):
    own = LAYER[name.split("/")[0]]
    upward = [one for one in imports(file) if one.split(".")[0] == "segdream_cli" and layer_of(one) > own]
    assert not upward


@each_file
def test_no_file_imports_itself_through_the_package(file, name):
    """Within a layer there are no circles: a file may use others of its layer only if those do not use it."""
    own = name.split("/")[0]
    used = {one.split(".")[1] for one in imports(file) if one.startswith("segdream_cli.")}
    for other in used & set(LAYERS[LAYER[own]]) - {own}:
        back = [
            theirs
            for path, theirs in zip(FILES, NAMES, strict=True)
            if theirs.split("/")[0] == other
            and any(one.split(".")[:2] == ["segdream_cli", own] for one in imports(path))
        ]
        assert not back, f"{own} and {other} import each other"


@each_file
def test_heavy_libraries_are_imported_in_their_place_only(file, name):
    for one in imports(file):
        places = HEAVY.get(one.split(".")[0])
        if places is None:
            continue
        allowed = name in places or (places == ("cli/*",) and name.startswith("cli/"))
        assert allowed, f"{name} imports {one}"


@each_file
def test_layer_one_is_torch_only(file, name):
    if LAYER[name.split("/")[0]] != 1:
        return
    outside = {one.split(".")[0] for one in imports(file)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "jaxtyping", "segdream_cli"}
    assert not {"logging", "io", "sys"} & {one.split(".")[0] for one in imports(file)}


@each_file
def test_names_of_priors_are_in_one_place(file, name):
    if name in ("config", "weights"):
        return
    node = tree(file)
    documentation = {
        id(body[0].value)
        for part in ast.walk(node)
        if isinstance(body := getattr(part, "body", None), list) and body and isinstance(body[0], ast.Expr)
    }
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in documentation:
            words = part.value.replace("-", " ").replace("'", " ").replace('"', " ").split()
            assert not {MINI, SD21} & set(words), f"{name}:{part.lineno}"


@each_file
def test_files_and_functions_are_short(file, name):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= 400
    for part in ast.walk(tree(file)):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            stated = isinstance(part.body[0], ast.Expr) and len(part.body) > 1  # a docstring is no code
            length = part.end_lineno - part.body[int(stated)].lineno + 1
            assert length <= 60, f"the body of {part.name} has {length} lines"


@each_file
def test_nothing_prints(file, name):
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            assert part.func.id not in ("print", "input", "eval", "exec"), f"{name}:{part.lineno}"
        if isinstance(part, ast.Attribute) and part.attr == "write" and not name.startswith("cli/"):
            assert ast.unparse(part.value) not in ("sys.stdout", "sys.stderr"), f"{name}:{part.lineno}"


@each_file
def test_files_are_written_through_one_door(file, name):
    """Whatever writes goes through `files.replacing`; the one exception is the line that is added to a run's events."""
    if name in ("files", "run_dir"):
        return
    source = file.read_text(encoding="utf-8")
    writes = [
        part
        for part in ast.walk(tree(file))
        if isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr in ("write_text", "write_bytes", "tofile", "savez", "save_file")
    ]
    assert not writes or "replacing(" in source


def test_the_command_line_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-c", "import segdream_cli.cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "segdream_cli" in loaded
    heavy = {"torch", "numpy", "diffusers", "transformers", "gsplat", "numba", "scipy", "PIL", "plyfile", "safetensors"}
    assert not heavy & loaded


def test_every_import_is_a_declared_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        part.split(">")[0].split("<")[0].split("=")[0].strip().replace("-", "_") for part in project["dependencies"]
    }
    used = {one.split(".")[0] for file in FILES for one in imports(file)} - set(sys.stdlib_module_names)
    provided = {"PIL": "pillow", "click": "typer"}
    assert {provided.get(name, name) for name in used} - {"segdream_cli"} <= declared
