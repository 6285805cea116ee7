"""Public image tokenizers against what their own code computes, through the command and in Python.

Sizes, images and weights are those of the oracles' files, whatever they are.
"""

import json
import shutil

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle, codec_shapes
from cogview_jax.interop import conversion, llamagen, taming, vqgan, vqgan_jax
from cogview_jax.interop.files import SourceFiles
from cogview_jax.interop.rules import flat, tensor_sources
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.init_from import different_codec
from command_runs import call

FILES = {
    "taming": "taming_vq/last.ckpt",
    "gumbel": "taming_gumbel/last.ckpt",
    "llamagen": "llamagen/vq.pt",
    "vqgan_jax": "vqgan_jax/flax_model.msgpack",
}
#: Where the expected numbers lie, and under which names.
EXPECTED = {
    "taming": ("taming_vq/io.npz", "indices", ("b0:", "b1:")),
    "gumbel": ("taming_gumbel/io.npz", "argmax", ("",)),
    "llamagen": ("llamagen/io.npz", "indices", ("b0:", "b1:")),
}


def channels_last(array):
    return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module")
def bundle(oracles, tmp_path_factory):
    """Makes the bundle of a file, once."""
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def make(name):
        if name not in made:
            file, out = oracles(FILES[name]), folder / name
            source = "taming" if name == "gumbel" else name
            given = SourceFiles(image_tokenizer=str(file))
            conversion.convert(source, None, given, None, str(out))
            made[name] = out
        return made[name]

    return make


@pytest.mark.parametrize("name", EXPECTED)
def test_codes_and_pixels_are_those_of_the_original(name, oracles, bundle):
    """Ids exactly, also of images that are not square; activations within 1e-4."""
    file, ids, batches = EXPECTED[name]
    table = np.load(oracles(file))
    part = Bundle(bundle(name)).codec()
    codec, config = part.config.module(), part.config
    model = cogview_jax.load(bundle(name))

    @jax.jit
    def both_ways(params, pixels, codes):
        return (
            codec.apply({"params": params}, pixels, method="encode"),
            codec.apply({"params": params}, codes, method="decode"),
        )

    for batch in batches:
        images = table[f"{batch}images"]
        rows, columns = (side // config.downsampling for side in images.shape[1:3])
        expected = table[f"{batch}{ids}"].reshape(-1, rows, columns)
        np.testing.assert_array_equal(model.encode(images), expected)
        pixels = np.float32(images / 127.5 - 1)
        codes = channels_last(table[f"{batch}code_vectors"])
        vectors, decoded = both_ways(part.params, pixels, codes)
        before = channels_last(table[f"{batch}pre_quant"])
        np.testing.assert_allclose(vectors, before, atol=1e-4)
        rows = config.quantiser.vectors(part.params["quantiser"], part.codebook, expected)
        np.testing.assert_allclose(rows, codes, atol=1e-6)
        theirs = channels_last(table[f"{batch}decoded"])
        np.testing.assert_allclose(decoded, theirs, atol=1e-4)
        shown = np.clip(127.5 * (theirs + 1), 0, 255)
        assert np.abs(model.decode(expected) - shown).max() < 0.51


def test_a_model_of_vqgan_jax_is_the_one_that_its_authors_converted(bundle):
    """Of the oracle's taming_vq/last.ckpt, whose codes and pixels are tested above."""
    ours, theirs = (Bundle(bundle(name)).codec() for name in ("vqgan_jax", "taming"))
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.codebook, theirs.codebook)


def test_the_command_converts_encodes_and_gives_back_bit_for_bit(root, oracles, tmp_path):
    file = oracles(FILES["taming"])
    out, back = tmp_path / "bundle", tmp_path / "back"
    made = call(root, "convert", "--source=taming", f"--image_tokenizer={file}", f"--out={out}")
    assert made.returncode == 0, made.stderr
    assert "dropped from" in made.stderr
    given = call(root, "convert", "--target=taming", f"--bundle={out}", f"--out={back}")
    assert given.returncode == 0, given.stderr
    assert_same_model(read_torch(back / "image_tokenizer.ckpt"), read_torch(file))


