"""Whose a workdir is: resumed by its own config, refused to another."""

import dataclasses
import json
import os

import pytest

from cogview_jax.runtime import lock
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.workdir import Workdir
from processes import left_by_the_dead

EXPERIMENT = read_experiment(
    {
        "stage": "image_tokenizer",
        "train": {"steps": 10, "global_batch": 8},
        "data": {"source": {"kind": "folder", "path": "图片"}},
        "model": {"downsampling": 4, "channels": (8, 16)},
        "optimizer": {},
    }
)


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path / "deep" / "run")
    workdir.check(EXPERIMENT)
    assert not workdir.path.exists()
    workdir.claim(EXPERIMENT)
    return workdir


def test_config_json_is_every_setting(workdir):
    written = json.loads(workdir.config.read_text(encoding="utf-8"))
    assert read_experiment(written) == EXPERIMENT
    assert written["data"]["source"]["path"] == "图片"
    assert written["model"]["channels"] == [8, 16]
    workdir.check(EXPERIMENT)


def test_where_how_long_and_what_is_reported_may_change(workdir):
    train = dataclasses.replace(
        EXPERIMENT.train, steps=20, log_every=1, checkpoint_every=7, sample_every=3, keep=5
    )
    longer = dataclasses.replace(EXPERIMENT, train=train, mesh=MeshConfig(data=1, fsdp=-1))
    workdir.check(longer)
    workdir.claim(longer)
    assert json.loads(workdir.config.read_text())["train"]["steps"] == 20


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train", {"global_batch": 16}, "train.global_batch = 8, but the config says 16"),
        ("model", {"channels": (8, 8)}, r"model.channels = \[8, 16\], but the config says \[8, 8"),
        ("optimizer", {"lr": 1.0}, "optimizer.lr = 0.0003, but the config says 1.0"),
        (None, {"seed": 1}, "seed = 0, but the config says 1"),
        (None, {"precision": "bfloat16"}, "precision = 'float32', but the config says 'bfloat16'"),
    ],
)
def test_another_config_is_refused_and_the_difference_named(workdir, section, changes, message):
    before = workdir.config.read_bytes()
    part = dataclasses.replace(
        getattr(EXPERIMENT, section or "train"), **changes if section else {}
    )
    other = dataclasses.replace(EXPERIMENT, **({section: part} if section else changes))
    with pytest.raises(InputError, match=rf"{workdir.path} holds a run with {message}"):
        workdir.check(other)
    assert workdir.config.read_bytes() == before


def test_the_same_content_may_lie_at_another_path(workdir):
    source = dataclasses.replace(EXPERIMENT.data.source, path="moved")
    elsewhere = dataclasses.replace(
        EXPERIMENT, data=dataclasses.replace(EXPERIMENT.data, source=source)
    )
    # A run of before contents were noted has nothing to compare with.
    with pytest.raises(InputError, match=r"data.source.path = '图片', but the config says 'moved'"):
        workdir.check(elsewhere)
    name = "data.source.path"
    workdir.claim(EXPERIMENT, {name: "a" * 64})
    assert workdir.check(EXPERIMENT) == {}
    moved = workdir.check(elsewhere)
    assert moved == {name: ("图片", "moved")}
    for contents, holds in (({name: "b" * 64}, "b" * 12), ({}, "nothing know")):
        with pytest.raises(
            InputError, match=rf"'图片' \(content a{{12}}\), but .* 'moved', .* else \({holds}\)"
        ):
            workdir.check_contents(moved, contents)
    workdir.check_contents(moved, {name: "a" * 64})
    workdir.claim(elsewhere)
    assert workdir.check(elsewhere) == {}
    assert list(workdir.check(EXPERIMENT)) == [name]


def test_a_config_that_is_no_section_is_one_line(workdir):
    workdir.config.write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is of another program .* config is a list"):
        workdir.check(EXPERIMENT)


def test_a_path_that_is_no_utf8_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--workdir = .*: expected a path of UTF-8 characters"):
        Workdir(tmp_path / "caf\udce9")


