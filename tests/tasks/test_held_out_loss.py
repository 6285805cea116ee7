"""The loss on held-out records: what the bundle's logits give, whatever batch and mesh."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_store import TokenStore
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.transformer import PREVIEW_IMAGES, TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.training.objective import ModelValues
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes

MEASURED = 5


@pytest.fixture(scope="module")
def experiment(chain):
    """A transformer that holds out a quarter of its records; training would drop and leave out."""
    config = json.loads((chain.run / "config.json").read_text())
    config["data"] |= {"validation_share": 0.25, "store": str(chain.store)}
    config["train"] |= {"validate_every": 2, "validation_records": MEASURED}
    config["model"]["dropout"] = 0.5
    return read_experiment(config | {"drop_captions": 0.5, "text_weight": 3.0})


@pytest.fixture(scope="module")
def model(chain):
    """The chain's bundle, for logits."""
    return cogview_jax.load(chain.run / "bundle")


@pytest.fixture(scope="module")
def params(chain):
    """The parameters of its transformer on a mesh; they are read once."""

    @functools.cache
    def on(mesh):
        return dict(Bundle(chain.run / "bundle").transformer(mesh).params)

    return on


def opened(experiment, chain, params, mesh=MeshConfig(data=8)):
    """The task, the records it trains on, and a state with the chain's transformer."""
    task = TransformerTask(experiment, Workdir(chain.run))
    shapes = state_shapes(task.objective, make_optimizer(experiment.optimizer, 1), make_mesh(mesh))
    table = "position_embedding"
    given = params(shapes.mesh)
    given = given | {table: given[table][: len(shapes.params[table])]}
    return task, task.source(), shapes.with_values(ModelValues(given, ()))


def with_train(experiment, **changes):
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))


def held_out_records(source, store):
    """All records that training does not see, by their number in the store."""
    trained = {source.key(i) for i in range(len(source))}
    assert len(trained) < len(store)
    return {i: store[i] for i in range(len(store)) if store.key(i) not in trained}


def expected_losses(examples, model, text_weight):
    """Of all rows together: cross-entropies by numpy in float64 of the logits of a bundle."""
    rows = [np.stack(field) for field in zip(*examples, strict=True)]
    tokens, targets, text, image = (
        rows[examples[0]._fields.index(name)]
        for name in ("tokens", "targets", "text_weights", "image_weights")
    )
    logits = model.logits(tokens).astype(np.float64)
    normalizers = np.log(np.exp(logits).sum(axis=-1))
    entropies = normalizers - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    weights = {"loss": text_weight * text + image, "text_loss": text, "image_loss": image}
    return {
        f"validation_{name}": (entropies * weight).sum() / weight.sum()
        for name, weight in weights.items()
    }


def test_the_loss_is_that_of_the_bundle_s_logits(chain, experiment, model, params):
    """5 records in batches of 8, of 24 on another mesh, and of one row a device."""
    task, source, state = opened(experiment, chain, params)
    records = held_out_records(source, TokenStore(chain.store))
    assert len(records) > MEASURED
    examples = []
    for number, record in list(records.items())[:MEASURED]:
        text = record.captions[np.random.default_rng(number).integers(2)]
        examples.append(task.layout.example({"text": text, "image": record.codes}))
    expected = expected_losses(examples, model, 3.0)
    validation = task.validation()
    found = validation.measure(state)
    assert list(found) == list(task.validation_metrics()) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)
    assert validation.describe() == (
        f"the loss of 5 of {len(records)} held-out records every 2 steps"
    )
    assert source.describe().endswith(f"; {len(records)} of them are held out")

    split = with_train(experiment, global_batch=24, accumulate=3)
    task, _, state = opened(split, chain, params, MeshConfig(data=2, fsdp=4))
    assert task.validation().measure(state) == pytest.approx(expected, rel=1e-5)
    never = TransformerTask(with_train(experiment, validate_every=0), Workdir(chain.run))
    assert (never.validation(), *never.validation_metrics()) == (None,)


def test_windows_stay_where_they_are(chain, experiment, model, params):
    """Windows of 2 x 2 codes of images of 4 x 4, each at the place that its record's number says.

    All held-out records are measured.
    """
    config = dataclasses.replace(
        with_train(experiment, validation_records=1000),
        layout=dataclasses.replace(experiment.layout, grid=2),
        data=dataclasses.replace(experiment.data, image_grid=4),
    )
    task, source, state = opened(config, chain, params)
    layout, examples = make_layout(config.layout, config.vocabulary), []
    places = set()
    for number, record in held_out_records(source, TokenStore(chain.store)).items():
        rng = np.random.default_rng(number)
        text = record.captions[rng.integers(2)]
        rng.random()
        top, left = rng.integers((3, 3))
        places.add((top, left))
        window = record.codes.reshape(4, 4)[top : top + 2, left : left + 2]
        examples.append(layout.example({"text": text, "image": window.ravel()}))
    assert len(places) > 1
    expected = expected_losses(examples, model, 3.0)
    validation = task.validation()
    for _ in range(2):
        assert validation.measure(state) == pytest.approx(expected, rel=1e-5)


def test_previews_show_captions_of_held_out_records_first(chain, experiment):
    task = TransformerTask(experiment, Workdir(chain.run))
    source, text = task.source(), Bundle(chain.store / "tokenizers").text()
    records = list(held_out_records(source, TokenStore(chain.store)).values())
    records += [source[i] for i in range(PREVIEW_IMAGES - len(records))]
    captions = [text.decode(record.captions[i % 2]) for i, record in enumerate(records)]
    assert task.preview_prompts(source) == captions


def test_settings_that_do_not_fit_are_refused(chain, experiment):
    none = dataclasses.replace(experiment.data, validation_share=0.0)
    with pytest.raises(InputError, match=r"data\.validation_share = 0 holds out no records"):
        dataclasses.replace(experiment, data=none)
    with pytest.raises(InputError, match="validation_records = 0: expected at least 1"):
        with_train(experiment, validation_records=0)
    nothing = dataclasses.replace(experiment.data, validation_share=0.9999)
    with pytest.raises(InputError, match="holds out 32 of 32 records"):
        TransformerTask(dataclasses.replace(experiment, data=nothing), Workdir(chain.run)).source()


def test_unreadable_records_are_replaced_by_the_next_ones(
    chain, experiment, model, params, monkeypatch, capsys
):
    """A compact binary may have them: the second and third held-out record cannot be read."""
    task, source, state = opened(with_train(experiment, validation_records=2), chain, params)
    numbers = list(held_out_records(source, TokenStore(chain.store)))
    read = TokenStore.__getitem__

    def damaged(store, i):
        if i in numbers[1:3]:
            raise BadRecord(str(i), "broken")
        return read(store, i)

    monkeypatch.setattr(TokenStore, "__getitem__", damaged)
    found = task.validation().measure(state)
    assert capsys.readouterr().err == "validation: 2 of 4 held-out records cannot be used\n"
    examples = []
    for number in (numbers[0], numbers[3]):
        record = read(TokenStore(chain.store), number)
        text = record.captions[np.random.default_rng(number).integers(2)]
        examples.append(task.layout.example({"text": text, "image": record.codes}))
    assert found == pytest.approx(expected_losses(examples, model, 3.0), rel=1e-5)