def test_a_gumbel_model_is_given_back_bit_for_bit(oracles, bundle, tmp_path):
    give_back("taming", bundle("gumbel"), tmp_path / "back")
    assert_same_model(
        read_torch(tmp_path / "back" / "image_tokenizer.ckpt"), read_torch(oracles(FILES["gumbel"]))
    )


def give_back(target, bundle, out):
    conversion.convert(None, target, SourceFiles(), str(bundle), str(out))


def assert_same_model(found, expected):
    """Every tensor but those of the loss: the same names, types and bits."""
    found, expected = found["state_dict"], expected["state_dict"]
    names = {name for name in expected if not name.startswith("loss.")}
    assert set(found) == names
    for name in names:
        ours, theirs = found[name].read(), expected[name].read()
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes(), name


def test_a_lightning_envelope_is_read_and_what_it_holds_beside_is_not_run(oracles):
    """Its callbacks are keyed by a class of a package that is not installed."""
    tree = read_torch(oracles("taming_vq/lightning_envelope.ckpt"))
    assert "callbacks" in tree
    state = taming.state_dict(tree, ("state_dict",), "envelope")
    whole = read_torch(oracles(FILES["taming"]))["state_dict"]
    assert set(state) <= set(whole)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.read(), whole[name].read())


@pytest.mark.parametrize("name", ["taming", "gumbel", "llamagen"])
def test_safetensors_there_and_back_are_the_same_bundle(name, bundle, tmp_path):
    path = bundle(name)
    give_back("safetensors", path, tmp_path / "files")
    file = tmp_path / "files" / "image_tokenizer.safetensors"
    given = SourceFiles(image_tokenizer=str(file))
    conversion.convert("safetensors", None, given, None, str(tmp_path / "again"))
    before, after = (Bundle(one).codec() for one in (path, tmp_path / "again"))
    assert before.config == after.config
    for one, other in ((before.params, after.params), (before.codebook, after.codebook)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- full sizes, by their lists of tensors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f16_n1024", {"codebook": 1024, "multipliers": (1, 1, 2, 2, 4), "attention": (4,)}),
        ("f16_n16384", {"codebook": 16384, "code_width": 256, "blocks": 2}),
        ("f8_gumbel_n8192", {"codebook": 8192, "multipliers": (1, 1, 2, 4), "attention": (3,)}),
    ],
)
def test_released_models_of_compvis_have_a_rule_for_every_tensor(oracles, name, expected):
    keys = json.loads(oracles("taming_vq/released_keys.json").read_text())[name]
    keys = {name: shape for name, shape in keys.items() if not name.startswith("loss.")}
    quantiser = taming.Learned()
    if "gumbel" in name:
        quantiser = taming.GumbelProjection()
    config = assert_rules(keys, vqgan.TAMING, quantiser, expected)
    if name == "f16_n16384":
        # vqgan-jax's released model has the same sizes.
        assert_trains_on("taming", config)
        assert_trains_on("vqgan_jax", config)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VQ-16", {"downsampling": 16, "codebook": 16384, "code_width": 8, "attention": (4,)}),
        ("VQ-8", {"downsampling": 8, "multipliers": (1, 2, 2, 4)}),
    ],
)
def test_released_models_of_llamagen_have_a_rule_for_every_tensor(oracles, name, expected):
    keys = json.loads(oracles(f"llamagen/keys_{name}.json").read_text())
    keys.pop(llamagen.DROPPED)
    config = assert_rules(keys, vqgan.LLAMAGEN, llamagen.Cosine(), expected)
    if name == "VQ-16":
        assert_trains_on("llamagen", config)


def assert_trains_on(variant, config):
    """A run of configs/codec_public.py can start from a bundle of these sizes."""
    experiment = read_experiment(load_config(f"configs/codec_public.py:{variant}"))
    assert different_codec(config, experiment.model) == {}


def assert_rules(keys, names, quantiser, expected):
    """The sizes inferred, and for every tensor exactly one place of the same shape."""
    state = {name: Described(tuple(shape)) for name, shape in keys.items()}
    config = vqgan.infer_config(state, names, quantiser, None, "file")
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.image_size == 256
    params = {"params": unbox(codec_shapes(config))["params"]}
    wanted = tensor_sources(vqgan.rules(config, names), params)
    assert {name: list(source.shape) for name, source in wanted.items()} == keys
    return config


