"""Training jobs in one process: on another mesh, from another bundle, and what is refused."""

import dataclasses
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.hardware import peak_flops
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.monitor import throughput
from cogview_jax.tasks.run_setup import check_batch
from cogview_jax.tasks.train_config import TrainConfig
from cogview_jax.tasks.training import run
from cogview_jax.training.loss_scale import LossScaleConfig
from command_runs import STEPS


@pytest.fixture
def codec(chain):
    return read_experiment(json.loads((chain.codec / "config.json").read_text()))


@pytest.fixture
def transformer(chain):
    """Reads the chain's store from any workdir."""
    experiment = read_experiment(json.loads((chain.run / "config.json").read_text()))
    return dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, store=str(chain.store))
    )


def logged(workdir):
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_begun_on_one_device_goes_on_on_eight(chain, codec, tmp_path, capfd):
    moved = shutil.copytree(chain.codec, tmp_path / "moved")
    shutil.rmtree(moved / "bundle")
    shutil.rmtree(moved / "checkpoints" / str(STEPS))
    mesh = MeshConfig(data=2, fsdp=4)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        run(dataclasses.replace(codec, mesh=mesh), str(moved))
    finally:
        os.sched_setaffinity(0, cores)
    fewer = f", cores {len(cores)} -> 1" if len(cores) > 1 else ""
    said = capfd.readouterr().err
    assert f"{moved}: resumes with devices 1 -> 8{fewer}: the last bits of its numbers may" in said
    assert "images_per_second" in said

    assert json.loads((moved / "config.json").read_text())["mesh"]["fsdp"] == 4
    for ours, theirs in zip(logged(moved), logged(chain.codec), strict=True):
        assert ours["step"] == theirs["step"]
        for name in ("loss", "grad_norm", "lr", "perplexity"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    ours, theirs = (Bundle(run / "bundle").codec() for run in (moved, chain.codec))
    for one, other in ((ours.params, theirs.params), (ours.codebook, theirs.codebook)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), one, other
        )


def test_a_run_starts_from_the_bundle_of_init_from(chain, transformer, tmp_path, capfd):
    experiment = dataclasses.replace(
        transformer,
        init_from=f"{chain.run}/bundle",
        optimizer=dataclasses.replace(transformer.optimizer, lr=1e-30),
        train=dataclasses.replace(transformer.train, steps=1, sample_every=0),
    )
    run(experiment, str(tmp_path / "run"))
    ours, theirs = (Bundle(path / "bundle").transformer() for path in (tmp_path / "run", chain.run))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    # The first loss is that of a trained model.
    assert logged(tmp_path / "run")[0]["loss"] < logged(chain.run)[0]["loss"]
    assert not (tmp_path / "run" / "samples").exists()

    # What it will do is said before it begins, in this order.
    said = capfd.readouterr().err
    data, model, devices, steps, compiling = re.findall(
        r"^(?:run: (?:data|model|devices|steps): |compiling).*$", said, flags=re.MULTILINE
    )
    assert data == (
        f"run: data: 32 examples, 64 captions in {chain.store}; 0 records were skipped when it was"
        " prepared"
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(theirs.params))
    assert model.endswith(f"(up to 40 of text, 4 x 4 codes), 512 ids; {count:,} parameters")
    assert devices.endswith(
        "(mesh.data 8, mesh.fsdp 1, mesh.tensor 1); precision float32, attention dense (blocks),"
        " decoding layers"
    )
    assert steps == "run: steps: 0 of 1 done; 8 rows a step"
    assert compiling == "compiling the step"


