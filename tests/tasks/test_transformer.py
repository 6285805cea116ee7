"""Whether a token store fits a config, what a row is, and starting from another bundle."""

import dataclasses
import json
import pickle
import shutil
from types import SimpleNamespace

import jax
import lmdb
import numpy as np
import pytest

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.data.records import BadRecord
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.data.token_store import TokenStore
from cogview_jax.models.code_embeddings import code_embeddings
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks import training as train
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.preparation import prepare
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.quantisers.fsq import FSQ
from cogview_jax.tokenizers.quantisers.learned import Cosine
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import make_state, state_shapes


@pytest.fixture
def experiment(chain):
    return read_experiment(json.loads((chain.run / "config.json").read_text()))


def job(experiment, workdir):
    return TransformerTask(experiment, Workdir(workdir))


def test_a_row_is_one_of_the_captions_and_the_codes(chain, experiment):
    layout = job(experiment, chain.run).layout
    record = TokenRecord("x", (np.array([5, 6]), np.array([7])), np.arange(16) % 5)
    expected = [layout.example({"text": ids, "image": record.codes}) for ids in record.captions]
    sampled = [
        job(experiment, chain.run).transform(record, np.random.default_rng(seed))
        for seed in range(20)
    ]
    seen = set()
    for row in sampled:
        match = [np.array_equal(row.tokens, example.tokens) for example in expected]
        assert sum(match) == 1
        seen.add(match.index(True))
        jax.tree.map(np.testing.assert_array_equal, row, expected[match.index(True)])
    assert seen == {0, 1}


def test_a_row_s_prompt_weighs_as_the_config_says(chain, experiment):
    record = TokenRecord("x", (np.array([5, 6]),), np.arange(16) % 5)
    own = job(dataclasses.replace(experiment, prompt_weight=0.25), chain.run)
    row = own.transform(record, np.random.default_rng(0))
    expected = own.layout.example({"text": [5, 6], "image": record.codes}, 0.25)
    # Two pieces and two commands stand before the codes, one command behind them.
    assert sorted(row.text_weights[row.text_weights > 0]) == [0.25] * 4 + [1]
    jax.tree.map(np.testing.assert_array_equal, row, expected)


def test_codes_are_replaced_where_they_are_read_and_not_where_they_are_predicted(chain, experiment):
    record = TokenRecord("x", (np.array([5, 6]),), np.arange(16) % 5)
    own = job(dataclasses.replace(experiment, corrupt_codes=0.3), chain.run)
    plain = own.layout.example({"text": record.captions[0], "image": record.codes})
    codes, rng = own.layout.vocabulary.codes, np.random.default_rng(0)
    rows = [own.transform(record, rng) for _ in range(2000)]
    for row in rows:
        for name in ("targets", "positions", "text_weights", "image_weights"):
            np.testing.assert_array_equal(getattr(row, name), getattr(plain, name))
    tokens = np.stack([row.tokens for row in rows])
    is_code = plain.tokens < codes
    np.testing.assert_array_equal(tokens[:, ~is_code], np.tile(plain.tokens[~is_code], (2000, 1)))
    other = tokens[:, is_code] != plain.tokens[is_code]
    share, count = 0.3 * (codes - 1) / codes, other.size
    assert other.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)
    # All codes are drawn alike, and none beyond them.
    drawn = np.bincount(tokens[:, is_code][other], minlength=codes)
    assert len(drawn) == codes
    assert drawn[5:] == pytest.approx(np.full(codes - 5, drawn[5:].mean()), rel=0.2)


