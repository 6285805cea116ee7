"""Config files, variants, defaults and overrides: what loads, and what each mistake is called."""

import dataclasses
import subprocess
import sys
from typing import Literal

import pytest
from ml_collections import ConfigDict

from cogview_jax.runtime.config import Tagged, as_settings, build
from cogview_jax.runtime.config_fill import fill
from cogview_jax.runtime.config_flag import check_overrides, load_config
from cogview_jax.runtime.errors import InputError

CONFIG = """
import ml_collections


def get_config({argument}):
    sizes = {{"plain": 4, "large": 16}}
    return ml_collections.ConfigDict(
        {{
            "train": {{"steps": 10, "betas": (0.9, 0.95), "resume": None}},
            "model": {{"size": sizes[{value}]}},
            "init_from": None,
        }}
    )
"""
FILES = {
    "cfg.py": CONFIG.format(argument='variant="plain"', value="variant"),
    "plain.py": CONFIG.format(argument="", value='"plain"'),
    "needy.py": CONFIG.format(argument="variant", value="variant"),
    "broken.py": "def get_config():\n    return wall\n",
    "syntax.py": "def get_config(:\n",
    "empty.py": "x = 1\n",
    "three.py": "def get_config():\n    return 3\n",
    "picky.py": (
        "from cogview_jax.runtime.errors import InputError\n"
        "def get_config(variant):\n    raise InputError(f'no variant {variant}; choices: a, b')\n"
    ),
    "wrong.py": "def get_config():\n    return int('x')\n",
    "notes.txt": "hello",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def test_file_and_variant():
    assert load_config("plain.py").model.size == 4
    assert load_config("cfg.py").model.size == 4
    assert load_config("cfg.py:large").model.size == 16
    assert load_config("needy.py:plain").model.size == 4


def test_a_shipped_experiment_has_a_name():
    assert load_config("demo").layout.grid == 8
    assert load_config("fashion:drawings").model.layers == 4
    with pytest.raises(InputError, match=r"no shipped config 'dmo', .* did you mean demo\?"):
        load_config("dmo")


def test_what_is_none_takes_any_value_later():
    config = load_config("cfg.py")
    assert config.to_dict()["train"]["resume"] is None
    assert config.init_from is None
    config.lock()
    config.init_from = "runs/demo/bundle"
    config.train.resume = 7
    assert (config.init_from, config.train.resume) == ("runs/demo/bundle", 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cgf.py", "config file cgf.py does not exist; . has cfg.py"),
        ("no/cfg.py", "config file no/cfg.py does not exist (there is no folder no)"),
        (".", "config file . does not exist"),
        ("notes.txt", "config file notes.txt: expected a Python file (.py)"),
        ("cfg.py:huge", "config cfg.py:huge fails (cfg.py, line 10): KeyError: 'huge'"),
        ("small:65", "config small:65: variant '65': choose from 64, 128"),
        (
            "wrong.py",
            "config wrong.py fails (wrong.py, line 2): ValueError: invalid literal",
        ),
        ("plain.py:huge", "plain.py takes no variant (FILE.py)"),
        ("needy.py", "needy.py needs a variant (FILE.py:VARIANT)"),
        ("picky.py:c", "no variant c; choices: a, b"),
        ("broken.py", "fails (broken.py, line 2): NameError: name 'wall' is not defined"),
        ("syntax.py", "fails (syntax.py, line 1): SyntaxError"),
        ("empty.py", "config file empty.py defines no get_config()"),
        ("three.py", "get_config() gave 3, expected a ConfigDict"),
    ],
)
def test_mistakes_in_files(spec, message):
    with pytest.raises(InputError) as caught:
        load_config(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.trian.steps=2", "--config.trian.steps: cfg.py has no config.trian; did you"),
        ("-config.train.stps", "cfg.py has no config.train.stps; did you mean steps?"),
        ("--noconfig.train.stps", "cfg.py has no config.train.stps; did you mean steps?"),
        ("--config.zzz=2", "cfg.py has no config.zzz; choices: init_from, model, train"),
        ("--config.train.steps.x=2", "config.train.steps is a value, not a section"),
        ("--config.init_from.x=2", "config.init_from is a value, not a section"),
        ("--config.train.betas[7]=2", "config.train.betas has no item 7"),
        (
            "--config.train.betas[1]=2",
            "--config.train.betas[1]: an item of a list cannot be changed by itself; give the whole"
            " list, such as --config.train.betas=0.9,0.95",
        ),
        ("--config.train.betas.x=2", "config.train.betas has no item 'x'"),
        ("--config.train.a-b=2", "'train.a-b' is not the name of a setting"),
        ("--config.=2", "'' is not the name of a setting"),
    ],
)
def test_mistakes_in_overrides(argument, message):
    with pytest.raises(InputError) as caught:
        check_overrides("config", load_config("cfg.py"), "cfg.py", ["--seed=1", argument])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_overrides_pass():
    arguments = ["--config.train.steps=1", "--config.train.betas=1,2", "--configs.x=2", "x"]
    check_overrides("config", load_config("cfg.py"), "cfg.py", arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paint(Tagged):
    kind: str
    coats: int = 1


@dataclasses.dataclass(frozen=True)
class Sprayer:
    from_: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oil(Paint):
    kind: Literal["oil"] = "oil"
    name: str = "linseed"
    gloss: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chalk(Paint):
    kind: Literal["chalk"] = "chalk"
    name: str = "white"


@dataclasses.dataclass(frozen=True)
class Brush:
    width: float
    hairs: int | tuple[int, ...] = 100
    sizes: tuple[int, ...] = (1, 2)
    drip: float | None = None


@dataclasses.dataclass(frozen=True)
class Wall:
    steps: int
    brush: Brush
    paint: Paint
    labels: list[str] = dataclasses.field(default_factory=list)
    dry: bool = False
    side: Literal["north", "south"] = "north"


def test_what_a_file_leaves_out_has_its_default():
    config = ConfigDict({"brush": {"hairs": 7}, "paint": {"kind": "oil", "coats": 3}})
    assert fill(config, Wall) == (["steps", "brush.width"], [])
    assert config.to_dict() == {
        "steps": None,
        "brush": {"width": None, "hairs": 7, "sizes": (1, 2), "drip": None},
        "paint": {"kind": "oil", "coats": 3, "name": "linseed", "gloss": 0.5},
        "labels": [],
        "dry": False,
        "side": "north",
    }
    config.lock()
    config.update({"steps": 2, "dry": True, "brush": {"width": 3}})
    # What has several types, or None for a default, takes any value.
    for value in ((1, 2), 5, None):
        config.brush.hairs = value
    config.brush.drip = 0.5
    assert build(Wall, {**config, "brush": {**config.brush, "hairs": 5}}) == Wall(
        2, Brush(3.0, 5, drip=0.5), Oil(coats=3), dry=True
    )


def test_a_number_of_the_file_has_the_type_of_its_field():
    """An override is parsed as what the config holds: 0.5 would be refused for a whole number."""
    config = ConfigDict({"steps": 3, "brush": {"width": 1, "sizes": [4], "drip": 2.0}})
    fill(config, Wall)
    assert [config.brush.get_type(name) for name in ("width", "sizes", "drip")] == [
        *(float, tuple, object)
    ]
    assert (config.brush.width, config.brush.sizes, config.get_type("steps")) == (1.0, (4,), int)
    config.brush.width = 0.5


def test_references_of_the_file_stay():
    config = ConfigDict({"steps": 3, "brush": {"width": 1}, "paint": {"kind": "oil"}})
    config.paint.coats = config.get_ref("steps")
    config.paint.gloss = config.brush.get_ref("width") * 2
    config.brush.drip = config.brush.get_ref("width")
    fill(config, Wall)
    config.lock()
    config.steps, config.brush.width = 5, 0.5
    assert (config.paint.coats, config.paint.gloss, config.brush.drip) == (5, 1.0, 0.5)


def test_an_override_exchanges_the_kind():
    written = {"kind": "oil", "coats": 3, "name": "walnut", "gloss": 1.0}
    config = ConfigDict({"paint": written})
    filled = fill(config, Wall, {"paint.kind": "chalk"})
    assert sorted(filled.dropped) == ["paint.gloss", "paint.name"]
    # `coats` is common to all kinds; `name` may mean something else.
    assert config.paint.to_dict() == {"kind": "chalk", "coats": 3, "name": "white"}
    config = ConfigDict({"paint": written})
    fill(config, Wall, {"paint.kind": "oil", "paint.coats": "4"})
    assert config.paint.to_dict() == written
    config = ConfigDict()
    fill(config, Wall, {"paint.kind": "chalk"})
    assert config.paint.to_dict() == {"kind": "chalk", "coats": 1, "name": "white"}
    config = ConfigDict()
    fill(config, Wall)
    assert "paint" not in config
    with pytest.raises(InputError, match=r"^config.paint.kind = 'lime': choices are chalk, oil$"):
        fill(ConfigDict({"paint": written}), Wall, {"paint.kind": "lime"})
    with pytest.raises(InputError, match=r"^config.paint.kind = 'lime': choices are chalk, oil$"):
        fill(ConfigDict({"paint": {"kind": "lime"}}), Wall)


def test_what_the_dataclass_does_not_know_is_left_for_it_to_refuse():
    config = ConfigDict({"steps": 1, "stepz": 2, "brush": 3, "paint": {"kind": "oil", "hue": 1}})
    fill(config, Wall)
    assert (config.stepz, config.brush, config.paint.hue) == (2, 3, 1)
    with pytest.raises(InputError, match=r"config.stepz: no such setting; did you mean steps"):
        build(Wall, config)


COMMAND = '''
"""Paints a wall."""
import sys
from cogview_jax.runtime import command_line
from cogview_jax.runtime.config import as_settings, build
from cogview_jax.runtime.config_flag import config_flag, given, settings_page

def schema(config):
    print("schema asked", file=sys.stderr)
    from wall import Wall
    return Wall

CONFIG = config_flag(schema=schema)

def main():
    from wall import Wall
    print(settings_page(as_settings(build(Wall, CONFIG.value)), given()))

if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
'''
WALL = """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Brush:
    width: float
    drip: float | None = None
    from_: str = ""
@dataclasses.dataclass(frozen=True)
class Wall:
    brush: Brush
    steps: int
    name: str = "a wall"
"""


@pytest.fixture
def paint(root, tmp_path):
    """Calls a command whose schema is `Wall`."""
    (tmp_path / "paint.py").write_text(COMMAND)
    (tmp_path / "wall.py").write_text(WALL)
    (tmp_path / "low.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(size='s'):\n    return ConfigDict({'brush': {'width': 1}})\n"
    )

    def run(*arguments):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n"]
        command[-1] += f"sys.argv = {['paint.py', *arguments]!r}\n"
        command[-1] += "import runpy; runpy.run_path('paint.py', run_name='__main__')"
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run


def test_every_setting_is_printed_with_its_origin(paint):
    result = paint(
        *("--config=low.py:s", "--config.steps=3", "--config.brush.drip", "--config.brush.drip=.5")
    )
    assert result.stdout.splitlines() == [
        "steps       = 3         # --config.steps",
        "name        = 'a wall'  # default",
        "brush.width = 1.0       # low.py:s",
        "brush.drip  = 0.5       # --config.brush.drip",
        "brush.from  = ''        # default",
    ], result.stderr


def test_a_setting_may_be_called_as_python_calls_something_of_its_own(paint):
    result = paint("--config=low.py", "--config.steps=3", "--config.brush.from", "a.from=b")
    assert "brush.from  = 'a.from=b'  # --config.brush.from" in result.stdout, result.stderr
    result = paint("--config=low.py", "--config.steps=3", "--config.brush.from.x=1")
    assert "config.brush.from is a value, not a section" in result.stderr
    with pytest.raises(InputError, match=r"config\.brush\.from = 3: expected a text"):
        build(Sprayer, {"from": 3}, "config.brush")
    assert as_settings(build(Sprayer, {"from": "can"})) == {"from": "can"}


@pytest.mark.parametrize(
    ("arguments", "message", "asked"),
    [
        (("--config=low.py",), "error: config lacks steps; it needs a value for each", True),
        (("--config=low.py", "--config.step=3"), "has no config.step; did you mean steps?", True),
        (("--config=low.py", "--config.steps=a"), "--config.steps=a: expected a whole", True),
        (("--config=nowhere.py",), "config file nowhere.py does not exist", False),
        (("--help",), "", False),
    ],
)
def test_the_schema_is_asked_for_once_there_is_a_config(paint, arguments, message, asked):
    result = paint(*arguments)
    assert message in result.stderr
    assert ("schema asked" in result.stderr) == asked
    assert len(result.stderr.splitlines()) == asked + bool(message)


@dataclasses.dataclass(frozen=True)
class Painter:
    paint: Paint
    hours: float = 1.0


@dataclasses.dataclass(frozen=True)
class Team:
    painters: dict[str, Painter] = dataclasses.field(default_factory=dict)


def test_sections_under_names_of_the_user_s_own_come_from_the_file_and_from_flags():
    config = ConfigDict({"painters": {"ann": {"paint": {"kind": "oil"}, "hours": 2}}})
    overrides = {
        "painters.bob.paint.kind": "chalk",
        "painters.bob.hours": "3",
        "painters.ann.hours": "4",
    }
    assert fill(config, Team, overrides) == ([], [])
    assert [*config.painters] == ["ann", "bob"]
    assert (config.painters.ann.hours, config.painters.bob.paint.kind) == (2.0, "chalk")
    arguments = [f"--config.{name}={value}" for name, value in overrides.items()]
    check_overrides("config", config, "team.py", arguments)
    with pytest.raises(InputError, match=r"no config.painters.bob.hour; did you mean hours"):
        check_overrides("config", config, "team.py", ["--config.painters.bob.hour=1"])
    # Without one the section is empty, and what a section lacks is told.
    empty, lacking = ConfigDict(), ConfigDict()
    assert (fill(empty, Team), empty.to_dict()) == (([], []), {"painters": {}})
    fill(lacking, Team, {"painters.eve.hours": "1"})
    with pytest.raises(InputError, match=r"painters.eve lacks paint"):
        build(Team, lacking)
    with pytest.raises(InputError, match=r"painters.bob.paint.kind = 'lime': choices are chalk"):
        fill(ConfigDict(), Team, {"painters.bob.paint.kind": "lime"})
    with pytest.raises(InputError, match=r"config.painters.bob.paint lacks kind; choices are ch"):
        fill(ConfigDict(), Team, {"painters.bob.paint.coats": "2"})
    # A config that lists values in its place is refused when it is built.
    wrong = ConfigDict({"painters": 3})
    fill(wrong, Team)
    with pytest.raises(InputError, match=r"painters = 3: expected a section"):
        build(Team, wrong)
