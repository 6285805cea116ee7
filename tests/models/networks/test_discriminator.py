"""PatchGAN against the discriminators of taming-transformers and LlamaGen."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.models.networks.discriminator import (
    ActNormState,
    Discriminator,
    DiscriminatorConfig,
    initial_state,
)
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import sharded_shapes, unbox
from discriminator_names import (
    discriminator_from_torch,
    discriminator_to_torch,
)


def in_range(images):
    """uint8 -> [-1, 1], as the original models are given them."""
    return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


@functools.cache
def apply(config, train):
    """The jitted network: (params, images, state) -> (logits, state)."""
    network = Discriminator(config)
    return jax.jit(lambda params, x, state: network.apply({"params": params}, x, state, train))


def new_parameters(config):
    """Parameters as training starts from them, without their boxes."""
    start, images = initial_state(config), jnp.zeros((1, 64, 64, 3))
    init = jax.jit(lambda key: Discriminator(config).init(key, images, start, False))
    return unbox(init(jax.random.key(1)))["params"]


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def taming(oracles):
    """Sizes, parameters and state of the checkpoint's discriminator, and two batches of images."""
    file = oracles("taming_vq/last.ckpt")
    expected = np.load(oracles("taming_loss/loss.npz"))
    fake = nhwc(expected["xrec"])
    real = in_range(np.load(oracles("taming_vq/io.npz"))["b0:images"][: len(fake)])
    found = discriminator_from_torch(read_torch(file)["state_dict"], str(file))
    return *found, real, fake, expected


@pytest.fixture(scope="module")
def actnorm(oracles):
    """Oracle arrays, and before the first batch: sizes, parameters and state."""
    arrays = np.load(oracles("taming_loss/actnorm_discriminator.npz"))
    return arrays, *discriminator_from_torch(sd(arrays, "sd0:"), "actnorm_discriminator.npz")


def sd(arrays, prefix):
    """A state dict among the arrays of a file, where scalars have one axis."""
    found = {
        name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)
    }
    return {
        name: array.reshape(()) if "initialized" in name else array for name, array in found.items()
    }


# ---- BatchNorm


def test_logits_of_batch_statistics(taming):
    config, params, state, real, fake, expected = taming
    for images, name in ((real, "logits_real"), (fake, "logits_fake")):
        logits, _ = apply(config, True)(params, images, state)
        close(logits, expected[name][:, 0])


def test_logits_of_running_statistics(taming):
    config, params, state, real, fake, expected = taming
    for images, name in ((real, "logits_real"), (fake, "logits_fake")):
        logits, after = apply(config, False)(params, images, state)
        close(logits, expected[f"disc_eval_mode:{name}"][:, 0])
        assert jax.tree.all(jax.tree.map(np.array_equal, after, state))


def test_running_statistics_after_the_discriminators_turn(taming):
    config, params, state, real, fake, expected = taming
    for images in (real, fake):
        _, state = apply(config, True)(params, images, state)
    found = discriminator_to_torch(config, params, state)
    names = [name for name in expected.files if name.startswith("bn_after_disc_turn:")]
    assert len(names) == 3 * len(state)
    for name in names:
        array = found[name.partition(":")[2]]
        close(array, expected[name].reshape(array.shape))


def test_llamagens_discriminator_is_the_same_network(oracles):
    file = oracles("llamagen/discriminator.pt")
    tensors = read_torch(file)["discriminator"]
    config, params, state = discriminator_from_torch(tensors, str(file))
    back = discriminator_to_torch(config, params, state)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor.read(), strict=True)


# ---- ActNorm


def test_actnorm_starts_from_the_first_batch(actnorm):
    arrays, config, params, state = actnorm
    assert config.norm == "actnorm"
    logits, state = apply(config, True)(params, in_range(arrays["images_b0"]), state)
    close(logits, arrays["logits_first"][:, 0])
    expected, found = sd(arrays, "sd1:"), discriminator_to_torch(config, params, state)
    assert list(found) == list(expected)
    for name, array in expected.items():
        atol = 1e-5 * max(1, np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol)
    logits, again = apply(config, True)(params, in_range(arrays["images_b1"]), state)
    close(logits, arrays["logits_second_images_b1"][:, 0])
    assert jax.tree.all(jax.tree.map(np.array_equal, again, state))


