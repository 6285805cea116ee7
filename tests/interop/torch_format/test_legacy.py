"""Files as torch wrote them before version 1.6, put together instruction by instruction."""

import pickle
import struct

import numpy as np
import pytest

from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.interop.torch_format.legacy import MAGIC, PROTOCOL
from cogview_jax.runtime.errors import InputError

NUMBERS = np.arange(24, dtype=np.float32)
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


def plain(value):
    """Pickled by Python itself, without header and end."""
    return pickle.dumps(value, protocol=2)[2:-1]


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def tensor(shape, strides, offset=0, key="7", kind="FloatStorage", size=24, part=None):
    """The call that rebuilds a tensor over a storage, which is named in six parts."""
    words = (plain("storage"), name("torch", kind), *map(plain, (key, "cpu", size, part)))
    storage = tuple_of(*words) + b"Q"
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = tuple_of(storage, *map(plain, (offset, shape, strides, False)), hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def mapping(**entries):
    return b"}(" + b"".join(plain(key) + value for key, value in entries.items()) + b"u"


def write(path, tree, storages=None, machine=MACHINE, protocol=PROTOCOL):
    """storages: key -> (how many numbers, their bytes)."""
    storages = {"7": (24, NUMBERS.tobytes())} if storages is None else storages
    with open(path, "wb") as file:
        for value in (MAGIC, protocol, machine):
            pickle.dump(value, file, protocol=2)
        file.write(b"\x80\x02" + tree + b".")
        pickle.dump(list(storages), file, protocol=2)
        for count, data in storages.values():
            file.write(struct.pack("<q", count) + data)
    return path


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_torch(path)
    message = str(error.value)
    assert message.startswith(f"{path}")
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_tensors_share_a_storage_and_have_strides(tmp_path):
    half = np.arange(6, dtype=np.float16)
    tree = mapping(
        module=mapping(
            whole=tensor((4, 6), (6, 1)),
            turned=tensor((6, 4), (1, 6)),
            part=tensor((2, 3), (6, 1), offset=7),
            half=tensor((2, 3), (3, 1), key="9", kind="HalfStorage", size=6),
        ),
        step=plain(5),
    )
    # In the file the storages stand in an order of their own.
    storages = {"9": (6, half.tobytes()), "7": (24, NUMBERS.tobytes())}
    found = read_torch(write(tmp_path / "old.pt", tree, storages))
    arrays = {key: value.read() for key, value in found["module"].items()}
    grid = NUMBERS.reshape(4, 6)
    np.testing.assert_array_equal(arrays["whole"], grid)
    np.testing.assert_array_equal(arrays["turned"], grid.T)
    np.testing.assert_array_equal(arrays["part"], grid[1:3, 1:4])
    np.testing.assert_array_equal(arrays["half"], half.reshape(2, 3))
    assert arrays["half"].dtype == np.float16
    assert found["step"] == 5


def test_the_other_order_of_bytes(tmp_path):
    storages = {"7": (24, NUMBERS.astype(">f4").tobytes())}
    path = write(
        tmp_path / "big.pt",
        mapping(w=tensor((24,), (1,))),
        storages,
        MACHINE | {"little_endian": False},
    )
    np.testing.assert_array_equal(read_torch(path)["w"].read(), NUMBERS)


def test_damaged_files_are_refused(tmp_path):
    tree, path = mapping(w=tensor((24,), (1,))), tmp_path / "old.pt"
    whole = write(path, tree).read_bytes()
    for end in (len(whole) - 1, len(whole) - 97, len(whole) - 101):
        path.write_bytes(whole[:end])
        refused(path, "storage 7", "cut short")
    path.write_bytes(whole[:80])
    refused(path, "its pickle cannot be read")
    refused(write(path, tree, {"7": (23, NUMBERS.tobytes())}), "has 23 numbers", "expected 24")
    refused(write(path, tree, {"8": (24, NUMBERS.tobytes())}), "storage 8")
    refused(write(path, tree, {}), "storage 7 is missing")
    refused(write(path, tree, protocol=1000), "protocol 1000, expected 1001")
    two = mapping(a=tensor((24,), (1,)), b=tensor((12,), (1,), kind="DoubleStorage", size=12))
    refused(write(path, two), "storage 7 has two types or sizes")
    refused(write(path, mapping(w=tensor((24,), (1,), part=("7", 0, 24)))), "cannot read")


def test_nothing_in_one_is_run(tmp_path):
    path, proof = tmp_path / "old.pt", tmp_path / "proof"
    call = name("os", "system") + tuple_of(plain(f"touch {proof}")) + b"R"
    refused(write(path, mapping(w=call)), "asks for os.system")
    assert not proof.exists()
