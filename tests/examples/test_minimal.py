"""`examples/minimal.py` computes what the package computes: losses step by step, and samples.

Both start from the same weights and read the same batches; nothing but the weights is shared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import prepare_decode_params, unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.layout import Example, LayoutConfig, left_padded, make_layout
from cogview_jax.tokenizers.quantisers.moving_average import Codebook, Fixed
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.optimizer import OptimizerConfig, make_optimizer, schedule
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState
from cogview_jax.training.step import make_step
from examples import minimal

#: Fewer than the example's: every layer is compiled by itself.
LAYERS = 2
STEPS, ROWS = 12, 48
CAPTIONS = [
    "a red ring on a white background",
    "two blue stars on a gray background",
    "a large green heart at the top left on a gray background",
] * (ROWS // 3)
WORDS = sorted({word for text in CAPTIONS for word in text.split()})
IDS = {name: minimal.CODES + i for i, name in enumerate([*WORDS, *minimal.COMMANDS])}
CODES = np.random.default_rng(0).integers(minimal.CODES, size=(ROWS, minimal.CELLS))
IMAGES = np.stack([minimal.drawing(0, "train", i, minimal.SIZE)[1] for i in range(ROWS)])
TOKENS, FIRST = minimal.make_tokens(IDS, CAPTIONS, CODES)
MINE = minimal.Transformer(minimal.CODES + len(IDS))
VOCABULARY = Vocabulary(minimal.CODES, len(WORDS))
LAYOUT = make_layout(LayoutConfig("text_to_image", text_length=12, grid=8), VOCABULARY)
CODEC = VQVAE(
    VQVAEConfig(
        quantiser=Fixed(),
        image_size=32,
        downsampling=4,
        channels=(32, 64),
        codebook=minimal.CODES,
        code_width=minimal.CODE_WIDTH,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
)
THEIRS = Transformer(
    TransformerConfig(
        layers=LAYERS,
        width=minimal.WIDTH,
        heads=minimal.HEADS,
        dropout=0.0,
        alpha=minimal.ALPHA,
        embedding_gradient=1.0,
        sandwich_scale=minimal.BRANCH,
        remat="none",
    ),
    MINE.vocab_size,
    minimal.LENGTH,
)
#: Where the package keeps what the example's modules hold, in the order in which they are called.
NORMS = ("attention_in", "attention_out", "mlp_in", "mlp_out")


def stage_2_params(params):
    """The example's weights in the package's places."""
    params, width = params["params"], minimal.WIDTH

    def layer(i):
        dense = [params[f"Dense_{4 * i + j}"] for j in range(4)]
        qkv = {
            "kernel": dense[0]["kernel"].reshape(width, 3, width),
            "bias": dense[0]["bias"].reshape(3, width),
        }
        norms = {name: params[f"LayerNorm_{4 * i + j}"] for j, name in enumerate(NORMS)}
        return {
            "attention": {"qkv": qkv, "out": dense[1]},
            # An argument's module is called first: the second map of the MLP is named first.
            "mlp": {"up": dense[3], "down": dense[2]},
            **norms,
        }

    layers = [layer(i) for i in range(LAYERS)]
    return {
        "word_embedding": params["Embed_0"]["embedding"],
        "position_embedding": params["Embed_1"]["embedding"],
        "blocks": {"block": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)},
        "final_norm": params[f"LayerNorm_{4 * LAYERS}"],
    }


def stage_1_params(params):
    """The example's weights in the package's places."""
    encoder, decoder = (params[name]["params"] for name in ("encoder", "decoder"))

    def pointwise(dense):
        return {"kernel": dense["kernel"][None, None], "bias": dense["bias"]}

    def transposed(level):
        # Rows: neighbour a, b and channel; columns: pixel p, q and channel. Tap 2 - 2a + p.
        features = len(level["bias"])
        kernel = level["Dense_0"]["kernel"].reshape(2, 2, -1, 2, 2, features)[::-1, ::-1]
        kernel = kernel.transpose(0, 3, 1, 4, 2, 5).reshape(4, 4, -1, features)
        return {"kernel": kernel, "bias": level["bias"]}

    return {
        "encoder_convs_0": encoder["layers_0"],
        "encoder_convs_1": encoder["layers_2"],
        "encoder_out": pointwise(encoder["layers_4"]),
        "decoder_convs_0": transposed(decoder["layers_0"]),
        "decoder_convs_1": transposed(decoder["layers_2"]),
        "decoder_out": pointwise(decoder["layers_4"]),
    }


@pytest.fixture(scope="module", autouse=True)
def shallow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minimal, "LAYERS", LAYERS)
        yield


@pytest.fixture(scope="module")
def codec_start():
    """The first weights of the image tokenizer, as the example makes them."""
    encoder = minimal.ENCODER.init(minimal.random_key(minimal.INIT, 0), IMAGES[:1] / 255)
    key = minimal.random_key(minimal.INIT, 1)
    decoder = minimal.DECODER.init(key, minimal.CODEBOOK[None, None, :1])
    return {"encoder": encoder, "decoder": decoder}


@pytest.fixture(scope="module")
def start():
    """The first weights of the transformer, as the example makes them."""
    return MINE.init(minimal.random_key(minimal.INIT, 2), TOKENS[:1])


@pytest.fixture(scope="module")
def trained(start):
    """The transformer's weights after some steps of the example, and their losses."""
    return minimal.train("transformer", MINE.loss, start, TOKENS, 3e-3, STEPS)


