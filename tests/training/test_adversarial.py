"""The adversarial loss against those of taming-transformers and LlamaGen: values and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.models.networks.discriminator import Discriminator
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.training.adversarial import (
    AdversarialConfig,
    adaptive_weight,
    discriminator_turn,
    generator_turn,
    last_kernel_gradients,
    perceptual_reconstruction,
    with_gradient,
)
from cogview_jax.training.gan_losses import discriminator_loss, generator_loss
from discriminator_names import (
    discriminator_from_torch,
    discriminator_to_torch,
)

#: Steps before and after the start of the discriminator in the oracles.
BEFORE, AFTER = 50, 500


def in_range(images):
    """uint8 -> [-1, 1], as the original models are given them."""
    return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def hwio(array):
    return array.transpose(2, 3, 1, 0)


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def close_gradient(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class Setting:
    """A discriminator, images and their reconstructions, and LPIPS, of one of the originals."""

    def __init__(self, tensors, where, images, decoded, weights):
        self.config, self.params, self.state = discriminator_from_torch(tensors, where)
        self.images, self.decoded, self.weights = images, decoded, weights

    def discriminate(self, images, state, params=None, train=True):
        variables = {"params": self.params if params is None else params}
        return Discriminator(self.config).apply(variables, images, state, train)


class Taming(Setting):
    """What the taming oracles were computed from, with the input of the decoder's last layer."""

    def __init__(self, oracles):
        self.arrays = np.load(oracles("taming_loss/loss.npz"))
        self.facts = json.loads(oracles("taming_loss/loss.json").read_text())
        model = json.loads(oracles("taming_vq/config.json").read_text())["model"]["params"]
        loss = model["lossconfig"]["params"]
        decoded = nhwc(self.arrays["xrec"])
        images = np.load(oracles("taming_vq/io.npz"))["b0:images"][: len(decoded)]
        file = oracles("taming_vq/last.ckpt")
        tensors = read_torch(file)["state_dict"]
        super().__init__(tensors, str(file), in_range(images), decoded, read_lpips(file))
        self.settings = AdversarialConfig(weight=loss["disc_weight"], start_step=loss["disc_start"])
        self.features = nhwc(self.arrays["h"])
        self.kernel = hwio(self.arrays["last_weight"])
        self.bias = self.arrays["last_bias"]
        self.programs, self.turns = {}, {}

    def last_layer(self, kernel, features):
        """The decoder's last convolution, by another function than the code's."""
        y = jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias

    def turn(self, step, train=True, **settings):
        """The generator's turn and its gradients: for the reconstruction and the last kernel."""
        asked = (train, *settings.items())
        if asked not in self.programs:
            self.programs[asked] = self._program(train, settings)
        if (step, asked) not in self.turns:
            self.turns[step, asked] = self.programs[asked](
                (self.images, self.decoded, self.features, self.kernel),
                (self.weights, self.params, self.state),
                step,
            )
        return self.turns[step, asked]

    def judged(self, step, train=True, **settings):
        """The discriminator's turn, and the gradients of its parameters."""
        asked = ("judged", train, *settings.items())
        if asked not in self.programs:
            config = dataclasses.replace(self.settings, **settings)

            def loss(params, images, decoded, state, step):
                discriminate = functools.partial(self.discriminate, params=params, train=train)
                turn = discriminator_turn(images, decoded, discriminate, state, step, config)
                return turn.loss, turn

            self.programs[asked] = jax.jit(jax.grad(loss, has_aux=True))
        return self.programs[asked](self.params, self.images, self.decoded, self.state, step)

    def _program(self, train, settings):
        """Of arrays that are arguments: with constants XLA would compute while it compiles."""
        config = dataclasses.replace(self.settings, **settings)

        def turn(arrays, models, step):
            images, decoded, features, kernel = arrays
            weights, params, state = models
            discriminate = functools.partial(self.discriminate, params=params, train=train)

            def of_decoded(decoded):
                found = generator_turn(
                    images, decoded, features, kernel, weights, discriminate, state, step, config
                )
                return found.loss, found

            def of_kernel(kernel):
                return of_decoded(self.last_layer(kernel, features))

            grad = functools.partial(jax.grad, has_aux=True)
            decoded_gradient, found = grad(of_decoded)(decoded)
            return found, decoded_gradient, grad(of_kernel)(kernel)[0]

        return jax.jit(turn)