def test_captions_are_dropped_as_often_as_asked(chain, experiment):
    record = TokenRecord("x", (np.array([5, 6]),), np.arange(16) % 5)
    rows = {}
    for share in (0.0, 0.25, 1.0):
        own = job(dataclasses.replace(experiment, drop_captions=share), chain.run)
        rng = np.random.default_rng(0)
        rows[share] = [own.transform(record, rng).tokens.tolist() for _ in range(2000)]
    layout = job(experiment, chain.run).layout
    kept, bare = (
        layout.example({"text": text, "image": record.codes}).tokens.tolist()
        for text in (record.captions[0], [])
    )
    assert all(row == kept for row in rows[0.0])
    assert all(row == bare for row in rows[1.0])
    dropped = [row == bare for row in rows[0.25]]
    assert all(row in (kept, bare) for row in rows[0.25])
    # Four standard deviations of a share of 2,000.
    assert np.mean(dropped) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("layout", {"grid": 8}, "has grid 4, but the config has layout.grid = 8: pass --config"),
        ("vocabulary", {"codes": 8}, "has codebook 16, but the config has vocabulary.codes = 8"),
        ("vocabulary", {"text": 64}, r"has \d+ text pieces, but the config has vocabulary.text = "),
    ],
)
def test_a_store_of_other_sizes_is_refused(chain, experiment, section, changes, message):
    part = dataclasses.replace(getattr(experiment, section), **changes)
    other = dataclasses.replace(experiment, **{section: part})
    with pytest.raises(InputError, match=f"the token store {chain.store} {message}"):
        job(other, chain.run).source()
    assert len(job(experiment, chain.run).source()) == 32


def test_a_store_beside_other_tokenizers_is_refused(chain, experiment, tmp_path):
    shutil.copytree(chain.store, tmp_path / "tokens")
    own = Bundle(chain.store / "tokenizers")
    part = own.codec()
    other = dataclasses.replace(part, params=jax.tree.map(lambda leaf: 2 * leaf, part.params))
    write_bundle(tmp_path / "tokens" / "tokenizers", codec=other, text=own)
    there = Bundle(tmp_path / "tokens" / "tokenizers").sha256("codec")
    message = f"made with codec {own.sha256('codec')[:12]}, but .* is {there[:12]}"
    with pytest.raises(InputError, match=message):
        job(experiment, tmp_path).source()


@pytest.fixture
def binary(chain, experiment, tmp_path):
    """The chain's records as a compact binary, one of which is damaged, and a config of it."""
    vocabulary, rows = experiment.vocabulary, []
    for i, record in enumerate(map(TokenStore(chain.store).__getitem__, range(32))):
        text = np.full(64, -1)
        ids = record.captions[i % 2] + vocabulary.text_start
        text[: len(ids)] = ids
        rows.append(np.concatenate([text, record.codes]))
    rows[1][64] = vocabulary.codes
    np.array(rows, "<i4").tofile(tmp_path / "rows.bin")
    tokenizers = chain.store / "tokenizers"
    data = dataclasses.replace(
        experiment.data,
        store=str(tmp_path / "rows.bin"),
        image_tokenizer=str(tokenizers),
        text_tokenizer=str(tokenizers / "text.model"),
    )
    return dataclasses.replace(experiment, data=data)


def test_a_compact_binary_holds_the_records_of_the_store(chain, binary, tmp_path):
    source, store = job(binary, tmp_path).source(), TokenStore(chain.store)
    assert len(source) == len(store)
    for i in (0, 2, 31):
        assert source[i].captions[0].tolist() == store[i].captions[i % 2].tolist()
        assert source[i].codes.tolist() == store[i].codes.tolist()
    with pytest.raises(BadRecord, match=r"rows\.bin:1: image ids from"):
        source[1]


def test_a_compact_binary_trains_to_a_bundle_with_the_tokenizers_named(chain, binary, tmp_path):
    config = dataclasses.replace(binary.train, steps=2, sample_every=2)
    train.run(dataclasses.replace(binary, train=config), str(tmp_path / "run"))
    made, named = Bundle(tmp_path / "run" / "bundle"), Bundle(chain.store / "tokenizers")
    assert made.step == 2
    assert made.transformer().config == binary.model
    for part in ("codec", "text"):
        assert made.sha256(part) == named.sha256(part)
    assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()


