"""`CogView` over tiny random parts: against the modules it calls, and what it refuses."""

import dataclasses
import os

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import reference
from cogview_jax.checkpoints.bundle import CodecPart, TransformerPart, write_bundle
from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.generation import GREY
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.back_projection import ROUNDS, back_projected
from cogview_jax.sampling.batching import batch_rows
from cogview_jax.sampling.decode import prefill, sample_keys
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.super_resolution import upsampled_codes
from cogview_jax.sampling.windows import WindowPlan, released_head
from cogview_jax.shapes.scenes import drawing
from cogview_jax.tokenizers.codec import (
    Codec,
    CodecConfig,
    decode_codes,
    denormalise,
    encode_images,
)
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.quantiser import initial_codebook
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary

CODEC = CodecConfig(image_size=16, downsampling=4, channels=8, codebook=30, code_width=4)
VOCABULARY = Vocabulary(codes=30, text=400)
LAYOUT = LayoutConfig(text_length=12, grid=4)
MODEL = TransformerConfig(layers=2, width=32, heads=4, remat="none")
PROMPTS = ["a red circle", "a blue star 星", "a red square"]
SAMPLING = SamplingConfig(temperature=1.0, top_k=20)


@pytest.fixture(scope="module")
def parts():
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    codec = unbox(jax.eval_shape(Codec(CODEC).init, jax.random.key(0), pixels)["params"])
    model = Transformer(MODEL, VOCABULARY.size, make_layout(LAYOUT, VOCABULARY).length)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"])
    codebook = initial_codebook(jax.random.key(0), CODEC.codebook, CODEC.code_width)
    return {
        "codec": CodecPart(CODEC, reference.random_like(codec, 0), codebook),
        "text": train_text_tokenizer(PROMPTS * 3, TextConfig(400, "bpe")),
        "transformer": TransformerPart(MODEL, VOCABULARY, LAYOUT, reference.random_like(params, 1)),
    }


@pytest.fixture(scope="module")
def model(parts):
    return CogView(**parts)


def prompt_tokens(model, prompt):
    """The tokens before the first code of a prompt."""
    return model.generation.prompt_rows([prompt])[prompt]


@pytest.fixture(scope="module")
def codes(model):
    return model.generate_codes(PROMPTS, 2, 7, sampling=SAMPLING, batch_size=4)


def test_codes_of_pictures_do_not_depend_on_the_precision_of_drawing(parts):
    pictures = np.stack([drawing(0, "train", i, 16)[1] for i in range(64)])
    expected = CogView(codec=parts["codec"]).encode(pictures)
    for name in ("bfloat16", "float16"):
        model = CogView(codec=parts["codec"], dtype=name)
        np.testing.assert_array_equal(model.encode(pictures), expected)
    # Another type for them has to be asked for, and finds others.
    coarse = CogView(codec=parts["codec"], encode_dtype="bfloat16").encode(pictures)
    assert 0 < np.mean(coarse != expected) < 0.1


def test_codes_are_those_of_the_reference_decoder(parts, model, codes):
    assert codes.shape == (3, 2, 4, 4)
    for prompt, rows in zip(PROMPTS, codes, strict=True):
        pieces = [VOCABULARY.text_start + piece for piece in parts["text"].encode(prompt)]
        commands = {name: VOCABULARY.command(name) for name in ("ROI1", "TINY", "BOI1")}
        tokens = [commands["ROI1"], *pieces, commands["TINY"], commands["BOI1"]]
        assert prompt_tokens(model, prompt).tolist() == tokens
        for index, row in enumerate(rows):
            (key,) = sample_keys(7, [prompt], [index])
            expected = reference.generate(
                parts["transformer"].params, MODEL, tokens, key, 16, (0, 30), SAMPLING
            )
            assert row.reshape(-1).tolist() == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_picture_does_not_depend_on_batches_company_or_order(model, codes, batch_size):
    def drawn(prompts, count):
        return model.generate_codes(prompts, count, 7, sampling=SAMPLING, batch_size=batch_size)

    np.testing.assert_array_equal(drawn(PROMPTS[::-1], 3)[:, :2], codes[::-1])
    np.testing.assert_array_equal(drawn(PROMPTS[1:2], 1), codes[1:2, :1])


