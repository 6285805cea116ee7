"""From a bundle's folder to a `CogView`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART, need_parts, need_task
from cogview_jax.runtime.compilation_cache import enable_compilation_cache
from cogview_jax.runtime.precision import policy_of
from cogview_jax.runtime.progress import waiting


@waiting("loading the bundle")
def load(
    path: str | Path,
    *,
    dtype: Any = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    long_prompts: Literal["cut", "refuse"] = "cut",
    needs: Sequence[str] = (),
    task: str | None = None,
) -> CogView:
    """Reads a bundle: every part it has.

    Args:
        path: the bundle's folder, a run's workdir, or one of its checkpoints (WORKDIR/checkpoints/
            STEP): of a workdir its bundle is read, and before that is there, the newest checkpoint.
            Or the address of a bundle, such as "hf://OWNER/NAME" (docs/guides/remote_bundles.md),
            or the name of a shipped one.
        dtype: of the transformer's and decoder's arithmetic, and of the transformer's weights: a
            type, or the name of a policy (`runtime.precision`), such as "float16_pure" or "int8".
            Kernels that lie in 8 bits are used as they are, whatever it is. Images are always
            encoded in float32, so their codes do not depend on it.
        mesh: splits the parameters over these devices (`runtime.mesh.make_mesh`); use the model
            under `jax.set_mesh(mesh)`.
        long_prompts: whether prompts with more tokens than the text region holds are cut there or
            refused.
        needs: parts that the bundle has to have, of codec, text and transformer.
        task: what the transformer has to be trained for, None for anything. This and `needs` are
            known before any part is read.

    Raises:
        InputError: there is no bundle, or its parts do not belong together or are damaged, or one
            that is needed is missing or of another task.
        SystemFault: the server at an address does not answer, and there is no copy.
    """
    enable_compilation_cache()
    bundle, policy = open_checked(path, needs, task), policy_of(dtype)
    bundle.check_fit()
    jax.devices()  # where there are none of the platform asked for, that is no fault of the bundle
    transformer = None
    if "transformer" in bundle.parts:
        transformer = bundle.layered_transformer(mesh, policy.compute, policy.int8_kernels)
    return CogView(
        codec=bundle.codec(mesh) if "codec" in bundle.parts else None,
        text=bundle.text() if "text" in bundle.parts else None,
        transformer=transformer,
        dtype=dtype,
        long_prompts=long_prompts,
        name=_name(bundle),
    )


def open_checked(path: str | Path, needs: Sequence[str] = (), task: str | None = None) -> Bundle:
    """A bundle of which no part is read yet; the arguments, and what is raised, are of `load`."""
    bundle = open_bundle(path)
    need_parts(_name(bundle), bundle.parts, *needs)
    if task is not None:
        need_task(_name(bundle), bundle.described_transformer().layout.task, task)
    return bundle


def _name(bundle: Bundle) -> str:
    return f"bundle {bundle.path}"


def load_scorer(
    path: str | Path,
    *,
    dtype: Any = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    long_prompts: Literal["cut", "refuse"] = "cut",
) -> CogView:
    """Reads a caption bundle, whose CapLoss orders images; see `load`.

    Raises:
        InputError: as `load`, or it is of another task or lacks a part.
    """
    return load(
        path, dtype=dtype, mesh=mesh, long_prompts=long_prompts, needs=EVERY_PART, task="caption"
    )
