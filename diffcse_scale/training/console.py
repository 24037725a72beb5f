"""Console output at the start and at the end of a run."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from diffcse_scale.distributed import is_main
from diffcse_scale.engine.offload import describe_optimizer
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.model.attention import attention_kernels
from diffcse_scale.objective import objective
from diffcse_scale.recipe import EMBEDDED, Recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.text.corpus import FIRST, shortened
from diffcse_scale.text.tokens import TokenizedCorpus
from diffcse_scale.training.detection import in_words
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.schedule import Plan

NEXT_COMMANDS = """\
Next, with your own text (one sentence per line) and a real backbone:
  diffcse-scale train --deepspeed_config zero2 --recipe bert_base_sts \\
      data.files=YOUR.txt evaluation.data=STS_FOLDER
  diffcse-scale evaluate --model {model} --data STS_FOLDER
In Python:
  SentenceTransformer("{model}").encode(["a sentence"])"""


class _Masked(logging.Formatter):
    """Masks secrets in log lines."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def setup_logging() -> None:
    """Log warnings and one-line reports on the main rank; silence the libraries' messages on all ranks."""
    logging.basicConfig(level=logging.INFO if is_main() else logging.ERROR, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Masked("%(message)s"))
    for name in (
        "DeepSpeed",
        "transformers",
        "datasets",
        "sentence_transformers",
        "httpx",
        "filelock",
        "torch",
        "matplotlib",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def print_start(
    recipe: Recipe,
    plan: Plan,
    precision: str,
    engine: Any,
    tokens: TokenizedCorpus,
    tokenizer: PreTrainedTokenizerBase,
    development: DevelopmentSet | None = None,
) -> dict[str, str]:
    """Print the start table and return its rows; main rank only. `tokenizer` is the encoder's."""
    if not is_main():
        return {}
    rows = {
        "columns": tokens.report.pairs,
        "first rows": "\n".join(tokens.first),
        "as tokens": "\n".join(_as_tokens(tokens, tokenizer)),
        **dict(plan.table()),
        "corpus": f"{len(tokens):,} sentences; {tokens.losses}",
        "development": "" if development is None else str(development),
        "objective": objective.in_words(recipe.objective),
        "sharding": f"ZeRO-{engine.zero_optimization_stage()}, {precision}",
        "device": _in_words(engine.device),
        "optimizer": describe_optimizer(engine),
        "attention kernel": attention_kernels(),
    }
    there = {name: value for name, value in rows.items() if value}
    table = Table(title=f"recipe {recipe.name}", title_justify="left", show_header=False)
    for name, value in there.items():
        table.add_row(name, Text(value))
    Console().print(table)
    return there


def _as_tokens(tokens: TokenizedCorpus, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first rows as the encoder sees them, one line each."""
    first = np.arange(min(len(tokens), FIRST))
    columns = [tokens.rows(first, view) for view in range(tokens.columns)]
    rows = [
        [" ".join(tokenizer.convert_ids_to_tokens(ids.tolist())) for ids in row] for row in zip(*columns, strict=True)
    ]
    return [shortened("   |   ".join(row)) for row in rows]


def _in_words(device: torch.device) -> str:
    if device.type == "cpu":
        return f"the CPU, {torch.get_num_threads()} threads per rank"
    if device.type != "cuda":
        return str(device)
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def print_summary(recipe: Recipe, run: RunDirectory, result: dict[str, Any]) -> None:
    """Print the scores before and after training and the paths of the results; main rank only."""
    if not is_main():
        return
    table = Table(title="result", title_justify="left", show_header=False)
    if before := result.get("before"):
        poolings = {"dev_spearman": recipe.model.pooling}
        shown = ", ".join(f"{_score(value)} ({poolings.get(k, k.rsplit('_')[-1])})" for k, value in before.items())
        table.add_row("development Spearman x 100 before", shown)
        best = result["best"]
        table.add_row("after", f"{_score(best['dev_spearman'])} (best, step {best['step']:.0f} of {result['steps']})")
    if result.get("dev_rtd_auroc") is not None:
        words = f"{result['dev_rtd_replaced']:,.0f} replaced words"
        table.add_row("RTD AUROC, skill", f"{result['dev_rtd_auroc']:.3f}, {result['dev_rtd_skill']:.3f} ({words})")
        table.add_row("discriminator used z", in_words(result))
    table.add_row("model", str(run.model))
    if run.curves.is_file():  # missing without matplotlib
        table.add_row("curves", str(run.curves))
    table.add_row("metrics", str(run.metrics.path))
    Console(soft_wrap=True).print(table)
    if recipe.model.encoder == EMBEDDED:
        print(NEXT_COMMANDS.format(model=run.model))


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
