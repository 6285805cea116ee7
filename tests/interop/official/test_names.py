"""The rule tables: every name and shape of the official models, and what does not fit them."""

import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import codec_shapes
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.official.codec import OfficialCodec, rules
from cogview_jax.interop.official.sizes import infer_layout, infer_vocabulary
from cogview_jax.interop.official.transformer import RULES, OfficialTransformer
from cogview_jax.interop.rules import (
    COLUMNS,
    CONVOLUTION,
    FUSED,
    FUSED_BIAS,
    LINEAR,
    PROJECTION,
    TRANSPOSED,
    flat,
    tensor_sources,
    to_theirs,
)
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig

LAYER = "transformer.layers.{}."


def listed(rules, shapes):
    """(name, shape) of all official tensors, in order."""
    return [(name, list(source.shape)) for name, source in tensor_sources(rules, shapes).items()]


@pytest.mark.parametrize("size", ["base", "tutorial"])
def test_the_table_covers_the_official_transformer(fixtures, size):
    """All names and shapes, in the order of the state dict; no array is made."""
    released = json.loads((fixtures / "params_full.json").read_text())[size]
    there = released["config"]
    config = TransformerConfig(
        layers=there["num_layers"],
        width=there["hidden_size"],
        heads=there["num_attention_heads"],
    )
    model = Transformer(config, there["vocab_size"], there["max_position_embeddings"])
    shapes = unbox(transformer_shapes(model))
    assert listed(RULES, shapes) == list(released["parameters"].items())
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes))
    assert count == released["num_parameters"]


def test_the_table_covers_the_official_image_tokenizer(fixtures):
    released = json.loads((fixtures / "vqvae_full_shapes.json").read_text())
    there = released["config"]
    config = VQVAEConfig(
        channels=there["channel"], codebook=there["n_embed"], code_width=there["embed_dim"]
    )
    shapes = unbox(codec_shapes(config))
    del shapes["codebook"]["error"]
    assert listed(rules(config.levels), shapes) == list(released["state_dict"].items())


def test_forms_move_numbers_where_they_belong():
    """The fused projection holds all queries, then all keys, then all values, output by input."""
    rng = np.random.default_rng(0)
    width, x = 6, rng.standard_normal(6)
    weight, bias = rng.standard_normal((3 * width, width)), rng.standard_normal(3 * width)
    ours = np.einsum("i,iqo->qo", x, FUSED.ours(weight)) + FUSED_BIAS.ours(bias)
    for block, values in enumerate(ours):
        rows = slice(block * width, (block + 1) * width)
        np.testing.assert_allclose(values, weight[rows] @ x + bias[rows])
    for form, shape in (
        *((LINEAR, (3, 4)), (FUSED, (12, 4)), (FUSED_BIAS, (12,)), (COLUMNS, (5, 2))),
        (PROJECTION, (5, 4, 1, 1)),
        *((CONVOLUTION, (2, 3, 4, 5)), (TRANSPOSED, (2, 3, 4, 5))),
    ):
        array = rng.standard_normal(shape)
        there = form.ours(array)
        assert np.shares_memory(there, array)
        assert form.their_shape(there.shape) == shape
        np.testing.assert_array_equal(form.theirs(there), array)
    array = rng.standard_normal((2, 3, 4, 5))
    assert CONVOLUTION.ours(array)[3, 4, 2, 1] == array[1, 2, 3, 4]
    assert TRANSPOSED.ours(array)[3, 4, 1, 2] == array[1, 2, 3, 4]


def write_random(file, rules, shapes, prefix="", key=None):
    """An official file of random numbers, of the shapes that the table asks for."""
    rng = np.random.default_rng(0)
    slots = {name: Slot(shape, np.float32) for name, shape in listed(rules, shapes)}
    pairs = [(slot, rng.standard_normal(slot.shape, np.float32)) for slot in slots.values()]
    state = {prefix + name: slot for name, slot in slots.items()}
    write_torch(file, state if key is None else {key: state}, pairs)


@pytest.fixture
def transformer(tmp_path):
    """A small official transformer, to be spoiled."""
    folder = tmp_path / "transformer"
    config = TransformerConfig(layers=3, width=8, heads=4)
    shapes = unbox(transformer_shapes(Transformer(config, 384, 80)))
    write_random(folder / "12" / "mp_rank_00_model_states.pt", RULES, shapes, key="module")
    (folder / "latest_checkpointed_iteration.txt").write_text("12")
    return folder


@pytest.fixture
def codec(tmp_path):
    """A small official image tokenizer, to be spoiled."""
    shapes = unbox(codec_shapes(VQVAEConfig(channels=4, codebook=6, code_width=3)))
    del shapes["codebook"]["error"]
    write_random(tmp_path / "vqvae.pt", rules(3), shapes, prefix="module.")
    return tmp_path / "vqvae.pt"


