"""Runs whose workdir is in a bucket: killed, gone on with on an empty machine, and refused."""

import dataclasses
import json
import os
import uuid
from collections import deque

import pytest

from cogview_jax.checkpoints import remote_bundle
from cogview_jax.checkpoints.manifest import write_manifest
from cogview_jax.checkpoints.step_directory import StepDirectory
from cogview_jax.data.prefetch import Prefetched
from cogview_jax.data.remote import bucket_lock, files
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.processes import PREEMPTED, StopRequest
from cogview_jax.tasks.earlier_run import resolve
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.remote_workdir import described_workdir, held_workdir, working_copy
from cogview_jax.tasks.training import run
from run_files import logged
from writable_bucket import Answered

ADDRESS = "s3://bucket/runs/demo"
STEPS = 8


@pytest.fixture(params=["memory", "moto"])
def place(request):
    """The fake of the other tests, or a server that speaks S3 where its package is installed."""
    if request.param == "memory":
        return request.getfixturevalue("bucket")
    return request.getfixturevalue("served")


@pytest.fixture
def served(machine, quick, monkeypatch):
    moto = pytest.importorskip("moto.server", reason="needs the packages moto[server] and s3fs")
    s3fs = pytest.importorskip("s3fs", reason="needs the extra [remote]")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    system = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=False)
    system.mkdir("bucket")
    served = Served(system)
    monkeypatch.setattr(files, "file_system", lambda name: served)
    yield served
    server.stop()


class Served:
    """As `WritableBucket`, of a server."""

    def __init__(self, system):
        self._system, self.faults = system, deque()

    def __getattr__(self, name):
        return getattr(self._system, name)

    def names(self):
        start = ADDRESS.removeprefix("s3://")
        return sorted(name.removeprefix(f"{start}/") for name in self._system.find(start))

    def pipe_file(self, address, data):
        fault = self.faults.popleft() if self.faults else None
        if fault:
            raise Answered(fault)
        self._system.pipe_file(address, data)


@pytest.fixture
def experiment(chain):
    """The chain's codec, of one log line a step."""
    found = read_experiment(json.loads((chain.codec / "config.json").read_text()))
    train = dataclasses.replace(
        found.train, steps=STEPS, log_every=1, checkpoint_every=2, sample_every=0, keep=1
    )
    return dataclasses.replace(found, train=train)


def whole_steps(names):
    return [int(n.split("/")[1]) for n in names if n.endswith("/manifest.json")]


def test_an_empty_machine_goes_on_as_the_unbroken_run(
    place, machine, experiment, tmp_path, monkeypatch, capfd
):
    assert run(experiment, str(tmp_path / "whole")) == 0
    place.faults.extend([503, None, None] * 4)
    with monkeypatch.context() as stopped:
        stopped.setattr(StopRequest, "reached", lambda self, step: step == 5)
        assert run(experiment, ADDRESS) == PREEMPTED
    assert not place.faults
    assert whole_steps(place.names()) == [5]
    assert not [name for name in place.names() if name.startswith((".locks", "bundle"))]

    machine("second")
    assert run(experiment, f"{ADDRESS}/") == 0
    copy = working_copy(ADDRESS).folder
    assert logged(copy) == logged(tmp_path / "whole")
    assert whole_steps(place.names()) == [STEPS]
    said = capfd.readouterr().err
    assert f"continues after step 5 of {STEPS}" in said
    assert f"{ADDRESS}: everything is copied there" in said
    (line,) = [line for line in said.splitlines() if str(tmp_path / "second") in line]
    assert line.startswith(f"{ADDRESS}: the run works in {copy}, and is copied up")

    machine("third")  # where nothing is left to do
    before = place.names()
    assert run(experiment, ADDRESS) == 0
    assert place.names() == before
    remote_bundle.bundle_copy.cache_clear()
    bundle = remote_bundle.bundle_copy(f"{ADDRESS}/bundle")
    assert bundle.name == "demo"
    remote_bundle.bundle_copy.cache_clear()

    other = dataclasses.replace(experiment, seed=7)
    machine("fourth")
    with pytest.raises(InputError, match=f"{ADDRESS} holds a run with seed = 0, but the config sa"):
        run(other, ADDRESS)
    assert not working_copy(ADDRESS).folder.exists(), "nothing was copied"


def test_a_run_that_is_told_to_stop_while_it_waits_for_data_is_copied_whole(
    bucket, experiment, monkeypatch
):
    """It leaves without waiting for the thread that reads."""
    get, asked, left = Prefetched.get, [], []

    def slow(self, waiting, every=0.01):
        asked.append(waiting)
        waiting()
        return get(self, waiting, every)

    def waiting(self):
        self.waited = len(asked) > 5
        return self.waited

    def leave(status):
        left.append((status, bucket.names()))
        raise SystemExit(status)

    monkeypatch.setattr(Prefetched, "get", slow)
    monkeypatch.setattr(StopRequest, "waiting", waiting)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        run(experiment, ADDRESS)
    ((status, names),) = left
    assert status == PREEMPTED
    assert whole_steps(names) == [5]
    assert not [name for name in names if name.startswith(".locks")]


