"""The documentation: its links, commands and Python are tried, its generated pages are current."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cogview_jax
import tiny
from cogview_jax.__main__ import COMMANDS
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.options import SamplingKeywords
from cogview_jax.tasks.codec import CodecTask
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers import layout as layouts
from cogview_jax.tokenizers.codecs.codec import normalise
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.quantisers.learned import Learned
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.state import initial_state, make_state, state_shapes
from cogview_jax.training.step import make_step

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    ROOT / "cogview_jax" / "assets" / "bundles" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """The code blocks of a page in any of the languages."""
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


# ---- links


def prose(page):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found, seen = set(), Counter()
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        text = LINK.sub(lambda link: link[0][1 : link[0].index("](")], heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page, target):
    """What is wrong with a link from `page`; None if nothing."""
    if target.startswith("https://"):
        return None
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.is_relative_to(ROOT) or not there.exists():
        return f"{target}: there is no such file in the repository"
    if anchor and anchor not in anchors(there):
        return f"{target}: {name_of(there)} has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    targets = LINK.findall(prose(page))
    assert [problem for target in targets if (problem := broken(page, target))] == []


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(prose(page)))
        ahead += [
            (page.parent / t).resolve() for t in targets if t.endswith(".md") and ":" not in t
        ]
    assert set(PAGES) <= reached


def test_the_checks_of_links_find_what_is_broken(tmp_path):
    page = ROOT / "docs" / "README.md"
    assert broken(page, "quickstart.md#train-the-demo") is None
    assert "no such heading" in broken(page, "quickstart.md#fly-to-the-moon")
    assert "no such file" in broken(page, "slowstart.md")
    assert "no such file" in broken(page, "../../secret.md")


# ---- commands

#: Parses each list of arguments of one command in a process of its own, which starts as a fork, and
#: prints for each what absl complains of. Config files are loaded, and their overrides checked.
PARSER = """
import importlib, json, os, sys
from absl import flags
from cogview_jax.runtime import command_line
from cogview_jax.runtime.config import subscripted
name, argument_lists = sys.argv[1], json.load(sys.stdin)
importlib.import_module(f"cogview_jax.commands.{name}")
if "config" in flags.FLAGS:
    importlib.import_module("cogview_jax.tasks.experiment")  # once, and not in every fork