def file_of(directory):
    return next(directory.glob("*/mp_rank_00_model_states.pt"))


def rewrite(file, change):
    """The file with its state dict, name -> array, given to `change`."""
    tree = read_torch(file)
    state = tree.get("module", tree)
    arrays = {name: np.array(tensor.read()) for name, tensor in state.items()}
    change(arrays)
    slots = {
        name: Slot(array.shape, array.dtype) if isinstance(array, np.ndarray) else array
        for name, array in arrays.items()
    }
    pairs = [
        (slots[name], array) for name, array in arrays.items() if isinstance(array, np.ndarray)
    ]
    write_torch(file, {"module": slots} if "module" in tree else slots, pairs)


def opened(directory, heads=4):
    """Our transformer of an official one, of the sizes its weights have."""
    official = OfficialTransformer.open(directory)
    vocabulary = infer_vocabulary(official.vocabulary_size, None, None)
    return official.part(heads, vocabulary, infer_layout(official.positions, 1, "text_to_image"))


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if str(word) not in message] == [], message


def test_sizes_are_those_of_the_weights(fixtures):
    config = json.loads((fixtures / "config.json").read_text())["config"]
    official = OfficialTransformer.open(fixtures / "transformer")
    part = opened(fixtures / "transformer", config["heads"])
    assert (part.config.layers, part.config.width) == (config["layers"], config["hidden"])
    assert (part.config.heads, part.config.hidden) == (config["heads"], config["ffn"])
    assert (part.model.vocab_size, official.vocabulary_size) == (config["vocab_size"],) * 2
    assert (part.model.positions, official.positions) == (config["max_pos"],) * 2
    assert (part.config.compat, part.config.dropout) == ("official", 0.1)
    assert (official.iteration, official.dropped) == (str(config["iteration"]), ("iteration",))

    sizes, official = config["vq"], OfficialCodec.open(fixtures / "vqvae" / "vqvae.pt")
    assert (official.codes, official.prefix) == (sizes["n_embed"], "module.")
    assert official.part(config["vq_code_side"]).config == VQVAEConfig(
        image_size=config["vq_image_size"],
        channels=sizes["channel"],
        codebook=sizes["n_embed"],
        code_width=sizes["embed_dim"],
    )


def without(name):
    def change(state):
        del state[name.format(1)]

    return change


def put(name, value):
    def change(state):
        state[name.format(1)] = value(state) if callable(value) else value

    return change


def widened(name):
    return put(name, lambda state: np.concatenate([state[name.format(1)]] * 2))


WEIGHT, BIAS = LAYER + "attention.dense.weight", LAYER + "attention.dense.bias"
UP = "transformer.layers.0.mlp.dense_h_to_4h.weight"
SPOILED = {
    "missing": (without(BIAS), "lacks transformer.layers.1.attention.dense.bias"),
    "table missing": (without("word_embeddings.weight"), "lacks word_embeddings.weight"),
    "unknown": (put("transformer.rope", np.ones(3)), "has transformer.rope, which no rule knows"),
    "renamed": (
        lambda state: state.update({"x.y": state.pop(BIAS.format(1))}),
        "lacks transformer.layers.1.attention.dense.bias and has x.y, which no rule knows",
    ),
    "shape": (widened(BIAS), "layers.1.attention.dense.bias has shape ["),
    "both axes": (
        put(LAYER + "mlp.dense_4h_to_h.weight", np.ones((2, 3))),
        "mlp.dense_4h_to_h.weight has shape [2, 3], expected [",
    ),
    "positions of another width": (
        put("transformer.position_embeddings.weight", np.ones((80, 3))),
        "position_embeddings.weight has shape [80, 3], expected [80, ",
    ),
    "flat table": (put("word_embeddings.weight", np.ones(3)), "has shape [3], expected 2 axes"),
    "empty table": (put("word_embeddings.weight", np.ones((0, 3))), "has shape [0, 3]"),
    "integers": (put(BIAS, lambda s: s[BIAS.format(0)].astype(np.int32)), "is int32, expected one"),
    "no tensor": (put(BIAS, 3), "layers.1.attention.dense.bias is no tensor"),
    "mixed types": (
        put(BIAS, lambda s: s[BIAS.format(0)].astype(np.float16)),
        "layers.1.attention.dense.bias is float16, but in layer 0 it is float32",
    ),
    "gap": (
        lambda s: [s.pop(name) for name in [*s] if name.startswith(LAYER.format(1))],
        "has the layers 0, 2: expected",
    ),
    "no layers": (
        lambda s: [s.pop(name) for name in [*s] if "layers." in name],
        "has the layers (none)",
    ),
    "repeated": (put("transformer.layers.01.x", np.ones(3)), "has transformer.layers.01.x, which"),
    "odd width": (put(UP, lambda s: s[UP][:-1]), "rows, expected a multiple of"),
}


