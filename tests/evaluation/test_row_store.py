"""Rows on disk: what is computed comes back, whoever computed it, also after an interruption."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cogview_jax.evaluation import job
from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.runtime import shared_shards
from cogview_jax.runtime.errors import InputError

ROWS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


def opened(folder, job="a", **changes):
    return RowStore(folder, {"of": job}, **{"count": 7, "width": 3, "batch": 2, **changes})


class Computed:
    """Gives the rows, one at a time; remembers which."""

    def __init__(self, stop=None):
        self.numbers, self._stop = [], stop

    def __call__(self, numbers):
        for number in numbers:
            if number == self._stop:
                raise KeyboardInterrupt
            self.numbers.append(number)
            yield ROWS[number : number + 1]


def test_rows_come_back_in_order_and_an_interrupted_store_goes_on(tmp_path):
    store, first, second = opened(tmp_path / "rows"), Computed(stop=5), Computed()
    with pytest.raises(KeyboardInterrupt):
        store.fill(first, "rows")
    assert first.numbers == [0, 1, 2, 3, 4]
    whole = sorted(path.name for path in (tmp_path / "rows").glob("*.rows"))
    assert whole == ["rows-00000.rows", "rows-00001.rows"]
    again = opened(tmp_path / "rows")
    again.fill(second, "rows")
    assert second.numbers == [4, 5, 6]
    np.testing.assert_array_equal(again.read([6, 0, 3]), ROWS[[6, 0, 3]])
    np.testing.assert_array_equal(np.concatenate(list(again.blocks())), ROWS)
    opened(tmp_path / "rows").fill(Computed(stop=0), "rows")  # which computes nothing


def test_a_shard_that_lost_its_end_is_computed_again(tmp_path):
    opened(tmp_path / "rows").fill(Computed(), "rows")
    file = tmp_path / "rows" / "rows-00001.rows"
    file.write_bytes(file.read_bytes()[:5])
    opened(tmp_path / "rows").fill(again := Computed(), "rows")
    assert again.numbers == [2, 3]
    np.testing.assert_array_equal(opened(tmp_path / "rows").read(range(7)), ROWS)


def test_rows_of_another_evaluation_are_not_lost(tmp_path):
    opened(tmp_path / "rows").fill(Computed(), "rows")
    with pytest.raises(InputError, match=r"had measured \(of another of\): give"):
        opened(tmp_path / "rows", job="b")
    with pytest.raises(InputError, match=r"\(of another count\)"):
        opened(tmp_path / "rows", count=6)
    np.testing.assert_array_equal(opened(tmp_path / "rows").read(range(7)), ROWS)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "weights").write_text("weeks")
    with pytest.raises(InputError, match="rows is no unfinished evaluation: move it away"):
        opened(tmp_path / "rows")
    assert (tmp_path / "rows" / "weights").read_text() == "weeks"
    (tmp_path / "rows" / "job.json").write_text("[")
    with pytest.raises(InputError, match=r"of another job.json, which cannot be read"):
        opened(tmp_path / "rows")


def test_batches_of_another_size_go_on_in_the_shards_that_there_are(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "rows").fill(Computed(stop=3), "rows")
    opened(tmp_path / "rows", batch=3).fill(again := Computed(), "rows")
    assert again.numbers == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(opened(tmp_path / "rows").read(range(7)), ROWS)


def test_processes_with_other_batches_that_begin_at_once_agree_on_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_make", lambda path: path.mkdir(exist_ok=True))  # none sees another
    stores = [opened(tmp_path, batch=batch) for batch in (2, 3)]
    assert [store._span(1) for store in stores] == [range(2, 4)] * 2
    assert {file.name for file in tmp_path.iterdir()} == {"job.json"}


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSPC])
def test_a_file_system_without_second_names(tmp_path, monkeypatch, error):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refused)
    if error == errno.EPERM:
        assert opened(tmp_path / "rows").directory.joinpath("job.json").is_file()
        return
    with pytest.raises(OSError, match="No space"):
        opened(tmp_path / "rows")
    assert not list((tmp_path / "rows").iterdir())


def test_a_shard_is_of_some_batches_and_there_are_enough_of_them(tmp_path):
    for count, size in ((7, 2), (64, 4), (10**6, 32)):
        store = opened(tmp_path / str(count), count=count)
        assert len(store._span(0)) == size


@pytest.mark.parametrize("together", [2, 4])
def test_shares_of_several_processes_are_the_whole(tmp_path, monkeypatch, together):
    """A lock belongs to an open file, so threads keep each other out as processes do."""
    monkeypatch.setattr(shared_shards, "PAUSE", 0.01)
    computed, begun = Computed(), threading.Barrier(together)

    def work(_):
        store = opened(tmp_path / "rows")
        begun.wait()
        store.fill(computed, "rows")
        return store.read(range(7))

    with ThreadPoolExecutor(together) as pool:
        found = list(pool.map(work, range(together)))
    assert sorted(computed.numbers) == list(range(7))
    for rows in found:
        np.testing.assert_array_equal(rows, ROWS)