def test_actnorm_read_after_its_start_stays_as_it_is(actnorm):
    arrays, *_ = actnorm
    config, params, state = discriminator_from_torch(sd(arrays, "sd1:"), "sd1")
    for train in (True, False):
        logits, after = apply(config, train)(params, in_range(arrays["images_b1"]), state)
        close(logits, arrays["logits_second_images_b1"][:, 0])
        assert jax.tree.all(jax.tree.map(np.array_equal, after, state))


def test_no_gradient_goes_through_the_start(actnorm):
    arrays, config, params, state = actnorm
    images = jnp.asarray(in_range(arrays["images_b0"]))

    def total(state, images):
        return jnp.sum(apply(config, True)(params, images, state)[0] ** 2)

    _, started = apply(config, True)(params, images, state)
    before, after = (jax.grad(total, argnums=1)(each, images) for each in (state, started))
    # What the first batch sets is a constant: the gradient is that of the second time.
    atol = 1e-5 * np.abs(after).max()
    np.testing.assert_allclose(before, after, rtol=0, atol=atol)


# ---- files


@pytest.mark.parametrize("file", ["taming_vq/last.ckpt", "taming_loss/actnorm_discriminator.npz"])
def test_conversion_there_and_back_is_bit_for_bit(oracles, file):
    path = oracles(file)
    if path.suffix == ".npz":
        given = sd(np.load(path), "sd1:")
    else:
        state = read_torch(path)["state_dict"]
        prefix = "loss.discriminator."
        given = {k.removeprefix(prefix): v.read() for k, v in state.items() if prefix in k}
    found = discriminator_to_torch(*discriminator_from_torch(given, file))
    assert list(found) == list(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_sizes_are_those_of_the_file(oracles, taming):
    config, *_ = taming
    released = json.loads(oracles("taming_vq/config.json").read_text())
    loss = released["model"]["params"]["lossconfig"]["params"]
    assert config == DiscriminatorConfig(loss["disc_ndf"], loss["disc_num_layers"])


def test_a_new_discriminator_has_the_arrays_of_the_original(taming, actnorm):
    for config, params, state in (taming[:3], actnorm[1:4]):
        start = initial_state(config)
        fresh = new_parameters(config)
        for own, theirs in ((fresh, params), (start, state)):
            shapes = jax.tree.map(np.shape, (own, theirs))
            assert shapes[0] == shapes[1]


# ---- the other norms


def slow_group_norm(x, groups, scale, bias):
    y = x.astype(np.float64)
    for image in range(len(x)):
        for group in np.split(np.arange(x.shape[-1]), groups):
            part = y[image, :, :, group]
            y[image, :, :, group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return y * scale + bias


@pytest.mark.parametrize("norm", ["group", "none"])
def test_group_and_none(norm):
    config = DiscriminatorConfig(channels=4, layers=2, norm=norm, groups=2)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 24, 20, 3)).astype(np.float32)
    params = jax.tree.map(np.asarray, new_parameters(config))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    logits, state = apply(config, True)(params, images, {})
    assert state == {}
    x = images
    for i, layer in enumerate(config.sizes):
        conv = params[f"conv_{i}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2))
        x = np.einsum(
            "bhwcij,ijco->bhwo", windows[:, :: layer.stride, :: layer.stride], conv["kernel"]
        )
        x = x + np.asarray(conv["bias"])
        if norm == "group" and layer.normed:
            x = slow_group_norm(x, 2, **params[f"norm_{i}"])
        if i < len(config.sizes) - 1:
            x = np.where(x > 0, x, 0.2 * x)
    assert logits.shape[1:] == config.grid(24, 20)
    np.testing.assert_allclose(logits, x[..., 0], rtol=1e-4, atol=1e-5)


# ---- start, precision, meshes, bad input


def test_start_is_the_originals():
    config = DiscriminatorConfig(channels=64, layers=3)
    params = new_parameters(config)
    kernel, scale = params["conv_3"]["kernel"], params["norm_3"]["scale"]
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02], atol=2e-4)
    np.testing.assert_allclose([scale.mean(), scale.std()], [1, 0.02], atol=5e-3)
    assert not np.any(params["norm_3"]["bias"])
    assert ["bias" in params[f"conv_{i}"] for i in range(5)] == [True, False, False, False, True]
    bound = (4 * 4 * 3) ** -0.5
    assert 0.9 * bound < np.abs(params["conv_0"]["bias"]).max() <= bound


