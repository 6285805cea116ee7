"""What goes up to a bucket and comes down from it, and what a kill or a failure leaves there."""

import json
import shutil
import time

import pytest

from cogview_jax.checkpoints.manifest import NAME, find_damage, write_manifest
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.tasks.workdir_upload import WorkdirUpload
from cogview_jax.tasks.working_copy import WorkingCopy
from served_bundles import names_in
from writable_bucket import Killed

ADDRESS = "s3://bucket/runs/demo"


class Run:
    """Does what a run does to its workdir, and copies it up when it is told to."""

    def __init__(self, address=ADDRESS):
        self.copy = WorkingCopy(address)
        self._lock = BucketLock(address, self.copy.owner())
        self._held = self._lock.held()

    def __enter__(self):
        self._held.__enter__()
        self.upload = WorkdirUpload(self.copy, self._lock, self.copy.fetch(), KVStoreSync(1))
        return self

    def __exit__(self, *exception):
        self._held.__exit__(*exception)

    @property
    def folder(self):
        return self.copy.folder

    def write(self, name, text):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def train(self, *steps):
        """Writes metrics and a checkpoint of each step."""
        self.write("config.json", "{}")
        for step in steps:
            path = self.folder / "metrics" / "metrics.jsonl"
            before = path.read_text() if path.exists() else ""
            self.write("metrics/metrics.jsonl", f'{before}{{"step": {step}}}\n')
            for name in ("a", "b"):
                self.write(f"checkpoints/{step}/state/{name}", f"{name} of {step}")
            write_manifest(self.folder / "checkpoints" / str(step))

    def drop(self, step):
        shutil.rmtree(self.folder / "checkpoints" / str(step))

    def bundle(self, text):
        shutil.rmtree(self.folder / "bundle", ignore_errors=True)
        self.write(f"bundle/codec/{text}", text)
        self.write("bundle/bundle.json", json.dumps({"of": text}))


def content(folder):
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


def steps(names):
    """Those of whole checkpoints among names of files."""
    return [int(name.split("/")[1]) for name in names if name.endswith(f"/{NAME}")]


# ---- up and down


def test_an_empty_machine_gets_what_the_first_one_had(bucket, machine):
    with Run() as first:
        first.train(10, 20)
        first.bundle("x")
        first.write("samples/step_10.png", "png")
        first.write("damaged/5/state", "no longer wanted")
        first.write(".train.lock", "held")
        first.upload.copy_up()
    machine("second")
    with Run() as second:
        expected = content(first.folder)
        del expected["damaged/5/state"], expected[".train.lock"]
        assert content(second.folder) == expected
        before = len(bucket.wrote)
        second.upload.copy_up()
        assert bucket.wrote[before:] == []


def test_what_is_up_to_date_is_not_copied_again(bucket):
    with Run() as run:
        run.train(10)
        run.upload.copy_up()
        run.train(20)
        before = len(bucket.wrote)
        run.upload.copy_up()
    assert {*bucket.wrote[before:]} == {
        *("metrics/metrics.jsonl", "config.json", "checkpoints/20/manifest.json"),
        *("checkpoints/20/state/a", "checkpoints/20/state/b"),
    }
    with Run() as run:
        before = len(bucket.wrote)
        run.upload.copy_up()
        assert bucket.wrote[before:] == []


@pytest.mark.parametrize("noted", ["[]", "null", "{", '{"config.json": 2}', '{"config.json": []}'])
def test_damaged_notes_of_what_was_sent_let_all_be_sent_again(bucket, noted):
    with Run() as run:
        run.train()
        run.upload.copy_up()
    (run.copy.home / "sent.json").write_text(noted)
    (run.copy.home / "owner").write_text("")
    bucket.wrote.clear()
    with Run() as run:
        run.upload.copy_up()
    assert bucket.wrote == ["config.json"]
    assert len(run.copy.owner()) == 32


