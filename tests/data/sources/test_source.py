"""Sources from configs: each kind, and one clear line for everything that can be wrong."""

import contextlib
import dataclasses
import io
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.arrow import Arrow
from cogview_jax.data.sources.coco import Coco
from cogview_jax.data.sources.emoji import Emoji
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.lmdb import Lmdb
from cogview_jax.data.sources.parquet import Parquet
from cogview_jax.data.sources.shapes import Shapes
from cogview_jax.data.sources.source import SourceConfig, captions_of, opened
from cogview_jax.data.sources.tfds import Tfds
from cogview_jax.data.sources.tfds_split import open_builder
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.runtime import faults
from cogview_jax.runtime.config import build
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.shapes import scenes as shapes


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 8), (value, 1, 2)).save(stream, "PNG")
    return stream.getvalue()


class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Laid out like coco_captions. Record 2 is a broken image, record 3 has no caption."""

    VERSION = tfds.core.Version("1.2.0")
    url_infos = None  # nothing is downloaded, so TFDS need not look for checksums

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    # As coco_captions has it: no Text, but a tensor of strings.
                    "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
                    "names": tfds.features.Sequence(text),
                    "title": text,
                    "nested": {"image": tfds.features.Image(shape=(None, None, 3))},
                    "label": tfds.features.ClassLabel(names=["a", "b"]),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "val": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            captions = [{"id": n, "text": f"caption {i}.{n}"} for n in range(2)]
            yield (
                i,
                {
                    "image": png(i)[:30] if i == 2 else png(i),
                    "captions": [] if i == 3 else captions,
                    "names": [f"name {i}", "名字"],
                    "title": f"title {i}",
                    "nested": {"image": png(100 + i)},
                    "label": "a",
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyCaptions(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def tiny(data_dir, **settings):
    defaults = {
        "kind": "tfds",
        "path": str(data_dir),
        "name": "tiny_captions",
        "split": "train",
        "caption_keys": ("captions/text",),
    }
    return build(SourceConfig, ConfigDict({**defaults, **settings})).open()


@pytest.mark.parametrize("name", ["tiny_captions", "tiny_captions:1.2.0"])
def test_a_prepared_data_set_is_read_by_name(data_dir, name):
    source = tiny(data_dir, name=name)
    assert len(source) == 6
    assert source.key(4) == source[4].key == "tiny_captions/1.2.0/train/4"
    assert source[4].captions == ("caption 4.0", "caption 4.1")
    np.testing.assert_array_equal(source[4].image, np.full((8, 6, 3), (4, 1, 2), np.uint8))


@pytest.mark.parametrize(
    ("keys", "captions"),
    [
        (("title",), ("title 5",)),
        (("names",), ("name 5", "名字")),
        (("title", "captions/text"), ("title 5", "caption 5.0", "caption 5.1")),
    ],
)
def test_captions_from_texts_and_sequences(data_dir, keys, captions):
    assert tiny(data_dir, caption_keys=keys)[5].captions == captions


def test_nested_image_and_part_of_a_split(data_dir):
    source = tiny(data_dir, image_key="nested/image", split="train[50%:]")
    assert len(source) == 3
    assert source[1].image[0, 0, 0] == 104


def test_bad_records_are_reported_when_read(data_dir):
    source = tiny(data_dir)
    with pytest.raises(BadRecord, match=r"tiny_captions/1.2.0/train/2: unreadable image"):
        source[2]
    with pytest.raises(BadRecord, match="train/3: empty caption"):
        source[3]
    assert tiny(data_dir, require_captions=False)[3].captions == ()
    assert tiny(data_dir, require_captions=False, caption_keys=())[4].captions == ()


def test_captions_are_read_without_decoding_images(data_dir, tmp_path):
    source = tiny(data_dir)
    assert captions_of(source, 2) == ("caption 2.0", "caption 2.1")  # its image is broken
    with pytest.raises(BadRecord, match="train/3: empty caption"):
        captions_of(source, 3)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "1.txt").write_text("one\ntwo\n")
    source = Folder(path=str(tmp_path)).open()
    assert captions_of(source, 0) == ("one", "two")
    (tmp_path / "captions.jsonl").write_text('{"file": "gone.png", "caption": "listed"}\n{}\n')
    source = Folder(path=str(tmp_path)).open()
    assert captions_of(source, 0) == ("listed",)
    with pytest.raises(BadRecord, match=r"captions\.jsonl:2: expected an object"):
        captions_of(source, 1)
    assert captions_of(Folder(path=str(tmp_path), caption="all").open(), 0) == ("all",)


@pytest.mark.parametrize("settings", [{}, {"more_words": True}, {"caption": "an emoji"}])
def test_captions_of_emoji_are_those_of_their_records(settings):
    source = Emoji(split="held_out", size=8, **settings).open()
    for i in range(0, len(source), 97):
        assert captions_of(source, i) == source[i].captions


def test_a_source_without_a_way_to_captions_alone_reads_its_records():
    class Plain:
        def __len__(self):
            return 1

        def key(self, i):
            return f"plain {i}"

        def __getitem__(self, i):
            return Record(self.key(i), np.zeros((2, 2, 3), np.uint8), ("whole",))

    assert captions_of(Plain(), 0) == ("whole",)


def test_a_damaged_file_gives_bad_records(data_dir, tmp_path):
    folder = tmp_path / "tiny_captions" / "1.2.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "tiny_captions" / "1.2.0").iterdir():
        data = bytearray(path.read_bytes())
        if "train" in path.name:
            data[200] ^= 1  # within the first record
        (folder / path.name).write_bytes(data)
    source = tiny(tmp_path)
    with pytest.raises(BadRecord, match="train/0: damaged file"):
        source[0]
    assert source[1].captions == ("caption 1.0", "caption 1.1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "coco_captions"}, r"'coco_captions': no such prepared .*tfds build coco_capt"),
        ({"name": "tiny_captions:9.9.9"}, "no such prepared data set in"),
        ({"name": ""}, "expected the name of a TFDS data set"),
        ({"name": "a b"}, "'a b': expected the name"),
        ({"split": "test"}, r"split='test': choices .* are train, val"),
        ({"split": ""}, r"split='': choices .* are train, val"),
        ({"split": "val[2:]"}, r"split='val\[2:\]': .*a part that holds records"),
        ({"image_key": "img"}, "image_key: 'img' .*choices are image, nested/image"),
        ({"image_key": "title"}, "'title' .*is a Text.*choices are image, nested/image"),
        ({"caption_keys": ("text",)}, "'text' .*choices are captions/text, names, title"),
        ({"caption_keys": ("label",)}, "'label' .*is a ClassLabel"),
        ({"caption_keys": ("captions/id",)}, "'captions/id' .*is a Tensor.*choices are captions/"),
        ({"caption_keys": ("captions",)}, "'captions' .*no such feature"),
        ({"caption_keys": ()}, "caption_keys is empty: choices are captions/text, names, title"),
    ],
)
def test_what_a_data_set_does_not_have(data_dir, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        tiny(data_dir, **settings)
    assert "\n" not in str(caught.value)


def test_where_it_looked_is_said(data_dir, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=f"in '{tmp_path}'.*--data_dir={tmp_path}"):
        tiny(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "usual"))
    with pytest.raises(InputError, match=f"in '{tmp_path / 'usual'}'"):
        tiny("")


def copied(data_dir, tmp_path):
    """A copy of the data set that may be changed."""
    folder = tmp_path / "tiny_captions" / "1.2.0"
    shutil.copytree(data_dir / "tiny_captions" / "1.2.0", folder)
    return folder


OWN = "tensorflow_datasets.core.features."
#: Where a description can name a class: as it is written today, in the spelling of protocol
#: buffers, in a sequence, as it was written once, and as JSON within a text.
NAMED = {
    "today": lambda text: {"pythonClassName": text, "text": {}},
    "spelling": lambda text: {"python_class_name": text, "text": {}},
    "sequence": lambda text: {
        "pythonClassName": OWN + "sequence_feature.Sequence",
        "sequence": {"feature": {"pythonClassName": text, "text": {}}, "length": "-1"},
    },
    "within a text": lambda text: {
        "pythonClassName": OWN + "features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"a": {"type": text, "content": {}}})},
    },
}


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("place", ["features.json", "dataset_info.json", "once"])
def test_classes_of_others_are_never_imported(data_dir, tmp_path, monkeypatch, named, place):
    monkeypatch.syspath_prepend(tmp_path)
    module = f"elsewhere_{'_'.join((named, place)).replace('.', '_').replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w')\n"
        "import tensorflow_datasets as tfds\n"
        "class Text(tfds.features.Text): pass\n"
    )
    folder = copied(data_dir, tmp_path)
    feature = NAMED[named](f"{module}.Text")
    if place == "features.json":
        features = json.loads((folder / place).read_text())
        features["featuresDict"]["features"]["title"] = feature
    elif place == "once":
        content = json.dumps({"features": {"title": feature}})
        proto = "tensorflow_datasets.FeaturesDict"
        features = {"type": OWN + "features_dict.FeaturesDict", "content": content}
        features["proto_cls"] = proto
    if place == "dataset_info.json":
        info = json.loads((folder / place).read_text()) | {"features": feature}
        (folder / place).write_text(json.dumps(info))
    else:
        (folder / "features.json").write_text(json.dumps(features))
    for read in (lambda: tiny(tmp_path), lambda: open_builder(folder)):
        with pytest.raises(InputError, match=f"json: features of '{module}.Text': only class"):
            read()
    assert not (tmp_path / "imported").exists()
    # It is this check that keeps it out: TFDS follows the name.
    with contextlib.suppress(Exception):
        tfds.builder_from_directory(folder)
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dataset_info.json", "[]", "expected a JSON object"),
        ("dataset_info.json", "{}", "not readable as a prepared TFDS data set: Invalid version"),
        ("dataset_info.json", '{"version": "1.2.0", ', "damaged: not readable as JSON"),
        ("dataset_info.json", '{"version": [1]}', "not readable as a prepared TFDS data set"),
        ("features.json", "[]", "expected a JSON object"),
        ("features.json", "{}", "not readable as a prepared TFDS data set"),
        ("features.json", '{"a":' * 20_000, "damaged: nested too deeply"),
        ("features.json", "\xff", "damaged: not readable as JSON"),
    ],
)
def test_descriptions_that_are_damaged(data_dir, tmp_path, file, text, message):
    folder = copied(data_dir, tmp_path)
    (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        tiny(tmp_path)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["name", "filepathTemplate"])
def test_a_description_opens_no_data_elsewhere(data_dir, tmp_path, key):
    folder = copied(data_dir, tmp_path)
    train = next(folder.glob("*train*"))
    train.rename(tmp_path / train.name)
    info = json.loads((folder / "dataset_info.json").read_text())
    if key == "name":
        info["name"] = f"../../{info['name']}"
    else:
        info["splits"][0][key] = f"../../{info['splits'][0][key]}"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="the data of split 'train' lie elsewhere"):
        tiny(tmp_path)


def test_a_pipe_in_a_data_set_is_waited_for_by_nobody(data_dir, tmp_path):
    file = copied(data_dir, tmp_path) / "label.labels.txt"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match=r"labels\.txt: expected files and folders only"):
        tiny(tmp_path)


def test_a_missing_file_is_said_at_once(data_dir, tmp_path):
    next(copied(data_dir, tmp_path).glob("*train*")).unlink()
    with pytest.raises(InputError, match=r"train.*-of-00001: a file of split 'train' is missing"):
        tiny(tmp_path)


def test_a_data_set_is_read_by_a_relative_path(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir.parent)
    assert tiny(data_dir.name)[4].captions == ("caption 4.0", "caption 4.1")


@pytest.mark.parametrize("folder", [".", "drawings", "a/b"])
def test_shapes_are_drawn_and_read_in_a_relative_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    config = Shapes(path=folder, size=16, train_count=3, held_out_count=1)
    assert config.open()[2].image.shape == (16, 16, 3)
    assert list((tmp_path / folder / "captioned_shapes").iterdir())


def test_a_data_set_behind_a_link_is_read(data_dir, tmp_path):
    (tmp_path / "link").symlink_to(data_dir)
    assert tiny(tmp_path / "link")[4].captions == ("caption 4.0", "caption 4.1")


def test_too_many_open_files_are_no_bad_record(data_dir, monkeypatch):
    monkeypatch.setattr(faults, "PAUSES", (0.0,))
    source = tiny(data_dir)
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(SystemFault, match=r"train/0: Too many open files \(2 tries\)"):
            source[0]
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert source[0].captions == ("caption 0.0", "caption 0.1")


def test_the_limit_of_pixels_is_a_setting(data_dir):
    assert tiny(data_dir, max_pixels=48)[0].image.shape == (8, 6, 3)
    with pytest.raises(BadRecord, match="6 x 8 = 48 pixels: at most 47 are read"):
        tiny(data_dir, max_pixels=47)[0]
    for wrong in (0, 2**40):
        with pytest.raises(InputError, match=f"max_pixels = {wrong}: expected 1 to"):
            tiny(data_dir, max_pixels=wrong)


def test_files_that_need_tensorflow_are_refused(data_dir, tmp_path):
    folder = tmp_path / "tiny_captions" / "1.2.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "tiny_captions" / "1.2.0").glob("*.json"):
        (folder / path.name).write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"prepared as tfrecord.*--file_format=array_record"):
        tiny(tmp_path)


def test_shapes_are_drawn_when_they_are_missing(tmp_path):
    config = Shapes(path=str(tmp_path), size=24, train_count=3, held_out_count=4, seed=5)
    source = dataclasses.replace(config, split="held_out").open()
    assert (len(config.open()), len(source)) == (3, 4)
    scene, image = shapes.drawing(5, "held_out", 2, 24)
    np.testing.assert_array_equal(source[2].image, image)
    captions = {language: shapes.caption(scene, language) for language in ("en", "zh")}
    assert source[2].captions == (captions["en"], captions["zh"])
    chinese = dataclasses.replace(config, split="held_out", caption_keys=("caption_zh",)).open()
    assert chinese[2].captions == (captions["zh"],)
    with pytest.raises(InputError, match=r"choices .* are train, held_out"):
        dataclasses.replace(config, split="val").open()


def test_a_folder(tmp_path):
    (tmp_path / "1.png").write_bytes(png(9))
    config = {"kind": "folder", "path": str(tmp_path), "require_captions": False}
    source = build(SourceConfig, config).open()
    record = source[0]
    assert (record.key, record.captions, int(record.image[0, 0, 0])) == ("1.png", (), 9)
    assert source.describe() == "1 image; nothing ignored"
    with pytest.raises(BadRecord, match="at most 47 are read"):
        build(SourceConfig, config | {"max_pixels": 47}).open()[0]
    with pytest.raises(InputError, match="gone"):
        Folder(path=str(tmp_path / "gone")).open()
    with pytest.raises(InputError, match=r"data.source.path is empty: name the folder"):
        Folder().open()


def test_a_path_that_is_not_there_is_told_by_its_setting(tmp_path, monkeypatch):
    """A run may have named it, which was started in another folder."""
    monkeypatch.chdir(tmp_path)
    found = rf"\(looked for in {tmp_path}\): expected a folder of images, there is none"
    with pytest.raises(InputError, match=rf"^data.source.path = 'photos' {found}$"):
        opened(Folder(path="photos"))
    told = r"^data.source.path \(perhaps that of the run in data.from, runs/codec\) = 'photos'"
    with pytest.raises(InputError, match=rf"{told} {found}$"):
        opened(Folder(path="photos"), run="runs/codec")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"^path='photos': expected images"):
        opened(Folder(path="photos"))


@pytest.mark.parametrize("listing", [True, False])
def test_one_caption_for_all_images_of_a_folder(tmp_path, listing):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    if listing:
        lines = [json.dumps({"file": f"{i}.png", "caption": f"its own {i}"}) for i in range(2)]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = Folder(path=str(tmp_path), caption="An image of sketch style ").open()
    assert [source[i].captions for i in range(2)] == [("An image of sketch style",)] * 2
    if not listing:
        said = "2 images, each captioned 'An image of sketch style'; nothing ignored"
        assert source.describe() == said


def test_a_config_chooses_the_kind_and_has_its_settings_alone():
    kinds = {"emoji": Emoji, "folder": Folder, "shapes": Shapes, "tfds": Tfds}
    kinds |= {"webdataset": WebDataset, "parquet": Parquet, "arrow": Arrow, "coco": Coco}
    kinds |= {"lmdb": Lmdb}
    for kind, cls in kinds.items():
        source = build(SourceConfig, {"kind": kind, "max_pixels": 9})
        assert type(source) is cls
        assert dataclasses.asdict(source)["kind"] == kind
        assert source == cls(max_pixels=9)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"kind": "tar"},
            "config.kind = 'tar': choices are arrow, coco, emoji, folder, lmdb, mixture, parquet,"
            " shapes, tfds, webdataset",
        ),
        ({"kind": 3}, "config.kind = 3: choices are arrow, coco, emoji, folder"),
        ({"path": "x"}, "config lacks kind; choices are arrow, coco, emoji, folder"),
        (
            {"kind": "folder", "size": 32},
            "config.size: kind 'folder' has no such setting; it has kind, require_captions,"
            " max_pixels, path, caption, caption_fields",
        ),
        ({"kind": "shapes", "size": 8}, "config.size = 8: expected 16 to 16384"),
        ({"kind": "shapes", "seed": -1}, "config.seed = -1: expected at least 0 and below"),
        ({"kind": "shapes", "train_count": 0}, "config.train_count = 0: expected at least 1"),
        ({"kind": "shapes", "held_out_count": 0}, "config.held_out_count = 0: expected at least"),
        ({"kind": "tfds", "path": "gs://b/x"}, "config.path = 'gs://b/x': expected the path of"),
        ({"kind": "shapes", "path": "gs://b/x"}, "config.path = 'gs://b/x': expected the path of"),
        ({"kind": "tfds", "caption_keys": "a"}, "config.caption_keys = 'a': expected a list"),
    ],
)
def test_what_a_section_cannot_say(section, message):
    with pytest.raises(InputError) as error:
        build(SourceConfig, section)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_importing_the_kinds_imports_no_tfds():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tensorflow_datasets', 'array_record']))\n"
        "from cogview_jax.data.sources.source import SourceConfig\n"
        "kinds = set(SourceConfig.kinds)\n"
        "assert {'emoji', 'folder', 'shapes', 'tfds', 'webdataset'} <= kinds, kinds\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
