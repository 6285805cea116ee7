"""Runs on mixtures: of sources, of token stores, resumed, measured by part, and refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.mixture_config import MixedStore, SourceMixture, SourcePart
from cogview_jax.data.sources.shapes import Shapes
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.earlier_run import resolve
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.preparation import prepare_run
from cogview_jax.tasks.training import run
from cogview_jax.tasks.workdir import Workdir, read_settings, resolved_settings
from run_files import logged


def changed(experiment, **sections):
    """An experiment with other settings, by section."""
    for name, settings in sections.items():
        section = dataclasses.replace(getattr(experiment, name), **settings)
        experiment = dataclasses.replace(experiment, **{name: section})
    return experiment


def by_step(workdir):
    """The metrics of each step."""
    found = {}
    for line in logged(workdir):
        found.setdefault(line["step"], {}).update(line)
    return found


@pytest.fixture(scope="module")
def codec(chain, tmp_path_factory):
    """The chain's image tokenizer on its folder and on drawings, of which there are two thirds."""
    experiment = read_settings(chain.codec / "config.json")
    place = str(tmp_path_factory.mktemp("drawings"))
    parts = {
        "folder": SourcePart(Folder(path=str(chain.images))),
        "drawings": SourcePart(Shapes(path=place, size=16, train_count=50), weight=2.0),
    }
    return changed(
        experiment,
        data={
            "source": SourceMixture(parts=parts, require_captions=False),
            "validation_share": 0.2,
        },
        train={"steps": 4, "log_every": 1, "checkpoint_every": 2, "validate_every": 2, "keep": 2}
        | {"validation_images": 9},
    )


def test_a_codec_s_run_on_a_mixture_resumes_exactly_and_is_measured_by_part(
    chain, codec, tmp_path, capfd
):
    assert run(codec, str(tmp_path / "run")) == 0
    said = capfd.readouterr().err
    assert "mixture of 2 by shares of the rows: drawings (0.6667): 50 records" in said
    rows = 4 * codec.train.global_batch
    assert f"parts: {rows} rows in all steps read drawings" in said
    counts = r"6 of \d+ held-out images of part drawings, 3 of \d+ held-out images of part folder"
    assert re.search(f"validation: {counts} every 2 steps", said)
    whole = by_step(tmp_path / "run")
    # Of nine images six are drawings: the mean of all is that of the parts by their counts.
    for row in (whole[2], whole[4]):
        of_parts = 6 * row["validation_l2/drawings"] + 3 * row["validation_l2/folder"]
        assert row["validation_l2"] == pytest.approx(of_parts / 9, rel=1e-5)
    # As it was after step 2, with the folder of images at another place.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for name in ("bundle", "checkpoints/4"):
        shutil.rmtree(tmp_path / "again" / name)
    shutil.copytree(chain.images, tmp_path / "images")
    moved = codec.data.source.parts | {"folder": SourcePart(Folder(path=str(tmp_path / "images")))}
    source = dataclasses.replace(codec.data.source, parts=moved)
    assert run(changed(codec, data={"source": source}), str(tmp_path / "again")) == 0
    again = by_step(tmp_path / "again")
    for step in (3, 4):
        for name in ("loss", *(name for name in whole[4] if name.startswith("validation"))):
            assert again[step].get(name) == whole[step].get(name), (step, name)
    other = moved | {"folder": dataclasses.replace(moved["folder"], weight=3.0)}
    source = dataclasses.replace(codec.data.source, parts=other)
    with pytest.raises(InputError, match=r"with data.source.parts.folder.weight = 1.0, but the c"):
        run(changed(codec, data={"source": source}), str(tmp_path / "again"))


@pytest.fixture(scope="module")
def mixed(chain, tmp_path_factory):
    """A transformer on the chain's store, and on a copy of it with a third of the rows."""
    place = tmp_path_factory.mktemp("stores") / "copy"
    shutil.copytree(chain.store, place)
    experiment = read_settings(chain.run / "config.json")
    stores = {
        "whole": MixedStore(store=str(chain.store), weight=2.0),
        "copy": MixedStore(store=str(place)),
    }
    return changed(
        experiment,
        data={"mixture": stores, "store": "", "validation_share": 0.25},
        train={"steps": 2, "log_every": 1, "validate_every": 2, "validation_records": 6},
    )


def test_a_transformer_s_run_on_token_stores(chain, mixed, tmp_path):
    assert run(mixed, str(tmp_path / "run")) == 0
    row = by_step(tmp_path / "run")[2]
    names = [name for name in row if name.startswith("validation_loss")]
    assert names == ["validation_loss", "validation_loss/copy", "validation_loss/whole"]
    assert Bundle(tmp_path / "run" / "bundle").sha256("codec") == Bundle(
        chain.store / "tokenizers"
    ).sha256("codec")
    # Both have the same held-out records: two of a copy are the first two of the other's four.
    assert row["validation_loss/copy"] != row["validation_loss/whole"]
    assert np.isfinite([row[name] for name in names]).all()
    # Those who finetune it have its tokenizers and name data of their own.
    settings = resolved_settings(mixed)
    settings["data"] |= {"from": str(tmp_path / "run"), "mixture": {}, "image_tokenizer": ""}
    found, _ = resolve(settings, {"data.from": "file"})
    assert found.data.image_tokenizer.endswith("copy/tokenizers")
    assert found.data.store == ""


