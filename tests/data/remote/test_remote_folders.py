"""Folders with a listing, and COCO's images, on a server that need not know byte ranges."""

import json

import numpy as np
import pytest

from cogview_jax.data.records import BadRecord
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.sources import folder_listing
from cogview_jax.data.sources.coco import Coco
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import SourceConfig, readers_of
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError
from tar_files import png


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a b").mkdir()
    names = ["a b/1#2?.png", "%2e%2e.png", "图.png"]
    for value, name in enumerate(names):
        (tmp_path / name).write_bytes(png(value))
    lines = [{"file": name, "caption": f"number {i}"} for i, name in enumerate(names)]
    write_listing(tmp_path, lines)
    return tmp_path


def write_listing(folder, lines):
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "captions.jsonl").write_text(text)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_listed_folder_is_that_on_the_disk(server, folder, monkeypatch, in_memory, ranges):
    if not in_memory:
        monkeypatch.setattr(folder_listing, "IN_MEMORY", 0)
    server.everywhere = None if ranges else "whole"
    server.faults.extend([503, "short"])
    remote = Folder(path=server.url, remote=RemoteConfig(requests=5)).open()
    local = Folder(path=str(folder)).open()
    assert (readers_of(remote), readers_of(local)) == (5, 1)
    assert len(remote) == 3
    assert remote.describe() == "3 lines of captions.jsonl"
    for i in range(3):
        assert (remote.key(i), remote.captions(i)) == (local.key(i), local.captions(i))
        np.testing.assert_array_equal(remote[i].image, np.full((8, 6, 3), (i, 1, 2), np.uint8))


def test_a_csv_of_imagefolder(server, tmp_path):
    (tmp_path / "0.png").write_bytes(png(5))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,five\n")
    source = Folder(path=f"{server.url}/").open()
    assert source[0].captions == ("five",)
    assert source[0].image[0, 0, 0] == 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "image file not found"),
        ("../secret.png", "leads out of the folder"),
        ("/secret.png", "leads out of the folder"),
        ("http://127.0.0.1:9/x.png", "image file not found"),
        ("//127.0.0.1:9/x.png", "leads out of the folder"),
        ("%2e%2e/secret.png", "image file not found"),
    ],
)
def test_a_listing_leads_nowhere_else(server, tmp_path, name, said):
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    write_listing(tmp_path / "set", [{"file": name, "caption": "x"}])
    source = Folder(path=f"{server.url}/set").open()
    with pytest.raises(BadRecord, match=said):
        source[0]
    assert all(path.startswith("/set/") for _, path, _, _ in server.asked)


def test_a_refused_image_ends_the_run(server, folder):
    source = Folder(path=server.url).open()
    server.everywhere = 403
    with pytest.raises(InputError, match="403 Forbidden"):
        source[0]


def test_a_folder_without_a_listing(server, tmp_path):
    (tmp_path / "0.png").write_bytes(png(5))
    with pytest.raises(InputError, match=r"expected a listing in it, one of captions\.jsonl"):
        Folder(path=server.url).open()


@pytest.mark.parametrize("local", [True, False])
def test_images_of_coco(server, tmp_path, local):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/7.png").write_bytes(png(7))
    path = tmp_path / "captions_x.json"
    found = {
        "images": [{"id": 1, "file_name": "7.png"}, {"id": 2, "file_name": "8.png"}],
        "annotations": [{"image_id": 1, "caption": "seven"}, {"image_id": 2, "caption": "eight"}],
    }
    path.write_text(json.dumps(found))
    given = str(path) if local else f"{server.url}/captions_x.json"
    source = Coco(path=given, image_dir=f"{server.url}/images").open()
    assert (len(source), readers_of(source)) == (2, 32)
    assert source[0].key == "captions_x.json/7.png"
    assert (source[0].captions, source[0].image[0, 0, 0]) == (("seven",), 7)
    with pytest.raises(BadRecord, match=r"8\.png: image file not found"):
        source[1]


def test_coco_at_an_address_names_its_images():
    with pytest.raises(InputError, match=r"^config\.image_dir is empty: name the folder"):
        build(SourceConfig, {"kind": "coco", "path": "https://h/captions_x.json"})
