"""Ratings of a study: a line of JSON each, which is on disk before a rater sees the next images."""

import errno
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cogview_jax.evaluation.human_study import QUESTIONS, Study
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import is_clutter, read_regular, sync
from cogview_jax.runtime.processes import log

#: Bytes of the ratings of one rater.
_LIMIT = 256 << 20
_RATER = re.compile(r"[^\W_][\w-]{0,31}")


@dataclass(frozen=True)
class Rating:
    """What one rater says of the images of one caption.

    Attributes:
        scores: of each system by its name, the score of each question by its name.
        best: the system whose image is the best.
    """

    scores: Mapping[str, Mapping[str, int]]
    best: str

    @property
    def best_has_most(self) -> bool:
        """Whether no image has a higher overall score than the best."""
        return self.scores[self.best]["overall"] == max(s["overall"] for s in self.scores.values())


def rater_name(text: str) -> str:
    """The name under which a rater's ratings are kept: in small letters, so that Ann is ann.

    Raises:
        InputError: it is none.
    """
    name = _folded(text.strip())
    if not _RATER.fullmatch(name):
        raise InputError(
            f"rater {text[:40]!r}: expected a name of up to 32 letters, digits, and _ -"
        )
    return name


def _folded(text: str) -> str:
    """The text in small letters, each written in one way."""
    # One pass may make capital letters: of a bold A, which has no small letter, it makes an A.
    while (folded := unicodedata.normalize("NFKC", text.casefold())) != text:
        text = folded
    return text


def rating_of(study: Study, scores: Any, best: Any) -> Rating:
    """A rating, as JSON has it, after it was looked at.

    Args:
        study: what is rated.
        scores: of each system by its name, the score of each question by its name.
        best: the name of a system.

    Raises:
        InputError: a score is missing or out of its range, or something is unknown.
    """
    _check_keys(scores, study.names, "scores")
    for system, given in scores.items():
        _check_keys(given, [question.name for question in QUESTIONS], f"scores of {system}")
        for question in QUESTIONS:
            score = given[question.name]
            if type(score) is not int or not 1 <= score <= question.most:
                raise InputError(
                    f"{question.name} {str(score)[:40]!r}: expected a whole number from 1 to"
                    f" {question.most}"
                )
    if best not in study.names:
        raise InputError(f"best {str(best)[:60]!r}: expected one of {', '.join(study.names)}")
    return Rating(scores, best)


def _check_keys(given: Any, names: Sequence[str], what: str) -> None:
    if not isinstance(given, dict) or set(given) != set(names):
        found = ", ".join(map(str, given)) if isinstance(given, dict) else str(given)
        raise InputError(f"{what} {found[:80]!r}: expected those of {', '.join(names)}")


def raters(study: Study) -> list[str]:
    """Who has rated, sorted.

    Raises:
        InputError: a file among the ratings has a name that no rater has.
    """
    files = [file for file in (study.folder / "ratings").glob("*") if not is_clutter(file.name)]
    names = []
    for file in files:
        # Some file systems take letters with accents apart.
        name = unicodedata.normalize("NFKC", file.stem)
        known = file.suffix == ".jsonl" and _RATER.fullmatch(name) and name == _folded(name)
        own = _file(study, name)
        if not known or not own.exists() or not own.samefile(file):
            raise InputError(
                f"{file}: expected RATER.jsonl, with a name in small letters, digits, and _ -"
            )
        names.append(name)
    return sorted(names)


def read_ratings(study: Study, rater: str) -> dict[int, Rating]:
    """The ratings of a rater by the number of the caption; the last of a caption counts.

    A line that was cut off as it was written is passed over, and a line says so.

    Args:
        study: what is rated.
        rater: as `rater_name` gives it.

    Raises:
        InputError: a line is none that was written here: its file and number, and what is wrong.
    """
    file = _file(study, rater)
    try:
        lines = read_regular(file, _LIMIT).split(b"\n")
    except FileNotFoundError:
        return {}
    ratings = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            log(f"{file}, line {number}: no whole line, passed over")
            continue
        try:
            if not isinstance(found, dict) or not {"caption", "scores", "best"} <= set(found):
                raise InputError("expected an object with caption, scores and best")
            caption = found["caption"]
            if type(caption) is not int or not 0 <= caption < len(study.captions):
                raise InputError(
                    f"caption {str(caption)[:40]!r}: expected a number from 0 to"
                    f" {len(study.captions) - 1}"
                )
            ratings[caption] = rating_of(study, found["scores"], found["best"])
        except InputError as error:
            raise InputError(f"{file}, line {number}: {error}") from None
    return ratings


def append_rating(study: Study, rater: str, caption: int, rating: Rating) -> None:
    """Keeps a rating; on return it is on disk. Of two at a time neither is lost.

    Args:
        study: what is rated.
        rater: as `rater_name` gives it.
        caption: its number.
        rating: from `rating_of`.

    Raises:
        OSError: the disk is full or fails, or the file would be too large to be read; ratings that
            were kept before stay.
    """
    line = {
        "caption": caption,
        "order": study.system_order(rater, caption),
        "scores": rating.scores,
        "best": rating.best,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file = _file(study, rater)
    file.parent.mkdir(exist_ok=True)
    # Neither the folder nor the file is a link, which might lead out of the study.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(file.parent, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        descriptor = os.open(file.name, flags, 0o644, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        size = os.fstat(descriptor).st_size
        # What a killed program has begun to write gets a line of its own, which is passed over.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n"
        if size + len(data) > _LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not size:
        sync(file.parent)


def _file(study: Study, rater: str) -> Path:
    file = study.folder / "ratings" / f"{rater}.jsonl"
    # As a study has it that was copied from such a file system.
    apart = file.with_name(unicodedata.normalize("NFD", file.name))
    return apart if apart.is_file() and not file.is_file() else file
