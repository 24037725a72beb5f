"""A compressed file is read to its true end, or it is an error: no sentence is lost in silence."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.compressed import open_bytes
from tests.support.corpus_files import COMPRESSIONS, MakeRecipe, sentences_of

SENTENCES = [f"sentence {number} of {number * 7919 % 10_007}" for number in range(30_000)]
TEXT = "".join(line + "\n" for line in SENTENCES).encode()
MIDDLE = len(TEXT) // 2
endings = pytest.mark.parametrize("ending", COMPRESSIONS)


@endings
def test_streams_one_after_another_are_one_file(tmp_path: Path, ending: str) -> None:
    compress = COMPRESSIONS[ending]
    path = tmp_path / f"a{ending}"
    path.write_bytes(compress(TEXT[:MIDDLE]) + compress(TEXT[MIDDLE:]) + compress(b""))
    with open_bytes(str(path)) as file:
        assert file.read() == TEXT
    with open_bytes(str(path)) as file:
        assert b"".join(file) == TEXT


def test_padding_between_streams_is_none_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(b"one\n") + bytes(8) + lzma.compress(b"two\n") + bytes(4))
    with open_bytes(str(path)) as file:
        assert file.read() == b"one\ntwo\n"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: 3 * len(whole) // 4],
    "cut at its last byte": lambda whole: whole[:-1],
    "more behind it": lambda whole: whole + b"garbage after",
}


@endings
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_cut_or_goes_on_as_something_else_is_refused(
    tmp_path: Path, recipe: MakeRecipe, ending: str, damage: str
) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(DAMAGES[damage](COMPRESSIONS[ending](TEXT)))
    with pytest.raises(InputError, match=rf"a\.txt\{ending}"):
        sentences_of(recipe(path))


@pytest.mark.parametrize("ending", [".xz", ".bz2", ".gz"])
def test_a_later_stream_that_is_damaged_is_refused(tmp_path: Path, recipe: MakeRecipe, ending: str) -> None:
    first, second = (bytearray(COMPRESSIONS[ending](part)) for part in (TEXT[:MIDDLE], TEXT[MIDDLE:]))
    second[0] ^= 1
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(first + second)
    with pytest.raises(InputError, match=rf"a\.txt\{ending}"):
        sentences_of(recipe(path))


def test_an_empty_line_or_file_is_no_header(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "late.csv").write_text("\n\ntext,id\nThe ferry was late.,1\n\nThe river is wide.,2\n")
    (tmp_path / "empty.csv").touch()
    files = tmp_path / "late.csv", tmp_path / "empty.csv"
    assert sentences_of(recipe(*files)) == ["The ferry was late.", "The river is wide."]
    assert sentences_of(recipe(*reversed(files))) == ["The ferry was late.", "The river is wide."]
