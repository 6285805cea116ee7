"""How XLA compiles the programs of tests: quickly, except where it says otherwise."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator

#: jaxlib 0.10 has two code generators for the CPU. The earlier one, with programs in one part,
#: compiles in a third of the time. XLA aborts at a flag that it does not know.
_TWO_GENERATORS = importlib.metadata.version("jaxlib").startswith("0.10.")

#: What XLA_FLAGS begins with.
FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if _TWO_GENERATORS
    else ""
)
#: Options of `jax.jit` for what users have: tanh, for one, has a smaller error then.
AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if _TWO_GENERATORS:
    AS_USERS |= {"xla_cpu_use_fusion_emitters": True}


@contextlib.contextmanager
def compiled_as_users() -> Iterator[None]:
    """Processes that start in the block compile as those of users do."""
    before = {
        name: os.environ.get(name) for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    # A worker of pytest-xdist has them twice: it inherits those of the process that started it.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").replace(FLAGS, "").strip()
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