def test_pictures_of_other_seeds_prompts_and_indices_differ(model, codes):
    other = model.generate_codes(PROMPTS, 2, 8, sampling=SAMPLING, batch_size=4)
    pictures = np.concatenate([codes, other]).reshape(12, 16)
    assert len({picture.tobytes() for picture in pictures}) == 12


@pytest.mark.parametrize("keep_rows", [1, 3])
def test_a_completed_picture_is_the_kept_codes_and_what_the_reference_draws(
    parts, model, keep_rows
):
    image = np.random.default_rng(5).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    done, prompt, kept = [], PROMPTS[1], model.encode(image[None])[0, :keep_rows].ravel()
    pictures = model.complete(
        image, keep_rows, prompt, 3, seed=4, sampling=SAMPLING, batch_size=2, progress=done.append
    )
    assert done == [2, 1]
    tokens = [*prompt_tokens(model, prompt).tolist(), *kept.tolist()]
    for index, picture in enumerate(pictures):
        (key,) = sample_keys(4, [prompt], [index])
        drawn = reference.generate(
            parts["transformer"].params, MODEL, tokens, key, 16 - len(kept), (0, 30), SAMPLING
        )
        codes = np.array([*kept, *drawn]).reshape(1, 4, 4)
        np.testing.assert_array_equal(np.asarray(picture), model.decode(codes)[0])


def test_completing_from_nothing_is_drawing(model):
    image = np.zeros((16, 16, 3), np.uint8)
    (completed,) = model.complete(image, 0, PROMPTS[0], seed=3, sampling=SAMPLING)
    ((drawn,),) = model.generate(PROMPTS[:1], seed=3, sampling=SAMPLING)
    np.testing.assert_array_equal(np.asarray(completed), np.asarray(drawn))


@pytest.mark.parametrize(
    ("image", "keep_rows", "changes", "message"),
    [
        (np.zeros((16, 16, 3), np.uint8), 4, {}, "keep_rows 4: expected 0 to 3"),
        (np.zeros((16, 16, 3), np.uint8), -1, {}, "keep_rows -1: expected 0 to 3"),
        (np.zeros((16, 8, 3), np.uint8), 2, {}, r"expected uint8 \[b, 16, 16, 3\]"),
        (
            np.zeros((16, 16, 3), np.uint8),
            2,
            {"num_images": 0},
            "num_images 0: expected at least 1",
        ),
    ],
)
def test_what_cannot_be_completed_is_refused(model, image, keep_rows, changes, message):
    with pytest.raises(InputError, match=message):
        model.complete(image, keep_rows, "a star", **changes)


def test_a_streamed_picture_grows_by_rows_to_the_generated_one(model):
    pictures = [np.asarray(p) for p in model.stream(PROMPTS[2], 9, sampling=SAMPLING)]
    ((whole,),) = model.generate(PROMPTS[2:], seed=9, sampling=SAMPLING)
    assert len(pictures) == 4
    np.testing.assert_array_equal(pictures[-1], np.asarray(whole))
    for row, picture in enumerate(pictures, 1):
        assert (picture[4 * row :] == GREY).all()
        assert (picture[: 4 * row] != GREY).any(axis=-1).mean() > 0.9
    with pytest.raises(InputError, match="holds no text"):
        next(model.stream(" "))


def test_generate_gives_the_decoded_pictures_and_reports_each_once(model, codes):
    done = []
    pictures = model.generate(
        PROMPTS, 2, seed=7, sampling=SAMPLING, batch_size=4, progress=done.append
    )
    assert done == [4, 2]
    for row, expected in zip(pictures, codes, strict=True):
        np.testing.assert_array_equal([np.asarray(p) for p in row], model.decode(expected))
        assert [(picture.mode, picture.size) for picture in row] == [("RGB", (16, 16))] * 2


def test_encode_and_decode_are_those_of_the_codec(parts, model, codes):
    part, codec = parts["codec"], Codec(CODEC)
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


