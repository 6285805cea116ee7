"""What a config has of an earlier run, what it keeps of its own, and which runs are refused."""

import json
import shutil

import pytest
from ml_collections import ConfigDict

from cogview_jax.checkpoints import bundle_folder
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.shipped import shipped
from cogview_jax.runtime.config_fill import fill
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.earlier_run import resolve
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.preparation import prepare_run
from cogview_jax.tasks.store_tokenizers import given_text
from cogview_jax.tasks.workdir import Workdir, read_settings, resolved_settings


def settings(section, prefix=""):
    """{dotted name: value} of what a file says."""
    found = {}
    for key, value in section.items():
        inner = settings(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{key}": value} if inner is None else inner
    return found


def resolved(file, flags=(), path=None):
    """What becomes of a config file's settings, of which flags give those in `flags`."""
    file = {"stage": "transformer", "train": {"steps": 12, "global_batch": 8}} | file
    config = ConfigDict(file)
    fill(config, TransformerExperiment)
    given = {name: "cfg.py" for name in settings(file)}
    given |= {name: f"--config.{name}" for name in flags}
    return resolve(config, given, None if path is None else Workdir(path, shown=str(path)))


def test_of_a_codecs_run_come_images_codec_and_its_sizes(chain):
    experiment, origins = resolved({"data": {"from": str(chain.codec)}})
    codec = json.loads((chain.codec / "config.json").read_text())
    source = resolved_settings(experiment)["data"]["source"]
    assert source == codec["data"]["source"] | {"require_captions": True}
    assert codec["data"]["source"]["require_captions"] is False
    assert experiment.data.image_tokenizer == f"{chain.codec}/bundle"
    assert (experiment.vocabulary.codes, experiment.layout.grid) == (16, 4)
    assert (experiment.vocabulary.text, experiment.data.text_tokenizer) == (50_000, "")
    assert (experiment.data.store, experiment.data.from_) == ("", str(chain.codec))
    assert origins["vocabulary.codes"] == origins["data.source.size"] == "data.from"
    assert "data.source.require_captions" not in origins


def test_of_a_codecs_run_come_its_filters_and_the_paper_around_its_images(chain, tmp_path):
    shutil.copytree(chain.codec, tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    before = json.loads(config.read_text())
    for crop, expected in (("pad", "pad"), ("random", "center")):
        before["data"] |= {"filter": {"min_side": 12, "max_aspect": 3.0}, "crop": crop}
        config.write_text(json.dumps(before))
        file = {"data": {"from": str(tmp_path / "codec"), "filter": {"max_aspect": 2.0}}}
        data = resolved(file)[0].data
        assert (data.filter.min_side, data.filter.max_aspect) == (12, 2.0)
        assert data.crop == expected


def test_what_the_file_or_a_flag_gives_stays(chain, capsys):
    source = {"kind": "shapes", "path": "mine", "size": 64}
    file = {"data": {"from": str(chain.codec), "source": source, "image_tokenizer": "theirs"}}
    file |= {"layout": {"grid": 8}}
    experiment, _ = resolved(file, flags=["data.source.path"])
    assert (experiment.data.source.path, experiment.data.source.size) == ("mine", 64)
    assert experiment.data.source.train_count == 64, "the run's, since nobody gave it"
    assert (experiment.data.image_tokenizer, experiment.layout.grid) == ("theirs", 8)
    # A flag is what its user has in mind; what a file says may be forgotten.
    said = "the config's own data.source.size, data.image_tokenizer, layout.grid stays"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "flags", "kind"),
    [
        ({"kind": "folder"}, [], "shapes"),
        ({"kind": "folder"}, ["data.source.kind"], "folder"),
        ({"kind": "folder", "path": "mine"}, [], "folder"),
    ],
)
def test_a_source_of_another_kind_is_the_runs_unless_more_is_said_of_it(chain, source, flags, kind):
    experiment, _ = resolved({"data": {"from": str(chain.codec), "source": source}}, flags)
    assert experiment.data.source.kind == kind
    assert experiment.data.source.path == (
        f"{chain.folder}/drawings" if kind == "shapes" else source.get("path", "")
    )