for arguments in argument_lists:
    if (child := os.fork()) == 0:
        sys.argv = [name, *map(subscripted, arguments)]
        try:
            rest = flags.FLAGS(sys.argv)[1:]
            problem = f"unexpected {rest}" if rest else ""
        except Exception as error:
            problem = " ".join(str(error.__context__ or error).split())
        sys.stdout.write(json.dumps(problem) + "\\n")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def lines_of(code):
    """The commands of a shell block as lists of words; comments go, continued lines are joined."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def command_of(words):
    """(name, arguments) of the cogview command that stands in a line; None if there is none."""
    for i, word in enumerate(words):
        if Path(word).name == "cogview" and i + 1 < len(words):
            return words[i + 1], words[i + 2 :]
        if word.startswith("cogview_jax.") and words[i - 1] == "-m":
            return word.removeprefix("cogview_jax."), words[i + 1 :]
        if word == "launch/tpu_pod.sh" and words[i + 1 : i + 2] == ["run"]:
            return "train", words[i + 2 :]
    return None


def problems(name, argument_lists):
    """What absl complains of in each list of arguments of a command; "" where of nothing."""
    told = subprocess.run(
        [sys.executable, "-c", PARSER, name],
        input=json.dumps(argument_lists),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    return [json.loads(line) for line in told.stdout.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_the_flags_that_are_shown(name):
    shown = [
        (name_of(page), found[1])
        for page in PAGES
        for code in blocks(page, "sh", "bash")
        for words in lines_of(code)
        if (found := command_of(words)) and found[0] == name
    ]
    assert shown, f"no page shows {name}"
    found = problems(name, [arguments for _, arguments in shown])
    assert len(found) == len(shown)
    assert [(*one, problem) for one, problem in zip(shown, found, strict=True) if problem] == []


def test_lines_of_shell_blocks_start_something_that_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    programs = {"curl", "pip", "sbatch", "kubectl", "apt-get", "dpkg-deb"}
    for page in PAGES:
        for words in (words for code in blocks(page, "sh", "bash") for words in lines_of(code)):
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if not words or words[0] in programs or words[0] == "cd":
                continue
            if words[0] == "make":
                assert set(words[1:]) <= targets | {".venv"}, (name_of(page), words)
            elif words[:2] == [".venv/bin/python", "-m"]:
                known = importlib.util.find_spec(words[2]) is not None
                assert known, (name_of(page), words)
            elif command := command_of(words):
                assert command[0] in COMMANDS, (name_of(page), words)
            else:
                program = words[1] if words[0] == ".venv/bin/python" else words[0]
                assert (ROOT / program).is_file(), (name_of(page), words)


def test_the_checks_of_commands_find_what_is_wrong():
    found = problems(
        "train",
        [
            ["--config", "demo", "--workdir", "x", "--config.train.steps=3"],
            ["--config", "demo", "--workdirs", "x"],
            ["--config", "no_such_config", "--workdir", "x"],
            ["--config", "demo", "--config.train.steeps=3"],
            ["--config", "demo", "x"],
        ],
    )
    assert [bool(problem) for problem in found] == [False, True, True, True, True]
    assert list(lines_of("a b \\\n  c # d\n\n# e\nf 'g h'")) == [["a", "b", "c"], ["f", "g h"]]
    assert command_of(["x", "--", ".venv/bin/cogview", "train", "--a"]) == ("train", ["--a"])
    assert command_of(["python", "-m", "cogview_jax.sample", "--b"]) == ("sample", ["--b"])
    assert command_of(["make", "demo"]) is None


# ---- Python


#: Without any part, but with all methods.
MODEL = CogView()


def parameters(called):
    """The names of what a function takes, the keywords of sampling among them."""
    found = inspect.signature(called).parameters
    more = SamplingKeywords.__annotations__ if "keywords" in found else ()
    return [*(name for name in found if name != "keywords"), *more]


#: What pages show beside the package, for those who have it; the checks have not.
OTHERS = ("openai",)


def complaints(code):
    """What a block of Python imports, or calls on a model that it loads, that does not exist."""
    tree, models = ast.parse(code), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module not in OTHERS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    yield f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
            "cogview_jax.load"
        ):
            models |= {target.id for target in node.targets}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owners = {"cogview_jax": cogview_jax, **dict.fromkeys(models, MODEL)}
            owner = owners.get(node.value.id)
            if owner is not None and node.attr not in dir(owner):
                yield f"{node.value.id} has no {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method, holder = node.func.attr, ast.unparse(node.func.value)
            if holder in models and method in dir(MODEL):
                called = getattr(MODEL, method)
            elif holder == "cogview_jax" and method in ("load", "SamplingConfig"):
                called = getattr(cogview_jax, method)
            else:
                continue
            known = parameters(called)
            yield from (f"{method} takes no {k.arg}" for k in node.keywords if k.arg not in known)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_name_what_exists(page):
    for code in blocks(page, "python"):
        assert list(complaints(code)) == []


def test_the_checks_of_python_find_what_is_wrong():
    load = "import cogview_jax\nmodel = cogview_jax.load('x')\n"
    assert list(complaints(load + "model.generate(['a'], num_images=3)")) == []
    assert list(complaints(load + "model.paint(['a'])")) == ["model has no paint"]
    assert list(complaints(load + "model.generate(['a'], count=3)")) == ["generate takes no count"]
    assert list(complaints("from cogview_jax import thing")) == ["cogview_jax has no thing"]


def test_python_of_the_reference_has_the_signatures_of_the_code():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \|", page, re.MULTILINE)
    assert {"generate", "complete", "caption", "score", "super_resolve"} <= {m for m, _ in rows}
    for method, arguments in rows:
        named = [a.partition("=")[0] for a in arguments.split(", ") if a != "*"]
        own = parameters(getattr(MODEL, method))
        assert set(named) <= set(own), method
        positional = [a.partition("=")[0] for a in arguments.partition(", *")[0].split(", ")]
        assert positional == own[: len(positional)], method
    fields = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.MULTILINE)
    assert {name: float(value) for name, value in fields} == vars(cogview_jax.SamplingConfig())


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_the_python_face_runs_as_it_is_shown(name, chain, tmp_path, monkeypatch):
    """README's on the shipped bundle. A bundle of a few steps generates noise, but all of it."""
    (code,) = (code for code in blocks(ROOT / name, "python"))
    bundle = str(chain.run / "bundle")
    monkeypatch.chdir(tmp_path)
    assert ('"emoji"' if name == "README.md" else '"runs/demo/bundle"') in code
    names = {}
    exec(compile(code.replace("runs/demo/bundle", bundle), name, "exec"), names)
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
    if name == "README.md":
        grid = names["model"].codec.config.grid
        assert [len(row) for row in names["images"]] == [4, 4]
        assert names["codes"].shape == (4, grid, grid)
        assert len(names["completed"]) == 4


