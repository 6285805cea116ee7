"""Held-out images: what is measured of them, and what a run does with it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.records import BadRecord
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.evaluation.image_quality import ssim
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import lpips
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tasks.codec import DIFFERENCE_GAIN, CodecTask
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.training import run
from cogview_jax.tasks.validation import ImageValidation
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes
from run_files import logged, steps


@pytest.fixture(scope="module")
def experiment(chain, oracles):
    """A small image tokenizer, a quarter of whose images are held out, with narrow LPIPS."""
    config = json.loads((chain.codec / "config.json").read_text())
    config["data"]["validation_share"] = 0.25
    config["train"] |= {
        "validate_every": 2,
        "validation_images": 13,
        "validation_lpips": str(oracles("taming_vq/last.ckpt")),
    }
    return read_experiment(config)


def opened(experiment, chain, mesh=MeshConfig(data=8)):
    """The task, the records it trains on, and the state of the chain's image tokenizer."""
    task = CodecTask(experiment, Workdir(chain.codec))
    shapes = state_shapes(task.objective, make_optimizer(experiment.optimizer, 1), make_mesh(mesh))
    source = task.source()
    return task, source, task.initial(Bundle(chain.codec / "bundle"), shapes)


def with_train(experiment, **changes):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


def held_out_images(experiment, source):
    """All images that training does not see, in the order of the source."""
    trained = {source.key(i) for i in range(len(source))}
    whole = experiment.data.source.open()
    assert len(trained) < len(whole)
    return np.stack([whole[i].image for i in range(len(whole)) if whole.key(i) not in trained])


def test_metrics_are_those_of_the_images_that_the_bundle_decodes(chain, experiment):
    """13 images in batches of 8, and a slow form of each number in float64."""
    task, source, state = opened(experiment, chain)
    validation = task.validation()
    found = validation.measure(state)
    assert list(found) == task.validation_metrics()

    images = held_out_images(experiment, source)
    assert len(images) > 13
    model = cogview_jax.load(chain.codec / "bundle")
    codes = model.encode(images[:13])
    decoded = model.decode(codes)
    errors = np.mean((images[:13] / 255.0 - decoded / 255.0) ** 2, axis=(1, 2, 3))
    counts = np.bincount(codes.ravel(), minlength=model.codec.config.codebook)
    shares = counts[counts > 0] / codes.size
    weights = read_lpips(experiment.train.validation_lpips)
    a, b = (array / np.float32(127.5) - 1 for array in (images[:13], decoded))
    expected = {
        "l2": errors.mean(),
        "psnr": np.mean(-10 * np.log10(errors)),
        "ssim": np.mean(jax.jit(ssim)(images[:13], decoded)).item(),
        "lpips": np.mean(jax.jit(lpips)(weights, a, b)).item(),
        "usage": np.mean(counts > 0),
        "perplexity": np.prod(shares**-shares),
    }
    for name, value in expected.items():
        assert found[f"validation_{name}"] == pytest.approx(value, rel=1e-5), name

    file = experiment.train.validation_lpips
    assert validation.describe() == (
        f"13 of {len(images)} held-out images every 2 steps; LPIPS by vgg16"
        f" (train.validation_lpips = {file})"
    )
    # Another mesh, and batches of another size: the same numbers.
    split = with_train(experiment, global_batch=24, accumulate=3)
    task, _, state = opened(split, chain, MeshConfig(data=2, fsdp=4))
    assert task.validation().measure(state) == pytest.approx(found, rel=1e-5)


def test_without_weights_lpips_is_not_measured(chain, experiment):
    task, _, _ = opened(with_train(experiment, validation_lpips=""), chain)
    validation = task.validation()
    assert "validation_lpips" not in task.validation_metrics()
    assert "LPIPS is not measured, since train.validation_lpips is empty" in validation.describe()
    # Those of the loss are used where a VQGAN has them, and named.
    model = dataclasses.replace(experiment.model, mean=(0.5,) * 3, std=(0.5,) * 3)
    file = experiment.train.validation_lpips
    for perceptual, said in (
        (file, f"; LPIPS by vgg16 (loss.perceptual = {file})"),
        ("", "not measured, since train.validation_lpips and loss.perceptual are empty"),
    ):
        lossy = dataclasses.replace(
            with_train(experiment, validation_lpips=""),
            model=model,
            loss=VQGANLoss(perceptual=perceptual),
        )
        source = experiment.data.source.open()
        assert ImageValidation(lossy, task.objective, source).describe().endswith(said)
    task, _, _ = opened(with_train(experiment, validate_every=0), chain)
    assert task.validation() is None


