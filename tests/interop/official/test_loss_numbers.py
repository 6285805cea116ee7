"""The training loss of the release and its gradients, to the last parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import official
from cogview_jax.tokenizers.layout import Example, LayoutConfig, make_layout
from cogview_jax.training.cross_entropy import cross_entropy
from cogview_jax.training.sequence_objective import SequenceObjective
from official_rows import loss_weights

LOSS = 1e-5  # absolute, as fixtures/README.md has it
GRADIENT = 1e-4  # of the largest entry


@pytest.fixture(scope="module")
def released(fixtures):
    return official.transformer(fixtures)


@pytest.fixture(scope="module")
def table(fixtures):
    return np.load(fixtures / "transformer_loss.npz")


def make_batch(text, valid, vocabulary):
    """The fields of a batch for rows as the official loader yields them."""
    text_weights, image_weights = loss_weights(text, valid, vocabulary)
    return Example(
        tokens=text[:, :-1].astype(np.int32),
        targets=text[:, 1:].astype(np.int32),
        positions=np.broadcast_to(np.arange(text.shape[1] - 1), text[:, 1:].shape),
        text_weights=text_weights,
        image_weights=image_weights,
    )


@pytest.fixture(scope="module")
def batch(fixtures, table):
    return make_batch(table["text"], table["loss_mask_in"], official.vocabulary(fixtures))


def objective_of(model, fixtures, scale):
    layout = make_layout(LayoutConfig(grid=1, text_length=1), official.vocabulary(fixtures))
    return SequenceObjective(model, layout, float(scale))


def test_positions_that_count(table, batch):
    np.testing.assert_array_equal(batch.image_weights > 0, table["img_positions"])
    np.testing.assert_array_equal(batch.text_weights > 0, table["txt_positions"])


def test_cross_entropy_of_every_position(released, table, batch):
    model, params = released
    hidden = model.apply({"params": params}, batch.tokens, batch.positions)
    logits = model.apply({"params": params}, hidden, method=model.logits)
    entropies = cross_entropy(logits, batch.targets)
    np.testing.assert_allclose(entropies, table["token_cross_entropy"], atol=1e-4)


def test_losses_and_all_gradients_at_both_scales(fixtures, released, table, batch):
    model, params = released
    scales = official.sizes(fixtures)["scales"]
    assert len(scales) > 1
    for scale in scales:
        objective = objective_of(model, fixtures, scale)

        def loss(params, objective=objective):
            rows = jnp.arange(len(batch.tokens))
            sums = objective.sums(params, (), batch, rows, jax.random.key(0))
            return sums.loss / objective.normalizer(batch), sums.metrics

        (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        found = {
            "loss": value,
            "img_loss": metrics["image_loss"][0] / metrics["image_loss"][1],
            "txt_loss": metrics["text_loss"][0] / metrics["text_loss"][1],
        }
        for name, ours in found.items():
            expected = table[f"{name}_scale{scale}"]
            np.testing.assert_allclose(ours, expected, atol=LOSS, rtol=0, err_msg=name)
        check_gradients(gradients, table, scale)
        norm = float(optax.tree.norm(gradients))
        assert norm == pytest.approx(float(table[f"grad_norm_scale{scale}"]), rel=1e-5)
        # The release clips by norm + 1e-6, optax by the norm.
        clipped, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
        bias = official.by_official_name(clipped)[
            "transformer.layers.0.attention.query_key_value.bias"
        ]
        expected = table[f"clipped_qkv_bias_grad_scale{scale}"]
        np.testing.assert_allclose(bias, expected, atol=GRADIENT * np.abs(expected).max())


def check_gradients(gradients, table, scale):
    """Every recorded gradient; with the larger scale, that is every parameter's."""
    ours = official.by_official_name(gradients)
    prefix = f"grad_scale{scale}:"
    recorded = [name.removeprefix(prefix) for name in table if name.startswith(prefix)]
    assert recorded
    if scale != 1:
        assert set(recorded) == set(ours)
    for name in recorded:
        expected = table[prefix + name]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(
            ours[name], expected, atol=GRADIENT * largest, rtol=0, err_msg=name
        )
