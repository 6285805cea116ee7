"""Arrow files as datasets saves them: where pyarrow finds each image, and what can be wrong."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.arrow import Arrow
from cogview_jax.data.sources.source import captions_of, readable
from cogview_jax.runtime.errors import InputError
from table_files import FIXTURES, image_table
from tar_files import png


def source(path, **settings):
    return Arrow(path=str(path), **settings).open()


def write_arrow(path, table, *, rows=100, form="stream", compression=None):
    """Writes a table in batches of `rows`, as a stream or with an index."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    opened = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[form]
    with opened(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.fixture
def saved(tmp_path):
    return shutil.copytree(FIXTURES / "saved", tmp_path / "saved")


@pytest.mark.parametrize(("split", "count"), [("train", 5), ("test", 2)])
def test_a_set_that_the_datasets_library_saved(saved, split, count):
    found = source(saved, split=split)
    assert len(found) == len(source(saved / split)) == count
    assert found.key(1) == found[1].key == "data-00000-of-00001.arrow/1"
    assert found[1].captions == captions_of(found, 1) == ("number 1",)
    np.testing.assert_array_equal(found[1].image, np.full((8, 6, 3), (1, 1, 2), np.uint8))
    said = f"{count} records of 1 Arrow file, {count} with a caption; ignored 2: 2 of ending .json"
    assert found.describe().startswith(said)


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        pa.binary(),
        pa.large_binary(),
    ],
    ids=str,
)
def test_every_place_holds_what_pyarrow_reads(tmp_path, form, kind):
    rng = np.random.default_rng(5)
    rows = [rng.bytes(int(size)) for size in rng.integers(1, 4000, 50)]
    rows[7] = rows[20] = None
    if pa.types.is_struct(kind):
        rows = [{"bytes": row, "path": None} for row in rows]
        rows[20] = None
    table = pa.table({"image": pa.array(rows, kind), "text": [str(i) for i in range(50)]})
    path = write_arrow(tmp_path / "a.arrow", table, rows=13, form=form)
    index = source(path)._index
    assert len(index) == 50
    for i, row in enumerate(rows):
        expected = row["bytes"] if isinstance(row, dict) else row
        if expected is None:
            with pytest.raises(BadRecord, match=f"a.arrow/{i}: no image: its bytes are null"):
                index[i]
            continue
        assert index.read(index[i]) == expected
        assert index[i].captions == (str(i),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "split='dev': choices for .*saved are train, test"),
        (
            {"split": "../saved/train"},
            "split='../saved/train': choices for .*saved are train, test",
        ),
        ({"caption_keys": ("title",)}, r"no column 'title'; columns are image \(struct<.*text \("),
    ],
)
def test_settings_that_do_not_fit(saved, settings, message):
    with pytest.raises(InputError, match=message):
        source(saved, **settings)


def test_a_file_that_the_set_lacks_is_missed(saved):
    state = saved / "train" / "state.json"
    named = json.loads(state.read_text())
    named["_data_files"].append({"filename": "data-00001-of-00002.arrow"})
    state.write_text(json.dumps(named))
    with pytest.raises(InputError, match=r"saved/train: 'data-00001-of-00002.arrow' is missing"):
        source(saved)


def test_compressed_batches_are_refused(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", image_table(range(5)), compression="zstd")
    with pytest.raises(InputError, match=r"a\.arrow: its batches are compressed: save them anew"):
        source(path)


def test_damaged_files_are_one_line_or_bad_records(tmp_path):
    data = write_arrow(tmp_path / "whole", image_table(range(4))).read_bytes()
    path, rng = tmp_path / "a.arrow", np.random.default_rng(0)
    cases = [data[:n] for n in range(0, len(data) - 8, 293)]
    for place in rng.integers(0, len(data), 20):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        cases.append(bytes(changed))
    lines = []
    for case in cases:
        path.write_bytes(case)
        try:
            list(readable(source(path, index=str(tmp_path / "index"))))
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 5
    assert all(str(path) in line and "\n" not in line for line in lines)


def test_null_images_and_captions_are_bad_records(tmp_path):
    write_arrow(tmp_path / "a.arrow", image_table([0, None, 2], text=["zero", "one", None]))
    found = source(tmp_path)
    assert found[0].captions == ("zero",)
    for i, message in ((1, "no image: its bytes are null"), (2, "empty caption")):
        with pytest.raises(BadRecord, match=f"^a.arrow/{i}: {message}"):
            found[i]


def test_a_table_without_a_row(tmp_path):
    write_arrow(tmp_path / "a.arrow", pa.table({"image": pa.array([], pa.binary()), "text": []}))
    with pytest.raises(InputError, match="no row in 1 Arrow file"):
        source(tmp_path)
    write_arrow(tmp_path / "a.arrow", pa.table({"image": [png(1)]}))
    assert source(tmp_path, require_captions=False)[0].image[0, 0].tolist() == [1, 1, 2]
