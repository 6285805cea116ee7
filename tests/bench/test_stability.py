"""The stability experiment in a short form: what fails first without which stabiliser."""

import dataclasses
import functools
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tiny
from bench.stability import recording
from bench.stability.failures import Failure, failures
from bench.stability.figures import SMOOTH, smoothed
from bench.stability.recording import EXTREME, METRICS, Record
from bench.stability.report import BEGIN, END
from bench.stability.runs import constant_losses, run
from cogview_jax.models.attention import causal_mask
from cogview_jax.models.block import Block
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tokenizers.layout import Example, LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step
from compilation import compiled_as_users

ROOT = Path(__file__).parents[2]
#: Steps of the short form. What fails early needs fewer.
STEPS = {
    "pre_ln": 20,
    "sandwich_only": 20,
    "plain_attention": 100,
    "pb_relax_only": 40,
    "both": 60,
}
VOCABULARY, LAYOUT = Vocabulary(codes=16, text=400), LayoutConfig(text_length=40, grid=4)
#: Steps after a failure that nothing helps: twelve halvings to the floor, the patience there.
DYING = 12 + 4


def experiment(root, name, **sections):
    """A variant of the config with some settings changed."""
    whole = read_experiment(load_config(f"{root}/configs/stability.py:{name}"))
    changed = {
        section: dataclasses.replace(getattr(whole, section), **changes)
        for section, changes in sections.items()
    }
    return dataclasses.replace(whole, vocabulary=VOCABULARY, layout=LAYOUT, **changed)


