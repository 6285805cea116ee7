"""Pickles of arrays: read to the bit, and nothing in one is ever run.

Pickles that an attacker would write are put together here instruction by instruction.
"""

import collections
import fractions
import os
import pickle

import numpy as np
import pytest

from cogview_jax.interop import numpy_pickle
from cogview_jax.interop.numpy_pickle import read_numpy_pickle
from cogview_jax.runtime.errors import InputError

ARRAYS = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.arange(24, dtype=np.float32).reshape(2, 3, 4).T,
    "big endian": np.arange(6, dtype=">f8"),
    "half": np.eye(3, dtype=np.float16),
    "none": np.zeros((0, 3), np.float32),
    "scalar": np.array(2, np.float32),
}


def refused(path, data, *words):
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_numpy_pickle(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_read_to_the_bit(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"a": ARRAYS, "b": {}}, protocol=protocol))
    found = read_numpy_pickle(path)
    assert list(found) == ["a", "b"]
    assert list(found["a"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found["a"][name], array, strict=True)
        assert not found["a"][name].flags.writeable


def test_names_of_numpy_before_its_version_2(tmp_path):
    data = pickle.dumps({"a": ARRAYS["plain"]}, protocol=3)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    (tmp_path / "old.pkl").write_bytes(old)
    np.testing.assert_array_equal(read_numpy_pickle(tmp_path / "old.pkl")["a"], ARRAYS["plain"])


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps({"a": ARRAYS["plain"], "b": Runs(mark)}, protocol=protocol)
    refused(tmp_path / "evil.pkl", data, "asks for posix.system", "nothing of it was run")
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()  # it would have been


@pytest.mark.parametrize(
    "value",
    [
        fractions.Fraction(1, 2),
        collections.OrderedDict(a=1),
        np.array([None], dtype=object),
        np.random.default_rng(0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_objects_are_refused(tmp_path, value):
    refused(tmp_path / "other.pkl", pickle.dumps({"a": value}, protocol=4), "its pickle")


@pytest.mark.parametrize(
    "value",
    [[1, 2], {"a": 3}, {1: np.zeros(2)}, {"a": [np.zeros(2)]}, np.zeros(2, np.int64), "text", None],
    ids=str,
)
def test_other_trees_are_refused(tmp_path, value):
    refused(tmp_path / "other.pkl", pickle.dumps(value, protocol=3), "its pickle")


def test_an_array_has_the_bytes_of_its_shape(tmp_path):
    data = pickle.dumps({"a": np.zeros((3, 5), np.float32)}, protocol=3)
    larger = data.replace(b"K\x03K\x05\x86", b"K\xffK\xff\x86")
    assert larger != data
    refused(tmp_path / "large.pkl", larger, "(255, 255) with 60 bytes, expected 260100")
    cut = data[: len(data) // 2]
    refused(tmp_path / "cut.pkl", cut, "cannot be read")
    refused(tmp_path / "empty.pkl", b"", "cannot be read")


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


#: Instructions in place of the tree -> what the refusal says.
ATTACKS = {
    # An array that never gets its numbers.
    "hollow": (name("numpy._core.multiarray", "_reconstruct") + b")R", "more than dicts"),
    # A function of ours in the tree, or given new attributes.
    "function": (name("numpy", "dtype"), "more than dicts"),
    "defaults": (
        name("numpy._core.numeric", "_frombuffer")
        + b"N}"
        + pickle.dumps("__defaults__", 2)[2:-1]
        + b"Ns\x86b",
        "cannot be read",
    ),
    # The class itself is named, but cannot be called: ndarray((2**40,)) would take the memory.
    "ndarray": (name("numpy", "ndarray") + b"(K\x02tR", "cannot be read"),
    "builtins": (name("builtins", "eval") + b"(V1\ntR", "asks for builtins.eval"),
    "attribute": (name("numpy", "dtype.type") + b")R", "asks for numpy.dtype.type"),
    "outside": (b"Vfile\nQ", "outside of it"),
    # One dict in two places: a few bytes would show as many as one likes.
    "shared": (b"}q\x00(Va\n}q\x01Vb\nh\x01u", "one dict in several places"),
    "cycle": (b"}q\x00Va\nh\x00s", "one dict in several places"),
    "memo": (b"}r\xff\xff\xff\x7f", "keeps a value under number"),
    "tuples": (b")" + b"\x85" * 1000, "tuples within tuples"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(tmp_path, attack):
    instructions, words = ATTACKS[attack]
    defaults = numpy_pickle.laid_out.__defaults__
    refused(tmp_path / "attack.pkl", b"\x80\x02" + instructions + b".", words)
    assert numpy_pickle.laid_out.__defaults__ == defaults


def test_damage_is_one_line(tmp_path):
    """Any changed byte gives arrays, or an error of one line, and no other exception."""
    data = pickle.dumps({"a": {"kernel": ARRAYS["plain"]}, "b": ARRAYS["half"]}, protocol=4)
    rng, path, refusals = np.random.default_rng(0), tmp_path / "damaged.pkl", 0
    for _ in range(1000):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_numpy_pickle(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refusals += 1
    assert refusals > 100


def test_a_folder_and_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no file at"):
            read_numpy_pickle(path)
