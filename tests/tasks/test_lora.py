"""Runs that train adapters: the bundle they write, resuming, and what is refused."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from cogview_jax.checkpoints.adapter import read_adapter
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.checkpoints.stored_tree import sizes, stored_tree
from cogview_jax.interop.conversion import convert
from cogview_jax.interop.files import SourceFiles
from cogview_jax.models.lora import LoRAConfig
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.training import run

STEPS = 4


@pytest.fixture(scope="module")
def experiment(chain):
    """A caption model from the chain's model of images, with an average and held-out records."""
    found = read_experiment(json.loads((chain.run / "config.json").read_text()))
    return dataclasses.replace(
        found,
        init_from=f"{chain.run}/bundle",
        lora=LoRAConfig(rank=4, alpha=8.0, targets=("attention.qkv", "up")),
        layout=dataclasses.replace(found.layout, task="caption"),
        data=dataclasses.replace(found.data, store=str(chain.store), validation_share=0.25),
        train=dataclasses.replace(
            found.train,
            **{"steps": STEPS, "checkpoint_every": 2, "log_every": 1, "sample_every": 0},
            **{"keep": STEPS, "ema_decay": 0.5, "validate_every": 2},
        ),
        mesh=MeshConfig(data=1, fsdp=8),
    )


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    assert run(experiment, str(workdir)) == 0
    return workdir


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def logged(workdir):
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    timings = {"tokens_per_second", "mfu", "goodput"}
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in lines]


def test_the_bundle_is_the_base_with_the_adapter_merged(chain, experiment, finished, tmp_path):
    """The same bits as `convert --adapter` makes of the base, and a bundle like any other."""
    arguments = (None, None, SourceFiles(), experiment.init_from, str(tmp_path / "merged"))
    convert(*arguments, adapter=str(finished / "adapter"))
    ours, theirs = Bundle(finished / "bundle"), Bundle(tmp_path / "merged")
    described, merged = (bundle.description["parts"]["transformer"] for bundle in (ours, theirs))
    assert described | {"sha256": ""} == merged | {"sha256": ""}
    assert (ours.step, ours.weights) == (STEPS, "ema")
    part, base = ours.transformer(), Bundle(experiment.init_from).transformer()
    assert_same(part.params, theirs.transformer().params)
    assert open_bundle(finished).path == finished / "bundle"
    changed = {
        ".".join(key.key for key in path)
        for path, leaf in jax.tree.leaves_with_path(part.params)
        if not np.array_equal(leaf, _at(base.params, path))
    }
    block = "blocks.block"
    kernels = {f"{block}.attention.qkv.kernel", f"{block}.mlp.up.kernel"}
    assert changed == {*kernels, "position_embedding"}
    # A caption model has one command more.
    known, new = (tree["position_embedding"] for tree in (base.params, part.params))
    np.testing.assert_array_equal(new, [*known, known[-1]])
    # What was trained is what the bundle's model computes: the loss of the held-out records.
    model = load(finished / "bundle")
    assert model.layout.task == "caption"
    assert len(model.caption(np.zeros((1, 16, 16, 3), np.uint8))) == 1


