"""Hosts that share no folder, but the bucket that the workdir of their run is in."""

import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from cogview_jax.checkpoints.manifest import find_damage, hashed, write_manifest
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.processes import PREEMPTED
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tasks.workdir import resolved_settings
from cogview_jax.tasks.workdir_upload import WorkdirUpload
from cogview_jax.tasks.working_copy import WorkingCopy
from processes import Processes
from run_files import logged
from served_bundles import names_in
from writable_bucket import Answered, Killed

ADDRESS = "s3://bucket/runs/demo"


def test_two_hosts_go_on_as_the_unbroken_run(root, chain, tmp_path):
    found = read_experiment(json.loads((chain.codec / "config.json").read_text()))
    train = dataclasses.replace(
        found.train, steps=8, log_every=1, checkpoint_every=2, keep=1, sample_every=0, bundle_step=6
    )
    mesh = dataclasses.replace(found.mesh, data=1, fsdp=-1)
    settings = resolved_settings(dataclasses.replace(found, train=train, mesh=mesh))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with Processes(root, ["tests/tasks/remote/host_process.py", tmp_path], 2, 2) as both:
        both.succeed()
        outputs = [both.output(process) for process in range(2)]
    first, second = (json.loads(text.splitlines()[-1]) for text in outputs)
    refused = first.pop("refused"), second.pop("refused")
    assert first == second == {"whole": 0, "stopped": PREEMPTED, "ended": 0}
    assert refused[0].startswith("process 1 on ")
    assert refused[0].endswith(": Not a directory")
    assert "Not a directory" in refused[1]
    assert "continues after step 5 of 8" in outputs[0]
    local = str(tmp_path / "host0")
    assert [x for x in outputs[0].splitlines() if local in x and "the run works in" not in x] == []

    copies = [next(tmp_path.glob(f"host{process}/second/*/demo")) for process in range(2)]
    assert logged(copies[0]) == logged(tmp_path / "whole")
    there = tmp_path / "bucket" / "bucket" / "runs" / "demo"
    assert (there / "metrics" / "metrics.jsonl").read_bytes() == (
        (copies[0] / "metrics" / "metrics.jsonl").read_bytes()
    )
    last = there / "checkpoints" / "8"
    assert find_damage(last) == []
    parts = [{*names_in(copy / "checkpoints" / "8")} - {"manifest.json"} for copy in copies]
    assert all(parts)
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == {*names_in(last)} - {"manifest.json"}

    for name, step in (("bundle", 6), ("checkpoints/8", 8)):
        here, expected = open_bundle(there / name), open_bundle(tmp_path / "whole" / name)
        assert here.step == expected.step == step
        made, wanted = (jax.tree.leaves(each.codec().params) for each in (here, expected))
        for pair in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(*pair)


# ---- hosts as threads


class Meeting:
    """Lets so many threads exchange values; where one of them dies the others do not wait."""

    def __init__(self, hosts):
        self.barrier = threading.Barrier(hosts, timeout=30)
        self.said = {}


class ThreadSync(KVStoreSync):
    """What the leader of a host says to the others, which are threads here."""

    def __init__(self, meeting, host):
        super().__init__(30, range(meeting.barrier.parties))
        self._meeting, self._host = meeting, host

    @property
    def is_first(self):
        return self._host == 0

    def all_gather(self, topic, value):
        said = self._meeting.said.setdefault(topic, {})
        said[self._host] = json.dumps(value)
        self._meeting.barrier.wait()
        return [json.loads(said[host]) for host in sorted(said)]


