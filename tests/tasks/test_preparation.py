"""A token store against the tokenizers that made it; what does not fit is refused."""

import contextlib
import dataclasses
import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import cogview_jax
from cogview_jax.data.filters import FilterConfig
from cogview_jax.data.remote.reader import RemoteConfig
from cogview_jax.data.sources.webdataset import WebDataset
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime import lock
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.sealed import SEAL
from cogview_jax.tasks.begun_store import begin
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.preparation import prepare
from cogview_jax.tasks.stored_tokens import store_path
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer
from command_runs import Command
from tar_files import write_tar


@pytest.fixture
def experiment(chain):
    """That of the chain's store, with changes to its data."""
    base = read_experiment(json.loads((chain.run / "config.json").read_text()))

    def change(**data):
        return dataclasses.replace(base, data=dataclasses.replace(base.data, **data))

    return change


def test_records_are_the_codes_and_pieces_of_their_images(chain):
    store, model = TokenStore(chain.store), cogview_jax.load(chain.store / "tokenizers")
    lines = [json.loads(x) for x in (chain.images / "captions.jsonl").read_text().splitlines()]
    assert len(store) == len(lines)
    images = np.stack([np.asarray(Image.open(chain.images / line["file"])) for line in lines])
    codes = model.encode(images).reshape(len(lines), -1)
    for i, line in enumerate(lines):
        record = store[i]
        assert record.key == line["file"]
        np.testing.assert_array_equal(record.codes, codes[i])
        for ids, caption in zip(record.captions, line["captions"], strict=True):
            assert ids.tolist() == model.text.encode(caption)
        assert model.text.decode(record.captions[0]) == line["captions"][0]
    assert store.meta["grid"] == 4
    assert store.meta["codebook"] == 16
    assert store.meta["pieces"] == len(model.text)


def test_one_process_at_a_time_begins_a_store(experiment, chain, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "waiting", asked := Mock(side_effect=contextlib.nullcontext))
    store, place = tmp_path / "tokens", tmp_path / "tokens" / ".prepare.lock"
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as held:
        held.enter_context(locked(place, "it", "wait"))
        second = pool.submit(prepare, experiment(), store)
        while not asked.called:
            time.sleep(0.01)
        assert asked.call_args.args == (f"the token store {store}: another process begins it",)
        assert [path.name for path in store.iterdir()] == [".prepare.lock"]
        held.close()
        second.result()
    assert (store / "manifest.json").read_bytes() == (chain.store / "manifest.json").read_bytes()


def test_two_processes_of_a_launcher_make_the_store_of_one(chain, root):
    arguments = chain.transformer("two")
    command = (sys.executable, "-m", "cogview_jax.prepare", *arguments)
    launcher = [root / "launch" / "local.py", "-n", "2", "--", *command]
    processes = Command(root, launcher, {"PYTHONPATH": str(root)}, together=True)
    status, (said, _) = processes.wait(), processes.communicate()
    assert status == 0, said
    stores = (chain.store, chain.folder / "two" / "tokens")
    one, two = ({p.relative_to(s): p for p in s.rglob("*")} for s in stores)
    assert one.keys() == two.keys()
    for name, path in one.items():
        assert path.is_dir() or path.read_bytes() == two[name].read_bytes(), name
    done = [f"[{number}] token store {stores[1]}: finished" in said for number in range(2)]
    late = [f"[{n}] token store {stores[1]}: was finished before" in said for n in range(2)]
    # One did the work; the other had a part in it, or came late and found nothing to do.
    assert any(done)
    assert [a != b for a, b in zip(done, late, strict=True)] == [True, True]


