"""The persistent compilation cache, on by default in the user's cache folder."""

import os
import sys
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder from here on.

    Nothing changes where the user has set JAX_COMPILATION_CACHE_DIR (also to "") or jax's own
    option, and where there is no home or no right to write there: programs are then compiled anew
    in every run.
    """
    jax = sys.modules.get("jax")
    configured = jax is not None and jax.config.jax_compilation_cache_dir is not None
    if VARIABLE in os.environ or configured or (folder := cache_folder()) is None:
        return
    if jax is None:
        os.environ[VARIABLE] = str(folder)  # is read as jax is imported
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    # What was compiled so far has settled for jax that there is no cache.
    compilation_cache.reset_cache()


def cache_folder() -> Path | None:
    """The folder for compiled programs, made if need be; None where there can be none."""
    try:
        home = Path.home()
        if not home.is_absolute() or home == home.parent:  # what an empty HOME stands for
            return None
        folder = home / ".cache" / "cogview_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # no home; no right to write there
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
