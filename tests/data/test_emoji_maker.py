"""What makes the emoji: pinned packages, pictures on white, names, and the folder it writes."""

import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogview_jax.data import emoji_set
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.runtime.errors import InputError

COLOURS = {
    **{"noto": "#ff0000", "flat": "#00ff00", "3d": "#0000ff"},
    **{"high_contrast": "#000000", "twemoji": "#ff00ff", "openmoji": "#00ffff"},
}
#: What the made-up packages know: five emoji, one of them a flag, one without a Chinese name.
EMOJI = {"🐒": "monkey", "🦋": "butterfly", "🎁": "gift", "🏁": "finish flag", "🐙": "octopus"}


@pytest.fixture(scope="module")
def make(root):
    spec = importlib.util.spec_from_file_location("make_emoji", root / "examples/emoji/make.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_versions_and_hashes_are_fixed(make):
    packages = [make.EMOJI, *make.NAMES.values(), *(art.package for art in make.ART.values())]
    for package in packages:
        assert re.fullmatch(r"(@[\w-]+/)?[\w-]+@\d+\.\d+\.\d+", package.spec)
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
    lines = (make.HERE / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w-]+==[\d.]+", line) for line in lines)


def test_only_permissive_art_is_embedded(make):
    embedded = {style.name for style in emoji_set.STYLES}
    assert {make.ART[name].licence for name in embedded} == {"Apache-2.0", "MIT"}
    assert list(make.ART) == [style.name for style in make.STYLES]
    assert make.STYLES[:4] == emoji_set.STYLES


def test_the_list_is_that_of_the_package(make):
    assert make.chosen() == [concept.code for concept in emoji_set.concepts()]
    listed = (emoji_set.FOLDER / "concepts.json").read_text("utf-8")
    assert make.concept_lines(emoji_set.concepts()) == listed
    lines = (make.HERE / "concepts.txt").read_text("utf-8").splitlines()
    assert lines == [f"{concept.code} {concept.en}" for concept in emoji_set.concepts()]


def test_codes_leave_variation_selectors_out(make):
    assert make.plain("1F441-fe0f-200d-1f5e8-FE0F") == "1f441-200d-1f5e8"
    assert make.code_of("☎️") == "260e"
    assert make.code_of("🐻‍❄️") == "1f43b-200d-2744"


def test_names_are_unique_in_each_language(make):
    names = {
        "en": {"a": "Cat", "b": "dog", "c": "cat", "d": "cow", "e": "pig", "f": "ram"},
        "zh": {"a": "猫", "b": "狗", "c": "喵", "d": "狗", "f": "羊"},
    }
    # c has the English name of a, d the Chinese name of b, e no Chinese one.
    assert make.unique_names(list("abcdef"), names) == ["a", "b", "f"]


def test_an_icon_becomes_a_document(make):
    icons = {
        "prefix": "set",
        "width": 32,
        "height": 32,
        "icons": {"a": {"body": "<path/>"}, "b": {"body": "<g/>", "left": -1, "width": 30}},
        "aliases": {"same": {"parent": "a"}, "turned": {"parent": "a", "rotate": 1}},
    }
    document = make.svg(icons, "a")
    assert 'viewBox="0 0 32 32"' in document
    assert 'color="#000000"' in document
    assert document.endswith("<path/></svg>")
    assert 'viewBox="-1 0 30 32"' in make.svg(icons, "b")
    assert make.svg(icons, "same") == document
    with pytest.raises(InputError, match="the alias turned changes its icon"):
        make.svg(icons, "turned")


def test_pictures_are_laid_on_white(make):
    half = Image.new("RGBA", (256, 256), (255, 0, 0, 128))
    half.putpixel((0, 0), (9, 9, 9, 0))
    pixels = np.asarray(make.on_white(png(half)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[5, 5].astype(int) - (255, 127, 127)).max() <= 1
    narrow = np.asarray(make.on_white(png(Image.new("RGBA", (200, 256), (0, 0, 0, 255)))))
    assert narrow.shape == (256, 256, 3)
    assert (narrow[:, :28] == 255).all()
    assert (narrow[:, 28:228] == 0).all()
    assert (narrow[:, 228:] == 255).all()
    tall = np.asarray(make.on_white(png(Image.new("RGB", (256, 512)))))
    assert (tall[:, 64:192] == 0).all()
    assert (tall[:, :64] == 255).all()


def test_the_rasteriser_draws_an_icon(make):
    pytest.importorskip("resvg_py", reason="resvg-py is a tool of make.py alone")
    body = '<path fill="currentColor" d="M0 0h16v32H0z"/>'
    icons = {"prefix": "set", "width": 32, "height": 32, "icons": {"a": {"body": body}}}
    pixels = np.asarray(make.on_white(make.rasterise(make.svg(icons, "a"))))
    assert (pixels[:, :128] == 0).all()
    assert (pixels[:, 128:] == 255).all()


@pytest.mark.parametrize("there", [True, False])
def test_a_package_that_is_not_the_pinned_one_is_told(make, tmp_path, monkeypatch, there):
    monkeypatch.setenv("PATH", "")
    message = r"noto-1\.2\.9\.tgz into .*" if not there else "expected 3e918d88.*: delete it"
    if there:
        (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"something else")
    with pytest.raises(InputError, match=message):
        make.fetch(make.ART["noto"].package, tmp_path)


# ---- the folder, from made-up packages


def archive(folder: Path, spec: str, files: dict[str, bytes]) -> str:
    """Writes an npm package, and returns its hash."""
    path = folder / (spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    with tarfile.open(path, "w:gz") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_json(value) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture
def made_up(make, tmp_path, monkeypatch):
    """The maker with made-up packages: each picture is a square in the colour of its style."""
    folder = tmp_path / "packages"
    folder.mkdir()
    codes = {f"{ord(text):x}": name for text, name in EMOJI.items()}
    for name, art in make.ART.items():
        body = f'<rect fill="{COLOURS[name]}"/>'
        files = {
            "icons.json": as_json(
                {"prefix": name, "icons": {each: {"body": body} for each in codes.values()}}
            ),
            "chars.json": as_json(codes),
        }
        if name == "3d":
            square = png(Image.new("RGBA", (256, 256), COLOURS[name]))
            files = {f"assets/{code}-fe0f.webp": square for code in codes}
        package = art.package._replace(sha256=archive(folder, art.package.spec, files))
        monkeypatch.setitem(make.ART, name, art._replace(package=package))
    groups = {text: {"group": "Flags" if "flag" in name else "x"} for text, name in EMOJI.items()}
    digest = archive(folder, make.EMOJI.spec, {"data-by-emoji.json": as_json(groups)})
    monkeypatch.setattr(make, "EMOJI", make.EMOJI._replace(sha256=digest))
    for part, package in make.NAMES.items():
        files = {}
        for language in ("en", "zh"):
            known = {
                text: {"tts": [name if language == "en" else f"名{name}"]}
                for text, name in EMOJI.items()
                if language == "en" or name != "octopus"
            }
            entries = known if part == "annotations" else {}
            files[f"{part}/{language}/annotations.json"] = as_json({part: {"annotations": entries}})
        digest = archive(folder, package.spec, files)
        monkeypatch.setitem(make.NAMES, part, package._replace(sha256=digest))
    monkeypatch.setattr(make, "chosen", lambda: [f"{ord('🎁'):x}"])
    monkeypatch.setattr(
        make,
        "rasterise",
        lambda document: png(
            Image.new("RGBA", (256, 256), re.search(r'fill="(.*?)"', document)[1])
        ),
    )
    return make, folder


def run(make, *arguments: object) -> None:
    make.run(make._parser().parse_args([str(argument) for argument in arguments]))


def test_the_folder_is_read_by_its_source(made_up, tmp_path):
    make, packages = made_up
    out = tmp_path / "emoji"
    run(make, "folder", "--packages", packages, "--out", out, "--size", 16)
    # The embedded concept comes first, then those that have names and are no flag.
    concepts, styles = ["gift", "monkey", "butterfly"], list(COLOURS)
    held_out = [(0, 0), (0, 4), (1, 3), (2, 2)]  # (concept, style)
    everything = [(c, s) for c in range(3) for s in range(6)]
    splits = {"held_out": held_out, "train": [pair for pair in everything if pair not in held_out]}
    for split, pairs in splits.items():
        source = FolderSource(out / split)
        assert len(source) == len(pairs)
        for i, (concept, style) in enumerate(pairs):
            record = source[i]
            said = {"3d": "3D", "noto": "Noto", "twemoji": "Twemoji", "openmoji": "OpenMoji"}
            name = said.get(styles[style], styles[style].replace("_", " "))
            assert record.captions[0] == f"{concepts[concept]} in {name} style"
            assert record.captions[1].endswith(f"风格的名{concepts[concept]}")
            assert record.image.shape == (16, 16, 3)
            wanted = Image.new("RGB", (1, 1), COLOURS[styles[style]]).getpixel((0, 0))
            assert np.abs(record.image.astype(int) - wanted).max() <= 4  # WebP with loss
    notice = (out / "NOTICE").read_text("utf-8")
    assert "CC-BY-SA-4.0" in notice
    assert "CC-BY-4.0" in notice


def test_fewer_styles_keep_their_splits(made_up, tmp_path):
    make, packages = made_up
    out = tmp_path / "emoji"
    run(make, "folder", "--packages", packages, "--out", out, "--styles", "3d,flat")
    keys = {
        split: [source.key(i).split("/")[0] for i in range(len(source))]
        for split, source in ((s, FolderSource(out / s)) for s in ("train", "held_out"))
    }
    assert keys == {"train": ["flat", "3d", "flat", "3d", "flat"], "held_out": ["3d"]}
    assert "CC-BY" not in (out / "NOTICE").read_text("utf-8")


def test_a_style_of_the_embedded_concepts_alone(made_up, tmp_path):
    make, packages = made_up
    out = tmp_path / "emoji"
    run(make, "folder", "--packages", packages, "--out", out, "--embedded")
    keys = {
        split: [source.key(i) for i in range(len(source))]
        for split, source in ((s, FolderSource(out / s)) for s in ("train", "held_out"))
    }
    assert keys["held_out"] == ["noto/1f381.webp", "twemoji/1f381.webp"]
    assert [key.split("/")[0] for key in keys["train"]] == [
        "flat",
        "3d",
        "high_contrast",
        "openmoji",
    ]
    assert {key.split("/")[1] for key in keys["train"]} == {"1f381.webp"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", 512), "--size 512: expected 16 to 256"),
        (("--styles", "noto,oil"), "--styles noto,oil: choices are noto, flat"),
        (("--out", "."), "is there already"),
        (("--out", f"{__file__}/out"), "is a file, expected a folder"),
    ],
)
def test_what_the_command_line_cannot_say(made_up, tmp_path, arguments, message):
    make, packages = made_up
    given = ("folder", "--packages", packages, "--out", tmp_path / "emoji", *arguments)
    with pytest.raises(InputError, match=message):
        run(make, *given)
    assert not (tmp_path / "emoji").exists()


def test_sheets_are_checked_byte_by_byte(made_up, tmp_path, monkeypatch):
    make, packages = made_up
    quick = {"lossless": True, "quality": 0}
    monkeypatch.setattr(make, "ENCODING", dict.fromkeys(make.ENCODING, quick))
    given = ("sheets", "--packages", packages, "--out", tmp_path / "sheets")
    run(make, *given)
    run(make, *given, "--check")
    with Image.open(tmp_path / "sheets" / "flat.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape == (64, 1024, 3)
    assert (pixels[:, :64] == (0, 255, 0)).all()
    assert (pixels[:, 64:] == 255).all()
    (tmp_path / "sheets" / "flat.webp").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"flat\.webp: not what the packages give"):
        run(make, *given, "--check")


def test_the_shell_script_is_clean(make):
    beside = Path(sys.executable).parent / "shellcheck"
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert checker, "shellcheck comes with the extra [dev]"
    found = subprocess.run([checker, make.HERE / "make.sh"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
