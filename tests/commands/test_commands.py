"""The commands, run as programs: one chain from images to a report; killed runs; mistakes."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.evaluation.benchmarks.shapes import generation_report, table
from cogview_jax.runtime.files import sha256_file, sha256_tree
from cogview_jax.runtime.sealed import sealed
from cogview_jax.sampling.options import SamplingConfig
from command_runs import STEPS, call, kill_when, start

PROMPTS = ["a large red circle in the center", "a blue star", "a large red circle in the center"]
TIMINGS = {"tokens_per_second", "mfu", "goodput"}


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(workdir):
    """The log points, without what depends on the clock."""
    lines = read_lines(workdir / "metrics" / "metrics.jsonl")
    return [{name: line[name] for name in line if name not in TIMINGS} for line in lines]


def last_state(workdir):
    """Parameters, optimizer and extras of the last checkpoint, as they lie on disk."""
    folder = workdir / "checkpoints" / str(STEPS)
    with ocp.StandardCheckpointer() as checkpointer:
        return {
            name: checkpointer.restore(folder / name)
            for name in ("params", "opt_state", "extras")
            if (folder / name).exists()
        }


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def contents(folder):
    """Every path below, with what it holds."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) if path.is_file() else None
        for path in Path(folder).rglob("*")
    }


@pytest.fixture(scope="module")
def samples(chain, tmp_path_factory):
    """Two images for each prompt, two prompts by flags and one in a file."""
    out = tmp_path_factory.mktemp("samples") / "out"
    (chain.folder / "prompts.txt").write_text(f"\n {PROMPTS[2]} \n", encoding="utf-8")
    chain.succeed(
        *("sample", f"--bundle={chain.run}/bundle", f"--out={out}", "--num_images=2", "--seed=5"),
        *(f"--prompt={prompt}" for prompt in PROMPTS[:2]),
        f"--prompts={chain.folder}/prompts.txt",
    )
    return out


def test_a_workdir_holds_what_the_contract_says(chain):
    for workdir, extras in ((chain.codec, {"extras"}), (chain.run, set())):
        steps = [path.name for path in (workdir / "checkpoints").iterdir()]
        assert sorted(map(int, steps)) == [8, 12]
        for step in steps:
            items = {path.name for path in (workdir / "checkpoints" / step).iterdir()}
            assert items >= {"params", "opt_state", "meta"} | extras
        assert sorted(path.name for path in (workdir / "samples").iterdir()) == [
            *("step_00000006.png", "step_00000012.png")
        ]
        assert list((workdir / "metrics").glob("events.out.tfevents.*"))
        assert not list(workdir.rglob(".cogview-*"))

    config = json.loads((chain.run / "config.json").read_text())
    assert config["train"]["steps"] == STEPS  # what the command line said
    assert config["train"]["keep"] == 2  # what the file said
    assert config["optimizer"]["epsilon"] == 1e-8  # what neither said


def test_metrics_are_one_line_a_log_point(chain):
    for workdir, own in (
        (chain.run, {"text_loss", "image_loss"}),
        (chain.codec, {"l2", "psnr", "perplexity", "codebook_usage"}),
    ):
        lines = read_lines(workdir / "metrics" / "metrics.jsonl")
        assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
        names = {"loss", "lr", "grad_norm", "tokens_per_second", "mfu", "loss_scale"} | own
        assert all(names < set(line) and None not in line.values() for line in lines)
    losses = [line["loss"] for line in metrics(chain.run)]
    assert losses[-1] < losses[0]


def test_a_bundle_records_what_it_was_trained_with(chain):
    parts = json.loads((chain.run / "bundle" / "bundle.json").read_text())["parts"]
    codec = json.loads((chain.codec / "bundle" / "bundle.json").read_text())["parts"]["codec"]
    assert parts["codec"] == codec
    assert parts["transformer"]["trained_with"] == {
        "codec": codec["sha256"],
        "text": sha256_file(chain.store / "tokenizers" / "text.model"),
    }
    assert parts["transformer"]["drop_captions"] == 0
    assert_equal(
        Bundle(chain.run / "bundle").transformer().params,
        last_state(chain.run)["params"],
    )


@pytest.fixture(scope="module")
def killed(chain):
    """For each stage, the workdir of a run that was killed half-way and then continued."""
    store = f"--config.data.store={chain.store}"
    arguments = {
        "killed_codec": chain.train_codec("killed_codec"),
        "killed_run": (*chain.transformer("killed_run"), store),
    }

    def run(name):
        workdir = chain.folder / name
        log = workdir / "metrics" / "metrics.jsonl"
        kill_when(
            lambda: (workdir / "checkpoints" / "4").exists() and len(read_lines(log)) >= 3,
            start(chain.root, "train", *arguments[name]),
        )
        half = len(read_lines(log))
        said = chain.succeed("train", *arguments[name]).stderr
        return workdir, half, said

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, arguments))


