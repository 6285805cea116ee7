"""One run at a time in a folder of a bucket, whichever machines they are on.

A bucket knows no locks. Each holder has an object of its own, LOCKS/OWNER, and writes it anew all
the time; one that is not written any more belongs to a process that was killed. So no clock of one
machine is compared with that of another, and a run that was killed keeps nobody out for long.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from cogview_jax.data.remote.addresses import joined
from cogview_jax.data.remote.failures import NotThere
from cogview_jax.data.remote.files import listed, read_whole
from cogview_jax.data.remote.writing import delete, write_bytes
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.lock import described, own_note

#: The folder of the locks, in the folder that they guard.
LOCKS = ".locks"
#: Seconds between two renewals, and without one after which a holder counts as dead.
RENEWAL, PATIENCE = 15.0, 60.0
_LIMIT = 1 << 16


class BucketLock:
    """Holds a folder of a bucket for its owner."""

    def __init__(self, folder: str, owner: str):
        """Nothing is asked yet.

        Args:
            folder: the address of what is guarded.
            owner: a name that no other machine has. Who has it knows that nobody else with the
                same name is alive, and need not wait for a lock of this name.
        """
        self._folder, self._locks = folder, joined(folder, LOCKS)
        self._own = joined(self._locks, owner)
        self._note = own_note()
        self._stopped = threading.Event()
        self._lost = ""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock in the block.

        Raises:
            InputError: another run is at work there, or nothing can be written there.
            SystemFault: the server goes on failing.
        """
        try:
            dead = self._others()
            if not dead:
                self._write(0)
        except NotThere:
            raise InputError(f"{self._folder}: there is no such bucket: make it first") from None
        if dead:
            self._await_silence(dead)
            self._write(0)
        others = self._others()
        if new := others.keys() - dead.keys():
            delete([self._own])
            raise self._in_use(others[min(new)])
        delete(dead)
        thread = threading.Thread(target=self._renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
            if not self._lost:
                with contextlib.suppress(InputError, SystemFault):  # it dies by itself
                    delete([self._own])

    def check(self) -> None:
        """InputError if another run has taken the folder over, since this one seemed to be dead."""
        if not self._lost:
            there = listed(f"{self._locks}/")
            others = there.keys() - {self._own}
            if self._own not in there or others:
                who = described(self._content(min(others)) or b"") if others else "another process"
                self._lost = f"{self._folder} was taken over by {who}: nothing more is copied there"
        if self._lost:
            raise InputError(self._lost)

    def _others(self) -> dict[str, bytes]:
        """The locks of others, and what they say; none that is released meanwhile."""
        there = listed(f"{self._locks}/")
        found = {each: self._content(each) for each in there if each != self._own}
        return {each: note for each, note in found.items() if note is not None}

    def _content(self, address: str) -> bytes | None:
        try:
            return read_whole(address, _LIMIT)
        except NotThere:  # it was released
            return None

    def _await_silence(self, before: dict[str, bytes]) -> None:
        """Waits until locks are old enough to be those of the dead; InputError where one lives."""
        who = described(next(iter(before.values())))
        print(
            f"{self._folder} is locked by {who}: waiting {PATIENCE:.0f} s for a sign of life",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(RENEWAL / 3)
            now = self._others()
            if not now:
                return
            if living := [each for each in now if now[each] != before.get(each)]:
                raise self._in_use(now[living[0]])

    def _in_use(self, note: bytes) -> InputError:
        return InputError(
            f"the workdir {self._folder} is in use by {described(note)}: wait until it ends, or"
            " choose another --workdir"
        )

    def _write(self, count: int) -> None:
        write_bytes(self._own, self._note.rstrip()[:-1] + f', "renewed": {count}}}\n'.encode())

    def _renew(self) -> None:
        count = 0
        while not self._stopped.wait(RENEWAL):
            count += 1
            try:
                self.check()
                self._write(count)
            except SystemFault:  # the next time, perhaps
                continue
            except InputError as error:
                if self._lost:
                    return
                print(error, file=sys.stderr, flush=True)
