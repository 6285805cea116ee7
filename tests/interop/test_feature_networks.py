"""Weights of feature networks in the formats of others, and files that are refused."""

import flax.serialization
import jax
import numpy as np
import pytest
import safetensors.numpy

from cogview_jax.interop.feature_networks import read_efficientnet, read_inception
from cogview_jax.models.networks.inception import CONVS
from cogview_jax.runtime.errors import InputError
from random_networks import efficientnet_state, write_state


@pytest.fixture(scope="module")
def state(fixtures_root):
    """The state dict of EfficientNet-Lite0 by the rule."""
    return efficientnet_state(fixtures_root)


def nested(state):
    """Nested dicts of a state dict with dots in its names."""
    tree = {}
    for name, array in state.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def refused(read, path, *words):
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert [word for word in words if word not in message] == [], message


def test_formats_hold_the_same(tmp_path, state):
    torch = read_efficientnet(write_state(tmp_path / "weights.pth", state))
    safetensors.numpy.save_file(state, tmp_path / "weights.safetensors")
    packed = flax.serialization.msgpack_serialize(nested(state))
    (tmp_path / "weights.msgpack").write_bytes(packed)
    for name in ("weights.safetensors", "weights.msgpack"):
        jax.tree.map(np.testing.assert_array_equal, read_efficientnet(tmp_path / name), torch)
    kernel = state["_blocks.3._depthwise_conv.weight"]  # [c, 1, k, k]
    variance = state["_blocks.3._bn1.running_var"] + 1e-3
    factor = state["_blocks.3._bn1.weight"] / np.sqrt(variance)
    expected = kernel.transpose(2, 3, 1, 0) * factor
    np.testing.assert_allclose(torch.blocks[3].depthwise.kernel, expected, rtol=1e-6)


def inception_names():
    """Inception's names, each of a small array."""
    layers = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    names = [f"{conv}.{layer}" for conv in CONVS for layer in layers]
    return {name: np.ones(3, np.float32) for name in (*names, "fc.weight", "fc.bias")}


def test_a_missing_and_an_unknown_name(tmp_path, state):
    short = {name: array for name, array in state.items() if name != "_blocks.9._bn2.bias"}
    path = write_state(tmp_path / "short.pth", short | {"_blocks.16._bn0.bias": np.ones(3)})
    words = ("lacks _blocks.9._bn2.bias", "has _blocks.16._bn0.bias, which no rule knows")
    refused(read_efficientnet, path, *words)
    names = inception_names()
    del names["Mixed_6b.branch7x7_2.bn.bias"]
    path = write_state(tmp_path / "inception.pth", names)
    refused(read_inception, path, "(Inception v3) lacks Mixed_6b.branch7x7_2.bn.bias")


def test_arrays_that_do_not_fit(tmp_path, state):
    path = write_state(tmp_path / "inception.pth", inception_names())
    words = ("Conv2d_1a_3x3.conv.weight has shape [3], expected [32, 3, 3, 3]",)
    refused(read_inception, path, *words)
    path = write_state(tmp_path / "head.pth", state | {"_fc.bias": np.ones(999, np.float32)})
    refused(read_efficientnet, path, "_fc.bias has shape [999], expected [1000]")
    negative = state | {"_bn0.running_var": -state["_bn0.running_var"]}
    path = write_state(tmp_path / "negative.pth", negative)
    refused(read_efficientnet, path, "no finite numbers")


def test_another_network(tmp_path, state):
    path = write_state(tmp_path / "efficientnet.pth", state)
    refused(read_inception, path, "holds weights of EfficientNet-Lite0, expected Inception v3")
    path = write_state(tmp_path / "inception.pth", inception_names())
    refused(read_efficientnet, path, "holds weights of Inception v3, expected EfficientNet-Lite0")
    other = {"layer1.0.conv1.weight": np.ones(3, np.float32), "fc.bias": np.ones(1000)}
    path = write_state(tmp_path / "resnet.pth", other)
    refused(read_efficientnet, path, "no weights of EfficientNet-Lite0: got fc.bias, layer1.0")


def test_torchvisions_inception(tmp_path):
    head = {"fc.weight": np.ones((1000, 2048), np.float32), "fc.bias": np.ones(1000, np.float32)}
    names = inception_names() | head | {"AuxLogits.fc.bias": np.ones(1000, np.float32)}
    path = write_state(tmp_path / "torchvision.pth", names)
    refused(read_inception, path, "torchvision's Inception v3", "1000 classes", "1008 classes")
    # The second classifier is no unknown name; the arrays are looked at next.
    with pytest.raises(InputError, match="expected \\[32, 3, 3, 3\\]"):
        read_inception(path, torchvision=True)


def test_what_is_no_file_of_weights(tmp_path):
    refused(read_inception, tmp_path / "absent.pth", "no weights at")
    (tmp_path / "text").write_text("weights of a network")
    refused(read_inception, tmp_path / "text", "holds no weights")
    (tmp_path / "damaged.safetensors").write_bytes(bytes(8) + b'{"a": 1')
    refused(read_inception, tmp_path / "damaged.safetensors", "holds no weights")
    (tmp_path / "list").write_bytes(flax.serialization.msgpack_serialize([np.ones(3)]))
    refused(read_inception, tmp_path / "list", "holds no weights")