# ---- the examples of CONTRIBUTING

#: An image tokenizer in whose loss a row depends on the whole batch.
ENTROPIC = dataclasses.replace(tiny.CODEC, quantiser=Learned(entropy_weight=0.5))


@pytest.fixture(scope="module")
def examples():
    """What the examples define, and the tasks as they were."""
    names, tasks = {}, dict(layouts.TASKS)
    files = {path.read_text() for path in (ROOT / "tests" / "examples").glob("*.py")}
    for code in blocks(ROOT / "CONTRIBUTING.md", "python"):
        if code in files:
            continue  # it is run by the test beside it; a kind of source defined here would stay
        assert code.count("\n") <= 40
        exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    yield names
    layouts.TASKS.clear()
    layouts.TASKS.update(tasks)


@pytest.mark.parametrize("name", ["archive.py", "new_benchmark.py"])
def test_examples_that_are_files_are_these_files(name):
    """They are run by the tests beside them."""
    example = (ROOT / "tests" / "examples" / name).read_text()
    assert example in blocks(ROOT / "CONTRIBUTING.md", "python")


def test_the_example_of_a_task(examples):
    vocabulary = Vocabulary(10, 5)  # [BOI1] 16, [EOI1] 19, [TINY] 29
    layout = make_layout(LayoutConfig("unconditional", text_length=3, grid=2), vocabulary)
    row = layout.example({"text": [0, 4], "image": [9, 0, 3, 7]})
    assert row.tokens.tolist() == [29, 16, 9, 0, 3, 7]
    assert row.targets.tolist() == [16, 9, 0, 3, 7, 19]
    assert row.image_weights.tolist() == [0, 1, 1, 1, 1, 0]


def test_the_example_of_a_loss(examples):
    inner = CodecObjective(ENTROPIC.module(), global_batch=tiny.BATCH)
    objective = examples["Penalised"](inner.codec, 0.01, global_batch=tiny.BATCH)
    state, key = jax.jit(lambda: unbox(inner.init(jax.random.key(0))))(), jax.random.key(0)
    batch = (tiny.images(0), jnp.arange(tiny.BATCH))
    whole, base = (float(one.sums(*state, *batch, key).loss) for one in (objective, inner))
    squares = sum(float(np.sum(np.square(p))) for p in jax.tree.leaves(state.params))
    assert whole == pytest.approx(base + 0.01 * squares * tiny.BATCH, rel=1e-5)


@pytest.mark.parametrize("name", ["Penalised", "LearnedVariance"])
def test_examples_of_objectives_may_be_accumulated(examples, name):
    """Also where the loss of a row depends on the whole batch: one step gives the same."""
    settings = {"global_batch": tiny.BATCH}
    if name == "Penalised":
        objective = examples[name](ENTROPIC.module(), 0.01, **settings)
    else:
        objective = examples[name](CodecObjective(ENTROPIC.module(), **settings))
    sgd, rate = optax.sgd(1.0), optax.constant_schedule(1.0)
    state = jax.jit(lambda: unbox(initial_state(objective, sgd, 0)))()
    after = [
        jax.jit(make_step(objective, sgd, rate, seed=0, accumulate=parts))(state, tiny.images(0))
        for parts in (1, 2)
    ]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    (one, metrics), (other, in_parts) = after
    jax.tree.map(close, one.params, other.params)
    close(metrics["loss"], in_parts["loss"])