def test_bfloat16_is_near_float32(taming):
    config, params, state, real, *_ = taming
    wide, _ = apply(config, True)(params, real, state)
    network = Discriminator(config, dtype=jnp.bfloat16)
    narrow, after = jax.jit(lambda: network.apply({"params": params}, real, state, True))()
    assert narrow.dtype == jnp.float32
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(after))
    np.testing.assert_allclose(narrow, wide, atol=0.05 * np.abs(wide).max())


@pytest.mark.parametrize("norm", ["batch", "actnorm", "group"])
def test_eight_devices_compute_as_one(norm):
    config = DiscriminatorConfig(channels=8, layers=2, norm=norm, groups=8)
    network = Discriminator(config)
    images = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
    state, key = initial_state(config), jax.random.key(0)
    boxed = network.init(key, images[:1], state, False)["params"]
    params = unbox(boxed)

    def gradients(params, images, state):
        def loss(params):
            logits, after = network.apply({"params": params}, images, state, True)
            return jnp.mean(logits**2), after

        return jax.grad(loss, has_aux=True)(params)

    alone = jax.jit(gradients)(params, images, state)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    with jax.set_mesh(mesh):
        shapes = sharded_shapes(boxed, mesh)
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, shapes)
        together = jax.jit(gradients)(placed, images, state)
    assert "fsdp" in placed["conv_1"]["kernel"].sharding.spec
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max() + 1e-8)


def test_images_may_be_too_small():
    config = DiscriminatorConfig(channels=4, layers=3)
    assert config.grid(24, 25) == (1, 1)
    with pytest.raises(InputError, match=r"23 x 64 pixels .* at least 24"):
        config.grid(23, 64)
    network, state = Discriminator(config), initial_state(config)
    with pytest.raises(InputError, match="too small"):
        network.init(jax.random.key(0), jnp.zeros((1, 16, 64, 3)), state, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "layer"}, "norm = 'layer': choices are 'batch', 'actnorm', 'group', 'none'"),
        ({"layers": 0}, "layers = 0: expected 1 to 16"),
        ({"channels": 0}, "channels = 0"),
        ({"norm": "group", "channels": 9}, "groups = 32: expected a divisor of the 18 channels"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(InputError) as error:
        build(DiscriminatorConfig, settings, "discriminator")
    assert words in str(error.value)


def test_files_of_other_shapes(taming):
    config, params, state, *_ = taming
    given = discriminator_to_torch(config, params, state)
    missing = {name: array for name, array in given.items() if name != "main.3.running_var"}
    with pytest.raises(InputError, match=r"it lacks main\.3\.running_var"):
        discriminator_from_torch(missing, "it")
    with pytest.raises(InputError, match=r"it has main\.9\.bias, which no rule knows"):
        discriminator_from_torch(given | {"main.9.bias": np.zeros(1, np.float32)}, "it")
    wrong = given | {"main.2.weight": given["main.2.weight"][:, 1:]}
    with pytest.raises(InputError, match=r"main\.2\.weight has shape .* expected"):
        discriminator_from_torch(wrong, "it")
    with pytest.raises(InputError, match="no PatchGAN"):
        discriminator_from_torch({"convolution.weight": np.zeros(3)}, "it")


def test_the_state_before_the_first_batch():
    state = initial_state(DiscriminatorConfig(channels=2, layers=1, norm="actnorm"))
    assert list(state) == ["norm_1"]
    assert isinstance(state["norm_1"], ActNormState)
    assert initial_state(DiscriminatorConfig(norm="none")) == {}
