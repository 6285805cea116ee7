"""Token stores: written, read back, interrupted, continued, and damaged."""

import json
import shutil
import time

import numpy as np
import pytest

from cogview_jax.data.loader import batches
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.data.token_store import TokenStore
from cogview_jax.data.token_writer import AHEAD, ShardWriter, write_store
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file

COUNT, SHARD = 23, 5
BROKEN = {7: "truncated", 20: "empty caption", 21: "empty caption", 22: "empty caption"}
PLAN = {"source": {"kind": "test", "keys": ("a", "b")}, "codec": "c0dec"}
META = {"grid": [2, 2], "codebook": 512}


class Images:
    """Record i is an image of colour i with i % 3 captions more than one.

    Reading record `hang` never ends.
    """

    def __init__(self, broken=BROKEN, hang=None):
        self.broken, self.hang = broken, hang

    def __len__(self):
        return COUNT

    def key(self, i):
        return f"image/{i}"

    def __getitem__(self, i):
        while i == self.hang:
            time.sleep(1)
        if i in self.broken:
            raise BadRecord(self.key(i), self.broken[i])
        image = np.full((2, 2, 3), i, np.uint8)
        return Record(self.key(i), image, tuple("x" * (n + 1) for n in range(i % 3 + 1)))


def tokens(record):
    """What `encode` makes of a record: captions as their lengths, codes as its colours."""
    captions = [np.arange(len(text)) + 100 for text in record.captions]
    return captions, record.image[..., 0].reshape(-1).astype(np.int32)


def encode(records):
    assert 1 <= len(records) <= 3
    return [tokens(record) for record in records]


class Encoder:
    """Calls a function of the records of a batch."""

    def __init__(self, encode):
        self.encode = encode

    def fit(self, record):
        return record


def write(folder, source=None, *, plan=PLAN, max_skipped=0.5, shard_size=SHARD, encode=encode):
    source = source or Images()
    shards = TokenShards(folder / "store", plan=plan, records=len(source), shard_size=shard_size)
    encoder = Encoder(encode)
    writer = ShardWriter(shards, source, encoder, batch_size=3, max_skipped=max_skipped)
    return write_store(shards, writer, META)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "store").iterdir()}


@pytest.fixture
def store(tmp_path):
    assert write(tmp_path)
    return tmp_path / "store"


def test_what_was_written_is_read_in_order(store):
    reader, source = TokenStore(store), Images()
    kept = [i for i in range(COUNT) if i not in BROKEN]
    assert len(reader) == len(kept)
    for at in np.random.default_rng(0).permutation(len(kept)).tolist():
        example, record = reader[at], source[kept[at]]
        captions, codes = tokens(record)
        assert example.key == reader.key(at) == record.key
        assert [ids.tolist() for ids in example.captions] == [ids.tolist() for ids in captions]
        assert example.codes.tolist() == codes.tolist()


def test_records_are_read_while_others_are_encoded(tmp_path):
    """And not all of them: a few batches are in memory at a time."""
    read, batches = [], []

    class Slow(Encoder):
        def fit(self, record):
            read.append(record.key)
            return record

    def encode_later(records):
        batches.append(len(batches))
        deadline = time.monotonic() + 300
        while len(read) < min(3 * (len(batches) + 1), COUNT) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        before = 3 * len(batches)
        assert min(before + 3, COUNT) <= len(read) <= before + 3 * (AHEAD + 1)
        return [tokens(record) for record in records]

    shards = TokenShards(tmp_path / "store", plan=PLAN, records=COUNT, shard_size=COUNT)
    encoder = Slow(encode_later)
    writer = ShardWriter(shards, Images({}), encoder, batch_size=3, max_skipped=0.0)
    assert write_store(shards, writer, META)
    assert [
        record.key for record in map(TokenStore(tmp_path / "store").__getitem__, range(23))
    ] == [f"image/{i}" for i in range(COUNT)]


def test_the_manifest_counts_and_describes(store):
    manifest = TokenStore(store).manifest
    captions = sum(i % 3 + 1 for i in range(COUNT) if i not in BROKEN)
    assert (manifest["examples"], manifest["captions"], manifest["skipped"]) == (19, captions, 4)
    assert manifest["plan"]["records"] == COUNT
    assert manifest["meta"] == META == TokenStore(store).meta
    assert [shard["examples"] for shard in manifest["shards"]] == [5, 4, 5, 5, 0]
    for shard in manifest["shards"]:
        assert sha256_file(store / shard["file"]) == shard["sha256"]


def test_skipped_records_are_logged(store):
    lines = (store / "skipped.jsonl").read_text().splitlines()
    expected = [{"key": f"image/{i}", "reason": reason} for i, reason in BROKEN.items()]
    assert [json.loads(line) for line in lines] == expected


