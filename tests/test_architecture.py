"""The layers, and the rules of the code, checked in the source."""

import ast
import graphlib
import hashlib
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from segdream_cli.config import MINI, SD21

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "segdream_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [file.relative_to(PACKAGE).with_suffix("").as_posix() for file in FILES]

LAYERS = (
    ("errors",),
    ("util",),
    ("config",),
    ("splats",),
    ("formats",),
    ("render",),
    ("accel",),
    ("pointe",),
    ("priors",),
    ("distill",),
    ("refine",),
    ("optimize",),
    ("evaluate", "mesh", "simplify", "viewer"),
    ("runs",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
"""Subpackages from the bottom up: one may import those above it in this table, and none beside or below it."""
VERSION = "segdream_cli.__version__"
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}

HEAVY = {
    "diffusers": ("priors/stable_diffusion",),
    "transformers": ("priors/text", "evaluate/clip_metric", "evaluate/image_reward"),
    "gsplat": ("render/raster/cuda", "optimize/density", "util/compat"),
    "imageio_ffmpeg": ("render/video",),
    "numba": (
        "render/raster/cpu",
        "render/raster/kernels",
        "render/raster/kernel_cache",
        "simplify/kernels",
        "util/compat",
    ),
    "openvino": ("accel/openvino_engine",),
    "plyfile": ("formats/ply",),
    "scipy": ("evaluate/*", "formats/points", "mesh/surface", "mesh/texture", "optimize/start", "simplify/*"),
    "trimesh": ("mesh/surface",),
    "typer": ("cli/*",),
    "rich": ("cli/*",),
    "huggingface_hub": ("util/hub", "util/compat"),
    "filelock": ("util/files",),
    "fsspec": ("runs/address",),
    "ray": ("runs/cluster", "util/compat"),
    "OpenEXR": ("render/exr",),
}
PURE = (
    "distill/schedule",
    "distill/guidance",
    "distill/sctd",
    "distill/view_prompts",
    "optimize/losses",
    "refine/losses",
    "refine/repaint",
    "refine/split",
    "refine/views",
    "render/cameras",
)
"""The mathematics: torch and nothing heavier, no files, no logging."""


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
    """The layer of an imported name of the package; its version number is everyone's."""
    parts = dotted.split(".")[1:]
    if dotted == VERSION:
        return 0
    return LAYER[parts[0]] if parts and parts[0] in LAYER else LAYER["__init__"]


def module_of(dotted):
    """The file of an imported name of the package, as in `NAMES`."""
    path = dotted.removeprefix("segdream_cli").strip(".").replace(".", "/")
    candidates = [path, f"{path}/__init__", path.rpartition("/")[0], f"{path.rpartition('/')[0]}/__init__".lstrip("/")]
    return next(name for name in candidates if name in NAMES)


each_file = pytest.mark.parametrize(("file", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)


def test_layers_name_every_subpackage():
    assert {name.split("/")[0] for name in NAMES} == set(LAYER)


@each_file
def test_imports_point_down(file, name):
    own = name.split("/")[0]
    theirs = [one for one in imports(file) if one.split(".")[0] == "segdream_cli"]
    assert not [one for one in theirs if layer_of(one) >= LAYER[own] and one.split(".")[1] not in (own, "__version__")]


def test_imports_have_no_circles():
    used = {
        name: {module_of(one) for one in imports(file) if one.split(".")[0] == "segdream_cli" and one != VERSION}
        - {name}
        for file, name in zip(FILES, NAMES, strict=True)
    }
    graphlib.TopologicalSorter(used).prepare()  # raises CycleError with the circle


@each_file
def test_heavy_libraries_are_imported_in_their_place_only(file, name):
    for one in imports(file):
        places = HEAVY.get(one.split(".")[0])
        if places is None:
            continue
        allowed = any(fnmatch(name, place) for place in places)
        assert allowed, f"{name} imports {one}"


@each_file
def test_private_interfaces_of_libraries_are_used_in_compat_only(file, name):
    """By the underscore in an imported name; `tests/unit/test_compat.py` tests each of them."""
    if name == "util/compat":
        return
    for one in imports(file):
        library, *parts = one.split(".")
        assert library in ("segdream_cli", "__future__") or not [part for part in parts if part.startswith("_")], one


@pytest.mark.parametrize("name", PURE)
def test_mathematics_needs_torch_only(name):
    found = {one.split(".")[0] for one in imports(PACKAGE / f"{name}.py")}
    assert found - set(sys.stdlib_module_names) <= {"torch", "jaxtyping", "segdream_cli"}
    assert not {"logging", "io", "sys"} & found


@each_file
def test_names_of_priors_are_in_one_place(file, name):
    if name in ("config/sections", "priors/checkpoint"):
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
def test_functions_are_short(file, name):
    for part in ast.walk(tree(file)):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            stated = isinstance(part.body[0], ast.Expr) and len(part.body) > 1  # a docstring is not code
            length = part.end_lineno - part.body[int(stated)].lineno + 1
            assert length <= 60, f"the body of {part.name} has {length} lines"


@each_file
def test_nothing_prints(file, name):
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            assert part.func.id not in ("print", "input", "eval", "exec"), f"{name}:{part.lineno}"
        if isinstance(part, ast.Attribute) and part.attr == "write" and not name.startswith(("cli/", "__main__")):
            assert ast.unparse(part.value) not in ("sys.stdout", "sys.stderr"), f"{name}:{part.lineno}"


def unguarded_writes(source):
    """Lines of calls that write a file other than the temporary one of an enclosing `with atomic_write(...) as name` or
    `cache_write`.

    A call writes if it is `write_text`, `write_bytes`, `tofile`, `savez`, `save_file`, `save` of an image (of a call's
    value), `open` in a mode that writes, or a `ZipFile` that does. In-memory streams, `name = io.BytesIO()`, are free.
    """
    found = []

    def visit(node, allowed):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            allowed = {
                part.targets[0].id
                for part in ast.walk(node)
                if isinstance(part, ast.Assign) and ast.unparse(part.value) == "io.BytesIO()"
            }
        if isinstance(node, ast.With):
            for item in node.items:  # in order: a later item may open what an earlier one yields
                visit(item.context_expr, allowed)
                if (
                    ast.unparse(item.context_expr).startswith(("atomic_write(", "cache_write("))
                    and item.optional_vars is not None
                ):
                    allowed = allowed | {item.optional_vars.id}
            for part in node.body:
                visit(part, allowed)
            return
        if isinstance(node, ast.Call) and (target := written(node)) is not None and target not in allowed:
            found.append(node.lineno)
        for part in ast.iter_child_nodes(node):
            visit(part, allowed)

    visit(ast.parse(source), frozenset())
    return found


def written(call):
    """The target of a call that writes a file, as source; None for other calls."""
    attribute = isinstance(call.func, ast.Attribute)
    name = call.func.attr if attribute else getattr(call.func, "id", "")
    receiver = ast.unparse(call.func.value) if attribute else ""
    first = ast.unparse(call.args[0]) if call.args else ""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [str(each.value) for each in arguments if isinstance(each, ast.Constant)]
    writes = any(re.fullmatch("[rbt]*[wax+][bt+]*", mode) for mode in modes)
    if name in ("write_text", "write_bytes"):
        return receiver
    if name in ("tofile", "savez", "savez_compressed", "save_file"):
        return first
    if name == "save" and attribute and isinstance(call.func.value, ast.Call):
        return first
    if name == "open" and writes:
        return receiver or first
    return first if name == "ZipFile" and writes else None


WRITES_ELSEWHERE = {
    "formats/lod": 2,  # into the folder of `atomic_folder`
    "formats/usd": 2,  # the child process fills a scratch folder of its parent
    "runs/carry": 1,  # a scratch file grows by the pieces that arrive, and is renamed once it is whole
    "render/video": 1,  # the palette of a GIF, in a scratch file between two passes
    "runs/run_dir": 1,  # a line is added to a run's events
    "util/download": 1,  # a partial download grows until its hash is right
}


@each_file
def test_files_are_written_through_one_door(file, name):
    """Every file is written inside `with atomic_write(...)`, whole or not at all, but for `WRITES_ELSEWHERE`."""
    if name == "util/files":
        return
    found = unguarded_writes(file.read_text(encoding="utf-8"))
    assert len(found) == WRITES_ELSEWHERE.get(name, 0), f"{name}: lines {found}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.write_text(text)", True),
        ("temporary.write_text(text)", False),
        ("path.open('wb').write(data)", True),
        ("path.open(mode='a')", True),
        ("open(path, 'w')", True),
        ("path.open('rb')", False),
        ("zipfile.ZipFile(path, 'w')", True),
        ("zipfile.ZipFile(temporary, 'w')", False),
        ("zipfile.ZipFile(path)", False),
        ("np.savez(path, a=1)", True),
        ("Image.fromarray(pixels).save(path)", True),
        ("Image.fromarray(pixels).save(stream)", False),
    ],
)
def test_unguarded_writes_are_found_beside_guarded_ones(line, found):
    source = f"""
def write(path, text):
    stream = io.BytesIO()
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        {line}
"""
    assert bool(unguarded_writes(source)) == found
    after = f"def write(path):\n    with atomic_write(path) as temporary:\n        pass\n    {line}\n"
    assert unguarded_writes(after) or "rb" in line or line == "zipfile.ZipFile(path)"


