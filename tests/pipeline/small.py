"""A bundle of tiny random parts."""

import dataclasses

import numpy as np

from cogview_jax.models.config import TransformerConfig
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.layout import LayoutConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

CODEC = VQVAEConfig(image_size=16, downsampling=4, channels=8, codebook=30, code_width=4)
VOCABULARY = Vocabulary(codes=30, text=400)
LAYOUT = LayoutConfig(text_length=12, grid=4)
MODEL = TransformerConfig(layers=2, width=32, heads=4, remat="none")
PROMPTS = ["a red circle", "a blue star 星", "a red square"]
SAMPLING = SamplingConfig(temperature=1.0, top_k=20)
OFFICIAL = dataclasses.replace(
    MODEL, pb_relax_attention=False, embedding_gradient=1.0, compat="official"
)


def prompt_tokens(model, prompt):
    """The tokens before the first code of a prompt."""
    return model.generation.prompt_rows([prompt])[prompt]


def next_logits(model, row):
    """What may follow a row, by a whole pass over it: float32 [vocabulary].

    The row is filled up, so that all lengths are one compilation: later tokens change nothing.
    """
    padded = np.zeros((1, model.parts.engine.model.positions), np.int32)
    padded[0, : len(row)] = row
    return model.logits(padded)[0, len(row) - 1]


def codec_of(model):
    return model.parts.codec_part.params, model.parts.codec_part.codebook
