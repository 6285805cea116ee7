"""The way of a datum: a package imports only packages above it; libraries stay in their rooms."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAY = (
    *("runtime", "shapes", "tokenizers", "data", "models", "training", "sampling", "checkpoints"),
    *("interop", "pipeline", "evaluation", "tasks", "dry_run", "serving", "commands"),
)
COMMANDS = ("train", "prepare", "survey", "sample", "evaluate", "serve", "convert", "export")

# Libraries that a GPU image may lack, or that should be easy to replace, and the rooms they have.
ROOMS = {
    "tensorflow": (),
    "torch": (),
    "matplotlib": (),
    "tensorflow_datasets": ("data/",),
    "array_record": ("data/",),
    "grain": ("data/",),
    "pyarrow": tuple(
        f"data/sources/{file}.py"
        for file in ("arrow_scan", "parquet_rows", "parquet_scan", "table_columns")
    ),
    "lmdb": ("data/lmdb_file.py",),
    "fsspec": ("data/remote/",),
    "aiohttp": ("data/remote/",),
    "ray": ("tasks/ray_engine.py",),
    "ml_collections": ("runtime/config_flag.py", "runtime/config_fill.py"),
    "orbax": ("checkpoints/",),
    "flax.linen": ("models/", "tokenizers/", "runtime/sharding.py"),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "tensorboardX": ("training/metrics.py",),
}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("cogview_jax/**/*.py"))
FILES = [file for file in FILES if not file.startswith("cogview_jax/configs/")]
THIN_FILES = [f"cogview_jax/{command}.py" for command in COMMANDS]
COMMAND_FILES = [f"cogview_jax/commands/{command}.py" for command in COMMANDS]


def imports(source):
    """The dotted names that a source text imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)


def complaint(file, name):
    """What is wrong with `file` (cogview_jax/...) importing the dotted `name`; None if nothing."""
    place = file.removeprefix("cogview_jax/")
    here = place.split("/")[0].removesuffix(".py")
    if name.startswith("."):
        return "is relative"
    for library, rooms in ROOMS.items():
        if f"{name}.".startswith(f"{library}.") and not place.startswith(rooms):
            return f"is allowed only in {', '.join(rooms) or 'no file'}"
    if not name.startswith("cogview_jax."):
        free = {*sys.stdlib_module_names, "absl"}
        if file in (*THIN_FILES, *COMMAND_FILES) and name.split(".")[0] not in free:
            return "is work: a command only composes"
        return None
    target = name.split(".")[1]
    if target in COMMANDS:
        return "is a program"
    if target not in WAY:
        return "is not on the way"
    if here == "__init__":
        return None if target == "pipeline" else "is not the public face"
    if here == "__main__" or file in THIN_FILES:
        return None if target in ("commands", "runtime") else "is not for a thin program"
    if WAY.index(target) > WAY.index(here):
        return "lies below"
    return None


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_way(file):
    found = [(name, complaint(file, name)) for name in imports((ROOT / file).read_text())]
    assert [pair for pair in found if pair[1]] == []


def test_no_files_import_each_other_in_a_circle():
    modules = {file.removesuffix(".py").replace("/", "."): ROOT / file for file in FILES}
    graph = {}
    for module, file in modules.items():
        found = set(imports(file.read_text()))
        graph[module] = modules.keys() & (found | {name.rpartition(".")[0] for name in found})
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names those of a circle


def test_every_package_is_on_the_way():
    packages = {path.parent.name for path in ROOT.glob("cogview_jax/*/__init__.py")}
    assert packages - {"configs", "assets"} == set(WAY)


@pytest.mark.parametrize("file", COMMAND_FILES)
def test_commands_hold_no_logic(file):
    tree = ast.parse((ROOT / file).read_text())
    logic = (ast.ClassDef, ast.While, ast.Try, ast.Lambda)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, logic)] == []


def test_tensorflow_is_nowhere_beside_the_package():
    files = [
        *ROOT.glob("configs/**/*.py"),
        *ROOT.glob("bench/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
    ]
    # They run peers with the interpreters of the peers, which are not that of this package.
    for name in ("codec_contenders.py", "gpt2_contenders.py"):
        files.remove(ROOT / "bench" / name)
    found = {name.split(".")[0] for file in files for name in imports(file.read_text())}
    assert not found & {"tensorflow", "torch"}


@pytest.mark.parametrize(
    ("file", "name", "allowed"),
    [
        ("cogview_jax/models/block.py", "cogview_jax.runtime.sharding.constrain", True),
        ("cogview_jax/models/block.py", "cogview_jax.models.attention", True),
        ("cogview_jax/models/block.py", "cogview_jax.training.state", False),
        ("cogview_jax/models/block.py", "cogview_jax.sample", False),
        ("cogview_jax/models/block.py", "cogview_jax.utils", False),
        ("cogview_jax/models/block.py", ".attention", False),
        ("cogview_jax/models/block.py", "flax.linen", True),
        ("cogview_jax/training/state.py", "flax.linen", False),
        ("cogview_jax/training/state.py", "flax.struct", True),
        ("cogview_jax/data/sources/tfds_split.py", "tensorflow_datasets.core", True),
        ("cogview_jax/data/sources/tfds_split.py", "tensorflow.io", False),
        ("cogview_jax/sampling/filters.py", "grain", False),
        ("cogview_jax/commands/train.py", "cogview_jax.pipeline.cogview.CogView", True),
        ("cogview_jax/train.py", "cogview_jax.pipeline.cogview.CogView", False),
        ("cogview_jax/train.py", "cogview_jax.commands.train", True),
        ("cogview_jax/commands/train.py", "absl.flags", True),
        ("cogview_jax/commands/train.py", "json", True),
        ("cogview_jax/commands/train.py", "jax", False),
        ("cogview_jax/train.py", "cogview_jax.sample", False),
        ("cogview_jax/__init__.py", "cogview_jax.pipeline.cogview.load", True),
        ("cogview_jax/__init__.py", "cogview_jax.models.stack", False),
    ],
)
def test_the_rule_itself(file, name, allowed):
    assert (complaint(file, name) is None) == allowed


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\ndef f():\n    from c import d, e\n    from . import g\n"
    assert set(imports(source)) == {"a.b", "c.d", "c.e", "..g"}


ABSENT = "import sys; sys.modules.update(dict.fromkeys({names}))\n"


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_python_face_needs_no_data_libraries():
    names = ["tensorflow", "tensorflow_datasets", "grain", "array_record", "ml_collections"]
    run(ABSENT.format(names=names) + "import cogview_jax; cogview_jax.load")


@pytest.mark.parametrize("file", [*COMMAND_FILES, *THIN_FILES, "cogview_jax/__main__.py"])
def test_commands_open_without_jax(file):
    module = file.removesuffix(".py").replace("/", ".")
    run(ABSENT.format(names=["jax", "tensorflow"]) + f"import {module}\n")


def test_the_public_names_are_listed_and_there():
    import cogview_jax

    for name in ("CogView", "InputError", "SamplingConfig", "load"):
        assert name in dir(cogview_jax)
        assert getattr(cogview_jax, name).__name__ == name
