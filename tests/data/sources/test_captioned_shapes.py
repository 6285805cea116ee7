"""The prepared data set: the drawings bit by bit, one folder a setting, and nothing half done."""

import io
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cogview_jax.data.sources.captioned_shapes import prepare
from cogview_jax.runtime.errors import InputError
from cogview_jax.shapes import scenes as shapes

SETTINGS = {"size": 32, "train_count": 12, "held_out_count": 5, "seed": 3}


def records(folder, split) -> list[dict]:
    source = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def folder(data_dir):
    return prepare(data_dir, **SETTINGS)


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("held_out", 5)])
def test_records_are_the_drawings(folder, split, count):
    read = records(folder, split)
    assert len(read) == count
    for i, record in enumerate(read):
        scene, image = shapes.drawing(3, split, i, 32)
        assert record["image"].startswith(b"\x89PNG")
        assert (np.asarray(Image.open(io.BytesIO(record["image"]))) == image).all()
        assert record["caption_en"].decode() == shapes.caption(scene, "en")
        assert shapes.parse_caption(record["caption_zh"].decode()) == scene
        assert record["index"] == i


def test_a_prepared_set_is_not_drawn_again(data_dir, folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(data_dir, **SETTINGS) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_same_settings_give_the_same_data(folder, tmp_path):
    again = prepare(tmp_path, **SETTINGS)
    assert records(again, "train") == records(folder, "train")


@pytest.mark.parametrize("change", [{"size": 16}, {"train_count": 13}, {"seed": 4}])
def test_other_settings_lie_elsewhere(data_dir, folder, change):
    other = prepare(data_dir, **{**SETTINGS, **change})
    assert other != folder
    assert len(records(folder, "train")) == 12
    assert records(other, "held_out") != records(folder, "held_out") or "train_count" in change


def test_a_killed_run_starts_again(tmp_path):
    settings = {"size": 16, "train_count": 30, "held_out_count": 1, "seed": 0}
    code = (
        "import time\n"
        "from cogview_jax.data.sources.captioned_shapes import prepare\n"
        "from cogview_jax.shapes import scenes\n"
        "whole = scenes.drawing\n"
        "scenes.drawing = lambda *args: time.sleep(600) if args[2] == 9 else whole(*args)\n"
        f"prepare({str(tmp_path)!r}, **{settings})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("*incomplete*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("*incomplete*")), "it was killed before it had begun"
    folder = prepare(tmp_path, **settings)
    assert not list(tmp_path.rglob("*incomplete*"))
    assert len(records(folder, "train")) == 30


def test_only_progress_is_printed(tmp_path, capfd):
    prepare(tmp_path, **SETTINGS)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert "12/12" in lines[0]
    assert "5/5" in lines[1]


@pytest.mark.parametrize("change", [{"size": 8}, {"train_count": 0}, {"seed": -1}])
def test_settings_are_checked(tmp_path, change):
    (field, value) = next(iter(change.items()))
    with pytest.raises(InputError, match=f"{field} {value}: expected at least"):
        prepare(tmp_path, **{**SETTINGS, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not readable as the drawings it held .*delete it"),
        ('{"version": [1]}', "not readable as the drawings it held .*delete it"),
        ("[]", "expected a JSON object"),
        ('{"vers', "damaged: not readable as JSON"),
    ],
)
def test_a_damaged_description_is_one_line(folder, tmp_path, text, message):
    copy = tmp_path / folder.parents[1].name / folder.parent.name / folder.name
    shutil.copytree(folder, copy)
    (copy / "dataset_info.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path, **SETTINGS)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)