def test_a_picture_is_decoded_as_it_is_beside_others(model, codes):
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


def test_a_prompt_that_is_too_long_is_cut_or_refused(parts, capsys):
    model, longest = CogView(**parts), "a red circle" * 20
    pieces = parts["text"].encode(longest)
    prompts = [parts["text"].decode(pieces[:count]) for count in (12, 13)]
    assert [len(parts["text"].encode(prompt)) for prompt in prompts] == [12, 13]
    rows = [prompt_tokens(model, prompt) for prompt in prompts]
    assert len(rows[0]) == 15
    np.testing.assert_array_equal(*rows)
    says = "has 13 tokens, but the text region holds 12"
    drawn = model.generate_codes([prompts[1], "a red circle"], 1, 7, sampling=SAMPLING)
    (key,) = sample_keys(7, [prompts[1]], [0])
    expected = reference.generate(
        parts["transformer"].params, MODEL, rows[0].tolist(), key, 16, (0, 30), SAMPLING
    )
    assert drawn[0].ravel().tolist() == expected
    assert capsys.readouterr().err.count(f"{says}: it is cut") == 1, "once, not with every call"
    model = CogView(**parts, long_prompts="refuse")
    with pytest.raises(InputError, match=f"{says}: shorten"):
        model.generate(["a red circle", prompts[1]])
    assert list(model.prompts.refused([*prompts, "a", ""])) == [prompts[1], ""]


def test_one_prompt_is_a_list_of_one(model):
    ((alone,),) = model.generate("a red circle", seed=2, sampling=SAMPLING)
    ((listed,),) = model.generate(["a red circle"], seed=2, sampling=SAMPLING)
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(listed))


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
        "pictures": lambda n: np.stack(model.generate(prompts[:n], 1, 7, sampling=SAMPLING)),
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
    before = {id(array) for array in jax.live_arrays()}
    loaded = load(tmp_path / "bundle")
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
        (lambda m: m.encode(np.zeros((1, 8, 8, 3), np.uint8)), r"got uint8 \(1, 8, 8, 3\), expec"),
        (lambda m: m.encode(np.zeros((1, 16, 16, 3))), r"got float64 .* uint8 \[b, 16, 16, 3\]"),
        (lambda m: m.encode(np.zeros((16, 16, 3), np.uint8)), r"got uint8 \(16, 16, 3\)"),
        (lambda m: m.encode(np.zeros((1, 16, 16), np.uint8)), r"got uint8 \(1, 16, 16\)"),
        (lambda m: m.decode(np.zeros((1, 5, 4), int)), r"got int64 \(1, 5, 4\), .* \[b, 4, 4\]"),
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


OFFICIAL = dataclasses.replace(
    MODEL, pb_relax_attention=False, embedding_gradient=1.0, compat="official"
)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_weights_of_the_release_draw_the_same_picture_in_any_company(parts, batch_size):
    """Their LayerNorm looks at whole tensors; of a batch, each row still looks at itself alone."""
    part = dataclasses.replace(parts["transformer"], config=OFFICIAL)
    model = CogView(**parts | {"transformer": part})
    drawn = model.generate_codes(PROMPTS, 2, 7, sampling=SAMPLING, batch_size=batch_size)
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate_codes([prompt], 1, 7, sampling=SAMPLING, batch_size=1)
        np.testing.assert_array_equal(alone[0, 0], drawn[i, 0])


def test_a_query_is_filled_as_a_prompt_is(model):
    greedy = SamplingConfig(temperature=0.0)
    row = model.fill("[ROI1] a red circle [TINY] [BOI1] [MASK]*16", sampling=greedy)
    codes = model.generate_codes(["a red circle"], 1, 0, sampling=greedy)
    expected = [*prompt_tokens(model, "a red circle"), *codes.ravel()]
    np.testing.assert_array_equal(row, [expected])


