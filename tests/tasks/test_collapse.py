"""A codebook that collapses is found, and one that does not is left alone: real training."""

import functools

import jax
import numpy as np
import pytest

from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.codec import make_objective
from cogview_jax.tasks.collapse import SETTLED, CollapseWarning
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining, Quantiser
from cogview_jax.training.codec_objective import ImageExample
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step


def experiment(revive_below):
    """A codebook learned by gradients, far too wide for images of 8 x 8 pixels."""
    return read_experiment(
        {
            "stage": "image_tokenizer",
            "train": {"steps": SETTLED, "global_batch": 4},
            "data": {"source": {"kind": "folder", "require_captions": False}},
            "optimizer": {"lr": 2e-3, "beta2": 0.99, "weight_decay": 0.0},
            "model": {
                **{"image_size": 8, "downsampling": 2, "channels": 8, "residual_blocks": 0},
                **{"codebook": 512, "code_width": 64, "quantiser": {"kind": "learned"}},
            },
            "loss": {"revive_below": revive_below},
        }
    )


def gradients():
    """Colours that rise to the right, and others that rise downwards: uint8 [4, 8, 8, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8, :1][:2] / 7
    while True:
        first, second = rng.random((2, 4, 1, 1, 3))
        weight = rng.random((4, 1, 1, 1))
        yield (255 * (first * x * weight + second * y * (1 - weight))).astype(np.uint8)


@functools.cache
def usage(revive_below):
    """The codebook_usage of every step."""
    config = experiment(revive_below)
    objective, optimizer = make_objective(config), make_optimizer(config.optimizer, SETTLED)
    rate = schedule(config.optimizer, SETTLED)
    state = jax.jit(lambda: unbox(initial_state(objective, optimizer, 0)))()
    step = jax.jit(make_step(objective, optimizer, rate, seed=0), donate_argnums=0)
    found = []
    for _, images in zip(range(SETTLED), gradients(), strict=False):
        state, metrics = step(state, ImageExample(images))
        found.append(metrics["codebook_usage"])
    return [float(value) for value in jax.device_get(found)]


def test_a_collapsed_codebook_is_one_line_with_the_remedies(capsys):
    warning, shares = CollapseWarning(experiment(0.0)), usage(0.0)
    for step in (1, 100, SETTLED - 1):
        warning.check(step, {"codebook_usage": shares[step - 1]})
        assert shares[step - 1] < 0.1
    assert capsys.readouterr().err == ""
    for _ in range(2):
        warning.check(SETTLED, {"codebook_usage": shares[-1]})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"step {SETTLED}: the codebook has collapsed: codebook_usage is {shares[-1]:.1%} of 512"
        " codes, expected at least 10%."
    )
    for remedy in (
        "loss.revive_below = 0.03",
        "model.quantiser.entropy_weight = 0.1",
        "model.code_width below 64",
        "model.quantiser.kind cosine or fsq",
    ):
        assert remedy in line


def test_the_first_remedy_helps(capsys):
    warning, shares = CollapseWarning(experiment(0.03)), usage(0.03)
    assert shares[-1] > 0.5
    for step, share in enumerate(shares, 1):
        warning.check(step, {"codebook_usage": share})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "kind", [k for k, c in Quantiser.kinds.items() if "cogview" in c.__module__]
)
def test_remedies_are_settings_that_the_quantiser_has(kind):
    quantiser = Quantiser.kinds[kind]()
    for training in (CodebookTraining(), CodebookTraining(revive_below=0.0)):
        said = " ".join(quantiser.remedies(training, 64))
        assert said
        revives = kind in ("moving_average", "learned", "cosine")
        assert ("revive_below" in said) == revives
        for name in ("entropy_weight", "kl_weight", "levels"):
            if name in said:
                assert hasattr(quantiser, name), name
    assert "code_width" not in " ".join(quantiser.remedies(CodebookTraining(), 8))
