"""A folder of embeddings that was damaged, cut or edited: told in a sentence, and made whole by the same command."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

from diffcse_scale.encoding import EncodeOptions, encode, load, search
from diffcse_scale.encoding.prompt import answer
from diffcse_scale.foundation.errors import InputError, told
from tests.support.file_events import FileEvents, fail
from tests.support.files import contents

Options = Callable[..., EncodeOptions]


@pytest.fixture(scope="module")
def made(model_dir: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentences, and their embeddings."""
    place = tmp_path_factory.mktemp("made")
    file = place / "sentences.txt"
    file.write_text("".join(f"{text}\n" for text in sentences), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFCSE_CACHE", str(place / "cache"))
        encode(
            EncodeOptions(
                model=str(model_dir),
                input=[str(file)],
                output=str(place / "out"),
                **{"window": 16, "batch_tokens": 64, "dtype": "int8", "devices": "cpu"},
            ),
            progress=False,
        )
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """103 rows in 7 shards of int8."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def flip(file: Path) -> None:
    """Another byte in the middle; the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def test_a_damaged_shard_of_the_same_size_is_told_by_search_and_made_again_by_encode(
    options: Options, made: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = contents(folder)
    flip(folder / "embeddings-00002.parquet")
    with pytest.raises(InputError, match=r"embeddings-00002.parquet is damaged .*repeat the `encode` command"):
        search.exact(load(folder))
    flip(folder / "embeddings-00005.parquet")
    again = options(made / "sentences.txt", dtype="int8", precision="float32", devices="cpu")
    encode(again, progress=False)
    assert "Written again, because its bytes had changed" in caplog.text and "embeddings-00005.parquet" in caplog.text
    assert contents(folder) == whole
    assert encode(again, progress=False).startswith("Nothing to do")


def test_a_shard_that_is_no_parquet_is_told_by_who_reads_it_alone(folder: Path) -> None:
    file = folder / "embeddings-00001.parquet"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(InputError, match=r"embeddings-00001.parquet is damaged"):
        np.asarray(load(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: text.replace('"rows": 103', '"rows": "all"'),
        lambda text: text.replace('"window": 16', '"window": 0'),
        lambda text: text.replace('"dtype": "int8"', '"dtype": "float99"'),
        lambda text: json.dumps({**json.loads(text), "ranges": [[float("nan")] * 24] * 2}),
        lambda text: json.dumps({**json.loads(text), "ranges": [[0.0], [1.0]]}),
        lambda text: json.dumps({**json.loads(text), "ranges": None}),
        lambda text: json.dumps({**json.loads(text), "files": [7]}),
    ],
)
def test_a_manifest_that_is_cut_or_edited_is_one_sentence(folder: Path, change: Callable[[str], str]) -> None:
    manifest = folder / "_manifest.json"
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(InputError, match=r"holds no embeddings: its _manifest.json is damaged"):
        load(folder)


def test_lines_of_the_journal_that_are_none_count_for_nothing(folder: Path) -> None:
    lines = (folder / "_shards.jsonl").read_bytes().splitlines()
    lines[3] = b'{"shard": 3}\n[]\n"\xff"\n{"shard": 9e9}\n' + b"[" * 100_000
    (folder / "_shards.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="not finished: 6 of 7 shards are there"):
        load(folder)


class Given:
    """Embeddings that are given, in shards of 70 rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def verify(self) -> None: ...

    def floats(self) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(self._rows), 70):
            yield first, self._rows[first : first + 70]


@pytest.mark.parametrize("block", [33, 16_384])
def test_identical_rows_come_in_their_order_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Of a matrix product equal rows have cosines that differ in the last digit."""
    monkeypatch.setattr(search, "BLOCK", block)
    draw = np.random.default_rng(0)
    kinds, kind = draw.integers(-128, 128, (3, 385)).astype(np.float32), draw.integers(3, size=300)
    query = kinds[0] + kinds[1] / 2
    truth = (kinds.astype(np.float64) @ query) / np.linalg.norm(kinds.astype(np.float64), axis=1)
    expected = np.lexsort((np.arange(300), -truth[kind]))
    for k in (1, 20, 150, 1000):
        _, rows = search.exact(Given(kinds[kind]))(query[None], k)  # type: ignore[arg-type]
        assert rows[0].tolist() == expected[:k].tolist()


@pytest.mark.parametrize(
    ("queries", "complaint"),
    [(["a dog", ""], "Query 1 is empty"), (["\udcff\udcfe dog"], "Query 0 is not UTF-8")],
)
def test_queries_that_are_none_are_one_sentence(folder: Path, queries: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        answer(folder, queries)


def test_a_query_of_unknown_words_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model sees the same in all of them, so that the answer means nothing."""
    answer(folder, ["a dog", "老师在河边看书", "a dog sleeps 書"])
    told = [record.getMessage() for record in caplog.records]
    assert told == ["Query 1: 100% of its tokens are unknown to the model."]


def test_bytes_from_a_pipe_that_are_no_text_end_the_search_after_the_queries_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"a dog\n\xff\xfe\n")))
    with pytest.raises(InputError, match="Query 1 is not UTF-8"):
        answer(folder, [], top=10**12)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 103


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES])
def test_a_shard_that_cannot_be_read_at_the_moment_is_not_called_damaged(folder: Path, code: int) -> None:
    with (
        FileEvents([folder], fail(1, code), only="read", named="00002.parquet", reads=True),
        pytest.raises(OSError) as raised,
    ):
        load(folder).verify()
    assert "embeddings-00002.parquet" in (told(raised.value) or "")
    load(folder).verify()
