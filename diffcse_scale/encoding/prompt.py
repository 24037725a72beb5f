"""`diffcse-scale search`: prints the nearest rows for queries from the command line, a pipe or a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding.folder import Embeddings, load
from diffcse_scale.encoding.folder_manifest import WHERE
from diffcse_scale.encoding.search import make_search
from diffcse_scale.encoding.shard_files import Floats
from diffcse_scale.encoding.window_encoder import check_prompt
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.finite import check_rows
from diffcse_scale.foundation.output import fitting
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.model_folder.layout import model_folder, tell_of_similarity
from diffcse_scale.model_folder.load import load_model, quiet_transformers, truncate_at
from diffcse_scale.text.cache import chosen_folder
from diffcse_scale.text.digests import model_digest
from diffcse_scale.text.unknown import percent, share_unknown

log = logging.getLogger(__name__)

MOSTLY = 0.5  # share of a query's tokens; queries that are mostly unknown are nearly one to the model
ABOUT_COSINES = "(Compare cosines only with each other: many models give high ones to unrelated sentences too.)"


def answer(
    folder: str | Path,
    queries: list[str],
    model: str | None = None,
    index: str = "exact",
    top: int = 10,
    prompt_name: str | None = None,
) -> None:
    """Print the rows nearest to each query: cosine, row number, kept columns and, if available, the sentence.

    Args:
        queries: the queries; if empty, they are read from standard input, one per line.
        model: current path of the model that encoded the folder; None uses the recorded path.
        index: exact, hnsw or ivf.
        prompt_name: prompt for the queries; None uses the model's prompt "query" if it exists, else its default prompt.

    Raises:
        InputError: the folder is unfinished or damaged, the model is not the one that encoded it, the index or prompt
            is unknown, or a query is empty, not UTF-8, or has no finite embedding.
    """
    embeddings = load(folder)
    network = _same_model(embeddings, model)
    check_prompt(network, prompt_name)
    search = make_search(embeddings, index, given_path(folder))
    if sys.stdout.isatty():
        print(fitting(ABOUT_COSINES))
    for number, query in enumerate(queries or _lines()):
        _check_query(number, query)
        if queries and number:
            print()
        if queries or not sys.stdin.isatty():
            print(query)
        if (share := share_unknown(network.tokenizer, [query], network.max_seq_length)) >= MOSTLY:
            log.warning("Query %d: %s of its tokens are unknown to the model.", number, percent(share))
        vectors: Floats = network.encode_query([query], prompt_name=prompt_name, show_progress_bar=False)
        check_rows(vectors, "of the queries", "the model has no embedding for it: ask in other words", number)
        cosines, rows = search(vectors.astype(np.float32), top)
        _show(embeddings, cosines[0], rows[0])


def _check_query(number: int, query: str) -> None:
    """Raise InputError for a query that no tokenizer accepts, or that is empty."""
    try:
        query.encode()
    except UnicodeEncodeError:  # surrogate escapes stand for bytes that are not UTF-8
        raise InputError(f"Query {number} is not UTF-8: {quoted(query)}; give it as UTF-8.") from None
    if not query.strip():
        raise InputError(f"Query {number} is empty; give words to look for.")


def _same_model(embeddings: Embeddings, model: str | None) -> SentenceTransformer:
    """Load the model that made the embeddings, and check that it is the same."""
    quiet_transformers()
    facts = embeddings.facts
    path = model or facts[WHERE]
    if model is None and not Path(path).is_dir():
        raise InputError(f"{path}, the model that these embeddings were made with, is gone; give it with --model.")
    if model_digest(str(model_folder(path)), chosen_folder()) != facts["model"]:
        raise InputError(f"{path} is not the model that these embeddings were made with; give that model with --model.")
    network, _ = load_model(path, facts["pooling"])
    tell_of_similarity(path)
    truncate_at(network, facts["max_length"])
    return network.float()


def _lines() -> Iterator[str]:
    """Queries from standard input. On a terminal there is a prompt, and an empty line ends the input."""
    person = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):  # lets `_check_query` report bytes that are not UTF-8
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    while True:
        if person:
            print("query> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or (person and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def _show(embeddings: Embeddings, cosines: Floats, rows: np.ndarray) -> None:
    found = [(float(cosine), int(row)) for cosine, row in zip(cosines, rows, strict=True) if row >= 0]
    numbers = [row for _, row in found]
    texts = embeddings.texts(numbers) or [""] * len(found)
    width = len(f"{len(embeddings) - 1:,}")
    for (cosine, row), kept, text in zip(found, embeddings.kept(numbers), texts, strict=True):
        columns = "".join(f"{name}={_on_one_line(value)}  " for name, value in kept.items())
        print(f"{cosine:8.4f}  {row:>{width},}  {columns}{text}".rstrip())


def _on_one_line(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
