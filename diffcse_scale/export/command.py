"""`diffcse-scale export`: writes a run's model or a sentence-transformers folder as a new self-contained folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from diffcse_scale.export import hub
from diffcse_scale.export.model_card import write_run_card
from diffcse_scale.export.onnx import FOLDER as ONNX_FOLDER
from diffcse_scale.export.onnx import OnnxComparison, check_onnx_installed, export_onnx
from diffcse_scale.export.origin import backbone_of
from diffcse_scale.export.servers import serving_notes
from diffcse_scale.export.whitening import append_whitening, learn_whitening
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError, one_line
from diffcse_scale.foundation.model_files import ABOUT_FILE, MODULES_FILE, read_settings
from diffcse_scale.foundation.ownership import Place, refuse_run_folder, replaced
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.recorded_recipe import check_recipe
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.foundation.working import Working
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model_folder.appended_projection import append_projection, open_projection
from diffcse_scale.model_folder.copying import copy_files, own_files
from diffcse_scale.model_folder.layout import model_folder, module_names, run_of
from diffcse_scale.model_folder.load import quiet_transformers
from diffcse_scale.model_folder.save import append_module, check_output, set_max_length
from diffcse_scale.model_folder.validation import check_export, expected_vectors
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recorded

COMMAND = "diffcse-scale export"
# files of other tools, and files that are generated again
NOT_COPIED = (".*", ONNX_FOLDER, "openvino")


@dataclass(frozen=True)
class ExportOptions:
    """The contents of the new folder besides the model.

    Attributes:
        normalize: scale vectors to length 1.
        projection: `encode` returns z, the output of the projection that training used.
        whiten: text files on which whitening is learnt (`whitening`); empty for no whitening.
        onnx, int8: write the ONNX files; int8 implies onnx.
        max_length: tokens per sentence; None keeps the model's limit.
        repo: name on the Hub (owner/name) to upload the folder to.
        private: create the repository as a private one.
        overwrite: replace the files of another model, in the folder or on the Hub, that this command did not export.
    """

    normalize: bool = False
    projection: bool = False
    whiten: Sequence[str] = ()
    onnx: bool = False
    int8: bool = False
    max_length: int | None = None
    repo: str | None = None
    private: bool = False
    overwrite: bool = False


def export_model(source: str | Path, output: str | Path, options: ExportOptions) -> None:
    """Write a new folder atomically, and print what is in it.

    Args:
        source: a run, or a folder written by sentence-transformers.
        output: absent, empty, or an earlier export, whose files are replaced. Other files in it stay.

    Raises:
        InputError: source or output cannot be used, options do not fit the model, a library is missing, ONNX does not
            support the backbone, the export does not reproduce its source's vectors, or the Hub refuses it.
    """
    place, comparison = _export(source, output, options)
    _report(place.folder, comparison)
    if place.stays:
        print(f"Kept unchanged in {place.folder}: {', '.join(place.stays)}")
    if options.repo:
        print(f"On the Hub: {hub.push(place.folder, options.repo, options.private)}")


def push_run(run: Path, repo: str) -> None:
    """Upload the model of a finished run like `export --push-to-hub REPO --private`, without leaving a folder.

    Any failure is printed in one sentence with the command that retries the upload.
    """
    name = repo.rpartition("/")[2]
    try:
        with TemporaryDirectory(prefix="diffcse-export-") as folder:
            place, _ = _export(run, Path(folder) / name, ExportOptions(repo=repo, private=True))
            print(f"On the Hub: {hub.push(place.folder, repo, private=True)}", flush=True)
    except Exception as error:  # from any library; the run has finished and its model exists, so only report it
        command = f"{COMMAND} --model {run} --output {name} --push-to-hub {repo} --private"
        reason = masked(one_line(error)).rstrip(".")
        print(f"The model is not on the Hub ({reason}); to upload it: {command}", file=sys.stderr)


def _export(source: str | Path, output: str | Path, options: ExportOptions) -> tuple[Place, OnnxComparison | None]:
    """Write the new folder. Raises the errors of `export_model`."""
    quiet_transformers()
    folder, output = model_folder(source), given_path(output).absolute()
    run = run_of(folder)
    recipe = _recipe(run)
    files = own_files(folder, NOT_COPIED)
    place = _check(folder, output, run, recipe, options, {path.as_posix() for path in files})
    after = open_projection(run, recipe.model.projection) if options.projection and run and recipe else None
    if options.whiten:
        with Working("encoding a sample of the text, to learn the whitening"):
            whitening = learn_whitening(folder, options.max_length, after, options.whiten)
        after = nn.Sequential(*filter(None, (after, whitening)))
    with Working("encoding some texts with the model"):
        expected = expected_vectors(folder, options.max_length, after, options.normalize)
    comparison = None
    with Working("writing the copy, and comparing it with the model") as line, replaced(place) as fresh:
        copy_files(files, fresh)
        if options.max_length is not None:
            set_max_length(fresh, options.max_length)
        if options.projection and run is not None and recipe is not None:
            append_projection(fresh, run, recipe.model.projection)
        if options.whiten:
            append_whitening(fresh, whitening)
        if options.normalize and module_names(fresh)[-1] != "Normalize":
            append_module(fresh, "Normalize", {})
        model = check_export(fresh, folder, expected)
        if options.onnx or options.int8:
            line.doing = "writing ONNX, and comparing it with the model"
            comparison = export_onnx(model, fresh, int8=options.int8)
        if run is not None and recipe is not None:
            license = _license(recipe, run) if options.repo else None
            with damage_told(f"The run in {run}"):
                write_run_card(
                    fresh,
                    run,
                    title=place.folder.name,
                    model_id=options.repo,
                    license=license,
                    onnx=comparison,
                    whitened=bool(options.whiten),
                )
    return place, comparison


def _recipe(run: Path | None) -> Recipe | None:
    if run is None:
        return None
    check_recipe(run)
    return load_recorded(run / run_files.RECIPE)


def _check(
    folder: Path,
    output: Path,
    run: Path | None,
    recipe: Recipe | None,
    options: ExportOptions,
    copied: set[str],
) -> Place:
    """Check everything that can be checked before writing. Returns the place of the new folder."""
    if not (folder / MODULES_FILE).is_file():
        raise InputError(
            f"{folder} is a plain transformers folder, which says nothing of pooling; give a run or a folder that "
            "sentence-transformers wrote."
        )
    refuse_run_folder(output)
    place = check_output(output, COMMAND, options.overwrite, [folder], copied)
    if options.projection and (run is None or recipe is None):
        raise InputError(f"--with-projection needs the run that trained the model; {folder} is not in one.")
    width = read_settings(folder / ABOUT_FILE).get("truncate_dim")
    if width is not None and (options.normalize or options.projection or options.whiten):
        raise InputError(
            f"The model in {folder} keeps the first {width} numbers of a vector (truncate_dim in {ABOUT_FILE}) after "
            "all of its modules, and --normalize, --whiten and --with-projection add modules; export it without them."
        )
    if options.onnx or options.int8:
        check_onnx_installed()
    if options.private and not options.repo:
        raise InputError("--private needs --push-to-hub, which is not given.")
    if options.repo:
        hub.check_can_push(options.repo, options.overwrite)
    return place


def _license(recipe: Recipe, run: Path) -> str | None:
    backbone = backbone_of(recipe, run)
    return hub.license_on_hub(backbone.hub) if backbone.hub and not backbone.license else None


def _report(output: Path, comparison: OnnxComparison | None) -> None:
    print(f"Written: {output} ({' - '.join(module_names(output))})")
    for note in serving_notes(output):
        print(f"Served elsewhere: {note}")
    if comparison is None:
        return
    print(
        f"ONNX float32: components differ from PyTorch's by at most {comparison.difference:.1e} "
        f"({comparison.sentences} texts)"
    )
    if comparison.int8_cosine is not None:
        mean, least = comparison.int8_cosine
        print(f"ONNX int8: cosine to float32 {mean:.4f} on average, at least {least:.4f}")
