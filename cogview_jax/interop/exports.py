"""A bundle for use without this code: which formats there are, and what all of them have.

Every export is a folder with `export.json`, which names the format, what wrote it, the bundle, and
the SHA-256 of every other file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

import cogview_jax
from cogview_jax.checkpoints.bundle import FILES, Bundle
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.checkpoints.tree_writer import save_tree
from cogview_jax.interop import safetensors_files
from cogview_jax.interop.adapter_merge import adapted
from cogview_jax.interop.files import (
    EXPORT,
    NOTHING_WRITTEN,
    check_export_output,
    held_folder,
    log,
    progress_of,
    reporting,
)
from cogview_jax.interop.official import safetensors as official_safetensors
from cogview_jax.interop.stablehlo.folder import StableHLOOptions, write_programs
from cogview_jax.runtime.config import closest
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path, sha256_file, write_json
from cogview_jax.runtime.sealed import sealed

#: Of what export.json says.
VERSION = 1


@dataclass(frozen=True)
class ExportOptions:
    """Settings of formats; each is left at its default where the format has no use for it.

    Attributes:
        programs: of stablehlo.
        names: of safetensors: "ours", or "official" for those of the CogView release.
    """

    programs: StableHLOOptions = field(default_factory=StableHLOOptions)
    names: str = "ours"


def _safetensors(opened: Bundle, folder: Path, options: ExportOptions) -> dict[str, Any]:
    if options.names == "official":
        official_safetensors.write_parts(opened, folder)
    else:
        safetensors_files.write_parts(opened, folder)
    return {"names": options.names, "parts": _described(opened)}


def _orbax(opened: Bundle, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Writes the parameters of each part as Orbax has them, whatever the bundle is made of."""
    if "codec" in opened.parts:
        codec = opened.stored_codec()
        with progress_of(codec, label="export") as progress:
            made = reporting(codec, progress)
            tree = {"params": made.params, "codebook": made.codebook._asdict()}
            save_tree(folder / FILES["codec"], tree)
    if "transformer" in opened.parts:
        transformer = opened.stored_transformer()
        with progress_of(transformer, label="export") as progress:
            save_tree(folder / FILES["transformer"], reporting(transformer, progress).params)
    if "text" in opened.parts:
        opened.text().save(folder / safetensors_files.TEXT_TOKENIZER)
    return {"parts": _described(opened)}


def _described(opened: Bundle) -> dict[str, Any]:
    """What bundle.json says of the parts, but for the kernels: no export has them in 8 bits."""
    return {
        name: {key: entry[key] for key in entry if key != "kernels"}
        for name, entry in opened.parts.items()
    }


def _stablehlo(opened: Bundle, folder: Path, options: ExportOptions) -> dict[str, Any]:
    return write_programs(opened, folder, options.programs)


#: Format -> writes the files of a bundle into a folder, and returns what export.json says of them.
FORMATS = {"stablehlo": _stablehlo, "safetensors": _safetensors, "orbax": _orbax}


def export(
    bundle: str,
    form: str,
    out: str,
    options: ExportOptions,
    *,
    adapter: str | None = None,
) -> None:
    """Writes the folder `out` for use without this code; whole or not at all.

    An earlier export there is replaced.

    Args:
        bundle: a bundle, a step of a run, its workdir, or the name of a shipped bundle.
        form: a name of `FORMATS`.
        out: the folder.
        options: settings of the format.
        adapter: the folder of a low-rank adapter that is merged into the transformer.

    Raises:
        InputError: there is no such format or bundle, the adapter is of another base, `out` holds
            something else than an export, or the format cannot hold the bundle.
    """
    if form not in FORMATS:
        raise InputError(f"no format {form!r}; {closest(form, FORMATS)}")
    with held_folder(out) as path:
        check_export_output(out)
        opened = open_bundle(bundle) if adapter is None else adapted(adapter, bundle)
        if path.resolve() == opened.path.resolve():
            raise InputError(f"--out {out} is the bundle that is read: choose another")
        with at_work(NOTHING_WRITTEN.format(out)), atomic_path(path) as folder:
            folder.mkdir()
            about = FORMATS[form](opened, folder, options)
            _describe(folder, form, opened, about)
        log(f"{out}: {', '.join(sorted(entry.name for entry in path.iterdir()))}")


def _describe(folder: Path, form: str, opened: Bundle, about: dict[str, Any]) -> None:
    """Writes export.json."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    described = {
        "version": VERSION,
        "format": form,
        "written_by": {"cogview_jax": cogview_jax.__version__, "jax": jax.__version__},
        "bundle": {
            "step": opened.step,
            "sha256": {part: opened.sha256(part) for part in opened.parts},
        },
        **about,
        "files": {file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
    }
    write_json(folder / EXPORT, sealed(described))