class Broken:
    """Records of which only some can be read."""

    def __init__(self, records, good):
        self.records, self.good = records, good

    def __len__(self):
        return len(self.records)

    def key(self, i):
        return self.records.key(i)

    def __getitem__(self, i):
        if i not in self.good:
            raise BadRecord(self.key(i), "broken")
        return self.records[i]


def test_unreadable_images_are_left_out_and_counted(chain, experiment, capsys):
    task, _, state = opened(experiment, chain)
    records, objective = task.experiment.data.source.open(), task.objective

    def measured(experiment, good):
        return ImageValidation(experiment, objective, Broken(records, good)).measure(state)

    found = measured(experiment, good=(4, 12))
    assert capsys.readouterr().err == "validation: 62 of 64 held-out images cannot be used\n"
    one, other = (measured(experiment, good=(number,)) for number in (4, 12))
    # 4 and 12 are the first two that can be read, wherever they are and whatever follows.
    two = with_train(experiment, validation_images=2)
    capsys.readouterr()
    first = measured(two, good=(4, 12, 13, 40))
    assert capsys.readouterr().err == "validation: 11 of 13 held-out images cannot be used\n"
    assert first == pytest.approx(found, rel=1e-5)
    # One that could be read when the run began, and no more.
    gone = ImageValidation(experiment, objective, broken := Broken(records, (4,)))
    broken.good = ()
    with pytest.raises(InputError, match=r"none of the 64 held-out images can be read"):
        gone.measure(state)
    for name in ("l2", "psnr", "ssim", "lpips"):
        name = f"validation_{name}"
        assert found[name] == pytest.approx((one[name] + other[name]) / 2, rel=1e-5)
    assert one["validation_usage"] <= found["validation_usage"]
    with pytest.raises(InputError, match=r"none of the 64 held-out images can be read"):
        ImageValidation(experiment, objective, Broken(records, ()))


def test_the_sheet_shows_held_out_images(chain, experiment):
    task, source, state = opened(experiment, chain)
    images = held_out_images(experiment, source)[:8]
    model = cogview_jax.load(chain.codec / "bundle")
    decoded = model.decode(model.encode(images))
    errors = np.clip(abs(images.astype(float) - decoded) * DIFFERENCE_GAIN, 0, 255)
    labels = ["held-out image"] * 8 + ["reconstruction"] * 8 + ["absolute error x 4"] * 8
    expected = caption_grid([*images, *decoded, *errors.astype(np.uint8)], labels, columns=8)
    np.testing.assert_array_equal(task.preview(state, source), np.asarray(expected))


def test_the_sheet_shows_other_images_where_no_held_out_one_can_be_read(
    chain, experiment, monkeypatch
):
    task, source, state = opened(with_train(experiment, validate_every=0), chain)
    monkeypatch.setattr(task, "_held_out", Broken(source, ()))
    sheet = task.preview(state, source)
    monkeypatch.setattr(task, "_held_out", None)
    np.testing.assert_array_equal(sheet, task.preview(state, source))