def test_a_run_starts_from_fewer_positions_and_another_type(chain, transformer, tmp_path, capfd):
    """What super-resolution needs: a longer sequence, from weights kept in half precision."""
    there = Bundle(chain.run / "bundle").transformer()
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), there.params)
    text = Bundle(chain.run / "bundle")
    half = dataclasses.replace(there, params=small)
    write_bundle(tmp_path / "half", codec=text, text=text, transformer=half)
    layout = dataclasses.replace(transformer.layout, text_length=44)
    experiment = dataclasses.replace(
        transformer,
        layout=layout,
        init_from=str(tmp_path / "half"),
        optimizer=dataclasses.replace(transformer.optimizer, lr=1e-30),
        train=dataclasses.replace(transformer.train, steps=1, sample_every=0),
        mesh=MeshConfig(data=2, fsdp=4),
    )
    run(experiment, str(tmp_path / "run"))
    ours = Bundle(tmp_path / "run" / "bundle").transformer().params
    known = len(small["position_embedding"])
    assert len(ours["position_embedding"]) == known + 4
    fresh = ours["position_embedding"][known:]
    assert np.std(fresh) == pytest.approx(transformer.model.init_std, rel=0.3)
    ours = {**ours, "position_embedding": ours["position_embedding"][:known]}
    jax.tree.map(np.testing.assert_array_equal, ours, jax.tree.map(np.float32, small))
    assert (
        f"init_from {tmp_path}/half: this run changes positions {known} -> {known + 4} (new ones"
        " start afresh), weights float16 -> float32"
    ) in capfd.readouterr().err


