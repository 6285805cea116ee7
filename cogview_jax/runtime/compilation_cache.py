"""Enables the persistent compilation cache in the cache folder of the user.

jax can bound its cache by itself, but then it needs the package `filelock`, takes a lock for every
program that it reads or writes, and fails on programs that it has kept without a bound before. So
the folder is pruned here, once a process: it grows beyond the bound by what one process compiles.

Nor does jax write programs whole or not at all. It would warn of one that was cut short in every
run, and never write it again.
"""

import contextlib
import os
import sys
import zlib
from pathlib import Path

from cogview_jax.runtime.paths import user_cache

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
#: Without it jax keeps only what took it a second to compile: hardly a program of a small model.
_SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
#: Bytes that the folder holds at most once it was pruned; a sampling job keeps about 300 kB.
LIMIT = 1 << 30
#: A file of the folder, whose time says when the programs were last looked at.
CHECKED = ".checked"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def enable_compilation_cache() -> None:
    """Saves compiled programs in the cache folder of the user from now on.

    Nothing changes if the user has set JAX_COMPILATION_CACHE_DIR (also to "") or the option of jax,
    or if there is no home folder that can be written to. Every run then compiles its programs.
    """
    jax = sys.modules.get("jax")
    configured = jax is not None and jax.config.jax_compilation_cache_dir is not None
    if VARIABLE in os.environ or configured or (folder := cache_folder()) is None:
        return
    prune(folder)
    drop_damaged(folder)
    if jax is None:  # Jax reads them when it is imported.
        os.environ[VARIABLE] = str(folder)
        os.environ.setdefault(_SHORTEST, "0")
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _SHORTEST not in os.environ:
        jax.config.update(_SHORTEST.lower(), 0.0)
    # If something was compiled before, jax has decided that there is no cache.
    compilation_cache.reset_cache()


def cache_folder() -> Path | None:
    """Makes and returns the folder for compiled programs; None if that is not possible.

    It is cogview_jax/xla in `user_cache`.
    """
    try:
        caches = user_cache()
        if not caches.is_absolute() or caches == Path("/.cache"):  # HOME is relative, or empty.
            return None
        folder = caches / "cogview_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # It cannot be written to.
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def prune(folder: Path, limit: int = LIMIT) -> None:
    """Deletes the programs that were not read for longest, until a folder holds `limit` bytes.

    Other processes may read, write and prune at the same time: a program that is gone is compiled
    again. Most systems note a day's first reading alone, which is exact enough.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [(entry.stat(), entry.path) for entry in entries if entry.is_file()]
        found.sort(key=lambda file: max(file[0].st_atime, file[0].st_mtime))
        excess = sum(stat.st_size for stat, _ in found) - limit
        for stat, path in found:
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= stat.st_size


def drop_damaged(folder: Path) -> None:
    """Deletes programs that were cut short, by a full disk or a process that was killed.

    Only those written since the last call are read. One that another process is writing just now
    may go too; it is compiled again. Of programs that are compressed by `zstandard`, which jax
    prefers where it is installed, only empty ones are found.
    """
    checked = folder / CHECKED
    with contextlib.suppress(OSError):
        since = checked.stat().st_mtime if checked.exists() else 0
        checked.touch()  # first: what is written from now on is looked at the next time
        for program in folder.glob("*-cache"):
            with contextlib.suppress(FileNotFoundError):  # another process has just pruned it
                if program.stat().st_mtime >= since and not _is_whole(program.read_bytes()):
                    program.unlink()


def _is_whole(data: bytes) -> bool:
    """Whether compressed data ends where it should."""
    if data.startswith(_ZSTANDARD):
        return True
    reader = zlib.decompressobj()
    try:
        reader.decompress(data)
    except zlib.error:
        return False
    return reader.eof
