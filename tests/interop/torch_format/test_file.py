"""Torch's files: what torch wrote is read bit by bit, and nothing in one is ever run.

Files that torch would write for views, and files that an attacker would, are put together here
instruction by instruction.
"""

import argparse
import io
import mmap
import os
import pickle
import random
import shutil
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import STORAGES, Slot
from cogview_jax.interop.torch_format.tensor import Tensor
from cogview_jax.runtime.errors import InputError

NUMBERS = np.arange(24, dtype=np.float32)


def plain(value):
    """Pickled by Python itself, without header and end."""
    return pickle.dumps(value, protocol=2)[2:-1]


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def many(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(function, *arguments):
    return function + many(*arguments) + b"R"


def mapping(**entries):
    return b"}(" + b"".join(plain(key) + value for key, value in entries.items()) + b"u"


def storage(kind="FloatStorage", key="0", size=24, module="torch"):
    parts = (plain("storage"), name(module, kind), plain(key), plain("cpu"), plain(size))
    return many(*parts) + b"Q"


REBUILD, HOOKS = (
    name("torch._utils", "_rebuild_tensor_v2"),
    call(name("collections", "OrderedDict")),
)


def tensor(shape, strides, offset=0, lies=None):
    lies = storage() if lies is None else lies
    return call(REBUILD, lies, *map(plain, (offset, shape, strides, False)), HOOKS)


def write(path, tree, storages=None, order=None, compression=zipfile.ZIP_STORED, root="archive"):
    """A torch file around the instructions `tree`."""
    storages = {"0": NUMBERS.tobytes()} if storages is None else storages
    members = {"data.pkl": b"\x80\x02" + tree + b"."}
    members |= {} if order is None else {"byteorder": order}
    members |= {f"data/{key}": data for key, data in storages.items()} | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(f"{root}/{member}", data)
    return path


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_torch(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}")
    assert [word for word in words if word not in message] == [], message


@pytest.fixture(scope="module")
def checkpoint(fixtures):
    """The small official transformer, which torch wrote."""
    iteration = (fixtures / "transformer" / "latest_checkpointed_iteration.txt").read_text()
    return fixtures / "transformer" / iteration.strip() / "mp_rank_00_model_states.pt"


def recorded(path):
    """Every call and storage in a file's pickle as plain tuples, and its storages' bytes."""

    class Recorder(pickle.Unpickler):
        def find_class(self, module, attribute):
            called = f"{module}.{attribute}"
            return called if "Storage" in attribute else lambda *arguments: (called, *arguments)

        def persistent_load(self, pid):
            return pid

    with zipfile.ZipFile(path) as archive:
        (root,) = {member.split("/")[0] for member in archive.namelist()}
        tree = Recorder(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
        data = {
            member.removeprefix(f"{root}/data/"): archive.read(member)
            for member in archive.namelist()
            if member.startswith(f"{root}/data/")
        }
        return tree, data, archive.read(f"{root}/byteorder"), archive.read(f"{root}/version")


def test_what_torch_wrote_is_read_to_the_bit(checkpoint):
    tree, data, _, _ = recorded(checkpoint)
    found = read_torch(checkpoint)
    assert list(found) == list(tree)
    assert found["iteration"] == tree["iteration"]
    assert list(found["module"]) == list(tree["module"])
    for key, (_, lies, offset, shape, _, _, _) in tree["module"].items():
        read = found["module"][key].read()
        assert (read.shape, read.dtype, offset) == (shape, np.float32, 0)
        assert read.tobytes() == data[lies[2]], key


def test_what_is_written_is_what_torch_writes(checkpoint, tmp_path):
    """The same calls with the same arguments over the same bytes."""
    given = read_torch(checkpoint)
    slots = {key: Slot(t.shape, t.dtype) for key, t in given["module"].items()}
    arrays = [(slot, given["module"][key].read()) for key, slot in slots.items()]
    tree = {"module": slots, "iteration": given["iteration"]}
    write_torch(tmp_path / "one.pt", tree, arrays)
    assert recorded(tmp_path / "one.pt") == recorded(checkpoint)
    # In another order they come to lie elsewhere, but nowhere does a tensor change.
    write_torch(tmp_path / "two.pt", tree, reversed(arrays))
    assert recorded(tmp_path / "two.pt") == recorded(checkpoint)
    assert not list(tmp_path.glob(".cogview-*"))


def test_every_type_shape_and_layout_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {dtype.name: rng.integers(0, 2, (3, 5)).astype(dtype) for dtype in STORAGES.values()}
    arrays |= {
        "number": np.float32(3.5).reshape(()),
        "nothing": np.zeros((0, 4), ml_dtypes.bfloat16),
        "transposed": rng.standard_normal((4, 3)).T,
        "every other": rng.standard_normal((6, 8)).astype(np.float16)[::2, 1::3],
    }
    slots = {key: Slot(array.shape, array.dtype) for key, array in arrays.items()}
    extras = {"step": 7, "big": 2**40, "rate": 0.5, "none": None, "yes": True, "名": "x" * 300}
    for file in ("one.pt", "again.pt"):
        pairs = ((slots[key], array) for key, array in arrays.items())
        write_torch(tmp_path / file, {"module": {"deep": slots}, **extras, "empty": {}}, pairs)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()
    found = read_torch(tmp_path / "one.pt")
    read = {key: t.read() for key, t in found.pop("module")["deep"].items()}
    assert found == extras | {"empty": {}}
    assert list(read) == list(arrays)
    for key, array in arrays.items():
        assert (read[key].shape, read[key].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read[key], array)


def test_tensors_start_where_torch_can_map_them(checkpoint, tmp_path):
    slots = {"a": Slot((3,), np.float16), "b": Slot((), np.float32), "c": Slot((0,), np.int64)}
    write_torch(tmp_path / "x.pt", slots, [(s, np.zeros(s.shape, s.dtype)) for s in slots.values()])
    for path in (checkpoint, tmp_path / "x.pt"):
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            assert archive.testzip() is None
            for member in archive.infolist():
                file.seek(member.header_offset + 26)
                lengths = struct.unpack("<HH", file.read(4))
                assert (member.header_offset + 30 + sum(lengths)) % 64 == 0, member.filename


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "x.pt").write_text("old")
    slot = Slot((2,), np.float32)

    def arrays():
        yield slot, np.zeros(2, np.float32)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_torch(tmp_path / "x.pt", {"a": slot}, arrays())
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert (tmp_path / "x.pt").read_text() == "old"


def views():
    """Views of 0..23, and what they hold."""
    table = NUMBERS.reshape(4, 6)
    shared = {
        "whole": (tensor((4, 6), (6, 1)), table),
        "transposed": (tensor((6, 4), (1, 6)), table.T),
        "corner": (tensor((2, 2), (6, 3), offset=8), table[1:3, 2::3]),
        "turned": (tensor((2, 4, 3), (3, 6, 1)), table.reshape(4, 2, 3).transpose(1, 0, 2)),
        "repeated": (tensor((3, 2), (0, 1), offset=22), np.tile([22, 23], (3, 1))),
        "one": (tensor((), (), offset=5), np.array(5)),
        "none": (tensor((0, 6), (6, 1)), np.zeros((0, 6))),
        "last": (tensor((1,), (1,), offset=23), [23]),
    }
    wrapped = call(name("torch._utils", "_rebuild_parameter"), shared["corner"][0], b"\x88", HOOKS)
    return shared | {"parameter": (wrapped, table[1:3, 2::3])}


@pytest.mark.parametrize("form", ["stored", "compressed", "other byte order", "no byte order"])
def test_views_of_one_storage_are_told_apart(tmp_path, form):
    data = NUMBERS.astype(">f4" if form == "other byte order" else "<f4").tobytes()
    order = {"other byte order": b"big", "no byte order": None}.get(form, b"little")
    compression = zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
    tree = mapping(**{key: instructions for key, (instructions, _) in views().items()})
    found = read_torch(write(tmp_path / "x.pt", tree, {"0": data}, order, compression))
    for key, (_, expected) in views().items():
        assert found[key].shape == np.shape(expected)
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key].read(), expected, err_msg=key)