def test_a_query_holds_pictures_and_samples(model, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    query = "[TINY] [BOI1] [Image]a.png [EOI1] [ROI1] [MASK]*5"
    drawn = {"samples": 3, "seed": 1, "sampling": SamplingConfig(top_k=0)}
    rows = model.fill(query, images=tmp_path, **drawn)
    assert rows.shape == (3, 25)
    np.testing.assert_array_equal(rows[1, 2:18], model.encode(picture[None]).ravel())
    text = rows[:, 20:]
    assert ((text >= VOCABULARY.text_start) & (text < VOCABULARY.commands_start)).all()
    assert len({tuple(row) for row in text.tolist()}) == 3
    np.testing.assert_array_equal(rows, model.fill(query, images={"a.png": picture}.get, **drawn))
    with pytest.raises(InputError, match=r"\[Image\]gone.png cannot be read"):
        model.fill("[BOI1] [Image]gone.png [MASK]", images=tmp_path)
    with pytest.raises(InputError, match="seed 4294967296: expected 0 to 4294967295"):
        model.fill("[BOI1] [MASK]", seed=2**32)
    with pytest.raises(InputError, match="samples 0: expected at least 1"):
        model.fill("[BOI1] [MASK]", samples=0)
    with pytest.raises(InputError, match="samples 1099511627776: expected at most 1024"):
        model.fill("[BOI1] [MASK]", samples=2**40)


def test_a_query_opens_nothing_outside_the_folder_that_is_named(model, tmp_path):
    """A picture that could well be read lies outside; a link to it lies inside."""
    root = tmp_path / "pictures"
    root.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "other.png")
    (root / "link.png").symlink_to(tmp_path / "other.png")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    outside = (
        "../other.png",
        f"{tmp_path}/other.png",
        f"{root}/in.png",
        "link.png",
        "up/other.png",
    )
    for name in outside:
        with pytest.raises(InputError, match="leads out of this folder"):
            model.fill(f"[BOI1] [Image]{name} [MASK]", images=root)
    with pytest.raises(InputError, match="expected a file, but this is a pipe"):
        model.fill("[BOI1] [Image]pipe.png [MASK]", images=root)
    with pytest.raises(InputError, match="expected images=FOLDER"):
        model.fill(f"[BOI1] [Image]{tmp_path}/other.png [MASK]")
    with pytest.raises(InputError, match="stands for more than"):
        model.fill("[BOI1] [MASK]*999999999999999")


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


@pytest.mark.parametrize("config", [MODEL, OFFICIAL], ids=["own", "official"])
def test_scores_of_pairs_are_mean_cross_entropies(parts, config):
    """Each by itself: in a batch, and against whole passes over one row."""
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], config=config, layout=layout)
    model = CogView(**parts | {"transformer": part})
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    texts = ["a red circle", "a blue star", "red"]
    scores = model.score(pictures, texts)
    for picture, text, score in zip(pictures, texts, scores, strict=True):
        assert model.score(picture[None], [text])[0] == pytest.approx(score, abs=1e-6)
        codes, pieces = model.encode(picture[None]).ravel(), parts["text"].encode(text)
        row = model.layout.tokens({"image": codes, "text": pieces})[:-1]  # the text's end: no part
        logits = model.logits(row[None, :-1])[0, -len(pieces) :, VOCABULARY.codes :]
        shares = [reference.softmax(line.astype(np.float64)) for line in logits]
        expected = -np.mean(np.log([s[p] for s, p in zip(shares, pieces, strict=True)]))
        assert score == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="score got 3 images and 2 texts"):
        model.score(pictures, texts[:2])
    with pytest.raises(InputError, match="was trained for caption, this needs text_to_image"):
        model.generate(["a red circle"])


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guidance_is_away_from_what_comes_without_the_text(model, guidance):
    """Greedily, against two whole passes a token; and each picture is its own when drawn."""
    greedy = SamplingConfig(temperature=0.0, guidance=guidance)
    codes = model.generate_codes(PROMPTS, 1, 7, sampling=greedy, batch_size=2)
    bare = [VOCABULARY.command(name) for name in ("ROI1", "TINY", "BOI1")]
    for prompt, grid in zip(PROMPTS, codes[:, 0], strict=True):
        row = []
        for _ in range(16):
            with_text, without = (
                next_logits(model, [*start, *row])[: VOCABULARY.codes]
                for start in (prompt_tokens(model, prompt), bare)
            )
            row.append(int(np.argmax(without + guidance * (with_text - without))))
        assert grid.ravel().tolist() == row
    drawn = dataclasses.replace(SAMPLING, guidance=guidance)
    several = model.generate_codes(PROMPTS, 2, 7, sampling=drawn, batch_size=4)
    alone = model.generate_codes(PROMPTS[1:2], 2, 7, sampling=drawn, batch_size=1)
    np.testing.assert_array_equal(several[1:2], alone)
    *_, last = model.stream(PROMPTS[1], 7, sampling=drawn)
    np.testing.assert_array_equal(np.asarray(last), model.decode(alone[:, 0])[0])
    # Without a text all prompts are alike, and a prompt's own random key is what is left.
    assert (codes[0] == codes[1]).all() == (guidance == 0)


