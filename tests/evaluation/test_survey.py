"""What a survey finds in images, against numbers that are computed from them as a whole."""

import hashlib
import threading

import numpy as np
import pytest

from cogview_jax.data.records import BadRecord, FilteredRecord, Record
from cogview_jax.evaluation.survey import SHOWN, survey
from cogview_jax.evaluation.survey_report import (
    Duplicates,
    TokenLengths,
    named_once,
    sections,
    summary,
    survey_report,
)
from cogview_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)


class Drawn:
    """Images of given arrays, and errors in the places of some."""

    def __init__(self, items):
        self.items, self.read = items, []
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.items)

    def key(self, i):
        return f"folder/{i}.png"

    def __getitem__(self, i):
        with self._lock:
            self.read.append(i)
        item = self.items[i]
        if isinstance(item, BadRecord):
            raise item
        image, captions = item
        return Record(self.key(i), image, captions)


def noise(rows, columns):
    return RNG.integers(0, 256, (rows, columns, 3), np.uint8)


COPY = noise(30, 40)
ITEMS = [
    (noise(20, 20), ("a cat", "一只猫")),
    (COPY, ("a dog",)),
    BadRecord("folder/2.png", "caption file 2.txt: not found"),
    (COPY.copy(), ("a dog",)),
    BadRecord("folder/4.png", "caption file 4.txt: not found"),
    (noise(60, 20), ()),
    FilteredRecord("folder/6.png", "shorter side of 7 pixels, below 20 (min_side)"),
    BadRecord("folder/7.png", "unreadable image: broken off after 17 bytes"),
    ((COPY.astype(int) // 2 * 2).astype(np.uint8), ("a dog",)),
    FilteredRecord("folder/9.png", "shorter side of 11 pixels, below 20 (min_side)"),
]
USED = [i for i, item in enumerate(ITEMS) if not isinstance(item, BadRecord)]


@pytest.fixture(scope="module")
def found():
    return survey(Drawn(ITEMS), count=0, seed=0)


@pytest.fixture(scope="module")
def duplicates(found):
    return Duplicates(found.exact_duplicates(), found.near_duplicates())


@pytest.fixture(scope="module")
def report(found, duplicates):
    tokens = TokenLengths("drawn", np.array([2, 3, 2, 2, 9]), 4)
    return survey_report(found, duplicates, Drawn(ITEMS).key, tokens)


def test_all_records_are_read_in_order_and_measured(found):
    assert found.records == 10
    assert found.rows["number"].tolist() == USED
    images = [ITEMS[i][0] for i in USED]
    assert found.rows["rows"].tolist() == [image.shape[0] for image in images]
    assert found.rows["columns"].tolist() == [image.shape[1] for image in images]
    assert found.captions == [ITEMS[i][1] for i in USED]
    assert found.texts == ["a cat", "一只猫", "a dog", "a dog", "a dog"]
    assert found.rate > 0


def test_all_images_count_alike_in_the_mean_of_pixels(found):
    images = [ITEMS[i][0].reshape(-1, 3) / 255 for i in USED]
    means = np.mean([image.mean(axis=0) for image in images], axis=0)
    squares = np.mean([(image**2).mean(axis=0) for image in images], axis=0)
    np.testing.assert_allclose(found.mean, means, atol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(squares - means**2), atol=1e-12)


def test_pixels_are_counted_as_a_view_shows_them():
    top = survey(Drawn(ITEMS), count=0, seed=0, view=lambda image: image[:1])
    rows = [ITEMS[i][0][0] / 255 for i in USED]
    np.testing.assert_allclose(top.mean, np.mean([row.mean(axis=0) for row in rows], axis=0))


def test_duplicates_are_named_by_their_numbers(duplicates):
    """Record 8 differs from 1 and 3 in the last bit of half of its values."""
    assert duplicates.exact == [[1, 3]]
    assert duplicates.near == [[1, 3, 8]]
    assert duplicates.exact_copies == [3]
    assert duplicates.near_copies == [3, 8]


def test_an_image_under_one_name_is_no_duplicate_of_itself():
    """The names would leave it out as a whole."""
    names = "abacb"
    assert named_once([[0, 1, 2], [1, 4], [0, 3]], names.__getitem__) == [[0, 1], [0, 3]]


def test_a_report_counts_by_reason_and_size(report):
    assert report["records"] == {"all": 10, "read": 10, "used": 5, "filtered": 2, "skipped": 3}
    reasons = [(x["records"], x["reason"], x["filtered"]) for x in report["not_used"]]
    assert reasons == [
        (2, "caption file NAME.txt: not found", False),
        (2, "shorter side of N pixels, below N (min_side)", True),
        (1, "unreadable image: broken off after N bytes", False),
    ]
    assert report["not_used"][0]["examples"] == [
        "folder/2.png: caption file 2.txt: not found",
        "folder/4.png: caption file 4.txt: not found",
    ]
    images = report["images"]
    assert images["shorter_side"] == {
        **{"min": 20, "p5": 20, "median": 30},
        **{"p95": 30, "p99": 30, "max": 30},
    }
    assert images["aspect_ratio"]["max"] == 3.0
    assert (images["landscape"], images["square"], images["portrait"]) == (3, 1, 1)
    assert images["central_square_keeps"] == round((1 + 3 * 3 / 4 + 1 / 3) / 5, 4)
    assert images["most_common_sizes"] == {"40 x 30": 3, "20 x 20": 1, "20 x 60": 1}


def test_a_report_tells_how_captions_fit(report):
    captions = report["captions"]
    assert captions["scripts"] == {"Latin": 4, "Han": 1}
    assert (captions["captions"], captions["distinct"]) == (5, 3)
    assert captions["records_without"] == 1
    assert captions["characters"]["max"] == 5
    assert (captions["cut"], captions["cut_share"], captions["tokens"]["max"]) == (1, 0.2, 9)
    assert report["duplicates"]["exact"] == {
        "groups": 1,
        "records": 2,
        "listed": [["folder/1.png", "folder/3.png"]],
    }


def test_the_main_numbers_are_lines(report):
    lines = summary(report)
    assert lines["records"] == "10: 5 used, 3 skipped, 2 left out by data.filter"
    assert lines["tokens"].endswith("20.0% of captions are cut at layout.text_length = 4")
    assert lines["images"].startswith("shorter side 20 to 30 pixels, median 30;")


def test_a_sample_is_another_with_another_seed_and_the_same_with_the_same():
    items = [(np.full((4, 4, 3), i % 256, np.uint8), (str(i),)) for i in range(900)]

    def numbers(seed):
        found = survey(Drawn(items), count=200, seed=seed)
        assert found.captions == [(str(i),) for i in found.rows["number"]]
        assert [len(found.rows), found.records, len(found.shown)] == [200, 900, SHOWN]
        assert {record.key for record in found.shown} <= {
            f"folder/{i}.png" for i in found.rows["number"]
        }
        return found.rows["number"].tolist()

    assert len(set(numbers(1))) == 200
    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_what_is_shown_is_of_all_records_and_of_moderate_size():
    items = [(np.full((800, 400, 3), i, np.uint8), ()) for i in range(200)]
    shown = survey(Drawn(items), count=0, seed=0).shown
    assert {record.image.shape for record in shown} == {(160, 80, 3)}
    values = [int(record.image[0, 0, 0]) for record in shown]
    assert len(set(values)) == SHOWN
    assert min(values) < 50 < 150 < max(values)


def test_hashes_are_of_pixels_and_shape(found):
    image = ITEMS[USED[0]][0]
    expected = hashlib.sha256(b"(20, 20, 3)" + image.tobytes()).digest()
    assert found.rows["sha256"][0] == expected.rstrip(b"\0")
    flat = [(np.zeros(shape, np.uint8), ()) for shape in ((2, 3, 3), (3, 2, 3), (2, 3, 3))]
    assert survey(Drawn(flat), count=0, seed=0).exact_duplicates() == [[0, 2]]


def test_records_that_all_are_bad_are_an_error_that_counts_them():
    bad = [item for item in ITEMS if isinstance(item, BadRecord)]
    with pytest.raises(InputError, match=r"none of the 5 records .*: 2 x caption file NAME\.txt"):
        survey(Drawn(bad), count=0, seed=0)


def test_a_page_has_the_numbers_the_pairs_and_no_curve_of_equal_values(found, report):
    shown = sections(report | {"problems": ["beware"]}, found, None, [], [])
    titles = [section.title for section in shown]
    assert titles == [
        "In short",
        "Records that are not used",
        "5 records, chosen at random",
        "Images whose shorter side is at most so long",
        "Images whose aspect ratio is at most so large",
    ]
    assert ("warning", "beware") in shown[0].rows
    line = shown[3]
    assert (line.x[0], line.x[-1]) == (20, 30)
    assert line.lines["share of all"][0] == 0.4
    assert line.lines["share of all"][-1] == 1.0
    same = survey(Drawn([ITEMS[0]] * 3), count=0, seed=0)
    flat = survey_report(same, Duplicates([], []), str, None) | {"problems": []}
    assert len(sections(flat, same, None, [], [])) == 2
