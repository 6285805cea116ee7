"""Every number of every experiment: what is not finite, negative or absurd is refused by name."""

import copy
import dataclasses
import math
import typing

import ml_collections
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.experiment import CodecExperiment, TransformerExperiment, read_experiment

SECTIONS = {
    "train": {"steps": 10, "global_batch": 8},
    "optimizer": {},
    "model": {},
    "loss_scale": {},
    "mesh": {},
    "profile": {},
}
CONFIGS = {
    CodecExperiment: SECTIONS
    | {"stage": "image_tokenizer", "loss": {}, "data": {"source": {"kind": "folder"}}},
    TransformerExperiment: SECTIONS
    | {"stage": "transformer", "vocabulary": {}, "layout": {}}
    | {"data": {"source": {"kind": "folder"}, "text": {}}},
}
WRONG = {float: (math.nan, math.inf, -math.inf, -1.0, 1e30), int: (-1, -(10**12), 10**12)}

#: What is wrong elsewhere is right here, and why.
ALLOWED = {
    # Too large a rate, decay or weight is found by the loss that it makes infinite, and no bound
    # tells what is too large for a model.
    **dict.fromkeys(("optimizer.lr", "optimizer.clip", "optimizer.weight_decay"), (1e30,)),
    **dict.fromkeys(("loss.commitment", "text_weight", "prompt_weight"), (1e30,)),
    **dict.fromkeys(("model.init_std", "model.sandwich_scale"), (1e30,)),
    # Updates shrink to nothing, which the loss shows.
    "optimizer.epsilon": (1e30,),
    # It divides scores and multiplies them again.
    "model.alpha": (1e30,),
    # A scale that is too large falls by itself.
    **dict.fromkeys(("loss_scale.initial", "loss_scale.minimum"), (1e30,)),
    # Pixels may be shifted and scaled as one likes.
    "model.mean": (-1.0, 1e30),
    "model.std": (1e30,),
    # All devices that the other axes leave. More than there are is found where they are known.
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), (-1, 10**12)),
}


def numbers(cls, prefix=""):
    """(dotted name, type, values in a list or None for a single one) of every number in `cls`."""
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, name = kinds[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from numbers(kind, f"{name}.")
            continue
        alternatives = typing.get_args(kind) or (kind,)
        for number in {int, float} & set(alternatives):
            yield name, number, len(alternatives) if typing.get_origin(kind) is tuple else None


CASES = [
    pytest.param(cls, name, [value] * many if many else value, id=f"{cls.__name__}-{name}={value}")
    for cls in CONFIGS
    for name, kind, many in numbers(cls)
    for value in WRONG[kind]
    if value not in ALLOWED.get(name, ())
]


def changed(cls, name, value):
    """The config of `cls` with one setting changed."""
    config = copy.deepcopy(CONFIGS[cls])
    *sections, last = name.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value
    return config


@pytest.mark.parametrize("cls", CONFIGS)
def test_all_numbers_are_looked_at(cls):
    names = {name for name, _, _ in numbers(cls)}
    assert {"train.steps", "optimizer.beta2", "mesh.fsdp", "seed", "data.max_skipped"} <= names
    assert len(names) > 40
    assert isinstance(read_experiment(CONFIGS[cls]), cls)


@pytest.mark.parametrize(("cls", "name", "value"), CASES)
def test_a_number_that_makes_no_sense_is_refused_by_name(cls, name, value):
    with pytest.raises(InputError) as error:
        read_experiment(changed(cls, name, value))
    shown = tuple(value) if isinstance(value, list) else value
    assert f"config.{name} = {shown!r}: expected" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_allowed(name):
    for cls in CONFIGS:
        for known, _, many in numbers(cls):
            for value in ALLOWED[name] if known == name else ():
                config = changed(cls, name, [value] * many if many else value)
                if name == "loss_scale.minimum":
                    config["loss_scale"]["initial"] = value
                assert isinstance(read_experiment(config), cls)


@pytest.mark.parametrize(
    ("cls", "name", "value", "message"),
    [
        (CodecExperiment, "loss.decay", 1.5, "at least 0 and below 1"),
        (CodecExperiment, "loss.decay", 1.0, "at least 0 and below 1"),
        (CodecExperiment, "data.smallest_crop", 0.0, "above 0 and at most 1"),
        (CodecExperiment, "data.max_skipped", 1.01, "0 to 1"),
        (TransformerExperiment, "optimizer.beta2", 1.0, "at least 0 and below 1"),
        (TransformerExperiment, "optimizer.epsilon", 0.0, "at least 1e-30"),
        (TransformerExperiment, "data.text.character_coverage", 1.01, "0.98 to 1"),
        (TransformerExperiment, "data.text.pieces", 0, "4 to 16777216"),
        (TransformerExperiment, "data.encode_batch", 0, "1 to 65536"),
        (TransformerExperiment, "data.shard_size", 0, "at least 1"),
        (TransformerExperiment, "seed", 2**32, "at least 0 and below 4294967296"),
    ],
)
def test_bounds_are_told(cls, name, value, message):
    with pytest.raises(InputError) as error:
        read_experiment(changed(cls, name, value))
    assert str(error.value) == f"config.{name} = {value!r}: expected {message}"


@pytest.mark.parametrize(
    "scheme", ["gs://bucket/x", "s3://b/x", "hdfs://h/x", "gs:/x", "file:///x"]
)
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (CodecExperiment, "data.source.path"),
        (CodecExperiment, "init_from"),
        (TransformerExperiment, "init_from"),
        *((TransformerExperiment, f"data.{n}") for n in ("store", "source.path")),
        *((TransformerExperiment, f"data.{n}_tokenizer") for n in ("image", "text")),
    ],
)
def test_addresses_are_no_paths(cls, name, scheme):
    with pytest.raises(InputError) as error:
        read_experiment(changed(cls, name, scheme))
    assert f"config.{name} = {scheme!r}: expected the path of a mounted" in str(error.value)


@pytest.mark.parametrize("path", ["a\0b", "caf\udce9"])
def test_texts_that_config_json_or_a_file_system_cannot_hold_are_no_paths(path):
    with pytest.raises(InputError, match=r"config\.data\.store = .*expected a path") as error:
        read_experiment(changed(TransformerExperiment, "data.store", path))
    str(error.value).encode()


def test_one_number_stands_for_a_list_where_both_are_welcome():
    config = ml_collections.ConfigDict(CONFIGS[CodecExperiment])
    config.model.channels = (8,)  # what `--config.model.channels=8` leaves of a list
    assert read_experiment(config).model.level_channels == (8, 8, 8)
    config.model.mean = (0.5,)
    with pytest.raises(InputError, match=r"config.model.mean = \(0.5,\): expected 3 values"):
        read_experiment(config)


def test_precision_and_layout_are_known_before_anything_is_done():
    for name, value, message in (
        ("precision", "half", "precision 'half' is unknown; choose from float32"),
        ("layout.task", "video", "layout task 'video' is unknown; choose from text_to_image"),
        ("layout.text_length", 0, "layout.text_length = 0: layout.task text_to_image expects"),
    ):
        with pytest.raises(InputError, match=message):
            read_experiment(changed(TransformerExperiment, name, value))
