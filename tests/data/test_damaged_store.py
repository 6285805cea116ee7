"""Token stores whose files were exchanged, changed, cut, or name what lies outside."""

import json
import os
import resource
import shutil

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from data.test_token_store import PLAN, Images, contents, write

from cogview_jax.data.token_records import encode_record
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.sealed import SEAL, sealed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write(folder)
    return folder / "store"


@pytest.fixture
def store(written, tmp_path):
    """A copy to be spoiled."""
    return shutil.copytree(written, tmp_path / "store")


def manifest_of(store):
    return json.loads((store / "manifest.json").read_text())


def rewrite(store, manifest):
    """As an attacker would: with a seal that fits."""
    (store / "manifest.json").write_text(json.dumps(sealed(manifest)))


def refused(call, *words, limit=500):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < limit
    assert [word for word in words if str(word) not in message] == [], message


@pytest.mark.parametrize("how", ["absolute", "up", "link", "linked folder"])
def test_a_manifest_opens_nothing_outside_the_store(store, how):
    """What it names outside is a whole shard, so nothing else keeps it from being read."""
    name, manifest = "tokens-00000.array_record", manifest_of(store)
    outside = store.parent / name
    shutil.move(store / name, outside)
    names = {"absolute": str(outside), "up": f"../{name}", "linked folder": f"up/{name}"}
    if how == "link":
        (store / name).symlink_to(outside)
    (store / "up").symlink_to(store.parent)
    manifest["shards"][0]["file"] = names.get(how, name)
    rewrite(store, manifest)
    refused(lambda: TokenStore(store), store, "leads out of this folder")


def test_a_pipe_is_no_shard(store):
    (store / "tokens-00000.array_record").unlink()
    os.mkfifo(store / "tokens-00000.array_record")
    refused(lambda: TokenStore(store), "tokens-00000.array_record: 0 bytes, expected")


def test_exchanged_shards_are_noticed_at_the_first_record(store):
    expected = [record.codes.tolist() for record in map(TokenStore(store).__getitem__, range(19))]
    first, third = (store / f"tokens-0000{i}.array_record" for i in (0, 2))
    assert first.stat().st_size == third.stat().st_size
    shutil.move(first, store / "x")
    shutil.move(third, first)
    shutil.move(store / "x", third)
    reader = TokenStore(store)
    for i in (0, 4, 9, 13):
        refused(lambda i=i: reader[i], f"example {i} is damaged", "files were exchanged")
    assert [reader[i].codes.tolist() for i in (5, 14, 18)] == [expected[i] for i in (5, 14, 18)]


def test_a_shard_of_another_store_is_noticed(store, tmp_path):
    write(tmp_path / "other", plan=PLAN | {"codec": "another"})
    shutil.copy(tmp_path / "other/store/tokens-00000.array_record", store)
    refused(lambda: TokenStore(store)[1], "example 1 is damaged", "of another store")


def test_fewer_examples_than_the_manifest_says_are_noticed(store):
    manifest = manifest_of(store)
    manifest["shards"][1]["examples"] += 1
    rewrite(store, manifest)
    refused(lambda: TokenStore(store), "examples = 19, but the shards hold 20")
    manifest["examples"] += 1
    rewrite(store, manifest)
    reader = TokenStore(store)
    refused(lambda: reader[5], "the file has 4 examples, but the manifest says 5")
    assert reader[0].key == "image/0"
    with pytest.raises(IndexError):
        reader[20]