def test_the_command_line_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-c", "import segdream_cli.cli"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "segdream_cli" in loaded
    heavy = {
        "torch",
        "numpy",
        "diffusers",
        "transformers",
        "gsplat",
        "numba",
        "scipy",
        "PIL",
        "plyfile",
        "safetensors",
        "ray",
    }
    assert not heavy & loaded


def test_every_import_is_a_declared_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        part.split(">")[0].split("<")[0].split("=")[0].strip().replace("-", "_")
        for part in project["dependencies"] + project["optional-dependencies"]["cluster"]
    }
    used = {one.split(".")[0] for file in FILES for one in imports(file)} - set(sys.stdlib_module_names)
    provided = {"PIL": "pillow"}
    assert {provided.get(name, name) for name in used} - {"segdream_cli"} <= declared


@pytest.mark.parametrize("name", [MINI, "judge"])
def test_listed_hashes_are_those_of_the_embedded_weights(name):
    """They are refused otherwise."""
    data = PACKAGE / "data"
    files = sorted(path for path in (data / name).rglob("*") if path.is_file())
    found = {path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = (data / f"{name}.sha256").read_text(encoding="utf-8").splitlines()
    regenerate = f"cd segdream_cli/data && find {name} -type f | LC_ALL=C sort | xargs sha256sum > {name}.sha256"
    assert lines == [f"{digest}  {file}" for file, digest in found.items()], regenerate
