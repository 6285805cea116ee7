"""A kind of source that cannot read what its path names says which kind can."""

import itertools

import pytest

from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import SourceConfig, opened
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.runtime.errors import InputError

#: Files of each kind; the first is of that kind alone.
FILES = {
    "coco": ("annotations/captions_val2017.json", "val2017/1.png"),
    "lmdb": ("data.mdb", "lock.mdb"),
    "tfds": ("coco/1.0.0/features.json", "coco/1.0.0/dataset_info.json"),
    "arrow": ("train/0.arrow", "train/dataset_info.json"),
    "parquet": ("data/0.parquet", "example.png"),
    "webdataset": ("0.tar", "0.json"),
    "folder": ("1.png", "1.txt"),
}
PAIRS = [pair for pair in itertools.product([*FILES, "shapes"], FILES) if pair[0] != pair[1]]


@pytest.mark.parametrize(("chosen", "right"), PAIRS)
def test_the_right_kind_is_named_where_another_was_chosen(tmp_path, chosen, right):
    files = [tmp_path / "set" / name for name in FILES[right]]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    paths = [tmp_path / "set", files[0]]
    if chosen in ("webdataset", "parquet", "folder"):
        paths += [f"{files[0].parent}/*{files[0].name[1:]}", f"{files[0]},{files[0]}"]
    for path in paths:
        with pytest.raises(InputError) as refused:
            opened(SourceConfig.kinds[chosen](path=str(path)))
        message = str(refused.value)
        assert message.endswith(f" is of another kind: --config.data.source.kind={right}")
        assert "\n" not in message


def test_no_other_kind_is_named_where_files_of_the_chosen_one_are_damaged(tmp_path):
    for name in ("0.tar", "1.png"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"0\.tar") as refused:
        opened(WebDataset(path=str(tmp_path)))
    assert "another kind" not in str(refused.value)


def test_the_name_of_a_prepared_data_set_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "coco_captions" / "2014").mkdir(parents=True)
    name = "coco_captions/2014:1.1.0"
    with pytest.raises(InputError, match=f"=tfds --config.data.source.name={name}"):
        opened(Folder(path=name))
