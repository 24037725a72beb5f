"""Corpora in every format, and evaluation files: what was written is known, so what is read can be compared."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.corpus import load_corpus
from tests.fuzz.case import Answer, Case, Surface
from tests.fuzz.ingredients import FOREIGN, LINE, TEXT, damaged
from tests.support.corpus_files import COMPRESSIONS, comma_separated, json_lines, parquet, text
from tests.support.tiny_models import WORDS

PLAIN = [" ".join(WORDS[start : start + 4]) + f" {start}" for start in range(12)]
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, **COMPRESSIONS}


def _semicolons(rows: list[str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=";")
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(rows))
    return file.getvalue().encode()


# ending to what is written, and whether a row may hold the end of a line
FORMS: dict[str, tuple[Callable[[list[str]], bytes], bool]] = {
    "txt": (text, False),
    "jsonl": (json_lines, True),
    "json": (lambda rows: json.dumps([{"text": row} for row in rows]).encode(), True),
    "csv": (comma_separated, False),
    "semicolon.csv": (_semicolons, False),
    "parquet": (parquet, True),
    "categories.parquet": (lambda rows: parquet(rows, categories=True), True),
}


def cleaned(rows: Sequence[str]) -> list[str]:
    """What a corpus keeps: stripped, not empty, decodable (also with a U+FFFD of the text's own), each once."""
    texts = [row.strip() for row in rows]
    return list(dict.fromkeys(text for text in texts if text and "\0" not in text and "\ufdd0" not in text))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, bytes, list[str] | None]:
    """Name and content of a corpus file, and its sentences where it is whole."""
    ending = draw(st.sampled_from(sorted(FORMS)))
    write, any_text = FORMS[ending]
    rows = PLAIN + draw(st.lists(TEXT if any_text else LINE, max_size=6))
    compression = draw(st.sampled_from(sorted(PACKED))) if not ending.endswith("parquet") else ""
    name, whole = f"corpus.{ending}{compression}", write(rows)
    how = draw(st.sampled_from(["whole", "whole", "damaged", "damaged inside", "foreign"]))
    if how == "whole":
        return name, PACKED[compression](whole), cleaned(rows)
    if how == "damaged inside":
        return name, PACKED[compression](draw(damaged(whole))), None
    return name, draw(st.sampled_from(FOREIGN) if how == "foreign" else damaged(PACKED[compression](whole))), None


def _corpus_case(corpus: tuple[str, bytes, list[str] | None]) -> Case:
    name, content, truth = corpus
    arguments = ("prepare", f"data.files={name}", "data.workers=1", "data.columns=[text]")
    if name.partition(".")[2].startswith("txt"):
        arguments = arguments[:-1]
    return Case(arguments, {name: content}, truth=truth)


def _sentences_are_those(case: Case, answer: Answer) -> str:
    columns = ["text"] if "data.columns=[text]" in case.arguments else None
    found = load_corpus(DataRecipe(files=list(case.files), workers=1, columns=columns))["text_0"][:]
    if case.truth is not None and found != case.truth:
        wrong = [(one, other) for one, other in zip(found, case.truth, strict=False) if one != other][:1]
        return f"{len(found)} sentences instead of {len(case.truth)}, first difference {wrong}"
    return "" if found and all(text.strip() for text in found) else "accepted without a sentence"


CORPORA = Surface("corpora", st.builds(_corpus_case, corpora()), _sentences_are_those)


@st.composite
def _pairs(draw: st.DrawFn) -> Case:
    scores = st.floats(0, 5).map(lambda score: f"{score:.3f}") | st.sampled_from(
        ["0", "5", "nan", "inf", "", "x", "1e3", "-1", "٣", "1_0"]
    )
    field = LINE.map(lambda text: text.replace("\t", " "))
    usual = [f"{number % 5}\t{row}\t{PLAIN[0]}" for number, row in enumerate(PLAIN)]
    more = draw(st.lists(st.builds("{}\t{}\t{}".format, scores, field, field), max_size=3))
    content = text(usual + more).replace(b"\n", draw(st.sampled_from([b"\n", b"\r\n"])))
    content = draw(
        st.sampled_from([content, content[:-1], b"\xef\xbb\xbf" + content])
        | damaged(content)
        | st.sampled_from(FOREIGN)
    )
    name = draw(st.sampled_from(["pairs.tsv", "pairs.csv", "pairs"]))
    arguments = ("evaluate", "--model", "model", "--pooling", "mean", "--data", name, "--json", "results.json")
    return Case(arguments, {name: content, **_model()})


def _model() -> dict[str, bytes]:
    from tests.fuzz.folders import model_files

    return {f"model/{name}": content for name, content in model_files().items()}


def _pairs_are_counted(case: Case, answer: Answer) -> str:
    from pathlib import Path

    lines = next(iter(case.files.values())).removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    text = Path("results.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        results = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return f"results.json holds {error}"
    counts = _counts(results)
    return "" if counts == {len(lines)} else f"{counts} pairs of {len(lines)}"


def _counts(value: Any) -> set[int]:
    if isinstance(value, list):
        return set().union(*map(_counts, value))
    if not isinstance(value, dict):
        return set()
    own = {value["count"]} if "count" in value and "value" in value else set()
    return own.union(*map(_counts, value.values()))


PAIRS = Surface("pairs", _pairs(), _pairs_are_counted)
