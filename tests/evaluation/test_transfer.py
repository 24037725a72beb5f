"""The transfer tasks: reading them, and SentEval's protocol written out once more in plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcse_scale.evaluation import TRANSFER_TASKS, Results, evaluate_transfer, load_transfer
from diffcse_scale.evaluation.transfer import MEAN
from diffcse_scale.foundation.errors import InputError

sklearn = pytest.importorskip("sklearn", reason="the extra eval")
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import f1_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold  # noqa: E402

WORDS = ("fine", "good", "poor", "sad", "film", "plot", "cast", "score")


def encode(sentences: list[str]) -> np.ndarray:
    """Counts of words: what a classifier needs, and noise."""
    return np.array([[sentence.split().count(word) for word in WORDS] for sentence in sentences], dtype=np.float32)


def rows(count: int, seed: int, labels: tuple[str, ...] = ("0", "1"), texts: int = 1) -> list[str]:
    """Random words. Mostly the first word of a sentence tells its label, and of a pair whether the two are equal."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        label = int(generator.integers(len(labels)))
        told = label if generator.random() < 0.8 else int(generator.integers(len(labels)))
        sentences = [" ".join(generator.choice(WORDS, size=generator.integers(1, 6))) for _ in range(texts)]
        if texts == 1:
            sentences = [f"{WORDS[told]} {sentences[0]}"]
        elif told:
            sentences[1] = sentences[0]
        lines.append("\t".join([labels[label], *sentences]))
    return lines


def write(folder: Path, name: str, lines: list[str]) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All seven tasks, some hundred rows of each."""
    folder = tmp_path_factory.mktemp("transfer")
    for seed, task in enumerate(TRANSFER_TASKS):
        labels = ("HUM", "LOC", "NUM") if task.name == "TREC" else ("0", "1")
        for stem in task.sizes:
            lines = rows(200 if stem in ("all", "train") else 90, 10 * seed + len(stem), labels, task.texts)
            write(folder, f"{task.name}/{stem}.tsv", lines)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return evaluate_transfer(encode, load_transfer(folder, ["CR", "SST2", "TREC", "MRPC"]))


def read(folder: Path, name: str) -> tuple[list[list[str]], np.ndarray]:
    """Sentences and labels in SentEval's order."""
    lines = [line.split("\t") for line in (folder / name).read_text().splitlines()]
    lines.sort(key=lambda line: ([len(text.split()) for text in line[1:]], line[0]))
    return [line[1:] for line in lines], np.array([line[0] for line in lines])


def fit(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x, y)


def folds() -> StratifiedKFold:
    return StratifiedKFold(n_splits=10, shuffle=True, random_state=1111)


def cross_validated_accuracy(x: np.ndarray, y: np.ndarray, c: float) -> float:
    return float(np.round(np.mean([fit(x[i], y[i], c).score(x[o], y[o]) for i, o in folds().split(x, y)]), 4))


@pytest.mark.slow
def test_cross_validated_tasks_choose_c_within_each_fold(folder: Path, results: Results) -> None:
    """Six hundred fits, in plain loops. The mean of ten folds of 20 equals the accuracy of all 200."""
    texts, y = read(folder, "CR/all.tsv")
    x = encode([text for (text,) in texts])
    accuracies, chosen = [], []
    for train, test in folds().split(x, y):
        grid = [2.0**t for t in range(-2, 4)]
        chosen.append(grid[int(np.argmax([cross_validated_accuracy(x[train], y[train], c) for c in grid]))])
        accuracies.append(fit(x[train], y[train], chosen[-1]).score(x[test], y[test]))
    assert results.details["C"]["CR"] == chosen
    assert results["CR"].value == pytest.approx(100 * np.mean(accuracies), abs=1e-9)
    assert 75 < results["CR"].value < 99


def test_sst2_chooses_c_on_the_development_set_and_keeps_the_fit_to_the_training_set(
    folder: Path, results: Results
) -> None:
    (texts, y), (dev_texts, dev_y), (test_texts, test_y) = (
        read(folder, f"SST2/{s}.tsv") for s in ("train", "dev", "test")
    )
    x, dev_x, test_x = (encode([text for (text,) in file]) for file in (texts, dev_texts, test_texts))
    grid = [2.0**t for t in range(-2, 4)]
    best = grid[int(np.argmax([fit(x, y, c).score(dev_x, dev_y) for c in grid]))]
    assert results.details["C"]["SST2"] == [best]
    assert results["SST2"].value == pytest.approx(100 * fit(x, y, best).score(test_x, test_y), abs=1e-9)


def test_trec_chooses_c_by_cross_validation_on_the_training_set(folder: Path, results: Results) -> None:
    (texts, y), (test_texts, test_y) = (read(folder, f"TREC/{stem}.tsv") for stem in ("train", "test"))
    x, test_x = (encode([text for (text,) in file]) for file in (texts, test_texts))
    grid = [2.0**t for t in range(-1, 6)]
    best = grid[int(np.argmax([cross_validated_accuracy(x, y, c) for c in grid]))]
    assert results.details["C"]["TREC"] == [best]
    assert results["TREC"].value == pytest.approx(100 * fit(x, y, best).score(test_x, test_y), abs=1e-9)


