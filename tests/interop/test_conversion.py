"""The official files to a bundle and back: the same bits, the same results, and what is refused."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from PIL import Image

import cogview_jax
import tiny
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.interop.conversion import convert
from cogview_jax.interop.files import SourceFiles
from cogview_jax.interop.official.conversion import from_official, to_official
from cogview_jax.interop.rules import flat
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.models.conventions import RELEASE
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_tree, write_json
from cogview_jax.runtime.sealed import sealed
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.training import run
from cogview_jax.tokenizers.codecs.codec import denormalise
from cogview_jax.tokenizers.quantisers.quantiser import nearest
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import COMMANDS
from command_runs import call

TRACKER, STATES = "latest_checkpointed_iteration.txt", "mp_rank_00_model_states.pt"
DTYPES = ("float32", "float16", ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def config(fixtures):
    return json.loads((fixtures / "config.json").read_text())["config"]


@pytest.fixture(scope="module")
def text(config):
    """A text tokenizer with exactly as many pieces as the small transformer has room for."""
    room = config["vocab_size"] - config["vq"]["n_embed"] - len(COMMANDS)
    rng = np.random.default_rng(0)
    # Without byte fallback few pieces are enough, and words enough give as many as are asked for.
    words = ["".join(rng.choice([*"abcdefgh"], 6)) for _ in range(2000 + 20 * room)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(words), model_writer=model, model_type="bpe", vocab_size=room
    )
    return TextTokenizer(model.getvalue())


@pytest.fixture(scope="module")
def given(fixtures, config, text, tmp_path_factory):
    """The three official parts."""
    folder = tmp_path_factory.mktemp("given")
    text.save(folder / "text.model")
    return SourceFiles(
        transformer=str(fixtures / "transformer"),
        image_tokenizer=str(fixtures / "vqvae" / "vqvae.pt"),
        text_tokenizer=str(folder / "text.model"),
        num_heads=config["heads"],
        grid=config["vq_code_side"],
    )


@pytest.fixture(scope="module")
def bundle(root, given, tmp_path_factory):
    """What the command made of them."""
    path = tmp_path_factory.mktemp("converted") / "bundle"
    result = call(root, "convert", "--source=official", *flags(given), f"--out={path}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    return path


@pytest.fixture(scope="module")
def model(bundle):
    return cogview_jax.load(bundle)


def flags(official):
    fields = dataclasses.asdict(official)
    return [f"--{name}={value}" for name, value in fields.items() if value is not None]


def states(directory):
    """The file of a transformer, found by its tracker."""
    return directory / (directory / TRACKER).read_text() / STATES


def cast(source, target, dtype, prefix=None):
    """A copy of a torch file in another type; of a codec's, also with another prefix."""
    tree = read_torch(source)
    state = tree.get("module", tree)
    if prefix is not None:
        state = {prefix + name.removeprefix("module."): t for name, t in state.items()}
    slots = {name: Slot(tensor.shape, dtype) for name, tensor in state.items()}
    pairs = ((slots[name], tensor.read().astype(dtype)) for name, tensor in state.items())
    write_torch(target, tree | {"module": slots} if "module" in tree else slots, pairs)


def assert_same_file(found, expected):
    """Names, their order, types and bits; and what is no tensor."""
    found, expected = (tree.pop("module", {}) | tree for tree in map(read_torch, (found, expected)))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        if not hasattr(tensor, "read"):
            assert found[name] == tensor
            continue
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        assert found[name].read().tobytes() == tensor.read().tobytes(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["transformer", "transformer_long"])
def test_a_transformer_comes_back_bit_for_bit(fixtures, config, tmp_path, name, dtype):
    source = tmp_path / "given"
    iteration = (fixtures / name / TRACKER).read_text()
    source.mkdir()
    (source / TRACKER).write_text(iteration)
    cast(fixtures / name / iteration / STATES, source / iteration / STATES, dtype)
    official = SourceFiles(transformer=str(source), num_heads=config["heads"])
    from_official(official, str(tmp_path / "bundle"))
    params = flat(Bundle(tmp_path / "bundle").stored_transformer().params)
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(dtype)}
    to_official(str(tmp_path / "bundle"), str(tmp_path / "back"))
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["transformer"]
    assert (tmp_path / "back" / "transformer" / TRACKER).read_text() == iteration
    assert_same_file(states(tmp_path / "back" / "transformer"), states(source))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_an_image_tokenizer_comes_back_bit_for_bit(fixtures, tmp_path, prefix, dtype):
    source = tmp_path / "given.pt"
    cast(fixtures / "vqvae" / "vqvae.pt", source, dtype, prefix)
    from_official(SourceFiles(image_tokenizer=str(source), grid=8), str(tmp_path / "bundle"))
    to_official(str(tmp_path / "bundle"), str(tmp_path / "back"))
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["image_tokenizer.pt"]
    assert_same_file(tmp_path / "back" / "image_tokenizer.pt", source)


