"""A run on tars or Parquet that is killed, and goes on on more hosts, reads exactly the next batch.

Its loss at every step is that of an unbroken run, and no two batches have the same.
"""

import numpy as np
import pyarrow as pa
import pytest

from command_runs import STEPS, write_drawing
from processes import Processes
from run_files import logged, steps
from table_files import write_parquet
from tar_files import write_tar

IMAGES, FILES = 40, 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images in the same order as tars and as Parquet files."""
    folder = tmp_path_factory.mktemp("sources")
    found = []
    for number in range(IMAGES):
        file = folder / f"{number:03}.png"
        found.append((file.stem, write_drawing(file, number)[0], file.read_bytes()))
    for part, numbers in enumerate(np.array_split(range(IMAGES), FILES)):
        rows = [found[number] for number in numbers]
        tar = {f"{name}.png": data for name, _, data in rows}
        tar |= {f"{name}.txt": text for name, text, _ in rows}
        write_tar(folder / f"{part}.tar", sorted(tar.items()))
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = [{"bytes": data, "path": name} for name, _, data in rows]
        table = pa.table({"image": pa.array(images, kind), "text": [text for _, text, _ in rows]})
        write_parquet(folder / f"{part}.parquet", table)
    return {"webdataset": f"{folder}/*.tar", "parquet": f"{folder}/*.parquet"}


@pytest.fixture(scope="module")
def train(chain, sources, tmp_path_factory):
    """The command of a run on a source, and its workdir."""
    folder = tmp_path_factory.mktemp("runs")

    def command(name, kind):
        flags = [
            flag
            for flag in chain.train_codec(name)
            if not flag.startswith(("--workdir", "--config.data.source"))
        ]
        workdir = folder / name
        source = (f"--config.data.source.{key}" for key in ("kind", "path"))
        own = [f"{flag}={value}" for flag, value in zip(source, (kind, sources[kind]), strict=True)]
        program = ["-m", "cogview_jax.train", f"--workdir={workdir}", *flags, *own]
        return workdir, [*program, "--config.train.log_every=1"]

    return command


@pytest.fixture(scope="module")
def unbroken(root, train):
    """The losses of a run of one process with two devices."""
    workdir, command = train("unbroken", "webdataset")
    with Processes(root, command, 1, 2) as running:
        running.succeed()
    losses = [line["loss"] for line in logged(workdir)]
    assert len(losses) == STEPS
    apart = np.abs(np.subtract.outer(losses, losses))[~np.eye(STEPS, dtype=bool)]
    assert apart.min() > 1e-4 * max(losses)
    return losses


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_killed_run_on_another_number_of_hosts_reads_the_next_batch(root, train, unbroken, kind):
    workdir, command = train(kind, kind)
    with Processes(root, command, 1, 2) as running:
        running.wait_until(lambda: (workdir / "checkpoints" / "4").exists())
        running.all[0].kill()
    saved = steps(workdir)[-1]
    assert 4 <= saved < STEPS
    with Processes(root, command, 2, 1) as running:
        running.succeed()
        assert f"continues after step {saved} of {STEPS}" in running.output(0)
    lines = logged(workdir)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([line["loss"] for line in lines], unbroken, rtol=1e-5, atol=0)