@pytest.fixture(scope="module")
def taming(oracles):
    return Taming(oracles)


@pytest.fixture(scope="module")
def llamagen(oracles):
    """The setting, arrays and facts of LlamaGen's loss."""
    arrays = np.load(oracles("llamagen/loss.npz"))
    facts = json.loads(oracles("llamagen/facts.json").read_text())
    decoded = nhwc(arrays["rec"])
    images = np.load(oracles("llamagen/io.npz"))["b0:images"][: len(decoded)]
    file = oracles("llamagen/discriminator.pt")
    tensors = read_torch(file)["discriminator"]
    weights = read_lpips(oracles("taming_vq/last.ckpt"))
    return Setting(tensors, str(file), in_range(images), decoded, weights), arrays, facts


# ---- losses of logits


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_losses_of_logits(llamagen, kind):
    _, arrays, facts = llamagen
    real, fake = arrays["logits_real"][:, 0], arrays["logits_fake"][:, 0]

    def loss(real, fake):
        return jnp.mean(discriminator_loss(kind, real, fake))

    value, (for_real, for_fake) = jax.value_and_grad(loss, argnums=(0, 1))(real, fake)
    close(value, facts["gan_losses"][f"d_{kind}"])
    close_gradient(for_real, arrays[f"d_{kind}:grad_real"][:, 0])
    close_gradient(for_fake, arrays[f"d_{kind}:grad_fake"][:, 0])


def test_hinge_of_the_generator(llamagen):
    _, arrays, facts = llamagen
    fake = arrays["logits_fake"][:, 0]
    value, gradient = jax.value_and_grad(lambda x: jnp.mean(generator_loss("hinge", x)))(fake)
    close(value, facts["gan_losses"]["g_hinge"])
    close_gradient(gradient, arrays["g_hinge:grad_fake"][:, 0])


def test_non_saturating_is_the_cross_entropy_with_its_targets(llamagen):
    _, arrays, facts = llamagen
    real, fake = (arrays[f"logits_{name}"][:, 0].astype(np.float64) for name in ("real", "fake"))
    sigmoid = {"real": 1 / (1 + np.exp(-real)), "fake": 1 / (1 + np.exp(-fake))}
    expected = -(np.log(sigmoid["real"]).mean() + np.log(1 - sigmoid["fake"]).mean()) / 2
    found = jnp.mean(discriminator_loss("non_saturating", jnp.float32(real), jnp.float32(fake)))
    close(found, expected)
    close(found, facts["gan_losses"]["d_vanilla"])
    generator = jnp.mean(generator_loss("non_saturating", jnp.float32(fake)))
    close(generator, -np.log(sigmoid["fake"]).mean())
    # The original swaps logits and targets.
    for value, name in ((found, "d_non_saturating"), (generator, "g_non_saturating")):
        assert abs(value - facts["gan_losses"][name]) > 1e-3
    fake_gradient = jax.grad(
        lambda x: jnp.mean(discriminator_loss("non_saturating", jnp.float32(real), x))
    )(jnp.float32(fake))
    close_gradient(fake_gradient, sigmoid["fake"] / (2 * fake.size))
    assert not np.any(arrays["d_non_saturating:grad_fake"])


def test_losses_are_of_each_image():
    real, fake = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for kind in ("hinge", "vanilla"):
        whole = discriminator_loss(kind, real, fake)
        assert whole.shape == (3,)
        close(whole[1], discriminator_loss(kind, real[1:2], fake[1:2])[0])
    assert generator_loss("non_saturating", fake).shape == (3,)


# ---- taming-transformers


def test_reconstruction_and_its_gradients(taming):
    def loss(decoded, images, weights):
        loss, terms = perceptual_reconstruction(images, decoded, weights, taming.settings)
        return jnp.mean(loss), terms

    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        taming.decoded, taming.images, taming.weights
    )
    expected = taming.facts["hinge_step500"]["generator"]
    close(value, expected["nll_loss"])
    close(jnp.mean(terms["perceptual"]), expected["p_loss"])
    close_gradient(gradient, nhwc(taming.arrays["grad_rec:nll"]))


