"""Super-resolution between encoder and decoder, against the slow reference."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipeline.small import (
    CODEC,
    LAYOUT,
    MODEL,
    OFFICIAL,
    PROMPTS,
    SAMPLING,
    VOCABULARY,
    codec_of,
    prompt_tokens,
)

import reference
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.interop.official.positions import sampling_positions
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.back_projection import ROUNDS, back_projected
from cogview_jax.sampling.decode import row_seeds, sample_keys
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.sampling.super_resolution import upsampled_codes
from cogview_jax.sampling.windows import WindowPlan, released_head
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.tokenizers.codecs.vqvae import VQVAE
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout


def test_super_resolution_is_upsampling_between_encoder_and_decoder(parts):
    """At true grid, 32 x 32 codes to 64 x 64, with a codec of two pixels a code."""
    config = dataclasses.replace(CODEC, image_size=64, downsampling=2)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = unbox(jax.eval_shape(VQVAE(config).init, jax.random.key(0), pixels)["params"])
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
    (larger_image,) = model.super_resolve(
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

    name = f"{PROMPTS[0]} {codes[0].tobytes().hex()}"
    larger = upsampled_codes(
        model.parts.engine.params,
        head,
        12 + 3 + 256 + 5,
        codes,
        row_seeds(3, [name], [0]).each(lambda seeds: seeds[:, None]),
        plan=WindowPlan(),
        model=model.parts.engine.model,
        last=VOCABULARY.codes,
        config=SAMPLING,
    )
    expected = decode_codes(model.codec, *codec_of(model), larger)
    np.testing.assert_array_equal(np.asarray(larger_image), expected[0])
    with pytest.raises(InputError, match="super_resolve got 1 image and 2 texts"):
        model.super_resolve(images, PROMPTS[:2])
    with pytest.raises(InputError, match="trained for text_to_image, this needs super_resolution"):
        CogView(**parts).super_resolve(images, PROMPTS[:1])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_super_resolution_of_a_small_image_is_what_the_reference_samples(parts, batch_size):
    """Four codes to sixteen in one sequence, whose positions begin again at [ROI2]."""
    layout = dataclasses.replace(LAYOUT, task="super_resolution")
    model = CogView(
        **parts | {"transformer": dataclasses.replace(parts["transformer"], layout=layout)}
    )
    small = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    done = []
    asked = {"sampling": SAMPLING, "batch_size": batch_size, "window_candidates": 2}
    larger_images = model.super_resolve(
        small, PROMPTS, 5, **asked, progress=done.append, back_projection=0
    )
    assert sum(done) == 3
    kept = model.super_resolve(small, PROMPTS, 5, **asked)
    for larger_image, expected in zip(
        kept, back_projected(map(np.asarray, larger_images), small, ROUNDS), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(larger_image), expected)
    told = {"sampling": SamplingConfig(temperature=0.7), "window_candidates": 16}
    by_default, as_told = (model.super_resolve(small, PROMPTS, 5, **k) for k in ({}, told))
    np.testing.assert_array_equal(np.stack(by_default), np.stack(as_told))
    command = VOCABULARY.command
    chosen = []
    for larger_image, original, text in zip(larger_images, small, PROMPTS, strict=True):
        codes = encode_images(model.codec, *codec_of(model), original[None])
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
        sampled, downsampled_mse = [], []
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
            sampled.append(model.decode(np.array(larger).reshape(1, 4, 4))[0])
            reduced = einops.reduce(sampled[-1] / 1.0, "(h i) (w j) c -> h w c", "mean", i=2, j=2)
            downsampled_mse.append(np.square(reduced - original).mean())
        chosen.append(int(np.argmin(downsampled_mse)))
        np.testing.assert_array_equal(np.asarray(larger_image), sampled[chosen[-1]])
    assert {*chosen} == {0, 1}
    with pytest.raises(InputError, match="no transformer"):
        CogView(codec=parts["codec"], text=parts["text"]).super_resolve(small, PROMPTS)
    with pytest.raises(InputError, match="back_projection -1: expected at least 0"):
        model.super_resolve(small, PROMPTS, back_projection=-1)
    with pytest.raises(InputError, match="window_candidates 0: expected at least 1"):
        model.super_resolve(small, PROMPTS, window_candidates=0)
    with pytest.raises(InputError, match="images of 16 pixels: the bundle upsamples those of 8"):
        model.super_resolve(np.zeros((1, 16, 16, 3), np.uint8), PROMPTS[:1])
