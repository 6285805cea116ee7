"""Logs that were damaged: put aside and begun anew, because nothing depends on them."""

import itertools
import os
import sys
from pathlib import Path

from cogview_jax.runtime.faults import reason


def set_aside(path: str | os.PathLike, why: str) -> None:
    """Renames a damaged log to NAME.damaged, NAME.damaged-2, ..., and says so in one line.

    Nothing in it is lost, and the run that meets it goes on; also where it cannot be renamed.
    """
    path = Path(path)
    names = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
    places = (path.with_name(f"{path.name}.damaged{name}") for name in names)
    place = next(place for place in places if not os.path.lexists(place))
    try:
        os.rename(path, place)
        fate = f"moved to {place.name}, and begun anew"
    except OSError as error:
        fate = f"it stays where it is ({reason(error)})"
    print(f"{path}: {why}: {fate}", file=sys.stderr, flush=True)