def test_a_step_opens_as_the_bundle_that_it_would_become(experiment, finished, tmp_path):
    """Of the run that is done, the last one is its bundle, bit for bit; an earlier one differs."""
    step, bundle = open_bundle(finished / "checkpoints" / "4"), Bundle(finished / "bundle")
    ours, theirs = (each.parts["transformer"] | {"sha256": ""} for each in (step, bundle))
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    trained = bundle.transformer().params
    assert_same(step.transformer().params, trained)
    assert_same(step.layered_transformer().params, bundle.layered_transformer().params)
    read = step.stored_transformer().params
    assert_same(jax.tree.map(lambda leaf: leaf.make(), read), trained)
    part, earlier = "transformer", open_bundle(finished / "checkpoints" / "2")
    both = earlier.transformer().params, trained
    assert not np.array_equal(*(tree["blocks"]["block"]["mlp"]["up"]["kernel"] for tree in both))
    assert earlier.sha256(part) != step.sha256(part)
    running = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("bundle"))
    image = np.zeros((1, 16, 16, 3), np.uint8)
    assert load(running).caption(image) == load(finished).caption(image)
    meta = running / "checkpoints" / "4" / "meta" / "metadata"
    written = json.loads(meta.read_text())
    written["notes"]["bundle"][part]["adapts"]["path"] = str(tmp_path / "gone")
    meta.write_text(json.dumps(written))
    with pytest.raises(InputError, match=rf"adapts the transformer of {tmp_path}/gone: put it"):
        open_bundle(running / "checkpoints" / "4").transformer()


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_a_checkpoint_holds_adapters_and_the_hash_of_their_base(experiment, finished):
    checkpoint, base = finished / "checkpoints" / "4", Bundle(experiment.init_from)
    assert sizes(stored_tree(checkpoint / "extras")) == {"base_sha256": (32,)}
    digest = stored_tree(checkpoint / "extras")["base_sha256"].make()
    assert digest.tobytes().hex() == base.sha256("transformer")
    for item in ("params", "ema"):
        names = {name.rpartition(".")[2] for name in sizes(stored_tree(checkpoint / item))}
        assert names == {"lora_A", "lora_B"}
    adapter = read_adapter(finished / "adapter")
    assert adapter.base == base.sha256("transformer")
    assert {array.dtype for array in adapter.arrays.values()} == {np.dtype(np.float32)}


def test_a_resumed_run_equals_the_unbroken_one(experiment, finished, tmp_path, capfd):
    broken = shutil.copytree(finished, tmp_path / "run")
    for name in ("bundle", "adapter", f"checkpoints/{STEPS}"):
        shutil.rmtree(broken / name)
    assert run(experiment, str(broken)) == 0
    said = capfd.readouterr().err
    assert "continues after step 2 of 4" in said
    trained, frozen = re.search(
        r"([\d,]+) parameters of adapters and ([\d,]+) frozen", said
    ).groups()
    # Two layers of width 32: of qkv 4 x (32 + 96) numbers, of up 4 x (32 + 128).
    assert int(trained.replace(",", "")) == 2 * 4 * (32 + 96 + 32 + 128)
    base = Bundle(experiment.init_from).transformer().params
    # The base, and one position more.
    assert int(frozen.replace(",", "")) == 32 + sum(leaf.size for leaf in jax.tree.leaves(base))
    assert_same(*(Bundle(path / "bundle").transformer().params for path in (broken, finished)))
    whole = logged(finished)
    assert logged(broken) == whole
    measured = [line["validation_loss"] for line in whole if "validation_loss" in line]
    assert len(measured) == 2
    assert np.isfinite(measured).all()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (broken / "adapter" / name).read_bytes() == (
            finished / "adapter" / name
        ).read_bytes()


def test_a_run_is_not_resumed_on_another_base(chain, experiment, finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "run")
    base = tmp_path / "base"
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"init_from": str(base)}))
    there = Bundle(experiment.init_from)
    part = there.transformer()
    params = {**part.params, "position_embedding": 2 * part.params["position_embedding"]}
    write_bundle(
        base, codec=there, text=there, transformer=dataclasses.replace(part, params=params)
    )
    with pytest.raises(InputError, match=r"init_from .*base holds transformer \w{12}, but the ad"):
        run(dataclasses.replace(experiment, init_from=str(base)), str(moved))


def test_what_cannot_be_adapted_is_refused(experiment, tmp_path):
    longer = dataclasses.replace(experiment.layout, text_length=60)
    with pytest.raises(InputError, match="and frozen ones cannot be learned: set"):
        run(dataclasses.replace(experiment, layout=longer), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(InputError, match=r"lora.rank 4 adapts a trained transformer, but in"):
        dataclasses.replace(experiment, init_from="")
    with pytest.raises(InputError, match=r"lora.rank 33: expected at most model.width 32"):
        dataclasses.replace(experiment, lora=LoRAConfig(rank=33))
