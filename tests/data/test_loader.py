"""The stream of batches: the same for any number of hosts, resumable anywhere, always full."""

import json

import numpy as np
import pytest

from cogview_jax.data.loader import batches
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.runtime.errors import InputError
from number_sources import BATCH, COUNT, Numbers, Row, assert_equal, augment, read


@pytest.mark.parametrize("broken", [(), (0, 5, 6, 12)])
@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_reads_the_same_global_batches(tmp_path, hosts, broken):
    source = Numbers(broken=broken)
    one = read(tmp_path, 7, source, max_skipped=1.0)
    assert_equal(read(tmp_path, 7, source, hosts, max_skipped=1.0), one)


@pytest.mark.parametrize(
    "parts", [(0, 1), (2, 3), (1, 2), (0, 2), (1, 5, 6), (0, 1, 4, 5), tuple(range(8))]
)
def test_a_host_may_hold_any_parts_of_a_batch(tmp_path, parts):
    """On a TPU the devices of one host need not be neighbours in the mesh."""
    iterator = batches(
        Numbers(),
        global_batch=2 * BATCH,
        seed=3,
        transform=augment,
        skipped=SkippedLog(tmp_path / "parts"),
        start=2,
        parts=parts,
        ways=8,
    )
    mine = next(iterator)
    iterator.close()
    whole = batches(
        Numbers(),
        global_batch=2 * BATCH,
        seed=3,
        transform=augment,
        skipped=SkippedLog(tmp_path / "whole"),
        start=2,
    )
    all_rows = next(whole)
    whole.close()
    assert type(mine) is type(all_rows) is Row
    for field, all_of_field in zip(mine, all_rows, strict=True):
        rows = all_of_field.reshape(8, 2 * BATCH // 8, *all_of_field.shape[1:])
        np.testing.assert_array_equal(field, np.concatenate(rows[list(parts)]))


@pytest.mark.parametrize("start", [1, 4, 9])
def test_resuming_gives_what_the_unbroken_run_gave(tmp_path, start):
    source = Numbers(broken=(2,))
    unbroken = read(tmp_path, 12, source, max_skipped=1.0)
    # Another number of hosts than before takes over.
    rest = read(tmp_path, 12 - start, source, hosts=2, start=start, max_skipped=1.0)
    assert_equal(rest, {name: rows[start:] for name, rows in unbroken.items()})


def test_every_epoch_holds_each_record_once_in_another_order(tmp_path):
    stream = read(tmp_path, 13)["item"].reshape(-1)  # 13 steps of 8 are 8 epochs of 13
    epochs = stream.reshape(8, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_no_two_places_of_the_stream_draw_alike_and_seeds_differ(tmp_path):
    drawn = [read(tmp_path, 13, seed=seed)["drawn"].reshape(-1, 2) for seed in (3, 4)]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 2 * 13 * 8
    assert not np.array_equal(read(tmp_path, 2, seed=4)["item"], read(tmp_path, 2)["item"])


def test_broken_records_are_replaced_by_the_next_readable_one(tmp_path):
    whole = read(tmp_path / "whole", 5)
    broken = read(tmp_path, 5, Numbers(broken=(5, 6, 12)), max_skipped=1.0)
    substitute = {5: 7, 6: 7, 12: 0}  # the last one's next is the first
    expected = np.vectorize(lambda i: substitute.get(i, i))(whole["item"])
    np.testing.assert_array_equal(broken["item"], expected)
    np.testing.assert_array_equal(broken["drawn"], whole["drawn"])
    lines = (tmp_path / "0" / "skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == [
        "number/12",
        "number/5",
        "number/6",
    ]


def test_too_many_broken_records_stop_the_run(tmp_path):
    source = Numbers(count=100, broken=range(0, 100, 10))
    with pytest.raises(InputError, match=r"records could not be used.*max_skipped=0.05"):
        read(tmp_path, 30, source, max_skipped=0.05)


def test_a_source_with_nothing_readable_stops_the_run(tmp_path):
    with pytest.raises(InputError, match="none of the 13 records can be read"):
        read(tmp_path, 1, Numbers(broken=range(COUNT)), max_skipped=1.0)


def test_one_record_makes_batches_too(tmp_path):
    assert (read(tmp_path, 3, Numbers(count=1))["item"] == 0).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_told(tmp_path, seed):
    with pytest.raises(InputError, match=f"seed={seed}: expected 0 to 4294967295"):
        read(tmp_path, 1, seed=seed)


def test_hosts_that_cannot_share_a_batch_are_told(tmp_path):
    with pytest.raises(InputError, match="global_batch=8: expected a multiple of the 3 parts"):
        read(tmp_path, 1, hosts=3)
