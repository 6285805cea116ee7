"""The embedded emoji: what is in the sheets, what it is called, and which pairs are held out."""

import json
import re
import shutil
import threading
import tomllib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFont, features

from cogview_jax.data import emoji_set
from cogview_jax.data.emoji_set import STYLES, caption, concepts, pairs, parse_caption, sheet, tile
from cogview_jax.runtime.errors import InputError
from emoji_tiles import cropped

SHEETS = ("noto", "flat", "3d", "high_contrast")
#: Two styles by number, and the share of concepts whose outline in the first is nearest to its like
#: in the second: measured as .29, .93 and .43.
LIKENESS = [(0, 1, 0.2), (1, 2, 0.85), (3, 2, 0.3)]


@pytest.fixture
def forgotten():
    """Sheets are decoded anew, in the test and after it."""
    emoji_set._decoded.cache_clear()
    yield
    emoji_set._decoded.cache_clear()


def test_there_are_256_concepts_with_names_of_their_own():
    listed = json.loads((emoji_set.FOLDER / "concepts.json").read_text("utf-8"))
    assert len(concepts()) == len(listed) == 256
    for field in ("code", "en", "zh"):
        assert len({entry[field].casefold() for entry in listed}) == 256
    for concept, entry in zip(concepts(), listed, strict=True):
        assert (concept.code, concept.en, concept.zh) == tuple(entry.values())
        assert re.fullmatch(r"[0-9a-f]+(-[0-9a-f]+)*", concept.code)
        assert concept.en.isascii()
        assert re.search(r"[\u4e00-\u9fff]", concept.zh)
    names = {concept.en: concept for concept in concepts()}
    assert (names["butterfly"].code, names["butterfly"].zh) == ("1f98b", "蝴蝶")
    assert names["butterfly"].code == f"{ord('🦋'):x}"
    assert names["rocket"].code == f"{ord('🚀'):x}"


def test_the_font_of_contact_sheets_has_all_characters(root):
    font = ImageFont.truetype(root / "cogview_jax/assets/fonts/wqy-microhei-subset.ttf", 16)
    absent = bytes(font.getmask("\ue000"))
    characters = set("".join(concept.en + concept.zh for concept in concepts())) - {" "}
    assert [each for each in characters if bytes(font.getmask(each)) == absent] == []


def test_there_are_no_flags_no_skin_tones_and_no_joined_people():
    for concept in concepts():
        points = [int(part, 16) for part in concept.code.split("-")]
        assert not any(0x1F1E6 <= point <= 0x1F1FF for point in points)  # letters of flags
        assert not any(0x1F3FB <= point <= 0x1F3FF for point in points)  # skin tones
        assert not any(0x1F600 <= point <= 0x1F64F for point in points)  # faces
        assert not any(0x1F466 <= point <= 0x1F478 for point in points)  # people


def test_every_pair_is_in_one_split():
    both = Counter((*pairs("train"), *pairs("held_out")))
    assert both == Counter((concept, style) for concept in range(256) for style in range(4))
    assert (len(pairs("train")), len(pairs("held_out"))) == (768, 256)
    with pytest.raises(InputError, match=r"split 'val': choices are train, held_out"):
        pairs("val")


def test_the_held_out_pairs_follow_the_rule():
    # Concept 0 is held out in style 0, concept 1 in style 3, then in turn downwards.
    expected = [(concept, (0, 3, 2, 1)[concept % 4]) for concept in range(256)]
    assert list(pairs("held_out")) == expected
    seen = pairs("train")
    assert Counter(concept for concept, _ in seen) == dict.fromkeys(range(256), 3)
    assert Counter(style for _, style in seen) == dict.fromkeys(range(4), 192)


def test_captions_in_both_languages():
    butterfly = next(concept for concept in concepts() if concept.en == "butterfly")
    assert [(caption(butterfly, s, "en"), caption(butterfly, s, "zh")) for s in STYLES] == [
        ("butterfly in Noto style", "Noto风格的蝴蝶"),
        ("butterfly in flat style", "扁平风格的蝴蝶"),
        ("butterfly in 3D style", "立体风格的蝴蝶"),
        ("butterfly in high contrast style", "高对比度风格的蝴蝶"),
    ]
    with pytest.raises(InputError, match=r"language 'de': expected one of en, zh"):
        caption(butterfly, STYLES[0], "de")


def test_a_caption_is_read_back():
    read = {
        parse_caption(caption(concept, style, language))
        for concept in concepts()
        for style in STYLES
        for language in ("en", "zh")
        if parse_caption(caption(concept, style, language)) == (concept, style)
    }
    assert len(read) == 1024
    assert parse_caption(" 扁平风格的蝴蝶\n")[0].en == "butterfly"