@pytest.mark.parametrize(
    ("dropped", "line"),
    [
        (0.0, "guidance 3.0: this model has learned with captions alone (drop_captions 0)"),
        (None, "guidance 3.0: nobody has recorded whether this model has learned without"),
        (0.1, ""),
    ],
)
def test_guidance_without_dropped_captions_is_said_once(parts, dropped, line, capsys):
    part = dataclasses.replace(parts["transformer"], drop_captions=dropped)
    model = CogView(**parts | {"transformer": part})
    model.generation.sample_codes([SamplingRequest(p, 1, 0, SAMPLING) for p in PROMPTS])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        guided = SamplingConfig(guidance=3.0)
        model.generation.sample_codes([SamplingRequest(p, 1, 0, guided) for p in PROMPTS])
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == (1 if line else 0)


def test_guidance_of_one_is_none(model, codes):
    drawn = dataclasses.replace(SAMPLING, guidance=1.0)
    np.testing.assert_array_equal(
        model.generate_codes(PROMPTS, 2, 7, sampling=drawn, batch_size=4), codes
    )
    with pytest.raises(InputError, match=r"guidance 2.0: a query has none, leave it at 1"):
        model.fill("[ROI1] red [MASK]", sampling=SamplingConfig(guidance=2.0))


def test_a_bundle_of_another_task_neither_scores_nor_describes(model):
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="was trained for text_to_image, this needs caption"):
        model.score(picture, ["a"])
    with pytest.raises(InputError, match="was trained for text_to_image, this needs caption"):
        model.caption(picture)


@pytest.mark.parametrize("config", [MODEL, OFFICIAL], ids=["own", "official"])
def test_captions_are_those_of_whole_passes(parts, config):
    """Token by token with the whole sequence each time, up to the end or the region's."""
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], config=config, layout=layout)
    # Other weights of [PAD] let some texts end early and others never.
    words = np.array(part.params["word_embedding"])
    words[VOCABULARY.command("PAD")] *= 4
    part = dataclasses.replace(part, params=part.params | {"word_embedding": words})
    model = CogView(**parts | {"transformer": part})
    pictures = np.random.default_rng(3).integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
    done = []
    said = model.caption(pictures, batch_size=4, progress=done.append)
    assert sum(done) == 11
    lengths = set()
    for picture, text in zip(pictures, said, strict=True):
        codes = model.encode(picture[None]).ravel()
        row = model.layout.tokens({"image": codes}).tolist()
        start = len(row)
        while len(row) - start < LAYOUT.text_length:
            # With the release's LayerNorm later tokens do change earlier ones.
            official = model.parts.released
            logits = model.logits(np.array([row]))[0, -1] if official else next_logits(model, row)
            allowed = logits[VOCABULARY.text_start : VOCABULARY.commands_start + 1]
            row.append(VOCABULARY.text_start + int(np.argmax(allowed)))
            if row[-1] == VOCABULARY.command("PAD"):
                row.pop()
                break
        lengths.add(len(row) - start)
        pieces = [i - VOCABULARY.text_start for i in row[start:]]
        pieces = [i for i in pieces if i < len(parts["text"])]
        assert text == parts["text"].decode(pieces)
    assert min(lengths) < LAYOUT.text_length == max(lengths)
    assert model.caption(pictures[:1], seed=9) == said[:1]


