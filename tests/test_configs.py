"""Every experiment in configs/: readable, short, buildable, and light to import."""

import dataclasses
import functools
import os
import re
import runpy
import subprocess
import sys
from operator import getitem
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from cogview_jax.runtime.config import as_settings
from cogview_jax.runtime.config_fill import fill
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import (
    TransformerExperiment,
    experiment_type,
    read_experiment,
)
from cogview_jax.tasks.run_setup import check_batch, make_task
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import state_shapes

FILES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def specs(file):
    """What `--config` takes of a file: itself, or each of its VARIANTS."""
    variants = runpy.run_path(str(file)).get("VARIANTS")
    return [f"{file}:{variant}" for variant in variants] if variants else [str(file)]


SPECS = [spec for file in FILES for spec in specs(file)]
#: What other programs set or read in any config.
KEYS = (
    *("stage", "seed", "precision", "init_from", "optimizer.lr", "model", "data"),
    *(f"train.{key}" for key in ("steps", "global_batch", "accumulate", "log_every")),
    *("train.checkpoint_every", "train.sample_every", "mesh.data", "mesh.fsdp", "mesh.tensor"),
)


@pytest.fixture(params=SPECS, ids=lambda spec: Path(spec).name)
def spec(request):
    return request.param


@pytest.fixture
def experiment(spec):
    return read_experiment(load_config(spec))


def flat(tree, prefix=""):
    """{dotted name: value} of every setting."""
    found = {}
    for name in tree:
        whole = f"{prefix}{name}"
        section = hasattr(tree[name], "keys")
        found |= flat(tree[name], f"{whole}.") if section else {whole: tree[name]}
    return found


def test_every_setting_can_be_overridden(spec, experiment):
    """Filled, a config has the keys of the contract and every setting of its experiment."""
    config = load_config(spec)
    assert fill(config, experiment_type(config)) == ([], [])
    assert flat(config) == flat(as_settings(experiment))
    for key in KEYS:
        *sections, name = key.split(".")
        assert name in functools.reduce(getitem, sections, config), key


#: Sections of which a config chooses a kind.
KINDS = ("data.source", "model", "model.quantiser", "loss")


def copy_kind(config, plain, path):
    """Gives `plain` the kind that a section of `config` has, if it names one."""
    for key in path:
        if not hasattr(config.get(key), "keys"):
            return
        config = config[key]
        if key not in plain:
            plain[key] = {}
        plain = plain[key]
    if "kind" in config:
        plain.kind = config.kind


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_names_what_it_changes(file):
    """No setting has the default in every variant, unless the file builds upon another one."""
    needless, by_hand = {}, "cogview_jax.configs import" not in file.read_text()
    for spec in specs(file):
        config = load_config(spec)
        plain = type(config)({"stage": config.stage})
        for section in KINDS:
            copy_kind(config, plain, section.split("."))
        fill(plain, experiment_type(plain))
        default = flat(plain)
        for key, value in flat(config).items():
            if key != "stage" and not key.endswith(".kind"):
                # What is under a name of the file's own, as a part of a mixture, has no default.
                same = key in default and default[key] == value
                needless[key] = needless.get(key, True) and same
    assert not by_hand or [key for key, is_needless in needless.items() if is_needless] == []


def sections_of(experiment, names):
    """The values of some sections of an experiment, by dotted name."""
    settings = flat(dataclasses.asdict(experiment))
    return {key: value for key, value in settings.items() if key.startswith(names)}