def test_the_best_checkpoint_by_a_held_out_metric_is_kept_also_after_a_resume(
    chain, experiment, tmp_path, monkeypatch, capfd
):
    """The rate rises until a trained image tokenizer is spoilt: later steps are worse.

    A codebook counts as collapsed from step 6 on, whatever its usage: that is one line a run.
    """
    monkeypatch.setattr("cogview_jax.tasks.collapse.SETTLED", 6)
    monkeypatch.setattr("cogview_jax.tasks.collapse.USAGE", 1.1)
    train = {"steps": 12, "checkpoint_every": 2, "sample_every": 0, "log_every": 3, "keep": 1}
    best = {"keep_best": 1, "best_metric": "validation_psnr", "validate_every": 4}
    experiment = dataclasses.replace(
        with_train(experiment, **train, **best),
        optimizer=dataclasses.replace(experiment.optimizer, lr=1.0, warmup=0.99),
        init_from=f"{chain.codec}/bundle",
    )
    run(experiment, str(tmp_path / "whole"))
    said = [line for line in capfd.readouterr().err.splitlines() if "has collapsed" in line]
    assert [line.partition(":")[0] for line in said] == ["step 6"]
    lines = logged(tmp_path / "whole")
    # Steps of measurements are log points.
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    measured = {line["step"]: line["validation_psnr"] for line in lines if "validation_l2" in line}
    assert list(measured) == [4, 8, 12]
    assert all("loss" in line for line in lines)
    winner = max(measured, key=measured.get)
    assert winner != 12, measured
    assert steps(tmp_path / "whole") == [winner, 12]

    # Only the best checkpoint is left: the run goes on from there, and the best one stays.
    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(broken / "bundle")
    shutil.rmtree(broken / "checkpoints" / "12")
    run(experiment, str(broken))
    assert logged(broken) == lines
    assert steps(broken) == [winner, 12]
    ours, theirs = (Bundle(tmp_path / name / "bundle").codec() for name in ("broken", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)

    # The finished run gives the bundle of the best step when it is asked to: what a run of as many
    # steps would have written.
    run(with_train(experiment, bundle_step="best"), str(broken))
    assert Bundle(broken / "bundle").step == winner
    # No bundle that cannot be made again is replaced.
    alone = shutil.copytree(broken, tmp_path / "alone")
    shutil.rmtree(alone / "checkpoints" / str(winner))
    with pytest.raises(InputError, match=rf"is of step {winner}, whose checkpoint is gone or dam"):
        run(with_train(experiment, bundle_step="best"), str(alone))
    assert Bundle(alone / "bundle").step == winner
    unread = shutil.copytree(broken, tmp_path / "unread")
    (unread / "checkpoints" / str(winner) / "meta" / "metadata").write_text("{")
    with pytest.raises(InputError, match=rf"is of step {winner}, whose checkpoint is gone or dam"):
        run(with_train(experiment, bundle_step="best"), str(unread))
    assert f"checkpoints/{winner} is damaged (" in capfd.readouterr().err
    # Where there is no bundle to lose, the next best checkpoint will do, and a line says so.
    shutil.rmtree(unread / "bundle")
    (broken / "checkpoints" / str(winner) / "manifest.json").write_text("{")
    shutil.copytree(broken / "checkpoints", tmp_path / "other" / "checkpoints")
    shutil.copytree(broken / "metrics", tmp_path / "other" / "metrics")
    shutil.copy(broken / "config.json", tmp_path / "other")
    for name in ("unread", "other"):
        run(with_train(experiment, bundle_step="best"), str(tmp_path / name))
        assert "bundle written (step 12)" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "other" / "damaged").iterdir()] == [str(winner)]
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "12")
    run(with_train(experiment, bundle_step=winner), str(tmp_path / "whole"))
    ours, theirs = (Bundle(tmp_path / name / "bundle").codec() for name in ("broken", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_settings_that_do_not_fit_are_refused(chain, experiment, tmp_path):
    none = dataclasses.replace(experiment.data, validation_share=0.0)
    with pytest.raises(InputError, match=r"but data\.validation_share = 0 holds out no images"):
        dataclasses.replace(experiment, data=none)
    best = with_train(experiment, keep_best=1, best_metric="validation_lpisp")
    with pytest.raises(InputError, match="is not measured: did you mean validation_lpips"):
        run(best, str(tmp_path / "run"))
    absent = with_train(best, validation_lpips="", best_metric="validation_lpips")
    with pytest.raises(InputError, match=r"'validation_lpips' is not measured"):
        run(absent, str(tmp_path / "run"))
    nothing = dataclasses.replace(experiment.data, validation_share=0.9999)
    with pytest.raises(InputError, match="holds out 64 of 64 records"):
        run(dataclasses.replace(experiment, data=nothing), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