def batch_rows(step):
    key = minimal.random_key(minimal.BATCH, step)
    return np.asarray(jax.random.randint(key, (minimal.ROWS,), 0, ROWS))


def package_losses(objective, params, model_state, batch, lr):
    """What the package's own step makes of `batch(rows)`."""
    assert_same_shapes(params, objective.init)
    config = OptimizerConfig(lr=lr, warmup=0.05, floor=0.1, weight_decay=0.01, clip=1.0)
    optimizer = make_optimizer(config, STEPS)
    step = jax.jit(make_step(objective, optimizer, schedule(config, STEPS), seed=minimal.SEED))
    state = TrainState(jnp.int32(0), params, optimizer.init(params), model_state)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, batch(batch_rows(number)))
        losses.append(float(metrics["loss"]))
    return losses


def assert_same_shapes(params, init):
    """Every weight of the package has one of the example, and the other way round."""
    theirs, _ = jax.eval_shape(init, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, unbox(theirs))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes


def test_the_image_tokenizer_has_the_losses_of_the_package(codec_start):
    _, losses = minimal.train("codec", minimal.codec_loss, codec_start, IMAGES, 2e-3, STEPS)
    codes = jnp.asarray(minimal.CODEBOOK)
    book = Codebook(codes, jnp.ones(len(codes)), codes, jnp.float32(0))
    objective = CodecObjective(CODEC, global_batch=minimal.ROWS)
    params = stage_1_params(codec_start)
    theirs = package_losses(objective, params, book, lambda rows: ImageExample(IMAGES[rows]), 2e-3)
    np.testing.assert_allclose(losses, theirs, rtol=1e-6)
    assert losses[-1] < 0.9 * losses[0]