@pytest.mark.parametrize("stage", [0, 1], ids=["codec", "transformer"])
def test_a_killed_training_run_goes_on_to_the_bits_of_the_unbroken_one(chain, killed, stage):
    unbroken, (workdir, half, said) = (chain.codec, chain.run)[stage], killed[stage]
    assert 3 <= half < STEPS // 2
    assert f"{STEPS} steps done, bundle written" in said
    assert metrics(workdir) == metrics(unbroken)
    assert_equal(last_state(workdir), last_state(unbroken))
    for step in (6, 12):
        image = Path("samples") / f"step_{step:08d}.png"
        assert (workdir / image).read_bytes() == (unbroken / image).read_bytes()
    ours, theirs = (cogview_jax.load(run / "bundle") for run in (workdir, unbroken))
    assert_equal(ours.parts.codec_part.codebook, theirs.parts.codec_part.codebook)
    assert_equal(ours.parts.codec_part.params, theirs.parts.codec_part.params)


KILLED = """
import os, runpy, signal, sys

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("tokens-00002.array_record"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
runpy.run_module("cogview_jax.prepare", run_name="__main__", alter_sys=True)
"""


def test_a_killed_prepare_goes_on_to_the_bits_of_the_unbroken_one(chain):
    unbroken, arguments = chain.store, chain.transformer("killed_prepare")
    store = chain.folder / "killed_prepare" / "tokens"
    # The third of four shards is written, and does not get its name.
    command = [sys.executable, "-c", KILLED, *arguments]
    killed = subprocess.run(command, cwd=chain.root, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (store / "tokens-00001.json").exists()
    assert not (store / "tokens-00002.array_record").exists()
    assert not (store / "manifest.json").exists()
    chain.succeed("prepare", *arguments)
    assert sha256_tree(store) == sha256_tree(unbroken)
    assert contents(store) == contents(unbroken)


def test_what_is_finished_is_left_as_it_is(chain):
    before = contents(chain.run)
    with ThreadPoolExecutor(2) as pool:
        trained, prepared = pool.map(
            lambda command: chain.succeed(command, *chain.transformer("run")).stderr,
            ("train", "prepare"),
        )
    assert "all 12 steps were done before" in trained
    assert "was finished before: nothing to do" in prepared
    assert contents(chain.run) == before


def test_a_bundle_older_than_the_last_checkpoint_is_written_again(chain):
    """As a run leaves it that was made longer and then killed just before the new bundle."""
    again = chain.folder / "again"
    shutil.copytree(chain.codec, again)
    file = again / "bundle" / "bundle.json"
    description = json.loads(file.read_text())
    assert description["step"] == STEPS
    for older in (sealed(description | {"step": STEPS - 4}), description | {"step": STEPS - 4}):
        file.write_text(json.dumps(older))
        trained = chain.succeed("train", *chain.train_codec("again")).stderr
        assert f"{STEPS} steps done, bundle written" in trained
        assert Bundle(again / "bundle").step == STEPS
    assert f"{file}: damaged: it was changed after it was written" in trained
    expected, found = Bundle(chain.codec / "bundle").codec(), Bundle(again / "bundle").codec()
    assert_equal((found.params, found.codebook), (expected.params, expected.codebook))


def test_samples_are_listed_in_order_and_are_what_the_model_decodes(chain, samples):
    lines = read_lines(samples / "samples.jsonl")
    assert lines == [
        {
            "prompt": prompt,
            "index": index,
            "seed": 5,
            "file": f"images/{number:05d}_{index:03d}.png",
        }
        for number, prompt in enumerate(PROMPTS)
        for index in range(2)
    ]
    pixels = [np.asarray(Image.open(samples / line["file"])) for line in lines]
    files = {path.relative_to(samples).as_posix() for path in samples.rglob("*.png")}
    assert files == {line["file"] for line in lines} | {"grid.png"}

    model = cogview_jax.load(chain.run / "bundle")
    codes = model.generate_codes(PROMPTS, 2, 5, sampling=SamplingConfig(), batch_size=6)
    np.testing.assert_array_equal(pixels, model.decode(codes.reshape(6, 4, 4)))
    # The same prompt and index are the same image; another index is another.
    np.testing.assert_array_equal(pixels[0], pixels[4])
    assert not np.array_equal(codes[0, 0], codes[0, 1])


def test_a_report_is_that_of_the_models_own_images(chain, tmp_path):
    report = tmp_path / "deep" / "report.json"
    result = chain.succeed(
        *("evaluate", f"--bundle={chain.run}/bundle", f"--out={report}", "--num_prompts=4"),
        *("--seed=3", "--top_k=5", "--batch_size=4"),
    )
    model = cogview_jax.load(chain.run / "bundle")

    def generate(texts):
        sampled = model.generate(texts, 1, 3, sampling=SamplingConfig(top_k=5), batch_size=4)
        return np.stack([[np.asarray(image)] for (image,) in sampled])

    expected = generation_report(
        generate, lambda x: model.decode(model.encode(x)), size=16, count=4, seed=3
    )
    assert json.loads(report.read_text()) == {
        "benchmark": "shapes",
        "task": "text_to_image",
        "settings": {
            "bundle": sha256_file(chain.run / "bundle" / "bundle.json"),
            **{"seed": 3, "temperature": 1.0, "top_k": 5, "top_p": 1.0, "guidance": 1.0},
            "precision": "float32",
        },
        **expected,
    }
    assert result.stdout == table(expected) + "\n"


@pytest.fixture(scope="module")
def mistakes(chain, tmp_path_factory):
    """The result of every wrong command, and the paths that must not have come to be."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    exchanged = shutil.copytree(chain.run / "bundle", folder / "exchanged")
    described = json.loads((exchanged / "bundle.json").read_text())
    described["parts"]["codec"]["sha256"] = "c0dec" * 8
    (exchanged / "bundle.json").write_text(json.dumps(described))
    (folder / "typo.py").write_text(
        (chain.root / "configs" / "demo.py").read_text() + "\n\n"
        "plain = get_config\n\n\n"
        "def get_config():\n"
        "    config = plain()\n"
        "    config.train.stepz = 3\n"
        "    return config\n"
    )

    new, out = f"--workdir={folder}/new", f"--out={folder}/out"
    bundle, prompt = f"--bundle={chain.run}/bundle", "--prompt=a red circle"
    codec = (*chain.train_codec("codec")[:1], new, *chain.train_codec("codec")[2:])
    empty = ("--config.data.source.kind=folder", f"--config.data.source.path={folder}/empty")
    commands = {
        "missing config": ("train", "--config=configs/nowhere.py", new),
        "unknown override": ("train", *codec, "--config.train.stepz=3"),
        "unknown key": ("train", f"--config={folder}/typo.py", new),
        # Without the settings of drawings, which a folder has not.
        "empty folder": ("train", *(a for a in codec if "data.source." not in a), *empty),
        "setting of another kind": ("train", *codec, *empty),
        "other config": ("train", *chain.train_codec("codec"), "--config.model.codebook=8"),
        "codec to prepare": ("prepare", *codec),
        "no bundle": ("sample", f"--bundle={folder}/none", prompt, out),
        "exchanged codec": ("sample", f"--bundle={exchanged}", prompt, out),
        "long prompt": (
            *("sample", bundle, f"--prompt={'red ' * 60}", out),
            "--long_prompts=refuse",
        ),
        "endless prompt": ("sample", bundle, f"--prompt={'red ' * 1025}", out),
        "bytes for a prompt": ("sample", bundle, "--prompt=caf\udce9", out),
        "countless images": ("sample", bundle, prompt, out, f"--num_images={10**12}"),
        "countless rows": ("sample", bundle, prompt, out, f"--batch_size={10**9}"),
        "countless candidates": (
            *("evaluate", bundle, out, f"--candidates={10**12}"),
            "--rerank_with=nowhere",
        ),
        "countless prompts": ("evaluate", bundle, out, f"--num_prompts={10**12}"),
        "no images": ("sample", bundle, prompt, out, "--num_images=0"),
        "negative temperature": ("sample", bundle, prompt, out, "--temperature=-1"),
        "keep of nothing": ("sample", bundle, prompt, out, "--keep=2"),
        "back to nothing": ("sample", bundle, prompt, out, "--back_projection=2"),
        "windows of nothing": ("sample", bundle, prompt, out, "--window_candidates=2"),
        "no window at all": (
            *("sample", bundle, prompt, out, "--window_candidates=0"),
            "--upsample_with=nowhere",
        ),
        "fewer rounds than none": (
            *("sample", bundle, prompt, out, "--back_projection=-1"),
            "--upsample_with=nowhere",
        ),
        "described prompt": ("sample", bundle, prompt, out, "--task=caption", "--image=a.png"),
        "reranked captions": (
            *("sample", bundle, out, "--task=caption", "--image=a.png"),
            "--rerank_with=nowhere",
        ),
        "image for a task without one": ("sample", bundle, prompt, out, "--image=a.png"),
        "rows of nothing": ("sample", bundle, prompt, out, "--keep_rows=2"),
        "candidates for nobody": ("evaluate", bundle, out, "--candidates=4"),
        "negative guidance": ("sample", bundle, prompt, out, "--guidance=-1"),
        "unknown task": ("sample", bundle, prompt, out, "--task=paint"),
    }
    # A folder each: two commands at a time must not wait for each other's lock.
    own = [
        [f"{part}{number}" if part == out else part for part in command]
        for number, command in enumerate(commands.values())
    ]
    before = contents(chain.folder)
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda command: call(chain.root, *command), own)
        results = dict(zip(commands, results, strict=True))
    assert contents(chain.folder) == before
    written = sorted(path.name for path in folder.iterdir())
    assert [name for name in written if name != "__pycache__"] == ["empty", "exchanged", "typo.py"]
    return results


SAID = {
    "missing config": "config file configs/nowhere.py does not exist; configs has",
    "unknown override": "has no config.train.stepz; did you mean steps?",
    "unknown key": "config.train.stepz: no such setting; did you mean steps",
    "empty folder": "or a captions.jsonl that lists them, and there is neither; nothing ignored",
    "setting of another kind": "config.data.source.size; choices: caption, caption_fields, kind",
    "other config": "holds a run with model.codebook = 16, but the config says 8",
    "codec to prepare": "this config trains an image tokenizer, which needs no token store",
    "no bundle": "none is no bundle: there is no bundle.json in it",
    "exchanged codec": "but the bundle holds codec c0decc0decc0",
    "long prompt": "but the text region holds 40: shorten it",
    "endless prompt": "has 4100 characters, expected at most 4096",
    "bytes for a prompt": r"prompt 'caf\udce9' is no Unicode text",
    "countless images": "--num_images 1000000000000: expected at most 1000000",
    "countless rows": "--batch_size 1000000000: expected at most 4096",
    "countless candidates": "--candidates 1000000000000: expected at most 1024",
    "countless prompts": "--num_prompts 1000000000000: expected at most 100000",
    "no images": "--num_images 0: expected at least 1",
    "negative temperature": "temperature = -1.0: expected 0 (greedy) or above",
    "keep of nothing": "--keep needs a bundle to choose by: --rerank_with BUNDLE",
    "back to nothing": "--back_projection needs a bundle that upsamples: --upsample_with BUNDLE",
    "windows of nothing": (
        "--window_candidates needs a bundle that upsamples: --upsample_with BUNDLE"
    ),
    "no window at all": "--window_candidates 0: expected at least 1",
    "fewer rounds than none": "--back_projection -1: expected at least 0",
    "described prompt": "--task caption finds the text itself: it takes no prompt",
    "reranked captions": "--rerank_with is for --task text_to_image, not caption",
    "image for a task without one": (
        "--image is for --task complete, super_resolution, caption, rerank, not text_to_image"
    ),
    "rows of nothing": "--keep_rows is for --task complete, not text_to_image",
    "candidates for nobody": "--candidates needs a bundle to choose by: --rerank_with BUNDLE",
    "negative guidance": "guidance = -1.0: expected 0 (no text) to 1000000",
    "unknown task": (
        "--task=paint: expected one of text_to_image, complete, super_resolution, caption, rerank"
    ),
}


@pytest.mark.parametrize("mistake", SAID)
def test_a_mistake_is_one_line_and_nothing_is_written(mistakes, mistake):
    result = mistakes[mistake]
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert SAID[mistake] in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""


COMMANDS = {
    "train": "Trains what a config describes: an image tokenizer or a transformer.",
    "prepare": "Turns captioned images into a token store that training reads.",
    "survey": "Looks at one's data before training: writes a page and a report of what a config's"
    " source holds.",
    "sample": "Samples from a bundle.",
    "evaluate": "Measures a bundle, or how near two sets of images are, and writes a JSON report"
    " and a page.",
    "convert": "Converts other people's checkpoints to a bundle, and a bundle to such files,"
    " without torch.",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does_and_how(root, command):
    result = call(root, command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{COMMANDS[command]}\n")
    assert f"\nusage: cogview {command} " in result.stdout
