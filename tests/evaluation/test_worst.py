"""Which captions of a folder fit their images least, on the bundles of the chain."""

import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax import load
from cogview_jax.data.transforms import center_crop
from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark, table
from cogview_jax.evaluation.captioned_sets import drawn_captions
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from command_runs import retold

WORST = load_benchmark("worst")


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    return str(retold(chain, tmp_path_factory.mktemp("captioner") / "bundle", "caption"))


def test_pairs_come_in_the_order_of_their_losses(captioner, tmp_path, capsys):
    """Seven pairs, one of them without an image."""
    folder, captioned = tmp_path / "mine", drawn_captions(7, 24, 2)
    folder.mkdir()
    for number, image in enumerate(captioned.images.read(range(7))):
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(captioned.texts[number], encoding="utf-8")
    (folder / "3.png").write_bytes(b"no image")
    options = Options(100, images=ImageOptions(real=str(folder)), rerank_with=captioner)
    evaluate(WORST, None, str(tmp_path / "r.json"), options)
    report = json.loads((tmp_path / "r.json").read_text())
    good = [0, 1, 2, 4, 5, 6]
    squares = [center_crop(next(captioned.images.read([number])), 16) for number in good]
    losses = load(captioner).score(np.stack(squares), [captioned.texts[i] for i in good])
    order = np.argsort(-losses)
    assert [pair["file"] for pair in report["worst"]] == [f"{good[i]}.png" for i in order]
    captions = [captioned.texts[good[i]] for i in order]
    assert [pair["caption"] for pair in report["worst"]] == captions
    found = [pair["cap_loss"] for pair in report["worst"]]
    np.testing.assert_allclose(found, losses[order], rtol=1e-5)
    assert report["cap_loss"]["mean"] == pytest.approx(losses.mean(), rel=1e-5)
    assert report["cap_loss"]["quantiles"]["50%"] == pytest.approx(np.median(losses), rel=1e-5)
    assert table(WORST, report) in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text()
    ends = [(losses.max(), 0), (losses.min(), -1)]
    files = [report["worst"][i]["file"] for _, i in ends]
    first, last = (
        page.index(f"<figcaption>{loss:.3f} {file}: {captions[i]}")
        for (loss, i), file in zip(ends, files, strict=True)
    )
    assert first < last
    assert f"<tr><td>{files[0]}</td><td>{captions[0]}</td><td class" in page


@pytest.mark.parametrize(
    ("options", "bundle", "message"),
    [
        ({}, False, "worst needs a caption bundle: --rerank_with BUNDLE"),
        ({"rerank_with": True}, False, "worst needs --real: a folder of captioned images, or"),
        ({"rerank_with": True}, True, "worst takes no --bundle: the caption bundle is"),
    ],
)
def test_what_is_missing_or_takes_no_part_is_named(captioner, tmp_path, options, bundle, message):
    given = {name: captioner for name in options}
    with pytest.raises(InputError, match=message):
        evaluate(WORST, captioner if bundle else None, str(tmp_path / "r.json"), Options(**given))
    assert not (tmp_path / "r.json").exists()
