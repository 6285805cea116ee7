"""How XLA compiles the programs of tests: quickly, except where it says otherwise."""

import importlib.metadata

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
