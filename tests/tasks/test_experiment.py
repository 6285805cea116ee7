"""From a config to an experiment: what is read, and what is refused and named."""

import copy

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.tasks.experiment import (
    CodecExperiment,
    TransformerExperiment,
    read_experiment,
)
from cogview_jax.tasks.train_config import TrainConfig

TRANSFORMER = {
    "stage": "transformer",
    "train": {"steps": 10, "global_batch": 8},
    "data": {"source": {"kind": "shapes"}, "text": {"algorithm": "bpe"}},
    "model": {"layers": 2, "width": 32, "heads": 4},
    "vocabulary": {"codes": 16},
    "layout": {"grid": 4},
    "optimizer": {"lr": 1},
}


def changed(place, value):
    """TRANSFORMER with one setting changed, or left out where `value` is None."""
    config = copy.deepcopy(TRANSFORMER)
    *sections, name = place.split(".")
    node = config
    for section in sections:
        node = node[section]
    if value is None:
        del node[name]
    else:
        node[name] = value
    return config


def test_what_is_said_is_read_and_the_rest_has_its_default():
    experiment = read_experiment(TRANSFORMER)
    assert isinstance(experiment, TransformerExperiment)
    assert (experiment.model.width, experiment.model.alpha) == (32, 32.0)
    assert (experiment.vocabulary.codes, experiment.vocabulary.text) == (16, 50_000)
    assert (experiment.data.text.algorithm, experiment.data.text.pieces) == ("bpe", 50_000)
    assert experiment.optimizer.lr == 1.0
    assert (experiment.mesh, experiment.precision, experiment.seed) == (MeshConfig(), "float32", 0)

    data = {"source": {"kind": "folder", "path": "x"}}
    experiment = read_experiment(
        {**{k: TRANSFORMER[k] for k in ("train", "optimizer")}, "data": data}
        | {"stage": "image_tokenizer", "model": {"channels": [8, 16, 32]}}
    )
    assert isinstance(experiment, CodecExperiment)
    assert experiment.model.level_channels == (8, 16, 32)
    assert experiment.loss.commitment == 0.25


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("stage", "diffusion", "config.stage = 'diffusion': choose from image_tokenizer, transf"),
        ("stage", None, "config.stage = None: choose from"),
        ("stage", ["transformer"], "config.stage = ['transformer']: choose from"),
        ("model.widht", 3, "config.model.widht: no such setting; did you mean width"),
        ("seeds", 3, "config.seeds: no such setting; did you mean seed"),
        ("train.steps", None, "config.train lacks steps"),
        ("train.steps", 0, "config.train.steps = 0: expected at least 1"),
        ("train.log_every", 0, "config.train.log_every = 0: expected at least 1"),
        ("train.steps", 1.5, "config.train.steps = 1.5: expected a whole number"),
        ("train.accumulate", 3, "global_batch 8 cannot be cut into accumulate = 3 equal parts"),
        ("model.heads", 5, "config.model: model width 32 with 5 heads"),
        ("optimizer.lr", -1, "config.optimizer.lr = -1.0: expected above 0"),
        ("data.source", None, "config.data lacks source"),
        ("data.image_grid", (8, 8, 8), "image_grid = (8, 8, 8): expected a whole number or a list"),
        ("data.image_grid", (0, 99), "data.image_grid (0, 99) with layout.grid"),
        ("data.text.algorithm", "words", "config.data.text.algorithm = 'words': choices are"),
    ],
)
def test_what_is_wrong_is_named(place, value, message):
    with pytest.raises(InputError) as error:
        read_experiment(changed(place, value))
    assert message in str(error.value)


def test_a_setting_is_read_by_its_earlier_name():
    windows = changed("data.image_grid", 8)
    assert read_experiment(windows).data.image_grid == 8
    assert read_experiment(changed("data.picture_grid", 8)) == read_experiment(windows)
    windows["data"]["picture_grid"] = 8
    with pytest.raises(InputError, match=r"data.picture_grid: no such setting; did you mean"):
        read_experiment(windows)


def test_steps_may_be_fewer_than_the_intervals():
    assert TrainConfig(steps=1, global_batch=1, log_every=10).checkpoint_every == 1000


def test_a_task_without_images_is_not_asked_for_samples():
    section = TRANSFORMER["layout"] | {"task": "caption"}
    train = TRANSFORMER["train"] | {"sample_every": 5}
    assert read_experiment(TRANSFORMER | {"layout": section}).layout.task == "caption"
    with pytest.raises(
        InputError, match=r"sample_every 5: a model of layout.task 'caption' has no"
    ):
        read_experiment(TRANSFORMER | {"layout": section, "train": train})


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("text_to_image", {"drop_captions": 1.5}, "config.drop_captions = 1.5: expected 0 to 1"),
        ("text_to_image", {"drop_captions": -0.1}, "config.drop_captions = -0.1: expected 0 to 1"),
        ("text_to_image", {"corrupt_codes": 1.5}, "config.corrupt_codes = 1.5: expected 0 to 1"),
        ("caption", {"drop_captions": 0.1}, "drop_captions 0.1: a caption model learns nothing"),
        ("caption", {"sampling": {"guidance": 2.0}}, "sampling.guidance 2.0: a model of layout.t"),
        (
            *("text_to_image", {"sampling": {"guidance": 2.0}}),
            "sampling.guidance 2.0 compares with images without a caption, but with drop_captions",
        ),
        (
            *("text_to_image", {"sampling": {"temperature": -1.0}}),
            "config.sampling.temperature = -1.0: expected 0",
        ),
        ("caption", {"prompt_weight": -1.0}, "config.prompt_weight = -1.0: expected at least 0"),
        ("caption", {"code_embeddings": "vqvae"}, "code_embeddings = 'vqvae'"),
    ],
)
def test_shares_and_weights_that_make_no_sense_are_refused(task, changes, message):
    config = TRANSFORMER | changes
    config["layout"] = config["layout"] | {"task": task}
    with pytest.raises(InputError, match=message):
        read_experiment(config)


def test_codes_that_are_kept_come_from_a_bundle():
    config = {
        "stage": "image_tokenizer",
        "train": {"steps": 10, "global_batch": 8},
        "data": {"source": {"kind": "folder", "path": "images"}},
        "loss": {"decoder_only": True},
    }
    with pytest.raises(
        InputError, match=r"loss.decoder_only keeps the codes .* init_from is empty"
    ):
        read_experiment(config)
    experiment = read_experiment(config | {"init_from": "bundle"})
    assert isinstance(experiment, CodecExperiment)
    assert experiment.loss.decoder_only


@pytest.mark.parametrize(
    "place", ["init_from", "data.from", "data.image_tokenizer", "data.text_tokenizer"]
)
def test_bundles_may_be_at_addresses(place):
    for address in ("hf://me/model@v1/small", "gs://bucket/runs/demo/bundle"):
        read_experiment(changed(place, address))
    name = place.rpartition(".")[2]
    with pytest.raises(InputError, match=rf"{name} = 'hf://model': expected hf://OWNER/NAME"):
        read_experiment(changed(place, "hf://model"))
    with pytest.raises(InputError, match=r"data.store = 'gs://b/x': .* mounted file system"):
        read_experiment(changed("data.store", "gs://b/x"))
