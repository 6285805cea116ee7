"""The experiment on the weight of text tokens: what it trains, chance, and what it prints."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import text_weight
from bench.text_weight import CONFIG, Setting, chance, experiment, measured
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.shapes.judge import ATTRIBUTES
from cogview_jax.tasks.experiment import read_experiment

CHANGED = {"optimizer", "seed", "text_weight", "model", "data", "train"}


def line(step, right):
    """A line of metrics of a run whose shares are all `right`."""
    shares = {f"{of}/{name}": right for of in ("generated", "ceiling") for name in ATTRIBUTES}
    shares |= {"generated/all": right, "ceiling/all": 0.9, "prompts": 4.0}
    of_splits = {
        f"benchmark/{split}/{name}": value
        for split in ("seen", "held_out")
        for name, value in shares.items()
    }
    return {"step": step, "image_loss": 0.5, "text_loss": 2.0} | of_splits


def test_a_run_is_the_demos_but_for_its_setting():
    demo = read_experiment(load_config(str(CONFIG)))
    found = experiment(Setting(0.0, 0.1, seed=3), Path("here"), 1600, 400, 300)
    differing = {
        field.name
        for field in dataclasses.fields(demo)
        if getattr(found, field.name) != getattr(demo, field.name)
    }
    assert differing == CHANGED
    assert (found.seed, found.text_weight, found.train.steps) == (3, 0.0, 1600)
    assert found.optimizer == dataclasses.replace(demo.optimizer, muon_lr=0.0)
    assert found.model == dataclasses.replace(demo.model, embedding_gradient=0.1)
    assert found.train.benchmark == "shapes"
    assert (found.train.benchmark_every, found.train.benchmark_prompts) == (400, 300)
    assert (found.data.store, found.data.image_tokenizer) == ("here/tokens", "here/codec/bundle")


def test_chance_is_how_often_the_next_caption_says_the_same():
    """The judge reads true drawings rightly, so scenes can be compared without drawing them."""
    fresh = next(fresh_scenes(24, 0))
    pairs = list(zip(fresh.scenes, (*fresh.scenes[1:], fresh.scenes[0]), strict=True))
    found = chance(fresh)
    assert found["background"] == np.mean([one.background == two.background for one, two in pairs])
    assert found["count"] == np.mean([len(one.objects) == len(two.objects) for one, two in pairs])
    assert 0 < found["background"] < 1
    assert 0 < found["count"] < 1
    assert found["all"] < 0.1


def test_the_last_measurement_of_a_step_counts(tmp_path):
    """An interrupted run measures a step again."""
    lines = [line(2, 0.1), {"step": 3, "loss": 1.0}, line(4, 0.2), line(4, 0.3)]
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert measured(tmp_path) == [line(2, 0.1), line(4, 0.3)]


def test_the_command_prints_means_and_seeds_and_draws_each_weight(tmp_path, monkeypatch, capsys):
    def finished(wanted, workdir):
        """A run whose shares are its seed's tenths, and those of a weight above 0 more by half."""
        rows = [line(step, wanted.seed / 10 + (wanted.text_weight > 0) / 2) for step in (2, 4)]
        metrics = Path(workdir) / "metrics"
        metrics.mkdir(parents=True)
        (metrics / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return 0

    monkeypatch.setattr(text_weight, "run", finished)
    argv = ["text_weight", "--weights", "0", "10", "--seeds", "1", "2", "--prompts", "8"]
    monkeypatch.setattr(sys, "argv", [*argv, f"--workdir={tmp_path}", f"--out={tmp_path}"])
    text_weight.main()
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row]
    assert [row[0] for row in rows] == [
        "| text weight",
        "| ---",
        "| 0",
        "| 10",
        "| ceiling",
        "| chance",
    ]
    assert rows[2][1] == "0.150 (0.100, 0.200)"
    assert rows[3][1] == "0.650 (0.600, 0.700)"
    assert rows[4][1] == "0.900"
    assert {len(row) for row in rows} == {9}
    with Image.open(tmp_path / "text_weight.png") as figure:
        found = {tuple(pixel) for pixel in np.asarray(figure.convert("RGB")).reshape(-1, 3)}
    assert {(0xD5, 0x5E, 0), (0xE6, 0x9F, 0)} <= found


def test_an_interrupted_run_ends_the_command_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(text_weight, "run", lambda *_: 75)
    monkeypatch.setattr(sys, "argv", ["text_weight", f"--workdir={tmp_path}", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match="75"):
        text_weight.main()
    assert not list(tmp_path.iterdir())
