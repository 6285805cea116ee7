"""The comparison of quantisers: same batches, records that are kept, figures, held-out metrics."""

import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from bench import tokenizer_modes
from bench.image_tiles import Tiles
from bench.tokenizer_figures import PANELS, table
from bench.tokenizer_modes import experiment, held_out_metrics, recorded
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.codec import make_objective
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import initial_state

MODES = ("moving_average", "fixed")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of nine images of noise, 24 x 40 pixels each."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(9):
        pixels = rng.integers(256, size=(24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def command(images, tmp_path, monkeypatch):
    """Runs the command on tiny sizes; returns the folder of the records and that of the figures."""
    monkeypatch.setattr(tokenizer_modes, "BATCH", 4)
    monkeypatch.setattr(tokenizer_modes, "HELD_OUT", 8)
    sizes = {"image_size": 8, "channels": (4, 4), "codebook": 16, "code_width": 4}
    monkeypatch.setattr(tokenizer_modes, "SIZES", sizes | {"residual_blocks": 0})

    def run(*flags):
        argv = ["tokenizer_modes", "--steps=3", "--every=2", f"--workdir={tmp_path / 'runs'}"]
        argv += [f"--images={images}", "--seeds", "--modes", *MODES]
        monkeypatch.setattr(sys, "argv", [*argv, f"--out={tmp_path / 'out'}", *flags])
        tokenizer_modes.main()
        return tmp_path / "runs", tmp_path / "out"

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_modes_see_the_same_batches_and_leave_records_and_figures(command, monkeypatch):
    seen, original = [], tokenizer_modes.batches

    def watched(*arguments, **keywords):
        stream = original(*arguments, **keywords)
        seen.append([np.asarray(next(stream).image) for _ in range(3)])
        stream.set_state({"next_index": 0})
        return stream

    monkeypatch.setattr(tokenizer_modes, "batches", watched)
    runs, out = command()
    first, second = seen
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    records = {mode: lines(runs / f"images_{mode}_seed_0.jsonl") for mode in MODES}
    for mode, (setting, *rows) in records.items():
        assert setting["model"]["quantiser"]["kind"] == mode
        assert [row["step"] for row in rows] == [2, 3]
        assert all(np.isfinite(list(row.values())).all() for row in rows)
    # Encoder and decoder start alike, and the moving averages only act after a step.
    assert records["fixed"][2] != records["moving_average"][2]
    assert not (out / "tokenizer_gumbel.png").exists()
    # Each figure shows the modes it names, in colours of their own.
    blue, orange = ((0, 0x72, 0xB2), (0xD5, 0x5E, 0))
    shown = {"tokenizer_modes": {orange}, "tokenizer_quantisers": {blue}}
    for name, colours in shown.items():
        with Image.open(out / f"{name}.png") as figure:
            found = {tuple(pixel) for pixel in np.asarray(figure.convert("RGB")).reshape(-1, 3)}
        assert colours == found & {blue, orange, (0xCC, 0x79, 0xA7)}


def test_what_has_a_record_of_the_same_setting_is_not_run_again(command, monkeypatch, capsys):
    runs, _ = command()
    shown = capsys.readouterr().out
    trained = []

    def spy(experiment, *rest):
        trained.append(experiment.model.quantiser.kind)
        return original(experiment, *rest)

    original = tokenizer_modes.train
    monkeypatch.setattr(tokenizer_modes, "train", spy)
    (runs / "images_fixed_seed_0.jsonl").unlink()
    command()
    assert trained == ["fixed"]
    assert capsys.readouterr().out == shown  # and the run that was repeated has the same numbers
    path = runs / "images_fixed_seed_0.jsonl"
    setting, *rows = lines(path)
    assert recorded(path, setting) == rows
    assert recorded(path, setting | {"every": 3}) is None


def test_held_out_metrics_are_those_of_decoded_codes(command, images):
    wanted = experiment("moving_average", 0, 3, images)
    objective = make_objective(wanted)
    optimizer = make_optimizer(wanted.optimizer, 3)
    state = unbox(initial_state(objective, optimizer, 0))
    held = tokenizer_modes.held_out_images(Tiles(str(images), 8, held_out=True), 8)
    found = jax.tree.map(float, held_out_metrics(objective, state, held))
    arguments = objective.codec, state.params, state.model_state
    codes = np.asarray(encode_images(*arguments, held))
    decoded = np.asarray(decode_codes(*arguments, codes), np.float64)
    counts = np.bincount(codes.ravel(), minlength=16)
    shares = counts[counts > 0] / counts.sum()
    assert found["l2"] == pytest.approx(np.mean((decoded - held) ** 2) / 255**2, rel=1e-5)
    assert found["codebook_usage"] == np.mean(counts > 0)
    assert found["perplexity"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-5)


def test_tiles_of_every_eighth_image_are_held_out(images):
    """The shorter side of an image is eight tiles, so 24 x 40 pixels are 8 x 13 tiles of 3."""
    train, held_out = (Tiles(str(images), 3, held_out=held) for held in (False, True))
    assert (len(train), len(held_out)) == (7 * 8 * 13, 2 * 8 * 13)
    assert {held_out.key(i).split(":")[0] for i in range(len(held_out))} == {"0.png", "8.png"}
    with Image.open(images / "8.png") as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(held_out[8 * 13 + 14].image, pixels[3:6, 3:6])


def test_the_table_has_the_mean_and_its_standard_error():
    rows = [[{name: value for name, _ in PANELS.values()}] for value in (1.0, 2.0, 4.0)]
    first, _, line = table({"drawings": {"fixed": rows}}).splitlines()
    assert first.startswith("| data | mode | n | training MSE |")
    # The standard deviation is the root of 7/3.
    assert line == f"| drawings | fixed | 3 |{' 2.333 ± 0.88 |' * len(PANELS)}"
