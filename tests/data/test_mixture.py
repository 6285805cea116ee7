"""A mixture as a source, and as the one stream that training reads."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from cogview_jax.data.held_out import split
from cogview_jax.data.interleaving import Interleaving
from cogview_jax.data.loader import batches
from cogview_jax.data.records import BadRecord
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.mixture import Mixture, Part, counts, in_turn
from cogview_jax.runtime.errors import InputError
from number_sources import BATCH, COUNT, Numbers, assert_equal, read


class Tens(Numbers):
    """Record i is 100 * BASE + i."""

    def __init__(self, base, *sizes, **options):
        super().__init__(*sizes, **options)
        self.base = base

    def key(self, i):
        return f"{self.base}/{i}"

    def __getitem__(self, i):
        return 100 * self.base + super().__getitem__(i)


WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def mixture(broken=(), **weights):
    """Parts of 13, 3 and 40 records."""
    sizes = {"a": COUNT, "b": 3, "c": 40}
    return Mixture(
        [
            Part(name, weight, Tens(i, sizes[name], broken if name == "a" else ()))
            for i, (name, weight) in enumerate((WEIGHTS | weights).items())
        ]
    )


def test_as_a_source_it_has_the_records_of_its_parts():
    mixed = mixture()
    assert len(mixed) == COUNT + 3 + 40
    assert [mixed[i] for i in (0, 12, 13, 15, 16, 55)] == [0, 12, 100, 102, 200, 239]
    assert [mixed.key(i) for i in (0, 13, 55)] == ["0/0", "1/0", "2/39"]
    with pytest.raises(IndexError):
        mixed[56]
    assert mixed.describe() == (
        "mixture of 3 by shares of the rows: a (0.5): 13 records | b (0.3): 3 records |"
        " c (0.2): 40 records"
    )


def test_the_order_of_parts_is_that_of_their_names():
    parts = [Part(name, 1.0, Numbers()) for name in "cab"]
    assert [part.name for part in Mixture(parts).parts] == ["a", "b", "c"]


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_any_number_of_hosts_goes_on_from_any_step_with_the_same_batches(tmp_path, hosts, start):
    source, limits = mixture(broken=(0, 5, 6, 12)), {"max_skipped": 1.0}
    unbroken = read(tmp_path / "one", 12, source, **limits)
    rest = read(tmp_path / "more", 12 - start, source, hosts, start=start, **limits)
    assert_equal(rest, {name: rows[start:] for name, rows in unbroken.items()})


def test_the_stream_is_the_streams_of_the_parts_in_turn(tmp_path):
    """The slow form: one part after another takes its next record, of epochs of its own."""
    steps = 26
    stream = read(tmp_path, steps, mixture())["item"].reshape(-1)
    had = {0: [], 1: [], 2: []}
    turn = Interleaving(list(WEIGHTS.values()))
    for place, item in enumerate(stream):
        part, number = turn(place)
        assert item // 100 == part
        assert number == len(had[part])
        had[part].append(item % 100)
    assert sum(map(len, had.values())) == steps * BATCH
    for part, size in ((0, COUNT), (1, 3), (2, 40)):
        whole = len(had[part]) // size
        assert whole >= 1
        epochs = np.array(had[part][: whole * size]).reshape(whole, size)
        for epoch in epochs:
            assert sorted(epoch) == list(range(size))
        last = had[part][whole * size :]
        assert len(set(last)) == len(last)
        # Of three records there are six orders, and 20 epochs.
        assert len({tuple(epoch) for epoch in epochs}) == whole or part == 1
    assert len({tuple(had[1][i : i + 3]) for i in range(0, 60, 3)}) > 3


def test_parts_of_one_size_are_not_shuffled_alike_and_do_not_change_each_other(tmp_path):
    def orders(**parts):
        """The records of each part, as they come."""
        mixed = Mixture([Part(n, w, Tens(ord(n), 20)) for n, w in parts.items()])
        stream = read(tmp_path, 10, mixed)["item"].reshape(-1)
        return {n: [x % 100 for x in stream if x // 100 == ord(n)][:20] for n in parts}

    two, three = orders(a=1, b=1), orders(a=2, b=2, c=1)
    assert two["a"] != two["b"]
    assert (two["a"], two["b"]) == (three["a"], three["b"])


def test_a_part_s_own_records_take_the_place_of_broken_ones(tmp_path):
    whole = read(tmp_path / "whole", 20, mixture())["item"]
    found = read(tmp_path, 20, mixture(broken=(5, 6, 12)), max_skipped=1.0)["item"]
    substitute = {5: 7, 6: 7, 12: 0}
    np.testing.assert_array_equal(found, np.vectorize(lambda i: substitute.get(i, i))(whole))
    lines = (tmp_path / "0" / "skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == ["0/12", "0/5", "0/6"]
    # Every record counts once, whatever its part.
    log = SkippedLog(tmp_path / "counted", max_skipped=1.0)
    rows = batches(
        mixture(broken=(5,)),
        global_batch=BATCH,
        seed=3,
        transform=lambda item, generator: np.int32(item),
        skipped=log,
    )
    list(itertools.islice(rows, 26))
    rows.close()
    assert (log.seen, log.skipped) == (COUNT + 3 + 40, 1)
    with pytest.raises(InputError, match="none of the 13 records of part a can be read"):
        read(tmp_path / "none", 1, mixture(broken=range(COUNT)), max_skipped=1.0)


def test_one_weight_far_above_the_others_leaves_them_their_share(tmp_path):
    stream = read(tmp_path, 50, mixture(a=97.0, b=2.0, c=1.0))["item"].reshape(-1)
    found = Counter(stream // 100)
    assert [found[i] for i in range(3)] == [388, 8, 4]


def test_each_part_holds_out_what_it_would_alone():
    training, held_out = split(mixture(), 0.2)
    for number, (name, size) in enumerate({"a": COUNT, "b": 3, "c": 40}.items()):
        alone = split(Tens(number, size), 0.2)
        for mixed, own in zip((training, held_out), alone, strict=True):
            part = mixed.parts[number]
            assert (part.name, part.weight) == (name, WEIGHTS[name])
            assert [part.source[i] for i in range(len(part.source))] == [
                own[i] for i in range(len(own))
            ]
    assert training.interleaving.shares == (0.5, 0.3, 0.2)
    with pytest.raises(InputError, match=r"part b: data.validation_share = 0.9 holds out 1 of 1"):
        split(Mixture([Part("a", 1.0, Numbers()), Part("b", 1.0, Numbers(1))]), 0.9)
    # So many of one image stay together, of each part its own number.
    _, held_out = split(mixture(), 0.2, {"a": 1, "b": 1, "c": 20})
    numbers = [held_out.parts[2].source[i] for i in range(len(held_out.parts[2].source))]
    assert numbers in ([*range(200, 220)], [*range(220, 240)])


def test_parts_take_turns_where_few_are_looked_at():
    mixed = mixture(broken=(0,))
    assert list(itertools.islice(in_turn(mixed), 12)) == [
        *(1, 100, 200, 2, 101, 201, 3, 102, 202, 4, 203, 5),
    ]
    assert list(in_turn(Numbers(3))) == [0, 1, 2]
    assert counts(mixed.parts, 100) == {"a": 50, "b": 30, "c": 20}
    assert counts(mixture(b=1e-3).parts, 10)["b"] == 1


def test_an_empty_part_is_refused():
    with pytest.raises(InputError, match="part b of the mixture is empty: it has no record"):
        Mixture([Part("a", 1.0, Numbers()), Part("b", 1.0, Numbers(0))])
    with pytest.raises(InputError, match="a mixture of no parts"):
        Mixture([])


def test_a_bad_record_is_bad_in_the_mixture():
    with pytest.raises(BadRecord, match="broken"):
        mixture(broken=(3,))[3]
