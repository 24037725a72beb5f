"""`diffcse-scale encode`: from files of sentences to a folder of embeddings; may be interrupted at any time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffcse_scale.encoding.encode_options import EncodeOptions
from diffcse_scale.encoding.folder_manifest import FORMAT, WHERE, Manifest, begun, read_manifest
from diffcse_scale.encoding.rows import check_rows_are_usable, open_rows
from diffcse_scale.encoding.shard_files import Floats
from diffcse_scale.encoding.stored import ranges_of
from diffcse_scale.encoding.window_encoder import COUNTS, choose_batch_tokens, choose_precision
from diffcse_scale.encoding.work import Job, choose_devices, run, threads_of
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.model_files import ABOUT_FILE, read_settings
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.model_folder.layout import model_folder
from diffcse_scale.text.cache import chosen_folder
from diffcse_scale.text.digests import model_digest
from diffcse_scale.text.unknown import percent

log = logging.getLogger(__name__)

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # `encode_document` of sentence-transformers adds the first
STORAGE = ("window", "format", "dtype", "keep_text", "keep_columns")
COMPUTATION = ("max_length", "prompt_name")


def encode(options: EncodeOptions, progress: bool = True) -> str:
    r"""Write the embeddings of every row of the input to `options.output`, or those that are still missing.

    Row i of the output is row i of the input. The bytes of the shards depend only on input, model, options and the
    number of threads per process, and not on interruptions.

    Args:
        options: model, input, output, and how to compute and store.
        progress: show a progress bar.

    Returns:
        One line that describes the finished folder.

    Raises:
        InputError: model, input or output cannot be used, or the output was begun with other facts.

    Example:
        >>> from pathlib import Path
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.encoding import EncodeOptions, encode, load
        >>> _ = Path("corpus.txt").write_text("A dog runs.\nIt rains.\n")
        >>> model = str(backbone_path())
        >>> options = EncodeOptions(model=model, input=["corpus.txt"], output="embeddings", devices="cpu")
        >>> line = encode(options, progress=False)
        >>> len(load("embeddings")), load("embeddings").dimension
        (2, 128)
    """
    folder = model_folder(options.model)
    rows = open_rows(options.input, options.column, options.separator, options.header, options.keep_columns)
    if not len(rows):
        raise InputError(f"{', '.join(options.input)}: there is no row to encode.")
    check_rows_are_usable(rows)
    devices = choose_devices(options.devices, -(-len(rows) // options.window))
    computation = _computation(options, torch.device(devices[0]))
    facts = {
        "format_version": FORMAT,
        WHERE: str(folder.resolve()),
        "model": model_digest(str(folder), chosen_folder()),
        "input": rows.identity,
        "files": rows.names,
        "column": options.column,
        "separator": options.separator,
        "header": options.header,
        "rows": len(rows),
        **{name: getattr(options, name) for name in STORAGE},
        "pooling": options.pooling,
        **computation,
    }
    output = given_path(options.output)
    known = read_manifest(output)
    if known is not None and rows.are(known.facts["input"]):  # keeps the identity in an earlier version's form
        facts["input"] = known.facts["input"]
    job = Job(
        model=options.model,
        pooling=options.pooling,
        encoder=computation,
        rows=rows,
        pending=[],
        dtype=options.dtype,
        keep_text=options.keep_text,
    )
    if options.overwrite:  # check that the model is usable before anything is removed
        job.open_encoder("cpu", threads_of(devices))
    with begun(output, facts, options.overwrite, [folder, *rows.names]) as manifest:
        if not manifest.pending:
            return f"Nothing to do: {_summary(manifest)}"
        if options.prompt_name is None:
            _tell_of_prompt(folder)
        pending = [(number, manifest.rows_of(number), manifest.file(number)) for number in manifest.pending]
        job = replace(job, pending=pending)
        _encode_pending(manifest, job, devices, progress)
        manifest.tidy()
        return _summary(manifest)


def _tell_of_prompt(folder: Path) -> None:
    """Log that the model has a prompt for documents, which `SentenceTransformer.encode` and `encode` do not add."""
    about = read_settings(folder / ABOUT_FILE)
    prompts = about.get("prompts")
    name = next((name for name in DOCUMENT_PROMPTS if isinstance(prompts, dict) and prompts.get(name)), None)
    if name is not None and name != about.get("default_prompt_name"):
        log.warning("%s has a prompt for documents, which is not added; --prompt-name %s adds it.", folder, name)


def _summary(manifest: Manifest) -> str:
    """One line about a finished folder."""
    flaws: Counter[str] = Counter()
    for shard in manifest.shards.values():
        flaws.update(shard["flaws"])
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(flaws.items()))
    remark = f"; encoded as they are, although {kinds}" if flaws else ""
    # shards of earlier versions lack these counts
    all_of = {name: sum(shard.get(name, 0) for shard in manifest.shards.values()) for name in COUNTS}
    lost = ""
    if all_of["unknown"]:
        lost = f"; {percent(all_of['unknown'] / all_of['tokens'])} of the tokens unknown to the model"
    elif all_of["left_out"]:
        lost = f"; {percent(all_of['left_out'] / all_of['characters'])} of the characters left out by the tokenizer"
    return f"{manifest.folder}: {manifest.facts['rows']:,} rows in {manifest.count:,} shards{remark}{lost}."


def _computation(options: EncodeOptions, device: torch.device) -> dict[str, Any]:
    """The arguments of `WindowEncoder` except model and device."""
    return {
        "precision": choose_precision(options.precision, device),
        "batch_tokens": choose_batch_tokens(options.batch_tokens, device),
        **{name: getattr(options, name) for name in COMPUTATION},
    }


def _encode_pending(manifest: Manifest, job: Job, devices: list[str], progress: bool) -> None:
    """Encode the missing windows, and record each when it is finished."""
    if job.dtype == "int8":
        job = replace(job, ranges=_calibrated(manifest, job, devices))
    done = sum(shard["rows"] for shard in manifest.shards.values())
    total, tokens, began = int(manifest.facts["rows"]), 0, time.monotonic()
    with tqdm(total=total, initial=done, unit=" rows", unit_scale=True, disable=not progress, mininterval=1) as bar:

        def report(count: int, batch_tokens: int, shard: dict[str, Any] | None) -> None:
            nonlocal tokens
            tokens += batch_tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - began):,.0f} tokens/s", refresh=False)
            bar.update(count)
            if shard is not None:
                manifest.record(shard)

        run(job, devices, report)
        bar.update(total - bar.n)


def _calibrated(manifest: Manifest, job: Job, devices: list[str]) -> Floats:
    """The ranges of int8, from the rows of the first window. They are the same for all shards, also after a restart."""
    if manifest.ranges is None:
        encoder = job.open_encoder(devices[0], threads_of(devices))
        first = manifest.rows_of(0)
        sentences, _ = job.rows.read(first.start, first.stop)
        embeddings = encoder.encode(encoder.prepare(sentences))
        job.check(embeddings, first)
        manifest.set_ranges(ranges_of(embeddings))
    assert manifest.ranges is not None
    return manifest.ranges