@pytest.mark.parametrize("flaw", SPOILED)
def test_a_transformer_that_does_not_fit_the_table_is_refused(transformer, flaw):
    change, message = SPOILED[flaw]
    rewrite(file_of(transformer), change)
    refused(lambda: opened(transformer), file_of(transformer), message)


def test_many_names_are_told_by_a_few_and_a_number(transformer):
    def change(state):
        for number in range(7):
            state[f"extra.{number}"] = np.ones(1)

    rewrite(file_of(transformer), change)
    refused(lambda: opened(transformer), "has extra.0, extra.1, extra.2 and 4 more, which no rule")


def test_heads_that_do_not_divide_the_width_are_refused(transformer):
    refused(lambda: opened(transformer, 7), "with 7 heads: expected a multiple of them")


def test_folders_that_hold_no_whole_transformer_are_refused(transformer):
    tracker = transformer / "latest_checkpointed_iteration.txt"
    file, iteration = file_of(transformer), tracker.read_text()
    open_it = lambda: OfficialTransformer.open(transformer)  # noqa: E731
    shutil.copy(file, file.with_name("mp_rank_01_model_states.pt"))
    refused(open_it, file.parent, "split over several devices", "merge it")
    file.with_name("mp_rank_01_model_states.pt").unlink()
    tracker.write_text(f" {iteration}\n")
    assert open_it().iteration == iteration
    for written, message in (
        ("17", "names iteration 17, but there is no"),
        (f"../transformer/{iteration}", "expected a number"),
        ("", "names iteration '', expected a number"),
    ):
        tracker.write_text(written)
        refused(open_it, tracker, message)
    tracker.write_text(iteration)
    for tree in ({"iteration": 3}, {"module": 3}, {"module": {3: 4}}):
        write_torch(file, tree, [])
        refused(open_it, file, "has no 'module' that is a state dict")
    file.unlink()
    refused(open_it, f"no torch file at {file}")
    tracker.unlink()
    refused(open_it, transformer, "there is no latest_checkpointed_iteration.txt")


EMBED = "module.quantize_t.embed"
SPOILED_CODEC = {
    "missing": (without("module.dec.blocks.2.bias"), "lacks dec.blocks.2.bias"),
    "residual": (put("module.enc_b.blocks.7.conv.1.weight", np.ones(3)), "enc_b.blocks.7.conv.1.w"),
    "codebook missing": (without(EMBED), "lacks quantize_t.embed"),
    "codebook turned": (put(EMBED, lambda s: s[EMBED].T.copy()), "has shape"),
    "encoder missing": (without("module.enc_b.blocks.0.weight"), "lacks enc_b.blocks.0.weight"),
    "no prefix": (
        put("enc_b.blocks.0.bias", np.ones(3)),
        "without the prefix module. of its first",
    ),
    "one convolution": (
        lambda s: [s.pop(name) for name in [*s] if "enc_b.blocks" in name and ".0." not in name],
        "has one convolution in its encoder",
    ),
    "nothing": (dict.clear, "holds no state dict"),
}


@pytest.mark.parametrize("flaw", SPOILED_CODEC)
def test_an_image_tokenizer_that_does_not_fit_the_table_is_refused(codec, flaw):
    change, message = SPOILED_CODEC[flaw]
    rewrite(codec, change)
    refused(lambda: OfficialCodec.open(codec).part(8), codec, message)


def test_names_without_the_prefix_are_read_too(codec):
    given = OfficialCodec.open(codec)

    def change(state):
        for name in [*state]:
            state[name.removeprefix("module.")] = state.pop(name)

    rewrite(codec, change)
    bare = OfficialCodec.open(codec)
    assert (bare.prefix, list(bare.state)) == ("", list(given.state))


def test_one_of_our_arrays_is_in_memory_at_a_time(transformer, tmp_path):
    tree, made, alive = opened(transformer).params, [], []

    def counted(leaf):
        def make():
            alive.append(sum(array() is not None for array in made))
            array = leaf.make()
            made.append(weakref.ref(array))
            return array

        return Deferred(leaf.shape, leaf.dtype, make)

    write_torch(tmp_path / "back.pt", *to_theirs(RULES, jax.tree.map(counted, tree)))
    assert alive == [0] * len(RULES)


def test_dotted_names_are_those_of_the_tree():
    assert flat({"a": {"b": 1, "c": 2}, "d": 3}) == {"a.b": 1, "a.c": 2, "d": 3}