@pytest.mark.parametrize("views", [1, 2])
def test_captions_that_are_too_long_are_counted_whoever_encoded_them(
    chain, experiment, tmp_path, capfd, views
):
    data = {"text_tokenizer": str(chain.store / "tokenizers" / "text.model"), "shard_size": 8}
    data |= {"views": views, "smallest_crop": 0.5 if views > 1 else 1.0}
    changed = experiment(**data)
    plain = TokenStore(chain.store)
    lengths = [len(ids) for i in range(len(plain)) for ids in plain[i].captions]
    room = int(np.median(lengths))
    changed = dataclasses.replace(
        changed, layout=dataclasses.replace(changed.layout, text_length=room)
    )
    expected = sum(length > room for length in lengths)
    assert 0 < expected < len(lengths)
    store = tmp_path / "tokens"
    # Another process has written some of the shards.
    for shard in (0, 2):
        begin(changed, store).writer.write(shard)
    prepare(changed, store)
    said = f"captions are longer than layout.text_length = {room}: training will cut them"
    assert f"\n{expected} {said}\n" in capfd.readouterr().err
    prepare(changed, store)
    assert said not in capfd.readouterr().err


def test_of_shards_that_do_not_count_long_captions_the_others_are_counted(
    chain, experiment, tmp_path, capfd
):
    """They were written for another text length."""
    text = str(chain.store / "tokenizers" / "text.model")
    base = experiment(text_tokenizer=text, shard_size=8)
    shorter = dataclasses.replace(base, layout=dataclasses.replace(base.layout, text_length=1))
    begin(base, tmp_path / "tokens").writer.write(0)
    prepare(shorter, tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    rest = sum(len(store[i].captions) for i in range(8, len(store)))
    said = f"\nat least {rest} captions are longer than layout.text_length = 1: training will cut"
    assert said in capfd.readouterr().err


def test_a_store_lies_in_the_workdir_or_where_the_config_says(experiment, tmp_path):
    assert store_path(experiment().data, Workdir(tmp_path)) == tmp_path / "tokens"
    elsewhere = experiment(store=f"{tmp_path}/store").data
    assert store_path(elsewhere, Workdir(tmp_path / "run")) == tmp_path / "store"


def test_a_text_tokenizer_of_another_language_is_said(chain, experiment, tmp_path, capfd):
    """The chain's captions are in two languages, as many in the one as in the other."""
    english = [f"a {colour} circle" for colour in ("red", "green", "blue", "yellow")] * 9
    text = train_text_tokenizer(english, TextConfig(400, "bpe", 1.0))
    text.save(tmp_path / "english.model")
    prepare(experiment(text_tokenizer=f"{tmp_path}/english.model"), tmp_path / "tokens")
    said = capfd.readouterr().err
    found = re.search(r"english.model: (\d+)% of the characters of the first (\d+) captions", said)
    captions = [
        caption
        for line in (chain.images / "captions.jsonl").read_text().splitlines()
        for caption in json.loads(line)["captions"]
    ]
    letters = [letter for caption in captions for letter in caption if not letter.isspace()]
    strange = [letter for letter in letters if letter not in "".join(english)]
    assert 0.1 < len(strange) / len(letters) < 0.9
    assert found[1] == f"{100 * len(strange) / len(letters):.0f}"
    assert int(found[2]) == len(captions)


def test_views_of_an_image_lie_together_and_are_held_out_together(chain, experiment, tmp_path):
    text = str(chain.store / "tokenizers" / "text.model")
    changed = experiment(
        text_tokenizer=text, views=3, smallest_crop=0.5, flip=True, validation_share=0.3
    )
    prepare(changed, tmp_path / "tokens")
    plain, views = TokenStore(chain.store), TokenStore(tmp_path / "tokens")
    assert len(views) == 3 * len(plain)
    assert views.meta["views"] == 3
    for i in range(len(plain)):
        np.testing.assert_array_equal(views[3 * i].codes, plain[i].codes)
        for view in range(3):
            for one, other in zip(views[3 * i + view].captions, plain[i].captions, strict=True):
                np.testing.assert_array_equal(one, other)
    assert any(not np.array_equal(views[i].codes, views[i + 1].codes) for i in range(len(plain)))
    training = TransformerTask(changed, Workdir(tmp_path)).source()
    images = [training.key(i).split(" view ")[0] for i in range(len(training))]
    assert 0 < len(set(images)) < len(plain)
    assert all(images.count(image) == 3 for image in images)
    other = dataclasses.replace(changed, data=dataclasses.replace(changed.data, flip=False))
    with pytest.raises(InputError, match="made from something else: views was"):
        prepare(other, tmp_path / "tokens")


def test_filters_and_crops_are_part_of_a_plan_where_they_are_set(chain, experiment, tmp_path):
    """Every fourth image is oblong, and longer captions than 24 characters are left out."""
    images, model = tmp_path / "images", cogview_jax.load(chain.store / "tokenizers")
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 3), np.uint8)
    pixels = [image if i % 4 == 0 else image[:, :16] for i, image in enumerate(pixels)]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{i}.png")
        caption = "a circle that is much too large" if i == 3 else "a circle"
        (images / f"{i}.txt").write_text(caption)
    names = tmp_path / "names.txt"
    names.write_text("5.png\n")
    source = dataclasses.replace(experiment().data.source, path=str(images))
    data = {"source": source, "text_tokenizer": str(chain.store / "tokenizers" / "text.model")}
    filters = FilterConfig(max_caption=24, exclude=str(names))
    prepare(experiment(**data, filter=filters, crop="pad", max_skipped=0.0), tmp_path / "some")
    plan, plain = (
        json.loads((path / "plan.json").read_text()) for path in (tmp_path / "some", chain.store)
    )
    assert plan["filter"] == {"max_caption": 24, "exclude": sha256_file(names)}
    assert plan["crop"] == "pad"
    assert plain.keys() == plan.keys() - {"filter", "crop"}
    some = TokenStore(tmp_path / "some")
    assert [some[i].key for i in range(len(some))] == [f"{i}.png" for i in (0, 1, 2, 4, 6, 7)]
    padded = np.asarray(Image.fromarray(pixels[0]).resize((16, 11), Image.Resampling.BICUBIC))
    shown = np.full((16, 16, 3), 255, np.uint8)
    shown[2:13] = padded
    codes = model.encode(np.stack([shown, pixels[1]])).reshape(2, -1)
    np.testing.assert_array_equal(np.stack([some[0].codes, some[1].codes]), codes)
    with pytest.raises(InputError, match="made from something else: filter was"):
        prepare(experiment(**data, crop="pad"), tmp_path / "some")
    with pytest.raises(InputError, match="made from something else: crop was 'pad', is None"):
        prepare(experiment(**data, filter=filters), tmp_path / "some")


