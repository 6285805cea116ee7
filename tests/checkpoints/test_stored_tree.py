"""Trees on disk: one array at a time, in its own type, and the same as when written as a whole."""

import gc
import weakref

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cogview_jax.checkpoints.stored_tree import (
    Deferred,
    restore_each,
    restore_tree,
    stored_tree,
)
from cogview_jax.checkpoints.tree_writer import save_tree
from cogview_jax.runtime.errors import InputError

DTYPES = ("float16", ml_dtypes.bfloat16, "float32", "float64", "int32")


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    named = {
        np.dtype(dtype).name: (8 * rng.standard_normal((3, 4))).astype(dtype) for dtype in DTYPES
    }
    return {"deep": {"er": named}, "infinite": np.full((), np.inf, np.float32)}


def deferred(tree):
    return jax.tree.map(lambda leaf: Deferred(leaf.shape, leaf.dtype, lambda: leaf), tree)


def as_stored(path):
    return jax.tree.map(lambda leaf: leaf.make(), stored_tree(path))


def assert_same(found, expected):
    def same(one, other):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()

    jax.tree.map(same, found, expected)


def test_a_tree_comes_back_in_its_own_types(tree, tmp_path):
    save_tree(tmp_path / "whole", tree)
    save_tree(tmp_path / "deferred", deferred(tree))
    for name in ("whole", "deferred"):
        described = stored_tree(tmp_path / name)
        jax.tree.map(
            lambda leaf, own: np.testing.assert_equal(
                (leaf.shape, leaf.dtype), (own.shape, own.dtype)
            ),
            *(described, tree),
        )
        assert_same(as_stored(tmp_path / name), tree)


@pytest.mark.parametrize("driver", ["ocdbt", "files"])
def test_a_folder_may_have_any_name(tree, tmp_path, driver):
    """Some characters mean something else in a URL."""
    path = tmp_path / "100% #1 a%20b?c|d é"
    if driver == "ocdbt":
        save_tree(path, tree)
    else:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
        with ocp.Checkpointer(handler) as writer:
            writer.save(path, args=ocp.args.PyTreeSave(tree))
    assert_same(as_stored(path), tree)


def test_a_deferred_tree_is_restored_like_any_other(tree, tmp_path):
    """In another type, onto a device."""
    save_tree(tmp_path / "deferred", deferred(tree))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=place), tree
    )
    found = restore_tree(tmp_path / "deferred", shapes)
    assert jax.tree.leaves(found)[0].devices() == {jax.devices()[3]}
    assert_same(jax.device_get(found), jax.tree.map(lambda leaf: leaf.astype(np.float32), tree))


def test_one_array_is_in_memory_at_a_time(tmp_path):
    made, alive = [], []

    def make():
        gc.collect()
        alive.append(sum(array() is not None for array in made))
        array = np.ones((100, 100))
        made.append(weakref.ref(array))
        return array

    save_tree(
        tmp_path / "x", {str(i): Deferred((100, 100), np.dtype(float), make) for i in range(6)}
    )
    assert alive == [0] * 6


def test_what_fails_while_it_is_made_leaves_no_tree(tmp_path):
    def make():
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        save_tree(tmp_path / "x", {"a": Deferred((2,), np.dtype("float32"), make)})
    assert not (tmp_path / "x").exists()


def test_another_shape_is_refused_in_one_line(tree, tmp_path):
    save_tree(tmp_path / "x", tree)
    with pytest.raises(InputError, match=r"x cannot be read as bundle\.json describes it") as error:
        restore_tree(tmp_path / "x", {"other": jax.ShapeDtypeStruct((1,), "float32")})
    assert "\n" not in str(error.value)


def test_arrays_come_one_at_a_time_in_the_type_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"a": {"b": rng.standard_normal((2, 3)).astype(np.float32)}, "c": np.arange(50.0)}
    save_tree(tmp_path / "tree", jax.tree.map(np.float32, tree))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[1])

    def shapes(dtype, **shape):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                shape.get("shape", leaf.shape), dtype, sharding=place
            ),
            tree,
        )

    for dtype in ("float32", "bfloat16"):
        arrays = list(restore_each(tmp_path / "tree", shapes(dtype)))
        assert [keys for keys, _ in arrays] == [("c",), ("a", "b")], "the largest first"
        expected = restore_tree(tmp_path / "tree", shapes(dtype))
        assert_same(arrays[0][1], expected["c"])
        assert_same(arrays[1][1], expected["a"]["b"])
        assert {array.sharding for _, array in arrays} == {place}
    for wrong, message in (
        (shapes("float32", shape=(2, 3)), r"c has shape \(50,\) there, but \(2, 3\) in"),
        ({"c": shapes("float32")["c"]}, r"a.b has shape \(2, 3\) there, but none in"),
    ):
        with pytest.raises(InputError, match=message) as error:
            next(restore_each(tmp_path / "tree", wrong))
        assert "\n" not in str(error.value)
