"""A public image tokenizer is trained on with the VQGAN loss, resumed, and given back."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.interop import conversion
from cogview_jax.interop.files import SourceFiles
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.shapes.scenes import drawing
from command_runs import call

STEPS = 4


@pytest.fixture(scope="module")
def given(oracles, tmp_path_factory):
    """The checkpoint of others, and a bundle of it for images of 32 pixels or more."""
    file, out = oracles("taming_vq/last.ckpt"), tmp_path_factory.mktemp("given") / "bundle"
    sizes = json.loads(oracles("taming_vq/config.json").read_text())["model"]["params"]["ddconfig"]
    grid = sizes["resolution"] // 2 ** (len(sizes["ch_mult"]) - 1)
    files = SourceFiles(image_tokenizer=str(file), grid=grid)
    conversion.convert("taming", None, files, None, str(out))
    return file, out


def arguments(given, folder, name):
    """Of a run that starts from the bundle, with sizes as `convert` tells them."""
    file, bundle = given
    config = Bundle(bundle).codec().config
    sizes = dataclasses.asdict(config)
    sizes |= {f"quantiser.{key}": value for key, value in sizes.pop("quantiser").items()}
    listed = {key: value for key, value in sizes.items() if value != ()}
    return (
        *("--config=configs/codec_vqgan.py", f"--workdir={folder / name}"),
        *(f"--config.model.{key}={value}" for key, value in listed.items()),
        *(f"--config.init_from={bundle}", f"--config.loss.perceptual={file}"),
        *("--config.loss.adversarial.start_step=2", "--config.loss.discriminator.layers=2"),
        *("--config.loss.discriminator.channels=8", "--config.data.source.kind=shapes"),
        *(f"--config.data.source.path={folder / 'drawings'}", "--config.train.global_batch=4"),
        *(f"--config.data.source.size={config.image_size}", f"--config.train.steps={STEPS}"),
        *("--config.data.source.train_count=32", "--config.data.source.held_out_count=8"),
        *("--config.train.log_every=1", "--config.train.checkpoint_every=2"),
        *("--config.train.sample_every=0", "--config.precision=float32"),
        "--config.train.validate_every=2",
    )


@pytest.fixture(scope="module")
def runs(root, given, tmp_path_factory):
    """Workdirs of an unbroken run, and of one that went on from its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    unbroken = call(root, "train", *arguments(given, folder, "unbroken"))
    assert unbroken.returncode == 0, unbroken.stderr
    broken = shutil.copytree(folder / "unbroken", folder / "broken")
    shutil.rmtree(broken / "bundle")
    shutil.rmtree(broken / "checkpoints" / str(STEPS))
    resumed = call(root, "train", *arguments(given, folder, "broken"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"continues after step 2 of {STEPS}" in resumed.stderr
    return folder / "unbroken", broken


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(runs):
    parts = [Bundle(run / "bundle").codec() for run in runs]
    for one, other in zip(*(jax.tree.leaves((p.params, p.codebook)) for p in parts), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = [
        [json.loads(line) for line in (run / "metrics" / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    held_out = ("validation_l2", "validation_ssim", "validation_lpips", "validation_perplexity")
    for name in ("loss", "perceptual", "generator", "discriminator", "adversarial_weight"):
        unbroken, resumed = ({line["step"]: line[name] for line in each} for each in lines)
        assert resumed == unbroken, name
    for name in held_out:
        unbroken, resumed = (
            {line["step"]: line[name] for line in each if name in line} for each in lines
        )
        assert resumed == unbroken, name
        assert list(unbroken) == [2, 4]
    weights = [line["adversarial_weight"] for line in lines[0]]
    assert [weight > 0 for weight in weights] == [False, False, True, True]


def test_what_was_trained_is_given_back_to_the_original_code(runs, given, tmp_path):
    file, _ = given
    conversion.convert(
        None, "taming", SourceFiles(), str(runs[0] / "bundle"), str(tmp_path / "back")
    )
    before = read_torch(file)["state_dict"]
    after = read_torch(tmp_path / "back" / "image_tokenizer.ckpt")["state_dict"]
    assert set(after) == {name for name in before if not name.startswith("loss.")}
    moved = [np.abs(after[name].read() - before[name].read()).max() for name in after]
    assert 0 < max(moved) < 0.1
    assert np.mean(np.array(moved) > 0) > 0.9


def test_the_decoder_learns_alone_and_codes_stay(root, given, tmp_path):
    """Three steps of the VQGAN loss (without LPIPS) on a converted checkpoint."""
    _, bundle = given
    changes = (
        *("--config.loss.decoder_only=True", "--config.loss.revive_below=0.9"),
        *("--config.loss.adversarial.perceptual_weight=0", "--config.loss.adversarial.weight=0.1"),
        *("--config.loss.adversarial.start_step=0", "--config.train.steps=3"),
        *("--config.train.ema_decay=0.1", "--config.optimizer.lr=1e-3"),
        *("--config.optimizer.warmup=0", "--config.train.checkpoint_every=3"),
    )
    done = call(root, "train", *arguments(given, tmp_path, "run"), *changes)
    assert done.returncode == 0, done.stderr
    workdir, size = tmp_path / "run", Bundle(bundle).codec().config.image_size

    before, after = (Bundle(path).codec() for path in (bundle, workdir / "bundle"))
    # The original's names: encoder, quant_conv, quantize; post_quant_conv, decoder.
    for name in ("encoder", "encoder_out", "quantiser", "decoder_in", "decoder", "decoder_out"):
        same = jax.tree.map(np.array_equal, before.params[name], after.params[name])
        assert all(jax.tree.leaves(same)) == (name in ("encoder", "encoder_out", "quantiser"))
    jax.tree.map(np.testing.assert_array_equal, before.codebook, after.codebook)

    images = np.stack([drawing(1, "train", number, size)[1] for number in range(16)])
    old, new = (cogview_jax.load(path) for path in (bundle, workdir / "bundle"))
    codes = old.encode(images)
    assert len(np.unique(codes)) > 3
    np.testing.assert_array_equal(codes, new.encode(images))
    errors = [np.mean((model.decode(codes) - np.float64(images)) ** 2) for model in (old, new)]
    assert errors[1] < 0.9 * errors[0]
    lines = (workdir / "metrics" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["adversarial_weight"] > 0 for line in lines)
