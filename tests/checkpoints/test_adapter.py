"""Adapters as PEFT reads them, merged into their base, and refused."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import reference
import tiny
from cogview_jax.checkpoints.adapter import CONFIG, WEIGHTS, read_adapter, stacked, write_adapter
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.interop.conversion import convert
from cogview_jax.interop.files import SourceFiles
from cogview_jax.models.linear import Linear
from cogview_jax.models.lora import MODULES, LoRAConfig, adapter_shapes, merged, with_adapters
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tokenizers.vocabulary import Vocabulary

LORA = LoRAConfig(rank=2, alpha=5.0, targets=("qkv", "mlp.down"))


def test_linear_layers_give_the_outputs_of_peft(fixtures_root):
    """PEFT 0.21.2 read this folder into torch layers with these weights and gave these outputs."""
    folder = fixtures_root / "peft"
    layers = safetensors.numpy.load_file(folder / "layers.safetensors")
    found = read_adapter(folder)
    assert (found.lora.rank, found.lora.alpha, found.lora.modules) == (3, 7.0, MODULES)
    width, features = 12, {"qkv": (3, 12), "out": (12,), "up": (36,), "down": (12,)}
    compared = 0
    for name in MODULES:
        branch, layer = name.split(".")
        kernels = []
        for i in range(2):
            weight = layers[f"blocks.{i}.{name}.weight"]
            kernels.append(weight.T.reshape(-1, *features[layer]))
        params = {"blocks": {"block": {branch: {layer: {"kernel": np.stack(kernels)}}}}}
        lora = dataclasses.replace(found.lora, targets=(name,))
        own = {key: array for key, array in found.arrays.items() if f".{name}." in key}
        adapters = stacked(dataclasses.replace(found, lora=lora, arrays=own), params, "the fixture")
        low, high = (
            jax.tree.map(np.asarray, tree)["blocks"]["block"][branch][layer]
            for tree in (
                with_adapters(params, adapters, lora.scale),
                merged(params, adapters, lora.scale),
            )
        )
        for i in range(2):
            own = {key: layers[f"blocks.{i}.{name}.{key}"] for key in ("x", "y", "bias", "merged")}
            bias = own["bias"].reshape(features[layer])
            module = Linear(features[layer], ("embed",) * (1 + bias.ndim), 0.02)
            for tree in (low, high):
                one = {key: array[i] for key, array in tree.items()} | {"bias": bias}
                y = module.apply({"params": one}, own["x"]).reshape(len(own["x"]), -1)
                np.testing.assert_allclose(y, own["y"], rtol=1e-5, atol=1e-5)
                compared += y.size
            kernel = high["kernel"][i].reshape(len(high["kernel"][i]), -1).T
            np.testing.assert_allclose(kernel, own["merged"], rtol=1e-6, atol=1e-6)
            plain = own["x"] @ layers[f"blocks.{i}.{name}.weight"].T + own["bias"]
            assert np.abs(own["y"] - plain).max() > 0.1  # the adapter does something
    assert compared == 2 * 2 * 2 * (3 * width + width + 3 * width + width)


def test_the_shipped_adapter_gives_the_outputs_of_peft(fixtures_root):
    """PEFT read the adapter of `emoji_caption` beside the weights of `emoji`, with input cos(n)."""
    expected = safetensors.numpy.load_file(fixtures_root / "peft" / "emoji_caption.safetensors")
    blocks = open_bundle("emoji_caption").transformer().params["blocks"]["block"]
    found = {}
    for name in MODULES:
        branch, layer = name.split(".")
        for i, (kernel, bias) in enumerate(
            zip(*(blocks[branch][layer][key] for key in ("kernel", "bias")), strict=True)
        ):
            kernel = np.reshape(kernel, (-1, bias.size))
            x = np.cos(np.arange(len(kernel)))
            found[f"blocks.{i}.{name}"] = (x @ kernel + np.ravel(bias)).astype(np.float32)
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        # The largest outputs are near 20, and both sums are of float32 numbers.
        np.testing.assert_allclose(found[name], y, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def part():
    params = tiny.start(tiny.transformer_objective()).params
    return TransformerPart(tiny.TRANSFORMER, tiny.VOCABULARY, tiny.LAYOUT, params)


@pytest.fixture(scope="module")
def base(part, tmp_path_factory):
    """A bundle in half precision, as the release has its weights."""
    path = tmp_path_factory.mktemp("base") / "bundle"
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), part.params)
    write_bundle(path, transformer=dataclasses.replace(part, params=half))
    return path


@pytest.fixture(scope="module")
def adapters(part):
    return reference.random_like(adapter_shapes(part.params, LORA), 1)


@pytest.fixture(scope="module")
def written(part, base, adapters, tmp_path_factory):
    """An adapter that was trained for captions, on the base rounded to bfloat16."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    layout = dataclasses.replace(tiny.LAYOUT, task="caption")
    lora = dataclasses.replace(LORA, base_dtype="bfloat16")
    trained = dataclasses.replace(part, layout=layout, drop_captions=0.0, weights="ema")
    trained = dataclasses.replace(trained, sampling=SamplingSettings(top_k=7))
    there = Bundle(base).sha256("transformer")
    write_adapter(folder, adapters, lora, trained, base=there, base_path=str(base), step=7)
    return folder


