"""The libraries that only the server needs."""

import importlib.util

from cogview_jax.runtime.errors import InputError

#: Modules of the extra [serve], by the names of their packages.
NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}


def need_extra() -> None:
    """InputError, which says how to install them, where some are absent."""
    absent = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise InputError(
            f"serve needs {', '.join(absent)}: pip install 'cogview-jax[serve]', or in a clone"
            " pip install -e '.[serve]'"
        )