def test_mrpc_has_differences_and_products_as_features_and_an_f1(folder: Path, results: Results) -> None:
    def features(texts: list[list[str]]) -> np.ndarray:
        first, second = (encode([pair[side] for pair in texts]) for side in (0, 1))
        return np.c_[np.abs(first - second), first * second]

    (texts, y), (test_texts, test_y) = (read(folder, f"MRPC/{stem}.tsv") for stem in ("train", "test"))
    x, test_x = features(texts), features(test_texts)
    (best,) = results.details["C"]["MRPC"]
    predicted = fit(x, y, best).predict(test_x)
    assert results["MRPC"].value == pytest.approx(100 * np.mean(predicted == test_y), abs=1e-9)
    assert results["MRPC F1"].value == pytest.approx(100 * f1_score(test_y, predicted, pos_label="1"), abs=1e-9)
    assert results["MRPC F1"].measure == "F1 x 100"


@pytest.mark.slow
def test_the_mean_is_over_seven_accuracies(folder: Path) -> None:
    results = evaluate_transfer(encode, load_transfer(folder))
    assert results.missing == ()
    seven = [results[task.name].value for task in TRANSFER_TASKS]
    assert results[MEAN].value == pytest.approx(np.mean(seven))
    low, high = results[MEAN].interval or (0, 0)
    assert low < results[MEAN].value < high


def test_each_distinct_sentence_of_a_task_is_encoded_once(folder: Path) -> None:
    asked: list[str] = []

    def counting(sentences: list[str]) -> np.ndarray:
        asked.extend(sentences)
        return encode(sentences)

    partial = evaluate_transfer(counting, load_transfer(folder, ["MRPC"]))
    assert len(asked) == len(set(asked))
    assert partial.means == () and partial.missing == ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC")


def test_another_size_than_the_standard_one_is_remarked(results: Results) -> None:
    assert results["CR"].remark == "200 rows, the standard set has 3,775: not comparable"
    assert "train rows" in results["TREC"].remark and "90 test rows, the standard set has 500" in results["TREC"].remark


def test_embeddings_that_are_not_finite_are_reported(folder: Path) -> None:
    broken = evaluate_transfer(lambda s: np.full((len(s), 2), np.nan), load_transfer(folder, ["MRPC"]))
    assert all(np.isnan(score.value) and "NaN or infinity" in score.remark for score in broken.scores)


def test_a_task_that_is_not_in_the_folder_is_left_out_unless_it_is_named(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "CR/all.tsv", rows(60, 0))
    assert [data.task.name for data in load_transfer(tmp_path)] == ["CR"]
    with pytest.raises(InputError, match=r"MR/all\.tsv cannot be read"):
        load_transfer(tmp_path, ["MR"])
    with pytest.raises(InputError, match="no transfer task 'CoLA'; there are MR, CR"):
        load_transfer(tmp_path, ["CoLA"])
    with pytest.raises(InputError, match=r"holds none of the transfer tasks; expected are MR/all\.tsv"):
        load_transfer(tmp_path / "CR")
    with pytest.raises(InputError, match="nowhere is not one"):
        load_transfer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["1\ta\tb"], r"line 1 has 3 tab-separated fields, not label, sentence"),
        (["1\ta", "0\t "], r"line 2: a sentence is empty"),
        (["sentence\tlabel", *["a\t1"] * 30], r"line 1 is a header and would be read as a row with its own class"),
        (["1\ta", "\tb"], r"line 2: the label is empty"),
        (["1\ta"] * 30, "all rows have the label '1'"),
        (["1\ta"] * 30 + ["0\tb"] * 19, "19 rows of the class '0'; cross-validation in ten folds needs 20"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, lines: list[str], complaint: str) -> None:
    write(tmp_path, "CR/all.tsv", lines)
    with pytest.raises(InputError, match=complaint) as caught:
        load_transfer(tmp_path)
    assert "CR/all.tsv" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "train", "test", "complaint"),
    [
        ("TREC", "01", "ab", r"TREC/test\.tsv has the label 'a' and others, but none that is in train\.tsv"),
        ("MRPC", "yn", "yn", r"MRPC/train\.tsv has no pair with the label 1, that of paraphrases"),
    ],
)
def test_labels_that_no_classifier_could_get_right_are_refused(
    tmp_path: Path, name: str, train: str, test: str, complaint: str
) -> None:
    texts = "\tword" * (2 if name == "MRPC" else 1)
    for stem, labels in (("train", train), ("test", test)):
        write(tmp_path, f"{name}/{stem}.tsv", [f"{label}{texts}" for label in labels * 20])
    with pytest.raises(InputError, match=complaint):
        load_transfer(tmp_path)
