"""Config files, variants and overrides: what loads, and what each mistake is called."""

import pytest

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
    assert load_config("demo").layout.task == "text_to_image"
    assert load_config("fashion:small").model.layers == 4
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
