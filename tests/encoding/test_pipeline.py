"""`encode` gives the numbers of SentenceTransformer.encode, row i for row i, and an interruption leaves no trace."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings

from diffcse_scale.encoding import EncodeOptions, encode, load, pipeline, work
from diffcse_scale.encoding.folder_manifest import begun, read_manifest
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.locks import locked
from tests.support.devices import tolerance
from tests.support.files import contents, set_about
from tests.support.small_disk import enlarge, small_disk

Options = Callable[..., EncodeOptions]


@pytest.fixture
def truth(model: SentenceTransformer, sentences: list[str]) -> np.ndarray:
    return model.encode(sentences)


@pytest.mark.device
@pytest.mark.parametrize("window", [1, 16, 103, 1000])
@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_the_embeddings_are_those_of_sentence_transformers_in_the_order_of_the_input(
    options: Options, text_file: Path, truth: np.ndarray, window: int, form: str
) -> None:
    chosen = options(text_file, window=window, format=form)
    encode(chosen, progress=False)
    found = load(chosen.output)
    assert np.asarray(found).dtype == np.float32
    np.testing.assert_allclose(np.asarray(found), truth, atol=tolerance(1e-6, 1e-5))
    shards = sorted(Path(chosen.output).glob("embeddings-*"))
    assert len(shards) == -(-103 // window)
    if form == "parquet":
        rows = [row for shard in shards for row in pyarrow.parquet.read_table(shard)["row"].to_pylist()]
        assert rows == list(range(103))


def test_pooling_length_and_prompt_are_what_the_options_say(
    options: Options, text_file: Path, model_dir: Path, sentences: list[str], tmp_path: Path
) -> None:
    prompted = tmp_path / "prompted"
    shutil.copytree(model_dir, prompted)
    set_about(prompted, prompts={"dog": "dog dog "})
    encode(options(text_file, model=str(prompted), prompt_name="dog", max_length=9), progress=False)
    model = SentenceTransformer(str(prompted))
    model.max_seq_length = 9
    expected = model.encode(sentences, prompt_name="dog")
    assert np.abs(expected - model.encode(sentences)).max() > 0.1  # the prompt matters
    np.testing.assert_allclose(np.asarray(load(tmp_path / "out")), expected, atol=1e-6)
    cls = options(text_file, pooling="cls", output=str(tmp_path / "cls"))
    encode(cls, progress=False)
    plain = SentenceTransformer(str(model_dir))
    plain[1].pooling_mode = "cls"
    np.testing.assert_allclose(np.asarray(load(cls.output)), plain.encode(sentences), atol=1e-6)


def test_batches_stay_within_their_tokens_and_identical_sentences_are_computed_once(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    import torch

    from diffcse_scale.encoding.window_encoder import WindowEncoder

    window = WindowEncoder(model, torch.device("cpu"), batch_tokens=64).prepare(sentences)
    shapes = [batch.features["input_ids"].shape for batch in window.batches]
    assert all(rows * length <= 64 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == window.distinct == len(set(sentences)) < len(sentences)
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths, reverse=True)
    padding = sum(rows * length for rows, length in shapes) / sum(batch.tokens for batch in window.batches)
    assert padding < 1.05
    assert window.places[7] == window.places[102]


@pytest.mark.device
def test_bfloat16_is_near_float32_and_not_the_same(options: Options, text_file: Path, truth: np.ndarray) -> None:
    chosen = options(text_file, precision="bfloat16")
    encode(chosen, progress=False)
    found = np.asarray(load(chosen.output))
    assert 1e-5 < np.abs(found - truth).max() < 0.1
    cosines = (found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)
    assert cosines.min() > 0.999


def test_the_same_command_does_what_is_missing_and_nothing_else(
    options: Options, text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, broken = options(text_file, dtype="int8"), options(text_file, dtype="int8", output=str(tmp_path / "broken"))
    encode(whole, progress=False)
    real, written = work.write_shard, []

    def write(file: Path, *arguments: object) -> dict[str, object]:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(file.name)
        return real(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        encode(broken, progress=False)
    with pytest.raises(InputError, match=r"not finished: 3 of 7 shards are there; repeat the `encode` command"):
        load(broken.output)
    # as a kill would leave it: a line cut short, a shard that the journal does not know, a partial file
    folder = Path(broken.output)
    with (folder / "_shards.jsonl").open("a") as journal:
        journal.write('{"bytes": 12')
    (folder / "embeddings-00003.parquet").write_bytes(b"torn")
    (folder / ".embeddings-00003.parquet.1.partial").write_bytes(b"torn")
    before = {name: (folder / name).stat().st_mtime_ns for name in written}
    monkeypatch.setattr(work, "write_shard", real)
    encode(broken, progress=False)
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == before
    assert contents(broken.output) == contents(whole.output)


def test_a_finished_output_is_left_alone_and_no_model_is_loaded(
    options: Options, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(text_file)
    first = encode(chosen, progress=False)
    assert first.startswith(chosen.output) and "103 rows in 7 shards" in first
    before = contents(chosen.output)
    monkeypatch.setattr(pipeline, "run", lambda *_: pytest.fail("encoded again"))
    assert encode(chosen, progress=False).startswith("Nothing to do")
    assert contents(chosen.output) == before


def test_a_shard_that_was_lost_is_made_again(options: Options, text_file: Path) -> None:
    chosen = options(text_file)
    encode(chosen, progress=False)
    before = contents(chosen.output)
    (Path(chosen.output) / "embeddings-00002.parquet").unlink()
    encode(chosen, progress=False)
    assert contents(chosen.output) == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtype": "int8"}, "was begun with dtype float32, not int8"),
        ({"window": 32}, "was begun with window 16, not 32"),
        ({"precision": "bfloat16"}, "was begun with precision float32, not bfloat16"),
        ({"max_length": 5}, "was begun with max_length None, not 5"),
    ],
)
def test_other_options_are_refused_on_the_same_output(
    options: Options, text_file: Path, changes: dict[str, object], complaint: str
) -> None:
    encode(options(text_file), progress=False)
    before = contents(options(text_file).output)
    with pytest.raises(InputError, match=f"{complaint}; repeat that command, .* or give --overwrite"):
        encode(options(text_file, **changes), progress=False)
    assert contents(options(text_file).output) == before


def test_another_input_or_model_is_refused_on_the_same_output(
    options: Options, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    encode(options(text_file), progress=False)
    moved = tmp_path / "moved"
    shutil.copytree(model_dir, moved)
    assert encode(options(text_file, model=str(moved)), progress=False).startswith("Nothing to do")  # the same content
    config = moved / "1_Pooling" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match="was begun with another model"):
        encode(options(text_file, model=str(moved)), progress=False)
    with text_file.open("a") as file:
        file.write("one more\n")
    with pytest.raises(InputError, match="was begun with another input"):
        encode(options(text_file), progress=False)


def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    options: Options, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_: pytest.fail("encoded"))
    table, foreign, empty = tmp_path / "table.csv", tmp_path / "foreign", tmp_path / "empty.txt"
    table.write_text("left,right\na,b\n")
    empty.touch()
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    taken = tmp_path / "taken"
    taken.touch()
    for chosen, complaint in [
        (options(text_file, model="nowhere"), "Model folder nowhere does not exist"),
        (options(tmp_path / "nowhere.txt"), "no such file"),
        (options(table), "its first row, 'left, right', may be a header or text"),
        (options(table, column="middle"), "has no column 'middle'"),
        (options(empty), "no row to encode"),
        (options(text_file, output=str(foreign)), r"foreign holds other files \(thesis.tex\); choose another --output"),
        (options(text_file, output=str(taken / "out")), "cannot be read or written"),
        (options(text_file, devices="tpu:7"), "--devices: 'tpu:7' cannot be used here"),
    ]:
        with pytest.raises(InputError, match=complaint):
            encode(chosen, progress=False)
    assert [file.name for file in foreign.iterdir() if file.name != ".lock"] == ["thesis.tex"]


def test_an_unknown_prompt_is_refused(options: Options, text_file: Path) -> None:
    with pytest.raises(InputError, match="has no prompt 'weather'; its prompts: "):
        encode(options(text_file, prompt_name="weather"), progress=False)
    encode(options(text_file), progress=False)  # the attempt came to nothing and stands in nobody's way


def test_two_processes_do_not_write_to_the_same_output(options: Options, text_file: Path) -> None:
    chosen = options(text_file)
    Path(chosen.output).mkdir()
    with (
        locked(Path(chosen.output) / ".lock", "taken"),
        pytest.raises(InputError, match="Another process is writing"),
    ):
        encode(chosen, progress=False)


def test_an_error_of_the_work_is_not_taken_for_another_process(tmp_path: Path) -> None:
    facts = {"rows": 1, "window": 1, "model_folder": "", "files": []}
    with pytest.raises(InputError, match="a pipe is full"), begun(tmp_path / "out", facts):
        raise BlockingIOError(errno.EAGAIN, "a pipe is full")


def test_a_full_disk_is_one_sentence_and_the_rest_follows_when_there_is_room(
    options: Options, text_file: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "24k") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small disk")
        chosen = options(text_file, output=str(tmp_path / "disk" / "out"))
        with pytest.raises(
            InputError, match=r"cannot be read or written \(no space left on device\); finished work is kept"
        ):
            encode(chosen, progress=False)
        enlarge(tmp_path / "disk", "1m")
        encode(chosen, progress=False)
        whole = options(text_file)
        encode(whole, progress=False)
        assert contents(chosen.output) == contents(whole.output)


@pytest.mark.parametrize(("dtype", "theirs"), [("int8", "int8"), ("binary", "ubinary")])
@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_quantised_embeddings_are_those_of_sentence_transformers(
    options: Options, text_file: Path, tmp_path: Path, dtype: str, theirs: str, form: str
) -> None:
    plain, quantised = options(text_file, output=str(tmp_path / "plain")), options(text_file, dtype=dtype, format=form)
    encode(plain, progress=False)
    encode(quantised, progress=False)
    floats, found = np.asarray(load(plain.output)), np.asarray(load(quantised.output))
    # the ranges are those of the first window, 16 rows
    expected = quantize_embeddings(floats, theirs, calibration_embeddings=floats[:16])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_float16_is_the_nearest(options: Options, text_file: Path, tmp_path: Path) -> None:
    plain, half = options(text_file, output=str(tmp_path / "plain")), options(text_file, dtype="float16")
    encode(plain, progress=False)
    encode(half, progress=False)
    np.testing.assert_array_equal(np.asarray(load(half.output)), np.asarray(load(plain.output)).astype(np.float16))


def test_the_text_is_kept_where_that_is_asked_for(options: Options, text_file: Path, sentences: list[str]) -> None:
    chosen = options(text_file, keep_text=True)
    encode(chosen, progress=False)
    shards = sorted(Path(chosen.output).glob("*.parquet"))
    assert [text for shard in shards for text in pyarrow.parquet.read_table(shard)["text"].to_pylist()] == sentences
    text_file.unlink()
    assert load(chosen.output).texts([5, 77, 102]) == [sentences[5], sentences[77], sentences[102]]


def test_the_text_is_found_again_in_the_input_unless_that_has_changed(
    options: Options, text_file: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text_file.parent)
    chosen = options(text_file.name)
    encode(chosen, progress=False)
    monkeypatch.chdir("/")
    found = load(chosen.output)
    assert found.texts([102, 5]) == [sentences[102], sentences[5]]
    os.utime(text_file, (1, 1))
    assert load(chosen.output).texts([102, 5]) == [sentences[102], sentences[5]]
    text_file.write_text(text_file.read_text().upper())
    assert load(chosen.output).texts([102, 5]) is None


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(options: Options, text_file: Path, tmp_path: Path) -> None:
    one, two = (
        options(text_file, dtype="int8"),
        options(text_file, dtype="int8", output=str(tmp_path / "two"), devices="cpu,cpu"),
    )
    encode(one, progress=False)
    encode(two, progress=False)
    assert contents(two.output) == contents(one.output)


@pytest.mark.slow
def test_a_mistake_in_one_of_two_processes_is_one_sentence(options: Options, text_file: Path) -> None:
    with pytest.raises(InputError, match="has no prompt 'weather'"):
        encode(options(text_file, devices="cpu,cpu", prompt_name="weather"), progress=False)


class Odd(Exception):
    """Cannot be made from what it says."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), UnicodeDecodeError, "invalid start byte"),
        (InputError("Corpus file a.txt cannot be read."), InputError, "^Corpus file a.txt cannot be read.$"),
        (Odd(1, 2), RuntimeError, "Odd: 1 and 2"),
    ],
)
def test_what_a_process_raises_is_raised_as_it_was(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        raise pickle.loads(pickle.dumps(work._portable(error)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": "two"},\n{"text": 3}\n]\n',
            "3 of the first 4 rows are malformed; write",
        ),
        ("a.txt", b"stra\xdfe\nd\xfcnn\nein Hund\n", "2 of the first 3 rows are undecodable; convert them to UTF-8"),
    ],
)
def test_rows_that_are_mostly_lost_are_refused_before_the_model_is_loaded(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.setattr(work.Job, "open_encoder", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: {said}"):
        encode(options(tmp_path / name, column=None), progress=False)
    assert not Path(options(tmp_path / name).output).exists()


def test_empty_and_undecodable_rows_keep_their_place_and_are_counted(
    options: Options, tmp_path: Path, model: SentenceTransformer
) -> None:
    file = tmp_path / "holes.txt"
    file.write_bytes(b"a dog\n\n\xff\xfe cat\n   \nthe horse sleeps\n")
    chosen = options(file)
    said = encode(chosen, progress=False)
    assert "5 rows" in said and "2 empty, 1 undecodable" in said
    expected = model.encode(["a dog", "", "\ufffd\ufffd cat", "   ", "the horse sleeps"])
    np.testing.assert_allclose(np.asarray(load(chosen.output)), expected, atol=1e-6)
    manifest = read_manifest(Path(chosen.output))
    assert manifest is not None and manifest.shards[0]["flaws"] == {"empty": 2, "undecodable": 1}


def test_a_process_loads_the_model_on_the_cpu_before_it_goes_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the library loads onto the first accelerator, which every process would do."""
    asked = []
    monkeypatch.setattr(work, "load_model", lambda *arguments, **options: (asked.append(options), "its pooling"))
    monkeypatch.setattr(work, "WindowEncoder", lambda model, device: device)
    job = work.Job("model", None, {}, None, [], "float32", False)  # type: ignore[arg-type]
    assert job.open_encoder("cuda:1", threads=1) == torch.device("cuda:1")
    assert asked == [{"device": "cpu"}]