@pytest.fixture(scope="module")
def finished(root, chain, tmp_path_factory):
    """The short form: experiments, their folder, the folder of the results, and results.json.

    A fourth of the layers and half of the batch, and in return twice the learning rate.
    """
    folder = tmp_path_factory.mktemp("stability")
    experiments = {
        name: experiment(
            root,
            name,
            train={"steps": steps, "global_batch": 2},
            optimizer={"lr": 0.16},
            model={"layers": 16},
            data={"store": str(chain.store)},
        )
        for name, steps in STEPS.items()
    }
    (folder / "out").mkdir()
    page = f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n"
    (folder / "out" / "README.md").write_text(page, encoding="utf-8")
    # In a process of its own: how near float16 comes to its limit depends on how XLA fuses.
    with compiled_as_users(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        results = pool.submit(run, experiments, folder / "runs", folder / "out").result()
    return experiments, folder / "runs", folder / "out", results


def test_each_stabiliser_prevents_a_failure_of_its_own(finished):
    variants = finished[3]["variants"]
    assert {n: [f["quantity"] for f in v["failures"][:1]] for n, v in variants.items()} == {
        "pre_ln": ["squares"],
        "sandwich_only": ["squares"],
        "plain_attention": ["scores"],
        "pb_relax_only": ["main"],
        "both": [],
    }
    for name in ("plain_attention", "pb_relax_only"):
        # It had grown to the limit, and neither another batch nor another loss scale helped.
        failure = variants[name]["failures"][0]
        assert failure["before"] > 0.4 * 65504
        assert variants[name]["last_losses"] is None
        assert failure["step"] + DYING <= variants[name]["steps"] < STEPS[name]
    # In the same model, of the same seed and batches, what LayerNorm cannot square is no failure.
    assert variants["both"]["largest"]["norm_inputs"] > 10 * 256


def test_with_both_stabilisers_the_loss_falls(finished):
    results = finished[3]
    both = results["variants"]["both"]
    assert both["steps"] == STEPS["both"]
    assert both["skipped"] <= 10
    assert both["last_losses"]["loss"] < 0.7 * both["first_loss"]
    for kind in ("text_loss", "image_loss"):
        assert both["last_losses"][kind] < results["constant"][kind]


def test_results_are_a_table_figures_and_numbers(finished):
    experiments, workdir, out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"Before.\n{BEGIN}\n")
    assert page.endswith(f"{END}\nAfter.\n")
    assert "old" not in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[2:]]
    table = {row[0]: row[1:] for row in rows if row}
    assert list(table)[2:] == [*(f"`{name}`" for name in experiments), "a constant prediction"]
    failure = results["variants"]["pb_relax_only"]["failures"][0]
    assert table["`pb_relax_only`"][:3] == [
        "main branch",
        str(failure["step"]),
        str(failure["layer"]),
    ]
    assert table["`both`"][:2] == ["nothing", "-"]
    for name in ("layers", "growth", "losses"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300
    kept = recording.load(workdir / "both.npz", experiments["both"])
    assert kept.main.shape == (STEPS["both"], 16)
    curves = results["variants"]["both"]["curves"]
    assert curves["scores"] == [float(f"{v:.4g}") for v in kept.scores.max(axis=1)[::10]]


def test_a_recorded_variant_is_not_run_again(finished, monkeypatch):
    experiments, workdir, out, results = finished
    monkeypatch.setattr(recording, "record", lambda *_: pytest.fail("it ran again"))
    assert run(experiments, workdir, out) == results
    other = dataclasses.replace(experiments["both"], seed=1)
    assert recording.load(workdir / "both.npz", other) is None
    assert recording.load(workdir / "none.npz", other) is None


def test_a_record_with_earlier_names_of_settings_is_found(finished, tmp_path):
    experiments, workdir, *_ = finished
    with np.load(workdir / "both.npz") as file:
        arrays = dict(file)
    settings = json.loads(arrays["experiment"].item())
    settings["data"]["picture_grid"] = settings["data"].pop("image_grid")
    settings["model"]["init_deviation"] = settings["model"].pop("init_std")
    np.savez(tmp_path / "both.npz", **arrays | {"experiment": json.dumps(settings)})
    found = recording.load(tmp_path / "both.npz", experiments["both"])
    np.testing.assert_array_equal(found.main, arrays["main"])
    settings["model"]["init_deviation"] *= 2
    np.savez(tmp_path / "both.npz", **arrays | {"experiment": json.dumps(settings)})
    assert recording.load(tmp_path / "both.npz", experiments["both"]) is None


def batch_of(step, rows=4):
    """Captions and codes from numpy's random numbers."""
    rng = np.random.default_rng([7, step])
    layout = make_layout(LAYOUT, VOCABULARY)
    examples = [
        layout.example(
            {"text": rng.integers(400, size=5 + row), "image": rng.integers(16, size=16)}
        )
        for row in range(rows)
    ]
    return tiny.stacked(examples)


def test_the_record_is_of_the_parameters_and_batch_of_each_step(root):
    """Layer by layer, outside the scan, with the parameters that an unwatched training has."""
    steps = 3
    wanted = experiment(
        root, "both", train={"steps": steps}, model={"layers": 2, "width": 32, "heads": 4}
    )
    layout = make_layout(LAYOUT, VOCABULARY)
    model = Transformer(wanted.model, VOCABULARY.size, layout.length, policy("float32"))
    objective = SequenceObjective(model, layout)
    seen = recording.record(wanted, objective, map(batch_of, range(steps)), "both")

    optimizer = make_optimizer(wanted.optimizer, steps)
    rate = schedule(wanted.optimizer, steps)
    step = make_step(objective, optimizer, rate, seed=0, loss_scale=wanted.loss_scale)
    state = unbox(initial_state(objective, optimizer, 0, wanted.loss_scale))
    block, mask = Block(wanted.model, policy("float32")), causal_mask(layout.length - 1)
    one_layer = jax.jit(lambda params, x: block.apply({"params": params}, x, mask)[0])
    step, embed = jax.jit(step), jax.jit(functools.partial(model.apply, method=model.embed))
    for number in range(steps):
        batch = batch_of(number)
        params = unstack_layers(state.params)
        x = embed({"params": params}, batch.tokens, batch.positions)
        for layer, layer_params in enumerate(params["blocks"]):
            assert seen.norm_inputs[number, layer] >= float(jnp.abs(x).max()) * (1 - 1e-5)
            x = one_layer(layer_params, x)
            np.testing.assert_allclose(seen.main[number, layer], jnp.abs(x).max(), rtol=1e-4)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(seen.loss[number], metrics["loss"], rtol=1e-5)


def record_of(steps=4, layers=3, **values):
    """A record of ones, with `values` in place of some of its arrays."""
    ones = {name: np.ones(steps, np.float32) for name in METRICS}
    ones |= {name: np.ones((steps, layers), np.float32) for name in EXTREME}
    return Record(**(ones | {name: np.array(array, np.float32) for name, array in values.items()}))


INF, NAN = np.inf, np.nan
PLAIN = TransformerConfig(sandwich_ln=False, pb_relax_norm=False, pb_relax_attention=False)
SANDWICH = dataclasses.replace(PLAIN, sandwich_ln=True)
RELAXED = TransformerConfig()


def test_the_first_failure_is_found_by_step_then_layer_then_order_of_computation():
    spread = [[1, 1, 1], [2, 9, 4], [1, INF, NAN], [INF, NAN, NAN]]
    # Scores that are no number make the rest of their layer so too: they were first.
    found = failures(record_of(scores=spread, main=spread, norm_inputs=spread), RELAXED)
    assert found == [Failure("scores", step=2, layer=1, before=9)]
    # A layer further back counts more than the order within a layer.
    early = [[1, 1, 1], [2, 9, 40], [INF, NAN, NAN], [1, 1, 1]]
    found = failures(record_of(scores=spread, main=early, norm_inputs=spread), RELAXED)
    assert found == [Failure("branch", step=2, layer=0, before=40)]
    # Without Sandwich-LN a LayerNorm reads the main branch.
    found = failures(record_of(scores=spread, main=early, norm_inputs=spread), PLAIN)
    assert found[0] == Failure("main", step=2, layer=0, before=40)
    assert failures(record_of(), RELAXED) == failures(record_of(), PLAIN) == []


def test_squares_fail_above_the_root_of_the_largest_number():
    inputs = [[1, 1, 1], [200, 255.5, 255], [2, 300, 256], [1, INF, INF]]
    found = failures(record_of(norm_inputs=inputs), SANDWICH)
    squares = Failure("squares", step=2, layer=1, before=255.5)
    assert found == [squares, Failure("branch", step=3, layer=1, before=300)]
    assert failures(record_of(norm_inputs=inputs), RELAXED) == found[1:]
    assert np.isfinite(np.float16(255.5) ** 2)
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(256) ** 2)


