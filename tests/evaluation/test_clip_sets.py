"""CLIPScore and CMMD of sets of images, one of which cannot be read, by hand from embeddings."""

import numpy as np
import pytest
from PIL import Image

import clip_folder
from cogview_jax.evaluation.clip_model import ClipModel
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.image_sets import SourceImages, open_folder

TEXTS = ["a red circle", "two cats", "a dog on a table", "nothing", "a blue star"]


@pytest.fixture(scope="module")
def clip(oracles, tmp_path_factory):
    return clip_folder.write_folder(tmp_path_factory.mktemp("clip") / "a", oracles)


def written(folder, seed):
    """Five images, the third of which is broken, as a set; and the pixels of the others."""
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 40, 36, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"broken")
    return SourceImages(open_folder(str(folder), "--real"), str(folder)), np.delete(pixels, 2, 0)


def test_clip_score_and_cmmd(clip, tmp_path):
    (first, x), (second, y) = (written(tmp_path / str(seed), seed) for seed in range(2))
    model, sets = ClipModel.read(clip), ClipSets(str(clip), tmp_path / "rows")
    x, y = (np.float64(model.images(each)) for each in (x, y))
    cosines = np.sum(x * model.texts(np.delete(TEXTS, 2)), axis=1)
    score = sets.score(first, TEXTS, "first")
    assert score["n"] == 4
    assert score["mean"] == pytest.approx(2.5 * np.maximum(cosines, 0).mean(), rel=1e-5)
    assert score["cosine_percent"] == pytest.approx(100 * cosines.mean(), rel=1e-5)

    def kernel(a, b):
        squares = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
        return np.exp(-squares / (2 * 10**2)).mean()

    found = sets.distance(first, second, ("first", "second"))
    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert found["n"] == (4, 4)
    assert found["value"] == pytest.approx(expected, rel=1e-4)


def test_embeddings_on_disk_are_not_computed_again(clip, tmp_path, monkeypatch):
    images, _ = written(tmp_path / "images", 0)
    before = ClipSets(str(clip), tmp_path / "rows").images(images, "set")
    monkeypatch.delattr(ClipModel, "images")
    after = ClipSets(str(clip), tmp_path / "rows").images(images, "set")
    np.testing.assert_array_equal(after, before)
    assert np.isnan(after[:, 0]).tolist() == [False, False, True, False, False]
