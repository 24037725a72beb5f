"""`diffcse-scale evaluate`: the STS table of a model folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from diffcse_scale.errors import InputError
from diffcse_scale.evaluation.report import as_json, as_table, write_json
from diffcse_scale.evaluation.sts import STSResults, evaluate_sts
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.loading import load_model


def evaluate_model(
    model_dir: str | Path,
    data: str | Path,
    json_file: str | Path | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
) -> STSResults:
    """Measure a model on every STS task that `data` holds, print the table and write the JSON report.

    Args:
        model_dir: a folder written by sentence-transformers (`export` does) or by transformers.
        data: a folder, a file of graded pairs, or "hub"; see `load_sts`.
        pooling: cls, mean, last or first_last_mean. None for the folder's own, or cls where it has none.
        max_length: tokens a sentence; None for the model's own limit.

    Raises:
        InputError: unusable model folder, data or report file.
    """
    console = Console()
    if json_file is not None and Path(json_file).is_dir():
        raise InputError(f"{json_file} is a folder; give the name of a JSON file.")
    tasks = load_sts(data)
    model, pooling = load_model(model_dir, pooling)
    if max_length is not None:
        model.max_seq_length = max_length

    results = evaluate_sts(lambda sentences: model.encode(sentences, batch_size=batch_size), tasks)

    title = f"{model_dir}, {pooling}, at most {model.max_seq_length} tokens"
    console.print(as_table(results, title=escape(title)))
    if json_file is not None:
        about = {
            "model": str(model_dir),
            "pooling": pooling,
            "max_length": model.max_seq_length,
            "data": str(data),
        }
        write_json(as_json(results, **about), Path(json_file))
        console.print(escape(f"Written: {json_file}"))
    return results