def test_a_type_without_a_storage_of_its_own_lies_in_bytes(tmp_path):
    lies = storage("UntypedStorage", size=12, module="torch.storage")
    arguments = (*map(plain, (1, (2, 2), (1, 2), False)), HOOKS, name("torch", "uint16"))
    tree = call(name("torch._utils", "_rebuild_tensor_v3"), lies, *arguments)
    data = np.arange(6, dtype="<u2").tobytes()
    np.testing.assert_array_equal(
        read_torch(write(tmp_path / "x.pt", tree, {"0": data})).read(), [[1, 3], [2, 4]]
    )


def test_what_a_training_run_leaves_beside_the_weights_is_inert(tmp_path):
    """Random states, arguments and objects of other packages; plain values stay what they are."""
    kept = {"python": random.Random(0).getstate(), "names": {"a", "b"}, "none": None}
    objects = {
        "numpy": plain(np.random.RandomState(0).get_state()),
        "scalar": plain(np.float64(2.5)),
        "arguments": plain(argparse.Namespace(lr=3e-4, sizes=[1, 2])),
        "scheduler": call(name("deepspeed.runtime.lr", "Warmup"), plain(0.1))
        + mapping(x=b"N")
        + b"b",
        "scaler": name("fp16.loss_scaler", "Scaler") + b")\x81" + mapping(scale=plain(2.0)) + b"b",
        "list": call(name("apex", "Many")) + b"(" + plain(1) + plain(2) + b"e",
        "size": call(name("torch", "Size"), many(plain(3))),
        "type": name("torch", "float16"),
        "state": call(name("collections", "defaultdict"), name("builtins", "dict")),
    }
    ordered = (
        call(name("collections", "OrderedDict")) + b"(" + plain("w") + tensor((6,), (1,)) + b"u"
    )
    ordered += mapping(_metadata=mapping(version=plain(1))) + b"b"
    tree = mapping(**{key: plain(value) for key, value in kept.items()}, **objects, module=ordered)
    found = read_torch(write(tmp_path / "x.pt", tree))
    assert {key: found[key] for key in kept} == kept
    assert list(found["module"]) == ["w"]
    assert isinstance(found["module"]["w"], Tensor)
    assert not hasattr(found["module"], "_metadata")
    for key in {*objects} - {"numpy"}:
        value = found[key]
        kind = value if isinstance(value, type) else type(value)
        assert kind.__mro__[1].__name__ in ("_Inert", "tuple"), key
        assert getattr(value, "__dict__", {}) == {} or isinstance(value, type), key
    assert [type(part).__name__ for part in found["numpy"]] == [
        *("str", "_reconstruct", "int", "int", "float")
    ]


