"""The grammar: what it writes, what its grades mean, and that training text and test never meet."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from diffcse_scale.embedded.grammar import (
    Actor,
    Scene,
    graded_pairs,
    random_scene,
    similarity,
    training_sentences,
    word,
)
from diffcse_scale.embedded.lexicon import ACTS, THINGS

FOOTBALL = Scene(Actor("two", "child", "happy"), "play", thing="football", place="park", place_property="large")
CHASE = Scene(Actor("one", "dog"), "chase", patient=Actor("two", "boy", "young"), time="morning")


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return training_sentences(100_000, seed=1)


def test_a_hundred_thousand_sentences_are_distinct_and_plain(sentences):
    assert len(set(sentences)) == 100_000
    assert all(set(sentence) <= set("abcdefghijklmnopqrstuvwxyz ,") for sentence in sentences)
    assert all("  " not in sentence and sentence == sentence.strip() for sentence in sentences)
    assert 5 < sum(len(sentence.split()) for sentence in sentences) / 100_000 < 20


def test_the_seed_decides_everything():
    assert training_sentences(300, seed=1) == training_sentences(300, seed=1)
    assert len(set(training_sentences(300, seed=1)) & set(training_sentences(300, seed=2))) < 10
    assert graded_pairs(60, seed=1) == graded_pairs(60, seed=1)
    assert graded_pairs(60, seed=1) != graded_pairs(60, seed=2)


def test_a_longer_text_begins_with_the_shorter_one():
    assert training_sentences(300, seed=1)[:100] == training_sentences(100, seed=1)


def test_no_sentence_of_the_test_is_in_training_text(sentences):
    """A few thousand very short sentences would meet by chance in so much text if scenes were not divided."""
    pairs = graded_pairs(3000, seed=1)
    tested = {sentence for _, *both in pairs for sentence in both}
    assert not tested & set(sentences)
    assert not tested & set(training_sentences(20_000, seed=2))


def test_a_sentence_has_one_meaning():
    """Otherwise a training scene could be worded like a held-out one."""
    rng = random.Random(0)
    meaning: dict[str, Scene] = {}
    for _ in range(60_000):
        scene = random_scene(rng)
        assert meaning.setdefault(word(scene, rng), scene) == scene


def test_about_an_eighth_of_the_scenes_is_held_out():
    rng = random.Random(0)
    assert sum(random_scene(rng).held_out for _ in range(8000)) == pytest.approx(1000, abs=120)


def wordings(scene: Scene) -> set[str]:
    rng = random.Random(0)
    return {word(scene, rng) for _ in range(8000)}


def test_a_scene_is_worded_in_every_way():
    said = wordings(FOOTBALL)
    assert {
        "two happy children are playing football in a large park",
        "a pair of pleased kids play soccer in a big park",
        "football is being played by two happy kids in a huge park",
        "in a large park, soccer is played by a pair of happy children",
        "there are two pleased children playing soccer in a large park",
        "in this picture, two happy children are playing football in a large park",
    } <= said
    assert len(said) > 500


def test_number_negation_and_article_are_grammatical():
    said = wordings(replace(FOOTBALL, agent=Actor("one", "child", "old"), negated=True))
    assert {
        "an old child is not playing football in a large park",
        "an elderly kid does not play football in a large park",
        "football is not being played by an old child in a large park",
    } <= said
    assert all(" not " in sentence and "there is" not in sentence for sentence in said)
    said = wordings(CHASE)
    assert {
        "a dog chases two young boys in the morning",
        "two young boys are being chased by a dog before noon",
    } <= said


@pytest.mark.parametrize(
    ("first", "second", "grade"),
    [
        (FOOTBALL, FOOTBALL, 5),
        (FOOTBALL, replace(FOOTBALL, place_property="crowded"), 4),
        (FOOTBALL, replace(FOOTBALL, agent=Actor("two", "child")), 4),
        (FOOTBALL, replace(FOOTBALL, time="rain"), 4),
        (FOOTBALL, replace(FOOTBALL, time="rain", place_property=None), 3),
        (FOOTBALL, replace(FOOTBALL, thing="chess"), 3),
        (FOOTBALL, replace(FOOTBALL, place="beach"), 3),
        (FOOTBALL, replace(FOOTBALL, agent=Actor("three", "child", "happy")), 3),
        (FOOTBALL, replace(FOOTBALL, agent=Actor("two", "girl", "happy")), 3),
        (FOOTBALL, replace(FOOTBALL, agent=Actor("two", "king", "happy")), 2),
        (FOOTBALL, replace(FOOTBALL, thing="chess", place="beach"), 2),
        (FOOTBALL, replace(FOOTBALL, negated=True), 2),
        (FOOTBALL, replace(FOOTBALL, act="eat", thing="apple"), 2),
        (CHASE, replace(CHASE, agent=CHASE.patient, patient=CHASE.agent), 2),
        (CHASE, replace(CHASE, act="help"), 2),
        (FOOTBALL, replace(FOOTBALL, act="eat", thing="apple", negated=True), 1),
        (FOOTBALL, replace(FOOTBALL, agent=Actor("one", "king"), thing="chess", place="beach"), 1),
        (FOOTBALL, Scene(Actor("one", "king"), "sleep", place="park"), 1),
        (FOOTBALL, Scene(Actor("one", "child"), "sleep", place="beach"), 1),
        (FOOTBALL, CHASE, 0),
        (FOOTBALL, Scene(Actor("two", "king", "happy"), "sleep", time="rain"), 0),
    ],
)
def test_grades_by_hand(first, second, grade):
    assert similarity(first, second) == similarity(second, first) == grade


def test_pairs_are_balanced_and_never_twice_the_same_sentence():
    pairs = graded_pairs(600, seed=5)
    assert Counter(grade for grade, _, _ in pairs) == {float(grade): 100 for grade in range(6)}
    assert all(first != second for _, first, second in pairs)


def test_shared_words_are_a_cue_but_not_the_answer():
    pairs = graded_pairs(1200, seed=5)
    overlap = []
    for _, first, second in pairs:
        one, other = set(first.split()), set(second.split())
        overlap.append(len(one & other) / len(one | other))
    assert 0.4 < spearmanr(overlap, [grade for grade, _, _ in pairs])[0] < 0.7
    of_grade = {g: [o for o, (grade, _, _) in zip(overlap, pairs, strict=True) if grade == g] for g in (2, 5)}
    assert min(of_grade[5]) < 0.2 and max(of_grade[2]) > 0.7


def test_the_lexicon_has_no_dead_or_missing_thing():
    used = [thing for act in ACTS.values() for thing in act.things]
    assert set(used) == set(THINGS)