def test_drawn_captions_are_a_pictures_own(parts):
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], layout=layout)
    model = CogView(**parts | {"transformer": part})
    pictures = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    said = model.caption(pictures, 4, sampling=SAMPLING)
    turned = model.caption(pictures[::-1], 4, sampling=SAMPLING, batch_size=2)
    assert turned == said[::-1]
    assert model.caption(pictures, 5, sampling=SAMPLING) != said
    with pytest.raises(InputError, match="caption got no image"):
        model.caption(pictures[:0])
    with pytest.raises(InputError, match="batch_size 0: expected at least 1"):
        model.caption(pictures, batch_size=0)


def test_a_query_reads_pictures_at_the_size_asked_for(model, tmp_path):
    """The low picture of a super-resolution has half the rows and columns."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "low.png")
    query = "[ROI1] red [TINY] [BOI1] [Image]low.png [EOI1] [ROI2] [MASK]"
    row = model.fill(query, images=tmp_path, image_size=8, sampling=SamplingConfig(0.0))[0]
    codes = encode_images(model.codec, *codec_of(model), picture[None]).ravel()
    start = row.tolist().index(VOCABULARY.command("BOI1")) + 1
    assert row[start : start + 4].tolist() == codes.tolist()
    assert row[start + 4] == VOCABULARY.command("EOI1")
    with pytest.raises(InputError, match="image_size 6: expected a multiple of the codec's 4"):
        model.fill(query, images=tmp_path, image_size=6)


def next_logits(model, row):
    """What may follow a row, by a whole pass over it: float32 [vocabulary].

    The row is filled up, so that all lengths are one compilation: later tokens change nothing.
    """
    padded = np.zeros((1, model.parts.engine.model.positions), np.int32)
    padded[0, : len(row)] = row
    return model.logits(padded)[0, len(row) - 1]


def codec_of(model):
    return model.parts.codec_part.params, model.parts.codec_part.codebook


def test_super_resolution_is_upsampling_between_encoder_and_decoder(parts):
    """At true grid, 32 x 32 codes to 64 x 64, with a codec of two pixels a code."""
    config = dataclasses.replace(CODEC, image_size=64, downsampling=2)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = unbox(jax.eval_shape(Codec(config).init, jax.random.key(0), pixels)["params"])
    codec = CodecPart(config, reference.random_like(shapes, 0), parts["codec"].codebook)
    layout = LayoutConfig(text_length=12, grid=32)
    sizes = {"layers": 1, "width": 16, "heads": 2}
    small = dataclasses.replace(OFFICIAL, **sizes)
    network = Transformer(small, VOCABULARY.size, make_layout(layout, VOCABULARY).length)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = unbox(jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)["params"])
    part = TransformerPart(small, VOCABULARY, layout, reference.random_like(shapes, 1))
    model = CogView(codec=codec, text=parts["text"], transformer=part)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    done = []
    (picture,) = model.super_resolve(
        images, [PROMPTS[0]], 3, sampling=SAMPLING, progress=done.append
    )
    guided = SamplingConfig(guidance=2.0)
    with pytest.raises(InputError, match=r"guidance 2\.0: super-resolution has none"):
        model.super_resolve(images, [PROMPTS[0]], 3, sampling=guided)
    assert sum(done) == 9
    assert model.super_resolution.default_sampling == SamplingConfig(temperature=1.02)
    codes, prompt = model.encode(images), prompt_tokens(model, PROMPTS[0])

    def head(i, source):
        row = released_head(prompt, source, "BASE", VOCABULARY)
        return row, sampling_positions([*row, -1], VOCABULARY)[0]

    larger = upsampled_codes(
        model.parts.engine.params,
        head,
        12 + 3 + 256 + 5,
        codes,
        sample_keys(3, [f"{PROMPTS[0]} {codes[0].tobytes().hex()}"], [0])[:, None],
        plan=WindowPlan(),
        model=model.parts.engine.model,
        last=VOCABULARY.codes,
        config=SAMPLING,
    )
    expected = decode_codes(model.codec, *codec_of(model), larger)
    np.testing.assert_array_equal(np.asarray(picture), expected[0])
    with pytest.raises(InputError, match="super_resolve got 1 images and 2 texts"):
        model.super_resolve(images, PROMPTS[:2])
    with pytest.raises(InputError, match="trained for text_to_image, this needs super_resolution"):
        CogView(**parts).super_resolve(images, PROMPTS[:1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_super_resolution_of_a_small_picture_is_what_the_reference_draws(parts, batch_size):
    """Four codes to sixteen in one sequence, whose positions begin again at [ROI2]."""
    layout = dataclasses.replace(LAYOUT, task="super_resolution")
    model = CogView(
        **parts | {"transformer": dataclasses.replace(parts["transformer"], layout=layout)}
    )
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    done = []
    asked = {"sampling": SAMPLING, "batch_size": batch_size, "window_candidates": 2}
    pictures = model.super_resolve(
        images, PROMPTS, 5, **asked, progress=done.append, back_projection=0
    )
    assert sum(done) == 3
    kept = model.super_resolve(images, PROMPTS, 5, **asked)
    for picture, expected in zip(
        kept, back_projected(map(np.asarray, pictures), images, ROUNDS), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(picture), expected)
    told = {"sampling": SamplingConfig(temperature=0.7), "window_candidates": 16}
    by_default, as_told = (model.super_resolve(images, PROMPTS, 5, **k) for k in ({}, told))
    np.testing.assert_array_equal(np.stack(by_default), np.stack(as_told))
    command = VOCABULARY.command
    chosen = []
    for picture, image, text in zip(pictures, images, PROMPTS, strict=True):
        codes = encode_images(model.codec, *codec_of(model), image[None])
        pieces = [VOCABULARY.text_start + piece for piece in parts["text"].encode(text)]
        first = [
            command("ROI1"),
            *pieces,
            command("TINY"),
            command("BOI1"),
            *codes.ravel().tolist(),
        ]
        first.append(command("EOI1"))
        second = [command("ROI2"), command("TINY"), command("BOI2")]
        name = f"{text} {codes[0].astype(np.int32).tobytes().hex()}"
        drawn, downsampled_mse = [], []
        for key in sample_keys(5, [name] * 2, [0, 1]):
            larger = reference.generate(
                parts["transformer"].params,
                MODEL,
                first + second,
                jax.random.fold_in(key, 0),
                16,
                (0, 30),
                SAMPLING,
                [*range(len(first)), *range(3 + 16)],
            )
            drawn.append(model.decode(np.array(larger).reshape(1, 4, 4))[0])
            reduced = einops.reduce(drawn[-1] / 1.0, "(h i) (w j) c -> h w c", "mean", i=2, j=2)
            downsampled_mse.append(np.square(reduced - image).mean())
        chosen.append(int(np.argmin(downsampled_mse)))
        np.testing.assert_array_equal(np.asarray(picture), drawn[chosen[-1]])
    assert {*chosen} == {0, 1}
    with pytest.raises(InputError, match="no transformer"):
        CogView(codec=parts["codec"], text=parts["text"]).super_resolve(images, PROMPTS)
    with pytest.raises(InputError, match="back_projection -1: expected at least 0"):
        model.super_resolve(images, PROMPTS, back_projection=-1)
    with pytest.raises(InputError, match="window_candidates 0: expected at least 1"):
        model.super_resolve(images, PROMPTS, window_candidates=0)
    with pytest.raises(InputError, match="images of 16 pixels: the bundle upsamples those of 8"):
        model.super_resolve(np.zeros((1, 16, 16, 3), np.uint8), PROMPTS[:1])


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


def test_candidates_of_one_prompt_are_prefilled_once(model, monkeypatch):
    prefilled = []

    def counting(params, tokens, *rest, **settings):
        prefilled.append(len(tokens))
        return prefill(params, tokens, *rest, **settings)

    monkeypatch.setattr("cogview_jax.sampling.decode.prefill", counting)
    model.generate_codes(PROMPTS[:1], 4, 7, sampling=SAMPLING)
    assert prefilled == [1]
