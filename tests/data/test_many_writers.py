"""Many processes that write one store: no work twice, none lost, and the bytes of one process."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from data.test_token_store import BROKEN, COUNT, SHARD, Images, contents, encode, write

from cogview_jax.data.token_shards import TokenShards
from cogview_jax.runtime import lock, shared_shards
from cogview_jax.runtime.errors import InputError, SystemFault
from processes import left_by_the_dead


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write(folder)
    return contents(folder)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(shared_shards, "PAUSE", 0.01)


class Encoded:
    """Counts the records of several writers."""

    def __init__(self):
        self.keys = []

    def __call__(self, records):
        self.keys += [record.key for record in records]
        return encode(records)

    def shards(self):
        """The shards in the order in which they were begun."""
        return list(dict.fromkeys(int(key.removeprefix("image/")) // SHARD for key in self.keys))


@pytest.mark.parametrize("count", [2, 8])
def test_each_shard_is_written_by_one_of_them(tmp_path, expected, hasty, count):
    """A lock belongs to an open file, so threads keep each other out as processes do."""
    encoded, together = Encoded(), threading.Barrier(count)

    def work(_):
        together.wait()
        return write(tmp_path, encode=encoded)

    write_plan(tmp_path)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))
    assert sorted(encoded.keys) == sorted(f"image/{i}" for i in range(COUNT) if i not in BROKEN)
    assert contents(tmp_path) == expected


def write_plan(folder):
    """What one process does under a lock before the others come."""
    with pytest.raises(InputError, match="20 of 20"):
        write(folder, Images(dict.fromkeys(range(COUNT), "gone")))
    for path in (folder / "store").iterdir():
        if path.name != "plan.json":
            path.unlink()


def test_the_shard_of_a_killed_process_is_taken_over(tmp_path, expected, hasty, root):
    program = (
        f"import sys; from pathlib import Path; sys.path[:0] = {[str(root), str(root / 'tests')]}\n"
        "import data.test_token_store as test\n"
        "test.write(Path(sys.argv[1]), test.Images(hang=13))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    store, encoded = tmp_path / "store", Encoded()
    try:
        wait_until(process, lambda: (store / ".tokens-00002.lock").exists() and _half(store))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(write, tmp_path, encode=encoded)
            wait_until(process, lambda: (store / "tokens-00004.json").exists())
            assert not other.done()
            assert not (store / "manifest.json").exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert other.result()
    finally:
        process.kill()
        process.wait()
    assert encoded.shards() == [3, 2]  # of 4, all records are bad; 0 and 1 are not done again
    assert contents(tmp_path) == expected


def wait_until(process, ready):
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the writer ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _half(store):
    return any(path.name.startswith(".cogview-tmp-") for path in store.iterdir())


def test_where_locks_do_not_hold_the_work_is_divided_all_the_same(
    tmp_path, expected, hasty, monkeypatch
):
    """Another machine writes shards 0 and 3. Its lock is not seen here, but the files are."""
    write_plan(tmp_path)
    for shard in (0, 3):
        (tmp_path / "store" / f".tokens-0000{shard}.lock").write_text("")
    monkeypatch.setattr(lock.fcntl, "flock", lambda descriptor, operation: None)
    encoded = Encoded()
    write(tmp_path, encode=encoded)
    assert encoded.shards() == [1, 2, 0, 3]
    assert contents(tmp_path) == expected


def test_who_writes_a_shard_a_second_time_does_no_harm(tmp_path, expected, monkeypatch):
    """The other finishes the store meanwhile, and takes what is half-written for a dead one's."""
    store = tmp_path / "store"

    def interrupted(records):
        if records[0].key == "image/5" and not (store / "manifest.json").exists():
            monkeypatch.setattr(lock.fcntl, "flock", lambda descriptor, operation: None)
            write(tmp_path)
            (ours,) = (path for path in store.iterdir() if path.name.startswith(".cogview-tmp-"))
            ours.unlink()
            assert contents(tmp_path) == expected
        return encode(records)

    write(tmp_path, encode=interrupted)
    assert contents(tmp_path) == expected


def test_what_the_dead_of_other_machines_left_is_removed_at_the_end(tmp_path, expected):
    write_plan(tmp_path)
    store = tmp_path / "store"
    here = left_by_the_dead(store / "tokens-00001.array_record")
    elsewhere = here.with_name(here.name.replace(here.name.split("-")[2], "00000000"))
    for path in (here, elsewhere):
        path.write_text("half")
    seen = []

    def look(records):
        seen.append((here.exists(), elsewhere.exists()))
        return encode(records)

    write(tmp_path, encode=look)
    assert set(seen) == {(False, True)}  # one there may be alive
    assert contents(tmp_path) == expected


def test_the_limit_counts_the_shards_of_all(tmp_path, hasty):
    source = Images({0: "x", 1: "x", 2: "x", 22: "y"})
    for _ in range(2):  # the second process has read one of the four
        with pytest.raises(InputError, match=r"4 of 23 .* the last was image/22: y; all are in \S"):
            write(tmp_path, source, max_skipped=0.15)
    # Those of the shard that is not whole are listed, too.
    assert not (tmp_path / "store" / "tokens-00004.json").exists()
    listed = (tmp_path / "store" / "skipped.jsonl").read_text()
    assert listed.count('"reason": "x"') == 3
    assert listed.count('"reason": "y"') == 1


def test_a_list_of_a_run_that_is_over_is_no_part_of_the_store(tmp_path):
    with pytest.raises(InputError, match="20 of 20"):
        write(tmp_path, Images(dict.fromkeys(range(COUNT), "gone")))
    for path in (tmp_path / "store").glob("tokens-*"):
        path.unlink()
    assert (tmp_path / "store" / "skipped.jsonl").exists()
    write(tmp_path, Images({}), max_skipped=0.0)  # the disk is back
    assert not (tmp_path / "store" / "skipped.jsonl").exists()


def test_a_shard_that_vanishes_is_said(tmp_path, expected):
    write(tmp_path)
    store = tmp_path / "store"
    (store / "manifest.json").unlink()
    plan = {"source": {"kind": "test", "keys": ("a", "b")}, "codec": "c0dec"}
    shards = TokenShards(store, plan=plan, records=COUNT, shard_size=SHARD)
    shutil.move(store / "tokens-00003.array_record", tmp_path / "away")
    with pytest.raises(SystemFault, match=r"tokens-00003\.array_record: no longer whole; run"):
        shards.finish({}, 0.5)
    assert not (store / "manifest.json").exists()