def test_all_parts_come_back_through_the_door(root, fixtures, given, bundle, tmp_path):
    out = tmp_path / "deep" / "back"
    arguments = ("--target=official", f"--bundle={bundle}", f"--out={out}")
    result = call(root, "convert", *arguments)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *("image_tokenizer.pt", "text_tokenizer.model", "transformer")
    ]
    assert_same_file(states(out / "transformer"), states(fixtures / "transformer"))
    assert_same_file(out / "image_tokenizer.pt", fixtures / "vqvae" / "vqvae.pt")
    with open(given.text_tokenizer, "rb") as file:
        assert (out / "text_tokenizer.model").read_bytes() == file.read()
    # Once more, over what is there: it is not overwritten.
    again = call(root, "convert", *arguments)
    assert again.returncode == 2
    assert (
        again.stderr
        == f"error: --out {out} exists and is not empty: choose another, or delete it\n"
    )


def test_logits_are_the_official_ones(fixtures, model):
    table = np.load(fixtures / "transformer_forward.npz")
    np.testing.assert_allclose(model.logits(table["tokens"]), table["logits"], rtol=0, atol=1e-4)


def test_codes_and_images_are_the_official_ones(fixtures, model):
    table = np.load(fixtures / "vqvae_eval.npz")
    codec, part = model.codec, model.parts.codec_part
    np.testing.assert_array_equal(np.float32(codec.config.mean), table["norm_mean"])
    np.testing.assert_array_equal(np.float32(codec.config.std), table["norm_std"])
    images = np.moveaxis(table["images"], 1, -1)
    encode = jax.jit(lambda x: codec.apply({"params": part.params}, x, method=codec.encode))
    vectors = encode(images)
    np.testing.assert_allclose(vectors, table["encoder_out"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(nearest(part.codebook.codes, vectors), table["ids"])
    decoded = np.moveaxis(table["decoded_from_ids"], 1, -1)
    expected = np.asarray(denormalise(codec.config, decoded))
    assert np.abs(model.decode(table["ids"]) - expected).max() < 0.5 + 0.01


def test_codes_of_images_in_bytes_are_the_official_ones(fixtures, model):
    """Rounded to bytes, the recorded images keep the codes that were not close calls."""
    table = np.load(fixtures / "vqvae_eval.npz")
    values = table["images"] * table["norm_std"][:, None, None] + table["norm_mean"][:, None, None]
    images = np.moveaxis(np.round(values * 255), 1, -1).astype(np.uint8)
    clear = table["id_margin"] > np.median(table["id_margin"])
    np.testing.assert_array_equal(model.encode(images)[clear], table["ids"][clear])


def test_a_bundle_samples_as_the_contract_says(root, bundle, model, config, tmp_path):
    prompts, out = ["ab ca", "b"], tmp_path / "out"
    result = call(
        *(root, "sample", f"--bundle={bundle}", f"--out={out}", "--num_images=2", "--seed=3"),
        *(f"--prompt={prompt}" for prompt in prompts),
    )
    assert result.returncode == 0, result.stderr
    lines = (out / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": prompt, "index": i, "seed": 3, "file": f"images/{number:05d}_{i:03d}.png"}
        for number, prompt in enumerate(prompts)
        for i in range(2)
    ]
    codes = model.generate_codes(prompts, 2, 3, sampling=SamplingConfig())
    assert codes.shape[2:] == (config["vq_code_side"],) * 2
    images = model.decode(codes.reshape(4, *codes.shape[2:]))
    for line, image in zip(lines, images, strict=True):
        np.testing.assert_array_equal(Image.open(out / json.loads(line)["file"]), image)


def test_a_bundle_says_what_it_came_from(bundle, config, text):
    described = Bundle(bundle)
    assert described.official("transformer") == {"iteration": str(config["iteration"])}
    assert described.official("codec") == {"prefix": "module."}
    assert described.step is None
    part = described.transformer()
    assert part.config.conventions == RELEASE
    assert (part.vocabulary.codes, part.vocabulary.text) == (config["vq"]["n_embed"], len(text))
    side = config["vq_code_side"]
    assert (part.layout.grid, part.layout.text_length) == (side, config["max_pos"] - side**2 - 4)
    assert part.params["word_embedding"].dtype == np.float32
    assert described.codec().config.image_size == config["vq_image_size"]
    assert np.isinf(described.codec().codebook.error)


def test_each_part_may_stand_alone_and_what_is_assumed_is_said(
    fixtures, given, config, tmp_path, capsys
):
    long, codes = str(fixtures / "transformer_long"), config["vq"]["n_embed"]
    alone = {
        "transformer": (SourceFiles(long, num_heads=given.num_heads), {"transformer"}),
        "codec": (SourceFiles(image_tokenizer=given.image_tokenizer), {"codec"}),
        "text": (SourceFiles(text_tokenizer=given.text_tokenizer), {"text"}),
        "no codec": (
            dataclasses.replace(given, image_tokenizer=None, codes=codes),
            {"transformer", "text"},
        ),
    }
    said = {}
    for name, (official, parts) in alone.items():
        from_official(official, str(tmp_path / name))
        said[name] = capsys.readouterr().err
        assert set(Bundle(tmp_path / name).parts) == parts
    vocabulary = Bundle(tmp_path / "transformer").transformer().vocabulary
    side = max(side for side in (8, 16, 32, 64) if side**2 + 4 < config["long_max_pos"])
    rest = config["long_max_pos"] - side**2 - 4
    for line in (
        f"no image tokenizer: assumed {vocabulary.codes} codes (--codes)",
        f"no text tokenizer: assumed {vocabulary.text} pieces",
        f"assumed {side} x {side} codes and {rest} of text (--grid)",
        f"dropped from {states(fixtures / 'transformer_long')}: iteration",
    ):
        assert line in said["transformer"]
    assert "assumed images of 32 x 32 codes (--grid)" in said["codec"]
    assert Bundle(tmp_path / "codec").codec().config.grid == 32
    assert "assumed" not in said["text"] + said["no codec"]
    assert Bundle(tmp_path / "no codec").transformer().vocabulary.codes == codes


def test_a_bundle_may_be_replaced(given, tmp_path):
    text_only = SourceFiles(text_tokenizer=given.text_tokenizer)
    codec_only = SourceFiles(image_tokenizer=given.image_tokenizer)
    (tmp_path / "bundle").mkdir()
    for official, part in ((text_only, "text"), (codec_only, "codec")):
        from_official(official, str(tmp_path / "bundle"))
        assert list(Bundle(tmp_path / "bundle").parts) == [part]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


OTHER_WAY = {
    "neither": ((None, None), {}, None, r"expected one of --source \(official, taming"),
    "both": (("official", "official"), {}, None, "expected one of --source"),
    "bundle to source": (("official", None), {}, "b", "--bundle belongs to --target official"),
    "heads to target": (
        (None, "official"),
        {"num_heads": 4},
        "b",
        "--num_heads belongs to --source",
    ),
    "no bundle": ((None, "official"), {}, None, "--bundle TEXT is missing"),
    "none there": (
        (None, "official"),
        {},
        "nowhere",
        "no shipped bundle .nowhere., and no such f",
    ),
}


@pytest.mark.parametrize("mistake", OTHER_WAY)
def test_directions_are_not_mixed(tmp_path, mistake):
    (source, target), changes, bundle, message = OTHER_WAY[mistake]
    with pytest.raises(InputError, match=message):
        convert(source, target, SourceFiles(**changes), bundle, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "nothing": (
        dict.fromkeys(("transformer", "image_tokenizer", "text_tokenizer", "num_heads")),
        "nothing to convert: give --transformer, --image_tokenizer or --text_tokenizer",
    ),
    "no heads": ({"num_heads": None}, "--num_heads N is missing"),
    "odd heads": ({"num_heads": 10_007}, "with 10007 heads: expected a multiple of them"),
    "no model for heads": ({"transformer": None}, "--num_heads belongs to --transformer"),
    "other codes": ({"codes": 3}, "--codes 3, but "),
    "large grid": ({"grid": 1000}, "a grid of 1000 x 1000 codes does not fit"),
    "unknown task": ({"layout_task": "paint"}, "layout task 'paint' is unknown; choose from"),
    "no folder": ({"transformer": "nowhere"}, "nowhere holds no official transformer"),
    "no codec": ({"image_tokenizer": "nowhere.pt"}, "no torch file at nowhere.pt"),
    "no text": ({"text_tokenizer": "nowhere.model"}, "no text tokenizer at nowhere.model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_read_is_refused_and_nothing_is_written(given, tmp_path, mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as error:
        from_official(dataclasses.replace(given, **changes), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_text_tokenizer_that_does_not_fit_is_refused_with_the_numbers(
    given, config, tmp_path, official_text
):
    pieces = len(TextTokenizer.load(official_text))
    said = f"{config['vq']['n_embed']} codes, {pieces} text pieces.*has {config['vocab_size']}"
    official = dataclasses.replace(given, text_tokenizer=str(official_text))
    with pytest.raises(InputError, match=said):
        from_official(official, str(tmp_path / "out"))


def test_what_is_no_bundle_is_not_overwritten(given, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = sha256_tree(tmp_path)
    for name in ("file", "folder"):
        with pytest.raises(InputError, match=f"{name} exists and is no bundle"):
            from_official(given, str(tmp_path / name))
    assert sha256_tree(tmp_path) == before


def test_a_malicious_file_is_refused_and_does_not_run(root, given, tmp_path):
    """A pickle that would make a folder, in the place of the weights."""
    marker, file = tmp_path / "marker", tmp_path / "evil" / "1" / STATES

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    file.parent.mkdir(parents=True)
    (tmp_path / "evil" / TRACKER).write_text("1")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"module": Evil()}, protocol=2))
    result = call(
        *(root, "convert", "--source=official", f"--transformer={file.parents[1]}"),
        *("--num_heads=4", f"--out={tmp_path}/out"),
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {file}: its pickle asks for posix.mkdir: expected")
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil"]


def own_bundle(path, config=tiny.TRANSFORMER, codec=None, step=7):
    params = tiny.start(tiny.transformer_objective(config)).params
    part = TransformerPart(config, tiny.VOCABULARY, tiny.LAYOUT, params)
    write_bundle(path, transformer=part, codec=codec, step=step)
    return params


def own_codec(**changes):
    config = dataclasses.replace(tiny.CODEC, **changes)
    start = tiny.start(tiny.codec_objective())
    return CodecPart(config, start.params, start.model_state)


def test_a_model_of_our_own_is_given_with_what_changes_for_it(tmp_path, capsys):
    """PB-relax, our LayerNorm and another epsilon are not in the official code."""
    config = dataclasses.replace(tiny.TRANSFORMER, epsilon=1e-6)
    params = own_bundle(tmp_path / "bundle", config)
    to_official(str(tmp_path / "bundle"), str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert said.count("note: the official code does not compute the transformer as trained") == 3
    for word in ("LayerNorm divides", "no PB-relax", "epsilon is 1e-05, not 1e-06"):
        assert word in said
    assert (tmp_path / "out" / "transformer" / TRACKER).read_text() == "7"
    again = SourceFiles(
        str(tmp_path / "out" / "transformer"), num_heads=config.heads, grid=2, codes=64
    )
    from_official(again, str(tmp_path / "again"))
    part = Bundle(tmp_path / "again").transformer()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(part.params), params)
    capsys.readouterr()
    to_official(str(tmp_path / "again"), str(tmp_path / "once more"))
    assert "note" not in capsys.readouterr().err


def test_a_text_tokenizer_that_leaves_ids_unused_is_pointed_out(tmp_path, capsys, text):
    vocabulary = dataclasses.replace(tiny.VOCABULARY, text=len(text) + 9)
    positions = tiny.transformer_objective().model.positions
    width = tiny.TRANSFORMER.width
    params = tiny.start(tiny.transformer_objective()).params
    params |= {"word_embedding": np.zeros((vocabulary.size, width), np.float32)}
    part = TransformerPart(tiny.TRANSFORMER, vocabulary, tiny.LAYOUT, params)
    assert part.model.positions == positions
    write_bundle(tmp_path / "bundle", transformer=part, text=text)
    to_official(str(tmp_path / "bundle"), str(tmp_path / "out"))
    assert f"command tokens follow the {len(text)} pieces" in capsys.readouterr().err


CANNOT = {
    "pre-norm": ({"sandwich_ln": False}, None, "no transformer without sandwich_ln"),
    "narrow MLP": ({"mlp_ratio": 2}, None, "has mlp_ratio 4, not 2"),
    "residual blocks": ({}, {}, "the codec has residual_blocks 1; the official code has 0"),
    "factor": ({}, {"residual_blocks": 0}, "the codec has downsampling 2; the official code has 8"),
    "widths": (
        {},
        {"residual_blocks": 0, "downsampling": 8, "channels": (4, 4, 8)},
        "the codec has channels \\(4, 4, 8\\); the official code has the same in every layer",
    ),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_the_official_code_cannot_hold_is_refused(tmp_path, what):
    changes, codec, message = CANNOT[what]
    config = dataclasses.replace(tiny.TRANSFORMER, **changes)
    own_bundle(tmp_path / "bundle", config, None if codec is None else own_codec(**codec))
    with pytest.raises(InputError, match=message):
        to_official(str(tmp_path / "bundle"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("part", "record", "message"),
    [
        ("transformer", {"iteration": "../../up"}, "names iteration '../../up', expected a number"),
        ("codec", {"prefix": "model."}, "has prefix 'model.' for the codec, expected 'module.'"),
    ],
)
def test_a_record_that_could_not_have_been_read_is_refused(bundle, tmp_path, part, record, message):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    described = json.loads((copy / "bundle.json").read_text())
    described["parts"][part]["official"] = record
    write_json(copy / "bundle.json", sealed(described))
    with pytest.raises(InputError, match=message):
        to_official(str(copy), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_pixels_normalised_otherwise_are_pointed_out(given, tmp_path, capsys):
    from_official(SourceFiles(image_tokenizer=given.image_tokenizer), str(tmp_path / "bundle"))
    file = tmp_path / "bundle" / "bundle.json"
    described = json.loads(file.read_text())
    described["parts"]["codec"]["config"]["mean"] = [0.5, 0.5, 0.5]
    write_json(file, sealed(described))
    capsys.readouterr()
    to_official(str(tmp_path / "bundle"), str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert said.count("note") == 1
    assert "pixels with the mean (0.79093, 0.76271, 0.7534), not (0.5, 0.5, 0.5)" in said


def test_released_weights_are_finetuned_on_a_released_file_and_given_back(
    bundle, config, fixtures, tmp_path
):
    """In float16, from a converted bundle, on a compact binary; back to the official layout."""
    part = Bundle(bundle).transformer()
    vocabulary, cells = part.vocabulary, config["vq_code_side"] ** 2
    rng = np.random.default_rng(0)
    rows = np.full((32, 64 + cells), -1, "<i4")
    rows[:, :5] = vocabulary.text_start + rng.integers(0, vocabulary.text, (32, 5))
    rows[:, 64:] = rng.integers(0, vocabulary.codes, (32, cells))
    rows.tofile(tmp_path / "rows.bin")
    own = {
        "compat": "none",
        "pb_relax_norm": True,
        "pb_relax_attention": True,
        "dropout": 0.0,
        "remat": "none",
    }
    experiment = {
        "stage": "transformer",
        "train": {"steps": 3, "global_batch": 8, "log_every": 1},
        "data": {
            "source": {"kind": "folder"},
            "store": f"{tmp_path}/rows.bin",
            "image_tokenizer": str(bundle),
            "text_tokenizer": f"{bundle}/text.model",
        },
        "model": dataclasses.replace(part.config, **own),
        "vocabulary": vocabulary,
        "layout": part.layout,
        "optimizer": {"lr": 1e-3, "warmup": 0.0},
        "precision": "float16",
        "init_from": str(bundle),
    }
    run(read_experiment(experiment), str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    convert(
        None, "official", SourceFiles(), str(tmp_path / "run" / "bundle"), str(tmp_path / "back")
    )
    state = read_torch(states(tmp_path / "back" / "transformer"))["module"]
    before = read_torch(states(fixtures / "transformer"))["module"]
    assert list(state) == list(before)
    moved = [np.abs(state[name].read() - before[name].read()).max() for name in before]
    # Three steps of Adam: a little, everywhere.
    assert 0 < max(moved) < 0.01
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
