"""Every number of every experiment: what is not finite, negative or absurd is refused by name."""

import copy
import dataclasses
import math
import typing

import ml_collections
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.experiment import CodecExperiment, TransformerExperiment, read_experiment
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.quantisers.quantiser import Quantiser
from cogview_jax.training.codec_loss import CodecLoss

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
    **dict.fromkeys(("optimizer.lr", "optimizer.muon_lr", "optimizer.clip"), (1e30,)),
    "optimizer.weight_decay": (1e30,),
    **dict.fromkeys(("loss.commitment", "text_weight", "prompt_weight", "lora.alpha"), (1e30,)),
    **dict.fromkeys(
        (
            "loss.adversarial.weight",
            "loss.adversarial.perceptual_weight",
            "model.quantiser.kl_weight",
        ),
        (1e30,),
    ),
    **dict.fromkeys(("model.quantiser.codebook_weight", "model.quantiser.entropy_weight"), (1e30,)),
    # A distribution that is flat, or codes that never become sure.
    "model.quantiser.entropy_temperature": (1e30,),
    **dict.fromkeys(("model.quantiser.temperature", "model.quantiser.last_temperature"), (1e30,)),
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
    # All tokens are alike, and all are taken.
    "sampling.temperature": (1e30,),
    "sampling.top_k": (10**12,),
    # All devices that the other axes leave. More than there are is found where they are known.
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), (-1, 10**12)),
}


#: Families of which every kind is looked at, each beside what makes the rest of a config fit it.
FAMILIES = (CodecConfig, Quantiser, CodecLoss)
BESIDE = {"loss": {"vqgan": {"model": {"kind": "vqgan"}}}}


class Number(typing.NamedTuple):
    """A number of a config.

    name: its dotted name. type: int or float. many: values in a list, or None for a single one.
    kinds: place of a section -> the kind that has the number.
    """

    name: str
    type: type
    many: int | None
    kinds: dict[str, str]


def numbers(cls, prefix="", kinds=None):
    """Every number in `cls`, of the families in every kind."""
    hints, kinds = typing.get_type_hints(cls), kinds or {}
    for field in dataclasses.fields(cls):
        kind, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            family = kind.kinds if kind in FAMILIES else {None: kind}
            for key, member in family.items():
                if member.__module__.startswith("cogview_jax"):
                    yield from numbers(member, f"{name}.", kinds | ({name: key} if key else {}))
            continue
        alternatives = typing.get_args(kind) or (kind,)
        for number in {int, float} & set(alternatives):
            many = len(alternatives) if typing.get_origin(kind) is tuple else None
            yield Number(name, number, many, kinds)


def allowed(number, value):
    return value in ALLOWED.get(number.name, ())


CASES = [
    pytest.param(
        cls,
        number,
        [value] * number.many if number.many else value,
        id=f"{cls.__name__}-{number.name}={value}",
    )
    for cls in CONFIGS
    for number in numbers(cls)
    for value in WRONG[number.type]
    if not allowed(number, value)
]


def changed(cls, number, value):
    """The config of `cls` with one setting changed."""
    config = copy.deepcopy(CONFIGS[cls])
    for place, kind in number.kinds.items():
        for section, settings in BESIDE.get(place, {}).get(kind, {}).items():
            config[section] |= copy.deepcopy(settings)
        section_of(config, place)["kind"] = kind
    section, _, last = number.name.rpartition(".")
    section_of(config, section)[last] = value
    return config


def single(name):
    """A number that every kind has."""
    return Number(name, float, None, {})


def section_of(config, place):
    for key in place.split(".") if place else ():
        config = config.setdefault(key, {})
    return config


@pytest.mark.parametrize("cls", CONFIGS)
def test_all_numbers_are_looked_at(cls):
    names = {number.name for number in numbers(cls)}
    assert {"train.steps", "optimizer.beta2", "mesh.fsdp", "seed", "data.max_skipped"} <= names
    assert len(names) > 40
    assert isinstance(read_experiment(CONFIGS[cls]), cls)


@pytest.mark.parametrize(("cls", "number", "value"), CASES)
def test_a_number_that_makes_no_sense_is_refused_by_name(cls, number, value):
    with pytest.raises(InputError) as error:
        read_experiment(changed(cls, number, value))
    shown = tuple(value) if isinstance(value, list) else value
    assert f"config.{number.name} = {shown!r}: expected" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_allowed(name):
    for cls in CONFIGS:
        for number in numbers(cls):
            for value in ALLOWED[name] if number.name == name else ():
                config = changed(cls, number, [value] * number.many if number.many else value)
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
        read_experiment(changed(cls, single(name), value))
    assert str(error.value) == f"config.{name} = {value!r}: expected {message}"


@pytest.mark.parametrize(
    ("cls", "name", "scheme"),
    [
        *(
            (TransformerExperiment, "data.store", scheme)
            for scheme in ("gs://bucket/x", "s3://b/x", "hdfs://h/x", "gs:/x", "file:///x")
        ),
        # Bundles have addresses, but not of any kind.
        *(
            (cls, name, scheme)
            for scheme in ("hdfs://h/x", "gs:/x", "file:///x")
            for cls, name in (
                (CodecExperiment, "init_from"),
                (TransformerExperiment, "init_from"),
                (TransformerExperiment, "data.image_tokenizer"),
                (TransformerExperiment, "data.text_tokenizer"),
            )
        ),
    ],
)
def test_addresses_are_no_paths(cls, name, scheme):
    with pytest.raises(InputError) as error:
        read_experiment(changed(cls, single(name), scheme))
    assert f"config.{name} = {scheme!r}: expected the path of a mounted" in str(error.value)


@pytest.mark.parametrize("path", ["a\0b", "caf\udce9"])
def test_texts_that_config_json_or_a_file_system_cannot_hold_are_no_paths(path):
    with pytest.raises(InputError, match=r"config\.data\.store = .*expected a path") as error:
        read_experiment(changed(TransformerExperiment, single("data.store"), path))
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
            read_experiment(changed(TransformerExperiment, single(name), value))
