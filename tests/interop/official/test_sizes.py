"""How ids and positions are divided where the weights do not tell."""

import pytest

from cogview_jax.interop.official.sizes import infer_layout, infer_vocabulary
from cogview_jax.runtime.errors import InputError
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if str(word) not in message] == [], message


@pytest.mark.parametrize(
    ("size", "codes", "pieces", "expected"),
    [
        (58_240, None, None, (8192, 50_000)),
        (58_240, 8192, None, (8192, 50_000)),
        (58_240, None, 50_000, (8192, 50_000)),
        (58_240, None, 49_900, (8192, 49_900)),
        (58_240, 4096, None, (4096, 58_240 - 4096 - 27)),
        (20_224, None, None, (8192, 20_224 - 8192 - 27)),
        (384, None, None, (128, 384 - 128 - 27)),
        (384, 64, None, (64, 384 - 64 - 27)),
        (384, 64, 270, (64, 270)),
        (256, None, None, (64, 256 - 64 - 27)),
        (8192, None, None, (2048, 8192 - 2048 - 27)),
    ],
)
def test_a_vocabulary_is_told_by_its_size_and_what_is_given(size, codes, pieces, expected):
    vocabulary = infer_vocabulary(size, codes, pieces)
    assert vocabulary == Vocabulary(*expected)
    assert vocabulary.size == size


@pytest.mark.parametrize(
    ("size", "codes", "pieces", "made"),
    [(384, 64, 294, 512), (384, 64, 100, 256), (384, 8192, None, 8320), (390, 64, None, 512)],
)
def test_a_vocabulary_that_does_not_fit_is_refused_with_its_numbers(size, codes, pieces, made):
    said = (f"{codes} codes", f"vocabulary of {made} ids", f"the transformer has {size}")
    refused(lambda: infer_vocabulary(size, codes, pieces), *said)


@pytest.mark.parametrize(
    ("positions", "grid", "expected"),
    [
        *((1089, None, (61, 32)), (1088, None, (60, 32)), (80, None, (12, 8)), (69, None, (1, 8))),
        *(
            (1028, None, (768, 16)),
            (4200, None, (100, 64)),
            (80, 4, (60, 4)),
            (1089, 16, (829, 16)),
        ),
    ],
)
def test_a_layout_fills_the_positions(positions, grid, expected):
    layout = infer_layout(positions, grid, "text_to_image")
    assert layout == LayoutConfig("text_to_image", *expected)
    assert make_layout(layout, Vocabulary()).length == positions


@pytest.mark.parametrize(("positions", "grid"), [(68, None), (80, 9), (80, 0), (80, -1)])
def test_a_grid_that_leaves_no_text_is_refused(positions, grid):
    refused(lambda: infer_layout(positions, grid, "text_to_image"), positions, "smaller --grid")
