"""The transformer with sparse attention equals its plain form in every use."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cogview_jax
import reference
import tiny
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.interop.official.fill import fill
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.pivots import PIVOT_STREAM, draw_pivot_slots, draw_regions
from cogview_jax.models.sparse_attention import PivotCache, ThreeRegions
from cogview_jax.models.transformer import Transformer, cached_forward, empty_cache
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh, place_batch
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import LayoutConfig, left_padded, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.sequence_objective import SequenceObjective, training_flops
from cogview_jax.training.step import sum_over_parts

VOCABULARY = Vocabulary(codes=20, text=12)  # [PAD] is 32
CONFIG = TransformerConfig(
    layers=2,
    width=32,
    heads=4,
    dropout=0.1,
    remat="none",
    attention="sparse",
    window=3,
    window_blocks=2,
    pivots=8,
)
MODEL = Transformer(CONFIG, VOCABULARY.size, 40, vocabulary=VOCABULARY)


def masks(pivots, length, config):
    return [reference.sparse_mask(length, p, config.window, config.window_blocks) for p in pivots]


@pytest.fixture(scope="module")
def params():
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens)["params"]
    return reference.random_like(unbox(boxed), seed=0)


@pytest.fixture(scope="module")
def rows():
    """Three rows of 26, 13 and 20 tokens: a command, text, a command, codes."""
    generator = np.random.default_rng(1)
    sizes = ((4, 20), (2, 9), (5, 13))
    return [
        np.concatenate([[40], generator.integers(20, 32, t), [41], generator.integers(0, 20, i)])
        for t, i in sizes
    ]


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, pattern=None):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.apply({"params": params}, tokens, positions, pattern)
    return model.apply({"params": params}, hidden, method=model.logits)


@functools.partial(jax.jit, static_argnums=0)
def continued(model, layers, tokens, positions, valid, cache, index):
    hidden, cache = cached_forward(model, layers, tokens, positions, valid, cache, index)
    return model.apply({"params": layers}, hidden, method=model.logits), cache


def right_padded(rows, length):
    tokens = np.full((len(rows), length), VOCABULARY.command("PAD"), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens


def test_the_model_equals_masked_dense_attention(params, rows):
    tokens = right_padded(rows, 27)
    regions = draw_regions(CONFIG, VOCABULARY, tokens, jax.random.split(jax.random.key(3), 3))
    result = logits(MODEL, params, tokens, regions)
    for i, row in enumerate(rows):
        pivots = np.asarray(regions.pivots)[:, i]
        kinds = [int(np.isin(np.flatnonzero(row >= 20), layer).all()) for layer in pivots]
        assert kinds == [1, 1]  # all text and commands are pivots
        assert set(pivots[0]) != set(pivots[1])
        expected = reference.transformer(params, CONFIG, row, None, masks(pivots, len(row), CONFIG))
        np.testing.assert_allclose(result[i, : len(row)], expected, atol=1e-5)


def test_without_keys_a_row_is_the_same_in_any_company(params, rows):
    together = logits(MODEL, params, right_padded(rows, 27))
    np.testing.assert_array_equal(together, logits(MODEL, params, right_padded(rows, 27)))
    for i in range(3):
        others = right_padded([rows[i], rows[2 - i]], 30)
        alone = logits(MODEL, params, others)[0, : len(rows[i])]
        np.testing.assert_allclose(alone, together[i, : len(rows[i])], atol=1e-5)


@pytest.mark.parametrize("steps", [(26,), (9, 1, 1, 8, 1, 1, 5), (2, *(1,) * 24)])
def test_cached_decoding_equals_the_whole_pass(params, rows, steps):
    """Rows are padded on the left, and blocks are counted from the first token of each row.

    The cache starts with garbage. More tokens than a window holds are split into chunks.
    """
    tokens, valid = left_padded(rows, 26)
    keys = jax.random.split(jax.random.key(3), 3)
    slots = draw_pivot_slots(CONFIG, VOCABULARY, tokens, valid, keys)
    starts = 26 - np.array([len(row) for row in rows])
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    layers, done, pieces = unstack_layers(params), 0, []
    cache = [
        PivotCache(entry.keys + 1e3, entry.values + 1e3, entry.pivots, *(entry[3:]))
        for entry in empty_cache(MODEL, 3, 26, slots)
    ]
    for count in steps:
        part = slice(done, done + count)
        result, cache = continued(
            MODEL, layers, tokens[:, part], positions[:, part], valid, cache, done
        )
        pieces.append(result)
        done += count
    result = np.concatenate(pieces, axis=1)
    for i, row in enumerate(rows):
        # These are the same pivots as positions in the row, and those of the row alone.
        pivots = np.asarray(slots)[:, i] - starts[i]
        alone = draw_regions(CONFIG, VOCABULARY, row[None], keys[i : i + 1])
        np.testing.assert_array_equal(np.minimum(pivots, len(row)), alone.pivots[:, 0])
        whole = logits(MODEL, params, row[None], alone)[0]
        np.testing.assert_allclose(result[i, -len(row) :], whole, atol=1e-5)


def test_rows_at_different_slots_equal_the_whole_pass(params, rows):
    """Row i begins i steps after the first; until then it writes what its own token replaces."""
    lengths = np.array([len(row) for row in rows])
    count, layers = lengths.max(), unstack_layers(params)
    keys = jax.random.split(jax.random.key(3), 3)
    mask, found = np.ones((3, count), bool), [[] for _ in rows]
    slots = draw_pivot_slots(CONFIG, VOCABULARY, right_padded(rows, count), mask, keys)
    cache = empty_cache(MODEL, 3, count, slots)
    for step in range(count + 2):
        index = np.clip(step - np.arange(3), 0, lengths - 1)
        token = np.stack([row[at] for row, at in zip(rows, index, strict=True)])[:, None]
        result, cache = continued(MODEL, layers, token, index[:, None], mask, cache, index)
        for i, at in enumerate(index):
            found[i][at:] = [result[i, 0]]
    for i, row in enumerate(rows):
        alone = ThreeRegions(slots[:, i : i + 1], CONFIG.window, CONFIG.window_blocks)
        whole = logits(MODEL, params, right_padded([row], count), alone)[0]
        np.testing.assert_allclose(np.stack(found[i]), whole[: len(row)], atol=1e-5)


PROMPTS = ([40, 21, 22, 23, 41], [40, 25, 41], [40, 20, 24, 31, 27, 26, 41])
COUNT = 15


def sampled(params, order=(0, 1, 2), *, longest=7, sampling=None):
    tokens, valid = left_padded([np.array(PROMPTS[i]) for i in order], longest)
    result = generate(
        unstack_layers(params),
        tokens,
        valid,
        sample_keys(0, [str(i) for i in order], [0] * len(order)),
        row_settings([sampling or SamplingConfig(temperature=0)] * len(order)),
        model=MODEL,
        count=COUNT,
        first=0,
        last=20,
    )
    return np.asarray(result)


def test_sampling_equals_passes_over_the_whole_prefix(params):
    keys = sample_keys(0, ["0", "1", "2"], [0, 0, 0])
    for i, row in enumerate(sampled(params).tolist()):
        known = [*PROMPTS[i], *([0] * COUNT)]  # of what is to come only the kind is known
        stream = jax.random.fold_in(keys[i], PIVOT_STREAM)[None]
        pivots = np.asarray(draw_regions(CONFIG, VOCABULARY, np.array([known]), stream).pivots)[
            :, 0
        ]
        prefix = list(PROMPTS[i])
        for _ in range(COUNT):
            mask = masks(pivots, len(prefix), CONFIG)
            scores = reference.transformer(params, CONFIG, prefix, None, mask)[-1, :20]
            prefix.append(int(np.argmax(scores)))
        assert prefix[-COUNT:] == row


def test_gaps_of_a_query_are_filled_by_passes_over_the_whole_prefix(params):
    """The row has codes, a given command, and text; the likeliest token is sampled."""
    command = VOCABULARY.command
    query = [command("ROI1"), 21, 22, command("BOI1"), *[-1] * 9, command("EOI1"), *[-1] * 4]

    def likeliest(shares, samples):
        return np.argmax(shares, axis=-1)

    row = fill(MODEL, unstack_layers(params), query, VOCABULARY, SamplingConfig(), likeliest)[0]
    kinds = np.array(query)
    kinds[4:13], kinds[14:] = 0, 20
    pivots = np.asarray(draw_regions(CONFIG, VOCABULARY, kinds[None]).pivots)[:, 0]
    mask = masks(pivots, len(query), CONFIG)
    scores = reference.transformer(params, CONFIG, row, None, mask)
    for place in np.flatnonzero(np.array(query) < 0):
        first, last = (0, 20) if place < 13 else (20, 32)
        assert row[place] == first + np.argmax(scores[place - 1, first:last])


def test_a_sample_does_not_depend_on_its_company_its_place_or_the_padding(params):
    sampling = SamplingConfig(temperature=1.0, top_k=0)
    together = sampled(params, sampling=sampling)
    np.testing.assert_array_equal(
        sampled(params, (2, 0, 1), sampling=sampling), together[[2, 0, 1]]
    )
    alone = sampled(params, (1,), longest=3, sampling=sampling)
    np.testing.assert_array_equal(alone, together[[1]])


def test_a_bundle_remembers_what_it_needs(params, rows, tmp_path):
    layout = LayoutConfig(text_length=4, grid=6)  # 44 tokens
    wide = {**params, "position_embedding": np.resize(params["position_embedding"], (44, 32))}
    write_bundle(tmp_path / "bundle", transformer=TransformerPart(CONFIG, VOCABULARY, layout, wide))
    loaded = cogview_jax.load(tmp_path / "bundle")
    expected = logits(MODEL, params, rows[0][None])
    np.testing.assert_allclose(loaded.logits(rows[0][None]), expected, atol=1e-5)


# ---- training

LAYOUT = make_layout(LayoutConfig(text_length=4, grid=5), VOCABULARY)  # 33 tokens
ROWS = 8


def objective(**changes):
    config = dataclasses.replace(CONFIG, dropout=0.0, **changes)
    return SequenceObjective(dataclasses.replace(MODEL, config=config), LAYOUT)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(5)
    examples = [
        LAYOUT.example(
            {"text": generator.integers(0, 12, 1 + i % 4), "image": generator.integers(0, 20, 25)}
        )
        for i in range(ROWS)
    ]
    return tiny.stacked(examples)


def loss_and_gradients(objective, params, batch, key=0, parts=1, rows=None):
    rows = np.arange(ROWS) if rows is None else rows

    def of_part(part):
        return jax.value_and_grad(
            lambda params: objective.sums(params, (), *part, jax.random.key(key)).loss
        )(params)

    return jax.jit(lambda batch: sum_over_parts(of_part, batch, parts))((batch, rows))


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max())


@pytest.fixture(scope="module")
def whole(params, batch):
    return loss_and_gradients(objective(), params, batch)


def test_the_loss_is_that_under_the_masks_of_the_rows_pivots(params, batch, whole):
    key = jax.random.fold_in(jax.random.key(0), PIVOT_STREAM)
    keys = jnp.stack([jax.random.fold_in(key, row) for row in range(ROWS)])
    pivots = np.asarray(draw_regions(CONFIG, VOCABULARY, batch.tokens, keys).pivots)
    total = 0.0
    for i in (0, ROWS - 1):
        count = int((batch.text_weights + batch.image_weights)[i].sum())
        mask = masks(pivots[:, i], count, CONFIG)
        scores = reference.transformer(params, CONFIG, batch.tokens[i, :count], None, mask)
        for score, target in zip(scores, batch.targets[i], strict=False):
            total += np.log(np.exp(score - score.max()).sum()) + score.max() - score[target]
    # The first and last row by themselves: pivots depend on the number of a row, not its index.
    rows = np.array([0, ROWS - 1])
    part = jax.tree.map(lambda field: field[rows], batch)
    loss, other = (
        loss_and_gradients(objective(), params, part, key=key, rows=rows)[0] for key in (0, 1)
    )
    assert loss == pytest.approx(total, rel=1e-5)
    assert other != pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("how", [{"remat": "full"}, {"parts": 4}])
def test_recomputation_and_parts_of_a_batch_change_nothing(params, batch, whole, how):
    parts = how.pop("parts", 1)
    assert_same(loss_and_gradients(objective(**how), params, batch, parts=parts), whole)


def test_a_mesh_changes_nothing(params, batch, whole):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = loss_and_gradients(objective(), params, place_batch(batch, mesh))
    assert_same(split, whole)


def test_flops_count_the_keys_that_a_query_can_see():
    dense = dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, attention="dense"))
    keys = CONFIG.pivots + CONFIG.window * CONFIG.window_blocks
    for tokens in (10, 100):
        saved = training_flops(dense, tokens) - training_flops(MODEL, tokens)
        assert saved == 12 * 2 * 32 * tokens * max(0, tokens - keys)


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "spare"}, "model attention 'spare': choose from dense, sparse"),
        ({"window": 0}, "window = 0: expected 1 to"),
        ({"window_blocks": 0}, "window_blocks = 0: expected 1 to"),
        ({"pivots": 0}, "pivots = 0: expected 1 to"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_fewer_pivots_than_text_are_refused():
    assert objective(pivots=8)
    message = "model pivots 7: .* the layout text_to_image has 8 of them"
    with pytest.raises(InputError, match=message):
        objective(pivots=7)


def test_a_model_that_does_not_know_its_ids_is_refused(params):
    with pytest.raises(InputError, match=r"give the Transformer its vocabulary"):
        logits(dataclasses.replace(MODEL, vocabulary=None), params, np.zeros((1, 3), np.int32))


def test_a_cache_without_pivots_is_refused():
    with pytest.raises(InputError, match="a cache of sparse attention needs pivots"):
        empty_cache(MODEL, 1, 10)