class Hosts:
    """Two hosts, each with a working copy of its own."""

    def __init__(self, machine):
        self._machine, self.copies = machine, []
        for host in range(2):
            machine(f"host{host}")
            self.copies.append(WorkingCopy(ADDRESS))
        self.start()

    def start(self):
        there = [copy.fetch(part=True) for copy in self.copies]
        lock, meeting = BucketLock(ADDRESS, self.copies[0].owner()), Meeting(2)
        lock.check = lambda: None
        self.uploads = [
            WorkdirUpload(copy, lock, there[host], ThreadSync(meeting, host))
            for host, copy in enumerate(self.copies)
        ]
        self._meeting = meeting

    def train(self, step):
        """Lets each host write a file of a checkpoint."""
        parts = []
        for host, copy in enumerate(self.copies):
            folder = copy.folder / "checkpoints" / str(step)
            (folder / "state").mkdir(parents=True)
            (folder / "state" / f"of{host}").write_text(f"{host} at {step}")
            parts.append(hashed(folder))
        for copy in self.copies:
            write_manifest(copy.folder / "checkpoints" / str(step), parts[0] | parts[1])
        (self.copies[0].folder / "metrics.jsonl").write_text(f"{step}")

    def copy_up(self):
        """A pass of both; returns what each of them raised."""
        return self.call(WorkdirUpload.copy_up)

    def call(self, method):
        """Calls a method of both uploads; returns what each of them raised."""
        raised = [None, None]

        def work(host):
            try:
                method(self.uploads[host])
            except BaseException as error:
                raised[host] = error
                if isinstance(error, (Killed, threading.BrokenBarrierError)):
                    self._meeting.barrier.abort()

        threads = [threading.Thread(target=work, args=[host]) for host in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


@pytest.fixture
def hosts(bucket, machine):
    return Hosts(machine)


def checkpoint(name, step):
    return f"checkpoints/{step}/{name}"


def test_each_host_sends_what_it_wrote_and_the_marker_comes_last(bucket, hosts, machine):
    hosts.train(10)
    (hosts.copies[1].folder / "metrics.jsonl").write_text("of the other host")
    assert hosts.copy_up() == [None, None]
    sent = ["metrics.jsonl", *(checkpoint(f"state/of{host}", 10) for host in range(2))]
    assert sorted(bucket.wrote[1:-1]) == sorted(sent)
    assert bucket.wrote[-1] == checkpoint("manifest.json", 10)
    assert bucket.read("metrics.jsonl") == b"10"
    hosts.train(20)
    for copy in hosts.copies:
        shutil.rmtree(copy.folder / "checkpoints" / "10")
    assert hosts.copy_up() == [None, None]
    assert not [name for name in bucket.names() if name.startswith("checkpoints/10/")]
    machine("another")
    alone = WorkingCopy(ADDRESS)
    alone.fetch()
    assert find_damage(alone.folder / "checkpoints" / "20") == []


@pytest.mark.parametrize("host", [0, 1])
def test_an_upload_that_fails_on_one_host_is_tried_again_by_all(bucket, hosts, host, monkeypatch):
    hosts.train(10)
    put = bucket.pipe_file

    def refuse(address, data):
        if address.endswith(f"state/of{host}"):
            raise Answered(403)
        put(address, data)

    with monkeypatch.context() as refusing:
        refusing.setattr(bucket, "pipe_file", refuse)
        raised = hosts.copy_up()
    assert all(isinstance(error, InputError) and "403 Forbidden" in str(error) for error in raised)
    assert checkpoint("manifest.json", 10) not in bucket.names()
    before = len(bucket.wrote)
    assert hosts.copy_up() == [None, None]
    own, marker = checkpoint(f"state/of{host}", 10), checkpoint("manifest.json", 10)
    assert bucket.wrote[before:] == [own, marker], "what is there is not sent again"


def test_a_checkpoint_that_lacks_files_is_not_copied(bucket, hosts, capsys):
    hosts.train(10)
    (hosts.copies[1].folder / checkpoint("state/of1", 10)).unlink()
    hosts.train(30)
    assert hosts.copy_up() == [None, None]
    assert "lacks" not in capsys.readouterr().err, "it may have been deleted just now"
    assert hosts.copy_up() == [None, None]
    assert [name for name in bucket.names() if name.endswith("manifest.json")] == [
        checkpoint("manifest.json", 30)
    ]
    lacking = f"{ADDRESS}: checkpoints/10 lacks files of a host: it is not copied"
    assert lacking in capsys.readouterr().err
    assert hosts.copy_up() == [None, None]
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemFault, match=f"{ADDRESS}: checkpoints/10 could not be copied there"):
        hosts.uploads[0].await_whole("checkpoints/10")
    hosts.uploads[0].await_whole("checkpoints/30")


def test_a_checkpoint_that_one_host_has_not_committed_yet_is_copied_later(bucket, hosts):
    hosts.train(10)
    place = hosts.copies[1].folder / "checkpoints" / "10"
    place.rename(place.with_name("later"))
    assert hosts.copy_up() == [None, None]
    assert checkpoint("manifest.json", 10) not in bucket.names()
    place.with_name("later").rename(place)
    assert hosts.copy_up() == [None, None]
    assert checkpoint("manifest.json", 10) in bucket.names()


def test_a_checkpoint_that_is_damaged_on_one_host_is_not_copied(bucket, hosts, capsys):
    hosts.train(10)
    (hosts.copies[1].folder / checkpoint("state/of1", 10)).write_text("1 at 99")
    assert hosts.copy_up() == [None, None]
    assert checkpoint("manifest.json", 10) not in bucket.names()
    damaged = f"{ADDRESS}: checkpoints/10 is damaged (state/of1: has sha256"
    assert damaged in capsys.readouterr().err