def test_parts_of_a_mixture_are_ones_own_if_any_is_named(chain, tmp_path):
    shutil.copytree(chain.codec, tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    before = json.loads(config.read_text())
    theirs = {"photos": {"source": {"kind": "folder", "path": "theirs"}, "weight": 3.0}}
    before["data"]["source"] = {"kind": "mixture", "require_captions": False, "parts": theirs}
    config.write_text(json.dumps(before))
    mine = {"drawings": {"source": {"kind": "folder", "path": "mine"}}}
    for parts, expected in (({}, theirs), (mine, mine)):
        source = {"kind": "mixture", "parts": parts}
        flags = [f"data.source.{name}" for name in settings(source)]
        file = {"data": {"from": str(tmp_path / "codec"), "source": source}}
        assert resolved(file, flags)[0].data.source.parts.keys() == expected.keys()


def test_of_a_transformers_run_comes_the_store_if_the_codes_are_the_same(chain):
    file = {"data": {"from": str(chain.run)}, "layout": {"task": "caption"}}
    experiment, _ = resolved(file)
    ours = read_settings(chain.run / "config.json")
    assert experiment.data.store == f"{chain.run}/tokens"
    assert experiment.data.source == ours.data.source
    assert (experiment.vocabulary, experiment.layout.grid) == (ours.vocabulary, 4)
    assert (experiment.layout.text_length, experiment.layout.task) == (40, "caption")
    prepare_run(experiment, Workdir(chain.folder / "captions"))  # finds it finished
    left, _ = resolved({"layout": {"task": "caption"}}, path=chain.folder / "captions")
    assert left == experiment


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ({"source": {"kind": "folder", "path": "mine"}}, {}),
        ({"image_grid": 8}, {}),
        ({"encode_precision": "bfloat16"}, {}),
        ({}, {"task": "super_resolution"}),
    ],
)
def test_other_codes_need_a_store_of_their_own_with_the_same_tokenizers(chain, data, layout):
    experiment, _ = resolved({"data": {"from": str(chain.run)} | data, "layout": layout})
    assert experiment.data.store == ""
    assert experiment.data.text_tokenizer == f"{chain.run}/tokens/tokenizers/text.model"
    theirs = Bundle(chain.run / "bundle")
    assert Bundle(experiment.data.image_tokenizer).sha256("codec") == theirs.sha256("codec")
    for name, value in data.get("source", {}).items():
        assert getattr(experiment.data.source, name) == value


def test_of_a_bundle_come_tokenizers_and_sizes_and_the_images_are_ones_own(chain):
    data = {"source": {"kind": "folder", "path": "mine"}}
    whole, codec = chain.run / "bundle", chain.codec / "bundle"
    experiment, _ = resolved({"data": data | {"from": str(whole)}})
    assert experiment.data.image_tokenizer == str(whole)
    assert experiment.data.text_tokenizer == f"{whole}/text.model"
    ours = read_settings(chain.run / "config.json")
    assert (experiment.vocabulary, experiment.layout.grid) == (ours.vocabulary, 4)
    assert (experiment.layout.text_length, experiment.data.source.path) == (40, "mine")
    alone, _ = resolved({"data": data | {"from": str(codec)}})
    assert (alone.data.image_tokenizer, alone.data.text_tokenizer) == (str(codec), "")
    assert (alone.vocabulary.codes, alone.layout.grid) == (16, 4)


def test_of_an_adapter_of_a_shipped_bundle_come_its_bases_tokenizers():
    experiment, _ = resolved({"data": {"from": "emoji_caption", "source": {"kind": "emoji"}}})
    assert experiment.data.image_tokenizer == "emoji_caption"
    assert experiment.data.text_tokenizer == str(shipped()["emoji"] / "text.model")
    assert (experiment.vocabulary.codes, experiment.vocabulary.text) == (2048, 1500)


def test_train_finds_what_prepare_has_left_and_a_resumed_run_what_it_began_with(chain, tmp_path):
    """The codec is named once; what a run began with is not asked for again."""
    small = {
        "vocabulary": {"text": 400},
        "layout": {"text_length": 40},
        "model": {"layers": 1, "width": 16, "heads": 2},
    }
    data = {"source": {"kind": "folder", "path": str(chain.images)}, "text": {"pieces": 400}}
    told = small | {"data": data | {"from": str(chain.codec)}}
    first, _ = resolved(told, ["data.from"], tmp_path)
    prepare_run(first, Workdir(tmp_path))
    again = small | {"train": {"steps": 1, "global_batch": 8}}
    second, origins = resolved(again, path=tmp_path)
    assert second.data == first.data
    assert (second.vocabulary, second.layout) == (first.vocabulary, first.layout)
    assert origins["data.source.path"] == str(tmp_path)
    assert resolved(told, ["data.from"], tmp_path)[0].data == first.data
    Workdir(tmp_path).claim(second)
    (tmp_path / "prepared.json").unlink()
    assert resolved(again, path=tmp_path)[0] == second


