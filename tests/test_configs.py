"""Every experiment in configs/: readable, complete, buildable, and light to import."""

import functools
import re
import runpy
import subprocess
import sys
from operator import getitem
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import TransformerExperiment, read_experiment
from cogview_jax.tasks.training import check_batch, make_job
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import make_layout
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


def test_the_keys_of_the_contract_are_there(spec):
    config = load_config(spec)
    for key in KEYS:
        *sections, name = key.split(".")
        assert name in functools.reduce(getitem, sections, config), key


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
    job = make_job(experiment, Workdir(tmp_path))
    state = state_shapes(job.objective, make_optimizer(experiment.optimizer, config.steps), mesh)
    rate = schedule(experiment.optimizer, config.steps)
    assert rate(config.steps) == pytest.approx(experiment.optimizer.floor * experiment.optimizer.lr)

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


def test_the_long_variants_have_rows_of_4096_tokens(root):
    for variant in ("long", "small"):
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
    subprocess.run(command, check=True, cwd=root, timeout=60)
