"""Enables the persistent compilation cache in the cache folder of the user."""

import os
import sys
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def enable_compilation_cache() -> None:
    """Saves compiled programs in the cache folder of the user from now on.

    Nothing changes if the user has set JAX_COMPILATION_CACHE_DIR (also to "") or the option of jax,
    or if there is no home folder that can be written to. Every run then compiles its programs.
    """
    jax = sys.modules.get("jax")
    configured = jax is not None and jax.config.jax_compilation_cache_dir is not None
    if VARIABLE in os.environ or configured or (folder := cache_folder()) is None:
        return
    if jax is None:
        os.environ[VARIABLE] = str(folder)  # Jax reads it when it is imported.
        return
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    # If something was compiled before, jax has decided that there is no cache.
    compilation_cache.reset_cache()


def cache_folder() -> Path | None:
    """Makes and returns the folder for compiled programs; None if that is not possible."""
    try:
        home = Path.home()
        if not home.is_absolute() or home == home.parent:  # HOME is empty.
            return None
        folder = home / ".cache" / "cogview_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # There is no home, or it cannot be written to.
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