def test_the_paper_is_what_the_defaults_and_the_file_say_together(root):
    """The settings of stage 2 in the paper's own numbers, and of the release where it has none."""
    paper = read_experiment(load_config("cogview_4b"))
    sizes = {"layers": 48, "width": 2560, "heads": 40, "mlp_ratio": 4, "dropout": 0.1}
    stability = {"sandwich_ln": True, "pb_relax_norm": True, "pb_relax_attention": True}
    stability |= {"alpha": 32.0, "embedding_gradient": 0.1, "sandwich_scale": 1.0}
    rest = {"attention_dropout": 0.1, "epsilon": 1e-5, "init_std": 0.02, "compat": "none"}
    sparse = {"attention": "dense", "window": 128, "window_blocks": 6, "pivots": 768}
    machine = {"remat": "full", "unroll": 1}
    assert dataclasses.asdict(paper.model) == sizes | stability | rest | sparse | machine
    assert dataclasses.asdict(paper.optimizer) == {
        **{"lr": 3e-4, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 4e-2},
        **{"warmup": 0.02, "schedule": "cosine", "floor": 0.1, "clip": 1.0, "muon_lr": 0.0},
    }
    assert (paper.train.steps, paper.train.global_batch) == (144_000, 6144)
    assert dataclasses.asdict(paper.vocabulary) == {"codes": 8192, "text": 50_000}
    assert dataclasses.asdict(paper.layout) == {
        **{"task": "text_to_image", "text_length": 61, "grid": 32}
    }
    assert (paper.text_weight, paper.prompt_weight, paper.drop_captions) == (1.0, 1.0, 0.0)
    assert paper.data.text.pieces == 50_000

    codec = read_experiment(load_config("codec_vqvae"))
    assert dataclasses.asdict(codec.model) == {
        **{"kind": "vqvae", "image_size": 256, "downsampling": 8, "channels": 512},
        **{"residual_blocks": 0, "codebook": 8192, "code_width": 256},
        **{"quantiser": {"kind": "moving_average"}},
        **{"mean": (0.79093, 0.76271, 0.75340), "std": (0.30379, 0.32279, 0.32800)},
    }
    assert dataclasses.asdict(codec.loss) == {
        **{"kind": "l2", "commitment": 0.25, "decay": 0.99, "revive_below": 0.03},
        "decoder_only": False,
    }

    tutorial = read_experiment(load_config("tutorial"))
    assert (tutorial.model.layers, tutorial.model.width, tutorial.model.heads) == (12, 1024, 16)
    assert (tutorial.optimizer.lr, tutorial.optimizer.weight_decay) == (4e-4, 1e-2)
    assert (tutorial.optimizer.warmup, tutorial.text_weight) == (0.1, 5.0)


def test_the_demo_is_the_one_that_was_measured():
    demo = read_experiment(load_config("demo"))
    wanted = {"steps": 2100, "global_batch": 16, "accumulate": 1}
    assert sections_of(demo, ("train.steps", "train.global", "train.accum")) == {
        f"train.{name}": value for name, value in wanted.items()
    }
    assert dataclasses.asdict(demo.model) == {
        **{"layers": 4, "width": 128, "heads": 4, "mlp_ratio": 4, "dropout": 0.0},
        **{"attention_dropout": 0.0, "sandwich_ln": True, "pb_relax_norm": True},
        **{"pb_relax_attention": True, "alpha": 32.0, "embedding_gradient": 1.0},
        **{"epsilon": 1e-5, "init_std": 0.09, "sandwich_scale": 0.2, "remat": "none"},
        **{"unroll": 4, "compat": "none", "attention": "dense", "window": 128},
        **{"window_blocks": 6, "pivots": 768},
    }
    assert dataclasses.asdict(demo.optimizer) == {
        **{"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 1e-2},
        **{"warmup": 0.05, "schedule": "cosine", "floor": 0.1, "clip": 1.0, "muon_lr": 7.5e-3},
    }
    assert (demo.precision, demo.seed, demo.code_embeddings) == ("float32", 0, "codec")
    assert sections_of(demo, "data.source") == {
        **{"data.source.kind": "shapes", "data.source.path": "runs/demo/data"},
        **{"data.source.split": "train", "data.source.size": 32, "data.source.seed": 0},
        **{"data.source.train_count": 20_000, "data.source.held_out_count": 500},
        **{"data.source.caption_keys": (), "data.source.require_captions": True},
        "data.source.max_pixels": 100_000_000,
    }


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (
            "demo_caption",
            {"layout.task", "text_weight", "data.store", "init_from", "optimizer.muon_lr"},
        ),
        (
            "emoji_caption",
            {"layout.task", "text_weight", "data.from_", "init_from", "drop_captions"}
            | {"corrupt_codes", "lora.rank", "sampling.temperature", "sampling.guidance"},
        ),
        (
            "demo_superres",
            {"layout.task", "layout.text_length", "prompt_weight", "data.text_tokenizer"}
            | {"data.image_grid", "data.source.size", "data.source.train_count", "init_from"}
            | {"optimizer.muon_lr"},
        ),
    ],
)
def test_finetuning_differs_from_its_base_in_what_its_file_says(name, changed):
    base = name.partition("_")[0]
    plain, other = (
        flat(dataclasses.asdict(read_experiment(load_config(each)))) for each in (base, name)
    )
    differs = {key for key in other if other[key] != plain[key]}
    assert {key for key in differs if not key.startswith("train.")} == changed


def test_muon_is_where_it_was_measured():
    """A config that builds upon another one, as finetuning does, does not inherit its rate."""
    learn = {
        Path(spec).name for spec in SPECS if load_config(spec).get("optimizer", {}).get("muon_lr")
    }
    assert learn == {"demo.py", "demo_codec.py", "emoji_codec.py:base"}


def test_a_style_is_learned_with_one_text():
    """Text and number of models of the paper's Style Learning."""
    for variant in ("chinese", "oil", "sketch", "cartoon"):
        style = read_experiment(load_config(f"style:{variant}"))
        assert re.fullmatch(r"An image of [\w ]+ style", style.data.source.caption)
        assert style.init_from
    assert "oil painting" in read_experiment(load_config("style:oil")).data.source.caption


