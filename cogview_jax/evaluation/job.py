"""What lies in a folder of an unfinished evaluation, so that no other one takes it for its own."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json, write_json
from cogview_jax.runtime.leftovers import temporary_path

_JOB = "job.json"
#: Errors of file systems that give no file a second name.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


def as_json(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job is when it has been written and read."""
    return json.loads(json.dumps(job))


def begin_job(path: Path, job: Mapping[str, Any], **chosen: int) -> dict[str, Any]:
    """Makes the folder, or joins those that are at work on the same.

    Args:
        path: the folder, which several processes may make at once.
        job: all that its content depends on, as JSON has it.
        chosen: counts that whoever comes first chooses for all.

    Returns:
        The job with what was chosen.

    Raises:
        InputError: the folder holds another job, or is of something else.
    """
    if not _make(path):
        _write_first(path / _JOB, as_json({**job, **chosen}))
    found = _read(path)
    keys = None if found is None else _others(found, job, chosen)
    if found is None or keys:
        of = ", ".join(keys or [f"{_JOB}, which cannot be read"])
        raise InputError(
            f"{path} has what another evaluation had measured (of another {of}): give its command"
            " again to finish it, delete that folder, or choose another --out"
        )
    return found


def own_job(path: Path, job: Mapping[str, Any]) -> None:
    """Makes the folder, or takes it over from another job: what is in it has jobs of its own.

    Raises:
        InputError: the folder is of something else.
    """
    _make(path)
    write_json(path / _JOB, as_json(job))


def is_of(path: Path, job: Mapping[str, Any]) -> bool:
    """Whether the folder is there and holds this job."""
    found = _read(path)
    return found is not None and not _others(found, job, {})


def is_blank(path: Path) -> bool:
    """Whether a job was begun in the folder, and nothing of it is computed."""
    files = (file for file in path.rglob("*") if not file.is_dir())
    begun = (path / _JOB).exists()
    return begun and all(file.name == _JOB or file.name.startswith(".") for file in files)


def _make(path: Path) -> bool:
    """Makes the folder; returns whether a job was begun in it."""
    path.mkdir(parents=True, exist_ok=True)
    # Locks and half-written files are of those who make it just now.
    strange = any(not other.name.startswith(".") for other in path.iterdir())
    if (path / _JOB).exists():
        return True
    if strange:
        raise InputError(
            f"{path} is no unfinished evaluation: move it away, or choose another --out"
        )
    return False


def _write_first(file: Path, job: dict[str, Any]) -> None:
    """Writes the job unless another process was faster: all take the same, what was chosen too."""
    own = temporary_path(file)
    write_json(own, job)
    try:
        os.link(own, file)  # replaces nothing
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(own, file)
    finally:
        own.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path / _JOB)
    except (InputError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _others(found: dict[str, Any], job: Mapping[str, Any], chosen: Mapping[str, int]) -> list[str]:
    """What is not of this job; of what was chosen, whether it is a count."""
    expected = as_json(job)
    keys = [key for key in {**expected, **found} if key not in chosen]
    wrong = [key for key in chosen if type(found.get(key)) is not int or found[key] < 1]
    return sorted([*(key for key in keys if found.get(key) != expected.get(key)), *wrong])
