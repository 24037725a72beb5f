"""What the fields of a recipe may hold: names, lists, shares, and whole numbers that fit into 64 bits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # between the fields of a text table


def _as_list(value: Any) -> Any:
    """Wrap a single name in a list. A number names a column that has no other name."""
    names = value if isinstance(value, list) else [value]
    numbers = all(isinstance(name, str | int) and not isinstance(name, bool) for name in names)
    return list(map(str, names)) if numbers else value


def _as_columns(value: Any) -> Any:
    """Column names or numbers, as a list or as text such as `a,b`. A name that contains a comma needs a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else _as_list(value)


def _as_separator(value: Any) -> Any:
    """The separator character for a word of `SEPARATORS`, or the given character itself."""
    value = {**SEPARATORS, "\\t": "\t"}.get(value, value) if isinstance(value, str) else value
    if value is not None and not (isinstance(value, str) and len(value) == 1 and value not in '"\r\n'):
        raise ValueError(f"give {', '.join(SEPARATORS)}, or one other character")
    return value


def _a_folders_name(name: str) -> str:
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable():
        raise ValueError("must be the name of a folder, without / and control characters; --output takes a path")
    if len(name.encode(errors="replace")) > 200:
        raise ValueError("must have at most 200 bytes, as it names a folder")
    return name


Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Pooling = Literal["cls", "mean", "last", "first_last_mean"]  # the rows of model/pooling.py
OptimizerName = Literal["adamw"]  # the rows of engine/optimizer.py
Schedule = Literal["linear", "cosine", "constant"]  # the rows of training/schedule.py
FILE_FORMATS = "text, .gz/.xz/.zst text, .jsonl, .csv, .tsv, .parquet"  # in help texts; the table is text/formats.py
SEPARATOR = (
    f"Separator of the fields in .csv and .tsv files: {', '.join(SEPARATORS)}, or a character. Default: detected, "
    "where the file is unambiguous."
)
HEADER = (
    "Whether the first row of .csv and .tsv files names the columns. Without a header they are called 1, 2, 3. "
    "Default: detected, where the file is unambiguous."
)
Separator = Annotated[str | None, BeforeValidator(_as_separator)]
OneOrMore = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Columns = Annotated[Annotated[list[str], Field(min_length=1, max_length=3)] | None, BeforeValidator(_as_columns)]
FolderName = Annotated[str, AfterValidator(_a_folders_name)]


LARGEST = 2**63 - 1  # largest integer: tensors, seeds and files hold 64 bits


class Section(BaseModel):
    """Refuses unknown keys and unusable values. A recipe never changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, int) and abs(part) > LARGEST:
                raise ValueError(f"must be at most {LARGEST}")
            if isinstance(part, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in part):
                raise ValueError("holds a NUL or half of a surrogate pair, which is no text")
        return value
