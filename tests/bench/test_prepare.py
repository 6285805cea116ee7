"""The parts of `bench.prepare` do what they say; how fast they are is its own business."""

import numpy as np

from bench.data import SIDE, written
from bench.prepare import Work, measured
from cogview_jax.data.token_store import TokenStore

COUNT = 4


def test_the_parts_and_the_whole_are_of_all_images(tmp_path):
    source = written(tmp_path, COUNT)["folder"].open()
    work = Work(source, 2, tmp_path, waits=1e-6)
    shapes = [record.images[0].shape for record in work._fitted]
    assert shapes == [(SIDE, SIDE, 3)] * COUNT
    parts = {"read": work.read, "encode": work.encode, "prepare": work.prepare}
    result = measured(parts, COUNT, 1)
    for name in ("share_of_seconds", "share_of_processor_time"):
        assert len(result[name]["rounds"]) == 1
    for number in (1, 2):  # the first round does not count, and has its own store
        store = TokenStore(tmp_path / f"store{number}")
        assert [store[i].key for i in range(len(store))] == [source.key(i) for i in range(COUNT)]
        np.testing.assert_array_equal(store[0].codes, np.zeros((SIDE // 16) ** 2))


def test_a_share_is_of_the_two_parts_one_after_the_other(monkeypatch):
    """By a clock that each part turns on: 3 s of reading, 5 s of encoding, 4 s of both."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.process_time", lambda: 2 * clock[0])

    def part(seconds):
        def turn():
            clock[0] += seconds

        return turn

    found = measured({"read": part(3), "encode": part(5), "prepare": part(4)}, 60, 3)
    assert found["share_of_seconds"] == {"median": 2.0, "range": [2.0, 2.0], "rounds": [2.0] * 3}
    assert found["prepare"]["images_a_second"]["median"] == 15
    assert found["read"]["processor_ms"]["median"] == 100
