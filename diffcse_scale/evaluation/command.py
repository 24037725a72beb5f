"""`diffcse-scale evaluate`: models side by side on suites of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from diffcse_scale.evaluation.recorded import COMMAND, as_text, check_recordable, may_record, record
from diffcse_scale.evaluation.results import as_json, comparison_as_json, model_titles, print_table
from diffcse_scale.evaluation.scores import Results
from diffcse_scale.evaluation.sentence_encoder import (
    Encode,
    Once,
    encode_with,
    loading_device,
    on_devices,
    parse_devices,
)
from diffcse_scale.evaluation.suites import SUITES, LoadedSuite, Subject, load_suites
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import WRITTEN_BY, check_file, json_of, write_file
from diffcse_scale.foundation.paths import given_path, seen_from_here
from diffcse_scale.foundation.working import Working
from diffcse_scale.model_folder.layout import check_pooling, model_folder, run_of, tell_of_similarity
from diffcse_scale.text.unknown import percent, share_unknown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LOG_WIDTH = 200  # columns if the output is not a terminal, so that tables are not squeezed into 80


def evaluate_models(
    models: Sequence[str | Path],
    data: str | Path | None,
    suites: Sequence[str] = ("sts",),
    json_file: str | Path | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    batch_size: int = 128,
    devices: str | None = None,
    overwrite: bool = False,
) -> list[dict[str, Results]]:
    """Measure models on suites, print a table for each suite and write the JSON reports.

    If a run's model is measured with its own pooling and length on a whole suite, the results are also stored in the
    run (`recorded`). They replace those of an earlier evaluation on the same data.

    Args:
        models: runs, or model folders written by sentence-transformers (as `export` does) or transformers. The first
            is the baseline of the comparison.
        data: see `load_suites`.
        suites: see `load_suites`.
        pooling: see `load_model`. None uses each folder's own pooling, or cls if it has none.
        max_length: tokens per sentence. None uses each model's own limit.
        devices: "cuda:0,cuda:1" or "cpu,cpu" starts a process on each. None lets the model choose one device.
        overwrite: replace `json_file`, and files with the same names in the run's `evaluation`, whatever they hold.

    Returns:
        For each model a mapping of suite name to results.

    Raises:
        InputError: a model folder, the data, a device or a report file cannot be used.
    """
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    sources = [*map(model_folder, models), *([data] if data is not None and given_path(data).exists() else [])]
    if json_file is not None:
        known = json_of(COMMAND, "reports", "comparisons")
        check_file(given_path(json_file), f"a report of {COMMAND}", known, overwrite, sources)
    check_pooling(pooling)
    loaded = load_suites(suites, data)
    used = parse_devices(devices)
    runs = _recording(models) if pooling is None and not all(suite.part for suite in loaded) else {}
    for suite in loaded:
        for kept in runs.values():
            check_recordable(kept, suite.name, suite.data, overwrite)

    for model in models[1:]:  # fail on an unusable model before the first one is measured
        with Working(f"loading {model}"):
            _load(model, pooling, max_length, "cpu")
    titles, reports, results = [], [], []
    unwritten: InputError | None = None  # raised after the results have been shown
    for model in models:
        about, own_length, of_model = _measure(model, loaded, pooling, max_length, batch_size, used)
        unknown = f", {percent(share)} of them unknown" if (share := about["unknown_tokens"]) else ""
        titles.append(f"{model}, {about['pooling']}, at most {about['max_length']} tokens{unknown}")
        results.append(of_model)
        for suite in loaded:
            report = as_json(of_model[suite.name], **about, data=str(data))
            reports.append(report)
            run = runs.get(model)
            if run is not None and not suite.part and about["max_length"] == own_length:
                try:
                    file = seen_from_here(record(run, report, suite.data))
                    console.print(escape(f"Written: {file}"), soft_wrap=True)
                except InputError as error:
                    unwritten = error

    for title in model_titles(titles):
        console.print(escape(title), soft_wrap=not console.is_terminal)
    for suite in loaded:
        print_table([of_model[suite.name] for of_model in results], console)
    if json_file is not None:
        comparisons = [
            comparison_as_json(of_model[suite.name], results[0][suite.name], model=str(model), against=str(models[0]))
            for model, of_model in zip(models[1:], results[1:], strict=True)
            for suite in loaded
        ]
        content = {WRITTEN_BY: COMMAND, "reports": reports, "comparisons": comparisons}
        write_file(given_path(json_file), as_text(content))
        console.print(escape(f"Written: {json_file}"), soft_wrap=True)
    if unwritten is not None:
        raise unwritten
    return results


def _recording(models: Sequence[str | Path]) -> dict[str | Path, Path]:
    """The run of each model that is in one, if results may be stored there."""
    runs = {model: run for model in models if (run := run_of(model)) is not None}
    allowed = {run: may_record(run) for run in runs.values()}
    return {model: run for model, run in runs.items() if allowed[run]}


def _measure(
    folder: str | Path,
    suites: Sequence[LoadedSuite],
    pooling: str | None,
    max_length: int | None,
    batch_size: int,
    devices: Sequence[str],
) -> tuple[dict[str, Any], int | None, dict[str, Results]]:
    """Facts about the model for the reports, the model's own length, and its results by suite name."""
    model, pooling, own_length = _load(folder, pooling, max_length, loading_device(devices))
    if any(SUITES[suite.name].scale_free for suite in suites):
        tell_of_similarity(folder)
    about = {"model": str(folder), "pooling": pooling, "max_length": model.max_seq_length}
    with on_devices(model, devices, batch_size) as arguments:
        with _shown(model, f"evaluating {folder}", encode_with(model, **arguments)) as shown:
            encode = Once(shown)
            subject = Subject(model, encode, arguments)
            results = {suite.name: suite.measure(subject) for suite in suites}
        about["unknown_tokens"] = share_unknown(model.tokenizer, encode.sentences, model.max_seq_length)
        return about, own_length, results


@contextmanager
def _shown(model: SentenceTransformer, doing: str, encode: Encode) -> Iterator[Encode]:
    """`encode` with progress after every batch, or only at the end if other processes compute."""
    with Working(doing, "sentences") as line:
        left = 0  # announced sentences that are not done yet; a suite may encode others without announcing them

        def done(count: int) -> None:
            nonlocal left
            line.advance(min(count, left))
            left -= min(count, left)

        def seen(module: object, inputs: tuple[dict[str, Any], ...], output: object) -> None:
            done(len(inputs[0]["input_ids"]))

        def counted(sentences: list[str]) -> np.ndarray:
            nonlocal left
            line.expect(len(sentences))
            left += len(sentences)
            found = encode(sentences)
            done(left)
            return found

        hook = model.register_forward_hook(seen)
        try:
            yield counted
        finally:
            hook.remove()


def _load(
    folder: str | Path, pooling: str | None, max_length: int | None, device: str | None
) -> tuple[SentenceTransformer, str, int | None]:
    """The loaded model, the name of its pooling, and its own maximum length."""
    from diffcse_scale.model_folder.load import load_model, quiet_transformers, truncate_at  # takes seconds

    quiet_transformers()
    model, pooling = load_model(folder, pooling, device)
    own_length: int | None = model.max_seq_length
    truncate_at(model, max_length)
    return model, pooling, own_length
