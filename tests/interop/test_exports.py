"""Exports: programs that sample as we do without this code, and weights that others restore."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax import export as jax_export
from jax.experimental import pallas

import cogview_jax
import reference
from cogview_jax.checkpoints.bundle import codec_shapes, transformer_shapes
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.shipped import FOLDER
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.checkpoints.stored_tree import Deferred, stored_tree
from cogview_jax.interop.exports import ExportOptions, export
from cogview_jax.interop.official.conversion import to_official
from cogview_jax.interop.rules import flat
from cogview_jax.interop.safetensors_arrays import write_arrays
from cogview_jax.interop.stablehlo import folder as stablehlo
from cogview_jax.interop.stablehlo.programs import Program, TransformerPrograms
from cogview_jax.interop.stablehlo.weights import transformer_weights
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sealed import read_sealed
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig, SamplingSettings
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.layout import LayoutConfig, left_padded, make_layout
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.tokenizers.vocabulary import Vocabulary
from command_runs import call

ROWS = 2
TEXT = FOLDER / "emoji" / "text.model"
#: The first four bytes of the SHA-256 of "a red heart".
PROMPT_HASH = 0x4BEB9A7B
VOCABULARY = Vocabulary(codes=32, text=1500)
LAYOUT = LayoutConfig(text_length=5, grid=4)
TRANSFORMER = TransformerConfig(layers=2, width=32, heads=4, dropout=0.0, remat="none")
#: One that the release's code could hold.
CODEC = VQVAEConfig(image_size=32, channels=16, residual_blocks=0, codebook=32, code_width=8)
#: Runs a program as one who has no more than some libraries: site-packages is a plain folder, so
#: what an editable install adds is not there.
ALONE = """
import importlib.util, runpy, sys
sys.path.append(sys.argv[1])
sys.argv = sys.argv[2:]
assert importlib.util.find_spec("cogview_jax") is None
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.split(".")[0] in ("flax", "orbax", "safetensors")]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of random weights."""
    path = tmp_path_factory.mktemp("exports") / "bundle"
    layout = make_layout(LAYOUT, VOCABULARY)
    model = TransformerPart(TRANSFORMER, VOCABULARY, LAYOUT, {"position_embedding": np.zeros(0)})
    model = dataclasses.replace(model.model, positions=layout.positions)
    params = reference.random_like(unbox(transformer_shapes(model)), 0)
    codec = reference.random_like(unbox(codec_shapes(CODEC)), 1)
    write_bundle(
        path,
        codec=CodecPart(CODEC, codec["params"], CODEC.quantiser.State(**codec["codebook"])),
        text=TextTokenizer.load(TEXT),
        transformer=TransformerPart(
            *(TRANSFORMER, VOCABULARY, LAYOUT, params),
            drop_captions=0.1,
            sampling=SamplingSettings(temperature=2, guidance=3),
        ),
    )
    return path


@pytest.fixture(scope="module")
def exported(bundle):
    out = bundle.parent / "stablehlo"
    options = ExportOptions(stablehlo.StableHLOOptions(rows=ROWS))
    export(str(bundle), "stablehlo", str(out), options)
    return out


@pytest.fixture(scope="module")
def model(bundle):
    return cogview_jax.load(bundle)


def alone(program, *arguments):
    """Runs a program in a process without this package."""
    site = Path(importlib.util.find_spec("jax").origin).parents[1]
    command = [sys.executable, "-I", "-S", "-c", ALONE, site, program, *arguments]
    subprocess.run(list(map(str, command)), check=True, timeout=300)


def described(out):
    return read_sealed(out / "export.json")


def programs(out):
    """Name -> the program as jax calls it, with its weights."""
    about = described(out)
    weights = {
        part: safetensors.numpy.load_file(out / file) for part, file in about["weights"].items()
    }

    def bound(entry):
        called = jax_export.deserialize(bytearray((out / entry["file"]).read_bytes())).call
        parts = {part: weights[part] for part in entry["weights"]}
        return lambda *inputs: jax.jit(called)(parts, *inputs)

    return {name: bound(entry) for name, entry in about["programs"].items()}


# ---- stablehlo


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_runner_alone_gives_what_sample_gives(exported, model, guidance, tmp_path):
    prompt, settings = "a blue butterfly in flat style", {"temperature": 0.9, "top_p": 0.95}
    alone(
        *(exported / "run.py", f"--prompt={prompt}", "--seed=4294967295", "--num_images=3"),
        *(f"--out={tmp_path / 'out.npz'}", f"--guidance={guidance}", "--top_k=20"),
        *(f"--{name}={value}" for name, value in settings.items()),
    )
    found = np.load(tmp_path / "out.npz")
    sampling = SamplingConfig(**settings, top_k=20, guidance=guidance)
    codes = model.generate_codes([prompt], 3, 2**32 - 1, sampling=sampling)[0]
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_array_equal(found["images"], model.decode(codes))
    assert len(np.unique(codes)) > 5


@pytest.mark.parametrize("wrong", ["--seed=-1", "--num_images=0", "--parallel_window=2"])
def test_the_runner_refuses_what_it_cannot_do(exported, wrong):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        alone(exported / "run.py", "--prompt=a", wrong)
    assert refused.value.returncode == 2, "no traceback, which ends with 1"


def test_the_runner_refuses_guidance_that_is_not_there_and_damaged_files(exported, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    about = json.loads((copy / "export.json").read_text())
    del about["programs"]["text_to_image_guided"]
    (copy / "export.json").write_text(json.dumps(about))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        alone(copy / "run.py", "--prompt=a", "--guidance=2")
    assert refused.value.returncode == 2
    file = copy / about["text"]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        alone(copy / "run.py", "--prompt=a", "--guidance=1")
    assert refused.value.returncode == 1
    said = capfd.readouterr().err
    assert "error: the model has learned no guidance: leave it at 1\n" in said
    assert said.endswith(f"{about['text']} is damaged\n")


def test_the_runner_is_short_and_needs_little(exported):
    lines = (exported / "run.py").read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100


def test_steps_add_up_to_the_whole_and_the_codec_is_that_of_the_bundle(exported, model):
    called = programs(exported)
    row = model.layout.tokens({"text": [5, 6, 7]})
    tokens, valid = left_padded([row] * ROWS, 8)
    positions = np.array([[0, 0, *range(6)]] * ROWS, np.int32)
    prompt = {"tokens": tokens, "valid": valid, "positions": positions}
    prompt |= {name: np.full(ROWS, 7, np.uint32) for name in ("seed", "prompt_hash")}
    prompt["index"] = np.arange(ROWS, dtype=np.uint32)
    settings = {name: np.full(ROWS, 0.8, np.float32) for name in ("temperature", "top_p")}
    settings |= {"guidance": np.full(ROWS, 3, np.float32), "top_k": np.full(ROWS, 9, np.int32)}
    whole = called["text_to_image_guided"](prompt | settings)
    state, codes = called["prefill_guided"](prompt)["state"], []
    for _ in range(LAYOUT.grid**2):
        step = called["decode_step_guided"](settings, state)
        state, codes = step["state"], [*codes, step["tokens"]]
    np.testing.assert_array_equal(np.stack(codes, 1), whole["codes"].reshape(ROWS, -1))
    images = np.random.default_rng(0).integers(256, size=(ROWS, 32, 32, 3)).astype(np.uint8)
    codes = called["encode"]({"images": images})["codes"]
    np.testing.assert_array_equal(codes, model.encode(images))
    np.testing.assert_array_equal(called["decode"]({"codes": codes})["images"], model.decode(codes))


def test_what_is_said_of_programs_is_what_they_are(exported):
    about = described(exported)
    files = {path.name for path in exported.iterdir()} - {"export.json"}
    assert {name: sha256_file(exported / name) for name in files} == about["files"]
    assert len(about["programs"]) == 8
    for entry in about["programs"].values():
        program = jax_export.deserialize(bytearray((exported / entry["file"]).read_bytes()))
        assert list(program.platforms) == about["platforms"] == ["cpu", "cuda", "tpu"]
        assert program.calling_convention_version == entry["calling_convention_version"]
        (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        said = [entry["inputs"], *([entry["state"]] if "state" in entry else [])]
        assert json.loads(json.dumps(stablehlo._shapes(inputs))) == said
        assert json.loads(json.dumps(stablehlo._shapes(outputs))) == entry["outputs"]


def test_weights_are_arguments(exported):
    """No 64 bytes of any weight stand in a program."""
    weights = safetensors.numpy.load_file(exported / "transformer.safetensors")
    kernels = [x.tobytes()[:64] for name, x in weights.items() if "transposed" in name]
    assert len(kernels) == 8
    for path in exported.glob("*.stablehlo"):
        data = path.read_bytes()
        assert not any(kernel in data for kernel in kernels), path


SPARSE = {"attention": "sparse", "window": 4, "window_blocks": 2, "pivots": 6}


@pytest.mark.parametrize(("task", "changes"), [("text_to_image", SPARSE), ("caption", {})])
def test_steps_of_other_models_give_what_generate_gives(task, changes):
    config, form = (
        dataclasses.replace(TRANSFORMER, **changes),
        dataclasses.replace(LAYOUT, task=task),
    )
    part = TransformerPart(config, VOCABULARY, form, {"position_embedding": np.zeros(32)})
    params = reference.random_like(unbox(transformer_shapes(part.model)), 0)
    stored = jax.tree.map(lambda x: Deferred(x.shape, x.dtype, lambda: x), params)
    model = part.model.clone(implementation=stablehlo.IMPLEMENTATION)
    weights = transformer_weights(dataclasses.replace(part, params=stored), model)
    made = TransformerPrograms(model, make_layout(form, VOCABULARY), weights, ROWS)
    parts = {"text": [3], "image": list(range(16))}
    last = made.layout.last_part.name
    row = made.layout.tokens({name: parts[name] for name in parts if name != last})
    tokens, valid = left_padded([row] * ROWS, made.span.prompt)
    seeds = np.full(ROWS, 4, np.uint32), np.full(ROWS, PROMPT_HASH, np.uint32)
    chosen = dict(zip(("seed", "prompt_hash", "index"), (*seeds, np.uint32([0, 1])), strict=True))
    prompt = {"tokens": tokens, "valid": valid, "positions": np.maximum(valid.cumsum(1) - 1, 0)}
    settings = {name: np.ones(ROWS, np.float32) for name in ("temperature", "top_p", "guidance")}
    settings["top_k"], called = np.zeros(ROWS, np.int32), {"transformer": dict(weights.arrays())}
    state, found = jax.jit(made.prefill)(called, prompt | chosen)["state"], []
    for _ in range(6):
        step = jax.jit(made.decode_step)(called, settings, state)
        state, found = step["state"], [*found, step["tokens"]]
    expected = generate(
        *(unstack_layers(params), tokens, valid, sample_keys(4, ["a red heart"] * ROWS, [0, 1])),
        row_settings([SamplingConfig(top_k=0)] * ROWS),
        model=part.model,
        count=made.span.count,
        first=made.span.first,
        last=made.span.last,
    )
    np.testing.assert_array_equal(np.stack(found, 1), expected[:, :6])


def test_weights_have_the_type_of_the_arithmetic(bundle, tmp_path):
    options = stablehlo.StableHLOOptions(("cpu",), 1, policy("bfloat16"))
    folder = tmp_path / "folder"
    folder.mkdir()
    codec_alone = tmp_path / "codec"
    write_bundle(codec_alone, codec=open_bundle(bundle).codec())
    stablehlo.write_programs(open_bundle(codec_alone), folder, options)
    assert {path.name for path in folder.iterdir()} == {
        *("codec.safetensors", "encode.stablehlo", "decode.stablehlo")
    }
    part = open_bundle(bundle).stored_transformer()
    model = part.model.clone(policy=policy("bfloat16"), implementation=stablehlo.IMPLEMENTATION)
    found = dict(transformer_weights(part, model).arrays())
    bias = open_bundle(bundle).transformer().params["blocks"]["block"]["mlp"]["up"]["bias"]
    np.testing.assert_array_equal(
        found["blocks.1.mlp.up.bias"], np.asarray(bias[1]).astype(ml_dtypes.bfloat16)
    )
    assert {array.dtype for array in found.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_what_cannot_be_lowered_for_a_platform_is_an_error():
    def double(x, out):
        out[...] = x[...] * 2

    def kernel(weights, inputs):
        shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        return pallas.pallas_call(double, out_shape=shape)(inputs["x"])

    program = Program(kernel, (), {"x": jax.ShapeDtypeStruct((8, 128), jnp.float32)})
    assert stablehlo.lower("twice", program, {}, ("tpu",)).platforms == ("tpu",)
    with pytest.raises(InputError, match="--platforms tpu,cpu: twice cannot be lowered"):
        stablehlo.lower("twice", program, {}, ("tpu", "cpu"))


# ---- parameters


def test_safetensors_of_the_release_hold_what_its_torch_files_do(bundle, tmp_path):
    export(
        *(str(bundle), "safetensors", str(tmp_path / "ours")),
        ExportOptions(names="official"),
    )
    to_official(str(bundle), str(tmp_path / "theirs"))
    for ours, theirs in (
        ("image_tokenizer.safetensors", "image_tokenizer.pt"),
        ("transformer.safetensors", "transformer/0/mp_rank_00_model_states.pt"),
    ):
        found = safetensors.numpy.load_file(tmp_path / "ours" / ours)
        tree = read_torch(tmp_path / "theirs" / theirs)
        expected = {name: tensor.read() for name, tensor in tree.get("module", tree).items()}
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_arrays_in_any_order_of_memory_are_written_right(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "transposed": generator.standard_normal((3, 5)).astype(np.float32).T,
        "half": generator.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16)[:, ::2],
        "scalar": np.float32(7) * np.ones(()),
        "count": np.arange(3, dtype=np.int32)[::-1],
    }
    arrays["scalar"] = arrays["scalar"].astype(np.float32)
    write_arrays(tmp_path / "a.safetensors", arrays, reversed(arrays.items()), {"a": "b"})
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_orbax_alone_restores_what_the_guide_says(root, bundle, tmp_path):
    export(str(bundle), "orbax", str(tmp_path / "parameters"), ExportOptions())
    page = (root / "docs" / "guides" / "export.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1:]
    assert len(lines.splitlines()) <= 5
    program = tmp_path / "restore.py"
    program.write_text(
        f"{lines}\nimport numpy as np, jax\nnp.savez('out', *jax.tree.leaves(params))"
    )
    site = Path(importlib.util.find_spec("jax").origin).parents[1]
    start = f"import sys; sys.path.append({str(site)!r}); exec(open('restore.py').read())"
    subprocess.run([sys.executable, "-I", "-S", "-c", start], check=True, cwd=tmp_path, timeout=300)
    expected = jax.tree.leaves(open_bundle(bundle).transformer().params)
    with np.load(tmp_path / "out.npz") as found:
        assert len(found) == len(expected)
        for i, array in enumerate(expected):
            np.testing.assert_array_equal(found[f"arr_{i}"], array)


def restored(folder):
    return flat(stored_tree(folder / "transformer"))


@pytest.mark.parametrize("by", ["name", "flag"])
def test_adapters_are_merged(by, tmp_path):
    """The shipped captions model is an adapter of the shipped emoji."""
    name, adapter = {
        "name": ("emoji_caption", None),
        "flag": ("emoji", str(FOLDER / "emoji_caption")),
    }[by]
    export(name, "orbax", str(tmp_path / "out"), ExportOptions(), adapter=adapter)
    found = restored(tmp_path / "out")
    for key, leaf in flat(open_bundle("emoji_caption").stored_transformer().params).items():
        np.testing.assert_array_equal(found[key].make(), leaf.make())
    base = flat(open_bundle("emoji").stored_transformer().params)
    key = "blocks.block.attention.qkv.kernel"
    assert not np.array_equal(found[key].make(), base[key].make())
    assert described(tmp_path / "out")["parts"]["transformer"]["layout"]["task"] == "caption"


def test_a_step_of_a_run_is_exported_as_its_bundle(chain, tmp_path):
    step = max((chain.run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    chain.succeed(
        *("export", f"--bundle={step}", "--format=safetensors", f"--out={tmp_path / 'step'}")
    )
    chain.succeed(
        *("convert", "--target=safetensors", f"--bundle={chain.run}", f"--out={tmp_path / 'run'}")
    )
    for file in ("transformer.safetensors", "image_tokenizer.safetensors"):
        found, expected = (
            safetensors.numpy.load_file(tmp_path / folder / file) for folder in ("step", "run")
        )
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert described(tmp_path / "step")["bundle"]["step"] == int(step.name)


# ---- the folder


def test_an_earlier_export_is_replaced_and_nothing_else(bundle, tmp_path):
    out = tmp_path / "out"
    export(str(bundle), "orbax", str(out), ExportOptions())
    export(str(bundle), "safetensors", str(out), ExportOptions())
    assert not (out / "transformer").exists()
    before = sorted(out.iterdir())
    with pytest.raises(InputError, match="residual_blocks"):
        export("emoji", "safetensors", str(out), ExportOptions(names="official"))
    assert sorted(out.iterdir()) == before
    assert described(out)["format"] == "safetensors"
    shutil.copy(TEXT, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    with pytest.raises(InputError, match="exists and is no export"):
        export(str(bundle), "orbax", str(tmp_path), ExportOptions())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format=torch"], "--format=torch: expected one of stablehlo, safetensors, orbax"),
        (["--format=stablehlo", "--platforms=cuda,mars"], "expected some of cpu, cuda, rocm, tpu"),
        (["--format=orbax", "--platforms=cpu"], "--platforms is for --format stablehlo, not orbax"),
        (["--format=stablehlo", "--names=official"], "--names is for --format safetensors"),
        (["--format=stablehlo", "--batch_size=0"], "--batch_size 0: expected at least 1"),
        (["--format=orbax", "--bundle=emojy"], "did you mean emoji"),
    ],
)
def test_mistakes_are_one_line(root, arguments, said, tmp_path):
    result = call(root, "export", "--bundle=emoji", f"--out={tmp_path / 'out'}", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
