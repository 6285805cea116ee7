"""Which records are held out: by their number alone, and never those that are trained on."""

import numpy as np
import pytest

from cogview_jax.data import held_out
from cogview_jax.data.held_out import held_out_numbers, record_hashes, split
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError


class Numbers:
    """Record i is i; some cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def key(self, i):
        return f"number/{i}"

    def __getitem__(self, i):
        assert 0 <= i < self.count
        if i in self.broken:
            raise BadRecord(self.key(i), "broken")
        return i


@pytest.mark.parametrize(("count", "share"), [(2, 0.01), (13, 0.3), (1000, 0.01), (999, 0.9)])
def test_every_record_is_either_trained_on_or_held_out(count, share):
    training, validation = split(Numbers(count), share)
    ours = [training[i] for i in range(len(training))]
    theirs = [validation[i] for i in range(len(validation))]
    assert sorted([*ours, *theirs]) == list(range(count))
    assert len(ours) > 0
    assert len(theirs) > 0
    assert (ours, theirs) == (sorted(ours), sorted(theirs))
    assert [training.key(i) for i in range(len(training))] == [f"number/{n}" for n in ours]


def test_the_hash_is_splitmix64():
    """Its first three outputs with seed 0, as its authors' code prints them."""
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    expected = [(output >> 11) / 2**53 for output in outputs]
    assert record_hashes(np.arange(3, dtype=np.uint64)).tolist() == expected


def test_records_that_are_added_change_no_other(monkeypatch):
    few, many = held_out_numbers(10_000, 0.02), held_out_numbers(100_000, 0.02)
    assert few.tolist() == [number for number in many if number < 10_000]
    # 100,000 tosses of a coin: five standard deviations.
    assert abs(len(many) - 2000) < 5 * (2000 * 0.98) ** 0.5
    monkeypatch.setattr(held_out, "_BLOCK", 777)
    assert held_out_numbers(10_000, 0.02).tolist() == few.tolist()
    # Where no hash is below the share, the smallest one is taken, whatever its block.
    hashes = record_hashes(np.arange(10_000, dtype=np.uint64))
    assert held_out_numbers(10_000, 1e-9).tolist() == [int(np.argmin(hashes))]


def test_a_share_that_leaves_nothing_is_refused():
    for count in (1, 4):
        message = rf"validation_share = 0\.999 holds out {count} of {count} records, which leaves"
        with pytest.raises(InputError, match=message):
            split(Numbers(count), 0.999)


def test_a_bad_record_is_bad_in_its_part():
    training, validation = split(Numbers(40, broken=range(40)), 0.5)
    for part in (training, validation):
        with pytest.raises(BadRecord, match="broken"):
            part[len(part) - 1]
    assert training.describe() == f"40 records; {len(validation)} of them are held out"