def test_kernel_gradients_need_no_pass_through_the_decoder(taming):
    cotangents = [nhwc(taming.arrays[f"grad_rec:{name}"]) for name in ("nll", "g")]
    found = last_kernel_gradients(taming.features, taming.kernel, *cotangents)
    for gradient, name in zip(found, ("nll", "g"), strict=True):
        close_gradient(gradient, hwio(taming.arrays[f"grad_last_layer:{name}"]))
    expected = taming.facts["hinge_step500"]["generator"]["d_weight"]
    found = taming.settings.weight * adaptive_weight(*found)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


CASES = {
    "hinge_step500": {"step": AFTER},
    "vanilla_step500": {"step": AFTER, "discriminator_loss": "vanilla"},
    "hinge_step50_before_disc_start": {"step": BEFORE},
    "hinge_step500_disc_in_eval_mode": {"step": AFTER, "train": False},
}


@pytest.mark.parametrize("case", CASES)
def test_generators_turn(taming, case):
    expected = taming.facts[case]["generator"]
    (loss, terms, _), *_ = taming.turn(**CASES[case])
    close(loss, expected["total_loss"] - expected["quant_loss"])
    close(terms["nll"], expected["nll_loss"])
    close(terms["perceptual"], expected["p_loss"])
    close(terms["generator"], expected["g_loss"])
    weight = expected["d_weight"] * expected["disc_factor"]
    np.testing.assert_allclose(terms["adversarial_weight"], weight, rtol=1e-4)


def test_gradients_of_the_generators_turn(taming):
    _, decoded, kernel = taming.turn(AFTER)
    close_gradient(decoded, nhwc(taming.arrays["grad_rec:total"]))
    close_gradient(kernel, hwio(taming.arrays["grad_last_layer:total"]))
    _, decoded, _ = taming.turn(BEFORE)
    close_gradient(decoded, nhwc(taming.arrays["before_disc_start:grad_rec:total"]))


def test_gradients_with_running_statistics(taming):
    facts = taming.facts["hinge_step500_disc_in_eval_mode"]["generator"]
    _, decoded, kernel = taming.turn(AFTER, train=False)
    for found, name, axes in ((decoded, "rec", nhwc), (kernel, "last_layer", hwio)):
        nll = taming.arrays[f"grad_{name}:nll"]
        g = taming.arrays[f"disc_eval_mode:grad_{name}:g"]
        close_gradient(found, axes(nll + facts["d_weight"] * g))


def test_the_generators_turn_moves_the_running_statistics(taming):
    (_, _, after), *_ = taming.turn(AFTER)
    _, expected = taming.discriminate(taming.decoded, taming.state)
    for found, each in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_discriminators_turn(taming, case):
    expected = taming.facts[case]
    gradients, turn = taming.judged(**CASES[case])
    for name in ("logits_real", "logits_fake"):
        close(turn.terms[name], expected["discriminator"][name])
    close(turn.loss, expected["discriminator"]["disc_loss"])
    found = discriminator_to_torch(taming.config, gradients, taming.state)
    norms = expected["grad_norms_discriminator"]
    assert len(norms) > 5
    for name, norm in norms.items():
        name = name.removeprefix("loss.").removeprefix("discriminator.")
        np.testing.assert_allclose(np.linalg.norm(found[name]), norm, rtol=1e-4, atol=1e-7)
    if case == "hinge_step500":
        close_gradient(found["main.0.weight"], taming.arrays["disc_grad:main.0.weight"])
        state = discriminator_to_torch(taming.config, taming.params, turn.state)
        for name in taming.arrays.files:
            place, _, key = name.partition(":")
            if place == "bn_after_disc_turn":
                close(state[key].reshape(-1), taming.arrays[name].reshape(-1))


# ---- LlamaGen


LLAMAGEN = {
    "l2_fixed_weight": ("l2", "hinge"),
    "l1_adaptive_hinge": ("l1", "hinge"),
}


