"""The parts, the model that is made of them, and codes that it samples."""

import jax
import jax.numpy as jnp
import pytest
from pipeline.small import CODEC, LAYOUT, MODEL, PROMPTS, SAMPLING, VOCABULARY

import reference
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.vqvae import VQVAE
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.tokenizers.quantisers.moving_average import initial_codebook
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer


@pytest.fixture(scope="module")
def parts():
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    codec = unbox(jax.eval_shape(VQVAE(CODEC).init, jax.random.key(0), pixels)["params"])
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


@pytest.fixture(scope="module")
def codes(model):
    return model.generate_codes(PROMPTS, 2, 7, sampling=SAMPLING, batch_size=4)