def test_a_finished_store_is_left_alone(store):
    before = contents(store.parent)
    assert not write(store.parent, encode=lambda _: pytest.fail("it encoded again"))
    assert contents(store.parent) == before


def test_a_store_is_a_source_of_batches(store):
    def pad(example, generator):
        caption = example.captions[generator.integers(len(example.captions))]
        return {"codes": example.codes, "length": np.int32(len(caption))}

    iterator = batches(
        TokenStore(store),
        global_batch=19,
        seed=0,
        transform=pad,
        skipped=SkippedLog(store.parent),
    )
    batch = next(iterator)
    iterator.close()
    assert batch["codes"].shape == (19, 4)
    assert sorted(batch["codes"][:, 0]) == [i for i in range(COUNT) if i not in BROKEN]


@pytest.mark.parametrize("lost", ["manifest", "note", "shard", "cut short"])
def test_a_store_that_lost_files_is_repaired(store, lost):
    before = contents(store.parent)
    (store / "manifest.json").unlink()
    shard = store / "tokens-00002.array_record"
    if lost == "note":
        shard.with_suffix(".json").unlink()
    elif lost == "shard":
        shard.unlink()
    elif lost == "cut short":
        shard.write_bytes(shard.read_bytes()[:1000])
    assert write(store.parent)
    assert contents(store.parent) == before


def test_another_plan_is_refused_with_what_differs(tmp_path):
    with pytest.raises(InputError, match="20 of 20"):  # so the store is begun, not finished
        write(tmp_path, Images({i: "gone" for i in range(COUNT)}))
    with pytest.raises(InputError, match="codec was 'c0dec', is 'other'") as caught:
        write(tmp_path, plan={**PLAN, "codec": "other"})
    assert "source" not in str(caught.value).split("something else")[1]
    with pytest.raises(InputError, match="shard_size was 5, is 6"):
        write(tmp_path, shard_size=6)
    with pytest.raises(InputError, match="extra was None, is 1"):
        write(tmp_path, plan={**PLAN, "extra": 1})


def test_too_many_skipped_records_leave_the_store_unfinished(tmp_path):
    with pytest.raises(InputError, match=r"more than data.max_skipped=0.1 allows"):
        write(tmp_path, max_skipped=0.1)
    with pytest.raises(InputError, match="unfinished"):
        TokenStore(tmp_path / "store")
    assert write(tmp_path, max_skipped=0.2)  # the user allows it, and it goes on
    assert len(TokenStore(tmp_path / "store")) == 19


def test_shards_already_written_count_for_the_limit(tmp_path):
    source = Images({0: "x", 1: "x", 2: "x"})
    with pytest.raises(InputError, match="3 of 23"):
        write(tmp_path, source, max_skipped=0.1)
    with pytest.raises(InputError, match="3 of 23"):
        write(tmp_path, source, max_skipped=0.1)


def test_an_error_while_encoding_leaves_no_half_shard(tmp_path):
    def fail(records):
        if records[0].key == "image/8":
            raise RuntimeError("out of memory")
        return encode(records)

    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path, encode=fail)
    names = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert names == ["plan.json", "tokens-00000.array_record", "tokens-00000.json"]


def test_an_encoder_that_loses_records_is_our_mistake(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write(tmp_path, encode=lambda records: encode(records)[1:])


def test_a_shard_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="shard_size=0"):
        write(tmp_path, shard_size=0)


def test_no_store(tmp_path):
    with pytest.raises(InputError, match=r"nothing: no token store .*run prepare"):
        TokenStore(tmp_path / "nothing")


def test_another_format_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(InputError, match="format 2, expected 1"):
        TokenStore(store)


def test_truncated_and_missing_shards_are_named(store):
    shard = store / "tokens-00001.array_record"
    whole = shard.read_bytes()
    for part, what in ((whole[:70_000], "70000 bytes.*cut short"), (b"", "cut|missing")):
        shard.write_bytes(part)
        with pytest.raises(InputError, match=f"tokens-00001.array_record: .*{what}"):
            TokenStore(store)
    shard.unlink()
    with pytest.raises(InputError, match=r"tokens-00001.array_record: .*missing"):
        TokenStore(store)


def test_a_flipped_bit_is_never_read_as_data(store):
    reader = TokenStore(store)
    expected = [reader[i].codes.tolist() for i in range(len(reader))]
    copy = store.parent / "copy"
    shutil.copytree(store, copy)
    shard = copy / "tokens-00000.array_record"
    data = bytearray(shard.read_bytes())
    start = data.index(b"image/2")  # the record's bytes, not the padding around them
    for offset in range(start - 12, start + 8):
        flipped = bytearray(data)
        flipped[offset] ^= 4
        shard.write_bytes(flipped)
        damaged = TokenStore(copy)
        with pytest.raises(InputError, match="example 2 is damaged"):
            damaged[2]
        assert damaged[3].codes.tolist() == expected[3]
