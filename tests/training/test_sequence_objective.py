"""The loss of sequences, token by token; what padding, weights and dropout do to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.sequence_objective import training_flops

ROWS = 4
OBJECTIVE = tiny.transformer_objective()
START = tiny.start(OBJECTIVE)


def sums(batch, objective=OBJECTIVE, key=0, first=0):
    """Of rows that are numbered from `first` on."""
    rows = first + np.arange(len(batch.tokens))
    return jax.jit(objective.sums)(START.params, (), batch, rows, jax.random.key(key))


@pytest.fixture(scope="module")
def batch():
    return tiny.sequences(0, ROWS)


def test_loss_is_the_weighted_sum_of_cross_entropies(batch):
    hidden = OBJECTIVE.model.apply({"params": START.params}, batch.tokens, batch.positions)
    logits = OBJECTIVE.model.apply({"params": START.params}, hidden, method="logits")
    logits = np.asarray(logits, np.float64)

    text, image, counts = 0.0, 0.0, [0, 0]
    for row, captions in enumerate([1 + row * 5 // ROWS for row in range(ROWS)]):
        # Targets: the caption, two commands, four codes, a command; then padding.
        kinds = ["text"] * (captions + 2) + ["image"] * 4 + ["text"]
        for place, kind in enumerate(kinds):
            scores = logits[row, place]
            entropy = np.log(np.exp(scores).sum()) - scores[batch.targets[row, place]]
            text, image = text + entropy * (kind == "text"), image + entropy * (kind == "image")
            counts[kind == "image"] += 1

    result = sums(batch)
    assert result.loss == pytest.approx(3 * text + image, rel=1e-6)
    assert result.metrics["text_loss"] == pytest.approx((text, counts[0]), rel=1e-6)
    assert result.metrics["image_loss"] == pytest.approx((image, counts[1]), rel=1e-6)
    assert OBJECTIVE.normalizer(batch) == 3 * counts[0] + counts[1]


def test_what_stands_in_the_padding_is_irrelevant(batch):
    padding = (batch.text_weights + batch.image_weights) == 0
    assert padding.sum() == sum(5 - (1 + row * 5 // ROWS) for row in range(ROWS))
    # The last token of a row is read too, but what it predicts has no weight.
    changed = batch._replace(
        targets=np.where(padding, 7, batch.targets), tokens=np.where(padding, 5, batch.tokens)
    )
    assert sums(changed).loss == sums(batch).loss


def test_dropout_differs_by_step_and_by_part(batch):
    config = TransformerConfig(layers=2, width=32, heads=4, dropout=0.5, remat="none")
    objective = tiny.transformer_objective(config)
    # The same rows twice: as rows 0 to 3, and as rows 4 to 7 of a batch.
    first, again = (sums(batch, objective).loss for _ in range(2))
    assert first == again
    assert first != sums(batch, objective, first=ROWS).loss
    assert first != sums(batch, objective, key=1).loss
    assert sums(batch, key=0).loss == sums(batch, key=1).loss  # no dropout, no random number


def test_flops_are_six_a_matrix_parameter_and_token_and_those_of_attention():
    vocabulary, layout = Vocabulary(), LayoutConfig()
    model = Transformer(
        TransformerConfig(), vocabulary.size, make_layout(layout, vocabulary).length
    )
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    matrices = sum(
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-2].key == "kernel" or path[0].key == "word_embedding"
    )
    # Forward: two [1088, width] x [width, 1088] products a layer, 2 FLOPs a multiply-add.
    attention = 48 * 2 * 2 * 1088 * 1088 * 2560
    assert training_flops(model, 1088) == pytest.approx(6 * matrices * 1088 + 3 * attention)
    assert OBJECTIVE.tokens_per_row == 12
    assert OBJECTIVE.flops_per_row == training_flops(OBJECTIVE.model, 12)
