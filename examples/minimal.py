"""CogView in 200 lines: a model that learns from captioned drawings to draw captions.

    python examples/minimal.py    # a few minutes on two CPU cores; writes runs/minimal.png

CogView (Ding et al. 2021, arXiv 2105.13290, section 3) generates an image as if it were text. First
a VQ-VAE learns to turn images into grids of discrete codes and back. Then a transformer learns to
predict the next token of `[ROI1] caption [TINY] [BOI1] codes [EOI1]`. To generate an image, codes
are sampled one by one after a caption, and the VQ-VAE decodes them to pixels. `cogview_jax` does
the same at any size on many devices; tests/examples/test_minimal.py holds both to equal numbers.

B batch, T positions, D width, N heads, H head width, K codes, C code width, V vocabulary.
"""

import argparse
import itertools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from PIL import Image, ImageDraw

from cogview_jax.shapes.scenes import caption, drawing

SEED, INIT, BATCH, SAMPLE = 0, 0, 1, 2  # the seed, and the streams of random numbers
DRAWINGS, SIZE, ROWS = 4096, 32, 16  # training images, their side in pixels, images in a batch
CODES, CODE_WIDTH, CELLS = 256, 4, 64  # of the VQ-VAE; an image is a grid of 8x8 codes
LAYERS, WIDTH, HEADS, LENGTH = 4, 128, 4, 80  # of the transformer; captions have up to 12 words
ALPHA, BRANCH = 32.0, 0.2  # of PB-relax; first scale of a branch (1 in the paper's longer runs)
COMMANDS = ("[ROI1]", "[TINY]", "[BOI1]", "[EOI1]", "[PAD]")
PROMPTS, SAMPLES, TOP_K = 6, 6, 50  # captions in the figure, images of each; codes to choose from


def random_key(stream: int, step: int | jax.Array = 0) -> jax.Array:
    """The key of one step of one stream; none is carried from step to step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), stream), step)


class Upsample(nn.Module):
    """A 4x4 transposed convolution of stride 2, as one product: [B, h, w, c] -> [B, 2h, 2w, f]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jnp.concatenate([x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]], axis=-1)
        x = nn.Dense(4 * self.features, use_bias=False)(x)
        x = rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)[:, 1:-1, 1:-1]
        return x + self.param("bias", nn.initializers.zeros, (self.features,))


# The image tokenizer: pixels [B, 32, 32, 3] from -1 to 1 -> vectors [B, 8, 8, C] -> pixels.
CONVS = [nn.Conv(channels, (4, 4), strides=2, padding=1) for channels in (32, 64)]
ENCODER = nn.Sequential([CONVS[0], nn.relu, CONVS[1], nn.relu, nn.Dense(CODE_WIDTH)])
DECODER = nn.Sequential([Upsample(64), nn.relu, Upsample(32), nn.relu, nn.Dense(3)])
# Its codebook [K, C], all 4-tuples of 4 numbers, stays as it is: the fourth way to train a VQ-VAE
# in section 3.1, as good as the others there. `cogview_jax` has the third, with moving averages.
CODEBOOK = np.array(list(itertools.product(np.linspace(-1, 1, 4), repeat=CODE_WIDTH)), np.float32)


def encode(params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The vectors of uint8 images, and for each of them the index of the nearest code."""
    vectors = ENCODER.apply(params["encoder"], images / 127.5 - 1)
    return vectors, jnp.argmin(jnp.sum(CODEBOOK**2, 1) - 2 * vectors @ CODEBOOK.T, axis=-1)


def codec_loss(params: dict, images: jax.Array) -> jax.Array:
    """Reconstruction, and commitment of the encoder to the codes (van den Oord et al. 2017)."""
    vectors, ids = encode(params, images)
    quantised = jnp.asarray(CODEBOOK)[ids]
    # Straight-through: the decoder reads the code, its gradient goes to the encoder's vector.
    straight = vectors + jax.lax.stop_gradient(quantised - vectors)
    error = DECODER.apply(params["decoder"], straight) - (images / 127.5 - 1)
    return jnp.mean(error**2) + 0.25 * jnp.mean((vectors - quantised) ** 2)


def norm(x: jax.Array, scale: float = 1.0) -> jax.Array:
    """PB-relax: LN(x) = LN(x / max|x|), so that no square overflows half precision."""
    x = x / jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    scale_init = nn.initializers.constant(scale)
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, scale_init=scale_init)(x)


def attention(x: jax.Array) -> jax.Array:
    """Causal, with PB-relax: softmax((Q / (alpha sqrt H) K^T - max) alpha) V (equation 4)."""
    _, t, d = x.shape
    q, k, v = rearrange(nn.Dense(3 * d)(x), "b t (three n h) -> three b n t h", three=3, n=HEADS)
    scores = (q / (ALPHA * (d // HEADS) ** 0.5)) @ jnp.swapaxes(k, 2, 3)
    scores = jnp.where(jnp.tri(t, dtype=bool), scores, -jnp.inf)
    weights = nn.softmax((scores - scores.max(axis=-1, keepdims=True)) * ALPHA)
    return nn.Dense(d)(rearrange(weights @ v, "b n t h -> b t (n h)"))


class Transformer(nn.Module):
    """Logits of the next token: int32 [B, T] -> float32 [B, T, V], through a tied head."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        words, positions = nn.Embed(self.vocab_size, WIDTH), nn.Embed(LENGTH, WIDTH)
        x = words(tokens) + positions(jnp.arange(tokens.shape[1]))
        for _ in range(LAYERS):  # Sandwich-LN: x + LN(f(LN(x))), a norm at both ends of a branch
            x = x + norm(attention(norm(x)), BRANCH)
            x = x + norm(nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(norm(x)))), BRANCH)
        return words.attend(norm(x))

    def loss(self, params: dict, tokens: jax.Array) -> jax.Array:
        """The mean cross-entropy of the next token; text and image tokens weigh the same."""
        logits, targets = self.apply(params, tokens[:, :-1]), tokens[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses, where=targets != self.vocab_size - 1)  # [PAD] is the last

    def sample(self, params: dict, tokens: jax.Array, at: jax.Array, key: jax.Array) -> jax.Array:
        """Codes [64] sampled in place of what a sequence int32 [T] has from position `at` on."""

        def add_code(i: jax.Array, tokens: jax.Array) -> jax.Array:
            # Code i sees nothing that follows. All is computed again; `cogview_jax` has a cache.
            logits = self.apply(params, tokens[None])[0, at + i - 1, :CODES]
            logits = jnp.where(logits < jax.lax.top_k(logits, TOP_K)[0][-1], -jnp.inf, logits)
            code = jax.random.categorical(jax.random.fold_in(key, i), logits)
            return tokens.at[at + i].set(code)

        return jax.lax.fori_loop(0, CELLS, add_code, tokens)[at + jnp.arange(CELLS)]