def test_an_adapter_is_the_same_file_each_time_that_it_is_written(part, adapters, tmp_path):
    """The library puts its metadata in another order each time."""
    found = []
    for number in range(12):
        folder = tmp_path / str(number)
        write_adapter(folder, adapters, LORA, part, base="a hash", base_path="there", step=7)
        found.append((folder / WEIGHTS).read_bytes())
    assert len(set(found)) == 1
    with safetensors.safe_open(folder / WEIGHTS, "numpy") as opened:
        assert opened.metadata()["format"] == "pt"
        assert len(opened.keys()) == 2 * 2 * tiny.TRANSFORMER.layers
    # Arrays begin at a multiple of 8 bytes, as in files that the library writes.
    assert int.from_bytes(found[0][:8], "little") % 8 == 0
    arrays = safetensors.numpy.load(found[0])
    name = "base_model.model.blocks.1.mlp.down.lora_A.weight"
    given = adapters["blocks"]["block"]["mlp"]["down"]["lora_A"][1].T
    np.testing.assert_array_equal(arrays[name], given)


def merge(adapter, base, out, **files):
    convert(None, None, SourceFiles(**files), str(base), str(out), adapter=str(adapter))


def test_a_merged_bundle_has_the_kernels_and_the_layout_of_the_adapter(
    base, written, adapters, tmp_path
):
    merge(written, base, tmp_path / "merged")
    bundle = Bundle(tmp_path / "merged")
    assert (bundle.step, bundle.weights, list(bundle.parts)) == (7, "ema", ["transformer"])
    part = bundle.transformer()
    assert part.layout.task == "caption"
    assert part.drop_captions == 0.0
    assert part.sampling == SamplingSettings(top_k=7)
    ours, theirs = part.params, Bundle(base).transformer().params
    theirs = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), theirs)
    theirs = jax.tree.map(lambda leaf: leaf.astype(np.float32), theirs)
    pairs = adapters["blocks"]["block"]
    for branch, layer in (("attention", "qkv"), ("mlp", "down")):
        pair, kernel = pairs[branch][layer], theirs["blocks"]["block"][branch][layer]["kernel"]
        product = np.einsum("ldr,lr...->ld...", pair["lora_A"], pair["lora_B"])
        kernel += 2.5 * product
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), ours, theirs)
    np.testing.assert_array_equal(ours["word_embedding"], theirs["word_embedding"])


def changed(written, folder, *, config=None, metadata=None, arrays=None):
    """A copy of an adapter with other settings, description or arrays."""
    shutil.copytree(written, folder)
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as opened:
        about = opened.metadata()
        there = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    described = json.loads(about["cogview_jax"])
    described.update(metadata or {})
    if arrays is not None:
        arrays(there)
    safetensors.numpy.save_file(
        there, folder / WEIGHTS, about | {"cogview_jax": json.dumps(described)}
    )
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | (config or {})))
    return folder


QKV = "base_model.model.blocks.{}.attention.qkv.lora_{}.weight"


def lose(name):
    return lambda arrays: arrays.pop(name)


def have(name, array):
    return lambda arrays: arrays.update({name: array})


OTHER = dataclasses.asdict(dataclasses.replace(tiny.TRANSFORMER, width=64))
NARROW = np.zeros((2, 16), np.float32)
WRONG = {
    "another base": ({"metadata": {"base": "1" * 64}}, r"trained on transformer 1{12}, but the bu"),
    "no base": ({"metadata": {"base": None}}, r"does not say which transformer it adapts \(base\)"),
    "another rank": ({"config": {"r": 4}}, r"has shape \[2, 32\], expected \[4, 32\]"),
    "another width": (
        {"arrays": have(QKV.format(1, "A"), NARROW)},
        r"blocks.1.attention.qkv.lora_A.weight has shape \[2, 16\], expected \[2, 32\]",
    ),
    "missing": (
        {"arrays": lose(QKV.format(0, "B"))},
        "lacks base_model.model.blocks.0.attention.qkv.lora_B.weight",
    ),
    "unknown": (
        {"arrays": have(QKV.format(2, "A"), np.zeros((2, 32), np.float32))},
        r"has base_model.model.blocks.2.attention.qkv.lora_A.weight, which is no array of its",
    ),
    "fewer targets": ({"config": {"target_modules": ["qkv"]}}, "has base_model.*mlp.down.lora_A"),
    "unknown target": ({"config": {"target_modules": ["q_proj"]}}, "has the name 'q_proj'; choose"),
    "another method": ({"config": {"use_rslora": True}}, "use_rslora = True: expected False"),
    "another model": ({"metadata": {"config": OTHER}}, "describes another model than the bundle"),
    "no rank": ({"config": {"r": 0}}, "r = 0: expected at least 1"),
    "half precision": (
        {"arrays": have(QKV.format(0, "A"), np.zeros((2, 32), np.float16))},
        "has arrays of type F16, expected F32",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_adapter_that_does_not_fit_is_one_line(base, written, tmp_path, name):
    changes, message = WRONG[name]
    folder = changed(written, tmp_path / "adapter", **changes)
    with pytest.raises(InputError, match=message) as raised:
        merge(folder, base, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_and_what_does_not_belong_to_it_is_refused(base, written, tmp_path):
    with pytest.raises(InputError, match="is no folder of an adapter: it has no adapter_config"):
        merge(base, base, tmp_path / "out")
    with pytest.raises(InputError, match="--grid belongs to --source, not to --adapter"):
        merge(written, base, tmp_path / "out", grid=4)
    with pytest.raises(InputError, match=r"--bundle TEXT is missing: .* --adapter is merged into"):
        convert(None, None, SourceFiles(), None, str(tmp_path / "out"), adapter=str(written))
    with pytest.raises(InputError, match=r"expected one of --source .* --adapter and --dtype"):
        convert("taming", None, SourceFiles(), None, str(tmp_path / "out"), adapter=str(written))


def test_the_vocabulary_of_the_fixture_is_not_needed(fixtures_root):
    """Its description is read like any other."""
    entry = read_adapter(fixtures_root / "peft").entry
    assert entry.vocabulary == Vocabulary(codes=4, text=5)
    assert (entry.config.layers, entry.config.width) == (2, 12)