def test_random_crops_are_cut_from_all_views_but_the_first(chain, experiment, tmp_path):
    images, model = tmp_path / "images", cogview_jax.load(chain.store / "tokenizers")
    images.mkdir()
    wide = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(wide).save(images / "wide.png")
    (images / "wide.txt").write_text("a circle")
    source = dataclasses.replace(experiment().data.source, path=str(images))
    text = str(chain.store / "tokenizers" / "text.model")
    prepare(
        experiment(source=source, text_tokenizer=text, crop="random", views=6), tmp_path / "tokens"
    )
    squares = np.stack([wide[:, left : left + 16] for left in range(9)])
    codes = [square.tolist() for square in model.encode(squares).reshape(9, -1)]
    views = TokenStore(tmp_path / "tokens")
    places = [codes.index(views[i].codes.tolist()) for i in range(6)]
    assert places[0] == 4, "the centre"
    assert len(set(places)) > 2
    with pytest.raises(SettingError, match="crop = 'random' with views = 1"):
        experiment(crop="random")


def test_a_given_text_tokenizer_is_used(chain, experiment, tmp_path):
    model = chain.store / "tokenizers" / "text.model"
    prepare(experiment(text_tokenizer=str(model)), tmp_path / "tokens")
    assert (tmp_path / "tokens" / "tokenizers" / "text.model").read_bytes() == model.read_bytes()
    # Every record says of which store it is, so the shards' bytes are others.
    ours, theirs = TokenStore(tmp_path / "tokens"), TokenStore(chain.store)
    for i in range(max(len(ours), len(theirs))):
        assert ours[i].key == theirs[i].key
        np.testing.assert_array_equal(ours[i].codes, theirs[i].codes)
        for one, other in zip(ours[i].captions, theirs[i].captions, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_tokenizer": ""}, "data.image_tokenizer is empty: name the bundle"),
        (
            {"image_tokenizer": "runs/none"},
            r"data.image_tokenizer = 'runs/none' \(looked for in /.*runs/none is no bundle",
        ),
        ({"views": 2}, "views = 2: all views of an image would be alike; set smallest_crop"),
        ({"flip": True}, "views = 1: .* but flip = True would vary it; set flip = False as well"),
        (
            {"smallest_crop": 0.8, "largest_crop": 1.2},
            "but smallest_crop = 0.8, largest_crop = 1.2 would vary it; set smallest_crop = 1.0",
        ),
        (
            {"text_tokenizer": "runs/none.model"},
            r"data.text_tokenizer = 'runs/none.model' \(looked for in /.*: no text tokenizer at",
        ),
        ({"text": TextConfig(pieces=40)}, "no text tokenizer of 40 pieces can be trained on 64"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    experiment, tmp_path, data, message
):
    with pytest.raises(InputError, match=message):
        prepare(experiment(**data), tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "layout",
            {"grid": 8},
            r"learned images of 16 pixels, 4 x 4 codes, but .* layout.grid = 8: for such images"
            r" pass --config.layout.grid=4, or .*; for 8 x 8 codes .* of images of 32 pixels \(",
        ),
        ("vocabulary", {"codes": 32}, "has 16 codes, but the config has vocabulary.codes = 32"),
        ("vocabulary", {"text": 300}, r"has \d+ pieces, but the config has vocabulary.text = 300"),
    ],
)
def test_tokenizers_of_other_sizes_are_refused(experiment, tmp_path, section, changes, message):
    base = experiment()
    part = dataclasses.replace(getattr(base, section), **changes)
    with pytest.raises(InputError, match=message):
        prepare(dataclasses.replace(base, **{section: part}), tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_captions_that_cannot_be_read_are_said(experiment, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "captions.jsonl").write_text('{"file": "1.png", "note": "no caption"}\n')
    source = dataclasses.replace(experiment().data.source, path=str(tmp_path))
    message = r"no caption in the first 1 records; the last of them: 1\.png: empty caption"
    with pytest.raises(InputError, match=message):
        prepare(experiment(source=source), tmp_path / "tokens")


def begun(chain, tmp_path, **changes):
    """The chain's store without its last shard, and with other entries in its plan."""
    store = shutil.copytree(chain.store, tmp_path / "tokens")
    for name in ("manifest.json", "tokens-00003.array_record", "tokens-00003.json"):
        (store / name).unlink()
    plan = json.loads((store / "plan.json").read_text())
    changes[SEAL] = None  # plans of earlier versions have none
    plan = {name: value for name, value in {**plan, **changes}.items() if value is not None}
    (store / "plan.json").write_text(json.dumps(plan))
    return store


def test_images_are_encoded_in_float32_whatever_trains(chain, experiment, tmp_path):
    store = begun(chain, tmp_path)
    prepare(dataclasses.replace(experiment(), precision="bfloat16"), store)
    for name in ("manifest.json", "tokens-00003.array_record"):
        assert (store / name).read_bytes() == (chain.store / name).read_bytes()
    plan = TokenStore(store).manifest["plan"]
    assert [plan[n] for n in ("precision", "platform", "device_kind")] == ["float32", "cpu", "cpu"]


def test_a_store_is_finished_in_the_precision_and_on_the_kind_of_device_of_its_beginning(
    chain, experiment, tmp_path
):
    gpu = {"platform": "gpu", "device_kind": "NVIDIA H200"}
    store = begun(chain, tmp_path, **gpu)
    line = r"begun on gpu \(NVIDIA H200\), and this is cpu \(cpu\), .*: finish it there, choose"
    with pytest.raises(InputError, match=line):
        prepare(experiment(), store)
    line = r"found in float32, but the config has data\.encode_precision = bfloat16: pass --config"
    with pytest.raises(InputError, match=line):
        prepare(experiment(encode_precision="bfloat16"), store)
    # What is finished finds no more codes.
    shutil.copy(chain.store / "manifest.json", store)
    prepare(experiment(), store)


def test_a_store_that_was_begun_before_plans_said_so_is_finished(
    chain, experiment, tmp_path, capsys
):
    store = begun(chain, tmp_path, precision=None, platform=None, device_kind=None)
    prepare(experiment(), store)
    assert "does not say how it was begun; the rest of it is encoded in float32 on cpu" in (
        capsys.readouterr().err
    )
    name = "tokens-00003.array_record"
    assert (store / name).read_bytes() == (chain.store / name).read_bytes()
    assert "device_kind" not in TokenStore(store).manifest["plan"]


def test_a_store_of_before_limits_of_pixels_and_settings_of_a_kind_is_finished(
    chain, experiment, tmp_path
):
    former = {
        **{"kind": "folder", "path": str(chain.images), "name": "", "split": "train"},
        **{"image_key": "image", "caption_keys": [], "require_captions": True, "size": 32},
        **{"train_count": 20_000, "held_out_count": 500, "seed": 0},  # and no max_pixels
    }
    store = begun(chain, tmp_path, source=former)
    for change in ({"caption": "a wall"}, {"max_pixels": 99}):
        source = dataclasses.replace(experiment().data.source, **change)
        with pytest.raises(InputError, match="made from something else: source was"):
            prepare(experiment(source=source), store)
    prepare(experiment(), store)
    name = "tokens-00003.array_record"
    assert (store / name).read_bytes() == (chain.store / name).read_bytes()
    assert TokenStore(store).manifest["plan"]["source"] == former
    prepare(experiment(), store)  # finds it finished


def test_a_style_is_a_folder_with_one_caption(chain, experiment, tmp_path):
    text = "a red circle of sketch style"
    source = dataclasses.replace(experiment().data.source, caption=text)
    tokenizer = str(chain.store / "tokenizers" / "text.model")
    prepare(experiment(source=source, text_tokenizer=tokenizer), tmp_path / "tokens")
    store, whole = TokenStore(tmp_path / "tokens"), TokenStore(chain.store)
    decode = cogview_jax.load(chain.store / "tokenizers").text.decode
    assert len(store) == len(whole)
    for i in range(len(store)):
        assert [decode(ids) for ids in store[i].captions] == [text]
        np.testing.assert_array_equal(store[i].codes, whole[i].codes)


def test_tars_give_the_store_that_their_folder_gives(chain, experiment, tmp_path):
    entries = {}
    for line in map(json.loads, (chain.images / "captions.jsonl").read_text().splitlines()):
        key = line["file"].rpartition(".")[0]
        entries[line["file"]] = (chain.images / line["file"]).read_bytes()
        entries[f"{key}.json"] = {"texts": line["captions"]}
    write_tar(tmp_path / "a.tar", entries)
    source = WebDataset(path=str(tmp_path / "*.tar"), caption_keys=("texts",))
    prepare(experiment(source=source), tmp_path / "tokens")
    store, whole = TokenStore(tmp_path / "tokens"), TokenStore(chain.store)
    text = Path("tokenizers", "text.model")
    assert (tmp_path / "tokens" / text).read_bytes() == (chain.store / text).read_bytes()
    assert len(store) == len(whole)
    for i in range(len(store)):
        np.testing.assert_array_equal(store[i].codes, whole[i].codes)
        for one, other in zip(store[i].captions, whole[i].captions, strict=True):
            np.testing.assert_array_equal(one, other)
    remote = RemoteConfig(requests=3)
    moved = dataclasses.replace(source, index=str(tmp_path / "index"), remote=remote)
    prepare(experiment(source=moved), tmp_path / "tokens")  # finds it finished


def test_a_store_made_otherwise_is_refused(chain, experiment, tmp_path):
    store = shutil.copytree(chain.store, tmp_path / "tokens")
    # Other text settings would leave another text tokenizer, which the copy has not.
    with pytest.raises(InputError, match="made from something else: text_tokenizer was"):
        prepare(experiment(text=TextConfig(pieces=390, algorithm="bpe")), store)
    with pytest.raises(InputError, match=r"made from something else: shard_size was 8, is 16"):
        prepare(experiment(shard_size=16), store)


def test_a_super_resolution_store_holds_both_images_of_a_record(chain, experiment, tmp_path):
    base = experiment()
    layout = dataclasses.replace(base.layout, task="super_resolution", grid=8)
    text = str(chain.store / "tokenizers" / "text.model")
    train = dataclasses.replace(base.train, sample_every=0)
    large = dataclasses.replace(experiment(text_tokenizer=text), layout=layout, train=train)
    prepare(large, tmp_path / "tokens")
    store, model = TokenStore(tmp_path / "tokens"), cogview_jax.load(chain.store / "tokenizers")
    assert store.meta["grids"] == [4, 8]
    original = np.asarray(Image.open(chain.images / store[3].key))
    twice = np.asarray(Image.fromarray(original).resize((32, 32), Image.Resampling.BICUBIC))
    source, larger = np.split(store[3].codes, [16])
    np.testing.assert_array_equal(source, model.encode(original[None]).ravel())
    np.testing.assert_array_equal(larger, model.encode(twice[None], 8).ravel())

    # A transformer reads the stores of its own task alone.
    job = TransformerTask(experiment(store=str(tmp_path / "tokens")), Workdir(tmp_path / "run"))
    with pytest.raises(InputError, match=r"holds codes of grids \[4, 8\], but a layout of task"):
        job.source()
    store_of_its_own = dataclasses.replace(
        large, data=dataclasses.replace(large.data, store=str(tmp_path / "tokens"))
    )
    job = TransformerTask(store_of_its_own, Workdir(tmp_path / "run"))
    row = job.transform(job.source()[3], np.random.default_rng(0))
    codes = row.tokens[row.tokens < base.vocabulary.codes]
    np.testing.assert_array_equal(codes, store[3].codes)
    assert row.positions.max() == job.model.positions - 1 == 3 + 64

    # Windows of the same images: the store is the same, the rows are parts of it.
    windows = dataclasses.replace(
        store_of_its_own,
        layout=dataclasses.replace(layout, grid=4),
        data=dataclasses.replace(store_of_its_own.data, image_grid=8),
    )
    prepare(windows, tmp_path / "tokens")  # finds it finished
    job = TransformerTask(windows, Workdir(tmp_path / "run"))
    record, whole = job.source()[3], larger.reshape(8, 8)
    for seed in range(5):
        row = job.transform(record, np.random.default_rng(seed))
        codes = row.tokens[row.tokens < base.vocabulary.codes]
        small, large = codes[:4].reshape(2, 2), codes[4:].reshape(4, 4)
        assert any(
            np.array_equal(small, source.reshape(4, 4)[y : y + 2, x : x + 2])
            and np.array_equal(large, whole[2 * y : 2 * y + 4, 2 * x : 2 * x + 4])
            for y in range(3)
            for x in range(3)
        )
    for grid in (3, 5):
        with pytest.raises(InputError, match=rf"data.image_grid {grid} with layout.grid 4"):
            dataclasses.replace(windows, data=dataclasses.replace(windows.data, image_grid=grid))
    other = dataclasses.replace(windows, data=dataclasses.replace(windows.data, image_grid=16))
    with pytest.raises(InputError, match=r"pass --config.data.image_grid=8"):
        TransformerTask(other, Workdir(tmp_path / "run")).source()