def test_a_dropped_checkpoint_goes_once_a_newer_one_is_there(bucket):
    with Run() as run:
        run.train(10, 20)
        run.upload.copy_up()
        run.train(30)
        run.drop(10)
        before = len(bucket.wrote)
        run.upload.copy_up()
    done = bucket.wrote[before:]
    assert done.index(f"checkpoints/30/{NAME}") < done.index(f"-checkpoints/10/{NAME}")
    assert done.index(f"-checkpoints/10/{NAME}") < done.index("-checkpoints/10/state/a")
    assert steps(bucket.names()) == [20, 30]
    assert not [name for name in bucket.names() if name.startswith("checkpoints/10/")]


def test_another_bundle_takes_the_place_of_the_first(bucket):
    with Run() as run:
        run.train(10)
        run.bundle("x")
        run.upload.copy_up()
        run.bundle("y")
        run.upload.copy_up()
    assert [name for name in bucket.names() if name.startswith("bundle/")] == [
        "bundle/bundle.json",
        "bundle/codec/y",
    ]


def test_a_damaged_checkpoint_is_not_copied(bucket, capsys):
    with Run() as run:
        run.train(10)
        run.write("checkpoints/10/state/a", "A of 10")
        run.train(20)
        run.upload.copy_up()
    assert steps(bucket.names()) == [20]
    assert f"{ADDRESS}: checkpoints/10 is damaged (state/a: has sha256" in capsys.readouterr().err


def test_a_checkpoint_that_is_deleted_meanwhile_is_copied_whole(bucket, monkeypatch):
    with Run() as run:
        run.train(10)
        put = bucket.pipe_file

        def delete_first(address, data):
            if address.endswith("10/state/a"):
                run.drop(10)
            put(address, data)

        monkeypatch.setattr(bucket, "pipe_file", delete_first)
        run.upload.copy_up()
    assert steps(bucket.names()) == [10]
    assert bucket.read("checkpoints/10/state/b") == b"b of 10"
    assert not list(run.copy.home.glob(".cogview-*"))


# ---- kills and failures


@pytest.mark.parametrize("writes", range(1, 14))
def test_whenever_it_is_killed_the_bucket_holds_a_run_to_go_on_from(bucket, machine, writes):
    with Run() as run:
        run.train(10, 20)
        run.bundle("x")
        run.upload.copy_up()
        run.train(30)
        run.drop(10)
        run.bundle("y")
        bucket.dies = len(bucket.wrote) + writes - 1
        try:
            run.upload.copy_up()
            ended = True
        except Killed:
            ended = False
        bucket.dies = None
        whole = content(run.folder)
    assert ended == (writes > 12), "as many as a pass makes"
    machine("second")
    with Run() as second:
        found = sorted(int(path.name) for path in (second.folder / "checkpoints").iterdir())
        assert found in ([10, 20], [10, 20, 30], [20, 30])
        for step in found:
            assert find_damage(second.folder / "checkpoints" / str(step)) == []
        lines = (second.folder / "metrics/metrics.jsonl").read_text().splitlines()
        assert {*found} <= {json.loads(line)["step"] for line in lines}
        bundle = second.folder / "bundle"
        if bundle.exists():
            text = json.loads((bundle / "bundle.json").read_text())["of"]
            assert names_in(bundle) == ["bundle.json", f"codec/{text}"]
    # The first machine is there again, and has all.
    machine("first")
    with Run() as again:
        again.upload.copy_up()
        assert (
            content(again.folder).items()
            >= {name: data for name, data in whole.items() if "checkpoints/10" not in name}.items()
        )
    assert max(steps(bucket.names())) == 30
    assert bucket.read("bundle/codec/y") == b"y"


@pytest.mark.parametrize("asked", range(1, 11, 2))
def test_a_fetch_that_is_killed_is_done_again(bucket, machine, monkeypatch, asked):
    with Run() as run:
        run.train(10, 20)
        run.bundle("x")
        run.upload.copy_up()
        expected = content(run.folder)
    machine("second")
    left, cat = [asked], bucket.cat_file

    def read(address, start=None, end=None):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return cat(address, start, end)

    monkeypatch.setattr(bucket, "cat_file", read)
    with pytest.raises(Killed), Run():
        pass
    monkeypatch.setattr(bucket, "cat_file", cat)
    with Run() as again:
        assert content(again.folder) == expected


