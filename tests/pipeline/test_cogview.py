"""`CogView` over tiny random parts: what each part does alone, and what it refuses."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
from pipeline.small import (
    CODEC,
    LAYOUT,
    MODEL,
    PROMPTS,
    SAMPLING,
    VOCABULARY,
    prompt_tokens,
)

import reference
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load, load_scorer
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.batching import batch_rows
from cogview_jax.shapes.scenes import drawing
from cogview_jax.tokenizers.codecs.codec import decode_codes, denormalise, encode_images
from cogview_jax.tokenizers.codecs.vqvae import VQVAE


def test_codes_of_images_do_not_depend_on_the_precision_of_sampling(parts):
    images = np.stack([drawing(0, "train", i, 16)[1] for i in range(64)])
    expected = CogView(codec=parts["codec"]).encode(images)
    for name in ("bfloat16", "float16"):
        model = CogView(codec=parts["codec"], dtype=name)
        np.testing.assert_array_equal(model.encode(images), expected)
    # Another type for them has to be asked for, and finds others.
    coarse = CogView(codec=parts["codec"], encode_dtype="bfloat16").encode(images)
    assert 0 < np.mean(coarse != expected) < 0.1


def test_encode_and_decode_are_those_of_the_codec(parts, model, codes):
    part, codec = parts["codec"], VQVAE(CODEC)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    encoded = model.encode(images)
    expected = encode_images(codec, part.params, part.codebook, images)
    np.testing.assert_array_equal(encoded, expected)
    assert encoded.dtype == np.int32
    decoded = model.decode(codes[0].astype(np.int64))
    assert decoded.dtype == np.uint8
    expected = decode_codes(codec, part.params, part.codebook, codes[0])
    assert np.abs(decoded.astype(int) - expected.astype(int)).max() <= 1
    vectors = part.codebook.codes[codes[0, 0]]
    pixels = reference.decode(reference.float64(part.params), CODEC, reference.float64(vectors))
    assert np.abs(decoded[0] - np.asarray(denormalise(CODEC, pixels))).max() <= 0.51


def test_an_image_is_decoded_as_it_is_beside_others(model, codes):
    """No stretching to the range of a batch."""
    together = model.decode(codes.reshape(6, 4, 4))
    for i, row in enumerate(codes.reshape(6, 4, 4)):
        assert np.abs(model.decode(row[None])[0] - together[i].astype(int)).max() <= 1


def test_logits_are_those_of_the_plain_transformer(parts, model):
    tokens = np.random.default_rng(1).integers(0, VOCABULARY.size, (2, 10))
    logits = model.logits(tokens)
    assert logits.dtype == np.float32
    for ours, row in zip(logits, tokens, strict=True):
        expected = reference.transformer(parts["transformer"].params, MODEL, row)
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_fewer_rows_are_padded_to_what_is_compiled(parts, model):
    """Three rows compile nothing that four have not, and are what each is alone."""
    compiled = []

    def listen(event, seconds, **_):
        compiled.append(event) if event.endswith("backend_compile_duration") else None

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    codes, tokens = rng.integers(0, 30, (4, 4, 4)), rng.integers(0, 400, (4, 7))
    prompts = [*PROMPTS, "a star"]
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], layout=layout)
    teller = CogView(**parts | {"transformer": part})
    calls = {
        "generate": lambda n: model.generate_codes(prompts[:n], 1, 7, sampling=SAMPLING),
        "images": lambda n: np.stack(model.generate(prompts[:n], 1, 7, sampling=SAMPLING)),
        "encode": lambda n: model.encode(images[:n]),
        "decode": lambda n: model.decode(codes[:n]),
        "logits": lambda n: model.logits(tokens[:n]),
        "caption": lambda n: teller.caption(images[:n]),
        "score": lambda n: teller.score(images[:n], ["a star"] * n),
    }
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for name, call in calls.items():
            four = call(4)
            compiled.clear()
            three = call(3)
            assert not compiled, name
            if name == "caption":
                assert three == four[:3]
            else:
                np.testing.assert_array_equal(three, four[:3], err_msg=name)
        jax.jit(lambda x: x * 3 + 1)(tokens)
        assert compiled, "nothing is heard of compilations"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    alone = np.concatenate([model.decode(row[None]) for row in codes])
    assert np.abs(alone.astype(int) - model.decode(codes)).max() <= 1


def test_a_loaded_bundle_holds_its_weights_once(parts, model, tmp_path):
    write_bundle(tmp_path / "bundle", **parts)
    there = jax.live_arrays()  # held, so that no new array gets the number of one that is gone
    before = {id(array) for array in there}
    loaded = load(tmp_path / "bundle")
    gc.collect()  # arrays that only wait to be collected are held by nobody
    new = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(parts["transformer"].params))
    held += sum(leaf.nbytes for leaf in jax.tree.leaves(parts["codec"].params))
    held += sum(leaf.nbytes for leaf in parts["codec"].codebook)
    assert held <= new <= 1.05 * held
    tokens = np.random.default_rng(1).integers(0, VOCABULARY.size, (2, 10))
    np.testing.assert_array_equal(loaded.logits(tokens), model.logits(tokens))


def test_a_model_says_what_it_is(parts, model):
    count = sum(leaf.size for leaf in jax.tree.leaves(parts["transformer"].params))
    text = repr(model)
    for part in ("text_to_image, 2 layers of width 32, 4 heads", f"{count:,} parameters"):
        assert part in text
    for part in ("16 x 16 pixels", "codes of 30", f"{len(parts['text'])} tokens", "float32 on 1"):
        assert part in text
    assert "transformer" not in repr(CogView(text=parts["text"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([" \n"]), r"prompt ' \\n' holds no text"),
        (lambda m: m.generate([]), "a list of at least one prompt"),
        (lambda m: m.generate(["a\0b"]), r"prompt 'a\\x00b' holds a NUL character"),
        (lambda m: m.generate(["\udcff"]), r"prompt '\\udcff' is no Unicode text"),
        (lambda m: m.generate(["a" * 4097]), "has 4097 characters, expected at most 4096"),
        (lambda m: m.generate(["a"], 10**12), "num_images 1000000000000: expected at most 1000000"),
        (lambda m: m.generate(["a"], batch_size=10**9), "batch_size 1000000000: expected at most"),
        (
            lambda m: m.complete(np.zeros((16, 16, 3), np.uint8), 2, "a", 10**12),
            "num_images 1000000000000: expected at most 1000000",
        ),
        (lambda m: m.fill("[BOI1] [MASK]", samples=10**9), "samples 1000000000: expected at most"),
        (lambda m: m.generate(["a"], 0), "num_images 0: expected at least 1"),
        (lambda m: m.generate(["a"], batch_size=0), "batch_size 0: expected at least 1"),
        (lambda m: m.generate(["a"], seed=-1), "seed -1"),
        (lambda m: m.generate(["a"], seed=1.5), r"seed 1\.5: expected 0 to 4294967295"),
        (lambda m: m.generate(["a"], sampling=3), "sampling = 3: expected a SamplingConfig"),
        (
            lambda m: m.encode(np.zeros((1, 8, 6, 3), np.uint8)),
            r"\(1, 8, 6, 3\), .* multiples of 4",
        ),
        (lambda m: m.encode(np.zeros((1, 16, 16, 3))), r"got float64 .* expected uint8"),
        (lambda m: m.encode(np.zeros((16, 16, 3), np.uint8)), r"got uint8 \(16, 16, 3\)"),
        (lambda m: m.encode(np.zeros((1, 16, 16), np.uint8)), r"got uint8 \(1, 16, 16\)"),
        (lambda m: m.decode(np.zeros((5, 4), int)), r"got int64 \(5, 4\), .* \[b, rows, columns\]"),
        (lambda m: m.decode(np.zeros((1, 4, 4))), "got float64"),
        (lambda m: m.decode(np.full((1, 4, 4), 30)), "codes from 30 to 30, expected 0 to 29"),
        (lambda m: m.decode(np.full((1, 4, 4), -1)), "codes from -1 to -1, expected 0 to 29"),
        (lambda m: m.logits(np.zeros(5, int)), r"int64 \(5,\), .* t from 1 to 32"),
        (lambda m: m.logits(np.zeros((1, 33), int)), r"got int64 \(1, 33\), .*1 to 32"),
        (lambda m: m.logits(np.zeros((1, 0), int)), r"got int64 \(1, 0\)"),
        (lambda m: m.logits(np.array([[0, 512]])), "tokens from 0 to 512, expected 0 to 511"),
        (lambda m: m.logits(np.array([[0.5]])), "logits got float64"),
    ],
)
def test_what_cannot_be_done_is_refused(model, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("have", "call", "message"),
    [
        ([], lambda m: m.encode(np.zeros((1, 16, 16, 3), np.uint8)), "no codec"),
        (["text"], lambda m: m.decode(np.zeros((1, 4, 4), int)), "no codec"),
        (["codec", "text"], lambda m: m.logits(np.zeros((1, 1), int)), "no transformer"),
        (["transformer"], lambda m: prompt_tokens(m, "a"), "no text"),
        (["codec"], lambda m: m.generate(["a"]), "no transformer and no text"),
        (["text", "transformer"], lambda m: m.generate(["a"]), "no codec"),
    ],
)
def test_a_missing_part_is_named(parts, have, call, message):
    with pytest.raises(InputError, match=f"the bundle has {message}, which this needs"):
        call(CogView(**{name: parts[name] for name in have}))


def test_what_a_bundle_lacks_is_said_before_its_parts_are_read(parts, tmp_path):
    """Nothing but bundle.json is left, so that reading a part would fail."""
    for name, given in {"whole": parts, "codec": {"codec": parts["codec"]}}.items():
        write_bundle(tmp_path / name, **given)
        for part in list((tmp_path / name).iterdir()):
            if part.name != "bundle.json":
                part.rename(tmp_path / f"{name}_{part.name}")
    lacks = f"bundle {tmp_path}/codec has no transformer and no text, which this needs; it has"
    with pytest.raises(InputError, match=f"^{lacks} codec$"):
        load(tmp_path / "codec", needs=EVERY_PART)
    trained = f"the transformer of bundle {tmp_path}/whole was trained for text_to_image, this"
    with pytest.raises(InputError, match=f"^{trained} needs caption$"):
        load_scorer(tmp_path / "whole")


def test_policies_by_name_compute_near_float32(parts):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY.size, (8, 20))
    expected = CogView(**parts).logits(tokens)
    errors = {}
    for name in ("bfloat16", "float16", "float16_pure"):
        logits = CogView(**parts, dtype=name).logits(tokens)
        errors[name] = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    # bfloat16 keeps 8 bits, float16 keeps 11.
    assert 0 < errors["float16"] < errors["bfloat16"] < 0.02
    assert errors["float16"] < errors["float16_pure"] < errors["bfloat16"]


@pytest.mark.parametrize(
    ("free", "rows"), [(None, 64), (10**9, 64), (60_000, 2), (45_000, 1), (0, 1)]
)
def test_a_batch_has_as_many_rows_as_memory_has_room_for(model, monkeypatch, free, rows):
    """A row of 20 tokens: keys and values of 2 layers, 32 floats each, so 10,240 bytes."""
    monkeypatch.setattr("cogview_jax.sampling.batching.free_memory", lambda device: free)
    network = model.parts.engine.model
    assert batch_rows(network, None, 20, 99) == rows
    assert batch_rows(network, 100, 20, 1) == 100
    if free == 0:
        with pytest.raises(InputError, match="batch_size 100: its cache takes"):
            batch_rows(network, 100, 20, 99)
