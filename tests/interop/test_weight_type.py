"""Bundles whose weights are rounded to another type."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.description import NAME
from cogview_jax.checkpoints.quantized_tree import dequantized_tree
from cogview_jax.checkpoints.stored_tree import stored_tree
from cogview_jax.interop.conversion import convert
from cogview_jax.interop.exports import ExportOptions, export
from cogview_jax.interop.files import SourceFiles
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sealed import sealed
from command_runs import call


def to_type(dtype, bundle, out):
    convert(None, None, SourceFiles(), str(bundle), str(out), dtype=dtype)
    return Bundle(out)


def arrays(bundle):
    """Every array of a bundle as it lies on disk, by its keys."""
    trees = {}
    if "transformer" in bundle.parts:
        trees["transformer"] = bundle.stored_transformer().params
    if "codec" in bundle.parts:
        codec = bundle.stored_codec()
        trees["codec"] = {"params": codec.params, "codebook": codec.codebook}
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {jax.tree_util.keystr(keys): leaf.make() for keys, leaf in leaves}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_lone_codec_is_rounded_array_by_array(chain, tmp_path, dtype):
    given = Bundle(chain.codec / "bundle")
    found = to_type(dtype, given.path, tmp_path / "half")
    assert (list(found.parts), found.step) == (["codec"], given.step)
    wanted, rounded = np.dtype(getattr(ml_dtypes, dtype, dtype)), arrays(found)
    for name, array in arrays(given).items():
        assert rounded[name].dtype == wanted, name
        np.testing.assert_array_equal(rounded[name], array.astype(wanted), err_msg=name)
    # What has the type already keeps its bits, and read in float32 nothing more is lost.
    again = arrays(to_type(dtype, found.path, tmp_path / "again"))
    whole = arrays(to_type("float32", found.path, tmp_path / "whole"))
    for name, array in rounded.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
        np.testing.assert_array_equal(whole[name], array.astype(np.float32), err_msg=name)


def test_beside_a_transformer_the_tokenizers_stay_as_they_are(chain, root, tmp_path):
    given, out = Bundle(chain.run / "bundle"), tmp_path / "half"
    result = call(root, "convert", "--dtype=float16", f"--bundle={given.path}", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("weights are float16; the image tokenizer is as it was\n")
    found = Bundle(out)
    assert found.sha256("codec") == given.sha256("codec")
    assert found.sha256("text") == given.sha256("text")
    after, before = found.description["parts"], given.description["parts"]
    assert before["transformer"] | {"sha256": ""} == after["transformer"] | {"sha256": ""}
    rounded = arrays(found)
    for name, array in arrays(given).items():
        wanted = array.astype(np.float16) if "transformer" in name else array
        assert rounded[name].dtype == wanted.dtype
        np.testing.assert_array_equal(rounded[name], wanted, err_msg=name)
    found.transformer()  # read as float32, checked against its description


def test_a_workdir_is_read_where_a_bundle_is(chain, tmp_path):
    of_bundle = to_type("float16", chain.run / "bundle", tmp_path / "a")
    of_workdir = to_type("float16", chain.run, tmp_path / "b")
    step = max(int(path.name) for path in chain.run.glob("checkpoints/*"))
    of_step = to_type("float16", chain.run / "checkpoints" / str(step), tmp_path / "c")
    expected = arrays(of_bundle)
    for found in (arrays(of_workdir), arrays(of_step)):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_what_cannot_be_rounded_is_refused(chain, tmp_path):
    codec = Bundle(chain.codec / "bundle").codec()
    params = dict(codec.params)
    name, layer = next(iter(params.items()))
    params[name] = layer | {"bias": np.full(layer["bias"].shape, -70_000, np.float32)}
    write_bundle(tmp_path / "large", codec=dataclasses.replace(codec, params=params))
    with pytest.raises(InputError, match=rf"{name}.*bias.* -70000, which is beyond .* of float16"):
        to_type("float16", tmp_path / "large", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        InputError, match=r"--out .*large is the bundle that is read: choose another"
    ):
        to_type("float16", tmp_path / "large", f"{tmp_path}/./large")
    with pytest.raises(InputError, match=r"--dtype 'int4': choices are .*, float16, int8"):
        to_type("int4", tmp_path / "large", tmp_path / "out")
    with pytest.raises(InputError, match="large: no transformer is in it, and no other part can"):
        to_type("int8", tmp_path / "large", tmp_path / "out")
    with pytest.raises(InputError, match=r"one of --source .* --adapter and --dtype"):
        convert(None, "taming", SourceFiles(), "b", str(tmp_path / "out"), dtype="float16")
    text = Bundle(chain.run / "bundle").text()
    write_bundle(tmp_path / "words", text=text)
    with pytest.raises(InputError, match="no transformer and no codec is in it"):
        to_type("float16", tmp_path / "words", tmp_path / "out")


def test_a_transformer_in_8_bits(chain, tmp_path):
    given = Bundle(chain.run / "bundle")
    found = to_type("int8", given.path, tmp_path / "small")
    entry = found.parts["transformer"]
    assert entry | {"sha256": ""} == given.parts["transformer"] | {"sha256": "", "kernels": "int8"}
    assert {name: found.sha256(name) for name in ("codec", "text")} == entry["trained_with"]
    assert found.stored_type("transformer") == np.int8
    before = arrays(given)
    after = arrays(found)  # as it is without quantisation
    assert after.keys() == before.keys()
    for name, array in before.items():
        if "kernel" in name and "transformer" in name:
            unit = np.abs(array).max(axis=1, keepdims=True) / 127
            assert np.all(np.abs(after[name] - array) <= 0.5001 * unit), name
            assert np.any(after[name] != array), name
        else:
            wanted = array.astype(np.float16) if "embedding" in name else array
            np.testing.assert_array_equal(after[name], wanted, err_msg=name)
    # Training reads what the integers stand for; so do other types, and 8 bits again.
    trained = found.transformer().params
    np.testing.assert_array_equal(
        trained["blocks"]["block"]["mlp"]["up"]["kernel"],
        after["['transformer']['blocks']['block']['mlp']['up']['kernel']"],
    )
    assert jax.tree.leaves(trained)[0].dtype == np.float32
    whole = to_type("float32", found.path, tmp_path / "whole")
    assert "kernels" not in whole.parts["transformer"]
    again = arrays(to_type("int8", whole.path, tmp_path / "again"))
    for name, array in arrays(whole).items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
        np.testing.assert_allclose(again[name], array, rtol=1e-6, err_msg=name)


def test_a_bundle_in_8_bits_samples_as_the_precision_int8(chain, tmp_path):
    given, small = chain.run / "bundle", tmp_path / "small"
    to_type("int8", given, small)
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(part.params))
        for part in (Bundle(given).layered_transformer(), Bundle(small).layered_transformer())
    ]
    assert sizes[1] < 0.5 * sizes[0]  # most of so small a model are embeddings
    rounded, read = cogview_jax.load(given, dtype="int8"), cogview_jax.load(small)
    assert rounded.parts.describe().splitlines()[-1].startswith("  arithmetic: int8 on")
    assert "arithmetic: float32, kernels int8 on" in read.parts.describe()
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    np.testing.assert_array_equal(rounded.logits(tokens), read.logits(tokens))
    exact = cogview_jax.load(given).logits(tokens)
    assert 0 < np.sqrt(np.mean((exact - read.logits(tokens)) ** 2)) < 0.05 * exact.std()
    prompts = ["a red circle", "a blue circle"]
    codes = rounded.generate_codes(prompts, 2)
    np.testing.assert_array_equal(codes, read.generate_codes(prompts, 2))
    alone = read.generate_codes(prompts[1], 2, batch_size=1)
    np.testing.assert_array_equal(alone[0], codes[1])


def test_a_bundle_in_8_bits_on_several_devices(chain, tmp_path):
    small = to_type("int8", chain.run / "bundle", tmp_path / "small").path
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    with jax.set_mesh(mesh):
        split = cogview_jax.load(small, mesh=mesh)
        found = split.logits(tokens)
    kernel = split.parts.transformer.params["blocks"][0]["mlp"]["up"]
    assert kernel["kernel"].dtype == np.int8
    assert kernel["kernel_scale"].sharding.spec == PartitionSpec("tensor")
    # Inputs are rounded to 15 bits, and sums over devices move some of them by a step.
    whole = cogview_jax.load(small).logits(tokens)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_scales_that_are_missing_are_named(chain, tmp_path):
    small = to_type("int8", chain.run / "bundle", tmp_path / "small")
    tree = {"out": {"kernel": small.stored_transformer().params["word_embedding"]}}
    with pytest.raises(InputError, match="x has a kernel in 8 bits without its kernel_scale"):
        dequantized_tree(tree, "x")
    described = json.loads((small.path / NAME).read_text())
    del described["parts"]["transformer"]["kernels"], described["content_sha256"]
    write_json(small.path / NAME, sealed(described))
    with pytest.raises(
        InputError, match=r"kernel_scale has shape .* there, but none in bundle.json"
    ):
        Bundle(small.path).layered_transformer()


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_exports_of_8_bits_hold_what_the_integers_stand_for(chain, tmp_path, form):
    small = to_type("int8", chain.run / "bundle", tmp_path / "small")
    export(str(small.path), form, str(tmp_path / "out"), ExportOptions())
    described = json.loads((tmp_path / "out" / "export.json").read_text())["parts"]
    assert "kernels" not in described["transformer"]
    expected = jax.tree.map(lambda leaf: leaf.make(), small.stored_transformer().params)
    if form == "orbax":
        stored = stored_tree(tmp_path / "out" / "transformer")
        found = jax.tree.map(lambda leaf: leaf.make(), stored)
    else:
        file = str(tmp_path / "out" / "transformer.safetensors")
        convert("safetensors", None, SourceFiles(transformer=file), None, str(tmp_path / "back"))
        back = Bundle(tmp_path / "back")
        assert "kernels" not in back.parts["transformer"]
        found = jax.tree.map(lambda leaf: leaf.make(), back.stored_transformer().params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