EVIL = [
    *(("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval")),
    *(("builtins", "exec"), ("__builtin__", "eval"), ("builtins", "getattr"), ("nt", "system")),
    *(("builtins", "__import__"), ("functools", "partial"), ("operator", "methodcaller")),
    *(("pickle", "loads"), ("shutil", "rmtree"), ("numpyx", "load"), ("torchvision", "x")),
    *(("cogview_jax.runtime.files", "_remove"), ("argparse", "ArgumentParser")),
]


@pytest.mark.parametrize(("module", "attribute"), EVIL)
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name(tmp_path, module, attribute):
    marker = tmp_path / "marker"
    tree = mapping(w=call(name(module, attribute), plain(f"touch {marker}")))
    refused(write(tmp_path / "x.pt", tree), f"asks for {module}.{attribute}")
    assert not marker.exists()


def test_nothing_runs_under_the_name_of_a_package_that_is_known(tmp_path, monkeypatch):
    """Not even what is there to run: the names stand for nothing."""
    marker = tmp_path / "marker"
    monkeypatch.setattr(np, "system", os.system, raising=False)
    command = plain(f"touch {marker}")
    tree = mapping(
        direct=call(name("numpy", "system"), command),
        dotted=call(name("torch", "os.system"), command),
        method=name("numpy", "system") + many(command) + b"\x81",
        built=call(name("numpy", "ndarray")) + mapping(__class__=name("numpy", "system")) + b"b",
    )
    found = read_torch(write(tmp_path / "x.pt", tree))
    assert not marker.exists()
    assert {type(value).__mro__[1].__name__ for value in found.values()} == {"_Inert"}


