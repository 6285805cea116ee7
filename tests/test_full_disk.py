"""A disk that fills up under a command: one line, status 1, what was done is kept, and it goes on.

Checkpoints on a full disk are in checkpoints/test_saving.py: training goes on without them.
"""

import shutil

import pytest
from commands.test_sample_images import contents

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.commands.sample_images import text_to_image
from cogview_jax.commands.sample_inputs import JobOptions
from cogview_jax.runtime.errors import SystemFault
from cogview_jax.sampling.options import SamplingOptions
from command_runs import call


def fill(disk, left):
    """Leaves `left` bytes of the disk."""
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left))


def make_room(disk):
    (disk / "filler").unlink()


def one_line(result, *parts):
    """What the command said at last."""
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in ("error: ", "No space left on device", *parts):
        assert part in line
    return line


def test_sampling_keeps_its_images(chain, disk, tmp_path):
    def job(out):
        options = JobOptions(SamplingOptions(batch_size=2), 6)
        text_to_image(f"{chain.run}/bundle", str(out), ["a star"], options)

    fill(disk, 20_000)
    kept = rf"out/unfinished/\S*png: No space left on device; the images so far are kept in {disk}"
    with pytest.raises(SystemFault, match=kept):
        job(disk / "out")
    finished = len(list((disk / "out" / "unfinished").glob("*.png")))
    assert 0 < finished < 6
    assert not (disk / "out" / "samples.jsonl").exists()
    make_room(disk)
    job(disk / "out")
    job(tmp_path / "alone")
    assert contents(disk / "out") == contents(tmp_path / "alone")


def test_preparing_keeps_its_shards(chain, disk):
    arguments = [a for a in chain.transformer("full") if not a.startswith("--workdir")]
    arguments += [f"--workdir={disk / 'run'}"]
    size = sum(path.stat().st_size for path in chain.store.rglob("*") if path.is_file())
    shards = sum(path.stat().st_size for path in chain.store.glob("*.array_record"))
    for left, kept in ((10_000, "can be begun again"), (size - shards // 2, "whole are kept")):
        fill(disk, left)
        one_line(call(chain.root, "prepare", *arguments), kept)
        make_room(disk)
    assert (disk / "run" / "tokens" / "tokens-00000.json").exists()
    assert not (disk / "run" / "tokens" / "manifest.json").exists()
    chain.succeed("prepare", *arguments)
    names = {path.name for path in chain.store.glob("*.array_record")}
    for name in names:
        assert (disk / "run" / "tokens" / name).read_bytes() == (chain.store / name).read_bytes()


def test_a_run_keeps_its_checkpoint_where_there_is_no_room_for_the_bundle(chain, disk):
    run = disk / "run"
    shutil.copytree(chain.run, run, ignore=shutil.ignore_patterns("bundle"))
    arguments = [a for a in chain.transformer("run") if not a.startswith("--workdir")]
    arguments += [f"--workdir={run}"]
    fill(disk, 100_000)
    one_line(call(chain.root, "train", *arguments), f"what {run}/checkpoints holds is kept")
    assert not (run / "bundle").exists()
    make_room(disk)
    chain.succeed("train", *arguments)
    found, expected = Bundle(run / "bundle"), Bundle(chain.run / "bundle")
    assert found.sha256("text") == expected.sha256("text")
    assert found.step == expected.step


def test_converting_leaves_what_was_there(chain, disk):
    fill(disk, 50_000)
    result = call(
        *(chain.root, "convert", "--source", "official"),
        *("--text_tokenizer", f"{chain.run}/bundle/text.model", "--out", disk / "bundle"),
    )
    one_line(result, f"{disk / 'bundle'} is as it was")
    assert [path.name for path in disk.iterdir()] == ["filler"]
