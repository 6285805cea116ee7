"""A bundle with a low-rank adapter merged into its transformer."""

from cogview_jax.checkpoints.adapted_bundle import AdaptedBundle
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.interop.files import (
    NOTHING_WRITTEN,
    check_bundle_output,
    log,
    progress_of,
    reporting,
)
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.paths import local_path


def adapted(adapter: str, bundle: str) -> AdaptedBundle:
    """The bundle with an adapter merged into its transformer; InputError as in `merge_adapter`."""
    return AdaptedBundle(bundle_folder(local_path(adapter, "--adapter")), open_bundle(bundle))


def merge_adapter(adapter: str, bundle: str, out: str) -> None:
    """Writes the bundle `out`: that of `bundle` with an adapter merged into its transformer.

    It is the bundle that the run which trained the adapter wrote, with the tokenizers of `bundle`.

    Raises:
        InputError: the adapter is of another base, or its arrays are not those of its layers; or
            `out` exists and is no bundle.
    """
    path, opened = check_bundle_output(out), adapted(adapter, bundle)
    part = opened.stored_transformer()
    with at_work(NOTHING_WRITTEN.format(out)), progress_of(part) as progress:
        write_bundle(
            path,
            codec=opened if "codec" in opened.parts else None,
            text=opened if "text" in opened.parts else None,
            transformer=reporting(part, progress),
            step=opened.step,
        )
    log(f"bundle {out}: {', '.join(Bundle(path).parts)}; the adapter is merged")
