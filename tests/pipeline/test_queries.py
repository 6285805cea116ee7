"""The release's query language over a bundle."""

import os

import numpy as np
import pytest
from PIL import Image
from pipeline.small import VOCABULARY, codec_of, prompt_tokens

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.codecs.codec import encode_images


def test_a_query_is_filled_as_a_prompt_is(model):
    greedy = SamplingConfig(temperature=0.0)
    row = model.fill("[ROI1] a red circle [TINY] [BOI1] [MASK]*16", sampling=greedy)
    codes = model.generate_codes(["a red circle"], 1, 0, sampling=greedy)
    expected = [*prompt_tokens(model, "a red circle"), *codes.ravel()]
    np.testing.assert_array_equal(row, [expected])


def test_a_query_holds_images_and_samples(model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    query = "[TINY] [BOI1] [Image]a.png [EOI1] [ROI1] [MASK]*5"
    options = {"samples": 3, "seed": 1, "sampling": SamplingConfig(top_k=0)}
    rows = model.fill(query, images=tmp_path, **options)
    assert rows.shape == (3, 25)
    np.testing.assert_array_equal(rows[1, 2:18], model.encode(image[None]).ravel())
    text = rows[:, 20:]
    assert ((text >= VOCABULARY.text_start) & (text < VOCABULARY.commands_start)).all()
    assert len({tuple(row) for row in text.tolist()}) == 3
    np.testing.assert_array_equal(rows, model.fill(query, images={"a.png": image}.get, **options))
    with pytest.raises(InputError, match=r"\[Image\]gone.png cannot be read"):
        model.fill("[BOI1] [Image]gone.png [MASK]", images=tmp_path)
    with pytest.raises(InputError, match="seed 4294967296: expected 0 to 4294967295"):
        model.fill("[BOI1] [MASK]", seed=2**32)
    with pytest.raises(InputError, match="samples 0: expected at least 1"):
        model.fill("[BOI1] [MASK]", samples=0)
    with pytest.raises(InputError, match="samples 1099511627776: expected at most 1024"):
        model.fill("[BOI1] [MASK]", samples=2**40)


def test_a_query_opens_nothing_outside_the_folder_that_is_named(model, tmp_path):
    """An image that could well be read lies outside; a link to it lies inside."""
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "other.png")
    (root / "link.png").symlink_to(tmp_path / "other.png")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    outside = (
        "../other.png",
        f"{tmp_path}/other.png",
        f"{root}/in.png",
        "link.png",
        "up/other.png",
    )
    for name in outside:
        with pytest.raises(InputError, match="leads out of this folder"):
            model.fill(f"[BOI1] [Image]{name} [MASK]", images=root)
    with pytest.raises(InputError, match="expected a file, but this is a pipe"):
        model.fill("[BOI1] [Image]pipe.png [MASK]", images=root)
    with pytest.raises(InputError, match="expected images=FOLDER"):
        model.fill(f"[BOI1] [Image]{tmp_path}/other.png [MASK]")
    with pytest.raises(InputError, match="stands for more than"):
        model.fill("[BOI1] [MASK]*999999999999999")


def test_a_query_reads_images_at_the_size_asked_for(model, tmp_path):
    """The low image of a super-resolution has half the rows and columns."""
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "low.png")
    query = "[ROI1] red [TINY] [BOI1] [Image]low.png [EOI1] [ROI2] [MASK]"
    row = model.fill(query, images=tmp_path, image_size=8, sampling=SamplingConfig(0.0))[0]
    codes = encode_images(model.codec, *codec_of(model), image[None]).ravel()
    start = row.tolist().index(VOCABULARY.command("BOI1")) + 1
    assert row[start : start + 4].tolist() == codes.tolist()
    assert row[start + 4] == VOCABULARY.command("EOI1")
    with pytest.raises(InputError, match="image_size 6: expected a multiple of the codec's 4"):
        model.fill(query, images=tmp_path, image_size=6)
