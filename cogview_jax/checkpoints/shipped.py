"""The bundles that come with the package, each known by the name of its folder."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "bundles"


def shipped() -> dict[str, Path]:
    """The name and the folder of each."""
    return {folder.name: folder for folder in sorted(FOLDER.glob("*/"))}