@pytest.mark.parametrize(
    "text", ["", "butterfly", "butterfly in oil style", "nothing in flat style", "油画风格的蝴蝶"]
)
def test_what_is_no_caption_is_told(text):
    with pytest.raises(InputError, match=r"expected 'NAME in STYLE style'") as error:
        parse_caption(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("style", range(4))
def test_tiles_are_parts_of_the_sheets(style):
    for number in (0, 1, 15, 16, 100, 255):
        found = tile(number, style)
        assert found.shape == (64, 64, 3)
        np.testing.assert_array_equal(found, cropped(SHEETS[style], number))
    found[:] = 7  # a copy, which does no harm
    np.testing.assert_array_equal(tile(255, style), cropped(SHEETS[style], 255))
    with pytest.raises(ValueError, match="read-only"):
        sheet(STYLES[style])[0] = 0


def shapes_of(style: int) -> np.ndarray:
    """What is not white of each tile, blurred to 16 x 16 and of norm 1, as [256, 256]."""
    tiles = np.stack([tile(number, style) for number in range(256)]).astype(float)
    ink = 255 - tiles.min(-1)
    blurred = ink.reshape(256, 16, 4, 16, 4).mean((2, 4)).reshape(256, -1)
    blurred -= blurred.mean(1, keepdims=True)
    return blurred / np.linalg.norm(blurred, axis=1, keepdims=True)


@pytest.mark.parametrize(("one", "other", "least"), LIKENESS)
def test_sheets_show_the_same_concepts_in_the_same_order(one, other, least):
    # Were a sheet out of order, a concept would be nearest to its like in 1 of 256 cases.
    nearest = (shapes_of(one) @ shapes_of(other).T).argmax(1)
    assert np.mean(nearest == np.arange(256)) > least


def test_pictures_lie_on_white():
    for style in range(4):
        corners = [tile(n, style)[r, c].min() for n in range(256) for r in (0, -1) for c in (0, -1)]
        assert min(corners) > 240


def test_a_sheet_is_decoded_once_whoever_asks(forgotten, monkeypatch):
    decoded, whole = [], emoji_set.decode_image
    monkeypatch.setattr(
        emoji_set, "decode_image", lambda data, key: decoded.append(key) or whole(data, key)
    )
    threads = [threading.Thread(target=tile, args=(number, 1)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1
    assert sheet(STYLES[1]) is sheet(STYLES[1])
    assert sheet(STYLES[1]).nbytes == 1024 * 1024 * 3
    assert len(decoded) == 1


def test_a_pillow_without_webp_is_told(forgotten, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(InputError, match=r"this installation of Pillow cannot read") as error:
        tile(0, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "absent", "other"])
def test_a_damaged_sheet_is_told(forgotten, monkeypatch, tmp_path, damage):
    folder = tmp_path / "emoji"
    shutil.copytree(emoji_set.FOLDER, folder)
    path = folder / "flat.webp"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "other":
        Image.new("RGB", (64, 64)).save(path)
    else:
        path.unlink()
    monkeypatch.setattr(emoji_set, "FOLDER", folder)
    with pytest.raises(InputError, match=r"flat\.webp.*install (the package|it) again") as error:
        tile(0, 1)
    assert "\n" not in str(error.value)
    assert tile(0, 0).shape == (64, 64, 3)


def test_the_files_are_small_and_their_licences_beside_them():
    files = {path.name: path for path in emoji_set.FOLDER.iterdir()}
    pictures = {f"{style}.webp" for style in SHEETS}
    assert set(files) == {*pictures, "concepts.json", "NOTICE"}
    assert sum(path.stat().st_size for path in files.values()) <= 1_500_000
    notice = files["NOTICE"].read_text("utf-8")
    for file in (*pictures, "concepts.json"):
        assert file in notice
    for words in (
        "Copyright Google Inc. Licensed under the Apache License, Version 2.0",
        "Copyright (c) Microsoft Corporation. MIT License",
        "Permission is hereby granted, free of charge, to any person obtaining a copy",
        "UNICODE LICENSE V3",
        "SPDX-License-Identifier: Unicode-3.0",
    ):
        assert words in notice
    for licence in ("CC-BY", "GPL"):
        assert licence not in notice


def test_the_files_are_installed_with_the_package(root):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    data = project["tool"]["setuptools"]["package-data"]["cogview_jax.assets"]
    assets = emoji_set.FOLDER.parent
    packed = {path for pattern in data for path in assets.glob(pattern)}
    assert set(emoji_set.FOLDER.iterdir()) <= packed
    notice = (emoji_set.FOLDER / "NOTICE").relative_to(root).as_posix()
    assert notice in project["project"]["license-files"]