def make_tokens(ids: dict, captions: list[str], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences int32 [B, T], padded on the right, and the places [B] of their first codes."""
    prompts = [[ids[word] for word in f"[ROI1] {c} [TINY] [BOI1]".split()] for c in captions]
    rows = [[*prompt, *row, ids["[EOI1]"]] for prompt, row in zip(prompts, codes, strict=True)]
    tokens = np.array([row + [ids["[PAD]"]] * (LENGTH - len(row)) for row in rows], np.int32)
    return tokens, np.array([len(prompt) for prompt in prompts], np.int32)


def train(name: str, loss, params: dict, data: np.ndarray, lr: float, steps: int) -> tuple:
    """The parameters after AdamW on loss(params, batch), and the loss of each step."""
    rate = optax.warmup_cosine_decay_schedule(0, lr, round(0.05 * steps), steps, 0.1 * lr)
    decayed = jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # no biases and no norms
    adamw = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.01, mask=decayed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)

    @jax.jit
    def train_step(params, state, data, step):
        batch = data[jax.random.randint(random_key(BATCH, step), (ROWS,), 0, len(data))]
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    data, state, losses = jnp.asarray(data), optimizer.init(params), []
    for step in range(steps):
        params, state, value = train_step(params, state, data, step)
        losses.append(float(value))
        if step % 50 == 0 or step == steps - 1:
            print(f"{name}: step {step}, loss {value:.4f}", flush=True)
    return params, losses


def main(steps: int, out: Path) -> None:
    """Trains both stages and draws the figure."""
    drawings = [drawing(SEED, "train", i, SIZE) for i in range(DRAWINGS + PROMPTS)]
    captions, images = [caption(s, "en") for s, _ in drawings], np.stack([x for _, x in drawings])

    start = {"encoder": ENCODER.init(random_key(INIT, 0), images[:1] / 255)}
    start["decoder"] = DECODER.init(random_key(INIT, 1), CODEBOOK[None, None, :1])
    codec, _ = train("image tokenizer", codec_loss, start, images[:DRAWINGS], 2e-3, steps // 2)

    codes = np.asarray(encode(codec, images)[1]).reshape(-1, CELLS)
    words = sorted({word for text in captions for word in text.split()})
    ids = {name: CODES + i for i, name in enumerate([*words, *COMMANDS])}  # after the codes' ids
    tokens, first = make_tokens(ids, captions, codes)
    model = Transformer(CODES + len(ids))
    start = model.init(random_key(INIT, 2), tokens[:1])
    params, _ = train("transformer", model.loss, start, tokens[:DRAWINGS], 3e-3, steps)

    rows = np.repeat(np.arange(DRAWINGS, len(tokens)), SAMPLES)  # drawings that nothing trained on
    keys = jax.vmap(random_key, (None, 0))(SAMPLE, jnp.arange(len(rows)))
    sample = jax.jit(jax.vmap(model.sample, (None, 0, 0, 0)))
    samples = sample(params, tokens[rows], first[rows], keys)
    shown = np.concatenate([codes[-PROMPTS:, None], samples.reshape(PROMPTS, SAMPLES, CELLS)], 1)
    pixels = DECODER.apply(codec["decoder"], CODEBOOK[shown.reshape(-1, 8, 8)])
    pixels = np.asarray(jnp.clip((pixels + 1) * 127.5, 0, 255), np.uint8).repeat(3, 1).repeat(3, 2)
    pixels = np.pad(pixels, ((0, 0), (20, 0), (2, 2), (0, 0)), constant_values=255)
    sheet = Image.fromarray(rearrange(pixels, "(r c) h w rgb -> (r h) (c w) rgb", r=PROMPTS))
    for row, text in enumerate(captions[-PROMPTS:]):
        ImageDraw.Draw(sheet).text((4, sheet.height // PROMPTS * row + 4), text, fill="black")
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    print(f"{out}: on the left a decoded drawing, beside it samples for its caption")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains and samples a tiny CogView.")
    parser.add_argument("--steps", type=int, default=1200, help="of the transformer")
    parser.add_argument("--out", type=Path, default=Path("runs/minimal.png"), help="the figure")
    main(**vars(parser.parse_args()))
