"""`diffcse-scale evaluate`: the STS table of a model folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling

from diffcse_scale.errors import InputError
from diffcse_scale.evaluation.report import as_json, as_table, write_json
from diffcse_scale.evaluation.sts import STSResults, evaluate_sts
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.export import MODULES_FILE, POOLINGS, first_and_last


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
    model, pooling = load_model(model_dir, pooling, console)
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


def load_model(model_dir: str | Path, pooling: str | None, console: Console) -> tuple[SentenceTransformer, str]:
    """A model from a local folder, and how its pooling is to be named. Never downloads.

    Raises:
        InputError: no such folder, no model in it, one that cannot be read, or an unknown pooling.
    """
    folder = Path(model_dir).expanduser()
    if not folder.is_dir():
        raise InputError(f"Model folder {model_dir} does not exist; none is downloaded.")
    has_pooling = (folder / MODULES_FILE).is_file()
    if not has_pooling and not (folder / "config.json").is_file():
        raise InputError(f"{model_dir} holds no model: neither {MODULES_FILE} nor config.json is there.")
    if pooling is None and not has_pooling:
        pooling = "cls"
        console.print(escape(f"{model_dir} names no pooling (a plain transformers folder): cls is used."))
    if pooling not in (None, *POOLINGS):
        raise InputError(f"There is no pooling {pooling!r}; there are {', '.join(POOLINGS)}.")
    try:
        if pooling is None:
            return SentenceTransformer(str(folder), local_files_only=True), "its own pooling"
        return _with_pooling(folder, pooling), f"{pooling} pooling"
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"The model in {model_dir} cannot be read: {reason}.") from error


def _with_pooling(folder: Path, pooling: str) -> SentenceTransformer:
    """The network of a folder under another pooling; whatever follows its own pooling is left out."""
    transformer = Transformer.load(str(folder), local_files_only=True)
    config = transformer.auto_model.config
    modules = [transformer, Pooling(config.hidden_size, POOLINGS[pooling])]
    if pooling == "first_last_mean":
        config.output_hidden_states = True
        weights = first_and_last(config.num_hidden_layers)
        modules.insert(1, WeightedLayerPooling(config.hidden_size, config.num_hidden_layers, 0, weights))
    return SentenceTransformer(modules=modules)
