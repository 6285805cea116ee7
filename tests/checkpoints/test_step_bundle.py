"""A step of a run opens as the bundle that would be written from it."""

import json
import shutil

import jax
import numpy as np
import pytest

import cogview_jax
from cogview_jax.checkpoints.bundle import Bundle, codec_shapes
from cogview_jax.checkpoints.manifest import write_manifest
from cogview_jax.checkpoints.step_bundle import BUNDLE, StepBundle, open_bundle
from cogview_jax.checkpoints.stored_step import write_meta
from cogview_jax.checkpoints.stored_tree import sizes
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.bundle_choice import described_bundle
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.run_setup import make_task
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import state_shapes


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def workdir(chain, tmp_path):
    """The chain's run at another path, without its bundle."""
    return shutil.copytree(chain.run, tmp_path / "run", ignore=shutil.ignore_patterns("bundle"))


def damaged(workdir, step):
    """Flips a byte of a checkpoint's parameters."""
    files = [path for path in (workdir / "checkpoints" / str(step) / "params").rglob("*")]
    file = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_last_step_is_what_the_bundle_is(chain, workdir):
    step, bundle = open_bundle(workdir / "checkpoints" / "12"), Bundle(chain.run / "bundle")
    assert isinstance(step, StepBundle)
    assert (step.step, step.weights) == (bundle.step, bundle.weights)
    for name in ("codec", "text"):
        assert step.parts[name] == bundle.parts[name]
    ours, theirs = (b.parts["transformer"] | {"sha256": ""} for b in (step, bundle))
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    assert_same(step.transformer().params, bundle.transformer().params)
    assert_same(step.layered_transformer().params, bundle.layered_transformer().params)
    read = jax.tree.map(lambda leaf: leaf.make(), step.stored_transformer().params)
    assert_same(read, bundle.transformer().params)
    assert step.stored_type("transformer") == np.float32
    assert_same(step.codec().params, bundle.codec().params)
    assert step.text().model == bundle.text().model


def test_a_workdir_is_its_bundle_or_its_newest_whole_checkpoint(chain, workdir, capsys):
    assert open_bundle(chain.run).path == chain.run / "bundle"
    assert open_bundle(workdir).step == 12
    first = cogview_jax.load(workdir).generate_codes(["a red circle"], seed=3)
    bundle = cogview_jax.load(chain.run / "bundle").generate_codes(["a red circle"], seed=3)
    np.testing.assert_array_equal(first, bundle)
    damaged(workdir, 12)
    assert open_bundle(workdir).step == 8
    said = capsys.readouterr().err
    assert f"checkpoint {workdir}/checkpoints/12 is damaged (params/" in said
    assert f"{workdir}/checkpoints/8 is used instead" in said
    with pytest.raises(InputError, match="12 is damaged"):
        open_bundle(workdir / "checkpoints" / "12").transformer()
    damaged(workdir, 8)
    with pytest.raises(InputError) as raised:
        open_bundle(workdir)
    found = str(raised.value)
    assert found.startswith(
        f"{workdir} has no bundle, and of its 2 checkpoints none can be used: restore one from a"
        f" copy, or train again (checkpoint {workdir}/checkpoints/12 is damaged (params/"
    )
    assert f"; checkpoint {workdir}/checkpoints/8 is damaged (params/" in found


def test_a_codecs_step_is_a_bundle_too(chain):
    step, bundle = open_bundle(chain.codec / "checkpoints" / "12"), Bundle(chain.codec / "bundle")
    assert step.codec_config() == bundle.codec_config()
    ours, theirs = step.codec(), bundle.codec()
    assert_same((ours.params, ours.codebook), (theirs.params, theirs.codebook))
    earlier = open_bundle(chain.codec / "checkpoints" / "8").codec()
    assert not np.array_equal(earlier.codebook.codes, theirs.codebook.codes)


def test_tokenizers_are_found_by_their_paths_and_told_by_their_hashes(chain, workdir):
    (workdir / "tokens").rename(workdir / "elsewhere")
    step = workdir / "checkpoints" / "12"
    assert_same(open_bundle(step).codec().params, Bundle(chain.run / "bundle").codec().params)
    meta = step / "meta" / "metadata"
    written = json.loads(meta.read_text())
    for part in ("codec", "text"):
        written["notes"]["bundle"][part]["paths"] = [f"{workdir}/none"]
    meta.write_text(json.dumps(written))
    with pytest.raises(InputError, match=rf"the codec in {workdir}/none, which is gone: put it"):
        open_bundle(step).codec()
    (workdir / "none").write_text("another")
    with pytest.raises(InputError, match=r"was trained with text \w{12}, but .*/none holds \w{12}"):
        open_bundle(step).text()