@pytest.mark.parametrize("precision", ["float16", "float16_pure"])
def test_a_float16_run_skips_what_overflows_and_goes_on_exactly(
    chain, transformer, tmp_path, precision
):
    """A scale far too large costs steps until it has fallen; the place in the data is not lost."""
    experiment = dataclasses.replace(
        transformer,
        precision=precision,
        loss_scale=LossScaleConfig(initial=2.0**22, hysteresis=1),
        # Checkpoint 8 lies between two log points.
        train=dataclasses.replace(transformer.train, sample_every=0, log_every=5),
    )
    run(experiment, str(tmp_path / "whole"))
    lines = logged(tmp_path / "whole")
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert 0 < lines[-1]["skipped_steps"] < 8
    assert lines[-1]["loss_scale"] == 2.0 ** (22 - lines[-1]["skipped_steps"])
    skipped = sum(steps * line["overflow"] for steps, line in zip((5, 5, 2), lines, strict=True))
    assert skipped == pytest.approx(lines[-1]["skipped_steps"])
    assert lines[-1]["overflow"] == 0
    assert lines[-1]["loss"] < lines[0]["loss"]

    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(broken / "bundle")
    shutil.rmtree(broken / "checkpoints" / str(STEPS))
    run(experiment, str(broken))
    ours, theirs = (
        Bundle(tmp_path / name / "bundle").transformer().params for name in ("broken", "whole")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    timings = ("tokens_per_second", "mfu", "goodput")
    for one, other in zip(logged(broken), lines, strict=True):
        assert {n: v for n, v in one.items() if n not in timings} == {
            n: v for n, v in other.items() if n not in timings
        }


def test_a_run_with_muon_goes_on_exactly_and_on_other_devices(chain, transformer, tmp_path):
    experiment = dataclasses.replace(
        transformer,
        optimizer=dataclasses.replace(transformer.optimizer, muon_lr=5e-3),
        train=dataclasses.replace(transformer.train, sample_every=0),
    )
    run(experiment, str(tmp_path / "whole"))
    split = dataclasses.replace(experiment, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    for name, again in (("same", experiment), ("split", split)):
        broken = shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(broken / "bundle")
        shutil.rmtree(broken / "checkpoints" / str(STEPS))
        run(again, str(broken))
    whole, same, others = (
        Bundle(tmp_path / name / "bundle").transformer().params
        for name in ("whole", "same", "split")
    )
    jax.tree.map(np.testing.assert_array_equal, same, whole)
    # Adam makes updates of what rounding leaves of a gradient of 0, as of the bias of keys.
    ours, theirs = (values["blocks"]["block"]["mlp"]["up"]["kernel"] for values in (others, whole))
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    plain = Bundle(chain.run / "bundle").transformer().params["blocks"]["block"]["mlp"]["up"]
    assert np.max(np.abs(plain["kernel"] - theirs)) > 1e-3
    lines = logged(tmp_path / "whole")
    assert lines[-1]["loss"] < lines[0]["loss"]
    ratio = 5e-3 / transformer.optimizer.lr
    assert [line["muon_lr"] for line in lines] == pytest.approx([x["lr"] * ratio for x in lines])
    assert "muon_lr" not in logged(chain.run)[0]
    for one, other in zip(logged(tmp_path / "split"), lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_scale_at_its_floor_stops_the_run(chain, transformer, tmp_path):
    experiment = dataclasses.replace(
        transformer,
        precision="float16",
        loss_scale=LossScaleConfig(initial=2.0**30, minimum=2.0**29, hysteresis=1, patience=5),
    )
    with pytest.raises(InputError, match=r"step \d+: the loss scale sits at its floor of 5368"):
        run(experiment, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "bundle").exists()


def test_weights_of_the_release_are_not_trained_with_its_arithmetic(transformer):
    official = {"pb_relax_attention": False, "embedding_gradient": 1.0, "compat": "official"}
    model = dataclasses.replace(transformer.model, **official)
    with pytest.raises(InputError, match="to finetune them name their bundle in init_from"):
        dataclasses.replace(transformer, model=model)


def test_what_does_not_fit_leaves_no_trace(chain, transformer, tmp_path):
    def change(section, **changes):
        part = dataclasses.replace(getattr(transformer, section), **changes)
        return dataclasses.replace(transformer, **{section: part})

    start = {"init_from": f"{chain.run}/bundle"}
    wrong = {
        "needs 3 devices, but there are 8": change("mesh", data=3),
        "train.global_batch = 12 cannot be split over mesh.data": change("train", global_batch=12),
        "init_from = 'nowhere' (looked for in ": dataclasses.replace(
            transformer, init_from="nowhere"
        ),
        "does not fit the config": dataclasses.replace(change("model", layers=1), **start),
        f"data.store = '{tmp_path}/none': {tmp_path}/none: no token": change(
            "data", store=f"{tmp_path}/none"
        ),
        "train.best_metric = 'lsos' is not measured: did you mean loss": change(
            "train", keep_best=1, best_metric="lsos"
        ),
        "cannot be split 8 ways over tensor": dataclasses.replace(
            change("model", width=36), mesh=MeshConfig(data=1, tensor=8)
        ),
    }
    for message, experiment in wrong.items():
        with pytest.raises(InputError) as error:
            run(experiment, str(tmp_path / "run"))
        assert message in str(error.value)
        assert not (tmp_path / "run").exists(), message


def test_a_batch_is_split_over_data_and_fsdp(capsys):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(TrainConfig(steps=1, global_batch=12), mesh)
    check_batch(TrainConfig(steps=1, global_batch=24, accumulate=3), mesh)
    assert capsys.readouterr().err == ""
    check_batch(TrainConfig(steps=1, global_batch=24, accumulate=4), mesh)
    assert "leaves 6 rows at a time, which 4 devices cannot share" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"global_batch = 14 .* = 4 devices: choose a multiple of"):
        check_batch(TrainConfig(steps=1, global_batch=14), mesh)


def test_throughput_is_of_all_devices(transformer):
    class Objective:
        tokens_per_row, flops_per_row = 10, 1e6

    measured = throughput(Objective, transformer)(0.5)
    assert measured["tokens_per_second"] == 8 * 10 / 0.5
    peak = 8 * peak_flops(jax.devices()[0], np.float32)
    assert measured["mfu"] == pytest.approx(8 * 1e6 / 0.5 / peak)
    # A peak that was measured while others took the cores is at least what the run reaches.
    Objective.flops_per_row = 100 * peak
    assert throughput(Objective, transformer)(0.5)["mfu"] == 1