@pytest.mark.parametrize("writes", range(1, 9))
def test_whichever_host_dies_the_bucket_has_a_run_to_go_on_from(bucket, hosts, machine, writes):
    hosts.train(10)
    hosts.copy_up()
    hosts.train(20)
    for copy in hosts.copies:
        shutil.rmtree(copy.folder / "checkpoints" / "10")
    bucket.dies = len(bucket.wrote) + writes - 1
    died = any(isinstance(error, Killed) for error in hosts.copy_up())
    assert died == (writes < 8), "as many as a pass makes"
    bucket.dies = None
    newest = 20 if checkpoint("manifest.json", 20) in bucket.names() else 10
    hosts.start()
    for copy in hosts.copies:
        steps = [int(path.name) for path in (copy.folder / "checkpoints").iterdir()]
        assert max(steps) == newest
        for step in steps:
            assert find_damage(copy.folder / "checkpoints" / str(step)) == [], "all of it is here"
    assert hosts.copy_up() == [None, None]


def test_what_the_bucket_has_not_is_dropped_and_only_what_changed_comes_again(
    bucket, hosts, monkeypatch
):
    hosts.train(10)
    bucket.put("tokens/0.array_record", b"tokens")
    hosts.copy_up()
    hosts.train(20)
    find, asked, cat = bucket.find, [], bucket.cat_file

    def tagged(address, detail=True):
        found = find(address, detail)
        return {name: about | {"ETag": str(about["created"])} for name, about in found.items()}

    def noted(address, start=None, end=None):
        asked.append(address.removeprefix(f"{ADDRESS}/"))
        return cat(address, start, end)

    monkeypatch.setattr(bucket, "find", tagged)
    monkeypatch.setattr(bucket, "cat_file", noted)
    hosts.start()
    for host, copy in enumerate(hosts.copies):
        assert names_in(copy.folder / "checkpoints") == [
            *("10/manifest.json", "10/state/of0", "10/state/of1")
        ]
        assert asked.count(checkpoint(f"state/of{host}", 10)) == 1, "the other host's"
    assert asked.count("tokens/0.array_record") == 2
    asked.clear()
    bucket.put("metrics.jsonl", b"11")
    hosts.start()
    assert {*asked} <= {"metrics.jsonl", ".workdir.json", checkpoint("manifest.json", 10)}
    assert [(copy.folder / "metrics.jsonl").read_text() for copy in hosts.copies] == ["11"] * 2
    assert hosts.copies[1].is_part
    hosts.copies[1].fetch()  # of a run of one host
    assert not hosts.copies[1].is_part


def test_a_checkpoint_that_another_host_has_not_named_yet_comes_with_the_next_pass(
    bucket, hosts, capsys
):
    hosts.train(10)
    folder = hosts.copies[1].folder / "checkpoints" / "10"
    written = folder.with_name(".written")
    folder.rename(written)
    assert hosts.copy_up() == [None, None]
    assert checkpoint("manifest.json", 10) not in bucket.names()
    written.rename(folder)
    assert hosts.copy_up() == [None, None]
    assert checkpoint("manifest.json", 10) in bucket.names()
    assert "is not copied" not in capsys.readouterr().err


def test_a_checkpoint_that_never_comes_is_not_waited_for(bucket, hosts, capsys):
    hosts.train(10)
    shutil.rmtree(hosts.copies[1].folder / "checkpoints" / "10")
    for upload in hosts.uploads:
        upload.start()
    raised = []

    def wait():
        try:
            hosts.uploads[0].await_whole("checkpoints/10")
        except SystemFault as error:
            raised.append(str(error))

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    waiter.join(timeout=30)
    assert raised == [f"{ADDRESS}: checkpoints/10 could not be copied there"]
    assert hosts.call(WorkdirUpload.finish) == [None, None]
    assert "checkpoints/10 is not whole on all hosts: it is not copied" in capsys.readouterr().err


@pytest.mark.parametrize("host", [0, 1])
def test_no_host_waits_for_one_that_has_a_defect(bucket, hosts, host, monkeypatch):
    hosts.train(10)

    def send(*arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(hosts.uploads[host], "_send", send)
    for upload in hosts.uploads:
        upload.start()
    raised = hosts.call(WorkdirUpload.finish)
    assert isinstance(raised[host], RuntimeError)
    assert isinstance(raised[1 - host], SystemFault)
    assert "can't start new thread" in str(raised[1 - host])