def test_a_flipped_bit_in_any_number_of_a_description_is_noticed(store):
    for name in ("manifest.json", "plan.json", "tokens-00001.json"):
        text = (store / name).read_text()
        digits = [i for i, letter in enumerate(text) if letter.isdigit()]
        for i in digits[:: max(1, len(digits) // 40)]:
            flipped = text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :]
            (store / name).write_text(flipped)
            if name == "manifest.json":
                refused(lambda: TokenStore(store), store)
            else:
                (store / "manifest.json").unlink(missing_ok=True)
                note_or_plan(store, name)
        (store / name).write_text(text)


def note_or_plan(store, name):
    """A changed plan is refused, and a shard with a changed note is written again."""
    if name == "plan.json":
        refused(lambda: write(store.parent), store)
        return
    before = contents(store.parent)
    write(store.parent)
    after = contents(store.parent)
    assert after.pop("manifest.json")
    (store / "manifest.json").unlink()
    assert after[name] != before[name]
    assert after["tokens-00001.array_record"] == before["tokens-00001.array_record"]


DEEP = "[" * 100_000
DAMAGED = ["", "{", '{"a": 1', "[]", "3", "null", DEEP, '{"plan": ' + DEEP, "\udcff", "{}"]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_description_is_one_line_or_written_again(store, text):
    data = text.encode(errors="surrogateescape")
    whole = contents(store.parent)
    (store / "manifest.json").write_bytes(data)
    refused(lambda: TokenStore(store), store)
    (store / "manifest.json").unlink()
    (store / "plan.json").write_bytes(data)
    refused(lambda: write(store.parent), store)
    (store / "plan.json").write_bytes(whole["plan.json"])
    (store / "tokens-00003.json").write_bytes(data)
    assert write(store.parent)
    assert contents(store.parent) == whole


def test_what_is_said_when_a_note_is_damaged(store, capsys):
    (store / "manifest.json").unlink()
    (store / "tokens-00003.json").write_text('{"file": "tok')
    write(store.parent)
    said = [line for line in capsys.readouterr().err.splitlines() if "tokens-00003.json" in line]
    assert len(said) == 1
    assert said[0].endswith("its shard is written again")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shards": 3}, "shards = 3"),
        ({"shards": [{"file": "x"}]}, "lacks examples, captions, bytes, sha256"),
        ({"shards": ["x"]}, "expected a section"),
        ({"examples": "19"}, "examples = '19': expected a whole number"),
        ({"examples": True}, "examples = True"),
        ({"meta": []}, "meta = []"),
        ({"store": "zz"}, "expected 16 hexadecimal digits"),
        ({"format": [1]}, "format [1], expected 1"),
        ({"unknown": 1}, "no such setting"),
    ],
)
def test_types_of_a_manifest_are_checked(store, changes, words):
    rewrite(store, manifest_of(store) | changes)
    refused(lambda: TokenStore(store), store, words)


def test_a_store_of_before_is_read(store, tmp_path):
    """Without seals, without places."""
    reader, before = TokenStore(store), tmp_path / "before"
    before.mkdir()
    manifest = manifest_of(store)
    del manifest[SEAL], manifest["store"]
    examples = iter(range(19))
    for shard in manifest["shards"]:
        writer = ArrayRecordWriter(str(before / shard["file"]), "group_size:1")
        for _ in range(shard["examples"]):
            writer.write(encode_record(reader[next(examples)]))
        writer.close()
        shard["bytes"] = (before / shard["file"]).stat().st_size
    (before / "manifest.json").write_text(json.dumps(manifest))
    old = TokenStore(before)
    assert [old[i].key for i in range(19)] == [reader[i].key for i in range(19)]


def test_a_store_begun_before_is_finished(tmp_path):
    """Its plan says nothing of a place, and so do all of its records."""
    (tmp_path / "store").mkdir()
    plan = {"records": len(Images()), "shard_size": 5, **PLAN}
    (tmp_path / "store" / "plan.json").write_text(json.dumps(plan))
    assert write(tmp_path)
    assert [TokenStore(tmp_path / "store")[i].key for i in (0, 18)] == ["image/0", "image/19"]


def test_a_machine_without_open_files_is_no_damage(store, monkeypatch):
    reader = TokenStore(store)
    codes = reader[0].codes.tolist()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(faults, "PAUSES", (0.0, 0.0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SystemFault) as caught:
            reader[18]
        assert reader[0].codes.tolist() == codes  # its file is open
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    shard = store / "tokens-00003.array_record"
    assert str(caught.value) == f"{shard}: Too many open files (3 tries)"
    assert reader[18].key == "image/19"  # nothing was kept of the failure
