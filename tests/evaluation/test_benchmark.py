"""A benchmark is one file: it is found, offered, run and reported without another change."""

import importlib
import json
import math
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageChops, ImageStat

from cogview_jax import load
from cogview_jax.evaluation import benchmark, benchmarks
from cogview_jax.evaluation.benchmark import Options, available, load_benchmark, plain_table
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from cogview_jax.shapes.fresh import fresh_scenes

#: The benchmarks that come with the package.
NAMES = (
    *("attention", "emoji", "fashion", "fid", "figure10", "figure9", "pictures"),
    *("shapes", "style", "table1", "tokenizer", "worst"),
)
#: As if the file of the example lay in `cogview_jax/evaluation/benchmarks/`; jax is not there.
COMMAND = """
import sys

from cogview_jax.evaluation import benchmarks

sys.modules["jax"] = None
benchmarks.__path__.append({folder!r})
from cogview_jax.commands import evaluate
from cogview_jax.runtime.command_line import run

run(evaluate)
"""


@pytest.fixture
def folder(root, tmp_path):
    """A folder with the example alone."""
    (tmp_path / "added").mkdir()
    shutil.copy(root / "tests" / "examples" / "new_benchmark.py", tmp_path / "added")
    return str(tmp_path / "added")


@pytest.fixture
def added(folder, monkeypatch):
    """The example, as if its file lay with the others."""
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, folder])
    importlib.invalidate_caches()
    yield load_benchmark("new_benchmark")
    sys.modules.pop(f"{benchmarks.__name__}.new_benchmark", None)


def test_the_example_is_short_and_found_beside_the_others(added, root):
    assert list(available()) == sorted([*NAMES, "new_benchmark"])
    assert available()["new_benchmark"] == (
        "PSNR of new drawings after the image tokenizer has encoded and decoded them, in dB"
    )
    assert available()["shapes"] == (
        "How well a bundle does its task on captioned shapes that no training has seen"
    )
    assert added.__name__ == "cogview_jax.evaluation.benchmarks.new_benchmark"
    text = (root / "tests" / "examples" / "new_benchmark.py").read_text()
    assert len(text.splitlines()) <= 40


def test_the_example_is_run_and_its_report_written(added, chain, tmp_path, capsys):
    """On a bundle of a codec alone; Pillow computes the same errors in integers."""
    bundle, out = chain.codec / "bundle", tmp_path / "report.json"
    evaluate(added, str(bundle), str(out), Options(count=3, seed=5))
    report = json.loads(out.read_text())
    assert report.pop("benchmark") == "new_benchmark"
    digest = sha256_file(bundle / "bundle.json")
    assert report.pop("settings") == {"bundle": digest, "seed": 5, "precision": "float32"}
    model, lines = load(bundle), []
    for split in fresh_scenes(3, 5):
        images, total = split.drawings(16), 0
        for image, decoded in zip(images, model.decode(model.encode(images)), strict=True):
            pair = (Image.fromarray(image), Image.fromarray(decoded))
            total += sum(ImageStat.Stat(ImageChops.difference(*pair)).sum2)
        psnr = 20 * math.log10(255) - 10 * math.log10(total / (3 * 16 * 16 * 3))
        found = report.pop(split.name)
        assert found == {"drawings": 3, "psnr": pytest.approx(psnr, rel=1e-12)}
        name = split.name.replace("_", " ")
        lines += [f"{name}, drawings".ljust(18) + "  3", f"{name}, psnr".ljust(18)]
    assert report == {}
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(lines)
    assert all(line.startswith(start) for line, start in zip(table, lines, strict=True))


def command(root, folder, *arguments):
    code = COMMAND.format(folder=folder)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True
    )


def test_help_and_mistakes_name_all_benchmarks_and_need_no_jax(root, folder):
    said = command(root, folder, "--help")
    assert (said.returncode, said.stderr) == (0, "")
    names = sorted([*NAMES, "new_benchmark"])
    assert f"  --benchmark {'|'.join(names)}\n" in said.stdout
    assert "new_benchmark: PSNR of new drawings" in " ".join(said.stdout.split())
    wrong = command(root, folder, "--bundle=b", "--out=r.json", "--benchmark=fod")
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: --benchmark=fod: expected one of {', '.join(names)}\n"


def test_a_table_that_a_benchmark_defines_is_the_one_that_is_shown(added):
    report = {"a_b": {"c": 1, "d": 0.25}, "n": 12345678.0, "name": "text", "flags": {"list": [1]}}
    plain = "a b, c  1\na b, d  0.25\nn       1.23457e+07"
    assert plain_table(report) == benchmark.table(added, report) == plain
    assert plain_table({"only": "text"}) == ""
    shapes = load_benchmark("shapes")
    split = {"seen": {"prompts": 2, "generated": {"all": 0.5}}}
    assert benchmark.table(shapes, split) == shapes.table(split) != plain_table(split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--num_prompts 0: expected at least 1"),
        ({"count": 10**12}, "--num_prompts 1000000000000: expected at most 100000"),
        ({"candidates": 0, "rerank_with": "b"}, "--candidates 0: expected at least 1"),
        ({"candidates": 4}, "--candidates needs a bundle to choose by: --rerank_with BUNDLE"),
        ({"seed": -1}, "seed -1: expected 0 to 4294967295"),
        ({"batch_size": 10**9}, "batch_size 1000000000: expected at most 4096"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError) as raised:
        Options(**options)
    assert str(raised.value) == message
