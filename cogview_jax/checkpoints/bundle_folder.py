"""What a user may give as a bundle: a folder, an address, or the name of a shipped one."""

from pathlib import Path

from cogview_jax.checkpoints.bundle import FILES
from cogview_jax.checkpoints.remote_bundle import bundle_copy
from cogview_jax.checkpoints.shipped import shipped
from cogview_jax.data.remote.addresses import is_address, shown
from cogview_jax.data.remote.folders import folder_problem
from cogview_jax.runtime.config import SettingError, closest, setting_name
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import local_path, require_paths


def bundle_folder(path: Path | str, name: str = "bundle") -> Path:
    """The folder that is meant: `path` itself if it is there, or the shipped bundle of that name.

    Of an address it is a local copy, see `remote_bundle`.

    Args:
        path: what the user gave; an address is a str.
        name: of the flag or setting, for messages.

    Raises:
        InputError: `path` is a name, and there is neither, or it is an address of no bundle.
        SystemFault: the server at the address does not answer, and there is no copy.
    """
    if is_address(str(path)):
        if problem := folder_problem(str(path)):
            raise InputError(f"{name} = {shown(str(path))!r}: {problem}")
        return bundle_copy(str(path).rstrip("/"))
    path = local_path(path, name)
    if path.exists() or not str(path).isidentifier():
        return path
    folders = shipped()
    if str(path) not in folders:
        advice = closest(str(path), folders)
        raise InputError(f"there is no shipped bundle {str(path)!r}, and no such folder; {advice}")
    return folders[str(path)]


def text_model(path: str) -> Path:
    """The SentencePiece model that is meant: a file, or that of a bundle, ADDRESS/text.model.

    Raises:
        InputError, SystemFault: as `bundle_folder`, or an address ends otherwise.
    """
    if not is_address(path):
        return Path(path)
    folder, _, name = path.rpartition("/")
    if name != FILES["text"]:
        raise InputError(f"{shown(path)}: expected ADDRESS/{FILES['text']}, that of a bundle")
    return bundle_folder(folder) / name


def require_bundles(settings: object, *names: str) -> None:
    """SettingError for the first of the fields `names` that names no bundle; empty ones may.

    Whether there is one is another question.
    """
    for name in names:
        value = getattr(settings, name)
        if not is_address(value):
            require_paths(settings, name)
        elif problem := folder_problem(value):
            raise SettingError(f"{setting_name(name)} = {shown(value)!r}: {problem}")
