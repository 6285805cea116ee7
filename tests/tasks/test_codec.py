"""What the codec sees of an image, its reconstruction, and starting from another bundle."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.records import Record
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tasks.codec import CodecTask
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.init_from import different_codec
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.quantisers.fsq import FSQ
from cogview_jax.tokenizers.quantisers.learned import Learned
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes
from cogview_jax.training.vqgan_objective import VQGANObjective
from command_runs import write_drawing


@pytest.fixture
def experiment(chain):
    return read_experiment(json.loads((chain.codec / "config.json").read_text()))


def job(experiment, workdir):
    return CodecTask(experiment, Workdir(workdir))


def shapes_of(job):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    return state_shapes(job.objective, make_optimizer(job.experiment.optimizer, 1), mesh)


def test_a_row_is_the_image_augmented_as_the_config_says(experiment, tmp_path):
    image = np.random.default_rng(0).integers(256, size=(16, 16, 3)).astype(np.uint8)
    record, rng = Record("x", image, ()), np.random.default_rng(0)
    plain = job(experiment, tmp_path).transform(record, rng)
    np.testing.assert_array_equal(plain.image, image)

    data = dataclasses.replace(experiment.data, flip=True)
    flipping = job(dataclasses.replace(experiment, data=data), tmp_path)
    rows = [flipping.transform(record, rng).image for _ in range(20)]
    flipped = [np.array_equal(row, image[:, ::-1]) for row in rows]
    assert 0 < sum(flipped) < 20
    assert all(f or np.array_equal(row, image) for f, row in zip(flipped, rows, strict=True))


def test_a_start_from_a_bundle_has_its_parameters_and_codebook(chain, experiment):
    started = job(experiment, chain.codec)
    shapes = shapes_of(started)
    state = started.initial(Bundle(chain.codec / "bundle"), shapes)
    expected = Bundle(chain.codec / "bundle").codec()
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, state.model_state, expected.codebook)
    placed = jax.tree.map(lambda a, b: a.sharding == b.sharding, state.params, shapes.params)
    assert all(jax.tree.leaves(placed))


def test_a_start_from_another_codec_is_refused(chain, experiment):
    other = dataclasses.replace(experiment.model, codebook=32)
    started = job(dataclasses.replace(experiment, model=other), chain.codec)
    message = r"init_from .* does not fit the config: it has model\.codebook = 16 \(not 32\); give"
    with pytest.raises(InputError, match=message):
        started.check(Bundle(chain.codec / "bundle"))
    job(experiment, chain.codec).check(Bundle(chain.codec / "bundle"))


def test_what_weights_depend_on_decides_what_is_another_codec(experiment):
    here = experiment.model
    assert different_codec(here, dataclasses.replace(here, image_size=32)) == {}
    assert different_codec(here, VQGANConfig()) == {"model.kind": ("vqvae", "vqgan")}
    learned = dataclasses.replace(here, quantiser=Learned(codebook_weight=0.25))
    assert different_codec(learned, dataclasses.replace(here, quantiser=Learned())) == {}
    kinds = "moving_average", "learned"
    assert different_codec(here, learned) == {"model.quantiser.kind": kinds}
    sizes = {"codebook": 12, "code_width": 2}
    one, other = (
        dataclasses.replace(here, **sizes, quantiser=FSQ(levels=levels))
        for levels in ((4, 3), (3, 4))
    )
    assert different_codec(one, other) == {"model.quantiser.levels": ((4, 3), (3, 4))}


def test_a_perceptual_loss_needs_its_weights(experiment, tmp_path):
    config = dataclasses.asdict(experiment)
    config["loss"] = {"kind": "vqgan", "discriminator": {"layers": 1, "channels": 8}}
    config["model"] |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    with pytest.raises(InputError, match="is empty: expected a file with the weights of LPIPS"):
        job(read_experiment(config), tmp_path)
    config["loss"]["perceptual"] = f"{tmp_path}/vgg.pth"
    with pytest.raises(InputError, match=r"^loss.perceptual = '.*vgg.pth': no LPIPS weights at"):
        job(read_experiment(config), tmp_path)
    del config["loss"]["perceptual"]
    config["loss"]["adversarial"] = {"perceptual_weight": 0.0}
    objective = job(read_experiment(config), tmp_path).objective
    assert isinstance(objective, VQGANObjective)
    config["loss"]["discriminator"]["layers"] = 4
    with pytest.raises(InputError, match="images of 16 x 16 pixels are too small"):
        job(read_experiment(config), tmp_path)
    config["model"]["mean"] = (0.4, 0.5, 0.5)
    with pytest.raises(InputError, match=r"expected 0\.5 everywhere"):
        read_experiment(config)


def test_unreadable_images_are_passed_over(chain, experiment, tmp_path):
    """Of ten files the first and the fifth are none: the preview shows the other eight."""
    for number in range(10):
        write_drawing(tmp_path / f"{number}.png", number)
    for number in (0, 4):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    good = [np.asarray(Image.open(tmp_path / f"{n}.png")) for n in (1, 2, 3, 5, 6, 7, 8, 9)]
    task = job(experiment, chain.codec)
    state = task.initial(Bundle(chain.codec / "bundle"), shapes_of(task))
    source = FolderSource(tmp_path, require_captions=False)
    model = cogview_jax.load(chain.codec / "bundle")
    np.testing.assert_array_equal(task.preview(state, source), sheet(model, np.stack(good)))


def sheet(model, images):
    """Eight images, what the model makes of them, and four times the difference."""
    decoded = model.decode(model.encode(images))
    differences = np.clip(4.0 * abs(images.astype(float) - decoded), 0, 255).astype(np.uint8)
    labels = ["image"] * 8 + ["reconstruction"] * 8 + ["absolute error x 4"] * 8
    return np.asarray(caption_grid([*images, *decoded, *differences], labels, columns=8))


def test_images_stand_above_their_reconstructions_and_differences(chain, experiment):
    task = job(experiment, chain.codec)
    state = task.initial(Bundle(chain.codec / "bundle"), shapes_of(task))
    source = task.source()
    model = cogview_jax.load(chain.codec / "bundle")
    images = np.stack([source[i].image for i in range(8)])
    np.testing.assert_array_equal(task.preview(state, source), sheet(model, images))
