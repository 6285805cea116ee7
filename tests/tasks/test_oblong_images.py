"""Images whose codes have other numbers of rows and columns, from pixels to training."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.preparation import prepare
from cogview_jax.tasks.training import run
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir

#: Height and width of an image, and its centre of aspect ratio 2 : 3 (left, top, right, bottom).
CENTRES = (
    ((32, 56), (4, 0, 52, 32)),
    ((40, 24), (0, 12, 24, 28)),
    ((60, 48), (0, 14, 48, 46)),
    ((16, 24), (0, 0, 24, 16)),
)


@pytest.fixture(scope="module")
def oblong(chain, tmp_path_factory):
    """A config of 4 x 6 codes an image, 2 x 2 of them a row, whose store is prepared."""
    folder = tmp_path_factory.mktemp("oblong")
    generator = np.random.default_rng(0)
    lines = []
    for i, (shape, _) in enumerate(CENTRES):
        # Coarse noise, so that codes differ.
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(shape[::-1]).save(folder / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "caption": "a red circle"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    config = json.loads((chain.run / "config.json").read_text())
    config["data"]["source"]["path"] = str(folder)
    config["data"] |= {
        "image_grid": [4, 6],
        "store": str(folder / "tokens"),
        "text_tokenizer": str(chain.store / "tokenizers" / "text.model"),
    }
    config["layout"]["grid"] = 2
    config["train"] |= {"steps": 2, "sample_every": 0}
    experiment = read_experiment(config)
    prepare(experiment, folder / "tokens")
    return experiment


def changed(experiment, section="data", **changes):
    part = dataclasses.replace(getattr(experiment, section), **changes)
    return dataclasses.replace(experiment, **{section: part})


def expected_codes(experiment, number, rows, columns):
    """The codes of an image that Pillow has cropped and resized."""
    image = Image.open(f"{experiment.data.source.path}/{number}.png")
    size = (4 * columns, 4 * rows)
    part = image.crop(CENTRES[number][1]).resize(size, Image.Resampling.BICUBIC)
    return cogview_jax.load(experiment.data.image_tokenizer).encode(np.asarray(part)[None])[0]


def test_records_are_the_codes_of_the_centre(oblong):
    store = TokenStore(oblong.data.store)
    assert (store.meta["grid"], store.meta["grids"]) == ([4, 6], [[4, 6]])
    assert store.manifest["plan"]["grids"] == [[4, 6]]
    assert len(store) == len(CENTRES)
    for i in range(len(store)):
        codes = expected_codes(oblong, i, 4, 6)
        assert len(np.unique(codes)) > 2
        np.testing.assert_array_equal(store[i].codes.reshape(4, 6), codes)


def test_rows_are_windows_from_everywhere(oblong, tmp_path):
    task = TransformerTask(oblong, Workdir(tmp_path))
    record = task.source()[0]
    # Every cell another number, so that a window tells its place.
    record = dataclasses.replace(record, codes=np.arange(24, dtype=np.int32))
    limit, places = 24, set()
    oblong_codes = np.arange(24).reshape(4, 6)
    task.layout = dataclasses.replace(
        task.layout, vocabulary=dataclasses.replace(task.layout.vocabulary, codes=limit)
    )
    for seed in range(300):
        row = task.transform(record, np.random.default_rng(seed))
        window = row.tokens[row.tokens < limit].reshape(2, 2)
        top, left = divmod(int(window[0, 0]), 6)
        np.testing.assert_array_equal(window, oblong_codes[top : top + 2, left : left + 2])
        places.add((top, left))
    assert places == {(top, left) for top in range(3) for left in range(5)}


def test_an_oblong_store_trains(oblong, tmp_path):
    run(oblong, str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 2
    # Nothing is learned yet: an id of 16 is about as likely as any other.
    assert 0 < last["image_loss"] < 2 * np.log(oblong.vocabulary.size)
    assert Bundle(tmp_path / "run" / "bundle").transformer().layout.grid == 2
    run(oblong, str(tmp_path / "run"))  # the config is known again, and all is done


def test_super_resolution_has_both_sizes(oblong, tmp_path):
    large = changed(oblong, "layout", task="super_resolution")
    large = changed(large, image_grid=(8, 12), store=str(tmp_path / "tokens"))
    with pytest.raises(
        InputError, match=r"data.image_grid \(8, 13\) .* even numbers for super_res"
    ):
        changed(large, image_grid=(8, 13))
    prepare(large, tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    assert (store.meta["grid"], store.meta["grids"]) == ([8, 12], [[4, 6], [8, 12]])
    task = TransformerTask(large, Workdir(tmp_path))
    record = task.source()[2]
    small, whole = expected_codes(large, 2, 4, 6), expected_codes(large, 2, 8, 12)
    np.testing.assert_array_equal(record.codes, np.concatenate([small.ravel(), whole.ravel()]))
    for seed in range(5):
        row = task.transform(record, np.random.default_rng(seed))
        codes = row.tokens[row.tokens < large.vocabulary.codes]
        assert any(
            np.array_equal(codes[:1], small[y, x : x + 1])
            and np.array_equal(codes[1:], whole[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel())
            for y in range(4)
            for x in range(6)
        )


def test_other_grids_than_the_store_s_are_refused(oblong, tmp_path):
    with pytest.raises(
        InputError, match=r"image_grid \(4, 1\) with layout.grid 2: expected at lea"
    ):
        changed(oblong, image_grid=(4, 1))
    for other in ((6, 4), 4, 0):
        task = TransformerTask(changed(oblong, image_grid=other), Workdir(tmp_path))
        with pytest.raises(
            InputError, match=r"has grid \(4, 6\), .* --config.data.image_grid=4,6$"
        ):
            task.source()
    turned = changed(oblong, image_grid=(6, 4))
    with pytest.raises(
        InputError, match=r"something else: grids was \[\[4, 6\]\], is \[\[6, 4\]\]"
    ):
        prepare(turned, shutil.copytree(oblong.data.store, tmp_path / "tokens"))


def test_equal_sides_are_a_square(chain, tmp_path):
    """A square is written as one number, as in stores of earlier versions."""
    config = json.loads((chain.run / "config.json").read_text())
    square = changed(read_experiment(config), image_grid=(4, 4))
    store = shutil.copytree(chain.store, tmp_path / "tokens")
    (store / "manifest.json").unlink()
    prepare(square, store)
    manifest = (store / "manifest.json").read_bytes()
    assert manifest == (chain.store / "manifest.json").read_bytes()
    assert json.loads(manifest)["meta"]["grids"] == [4]
    assert "grids" not in json.loads(manifest)["plan"]
