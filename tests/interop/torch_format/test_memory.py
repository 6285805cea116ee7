"""Torch files that ask for more memory than they hold, and members that are not what is said.

Each is small; on a reader that believes it, it would take gigabytes, or never end.
"""

import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from interop.torch_format.test_file import (
    NUMBERS,
    call,
    mapping,
    name,
    plain,
    read_torch,
    refused,
    storage,
    tensor,
    write,
)

MUCH = 1 << 40
TUPLES = b")" + b"\x85" * 100_000


def put(index):
    return b"r" + struct.pack("<I", index)


BOMBS = {
    "far up in the memo": (plain(1) + put(2**31 - 1), "keeps a value under number 2147483647"),
    "a long array of bytes": (
        b"\x96" + struct.pack("<Q", MUCH),
        "its pickle cannot be read",
    ),
    "a long text": (b"\x8d" + struct.pack("<Q", MUCH), "its pickle cannot be read"),
    "a long number": (b"\x8b" + struct.pack("<i", 2**31 - 1), "its pickle cannot be read"),
    "many sets": (b"(" + b"\x8f" * 500_000 + b"t", "more than 400000 instructions"),
    "tuples in tuples": (TUPLES, "more than 200 tuples within tuples"),
    "tuples as a key": (b"}" + TUPLES + b"Ns", "more than 200 tuples within tuples"),
    "tuples in parameters": (
        b")" + b"".join(name("torch._utils", "_rebuild_parameter") + b"0\x85" for _ in range(400)),
        "more than 200 tuples within tuples",
    ),
    "copies of copies": (
        # A list of 10,000 numbers, and 10,000 sets of it.
        b"(l"
        + put(1)
        + b"("
        + b"K\x01" * 10_000
        + b"e"
        + name("builtins", "frozenset")
        + put(2)
        + b"("
        + b"h\x02h\x01\x85R" * 10_000
        + b"t",
        "copies the same values again and again",
    ),
    "numbers shown again": (tensor((MUCH, MUCH), (0, 0)), "shows numbers again and again"),
    "a tensor of one number": (tensor((25,), (0,)), "shows numbers again and again"),
    "huge strides": (tensor((2,), (1 << 61,)), "reaches to number"),
    "larger than numbers go": (tensor((1 << 80,), (1,)), "lays shape"),
    "a negative number of numbers": (tensor((-(1 << 80),), (1,)), "lays shape"),
    "many axes": (tensor((1,) * 100_000, (1,) * 100_000), "lays shape"),
    "empty along a huge axis": (tensor((0, 1 << 62), (1, 1)), "lays shape"),
    "many tensors of one storage": (
        mapping(**{f"w{i}": tensor((24,), (1,)) for i in range(65)}),
        "show storage 0 more than 64 times",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_nothing_is_made_of_a_pickle_that_asks_for_too_much(tmp_path, bomb):
    tree, message = BOMBS[bomb]
    path = write(tmp_path / "x.pt", tree)
    refused(path, message)


def test_what_honest_files_do_is_no_bomb(tmp_path):
    """Tied weights, sets, empty tensors, and as many tensors as a large model has."""
    tied = mapping(a=tensor((24,), (1,)), b=tensor((6, 4), (4, 1)), c=tensor((0, 5), (5, 1)))
    found = read_torch(write(tmp_path / "tied.pt", tied))
    assert found["c"].read().shape == (0, 5)
    np.testing.assert_array_equal(found["b"].read().ravel(), found["a"].read())
    keys = [str(i) for i in range(3000)]
    many = {f"layer.{k}.weight": tensor((24,), (1,), lies=storage(key=k)) for k in keys}
    path = write(tmp_path / "many.pt", mapping(**many), dict.fromkeys(keys, NUMBERS.tobytes()))
    assert len(read_torch(path)) == 3000
    sets = call(name("builtins", "set"), plain([1, 2, 3]))
    assert read_torch(write(tmp_path / "set.pt", mapping(s=sets))) == {"s": {1, 2, 3}}


def rewritten(path, change):
    """The file with the entry of its directory for the numbers changed."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    fields = list(struct.unpack_from("<I6H3L5H2L", data, at))
    change(fields)
    struct.pack_into("<I6H3L5H2L", data, at, *fields)
    path.write_bytes(data)
    return path


CRC, PACKED, SIZE = 7, 8, 9


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_shorter_than_its_directory_says_is_refused(tmp_path, compression):
    """Its checksum is that of the bytes that are there; the rest would be its neighbour's."""
    path = write(tmp_path / "x.pt", tensor((24,), (1,)), compression=compression)

    def longer(fields):
        fields[SIZE] = 100

    refused(rewritten(path, longer), "archive/data/0 has 96 bytes, but its directory says 100")


def test_a_member_that_is_cut_by_its_directory_is_refused(tmp_path):
    path = write(tmp_path / "x.pt", tensor((12,), (1,)))

    def shorter(fields):
        fields[PACKED], fields[CRC] = 48, zlib.crc32(NUMBERS.tobytes()[:48])

    refused(rewritten(path, shorter), "archive/data/0 has 48 bytes, but its directory says 96")


def test_a_member_that_unpacks_to_far_more_than_the_file_is_refused(tmp_path):
    path = write(tmp_path / "x.pt", tensor((24,), (1,)), compression=zipfile.ZIP_DEFLATED)

    def huge(fields):
        fields[SIZE] = 3 << 30

    refused(rewritten(path, huge), "says that it unpacks to 3221225", "bytes, expected at most")


def test_names_of_a_file_are_not_believed_to_be_texts(tmp_path):
    """A number of a million digits cannot even be printed."""
    from cogview_jax.interop.official.codec import OfficialCodec
    from cogview_jax.runtime.errors import InputError

    number = pickle.dumps(1 << 400_000, protocol=2)[2:-1]
    path = write(tmp_path / "x.pt", b"}" + number + tensor((1,), (1,)) + b"s")
    with pytest.raises(InputError, match="not all of its names are texts"):
        OfficialCodec.open(path)
