"""From the files of others to a bundle, and back: which formats there are."""

from collections.abc import Callable
from pathlib import Path

from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.interop import llamagen, safetensors_files, taming, vqgan_jax
from cogview_jax.interop.adapter_merge import merge_adapter
from cogview_jax.interop.files import SourceFiles, held_folder
from cogview_jax.interop.image_tokenizers import from_image_tokenizer, to_taming
from cogview_jax.interop.official.conversion import from_official, to_official
from cogview_jax.interop.weight_type import TYPES, change_type
from cogview_jax.runtime.config import closest
from cogview_jax.runtime.errors import InputError

Read = Callable[[SourceFiles, str], None]
Write = Callable[[str, str], None]

#: Format -> writes the bundle of its files.
SOURCES: dict[str, Read] = {
    "official": from_official,
    "taming": lambda files, out: from_image_tokenizer("taming", taming.read, files, out),
    "llamagen": lambda files, out: from_image_tokenizer("llamagen", llamagen.read, files, out),
    "vqgan_jax": lambda files, out: from_image_tokenizer("vqgan_jax", vqgan_jax.read, files, out),
    "safetensors": safetensors_files.from_safetensors,
}
#: Format -> writes the files of a bundle.
TARGETS: dict[str, Write] = {
    "official": to_official,
    "taming": to_taming,
    "safetensors": safetensors_files.to_safetensors,
}


def convert(
    source: str | None,
    target: str | None,
    files: SourceFiles,
    bundle: str | None,
    out: str,
    *,
    adapter: str | None = None,
    dtype: str | None = None,
) -> None:
    """Converts in the given direction.

    Args:
        source: a name of `SOURCES`, to make the bundle `out` of `files`.
        target: a name of `TARGETS`, to make the folder `out` of `bundle`.
        files, bundle, out: see there.
        adapter: the folder of an adapter, to make the bundle `out` of `bundle` and that.
        dtype: a type of weights, to make the bundle `out` of `bundle` with such.

    Raises:
        InputError: no direction or several are given, or a setting belongs to another direction.
    """
    if [source, target, adapter, dtype].count(None) != 3:
        raise InputError(
            f"expected one of --source ({', '.join(SOURCES)}), --target ({', '.join(TARGETS)}),"
            f" --adapter and --dtype ({', '.join(TYPES)})"
        )
    name, known = (source, SOURCES) if source is not None else (target, TARGETS)
    if adapter is None and dtype is None and name not in known:
        raise InputError(f"no format {name!r}; {closest(str(name), known)}")
    if source is not None and bundle is not None:
        raise InputError(f"--bundle belongs to --target {source}: a new bundle is --out")
    with held_folder(out) as path:
        if source is not None:
            SOURCES[source](files, out)
            return
        given = f"--target {target}" if target else "--adapter" if adapter else "--dtype"
        if files.given:
            source = f"--source {target}" if target is not None else "--source"
            raise InputError(f"--{files.given[0]} belongs to {source}, not to {given}")
        if bundle is None:
            purpose = "gives back" if target else "is merged into" if adapter else "is of"
            raise InputError(f"--bundle TEXT is missing: the bundle that {given} {purpose}")
        if path.resolve() == Path(located(bundle)).resolve():
            raise InputError(f"--out {out} is the bundle that is read: choose another")
        if target is not None:
            TARGETS[target](bundle, out)
        elif adapter is not None:
            merge_adapter(adapter, bundle, out)
        else:
            assert dtype is not None
            change_type(bundle, dtype, out)
