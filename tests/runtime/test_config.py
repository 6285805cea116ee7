"""Settings become dataclasses, and every mistake is named."""

import dataclasses
from typing import Any, Literal

import ml_collections
import pytest

from cogview_jax.runtime.config import Tagged, build, closest
from cogview_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    lr: float
    kind: Literal["adam", "lion"] = "adam"

    def __post_init__(self):
        if self.lr < 0:
            raise InputError(f"lr = {self.lr}: expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Settings:
    optimizer: Optimizer
    steps: int = 10
    name: str = "run"
    remat: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    channels: tuple[int, ...] = (64,)
    labels: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    shape: int | tuple[int, ...] = 1
    keys: tuple[str, ...] = ()
    prompts: str | tuple[str, ...] = ""
    extra: Any = None
    second: Optimizer | None = None


def test_everything_together():
    built = build(
        Settings,
        {
            "optimizer": {"lr": 1, "kind": "lion"},
            "steps": 3,
            "betas": [0, 0.5],
            "channels": [1, 2, 3],
            "labels": ("a", "b"),
            "weights": {"x": 2},
            "init_from": "bundle",
            "shape": [4, 5],
            "extra": {"any": "thing"},
            "second": {"lr": 0.5},
        },
    )
    assert built == Settings(
        optimizer=Optimizer(1.0, "lion"),
        steps=3,
        betas=(0.0, 0.5),
        channels=(1, 2, 3),
        labels=["a", "b"],
        weights={"x": 2.0},
        init_from="bundle",
        shape=(4, 5),
        extra={"any": "thing"},
        second=Optimizer(0.5),
    )
    assert type(built.optimizer.lr) is float
    hash(built.optimizer)


def test_config_dict_with_references():
    config = ml_collections.ConfigDict({"optimizer": {"lr": 0.1}, "steps": 7})
    config.second = ml_collections.ConfigDict({"lr": config.optimizer.get_ref("lr")})
    config.optimizer.lr = 0.2
    built = build(Settings, config)
    assert built.second == Optimizer(0.2)
    assert built.steps == 7


def test_a_dataclass_is_taken_as_it_is():
    optimizer = Optimizer(0.1)
    assert build(Settings, {"optimizer": optimizer}).optimizer is optimizer
    assert build(Optimizer, optimizer) is optimizer


def test_names_of_a_command_line_are_told_apart_by_commas():
    """A flag gives them as a list of one text; prompts, which are sentences, stay whole."""

    def built(**settings):
        return build(Settings, {"optimizer": {"lr": 1.0}, **settings})

    assert built(keys=("a,b, c/d",)).keys == ("a", "b", "c/d")
    assert built(keys=("a",)).keys == ("a",)
    assert built(keys=["a", "b"]).keys == ("a", "b")
    assert built(keys=[]).keys == ()
    assert built(prompts=("a red, round ring",)).prompts == ("a red, round ring",)
    with pytest.raises(InputError, match=r"config.keys\[0\] = 3: expected a text"):
        built(keys=[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, "config.stepz: no such setting; did you mean steps?"),
        ({"optimizer": {"lr": 1.0, "moment": 2}}, "config.optimizer.moment: .*choices: kind, lr"),
        ({"optimizer": {}}, "config.optimizer lacks lr"),
        ({"optimizer": 3}, "config.optimizer = 3: expected a section with lr, kind"),
        ({"optimizer": {"lr": -1.0}}, "config.optimizer: lr = -1.0: expected 0 or more"),
        ({"optimizer": {"lr": True}}, "config.optimizer.lr = True: expected a number, got a bool"),
        ({"optimizer": {"lr": 1, "kind": "sgd"}}, "kind = 'sgd': choices are 'adam', 'lion'"),
        ({"steps": 2.0}, "config.steps = 2.0: expected a whole number, got a float"),
        ({"steps": True}, "config.steps = True: expected a whole number"),
        ({"steps": None}, "config.steps = None: expected a whole number, got None"),
        ({"remat": 1}, "config.remat = 1: expected True or False, got an int"),
        ({"name": 4}, "config.name = 4: expected a text"),
        ({"betas": [0.1]}, r"config.betas = \[0.1\]: expected 2 values"),
        ({"channels": [1, "2"]}, r"config.channels\[1\] = '2': expected a whole number"),
        ({"channels": 4}, "config.channels = 4: expected a list of values, got an int"),
        ({"weights": {"x": "y"}}, "config.weights.x = 'y': expected a number"),
        ({"init_from": 3}, "config.init_from = 3: expected a text"),
        ({"shape": "a"}, "config.shape = 'a': expected a whole number or a list of values"),
        ({"steps": {"a": 1}}, "config.steps = .* got a section"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(InputError, match=message) as caught:
        build(Settings, {"optimizer": {"lr": 0.1}} | change)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paint(Tagged):
    kind: str
    coats: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oil(Paint):
    kind: Literal["oil"] = "oil"
    gloss: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chalk(Paint):
    kind: Literal["chalk"] = "chalk"
    colour: str = "white"


@dataclasses.dataclass(frozen=True)
class Wall:
    paint: Paint


def test_a_section_is_of_the_kind_that_it_names():
    assert build(Wall, {"paint": {"kind": "oil", "gloss": 1, "coats": 2}}) == Wall(
        Oil(coats=2, gloss=1.0)
    )
    assert build(Wall, {"paint": {"kind": "chalk"}}).paint == Chalk()
    assert build(Wall, {"paint": Chalk(colour="red")}).paint.colour == "red"
    assert build(Chalk, {"colour": "red"}) == Chalk(colour="red")
    assert Paint.foreign("oil") == {"colour"}
    assert Paint.unshared() == {"gloss", "colour"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"coats": 2}, "config.paint lacks kind; choices are chalk, oil"),
        ({"kind": "lime"}, "config.paint.kind = 'lime': choices are chalk, oil"),
        ({"kind": ["oil"]}, "config.paint.kind = ['oil']: choices are chalk, oil"),
        (
            {"kind": "oil", "colour": "red"},
            "config.paint.colour: kind 'oil' has no such setting; it has kind, coats, gloss",
        ),
        ({"kind": "oil", "gloss": "much"}, "config.paint.gloss = 'much': expected a number"),
        ("oil", "config.paint = 'oil': expected a section with kind, coats"),
    ],
)
def test_mistakes_in_a_section_of_a_kind(section, message):
    with pytest.raises(InputError) as error:
        build(Wall, {"paint": section})
    assert str(error.value).startswith(message)


def test_a_kind_is_defined_once_and_has_a_name():
    with pytest.raises(TypeError, match=r'Water needs kind: Literal\["NAME"\]'):
        type("Water", (Paint,), {})
    with pytest.raises(TypeError, match=r"kind 'oil' is taken by .*test_config\.Oil"):
        type("Water", (Paint,), {"kind": "oil"})
    assert set(Paint.kinds) == {"oil", "chalk"}
    # The file of a config may be loaded twice.
    again = type("Chalk", (Paint,), {"kind": "chalk", "__module__": __name__})
    assert Paint.kinds["chalk"] is again
    Paint.kinds["chalk"] = Chalk


def test_where_names_the_place():
    with pytest.raises(InputError, match=r"^model.lr = 'a'"):
        build(Optimizer, {"lr": "a"}, where="model")


def test_closest():
    assert closest("trian", ["train", "model", "data"]) == "did you mean train?"
    assert closest("zzz", ["model", "data"]) == "choices: data, model"
