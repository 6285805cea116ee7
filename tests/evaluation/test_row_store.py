"""Rows on disk: what is appended comes back, also after an interruption."""

import numpy as np
import pytest

from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.runtime.errors import InputError

ROWS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


def opened(folder, part=0, parts=1, job="a", monkeypatch=None, **changes):
    if monkeypatch is not None:
        monkeypatch.setattr("jax.process_index", lambda: part)
        monkeypatch.setattr("jax.process_count", lambda: parts)
    return RowStore(folder, {"of": job}, **{"count": 7, "width": 3, **changes})


def test_rows_come_back_in_order_and_an_interrupted_store_goes_on(tmp_path):
    store = opened(tmp_path / "rows")
    assert list(store.mine) == list(range(7))
    store.append(ROWS[:4])
    file = next((tmp_path / "rows").glob("*.rows"))
    with open(file, "ab") as whole:
        whole.write(ROWS[4].tobytes()[:5])  # a kill in the middle of a row
    again = opened(tmp_path / "rows")
    assert (again.done, list(again.mine)) == (4, [4, 5, 6])
    again.append(ROWS[4:])
    again.finish()
    np.testing.assert_array_equal(again.read([6, 0, 3]), ROWS[[6, 0, 3]])
    np.testing.assert_array_equal(np.concatenate(list(again.blocks())), ROWS)
    assert opened(tmp_path / "rows").mine == range(7, 7)


def test_rows_of_another_evaluation_are_not_lost(tmp_path):
    opened(tmp_path / "rows").append(ROWS)
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


def test_shares_of_several_processes_are_the_whole(tmp_path, monkeypatch):
    """The processes take turns here; tests/launch runs two at once."""
    monkeypatch.setattr(
        "cogview_jax.evaluation.row_store.KVStoreSync.broadcast", lambda self, topic, make: make()
    )
    monkeypatch.setattr(
        "cogview_jax.evaluation.row_store.KVStoreSync.all_gather", lambda self, topic, value: None
    )
    for part in (0, 1, 2):
        store = opened(tmp_path / "rows", part, 3, monkeypatch=monkeypatch)
        assert list(store.mine) == list(range(part, 7, 3))
        store.append(ROWS[part::3])
        store.finish()
    np.testing.assert_array_equal(store.read(range(7)), ROWS)