def test_the_other_stage_is_refused(workdir):
    other = read_experiment(
        {
            "stage": "transformer",
            "train": {"steps": 10, "global_batch": 8},
            "data": {"source": {"kind": "folder", "path": "图片"}},
            "model": {},
            "vocabulary": {},
            "layout": {},
            "optimizer": {},
        }
    )
    with pytest.raises(InputError, match="holds a run with"):
        workdir.check(other)


def test_a_config_that_cannot_be_read_is_refused(workdir):
    workdir.config.write_text("{")
    with pytest.raises(InputError, match=r"config.json: damaged: not readable as JSON"):
        workdir.check(EXPERIMENT)


def test_a_run_of_before_a_setting_existed_goes_on_with_its_default(workdir):
    written = json.loads(workdir.config.read_text())
    del written["loss_scale"], written["optimizer"]["schedule"]
    workdir.config.write_text(json.dumps(written))
    workdir.check(EXPERIMENT)
    constant = dataclasses.replace(EXPERIMENT.optimizer, schedule="constant")
    with pytest.raises(InputError, match=r"optimizer.schedule = 'cosine', but the config says"):
        workdir.check(dataclasses.replace(EXPERIMENT, optimizer=constant))
    workdir.config.write_text(json.dumps(written | {"later": 1}))
    with pytest.raises(InputError, match=r"config.json is of another program or version: .*later"):
        workdir.check(EXPERIMENT)


def test_a_run_with_earlier_names_of_settings_goes_on(workdir):
    written = json.loads(workdir.config.read_text())
    written["model"]["deviation"] = written["model"].pop("std")
    workdir.config.write_text(json.dumps(written))
    workdir.check(EXPERIMENT)
    written["model"]["deviation"][0] *= 2
    workdir.config.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"holds a run with model.std = "):
        workdir.check(EXPERIMENT)


#: What `train` once wrote of any source: the settings of all kinds, whatever the kind was.
FORMER_SOURCE = {
    **{"kind": "folder", "path": "图片", "name": "", "split": "", "image_key": "image"},
    **{"caption_keys": ["captions/text"], "require_captions": True, "max_pixels": 100_000_000},
    **{"size": 64, "train_count": 10_000, "held_out_count": 500, "seed": 0},
}


def test_a_run_of_before_kinds_of_sources_had_their_own_settings_goes_on(workdir):
    written = json.loads(workdir.config.read_text())

    def write(**changes):
        written["data"]["source"] = FORMER_SOURCE | changes
        workdir.config.write_text(json.dumps(written))

    write()
    workdir.check(EXPERIMENT)
    # What only other kinds read may have been anything.
    write(name="coco_captions", size=32)
    workdir.check(EXPERIMENT)
    write(path="elsewhere")
    with pytest.raises(InputError, match=r"data.source.path = 'elsewhere', but the config says"):
        workdir.check(EXPERIMENT)
    write(kind="shapes")
    with pytest.raises(
        InputError, match=r"data.source.kind = 'shapes', but the config says 'folder"
    ):
        workdir.check(EXPERIMENT)
    for changes, message in (
        ({"later": 1}, "data.source.later: kind 'folder' has no such setting"),
        (
            {"kind": "webdata"},
            "data.source.kind = 'webdata': choices are arrow, coco, emoji, folder",
        ),
        ({"kind": ["folder"]}, "data.source.kind = "),
    ):
        write(**changes)
        with pytest.raises(InputError, match=f"is of another program or version: .*{message}"):
            workdir.check(EXPERIMENT)
    written["data"] = 3
    workdir.config.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"is of another program or version: config.data = 3"):
        workdir.check(EXPERIMENT)


def test_one_run_at_a_time_has_a_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    path = tmp_path / "run"
    busy = rf"the workdir {path} is in use by process {os.getpid()} on .*choose another --workdir"
    with Workdir(path).held(), pytest.raises(InputError, match=busy), Workdir(path).held():
        pass
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(InputError, match=rf"--workdir {path} is a file"), Workdir(path).held():
        pass


def test_leftovers_of_a_killed_run_are_removed(workdir):
    left_by_the_dead(workdir.bundle).mkdir()
    workdir.claim(EXPERIMENT)
    assert {path.name for path in workdir.path.iterdir()} == {"config.json", "contents.json"}
