"""Every task on eight devices against one: the same codes, texts and scores."""

import dataclasses

import jax
import numpy as np
import pytest

import reference
from cogview_jax import load
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions
from cogview_jax.tokenizers.layout import make_layout

PROMPTS = ["a red circle", "a blue star", "two rings"]
SAMPLING = SamplingConfig(temperature=1.0, top_k=10)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def requests(indices, sampling):
    """Requests of the prompts."""
    return [
        SamplingRequest(prompt, 5, index, sampling)
        for prompt, index in zip(PROMPTS, indices, strict=True)
    ]


TASKS = {
    "text_to_image": {
        "sampled": lambda model: np.concatenate(
            list(model.generation.sample_codes(requests([0, 1, 2], SAMPLING), 2))
        ),
        "guided": lambda model: np.concatenate(
            list(model.generation.sample_codes(requests([0] * 3, SamplingConfig(guidance=2.0))))
        ),
        "completed": lambda model: np.concatenate(
            list(
                model.generation.complete_codes(
                    IMAGES, 2, requests([0] * 3, SAMPLING), range(len(IMAGES))
                )
            )
        ),
    },
    "caption": {
        "said": lambda model: model.caption(IMAGES, 5, sampling=SAMPLING),
        "scored": lambda model: model.score(IMAGES, PROMPTS),
    },
    "super_resolution": {
        "upsampled": lambda model: np.concatenate(
            list(
                model.super_resolution.upsample_codes(IMAGES, PROMPTS, SamplingOptions(5, SAMPLING))
            )
        ),
    },
}


@pytest.fixture(scope="module")
def bundles(chain, tmp_path_factory):
    """The chain's transformer by the tasks it is told to be of; for the last a random one."""
    base, folder = Bundle(chain.run / "bundle"), tmp_path_factory.mktemp("bundles")
    part = base.transformer()
    for task in TASKS:
        layout = dataclasses.replace(part.layout, task=task)
        if task == "super_resolution":
            layout = dataclasses.replace(layout, grid=8)
        positions = make_layout(layout, part.vocabulary).positions
        model = Transformer(part.config, part.vocabulary.size, positions)
        params = reference.random_like(unbox(transformer_shapes(model)), 3)
        own = dataclasses.replace(part, layout=layout, params=params)
        write_bundle(folder / task, codec=base, text=base.text(), transformer=own)
    return folder


@pytest.fixture(scope="module")
def alone(bundles):
    """What one device computes, by task and name."""
    models = {task: load(bundles / task) for task in TASKS}
    return {
        task: {name: call(models[task]) for name, call in calls.items()}
        for task, calls in TASKS.items()
    }


@pytest.mark.parametrize("sizes", [(2, 2, 2)], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_eight_devices_do_what_one_does(bundles, alone, task, sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    with jax.set_mesh(mesh):
        model = load(bundles / task, mesh=mesh)
        for name, call in TASKS[task].items():
            found, expected = call(model), alone[task][name]
            if name == "scored":
                np.testing.assert_allclose(found, expected, rtol=1e-5)
            else:
                np.testing.assert_array_equal(found, expected)
