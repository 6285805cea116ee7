"""The bundles that come with the package, each known by the name of its folder."""

from pathlib import Path

from cogview_jax.runtime.config import closest
from cogview_jax.runtime.errors import InputError

FOLDER = Path(__file__).parents[1] / "assets" / "bundles"


def shipped() -> dict[str, Path]:
    """The name and the folder of each."""
    return {folder.name: folder for folder in sorted(FOLDER.glob("*/"))}


def bundle_folder(path: Path) -> Path:
    """The folder that is meant: `path` itself if it is there, or the shipped bundle of that name.

    Raises:
        InputError: `path` is a name, and there is neither.
    """
    if path.exists() or not str(path).isidentifier():
        return path
    folders = shipped()
    if str(path) not in folders:
        advice = closest(str(path), folders)
        raise InputError(f"there is no shipped bundle {str(path)!r}, and no such folder; {advice}")
    return folders[str(path)]