@pytest.mark.parametrize("case", LLAMAGEN)
def test_llamagens_loss(llamagen, case):
    setting, arrays, facts = llamagen
    facts, (error, kind) = facts["vqloss"][case], LLAMAGEN[case]
    # The oracle's adaptive weight is taken as it is: no file has what goes into the last layer.
    config = AdversarialConfig(
        reconstruction=error,
        generator_loss=kind,
        weight=0.5 * facts["adaptive_weight"],
        adaptive=False,
        start_step=100,
    )

    def loss(decoded, images, weights):
        features, kernel = jnp.zeros((*decoded.shape[:3], 1)), jnp.zeros((3, 3, 1, 3))
        turn = generator_turn(
            images,
            decoded,
            features,
            kernel,
            weights,
            setting.discriminate,
            setting.state,
            501,
            config,
        )
        return turn.loss, turn

    gradient, turn = jax.jit(jax.grad(loss, has_aux=True))(
        setting.decoded, setting.images, setting.weights
    )
    close(turn.terms["reconstruction"], facts["rec"])
    close(turn.terms["perceptual"], facts["p"])
    close(turn.terms["generator"], facts["g_adv"])
    close(turn.loss, facts["generator_loss"] - sum(facts[k] for k in ("vq", "commit", "entropy")))
    close_gradient(gradient, nhwc(arrays[f"{case}:grad_rec"]))
    judged = discriminator_turn(
        setting.images, setting.decoded, setting.discriminate, setting.state, 501, config
    )
    close(0.5 * judged.loss, facts["discriminator_loss"])


# ---- by themselves


def test_kernel_gradients_of_narrow_features():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 9, 7, 5)).astype(np.float32)
    kernel = np.zeros((5, 5, 5, 3), np.float32)
    # As small as the gradient of a mean over many pixels: below what float16 can hold.
    cotangents = 1e-9 * rng.standard_normal((2, 2, 9, 7, 3)).astype(np.float32)

    def output(kernel):
        return jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = [jax.vjp(output, kernel)[1](each)[0] for each in cotangents]
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.float16, 2e-3), (jnp.bfloat16, 2e-2)):
        found = last_kernel_gradients(jnp.asarray(features, dtype), kernel, *cotangents)
        for gradient, each in zip(found, expected, strict=True):
            assert gradient.dtype == jnp.float32
            assert np.abs(gradient - each).max() < tolerance * np.abs(each).max()


def test_the_adaptive_weight_is_bounded_and_constant():
    one, nothing = jnp.ones((3, 3, 2, 3)), jnp.zeros((3, 3, 2, 3))
    size = np.sqrt(54)
    np.testing.assert_allclose(adaptive_weight(2 * one, one), 2 * size / (size + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(adaptive_weight(one, nothing), 1e4)
    assert adaptive_weight(nothing, nothing) == 0
    assert not np.any(jax.grad(lambda x: adaptive_weight(x, one))(one))


def test_a_zero_cotangent_has_a_zero_gradient():
    features, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 3))
    zero = jnp.zeros((1, 4, 4, 3))
    (found,) = last_kernel_gradients(features, kernel, zero)
    np.testing.assert_array_equal(found, np.zeros((3, 3, 2, 3)))


def test_a_given_gradient_is_handed_on_and_scaled():
    x, gradient = jnp.arange(3.0), jnp.array([1.0, -2.0, 0.5])
    value, found = jax.value_and_grad(lambda x: 8 * with_gradient(x, jnp.float32(7), gradient))(x)
    assert value == 56
    np.testing.assert_array_equal(found, 8 * gradient)


def test_no_gradient_reaches_what_judges(taming):
    """The discriminator learns in its own turn alone, and LPIPS never."""

    def loss(params, weights, features):
        discriminate = functools.partial(taming.discriminate, params=params)
        turn = generator_turn(
            taming.images,
            taming.decoded,
            features,
            taming.kernel,
            weights,
            discriminate,
            taming.state,
            AFTER,
            taming.settings,
        )
        return turn.loss

    given = (taming.params, taming.weights, taming.features)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*given)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_without_a_perceptual_term_no_weights_are_needed():
    images, decoded = np.random.default_rng(0).uniform(-1, 1, (2, 2, 8, 8, 3)).astype(np.float32)
    for kind, expected in (("l1", np.abs(images - decoded)), ("l2", (images - decoded) ** 2)):
        config = AdversarialConfig(reconstruction=kind, perceptual_weight=0)
        loss, terms = perceptual_reconstruction(images, decoded, None, config)
        close(loss, expected.mean(axis=(1, 2, 3)), 1e-6)
        assert list(terms) == ["reconstruction"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reconstruction": "l3"}, "reconstruction = 'l3': choices are 'l1', 'l2'"),
        ({"generator_loss": "vanilla"}, "generator_loss = 'vanilla': choices are 'hinge'"),
        ({"weight": -1}, "weight = -1"),
        ({"start_step": -5}, "start_step = -5"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(InputError) as error:
        build(AdversarialConfig, settings, "adversarial")
    assert words in str(error.value)