@pytest.mark.parametrize(
    "target", [REBUILD, name("torch", "FloatStorage"), name("numpy", "x"), storage()]
)
def test_a_pickle_cannot_change_how_the_next_is_read(tmp_path, target):
    """Attributes are set on everything a pickle is given; then an honest file is read."""
    state = mapping(shape=plain(3), __call__=name("numpy", "x"), size=plain(10**9), dtype=b"N")
    for spoiled in (state, many(b"N", state)):
        path = write(tmp_path / "evil.pt", mapping(x=target + spoiled + b"b", w=tensor((6,), (1,))))
        try:
            found = read_torch(path)
        except InputError:
            continue
        np.testing.assert_array_equal(found["w"].read(), NUMBERS[:6])
    honest = read_torch(write(tmp_path / "x.pt", tensor((4, 6), (6, 1))))
    np.testing.assert_array_equal(honest.read(), NUMBERS.reshape(4, 6))


FLAWS = {
    "another storage": (tensor((1,), (1,), lies=storage(key="7")), "storage 7 is missing"),
    "a path as key": (tensor((1,), (1,), lies=storage(key="../0")), "storage ../0 is missing"),
    "short storage": (
        tensor((25,), (1,), lies=storage(size=25)),
        "storage 0 has 96 bytes, expected 100",
    ),
    "behind the end": (tensor((4, 6), (7, 1)), "reaches to number 26 of storage 0, which has 24"),
    "offset": (tensor((24,), (1,), offset=1), "reaches to number 24 of storage 0"),
    "backwards": (tensor((2,), (-1,), offset=5), "lays shape (2,) over strides (-1,)"),
    "negative offset": (tensor((2,), (1,), offset=-1), "lays shape (2,)"),
    "fewer strides": (tensor((2, 2), (1,)), "lays shape (2, 2) over strides (1,)"),
    "no numbers": (tensor(("a",), (1,)), "lays shape ('a',)"),
    "unknown storage": (tensor((1,), (1,), lies=storage("QInt8Storage")), "cannot read"),
    "no storage": (tensor((1,), (1,), lies=plain("0")), "its pickle cannot be read"),
    "nothing to call": (b"R", "its pickle cannot be read"),
    "no pickle": (b"\xff\xff", "its pickle cannot be read"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_pickle_that_does_not_hold_together_is_refused(tmp_path, flaw):
    tree, message = FLAWS[flaw]
    refused(write(tmp_path / "x.pt", mapping(w=tree)), message)


def test_files_that_are_damaged_or_none_are_told_apart(checkpoint, tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match=f"no torch file at {path}$"):
        read_torch(path)
    whole = checkpoint.read_bytes()
    for size in (10, 1000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        refused(path, "is cut short")
    for content in (b"", b"GIF89a", pickle.dumps({"w": 1}, 2)):
        path.write_bytes(content)
        refused(path, "is no torch file")
    with zipfile.ZipFile(checkpoint) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    flipped = bytearray(whole)
    flipped[member.header_offset + 200] ^= 1
    path.write_bytes(flipped)
    refused(path, "is damaged", member.filename)
    flipped = bytearray(whole)
    flipped[member.header_offset] ^= 1
    path.write_bytes(flipped)
    refused(path, "is damaged")


def test_zips_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    for members in (["a.txt"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a/b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, "x")
        refused(path, "is a zip, but no torch file")
    twice = write(tmp_path / "x.pt", tensor((1,), (1,)))
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", NUMBERS[::-1].tobytes())
    refused(twice, "is a zip, but no torch file")


def test_a_tensor_is_mapped_when_it_is_asked_for(checkpoint, tmp_path):
    """So that opening costs no memory, and reading none of the process's own."""
    found = read_torch(shutil.copy(checkpoint, tmp_path / "x.pt"))["module"]
    for tensor in found.values():
        lies = tensor.read()
        assert not lies.flags.writeable
        while not isinstance(lies, mmap.mmap):
            lies = lies.base
    (tmp_path / "x.pt").unlink()
    with pytest.raises(FileNotFoundError):
        tensor.read()
