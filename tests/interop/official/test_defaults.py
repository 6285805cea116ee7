"""Numbers that our defaults share with the release's command line."""

import json

import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.optimizer import OptimizerConfig

SHARED = {
    "clip_grad": OptimizerConfig().clip,
    "lr_decay_ratio": OptimizerConfig().floor,
    "hidden_dropout": TransformerConfig().dropout,
    "attention_dropout": TransformerConfig().weight_dropout,
    "layernorm_epsilon": TransformerConfig().epsilon,
    "make_vocab_size_divisible_by": Vocabulary(1, 1).size,
    "temperature": SamplingConfig().temperature,
    "loss_scale_window": LossScaleConfig().window,
    "min_scale": LossScaleConfig().minimum,
    "hysteresis": LossScaleConfig().hysteresis,
}


@pytest.fixture(scope="module")
def defaults(fixtures):
    return json.loads((fixtures / "argument_defaults.json").read_text())


@pytest.mark.parametrize("name", SHARED)
def test_shared_defaults_are_equal(defaults, name):
    assert SHARED[name] == defaults[name]