def test_what_may_pass_is_tried_again(bucket):
    with Run() as run:
        run.train(10)
        bucket.faults.extend([503, None, 429, 500] * 3)
        run.upload.copy_up()
    assert not bucket.faults
    assert steps(bucket.names()) == [10]


def test_a_bucket_that_fails_for_a_while_stops_nothing(bucket, capsys):
    with Run() as run:
        bucket.always = 503
        run.train(10)
        run.upload.start()
        wait_for(lambda: "it will be copied later" in (said := capsys.readouterr().err) and said)
        run.train(20)
        bucket.always = None
        wait_for(lambda: "copied there again" in capsys.readouterr().err)
        run.upload.finish()
    assert steps(bucket.names()) == [10, 20]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(503, SystemFault, r"503 Service Unavailable \(7 tries\)"), (403, InputError, "403 Forb")],
)
def test_the_end_is_an_error_that_says_where_the_run_is(bucket, machine, status, kind, said):
    with Run() as run:
        run.train(10)
        run.upload.start()
        bucket.always = status
        with pytest.raises(kind, match=f"{said}.*{run.folder} has all of the run") as caught:
            run.upload.finish()
        bucket.always = None
    assert "\n" not in str(caught.value)
    with Run() as again:
        again.upload.copy_up()
    assert steps(bucket.names()) == [10]


def wait_for(true):
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- whose copy is right


def test_the_newer_one_of_copy_and_bucket_goes_on(bucket, machine):
    with Run() as first:
        first.train(10, 20)
        first.upload.copy_up()
        first.train(30)  # and the network fails
    machine("second")
    with Run() as second:
        second.train(25)
        second.upload.copy_up()
    machine("first")
    with Run() as first:
        lines = (first.folder / "metrics/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
        first.upload.copy_up()
    machine("second")
    with Run() as second:
        lines = (second.folder / "metrics/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
        assert (second.folder / "checkpoints/30/state/a").exists()


def test_the_copy_of_a_run_that_was_deleted_in_the_bucket_is_moved_aside(bucket, capsys):
    with Run() as run:
        run.train(10)
        run.upload.copy_up()
    for name in bucket.names():
        bucket.rm_file(f"{ADDRESS}/{name}")
    with Run() as new:
        assert names_in(new.folder) == [".workdir.json"]
        (aside,) = new.copy.home.glob("demo-*")
        assert (aside / "checkpoints/10/state/a").exists()
        assert f"is of another run, which was there before: moved to {aside.name}" in (
            capsys.readouterr().err
        )
        new.upload.copy_up()
    assert steps(bucket.names()) == []


def test_a_local_run_that_was_copied_into_the_bucket_goes_on_there(bucket):
    bucket.put("config.json", b"{}")
    bucket.put("metrics/metrics.jsonl", b"{}\n")
    with Run() as run:
        assert names_in(run.folder) == [".workdir.json", "config.json", "metrics/metrics.jsonl"]


def test_folders_that_were_made_in_the_browser_are_no_files(bucket):
    for name in ("", ".locks/", "checkpoints/"):
        bucket.put(name, b"")
    with Run() as run:
        assert names_in(run.folder) == [".workdir.json"]
        run.train(1)
        run.upload.copy_up()
    assert steps(bucket.names()) == [1]


def test_a_folder_that_holds_something_else_is_refused(bucket, machine):
    bucket.put("images/0.png", b"png")
    with pytest.raises(InputError, match=f"{ADDRESS} holds 'images/0.png', and no run"), Run():
        pass
    assert bucket.names() == ["images/0.png"]
    with pytest.raises(InputError, match="no name of a file in a folder"):
        bucket.put("config.json", b"{}")
        bucket.put("metrics/../../x", b"x")
        with Run():
            pass