def test_an_upload_that_was_cut_short_is_not_gone_on_from(
    bucket, machine, experiment, tmp_path, monkeypatch, capfd
):
    """The metrics are newer than the checkpoint then."""
    longer = dataclasses.replace(experiment.train, keep=3)
    experiment = dataclasses.replace(experiment, train=longer)
    run(experiment, str(tmp_path / "whole"))
    with monkeypatch.context() as stopped:
        stopped.setattr(StopRequest, "reached", lambda self, step: step == 5)
        run(experiment, ADDRESS)
    assert whole_steps(bucket.names()) == [2, 4, 5]
    bucket.rm_file(f"{ADDRESS}/checkpoints/5/manifest.json")
    machine("second")
    assert run(experiment, ADDRESS) == 0
    assert f"continues after step 4 of {STEPS}" in capfd.readouterr().err
    assert logged(working_copy(ADDRESS).folder) == logged(tmp_path / "whole")
    assert not [name for name in bucket.names() if name.startswith("checkpoints/5/")]


def test_what_could_not_be_copied_is_copied_by_the_next_start(bucket, experiment, capfd):
    with (
        pytest.raises(SystemFault, match=rf"{ADDRESS}.*: 503 .* lacks the end of it: run the"),
        held_workdir(ADDRESS) as workdir,
    ):
        bucket.always = 503
        (workdir.path / "config.json").write_text("{}")
    bucket.always = None
    with held_workdir(ADDRESS):
        pass
    assert "config.json" in bucket.names()


def test_an_error_of_the_run_is_not_hidden(bucket, capsys):
    with pytest.raises(InputError, match="the loss is not finite"), held_workdir(ADDRESS) as held:
        (held.path / "skipped.jsonl").write_text("{}")
        raise InputError("the loss is not finite")
    assert "skipped.jsonl" in bucket.names()
    with pytest.raises(InputError, match="not finite"), held_workdir(ADDRESS):
        bucket.always = 403
        raise InputError("the loss is not finite")
    assert "403 Forbidden" in capsys.readouterr().err


def test_damage_on_the_disk_is_not_said_of_the_bucket(bucket, capsys):
    with held_workdir(ADDRESS) as held:
        folder = held.checkpoints / "10"
        folder.mkdir(parents=True)
        (folder / "state").write_text("as it was")
        write_manifest(folder)
    (folder / "state").write_text("otherwise")
    with pytest.raises(InputError) as refused, held_workdir(ADDRESS) as held:
        StepDirectory(held.checkpoints, held.damaged, held.share).newest_whole(KVStoreSync(30))
    said = str(refused.value)
    assert said.startswith(f"every checkpoint in {folder.parent} is damaged (10: state: has sha256")
    assert said.endswith(
        f"; {ADDRESS} may have them undamaged: move {held.path} away to have all"
        " of it copied down again"
    )
    held.path.rename(held.path.with_name("away"))
    with held_workdir(ADDRESS):
        assert (folder / "state").read_text() == "as it was"


def test_one_run_at_a_time(bucket, machine, monkeypatch):
    monkeypatch.setattr(bucket_lock, "PATIENCE", 300)  # the other is alive, however slow
    busy = rf"workdir {ADDRESS} is in use by process {os.getpid()}"
    with held_workdir(ADDRESS):
        with pytest.raises(InputError, match=busy), held_workdir(ADDRESS):
            pass
        machine("second")
        with pytest.raises(InputError, match=busy), held_workdir(ADDRESS):
            pass


def test_what_the_run_in_the_bucket_began_with_is_known(bucket, chain):
    settings = json.loads((chain.run / "config.json").read_text())
    settings["layout"]["text_length"] = 39
    bucket.put("config.json", json.dumps(settings).encode())
    begun = read_experiment(settings)
    given = json.loads((chain.run / "config.json").read_text())
    found, origins = resolve(given, {}, described_workdir(ADDRESS))
    assert found.layout.text_length == begun.layout.text_length == 39
    assert origins["layout.text_length"] == ADDRESS
    bucket.rm_file(f"{ADDRESS}/config.json")
    found, _ = resolve(given, {}, described_workdir(ADDRESS))
    assert found.layout.text_length == 40
    assert described_workdir("runs/demo").shown == "runs/demo"
    assert described_workdir(None) is None


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "hf://me/model",
            "expected a path, or the address of a folder in a bucket, gs:// or s3://",
        ),
        ("https://host/run", "expected a path, or the address of a folder in a bucket"),
        ("s3://bucket", "expected a folder in the bucket, and this is all of it"),
        ("gs:///run", "an address without the name of a server or a bucket"),
        ("gs://me:secret@bucket/run", "a password in an address"),
    ],
)
def test_addresses_that_are_refused(address, said):
    for refused in (described_workdir, lambda given: held_workdir(given).__enter__()):
        with pytest.raises(InputError) as caught:
            refused(address)
        assert str(caught.value).startswith("--workdir ")
        assert said in str(caught.value)
        assert "secret@" not in str(caught.value)


def test_an_address_where_nobody_answers_is_soon_given_up(bucket):
    bucket.always = 503
    with pytest.raises(SystemFault, match=r"config.json: 503 Service Unavailable \(3 tries\)"):
        described_workdir(ADDRESS)


def test_a_missing_package_is_named(machine, monkeypatch):
    files.file_system.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"s3:// needs .*cogview-jax\[remote\]"):
        described_workdir(ADDRESS)


def test_a_folder_of_ones_own_for_the_copies(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIEW_WORKDIRS", str(tmp_path / uuid.uuid4().hex))
    with held_workdir(ADDRESS) as workdir:
        assert workdir.path.is_relative_to(os.environ["COGVIEW_WORKDIRS"])
        assert workdir.path.name == "demo"
