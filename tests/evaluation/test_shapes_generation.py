"""The report on models that draw what is said, in one language only, or nothing."""

import numpy as np
import pytest

from cogview_jax.evaluation.benchmarks.shapes import generation_report, table
from cogview_jax.shapes.scenes import draw, drawing, is_held_out, parse_caption

SIZE, PROMPTS = 48, 12
ATTRIBUTES = ["background", "count", "position", "size", "colour", "shape", "all"]


def perfect(texts):
    rng = np.random.default_rng(7)
    return np.stack([draw(parse_caption(text), SIZE, rng) for text in texts])[:, None]


def english_only(texts):
    images = perfect(texts)
    images[[not text.isascii() for text in texts]] = 255
    return images


def report(generate, reconstruct=lambda images: images, seed=0, prompts=PROMPTS, score=None):
    return generation_report(
        generate, reconstruct, size=SIZE, count=prompts, seed=seed, score=score
    )


@pytest.fixture(scope="module")
def one_sided():
    """What a model that knows no Chinese gets, beside a codec that loses everything."""
    return report(english_only, lambda images: np.full_like(images, 255))


def test_a_model_that_draws_what_is_said_reaches_one():
    for split in report(perfect).values():
        assert split["generated"] == dict.fromkeys(ATTRIBUTES, 1.0)
        assert split["ceiling"] == dict.fromkeys(ATTRIBUTES, 1.0)


def test_languages_are_reported_apart(one_sided):
    for split in one_sided.values():
        assert split["prompts"] == PROMPTS
        assert split["generated_en"]["all"] == 1.0
        assert split["generated_zh"]["all"] == split["generated_zh"]["shape"] == 0.0
        assert split["generated"]["all"] == split["generated"]["shape"] == 0.5


def test_the_ceiling_is_that_of_the_codec(one_sided):
    for split in one_sided.values():
        assert split["ceiling"]["all"] == split["ceiling"]["count"] == 0.0


def test_prompts_are_of_the_split_half_in_each_language_and_follow_the_seed():
    asked, true = [], []

    def ask(texts):
        asked.append(list(texts))
        return np.full((len(texts), 1, SIZE, SIZE, 3), 255, np.uint8)

    def see(images):
        true.append(images)
        return np.full_like(images, 255)

    for seed in (0, 0, 1):
        report(ask, see, seed, prompts=40)
    seen, held_out = asked[:2]
    assert asked[2:4] == [seen, held_out]
    assert asked[4] != seen
    for texts, expected in ((seen, False), (held_out, True)):
        assert sum(text.isascii() for text in texts) == 20
        pairs = {pair for text in texts for pair in parse_caption(text).things}
        assert {is_held_out(*pair) for pair in pairs} == {expected}
    # No image that a codec trained on is made again.
    trained = [drawing(0, "train", index, SIZE)[1] for index in range(40)]
    assert not any(np.array_equal(a, b) for a in true[0] for b in trained)


def test_the_best_of_several_is_the_one_of_the_lowest_score():
    """Of eight candidates the fourth and the fifth are right; the scores know the fifth alone."""

    def generate(texts):
        right = perfect(texts)
        images = np.full((len(texts), 8, *right.shape[2:]), 255, np.uint8)
        images[:, [3, 4]] = right
        return images

    def score(images, texts):
        assert [texts[0]] * 8 == list(texts[:8])
        scores = np.arange(len(images), dtype=float)
        scores[4::8] = -1
        return scores

    for split in report(generate, score=score).values():
        assert split["generated"]["all"] == split["best_of_1"]["all"] == 2 / 8
        # Pairs: (0, 1), (2, 3), (4, 5), (6, 7), of which the third alone chooses well.
        assert split["best_of_2"]["all"] == 1 / 4
        assert split["best_of_4"]["all"] == 1 / 2
        assert split["best_of_8"]["all"] == 1.0
        assert "best_of_16" not in split


def test_table_has_a_line_a_row_and_a_column_an_attribute(one_sided):
    head, *lines = table(one_sided).split("\n")
    assert head.split() == ATTRIBUTES
    assert [line[:24].strip() for line in lines] == [
        f"{split} {row}"
        for split in ("seen", "held out")
        for row in ("generated", "generated en", "generated zh", "ceiling")
    ]
    assert lines[1].split()[-7:] == ["1.000"] * 7
    assert lines[3].split()[-1] == "0.000"