class Described:
    """A tensor of which only the shape is known."""

    dtype = np.dtype("float32")

    def __init__(self, shape):
        self.shape = shape

    def read(self):
        raise AssertionError("only sizes are asked for")


# ---- bad input


def changed(file, target, change):
    """A copy of a checkpoint whose state dict, name -> array, was changed."""
    state = {name: tensor.read() for name, tensor in read_torch(file)["state_dict"].items()}
    change(state)
    slots = {name: Slot(array.shape, array.dtype) for name, array in state.items()}
    pairs = ((slots[name], array) for name, array in state.items())
    write_torch(target, {"state_dict": slots}, pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.norm_out.bias"), "lacks encoder.norm_out.bias"),
        (lambda s: s.update(extra=np.zeros(1, np.float32)), "has extra, which no rule knows"),
        (lambda s: s.pop("encoder.conv_in.weight"), "lacks encoder.conv_in.weight, from which"),
        (
            lambda s: s.update({"quant_conv.bias": np.zeros(7, np.float32)}),
            r"quant_conv.bias has shape \[7\], expected",
        ),
        (lambda s: s.clear(), "holds no state dict"),
    ],
    ids=["missing", "extra", "no size", "shape", "empty"],
)
def test_a_checkpoint_of_something_else_is_one_clear_line(oracles, tmp_path, change, message):
    changed(oracles(FILES["taming"]), tmp_path / "odd.ckpt", change)
    given = SourceFiles(image_tokenizer=str(tmp_path / "odd.ckpt"))
    with pytest.raises(InputError, match=message):
        conversion.convert("taming", None, given, None, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_format_is_not_read_as_another(oracles, tmp_path):
    given = SourceFiles(image_tokenizer=str(oracles(FILES["taming"])))
    for source, message in (
        ("llamagen", "has 0 levels in its encoder"),
        ("vqgan_jax", "is no msgpack of a Flax tree"),
        ("safetensors", "is no safetensors file"),
        ("official", "expected|lacks"),
    ):
        with pytest.raises(InputError, match=message):
            conversion.convert(source, None, given, None, str(tmp_path / "out"))


def test_the_original_cannot_hold_every_tokenizer(bundle, tmp_path):
    with pytest.raises(InputError, match="quantiser cosine; taming-transformers has learned"):
        give_back("taming", bundle("llamagen"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_refused(oracles, tmp_path, bundle):
    whole = oracles(FILES["vqgan_jax"]).read_bytes()
    (tmp_path / "cut.msgpack").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no msgpack of a Flax tree"):
        vqgan_jax.read(tmp_path / "cut.msgpack", None)
    give_back("safetensors", bundle("taming"), tmp_path / "files")
    file = tmp_path / "files" / "image_tokenizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    given = SourceFiles(image_tokenizer=str(file))
    with pytest.raises(InputError, match="is no safetensors file of a bundle"):
        conversion.convert("safetensors", None, given, None, str(tmp_path / "out"))


def test_a_bundle_is_not_replaced_by_one_that_cannot_be_read(oracles, bundle, tmp_path):
    shutil.copytree(bundle("taming"), tmp_path / "kept")
    before = Bundle(tmp_path / "kept").sha256("codec")
    changed(oracles(FILES["taming"]), tmp_path / "odd.ckpt", lambda s: s.pop("quant_conv.bias"))
    given = SourceFiles(image_tokenizer=str(tmp_path / "odd.ckpt"))
    with pytest.raises(InputError, match=r"lacks quant_conv\.bias"):
        conversion.convert("taming", None, given, None, str(tmp_path / "kept"))
    assert Bundle(tmp_path / "kept").sha256("codec") == before


def test_every_array_of_a_bundle_comes_from_the_file(bundle):
    """None is left as it was initialised: no two of the same shape are equal."""
    part = Bundle(bundle("taming")).codec()
    kernels = [leaf for name, leaf in flat(part.params).items() if name.endswith("kernel")]
    for i, one in enumerate(kernels):
        for other in kernels[:i]:
            assert one.shape != other.shape or not np.array_equal(one, other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part.params))