def test_images_have_the_codes_and_codes_the_pixels_of_the_package(codec_start):
    codes = jnp.asarray(minimal.CODEBOOK)
    book = Codebook(codes, jnp.ones(len(codes)), codes, jnp.float32(0))
    params = stage_1_params(codec_start)
    ids = minimal.encode(codec_start, IMAGES)[1]
    np.testing.assert_array_equal(ids, encode_images(CODEC, params, book, IMAGES))
    assert len(np.unique(ids)) > 8
    pixels = minimal.DECODER.apply(codec_start["decoder"], codes[ids])
    pixels = np.clip((np.asarray(pixels) + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(pixels, decode_codes(CODEC, params, book, ids), atol=0.5001)


def test_sequences_are_those_of_the_layout():
    names = [*WORDS, *minimal.COMMANDS]
    ids = {name: VOCABULARY.text_start + i for i, name in enumerate(WORDS)}
    ids |= {name: VOCABULARY.command(name.strip("[]")) for name in minimal.COMMANDS}
    theirs = {IDS[name]: ids[name] for name in names} | {i: i for i in range(minimal.CODES)}
    for text, codes, row in zip(CAPTIONS, CODES, TOKENS, strict=True):
        parts = {"text": [WORDS.index(word) for word in text.split()], "image": codes}
        example = LAYOUT.example(parts)
        assert [theirs[token] for token in row[:-1]] == example.tokens.tolist()
        assert [theirs[token] for token in row[1:]] == example.targets.tolist()
        weights = row[1:] != IDS["[PAD]"]
        np.testing.assert_array_equal(weights, example.text_weights + example.image_weights)


def test_the_transformer_has_the_losses_of_the_package(start, trained):
    def batch(rows):
        targets, image = TOKENS[rows, 1:], TOKENS[rows, 1:] < minimal.CODES
        real = targets != IDS["[PAD]"]
        return Example(
            tokens=TOKENS[rows, :-1],
            targets=targets,
            positions=np.broadcast_to(np.arange(targets.shape[1]), targets.shape),
            text_weights=(real & ~image).astype(np.float32),
            image_weights=image.astype(np.float32),
        )

    _, losses = trained
    objective = SequenceObjective(THEIRS, LAYOUT)
    theirs = package_losses(objective, stage_2_params(start), (), batch, 3e-3)
    np.testing.assert_allclose(losses, theirs, rtol=1e-6)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("top_k", "temperature"), [(1, 0.0), (20, 1.0)])
def test_samples_are_those_of_the_cached_decoder(trained, monkeypatch, top_k, temperature):
    """Greedy ones, which need no key, and those drawn from the 20 likeliest."""
    params, keys = trained[0], jax.random.split(jax.random.key(3), 3)
    prompts = [TOKENS[i, : FIRST[i]] for i in range(3)]
    tokens, valid = left_padded(prompts, max(map(len, prompts)))
    theirs = generate(
        prepare_decode_params(unstack_layers(stage_2_params(params))),
        tokens,
        valid,
        keys,
        row_settings([SamplingConfig(temperature=temperature, top_k=top_k)] * 3),
        model=THEIRS,
        count=minimal.CELLS,
        first=0,
        last=minimal.CODES,
    )
    monkeypatch.setattr(minimal, "TOP_K", top_k)
    sample = jax.jit(jax.vmap(MINE.sample, (None, 0, 0, 0)))
    mine = sample(params, TOKENS[:3], FIRST[:3], keys)
    np.testing.assert_array_equal(mine, theirs)
    assert len({tuple(row) for row in mine.tolist()}) == 3


def test_it_runs_from_its_drawings_to_its_figure(tmp_path, monkeypatch, capsys):
    from PIL import Image

    for name, value in (("DRAWINGS", 20), ("PROMPTS", 2), ("SAMPLES", 3)):
        monkeypatch.setattr(minimal, name, value)
    minimal.main(2, tmp_path / "new" / "figure.png")
    with Image.open(tmp_path / "new" / "figure.png") as figure:
        assert figure.size == (4 * 100, 2 * 116)
        assert len(figure.getcolors(figure.width * figure.height)) > 100
    assert "transformer: step 1, loss" in capsys.readouterr().out


def test_it_has_at_most_200_lines_and_needs_the_drawings_alone(root):
    lines = (root / "examples" / "minimal.py").read_text().splitlines()
    assert len(lines) <= 200
    ours = [line for line in lines if "cogview_jax" in line and "import" in line]
    assert ours == ["from cogview_jax.shapes.scenes import caption, drawing"]
