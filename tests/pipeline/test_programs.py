"""How many programs a sampling job compiles: every small one that jax runs by itself counts."""

import jax
import numpy as np
import pytest
from pipeline.small import PROMPTS

from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.commands.sample_images import text_to_image
from cogview_jax.commands.sample_inputs import JobOptions
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.compile_ahead import compile_ahead, only_device
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingOptions, SamplingSettings

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compiled():
    """The names of the programs that were compiled, or read from the cache, in their order."""
    names, listening = [], [True]

    def listen(event, duration, **about):
        if listening and event == COMPILED:
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    listening.clear()


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(path, **parts)
    return path


@pytest.mark.parametrize(
    ("prompts", "num_images", "settings", "batch_size"),
    [
        (PROMPTS[:1], 5, {}, 4),  # candidates of one prompt, the last alone
        (PROMPTS, 3, {"guidance": 2.0, "top_k": 5}, 4),
        (PROMPTS, 2, {"parallel_window": 4}, None),
    ],
    ids=["candidates", "guidance", "windows"],
)
def test_a_job_compiles_three_programs(
    bundle, compiled, tmp_path, prompts, num_images, settings, batch_size
):
    """From files to files: one for prompts, one for tokens and one for images."""
    jax.clear_caches()
    compiled.clear()
    sampling = SamplingOptions(3, batch_size=batch_size)
    options = JobOptions(sampling, num_images, settings=SamplingSettings(**settings))
    text_to_image(str(bundle), str(tmp_path), prompts, options)
    assert len(list((tmp_path / "images").iterdir())) == len(prompts) * num_images
    assert len(compiled) == 3, compiled


def test_batches_larger_than_asked_for_lose_no_image(bundle, tmp_path, monkeypatch):
    """On a GPU the smallest batch has two rows."""
    monkeypatch.setattr("cogview_jax.sampling.batching.min_batch", lambda: 2)
    options = JobOptions(SamplingOptions(3, batch_size=1), 3)
    text_to_image(str(bundle), str(tmp_path), PROMPTS[:1], options)
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_nothing_is_compiled_for_what_is_refused(bundle, compiled):
    model = load(bundle)
    compiled.clear()
    with pytest.raises(InputError, match="num_images 0"):
        model.generate(PROMPTS, 0)
    assert not compiled


def test_a_second_job_of_the_same_shapes_compiles_nothing(bundle, compiled):
    model = load(bundle)
    first = model.generate(PROMPTS[:1], 2, seed=1)
    compiled.clear()
    again = load(bundle).generate(PROMPTS[1:2], 2, seed=2)
    assert compiled == [f"jit({model.parts._decode.__name__})"], "the decoder is the model's own"
    assert not np.array_equal(first[0][0], again[0][0])


def test_what_is_compiled_ahead_is_what_is_called(compiled):
    program = jax.jit(lambda x, y: x + y)
    x = jax.device_put(np.ones(3, np.float32), jax.local_devices()[0])
    compiled.clear()
    with compile_ahead(program, x, np.ones(3, np.float32)):
        assert only_device(x) == x.sharding
    assert len(compiled) == 1
    assert program(x, np.ones(3, np.float32)).tolist() == [2, 2, 2]
    assert len(compiled) == 1
    with compile_ahead(program, x, "no array"):  # nothing is raised
        pass
    assert only_device(np.ones(3)) is None
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    assert only_device(jax.device_put(np.ones(4), split)) is None