@pytest.mark.parametrize("store", ["rows.lmdb", "rows.lmdb/data.mdb"])
def test_an_lmdb_of_the_release_trains_as_the_compact_binary_does(binary, tmp_path, store):
    vocabulary = binary.vocabulary
    ends = [vocabulary.command(name) for name in ("ROI1", "TINY", "BOI1", "EOI1")]
    rows = np.fromfile(tmp_path / "rows.bin", "<i4").reshape(32, -1)
    path = str(tmp_path / "rows.lmdb")
    with lmdb.open(path, map_size=1 << 24) as file, file.begin(write=True) as writing:
        for i, row in enumerate(rows):
            text, codes = np.split(row, [64])
            text = [ends[0], *text[text != -1], *ends[1:3]]
            writing.put(b"%d" % i, pickle.dumps(np.array([*text, *codes, ends[3]])))
        writing.put(b"length", b"32")
    data = dataclasses.replace(binary.data, store=str(tmp_path / store))
    experiment = dataclasses.replace(binary, data=data)
    source, other = job(experiment, tmp_path).source(), job(binary, tmp_path).source()
    assert len(source) == len(other)
    for i in (0, 2, 31):
        assert source[i].captions[0].tolist() == other[i].captions[0].tolist()
        assert source[i].codes.tolist() == other[i].codes.tolist()
    with pytest.raises(BadRecord, match=r"rows\.lmdb:1: image ids from"):
        source[1]
    with pytest.raises(InputError, match=r"is a file: a compact binary or an LMDB of the release"):
        prepare(experiment, tmp_path / "rows.lmdb" / "data.mdb")
    if store == "rows.lmdb":
        config = dataclasses.replace(experiment.train, steps=2)
        train.run(dataclasses.replace(experiment, train=config), str(tmp_path / "run"))
        assert Bundle(tmp_path / "run" / "bundle").step == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_tokenizer": ""}, r"data.text_tokenizer is empty: name the SentencePiece model"),
        (
            {"text_tokenizer": "none.model"},
            r"data.text_tokenizer = 'none.model' \(looked for in .*\): no text tokenizer at none",
        ),
        ({"image_tokenizer": ""}, "data.image_tokenizer is empty"),
    ],
)
def test_a_compact_binary_needs_its_tokenizers_named(binary, tmp_path, changes, message):
    data = dataclasses.replace(binary.data, **changes)
    with pytest.raises(InputError, match=message):
        job(dataclasses.replace(binary, data=data), tmp_path).source()


def test_a_compact_binary_of_other_sizes_is_refused(binary, tmp_path):
    few = dataclasses.replace(binary.vocabulary, text=10)
    with pytest.raises(
        InputError, match=r"has \d+ pieces, but the config has vocabulary.text = 10"
    ):
        job(dataclasses.replace(binary, vocabulary=few), tmp_path).source()
    grid = dataclasses.replace(binary.layout, grid=8)
    with pytest.raises(InputError, match=r"4 x 4 codes, but the config has layout.grid = 8"):
        job(dataclasses.replace(binary, layout=grid), tmp_path).source()
    with pytest.raises(InputError, match=r"data.store .*rows.bin is a file: a compact binary or"):
        prepare(binary, tmp_path / "rows.bin")


