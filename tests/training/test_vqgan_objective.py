"""Generator and discriminator in one step, against both losses written out and differentiated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogview_jax.models.networks.convolution import ConvWeights
from cogview_jax.models.networks.discriminator import DiscriminatorConfig
from cogview_jax.models.networks.lpips import LpipsWeights, lpips
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh, place_batch
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.codec import normalise
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.quantisers.learned import Cosine
from cogview_jax.training.adversarial import AdversarialConfig
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.codec_objective import ImageExample
from cogview_jax.training.optimizer import OptimizerConfig, make_optimizer
from cogview_jax.training.state import TrainState, initial_state, state_shapes
from cogview_jax.training.step import make_step
from cogview_jax.training.vqgan_objective import VQGANObjective

CONFIG = VQGANConfig(
    image_size=16,
    codebook=12,
    code_width=4,
    quantiser=Cosine(entropy_temperature=0.1),
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(1,),
    latent_channels=8,
    norm_groups=4,
)
LOSS = VQGANLoss(
    perceptual="weights",
    adversarial=AdversarialConfig(start_step=1, weight=0.5),
    discriminator=DiscriminatorConfig(channels=8, layers=1),
)
ROWS = 8
#: Compiling takes half as long.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def random_lpips():
    """A narrow VGG-16 of random weights."""
    generator, channels = np.random.default_rng(3), [3]
    convs = []
    for width, count in ((3, 2), (4, 2), (5, 3), (4, 3), (3, 3)):
        for _ in range(count):
            kernel = generator.standard_normal((3, 3, channels[-1], width)) / channels[-1] ** 0.5
            convs.append((kernel.astype(np.float32), np.full(width, 0.1, np.float32)))
            channels.append(width)
    heads = tuple(generator.uniform(size=c).astype(np.float32) for c in (3, 4, 5, 4, 3))
    return LpipsWeights("vgg16", tuple(ConvWeights(*conv) for conv in convs), heads)


WEIGHTS = random_lpips()


#: Without LPIPS, which takes long to compile.
PLAIN = dataclasses.replace(
    LOSS, perceptual="", adversarial=dataclasses.replace(LOSS.adversarial, perceptual_weight=0.0)
)


def objective(loss=LOSS, config=CONFIG):
    weights = WEIGHTS if loss.perceptual else None
    return VQGANObjective(config.module(), global_batch=ROWS, loss=loss, perceptual=weights)


def images(seed):
    noise = np.random.default_rng(seed).integers(256, size=(ROWS, 16, 16, 3))
    return ImageExample(noise.astype(np.uint8))


@functools.cache
def fresh() -> TrainState:
    """The state before step 0, on one device; that of its optimizer is empty."""
    return jax.jit(lambda: unbox(initial_state(objective(), optax.sgd(0.1), 0)))()


def start(step=0):
    """The state of a run before `step`, on one device."""
    state = fresh()
    return dataclasses.replace(
        state, step=jnp.int32(step), model_state=state.model_state._replace(step=jnp.int32(step))
    )


def written_out(model, state, batch):
    """Both losses, each term differentiated on its own: gradients and weight."""
    codec, pixels = model.codec, normalise(CONFIG, batch.image)
    rows = jnp.arange(ROWS)

    def parts(params):
        vectors = codec.apply({"params": params}, pixels, method="encode")
        quantised = model.quantise(params, state.model_state.codebook, vectors, rows, key)
        decoded = codec.apply({"params": params}, quantised.vectors, method="decode")
        nll = jnp.mean(jnp.abs(decoded - pixels)) + jnp.mean(lpips(WEIGHTS, pixels, decoded))
        return nll, decoded, jnp.mean(quantised.loss)

    def judge(judging, x):
        before = state.model_state.discriminator
        return model.discriminator.apply({"params": judging}, x, before, True)[0]

    key, judging = jax.random.key(0), state.params["discriminator"]
    (nll, decoded, book), back = jax.vjp(parts, state.params)
    none = jnp.zeros_like(nll), jnp.zeros_like(decoded), jnp.zeros_like(book)
    (nll,) = back((jnp.ones_like(nll), *none[1:]))
    (book,) = back((*none[:2], jnp.ones_like(book)))
    fooled = jax.grad(lambda x: -jnp.mean(judge(judging, x)))(decoded)
    (g,) = back((none[0], fooled, none[2]))
    norms = [jnp.linalg.norm(t["decoder_out"]["kernel"].ravel()) for t in (nll, g)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4) * (state.step >= 1)

    def hinge(judging):
        real, fake = judge(judging, pixels), judge(judging, decoded)
        return jnp.mean(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)) / 2

    expected = jax.tree.map(lambda a, b, c: a + weight * b + c, nll, g, book)
    judged = jax.grad(hinge)(judging)
    expected["discriminator"] = jax.tree.map(lambda d: d * (state.step >= 1), judged)
    return expected, weight


@jax.jit
def in_one(state, batch):
    """The gradient of the objective, and its sums."""

    def loss(params):
        sums = objective().sums(
            params, state.model_state, batch, jnp.arange(ROWS), jax.random.key(0)
        )
        return sums.loss / ROWS, sums

    return jax.grad(loss, has_aux=True)(state.params)


@jax.jit
def apart(state, batch):
    return written_out(objective(), state, batch)


@pytest.mark.parametrize("step", [0, 1])
def test_one_gradient_is_that_of_both_turns(step):
    """Before the start the adversarial terms, and all gradients of the discriminator, are 0."""
    state, batch = start(step), images(1)
    found, sums = in_one(state, batch)
    expected, weight = apart(state, batch)
    total, count = sums.metrics["adversarial_weight"]
    assert float(total / count) == pytest.approx(float(weight), rel=1e-4)
    assert (weight > 0) == (step == 1)
    moved = jax.tree.map(lambda leaf: bool(jnp.any(leaf != 0)), found["discriminator"])
    assert any(jax.tree.leaves(moved)) == (step == 1)
    # The bias of an attention's keys has the gradient 0, but for rounding.
    floor = 1e-3 * max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        largest = max(float(jnp.max(jnp.abs(theirs))), floor)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * largest)


def test_muon_moves_kernels_of_the_codec_and_adamw_the_discriminator():
    state = start(1)
    gradient, _ = in_one(state, images(1))
    updates = []
    for muon_lr in (1e-2, 0.0):
        optimizer = make_optimizer(OptimizerConfig(lr=1e-3, muon_lr=muon_lr, warmup=0.0), 4)
        update = jax.jit(lambda g, p, by=optimizer: by.update(g, by.init(p), p)[0])
        updates.append(update(gradient, state.params))
    moved = 0
    for (path, one), other in zip(
        jax.tree.leaves_with_path(updates[0]), jax.tree.leaves(updates[1]), strict=True
    ):
        by_muon = path[0].key != "discriminator" and path[-1].key == "kernel"
        assert np.allclose(one, other, rtol=1e-5, atol=1e-9) != by_muon, path
        moved += by_muon
    assert moved > 5


def trained(mesh=None, steps=3):
    """States and metrics of a few steps."""
    model, optimizer = objective(PLAIN), optax.adam(1e-3, eps=1e-3)
    step = make_step(model, optimizer, optax.constant_schedule(1e-3), seed=0)
    state = fresh()
    state = state.replace(
        opt_state=jax.jit(optimizer.init)(state.params),
        model_state=state.model_state._replace(perceptual=()),
    )
    if mesh is None:
        run = jax.jit(step)
        for i in range(steps):
            state, metrics = run(state, images(i))
        return state, metrics
    with jax.set_mesh(mesh):
        shapes = state_shapes(model, optimizer, mesh)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))
        run = jax.jit(step)
        for i in range(steps):
            state, metrics = run(state, place_batch(images(i), mesh))
    return state, metrics


@pytest.fixture(scope="module")
def whole():
    return trained()


def test_a_mesh_changes_nothing(whole):
    """Neither for the norms of the discriminator, which are of the whole batch."""
    split = trained(make_mesh(MeshConfig(data=2, fsdp=4)))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_both_learn_and_the_state_goes_on(whole):
    state, metrics = whole
    before = fresh()
    assert state.model_state.step == 3
    norm = state.model_state.discriminator["norm_1"]
    assert norm.batches == 9  # the generator's turn, then real and generated images
    for part in ("encoder", "decoder", "quantiser", "discriminator"):
        same = jax.tree.map(np.array_equal, state.params[part], before.params[part])
        assert not all(jax.tree.leaves(same)), part
    assert {"generator", "discriminator", "codebook_usage"} <= set(metrics)


def test_a_bundle_holds_neither_the_discriminator_nor_lpips(whole):
    state, _ = whole
    held = objective(PLAIN).bundle_values(state.values)
    assert "discriminator" not in held.params
    assert held.model_state is state.model_state.codebook
    other = jax.tree.map(lambda leaf: leaf + 1, held)
    joined = objective(PLAIN).with_bundle_values(state.values, other)
    assert joined.params["discriminator"] is state.params["discriminator"]
    jax.tree.map(np.testing.assert_array_equal, joined.model_state.codebook, other.model_state)


@pytest.mark.parametrize("norm", ["batch", "actnorm"])
def test_a_batch_in_parts_needs_a_discriminator_of_rows(norm):
    judging = dataclasses.replace(LOSS.discriminator, norm=norm)
    message = rf"discriminator\.norm = '{norm}' needs the whole batch"
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LOSS, discriminator=judging).check_accumulation(2)


def test_a_batch_in_parts_is_the_whole_batch():
    """Also where the loss is not one of rows: the adaptive weight, and the entropy of the mean."""
    judging = DiscriminatorConfig(channels=8, layers=1, norm="group", groups=4)
    adversarial = dataclasses.replace(PLAIN.adversarial, start_step=0)
    loss = dataclasses.replace(PLAIN, adversarial=adversarial, discriminator=judging)
    loss.check_accumulation(4)
    half = (0.5, 0.5, 0.5)
    sizes = {"image_size": 16, "codebook": 12, "code_width": 4, "quantiser": CONFIG.quantiser}
    plain = VQVAEConfig(**sizes, downsampling=4, channels=8, mean=half, std=half)
    model = objective(loss, plain)  # takes less time to compile
    state = jax.jit(lambda: unbox(initial_state(model, optax.sgd(1.0), 0)))()
    results = {}
    for parts in (1, 2, 4):
        rate = optax.constant_schedule(1.0)
        step = make_step(model, optax.sgd(1.0), rate, seed=0, accumulate=parts)
        compiled = jax.jit(step).lower(state, brighter_images()).compile(QUICK)
        results[parts] = compiled(state, brighter_images())
    _, metrics = results[1]
    assert metrics["adversarial_weight"] > 0
    assert metrics["entropy"] < 0
    for parts in (2, 4):
        for (path, one), other in zip(
            jax.tree.leaves_with_path(results[1]), jax.tree.leaves(results[parts]), strict=True
        ):
            name, largest = jax.tree_util.keystr(path), float(np.abs(one).max())
            atol = 2e-5 * max(largest, 0.1)
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=atol, err_msg=name)
    # In parts that know nothing of each other, both would be something else.
    sums = jax.jit(lambda *part: model.sums(*state.values, *part, jax.random.key(0)).metrics)
    image, number = brighter_images().image, np.arange(ROWS)
    alone = [sums(ImageExample(image[part::4]), number[part::4]) for part in range(4)]
    for name in ("adversarial_weight", "entropy"):
        mean = np.mean([float(total / count) for total, count in (part[name] for part in alone)])
        assert abs(mean - float(metrics[name])) > 1e-2 * abs(float(metrics[name])), name


def brighter_images():
    """Of which every row has another brightness, so that parts of a batch differ."""
    strength = np.linspace(0.1, 1, ROWS)[:, None, None, None]
    return ImageExample((images(0).image * strength).astype(np.uint8))
