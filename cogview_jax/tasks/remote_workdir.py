"""Workdirs in buckets: `--workdir gs://BUCKET/RUN` and `s3://BUCKET/RUN`.

The run works in a local copy of its workdir, and what is finished there is copied up while it goes
on. Orbax could write its checkpoints straight to gs://, but a workdir relies on more than a bucket
has: folders that are renamed when they are whole, hashes of the bytes that were written, files that
are appended to, locks, and disks that fail in ways that are tested. With a local copy all of this
stays as it is for any run, training never waits for the network, a bucket that does not answer for
an hour costs nothing, and S3 and Google's storage need two calls alone: write an object, delete an
object. The price is room on a local disk for the checkpoints that are kept.

Processes that share a file system share a local copy. Hosts that share none have one each, which
holds what their processes write of a checkpoint; all of it is in the bucket alone, and comes down
to each of them at the start.
"""

import contextlib
import sys
from collections.abc import Iterator

from cogview_jax.checkpoints.step_directory import DamagedCheckpoints
from cogview_jax.data.remote.addresses import address_problem, is_address, shown
from cogview_jax.data.remote.bucket_lock import BucketLock
from cogview_jax.data.remote.failures import few_retries
from cogview_jax.data.remote.writing import BUCKETS, is_bucket
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.folder_share import FolderShare, find_share
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.processes import is_primary, log
from cogview_jax.tasks.experiment import Experiment
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tasks.workdir_upload import WorkdirUpload
from cogview_jax.tasks.working_copy import InBucket, WorkingCopy

#: How long the processes of a run wait for the one that copies.
COPY_SECONDS = 24 * 3600
#: How often the first request is repeated.
_FIRST_RETRIES = 2


def described_workdir(given: str | None) -> Workdir | None:
    """A local folder with the files that describe the run in a workdir, as `resolve` reads them.

    It is the workdir itself, unless that is in a bucket. This is the first that is asked of the
    bucket: where nobody answers the address is wrong, most likely, and is soon given up.

    Raises:
        InputError: the address is none of a bucket's folder, or may not be read.
        SystemFault: the server fails.
    """
    if given is None or not is_address(given):
        return given if given is None else Workdir(given, shown=given)
    with few_retries(_FIRST_RETRIES):
        return Workdir(working_copy(given).described(), shown=given)


def check_described(given: str, experiment: Experiment) -> None:
    """Refuses a workdir in a bucket that is not this experiment's, before it is copied down.

    Every process of the run calls it.

    Raises:
        InputError: as of `Workdir.check`.
    """
    if not is_address(given):
        return

    def check() -> None:
        workdir = Workdir(working_copy(given).described(), shown=given)
        with _as_the_user_says(workdir):
            workdir.check(experiment)

    KVStoreSync(COPY_SECONDS).together(check, is_primary())


@contextlib.contextmanager
def held_workdir(given: str) -> Iterator[Workdir]:
    """Holds a workdir in the block; every process of the run enters it.

    Of one in a bucket, the block has a local copy, which is copied up in the background, and
    completely when the block ends.

    Args:
        given: a path or an address.

    Raises:
        InputError: another run is at work there, or the bucket may not be read and written.
        SystemFault: the server goes on failing. What was not copied up stays in the local copy.
    """
    if not is_address(given):
        workdir = Workdir(given)
        with workdir.held():
            yield workdir
        return
    copy, sync = working_copy(given), KVStoreSync(COPY_SECONDS)
    share = find_share(copy.home, sync)
    among = KVStoreSync(COPY_SECONDS, share.leaders)
    with contextlib.ExitStack() as stack:
        upload = _begun(copy, share, sync, among, stack)
        if share.leads:
            upload.start()
        workdir = Workdir(copy.folder, share, shown=copy.address)
        if not share.whole:
            workdir.complete = lambda step: _complete(step, copy, upload, share, sync)
        with _as_the_user_says(workdir), workdir.held():
            try:
                yield workdir
            except KeyboardInterrupt:
                upload.leave()
                raise
            except BaseException:
                if not share.whole:  # the other hosts may know nothing of it: nobody waits for them
                    upload.leave()
                elif share.leads:
                    _finished_after_error(upload)
                raise
        sync.all_gather("ended", True)  # what the others write is written
        sync.together(upload.finish, share.leads)
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


def _begun(
    copy: WorkingCopy,
    share: FolderShare,
    sync: KVStoreSync,
    among: KVStoreSync,
    stack: contextlib.ExitStack,
) -> WorkdirUpload:
    """Locks the bucket and the copies, and copies down; `among` is of those that have a copy."""
    what, lock = f"the workdir {copy.address}", BucketLock(copy.address, copy.owner())
    there: list[InBucket] = []

    def begin() -> None:
        stack.enter_context(locked(copy.home / "lock", what, "choose another --workdir"))
        if is_primary():
            stack.enter_context(lock.held())
        there.append(copy.fetch(part=not share.whole))

    sync.together(begin, is_primary())  # what is wrong is said once, and the run made if it is new
    sync.together(begin, share.leads and not is_primary())
    hosts = "" if share.whole else f" on each of {len(share.leaders)} hosts"
    log(f"{copy.address}: the run works in {copy.folder}{hosts}, and is copied up while it goes on")
    return WorkdirUpload(copy, lock, there[0] if there else InBucket(), among)


@contextlib.contextmanager
def _as_the_user_says(workdir: Workdir) -> Iterator[None]:
    """Lets an InputError of the block name the workdir as the user did.

    Damage is that of the local copy, and nothing in the bucket should be deleted for it.
    """
    try:
        yield
    except DamagedCheckpoints as error:
        raise InputError(
            f"{error}; {workdir.shown} may have them undamaged: move {workdir.path} away to have"
            " all of it copied down again"
        ) from None
    except InputError as error:
        raise InputError(workdir.named(error)) from None


def _complete(
    step: int, copy: WorkingCopy, upload: WorkdirUpload, share: FolderShare, sync: KVStoreSync
) -> None:
    """Brings what other hosts have written of a checkpoint to all of them."""
    folder = f"checkpoints/{step}"
    sync.together(lambda: upload.await_whole(folder), is_primary())
    sync.together(lambda: copy.complete(folder), share.leads)


def _finished_after_error(upload: WorkdirUpload) -> None:
    """Copies up what there is, without hiding the error that ends the run."""
    try:
        upload.finish()
    except (InputError, SystemFault) as error:
        print(error, file=sys.stderr, flush=True)
