"""Prompts of one's own: where they come from, what previews show of them, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.sample_prompts import MOST_SAMPLE_PROMPTS, read_sample_prompts
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.objective import ModelValues
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes

PROMPTS = ("a red circle", "两个黄色圆环")


@pytest.fixture
def tokenizer(chain):
    return Bundle(chain.store / "tokenizers").text()


def test_a_file_has_a_prompt_a_line(tokenizer, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"\ufeff{PROMPTS[0]}\r\n\n  {PROMPTS[1]} \n".encode())
    assert read_sample_prompts(str(file), tokenizer, 40) == list(PROMPTS)
    assert read_sample_prompts(PROMPTS, tokenizer, 40) == list(PROMPTS)


def test_what_is_no_list_of_prompts_is_refused(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "long.txt").write_text("a red circle\n" + "a circle " * 20)
    (tmp_path / "many.txt").write_text("a red circle\n" * (MOST_SAMPLE_PROMPTS + 1))
    count = len(tokenizer.encode("a circle " * 20))
    for name, message in {
        "none.txt": "cannot be read as UTF-8 text: .*No such file",
        ".": "cannot be read as UTF-8 text: .*expected a file",
        "latin.txt": "cannot be read as UTF-8 text: ",
        "empty.txt": "0 prompts, expected 1 to 64, one a line",
        "many.txt": "65 prompts, expected 1 to 64, one a line",
        "long.txt": f"'a circle .* has {count} tokens, but layout.text_length is 40: shorten it",
    }.items():
        with pytest.raises(InputError, match=f"^train.sample_prompts {tmp_path}.*{message}"):
            read_sample_prompts(str(tmp_path / name), tokenizer, 40)
    with pytest.raises(InputError, match=r"^train.sample_prompts: prompt ' ' holds no text"):
        read_sample_prompts(("a red circle", " "), tokenizer, 40)


def test_a_preview_shows_what_the_bundle_generates(chain):
    config = json.loads((chain.run / "config.json").read_text())
    config["train"] |= {"sample_prompts": list(PROMPTS), "sample_every": 2}
    config["sampling"] = {"temperature": 0.5, "top_k": 3}
    experiment = read_experiment(config)
    task = TransformerTask(experiment, Workdir(chain.run))
    optimizer, mesh = make_optimizer(experiment.optimizer, 1), make_mesh(MeshConfig(data=8))
    shapes = state_shapes(task.objective, optimizer, mesh)
    params = Bundle(chain.run / "bundle").transformer(mesh).params
    sheet = task.preview(shapes.with_values(ModelValues(params, ())), task.source())
    rows = cogview_jax.load(chain.run / "bundle").generate(
        list(PROMPTS), seed=0, sampling=SamplingConfig(0.5, top_k=3)
    )
    images = [np.asarray(image) for (image,) in rows]
    np.testing.assert_array_equal(sheet, np.asarray(caption_grid(images, list(PROMPTS))))

    # A bundle names them.
    assert task.described(ModelValues(params, ()))["transformer"]["prompts"] == list(PROMPTS)
    # Those of a config may stay where a flag has nothing sampled.
    assert dataclasses.replace(experiment.train, sample_every=0).sample_prompts
    config["train"]["sample_prompts"] = str(chain.run / "none.txt")
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        TransformerTask(read_experiment(config), Workdir(chain.run)).source()
