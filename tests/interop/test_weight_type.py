"""Bundles whose weights are rounded to another type."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.interop.conversion import convert
from cogview_jax.interop.files import SourceFiles
from cogview_jax.runtime.errors import InputError
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
    with pytest.raises(InputError, match="--dtype 'int8': choices are float32, bfloat16, float16"):
        to_type("int8", tmp_path / "large", tmp_path / "out")
    with pytest.raises(InputError, match=r"one of --source .* --adapter and --dtype"):
        convert(None, "taming", SourceFiles(), "b", str(tmp_path / "out"), dtype="float16")
    text = Bundle(chain.run / "bundle").text()
    write_bundle(tmp_path / "words", text=text)
    with pytest.raises(InputError, match="no transformer and no codec is in it"):
        to_type("float16", tmp_path / "words", tmp_path / "out")