def test_stores_of_other_tokenizers_are_refused(mixed, chain, tmp_path):
    shutil.copytree(chain.store, tmp_path / "other")
    own = Bundle(chain.store / "tokenizers")
    part = own.codec()
    config = dataclasses.replace(part, params={k: _doubled(v) for k, v in part.params.items()})
    write_bundle(tmp_path / "other" / "tokenizers", codec=config, text=own)
    theirs = Bundle(tmp_path / "other" / "tokenizers").sha256("codec")
    manifest = tmp_path / "other" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["meta"]["codec"] = theirs
    told.pop("content_sha256")
    manifest.write_text(json.dumps(told))
    stores = mixed.data.mixture | {"whole": MixedStore(store=str(tmp_path / "other"))}
    message = (
        rf"data.mixture.whole.store was made with codec {theirs[:12]}, but data.mixture.copy.store"
        rf" with {own.sha256('codec')[:12]}: .* prepare one of them again with the"
        r" data.image_tokenizer of the other"
    )
    with pytest.raises(InputError, match=message):
        run(changed(mixed, data={"mixture": stores}), str(tmp_path / "run"))


def _doubled(tree):
    return {k: _doubled(v) for k, v in tree.items()} if isinstance(tree, dict) else 2 * tree


def test_what_is_no_store_is_refused_by_its_name(mixed, chain, tmp_path):
    (tmp_path / "rows.bin").write_bytes(b"1234")
    for store, message in (
        (tmp_path / "none", rf"data.mixture.x.store = '{tmp_path}/none': .*no token store"),
        (tmp_path / "rows.bin", "data.mixture.x.store = .*rows.bin': expected a token store"),
    ):
        stores = {"x": MixedStore(store=str(store))}
        with pytest.raises(InputError, match=message):
            run(changed(mixed, data={"mixture": stores}), str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"data.mixture names token stores \(whole, copy\)"):
        prepare_run(mixed, Workdir(tmp_path / "run"))
    source = SourceMixture(parts={"a": SourcePart(Folder(path=str(chain.images)))})
    with pytest.raises(InputError, match=r"data.source.kind = 'mixture' \(a\): a token store has"):
        prepare_run(
            changed(mixed, data={"mixture": {}, "source": source}), Workdir(tmp_path / "run")
        )
    assert not (tmp_path / "run" / "bundle").exists()
    assert len(TokenStore(chain.store)) == 32


FOLDER = {"kind": "folder", "path": "x"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        *(
            ({"a": {"source": FOLDER, "weight": weight}}, rf"a.weight = {weight}: expected above 0")
            for weight in (0.0, -1.0, np.nan, np.inf)
        ),
        ({"a": {"source": {"kind": "foldr"}}}, "a.source.kind = 'foldr': choices are arrow, coco"),
        ({"a": {"weight": 1.0}}, "a lacks source"),
        ({"a": {"source": FOLDER, "wight": 1.0}}, "a.wight: no such setting; did you mean weight"),
        ({"a-b": {"source": FOLDER}}, " has a part 'a-b': expected a name of letters"),
        ({"a": {"source": {"kind": "mixture"}}}, "a.source.kind = 'mixture': a part of a mixture"),
    ],
)
def test_a_wrong_part_is_refused_in_one_line(parts, message):
    config = {
        "stage": "image_tokenizer",
        "train": {"steps": 1, "global_batch": 8},
        "data": {"source": {"kind": "mixture", "parts": parts}},
    }
    with pytest.raises(InputError, match=rf"config\.data\.source\.parts\.?{message}") as error:
        read_experiment(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": {"a": {"store": "x", "weight": 0}}}, "mixture.a.weight = 0.0: expected above"),
        ({"mixture": {"a": {"weight": 1.0}}}, "mixture.a.store is empty: name a token store"),
        ({"mixture": {"a": {"store": "x"}}, "store": "y"}, "store = 'y' beside the mixture of a"),
        ({"mixture": {"from": {"store": "x"}}}, "mixture has a part 'from': expected a name"),
    ],
)
def test_a_wrong_store_is_refused_in_one_line(data, message):
    config = {
        "stage": "transformer",
        "train": {"steps": 1, "global_batch": 8},
        "data": {"source": FOLDER} | data,
    }
    with pytest.raises(InputError, match=rf"config.data\.{message}"):
        read_experiment(config)


def test_an_error_of_a_part_names_the_part_s_setting(tmp_path):
    cases = {
        "data.source.parts.a.source.path is empty: name": Folder(),
        f"data.source.parts.a.source.path = '{tmp_path}/x'": Folder(path=f"{tmp_path}/x"),
        f"data.source.parts.a: path='{tmp_path}': expected images": Folder(path=str(tmp_path)),
    }
    for message, source in cases.items():
        with pytest.raises(InputError) as error:
            SourceMixture(parts={"a": SourcePart(source)}).open()
        assert message in str(error.value)
    with pytest.raises(InputError, match=r"data.source.parts is empty: name the parts"):
        SourceMixture().open()