def test_print_config_needs_neither_data_nor_a_workdir(root, tmp_path):
    command = [sys.executable, "-m", "cogview_jax.train", "--config=demo_caption"]
    command += ["--print_config", "--config.mesh.data=3", "--config.data.source.kind=folder"]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split("=", 1) for line in result.stdout.splitlines())
    said = {key.strip(): rest.split("# ") for key, rest in lines.items()}
    said = {key: (value.strip(), origin) for key, (value, origin) in said.items()}
    assert said["text_weight"] == ("10.0", "demo_caption")
    assert said["mesh.data"] == ("3", "--config.mesh.data")
    assert said["optimizer.clip"] == ("1.0", "default")
    assert said["data.source.kind"] == ("'folder'", "--config.data.source.kind")
    # Of the other kind: gone, and not taken for the folder.
    assert said["data.source.path"] == ("''", "default")
    assert "data.source.train_count" not in said
    assert len(said) > 80
    assert list(tmp_path.iterdir()) == []


def mesh_of(config, rest):
    """The mesh a config asks for, where -1 stands for `rest` devices; no device is needed."""
    sizes = {name: getattr(config, name) for name in ("data", "fsdp", "tensor")}
    sizes = {name: rest if size == -1 else size for name, size in sizes.items()}
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def test_an_experiment_can_be_built(spec, experiment, tmp_path):
    """Its batch on the fewest devices, its state split over more; nothing is computed."""
    config = experiment.train
    check_batch(config, mesh_of(experiment.mesh, rest=1))
    mesh = mesh_of(experiment.mesh, rest=8)
    assert policy(experiment.precision)
    if isinstance(getattr(experiment, "loss", None), VQGANLoss):
        # The weights of LPIPS are a user's file.
        adversarial = dataclasses.replace(experiment.loss.adversarial, perceptual_weight=0.0)
        loss = dataclasses.replace(experiment.loss, adversarial=adversarial)
        experiment = dataclasses.replace(experiment, loss=loss)
    job = make_task(experiment, Workdir(tmp_path))
    state = state_shapes(job.objective, make_optimizer(experiment.optimizer, config.steps), mesh)
    rate = schedule(experiment.optimizer, config.steps)
    floor = 1.0 if experiment.optimizer.schedule == "constant" else experiment.optimizer.floor
    assert rate(config.steps) == pytest.approx(floor * experiment.optimizer.lr)

    # What the docstring says of the size is so.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    file = Path(spec.partition(":")[0])
    said = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters", file.read_text())]
    assert not said or (count in said and len(said) == len(specs(file)))


def test_a_text_tokenizer_fits_the_vocabulary(experiment):
    if isinstance(experiment, TransformerExperiment):
        assert experiment.data.text.pieces <= experiment.vocabulary.text


def test_the_demo_reads_what_its_codec_writes(root):
    codec, demo = (
        read_experiment(load_config(f"{root}/configs/{name}.py")) for name in ("demo_codec", "demo")
    )
    assert (codec.model.grid, codec.model.codebook) == (demo.layout.grid, demo.vocabulary.codes)
    assert codec.model.image_size == codec.data.source.size == demo.data.source.size


@pytest.mark.parametrize(
    ("codec", "transformer"),
    [("codec_vqgan:fashion", "fashion:paper"), ("fashion_codec", "fashion:small")],
)
def test_the_fashion_models_read_what_their_codecs_write(codec, transformer):
    codec, read = (read_experiment(load_config(name)) for name in (codec, transformer))
    assert (codec.model.grid, codec.model.codebook) == (read.layout.grid, read.vocabulary.codes)


def test_an_earlier_run_is_named_once(experiment):
    """Who names an image tokenizer does not name another run's images and tokenizer as well."""
    if isinstance(experiment, TransformerExperiment) and experiment.data.from_:
        assert not experiment.data.image_tokenizer


def test_the_long_variants_have_rows_of_4096_tokens(root):
    for variant in ("long", "drawings"):
        experiment = read_experiment(load_config(f"{root}/configs/fashion.py:{variant}"))
        layout = make_layout(experiment.layout, experiment.vocabulary)
        assert layout.length - 1 == 4096
        assert experiment.model.sparse
        assert experiment.model.pivots == experiment.model.window * experiment.model.window_blocks


def test_importing_a_config_imports_neither_jax_nor_tensorflow(root):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['jax', 'tensorflow', 'flax', 'optax']))\n"
        "from cogview_jax.runtime.config_flag import load_config\n"
        "for file in sys.argv[1:]: load_config(file)\n"
    )
    command = [sys.executable, "-c", code, *SPECS]
    subprocess.run(command, check=True, cwd=root, timeout=300)
