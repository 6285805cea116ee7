"""Workdirs in buckets: `--workdir gs://BUCKET/RUN` and `s3://BUCKET/RUN`.

The run works in a local copy of its workdir, and what is finished there is copied up while it goes
on. Orbax could write its checkpoints straight to gs://, but a workdir relies on more than a bucket
has: folders that are renamed when they are whole, hashes of the bytes that were written, files that
are appended to, locks, and disks that fail in ways that are tested. With a local copy all of this
stays as it is for any run, training never waits for the network, a bucket that does not answer for
an hour costs nothing, and S3 and Google's storage need two calls alone: write an object, delete an
object. The price is room on a local disk for the checkpoints that are kept, and that the processes
of a run share one folder, since each writes its part of a checkpoint there.
"""

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

from cogview_jax.data.remote.addresses import address_problem, is_address, shown
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.data.remote.writing import BUCKETS, is_bucket
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.files import write_file
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.processes import host_name, is_primary, log
from cogview_jax.tasks.experiment import Experiment
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tasks.workdir_upload import WorkdirUpload
from cogview_jax.tasks.working_copy import PLACE, WorkingCopy

T = TypeVar("T")

#: How long the processes of a run wait for the one that copies.
COPY_SECONDS = 24 * 3600


def described_workdir(given: str | None) -> str | None:
    """A local folder with the files that describe the run in a workdir, as `resolve` reads them.

    It is the workdir itself, unless that is in a bucket.

    Raises:
        InputError: the address is none of a bucket's folder, or may not be read.
        SystemFault: the server goes on failing.
    """
    if given is None or not is_address(given):
        return given
    return str(working_copy(given).described())


def check_described(given: str, experiment: Experiment) -> None:
    """Refuses a workdir in a bucket that is not this experiment's, before it is copied down.

    Raises:
        InputError: as of `Workdir.check`.
    """
    if not is_address(given):
        return
    folder = working_copy(given).described()
    try:
        Workdir(folder).check(experiment)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), given)) from None


@contextlib.contextmanager
def held_workdir(given: str) -> Iterator[Workdir]:
    """Holds a workdir in the block; every process of the run enters it.

    Of one in a bucket, the block has a local copy, which is copied up in the background, and
    completely when the block ends.

    Args:
        given: a path or an address.

    Raises:
        InputError: another run is at work there; the bucket may not be read and written; or the
            processes do not share the local copy.
        SystemFault: the server goes on failing. What was not copied up stays in the local copy.
    """
    if not is_address(given):
        workdir = Workdir(given)
        with workdir.held():
            yield workdir
        return
    copy, sync = working_copy(given), KVStoreSync(COPY_SECONDS)
    with contextlib.ExitStack() as stack:
        upload = _together(sync, lambda: _begun(copy, stack))
        _check_shared(copy, sync)
        if upload:
            upload.start()
        workdir = Workdir(copy.folder)
        with workdir.held():
            try:
                yield workdir
            except KeyboardInterrupt:
                if upload:
                    upload.leave()
                raise
            except BaseException:
                if upload:
                    _finished_after_error(upload)
                raise
        _together(sync, lambda: upload.finish() if upload else None)
        log(f"{copy.address}: everything is copied there")


@contextlib.contextmanager
def shared_workdir(given: str) -> Iterator[Workdir]:
    """As `held_workdir`, for a command that any number of processes may run in a local workdir."""
    if is_address(given):
        with held_workdir(given) as workdir:
            yield workdir
    else:
        yield Workdir(given)


def working_copy(address: str) -> WorkingCopy:
    """The local copy of the workdir at an address.

    Raises:
        InputError: it is none of a folder in a bucket.
    """
    problem = address_problem(address)
    if not is_bucket(address):
        buckets = " or ".join(f"{name}://" for name in BUCKETS)
        problem = f"expected a path, or the address of a folder in a bucket, {buckets}"
    elif not problem and not address.partition("://")[2].rstrip("/").partition("/")[2]:
        problem = "expected a folder in the bucket, and this is all of it"
    if problem:
        raise InputError(f"--workdir {shown(address)}: {problem}")
    return WorkingCopy(address)


def _begun(copy: WorkingCopy, stack: contextlib.ExitStack) -> WorkdirUpload:
    """Locks the copy and the bucket, and copies down; called by one process."""
    what = f"the workdir {copy.address}"
    stack.enter_context(locked(copy.home / "lock", what, "choose another --workdir"))
    lock = BucketLock(copy.address, copy.owner())
    stack.enter_context(lock.held())
    there = copy.fetch()
    log(f"{copy.address}: the run works in {copy.folder}, and is copied up while it goes on")
    return WorkdirUpload(copy, lock, there)


def _together(sync: KVStoreSync, work: Callable[[], T]) -> T | None:
    """Lets process 0 do something, for which all wait; what it raises, all raise."""
    result, failure = None, None
    if is_primary():
        try:
            result = work()
        except (InputError, SystemFault) as error:
            failure = error
    topic = f"{sync.next_number()}/done"
    said = sync.broadcast(
        topic, lambda: [isinstance(failure, SystemFault), str(failure)] if failure else None
    )
    if failure is not None:
        raise failure
    if said:
        raise (SystemFault if said[0] else InputError)(said[1])
    return result


def _check_shared(copy: WorkingCopy, sync: KVStoreSync) -> None:
    """InputError unless all processes see the copy that process 0 has made."""
    number = sync.next_number()
    sign = copy.home / f"start-{sync.broadcast(f'{number}/sign', lambda: uuid.uuid4().hex)}"
    _together(sync, lambda: write_file(sign, lambda temporary: temporary.touch()))
    seen = sync.all_gather(f"{number}/seen", [sign.exists(), host_name()])
    if is_primary():
        sign.unlink()
    blind = [(process, host) for process, (there, host) in enumerate(seen) if not there]
    for process, host in blind[:1]:
        raise InputError(
            f"process {process} on {host} does not see {copy.folder}, the local copy of"
            f" {copy.address}: a run of several processes shares it, so name a folder in {PLACE}"
            " that is on a file system of all hosts, or give a mounted --workdir"
        )


def _finished_after_error(upload: WorkdirUpload) -> None:
    """Copies up what there is, without hiding the error that ends the run."""
    try:
        upload.finish()
    except (InputError, SystemFault) as error:
        print(error, file=sys.stderr, flush=True)