def test_the_constant_prediction_is_the_best_fixed_distribution():
    targets = np.array([[3, 3, 0, 1], [3, 2, 0, 9]])
    batch = Example(
        tokens=np.zeros_like(targets),
        targets=targets,
        positions=np.zeros_like(targets),
        text_weights=np.array([[1, 1, 0, 0], [1, 1, 0, 0]], np.float32),
        image_weights=np.array([[0, 0, 1, 1], [0, 0, 1, 0]], np.float32),
    )
    found = constant_losses(iter([batch, batch, "never read"]), 2, vocabulary=10)
    # Of 7 tokens each: three 3s, two 0s, one 2, one 1; the last target weighs nothing.
    assert found["text_loss"] == pytest.approx((3 * np.log(7 / 3) + np.log(7)) / 4)
    assert found["image_loss"] == pytest.approx((2 * np.log(7 / 2) + np.log(7)) / 3)


def test_losses_are_smoothed_over_what_came_before():
    values = np.random.default_rng(0).normal(size=30)
    slow = [values[max(0, i + 1 - SMOOTH) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(smoothed(values), slow, rtol=1e-12, atol=1e-12)


def test_variants_differ_in_their_switches_alone(root):
    """And the wide ones from the narrow ones in what their docstring says."""
    switches = {"sandwich_ln", "pb_relax_norm", "pb_relax_attention"}
    plain = {}
    for width in ("", "_1024"):
        models = {n: experiment(root, n + width).model for n in STEPS}
        found = {n: tuple(getattr(m, s) for s in sorted(switches)) for n, m in models.items()}
        # pb_relax_attention, pb_relax_norm, sandwich_ln
        assert found == {
            "pre_ln": (False, False, False),
            "sandwich_only": (False, False, True),
            "plain_attention": (False, True, True),
            "pb_relax_only": (True, True, False),
            "both": (True, True, True),
        }
        same = [dataclasses.replace(m, **dict.fromkeys(switches, True)) for m in models.values()]
        assert len(set(same)) == 1
        plain[width] = same[0]
    assert plain["_1024"].layers == plain[""].layers == 64
    assert plain["_1024"].head_width == plain[""].head_width == 64
    assert plain["_1024"].width == 1024


def test_help_names_the_program_as_it_is_started():
    command = [sys.executable, "-m", "bench.stability", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "\nusage: python -m bench.stability [flags]\n" in result.stdout