def test_the_example_of_a_trainable_part(examples, chain, tmp_path):
    """It learns; and a task reads and writes bundles that hold nothing of it."""
    experiment = read_experiment(json.loads((chain.codec / "config.json").read_text()))
    task = CodecTask(experiment, Workdir(chain.codec))
    inner = task.objective
    task.objective = examples["LearnedVariance"](inner)
    sgd, mesh = optax.sgd(0.1), make_mesh(MeshConfig(), jax.devices()[:1])
    given = Bundle(chain.codec / "bundle")
    with jax.set_mesh(mesh):
        shapes = state_shapes(task.objective, sgd, mesh)
        state = task.initial(given, make_state(task.objective, sgd, shapes, 0))
        rng, size = np.random.default_rng(0), experiment.model.image_size
        images = rng.integers(256, size=(experiment.train.global_batch, size, size, 3))
        batch = ImageExample(images.astype(np.uint8))
        step = jax.jit(make_step(task.objective, sgd, optax.constant_schedule(0.1), seed=0))
        after, metrics = step(state, batch)
    assert metrics["loss"] > 0
    moved = -0.1 * (1 - float(metrics["loss"]))
    assert float(after.params["log_variance"]) == pytest.approx(moved, rel=1e-5)
    for one, name in ((state, "start"), (after, "trained")):
        task.write(one, tmp_path / name)
        written = Bundle(tmp_path / name).codec()
        jax.tree.map(np.testing.assert_array_equal, written.params, one.params["inner"])
        jax.tree.map(np.testing.assert_array_equal, written.codebook, one.model_state)
    jax.tree.map(np.testing.assert_array_equal, state.params["inner"], given.codec().params)


def test_the_example_of_a_quantiser(examples, tmp_path):
    """It trains within the objective, and a bundle with it encodes as it does."""
    signs = examples["Signs"]()
    with pytest.raises(InputError, match="30 codes of width 4: signs have 16"):
        dataclasses.replace(tiny.CODEC, quantiser=signs, codebook=30, code_width=4)
    config = dataclasses.replace(tiny.CODEC, quantiser=signs, codebook=16, code_width=4)
    objective = CodecObjective(config.module(), global_batch=tiny.BATCH)
    sgd = optax.sgd(0.1)
    state = jax.jit(lambda: unbox(initial_state(objective, sgd, 0)))()
    step = jax.jit(make_step(objective, sgd, optax.constant_schedule(0.1), seed=0))
    losses = []
    for _ in range(8):
        state, metrics = step(state, tiny.images(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    part = CodecPart(config, state.params, state.model_state)
    write_bundle(tmp_path / "bundle", codec=part)
    ids = np.asarray(cogview_jax.load(tmp_path / "bundle").encode(tiny.images(0).image))
    pixels = normalise(config, tiny.images(0).image)
    vectors = config.module().apply({"params": state.params}, pixels, method="encode")
    for row, code in zip(np.asarray(vectors).reshape(-1, 4), ids.reshape(-1), strict=True):
        assert code == sum(2**i for i in range(4) if row[i] > 0)
    corners = signs.vectors({}, state.model_state, ids)
    np.testing.assert_array_equal(corners > 0, np.asarray(vectors) > 0)


# ---- the pages as a whole


@pytest.mark.parametrize(("name", "most"), [("README.md", 150), ("docs/benchmarks.md", 120)])
def test_pages_that_stay_short(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_images_are_small():
    assert (ROOT / "docs" / "images" / "demo.png").stat().st_size < 200_000


def test_generated_pages_are_current():
    pages = runpy.run_path(str(ROOT / "docs" / "reference" / "generate.py"))["PAGES"]
    for name, page in pages.items():
        current = (ROOT / name).read_text() == page()
        assert current, f"{name} is not what docs/reference/generate.py writes: run it"


def test_every_setting_has_a_meaning():
    page = (ROOT / "docs" / "reference" / "config.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) *\|$", page, re.MULTILINE)
    assert len(rows) > 50
    assert [name for name, meaning in rows if not meaning] == []


def test_every_experiment_is_listed():
    folder = ROOT / "docs" / "experiments"
    listed = (folder / "README.md").read_text()
    for page in folder.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in listed
        assert page.name == "README.md" or re.match(r"\d{4}-\d\d-\d\d_\w+\.md$", page.name)