def test_runs_that_cannot_be_used_are_refused_in_a_line(chain, tmp_path):
    def refused(name, line):
        with pytest.raises(InputError, match=line):
            resolved({"data": {"from": str(name)}})

    refused(tmp_path / "none", "neither config.json nor bundle.json in it$")
    refused("nobody", "data.from = 'nobody'.*: there is no shipped bundle 'nobody', and no such f")
    refused("runs/gone", r"^data.from = 'runs/gone' \(looked for in /.*\): expected the workdir of")
    refused(chain.run / "samples", rf"nor bundle.json in it; did you mean {chain.run}\?")
    shutil.copy(chain.codec / "config.json", tmp_path)
    refused(tmp_path, f"no bundle yet: finish it with the same `cogview train .*{tmp_path}")
    shutil.copy(chain.run / "config.json", tmp_path)
    refused(tmp_path, f"there are no tokenizers, since neither its token store {tmp_path}/tokens")
    (tmp_path / "config.json").rename(tmp_path / "prepared.json")
    refused(tmp_path, "it was only prepared: `cogview train` with the same --workdir begins it")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, r"config\.json: damaged: not readable as JSON")


def test_a_bundle_at_an_address_is_named_by_it(monkeypatch):
    """Not by its copy, which may be deleted."""
    monkeypatch.setattr(bundle_folder, "bundle_copy", lambda _: shipped()["emoji"])
    address, local = "hf://me/emoji@v1", Bundle(shipped()["emoji"])
    experiment, _ = resolved({"data": {"from": address, "source": {"kind": "shapes"}}})
    assert experiment.data.image_tokenizer == address
    assert experiment.data.text_tokenizer == f"{address}/text.model"
    assert experiment.vocabulary.codes == local.codec_config().codebook
    assert given_text(experiment.data).sha256 == local.sha256("text")


def test_the_commands_need_the_codec_once(chain, tmp_path):
    sizes = ("--config.model.layers=1", "--config.model.width=16", "--config.model.heads=2")
    lengths = ("--config.layout.text_length=60", "--config.train.steps=1")
    names = (f"--workdir={tmp_path / 'run'}", "--config=configs/tutorial.py")
    batch = ("--config.train.global_batch=8", "--config.train.accumulate=1")
    arguments = (*names, *sizes, *lengths, *batch, "--config.train.sample_every=0")
    pieces = ("--config.vocabulary.text=400", "--config.data.text.pieces=400")
    tokens = ("--config.data.text.algorithm=bpe", f"--config.data.from={chain.codec}")
    chain.succeed("prepare", *arguments, *pieces, *tokens)
    chain.succeed("train", *arguments)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["data"]["image_tokenizer"] == f"{chain.codec}/bundle"
    assert written["data"]["source"]["kind"] == "shapes"
    assert (written["layout"]["grid"], written["vocabulary"]["codes"]) == (4, 16)
    chain.succeed("train", *arguments, *tokens)
    printed = chain.succeed("train", "--config=tutorial", tokens[-1], "--print_config").stdout
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"data.from = '{chain.codec}' # --config.data.from" in lines
    assert "layout.grid = 4 # data.from" in lines


def test_a_dry_run_needs_no_earlier_run(tmp_path, capsys):
    data = {"from": str(tmp_path / "codec"), "source": {"kind": "folder", "path": "images"}}
    file = {"data": data, "vocabulary": {"codes": 48}}
    config = ConfigDict({"stage": "transformer", "train": {"steps": 1, "global_batch": 1}} | file)
    fill(config, TransformerExperiment)
    experiment, _ = resolve(config, {}, may_be_absent=True)
    assert experiment.vocabulary.codes == 48
    assert "codec is not there yet: sizes are those of the config" in capsys.readouterr().err
    (tmp_path / "codec").mkdir()  # what is there has to be a run
    with pytest.raises(InputError, match=r"expected the workdir of a run, or a bundle"):
        resolve(config, {}, may_be_absent=True)
    with pytest.raises(InputError, match=r"neither config.json nor"):
        resolved(file)
