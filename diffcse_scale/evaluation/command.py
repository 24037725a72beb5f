"""`diffcse-scale evaluate`: models side by side on suites of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from diffcse_scale.errors import InputError
from diffcse_scale.evaluation.encoder import Once, on_devices, parse_devices
from diffcse_scale.evaluation.results import as_json, as_table, comparison_as_json, model_titles, write_json
from diffcse_scale.evaluation.scores import Results
from diffcse_scale.evaluation.suites import Subject, Suite, load_suites
from diffcse_scale.loading import load_model, model_folder, run_of

LOG_WIDTH = 200  # columns where the output is no terminal: a table is not broken to fit 80


def evaluate_models(
    models: Sequence[str | Path],
    data: str | Path | None,
    suites: Sequence[str] = ("sts",),
    json_file: str | Path | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    devices: str | None = None,
) -> list[dict[str, Results]]:
    """Measure models on suites, print a table for each suite and write the JSON reports.

    The results of a run's model, measured with its own pooling on a whole suite, go into `RUN/evaluation/SUITE.json` as
    well, in the place of those of an earlier evaluation.

    Args:
        models: runs, or folders written by sentence-transformers (`export` does) or by transformers; all others are
            compared with the first.
        data: see `load_suites`.
        suites: see `load_suites`.
        pooling: cls, mean, last or first_last_mean. None for each folder's own, or cls where it has none.
        max_length: tokens a sentence; None for each model's own limit.
        devices: "cuda:0,cuda:1" or "cpu,cpu": a process on each. None for the model's own choice of one device.

    Returns:
        For each model its results by the name of the suite.

    Raises:
        InputError: unusable model folder, data, device or report file.
    """
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    if json_file is not None and Path(json_file).is_dir():
        raise InputError(f"{json_file} is a folder; give the name of a JSON file.")
    for model in models:
        model_folder(model)
    used = parse_devices(devices)
    loaded = load_suites(suites, data)

    titles, reports, results = [], [], []
    for model in models:
        about, of_model = _measure(model, loaded, pooling, max_length, batch_size, used)
        titles.append(f"{model}, {about['pooling']}, at most {about['max_length']} tokens")
        results.append(of_model)
        for suite in loaded:
            report = as_json(of_model[suite.name], **about, data=str(data))
            reports.append(report)
            run = run_of(model)
            if run is not None and pooling is None and not suite.part:
                kept = run / "evaluation" / f"{suite.name}.json"
                write_json(report, kept)
                console.print(escape(f"Written: {kept}"), soft_wrap=True)

    for title in model_titles(titles):
        console.print(escape(title), soft_wrap=True)
    for suite in loaded:
        console.print(as_table([of_model[suite.name] for of_model in results]))
    if json_file is not None:
        comparisons = [
            comparison_as_json(of_model[suite.name], results[0][suite.name], model=str(model), against=str(models[0]))
            for model, of_model in zip(models[1:], results[1:], strict=True)
            for suite in loaded
        ]
        write_json({"reports": reports, "comparisons": comparisons}, Path(json_file))
        console.print(escape(f"Written: {json_file}"), soft_wrap=True)
    return results


def _measure(
    folder: str | Path,
    suites: Sequence[Suite],
    pooling: str | None,
    max_length: int | None,
    batch_size: int,
    devices: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Results]]:
    """What was measured, for the reports, and a model's results by the name of the suite."""
    model, pooling = load_model(folder, pooling)
    if max_length is not None:
        model.max_seq_length = max_length
    about = {"model": str(folder), "pooling": pooling, "max_length": model.max_seq_length}
    with on_devices(model, devices, batch_size) as arguments:
        encode = Once(lambda sentences: model.encode(sentences, **arguments))
        subject = Subject(model, encode, arguments)
        return about, {suite.name: suite.measure(subject) for suite in suites}