def test_what_opens_as_nothing_is_one_line(chain, workdir, tmp_path):
    step = workdir / "checkpoints" / "12"
    meta = step / "meta" / "metadata"
    written = json.loads(meta.read_text())
    del written["notes"]["bundle"]
    meta.write_text(json.dumps(written))
    (step / "manifest.json").unlink()
    write_manifest(step)
    with pytest.raises(InputError, match=r"does not describe a bundle: .*--config.train.steps=12"):
        open_bundle(step)
    meta.write_text("{")
    with pytest.raises(InputError, match=f"checkpoint {step} cannot be read: "):
        open_bundle(step)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(InputError, match=f"{workdir} is the workdir of a run without a bundle and"):
        open_bundle(workdir)
    with pytest.raises(InputError, match=r"none is no bundle: there is no bundle\.json in it"):
        open_bundle(tmp_path / "none")


@pytest.mark.parametrize(
    "note",
    [
        *([], 3, {"codec": None}, {"codec": {}}, {"codec": {"paths": 3}}, {"transformer": []}),
        *({"codec": {"arrays": {"a": 5}}}, {"codec": {"arrays": {"a": "params/a"}}}),
        {"transformer": {"adapts": {"path": "x"}, "arrays": {"a": "params/a"}}},
        {"transformer": {"adapts": 3, "arrays": {"a": "params/a"}}},
    ],
)
def test_a_note_that_describes_no_bundle_is_one_line(tmp_path, note):
    write_meta(tmp_path, 1, 1, {}, {BUNDLE: note})
    write_manifest(tmp_path)
    with pytest.raises(InputError) as error:
        StepBundle(tmp_path)
    assert "\n" not in str(error.value)


def test_notes_that_are_no_object_are_one_line(tmp_path):
    write_meta(tmp_path, 1, 1, {}, {BUNDLE: {}})
    meta = tmp_path / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"notes": [1]}))
    write_manifest(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read: .* has notes that are no JSON object"):
        StepBundle(tmp_path)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("spec", ["demo_codec", "codec_vqgan:small", "decoder"])
def test_names_lead_to_all_arrays_of_a_codec_and_no_others(spec, ema_decay, tmp_path):
    """A discriminator is not among them, and encoders that stay as they are, are."""
    config = load_config("demo_codec" if spec == "decoder" else spec)
    config.train.ema_decay = ema_decay
    if spec == "decoder":
        config.loss, config.init_from = {"decoder_only": True}, "bundle"
    experiment = read_experiment(config)
    task = make_task(experiment, Workdir(tmp_path))
    types = (jax.sharding.AxisType.Auto,) * 3  # jax 0.12 has others by default
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=types)
    optimizer = make_optimizer(experiment.optimizer, 9)
    with jax.sharding.use_abstract_mesh(mesh):
        shapes = state_shapes(task.objective, optimizer, mesh, None, ema_decay)
    arrays = described_bundle(task, experiment.train, shapes)["bundle"]["codec"]["arrays"]
    leaf = jax.ShapeDtypeStruct((), np.float32)
    named = sizes(jax.tree.map(lambda _: leaf, arrays))
    assert named.keys() == sizes(unbox(codec_shapes(experiment.model))).keys()
    items = {name.split("/")[0] for name in jax.tree.leaves(arrays)}
    assert items == {"extras", "ema" if ema_decay else "params"}


def test_commands_take_a_run_that_is_not_finished(chain, workdir, tmp_path):
    arguments = ("--prompt=a red circle", f"--out={tmp_path / 'out'}", "--batch_size=1")
    chain.succeed("sample", f"--bundle={workdir}", *arguments)
    (line,) = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "a red circle"
    codec = shutil.copytree(
        chain.codec, tmp_path / "codec", ignore=shutil.ignore_patterns("bundle")
    )
    report = tmp_path / "report.json"
    chain.succeed(
        *("evaluate", "--benchmark=tokenizer", f"--bundle={codec}", f"--real={chain.images}"),
        *(f"--out={report}", "--num_prompts=4"),
    )
    assert json.loads(report.read_text())["benchmark"] == "tokenizer"
