"""Runs go on where their data lies at another path, and nowhere else."""

import dataclasses
import json
import shutil

import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.filters import FilterConfig
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.source import listing
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sealed import SEAL, sealed
from cogview_jax.tasks.contents import contents
from cogview_jax.tasks.preparation import prepare
from cogview_jax.tasks.training import run
from cogview_jax.tasks.workdir import Workdir, read_settings


def changed(experiment, **data):
    """An experiment with other settings of its data."""
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **data))


def copied(workdir, place):
    """The experiment of a finished run, whose workdir is copied to `place`."""
    shutil.copytree(workdir, place)
    return read_settings(place / "config.json")


def moved_images(chain, place):
    """The folder of images at another path."""
    shutil.copytree(chain.images, place)
    source = read_settings(chain.run / "config.json").data.source
    return dataclasses.replace(source, path=str(place))


def test_the_listing_tells_folders_apart_by_their_records(chain, tmp_path):
    source = moved_images(chain, tmp_path / "images").open()
    assert listing(source) == listing(FolderSource(chain.images))
    lines = (tmp_path / "images" / "captions.jsonl").read_text().splitlines()
    for other in (lines[:-1], lines[1:], [*lines[1:], lines[0]]):
        (tmp_path / "images" / "captions.jsonl").write_text("\n".join(other))
        assert listing(FolderSource(tmp_path / "images")) != listing(FolderSource(chain.images))


def test_a_transformers_run_goes_on_with_the_same_contents_elsewhere(chain, tmp_path, capfd):
    experiment = copied(chain.run, tmp_path / "run")
    (tmp_path / "run" / "tokens").rename(tmp_path / "store")
    there = changed(
        experiment,
        store=str(tmp_path / "store"),
        image_tokenizer=str(chain.run / "bundle"),
        text_tokenizer=str(chain.run / "bundle" / "text.model"),
        source=moved_images(chain, tmp_path / "images"),
    )
    assert run(there, str(tmp_path / "run")) == 0
    assert "12 steps were done before" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["store", "image_tokenizer", "text_tokenizer", "source"])
def test_other_contents_are_refused_by_name(chain, tmp_path, name):
    experiment = copied(chain.run, tmp_path / "run")
    other = tmp_path / "other"
    if name == "store":
        shutil.copytree(tmp_path / "run" / "tokens", other)
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["plan"]["precision"] = "bfloat16"
        manifest.pop(SEAL)
        (other / "manifest.json").write_text(json.dumps(sealed(manifest)))
        theirs = str(other)
    elif name == "image_tokenizer":
        shutil.copytree(chain.codec / "bundle", other)
        described = json.loads((other / "bundle.json").read_text())
        described["parts"]["codec"]["sha256"] = "0" * 64
        described.pop(SEAL)
        (other / "bundle.json").write_text(json.dumps(sealed(described)))
        theirs = str(other)
    elif name == "text_tokenizer":
        other.write_bytes((chain.store / "tokenizers" / "text.model").read_bytes() + b"\x12\x00")
        theirs = str(other)
    else:
        theirs = moved_images(chain, other)
        (other / "captions.jsonl").write_text('{"file": "1.png", "caption": "one"}')
    key = "data.source.path" if name == "source" else f"data.{name}"
    with pytest.raises(InputError, match=rf"{key} = '.*' \(content .*{other}.* something else \("):
        run(changed(experiment, **{name: theirs}), str(tmp_path / "run"))


def test_a_codecs_run_goes_on_with_the_same_images_elsewhere(chain, tmp_path, capfd):
    experiment = copied(chain.codec, tmp_path / "run")
    source = dataclasses.replace(experiment.data.source, path=str(tmp_path / "drawings"))
    assert run(changed(experiment, source=source), str(tmp_path / "run")) == 0
    assert "12 steps were done before" in capfd.readouterr().err


def test_a_store_is_finished_from_the_same_images_elsewhere(chain, tmp_path):
    experiment = read_settings(chain.run / "config.json")
    store = shutil.copytree(chain.store, tmp_path / "tokens")
    for name in ("manifest.json", "tokens-00003.array_record", "tokens-00003.json"):
        (store / name).unlink()
    moved = moved_images(chain, tmp_path / "images")
    prepare(changed(experiment, source=moved), store)
    for name in ("manifest.json", "tokens-00003.array_record"):
        assert (store / name).read_bytes() == (chain.store / name).read_bytes()
    lines = (tmp_path / "images" / "captions.jsonl").read_text().splitlines()
    (tmp_path / "images" / "captions.jsonl").write_text("\n".join(reversed(lines)))
    for source in (moved, dataclasses.replace(moved, caption="all the same")):
        with pytest.raises(InputError, match="a token store made from something else: "):
            prepare(changed(experiment, source=source), store)


def test_the_hashes_are_those_of_the_parts(chain):
    noted = json.loads((chain.run / "contents.json").read_text())
    bundle = Bundle(chain.run / "bundle")
    assert noted["data.image_tokenizer"] == bundle.sha256("codec")
    assert noted["data.text_tokenizer"] == bundle.sha256("text")
    assert noted["data.source.path"] == listing(FolderSource(chain.images))
    assert noted.keys() == {f"data.{x}" for x in ("store", "image_tokenizer")} | {
        "data.text_tokenizer",
        "data.source.path",
    }


def test_a_run_goes_on_with_the_same_names_of_left_out_records_elsewhere(chain, tmp_path, capfd):
    names, moved, other = (tmp_path / name for name in ("names.txt", "moved.txt", "other.txt"))
    names.write_text("train/3\n")
    moved.write_text("train/3\n")
    other.write_text("train/4\n")

    def without(file):
        experiment = read_settings(chain.codec / "config.json")
        return changed(experiment, filter=FilterConfig(exclude=str(file)))

    workdir = tmp_path / "codec"
    shutil.copytree(chain.codec, workdir)
    before = without(names)
    Workdir(workdir).claim(before, contents(before, Workdir(workdir), before.data.source.open()))
    assert run(without(moved), str(workdir)) == 0
    assert "12 steps were done before" in capfd.readouterr().err
    with pytest.raises(InputError, match=r"data\.filter\.exclude = .*holds something else"):
        run(without(other), str(workdir))