def shapes_of(job):
    """A state's shapes on a mesh; enough to be given parameters."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(job.experiment.optimizer, 1)
    return state_shapes(job.objective, optimizer, mesh)


def test_a_start_from_a_bundle_has_its_parameters_where_the_state_is(chain, experiment):
    started = job(experiment, chain.run)
    shapes = shapes_of(started)
    state = started.initial(Bundle(chain.run / "bundle"), shapes)
    expected = Bundle(chain.run / "bundle").transformer().params
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    placed = jax.tree.map(lambda a, b: a.sharding == b.sharding, state.params, shapes.params)
    assert all(jax.tree.leaves(placed))
    assert state.opt_state is shapes.opt_state


def test_a_fresh_start_may_embed_codes_as_the_codec_s_vectors(chain, experiment):
    """On any mesh the same, where the state is; all else is left as it was made."""
    fresh, plain = (
        job(dataclasses.replace(experiment, code_embeddings=start), chain.run)
        for start in ("codec", "normal")
    )
    vectors = Bundle(chain.run / "bundle").codec().codebook.codes
    config, codes = experiment.model, experiment.vocabulary.codes
    expected = code_embeddings(vectors, config.width, config.init_std, experiment.seed)
    optimizer = make_optimizer(experiment.optimizer, 1)
    for sizes in (MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=8)):
        mesh = make_mesh(sizes)
        with jax.set_mesh(mesh):
            shapes = state_shapes(fresh.objective, optimizer, mesh)
            made = make_state(fresh.objective, optimizer, shapes, experiment.seed)
            state = fresh.initial(None, made)
            assert plain.initial(None, made) is made
        table, before = state.params["word_embedding"], made.params["word_embedding"]
        assert table.sharding == before.sharding
        np.testing.assert_array_equal(table[:codes], expected)
        np.testing.assert_array_equal(table[codes:], before[codes:])
        for name in set(made.params) - {"word_embedding"}:
            assert state.params[name] is made.params[name]


@pytest.mark.parametrize("quantiser", [FSQ(levels=(8, 8)), Cosine()])
def test_codes_without_a_stored_codebook_are_embedded_too(tmp_path, monkeypatch, quantiser):
    """Those of FSQ follow from its levels, and those of a learned quantiser are parameters."""
    width = 2 if quantiser.kind == "fsq" else 5
    own, state = quantiser.init(jax.random.key(0), 64, width)
    config = VQVAEConfig(image_size=32, codebook=64, code_width=width, quantiser=quantiser)
    part = CodecPart(config, {"quantiser": unbox(own)}, state)
    demo = read_experiment(load_config("demo"))
    model = dataclasses.replace(demo.model, layers=1, width=32, heads=2)
    vocabulary = Vocabulary(codes=64, text=29)
    fresh = job(dataclasses.replace(demo, model=model, vocabulary=vocabulary), tmp_path)
    monkeypatch.setattr(fresh, "_codec", lambda: SimpleNamespace(codec=lambda mesh: part))
    if quantiser.kind == "fsq":
        vectors = np.array([[x, y] for y in range(-4, 4) for x in range(-4, 4)]) / 4
    else:
        vectors = part.params["quantiser"]["codes"]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mesh, optimizer = make_mesh(MeshConfig(data=8)), make_optimizer(demo.optimizer, 1)
    with jax.set_mesh(mesh):
        shapes = state_shapes(fresh.objective, optimizer, mesh)
        made = make_state(fresh.objective, optimizer, shapes, demo.seed)
        table = fresh.initial(None, made).params["word_embedding"]
    expected = code_embeddings(vectors, 32, model.init_std, demo.seed)
    np.testing.assert_allclose(table[:64], expected, atol=1e-5)


def test_a_start_from_another_model_is_refused(chain, experiment):
    wider = dataclasses.replace(experiment.model, width=64)
    other = job(dataclasses.replace(experiment, model=wider), chain.run)
    with pytest.raises(InputError) as error:
        other.check(Bundle(chain.run / "bundle"))
    assert str(error.value) == (
        f"init_from {chain.run}/bundle does not fit the config: it has model.width = 32 (not 64);"
        " give the config these values, or name another bundle"
    )
    job(experiment, chain.run).check(Bundle(chain.run / "bundle"))


def test_a_start_from_another_division_of_the_vocabulary_is_refused(chain, experiment):
    """As many ids, but what was a piece of text would be a code."""
    codes, text = experiment.vocabulary.codes, experiment.vocabulary.text
    shifted = dataclasses.replace(experiment.vocabulary, codes=codes + 1, text=text - 1)
    other = job(dataclasses.replace(experiment, vocabulary=shifted), chain.run)
    has = rf"vocabulary.codes = {codes} \(not {codes + 1}\), vocabulary.text = {text} \(not"
    with pytest.raises(InputError, match=rf"does not fit the config: it has {has}"):
        other.check(Bundle(chain.run / "bundle"))


def test_what_finetuning_changes_about_released_weights_is_said(
    chain, experiment, tmp_path, capsys
):
    started = job(experiment, chain.run)
    part = Bundle(chain.run / "bundle").transformer()
    official = {"pb_relax_attention": False, "embedding_gradient": 1.0, "compat": "official"}
    config = dataclasses.replace(part.config, **official)
    write_bundle(tmp_path / "released", transformer=dataclasses.replace(part, config=config))
    capsys.readouterr()
    started.initial(Bundle(chain.run / "bundle"), shapes_of(started))
    assert capsys.readouterr().err == ""
    started.initial(Bundle(tmp_path / "released"), shapes_of(started))
    said = capsys.readouterr().err
    assert "model.pb_relax_attention False -> True, model.compat official -> none" in said
