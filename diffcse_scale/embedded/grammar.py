"""A small grammar that writes caption-like English, and pairs of sentences graded by their meaning.

A *scene* is a meaning: who (number, kind, perhaps a property) does what, to what or whom, where, when, and whether it
is negated. A *wording* is one of the many ways to say it: synonyms, active or passive, tense, "there is", the order of
place and time, and phrases of captions ("in this picture"). The two sentences of a pair are worded independently. Two
sentences with the same meaning may share few words. Others share nearly all words but differ in an essential point ("a
dog is chasing two boys", "two boys are chasing a dog").

A hash of a scene's content decides whether it is for training or for the test. Training text and graded pairs come
from different scenes, so no test sentence, nor a paraphrase of one, is ever in training text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffcse_scale.embedded.lexicon import (
    ACTS,
    ANIMALS,
    FRAMES,
    KIN,
    NOUNS,
    NUMBERS,
    PEOPLE,
    PLACE_PROPERTIES,
    PLACES,
    PLURAL_THINGS,
    PROPERTIES,
    THINGS,
    TIMES,
    Verb,
)

TEST_SHARE = 1 / 8  # share of all scenes


@dataclass(frozen=True)
class Actor:
    """An actor: one of NUMBERS, NOUNS and PROPERTIES each."""

    number: str
    kind: str
    property: str | None = None


@dataclass(frozen=True)
class Scene:
    """A meaning in concepts of the lexicon. The object of the act is a `thing`, a `patient`, or neither."""

    agent: Actor
    act: str
    thing: str | None = None
    patient: Actor | None = None
    place: str | None = None
    place_property: str | None = None
    time: str | None = None
    negated: bool = False

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to the test."""
        digest = hashlib.blake2b(repr(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < TEST_SHARE * 2**64


def training_sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences from scenes that graded pairs and triples never use."""
    rng = random.Random(f"training {seed}")
    sentences: dict[str, None] = {}  # an ordered set
    while len(sentences) < count:
        scene = random_scene(rng)
        if not scene.held_out:
            sentences[word(scene, rng)] = None
    return list(sentences)


def graded_pairs(count: int, seed: int) -> list[tuple[float, str, str]]:
    """`count` pairs (similarity, sentence, sentence) of held-out scenes, with equally frequent grades.

    The two sentences of a pair are never the same string. See `similarity` for the meaning of the grades 0 to 5.
    """
    rng = random.Random(f"pairs {seed}")
    grades = [index % 6 for index in range(count)]
    rng.shuffle(grades)
    return [_pair(grade, rng) for grade in grades]


def edited_triples(kind: str, count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` triples (sentence, another wording of it, an edit of it with another meaning) of held-out scenes.

    The edit uses the same wording choices as the sentence, so mostly one word differs. The other wording may share few
    words with the sentence.

    Args:
        kind: kind of the edit, one of `EDITS`.
    """
    rng = random.Random(f"triples {kind} {seed}")
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        scene, choices = random_scene(rng), rng.random()
        changed = EDITS[kind](scene, rng)
        sentence, other = (word(one, random.Random(choices)) for one in (scene, changed))
        wording = word(scene, rng)
        if scene.held_out and changed != scene and len({sentence, other, wording}) == 3:
            found.append((sentence, wording, other))
    return found


def similarity(first: Scene, second: Scene) -> float:
    """Similarity from 0 to 5 by the scale of the STS tasks (Agirre et al. 2012), from the two meanings alone.

    5: the same scene.
    4: one unimportant detail differs or is missing (a property of an actor or of the place, the time).
    3: several unimportant details differ, or an important one (number, kind within the kin, object of the act, place).
    2: two important details differ; or actors and place are the same, but act, negation or roles differ.
    1: more differs, but the act, the object, an actor or the place is shared.
    0: none of these is shared.
    """
    if first == second:
        return 5.0
    actors = (first.agent, first.patient), (second.agent, second.patient)
    exchanged = first.patient is not None and actors[0] == actors[1][::-1]
    if first.act != second.act or first.negated != second.negated or exchanged:
        same_actors = exchanged or (first.agent == second.agent and first.patient == second.patient)
        core = (first.act != second.act) + (first.negated != second.negated) + exchanged
        if core == 1 and same_actors and first.place == second.place:
            return 2.0
    else:
        important, details = _differences(first, second)
        if important == 0:
            return 4.0 if details == 1 else 3.0
        if important == 1 and details <= 1:
            return 3.0
        if important <= 2:
            return 2.0
    return 1.0 if _anything_shared(first, second) else 0.0


def _differences(first: Scene, second: Scene) -> tuple[int, int]:
    """Numbers of important and of unimportant details that differ between two scenes with the same act."""
    important = (first.thing != second.thing) + (first.place != second.place)
    details = (first.place_property != second.place_property) + (first.time != second.time)
    for one, other in ((first.agent, second.agent), (first.patient, second.patient)):
        if one is None or other is None:
            important += one is not other
            continue
        important += one.number != other.number
        if one.kind != other.kind:
            important += 1 if KIN[one.kind] == KIN[other.kind] else 2
        details += one.property != other.property
    return important, details


def _anything_shared(first: Scene, second: Scene) -> bool:
    def named(scene: Scene) -> set[str]:
        actors = [actor.kind for actor in (scene.agent, scene.patient) if actor is not None]
        return {scene.act, *actors} | {name for name in (scene.thing, scene.place) if name is not None}

    return not named(first).isdisjoint(named(second))


# Scenes


def random_scene(rng: random.Random) -> Scene:
    act = rng.choice(list(ACTS.values()))
    place = rng.choice(list(PLACES)) if rng.random() < 0.7 else None
    return Scene(
        agent=_actor(rng, PEOPLE if act.by_people else PEOPLE + ANIMALS),
        act=act.name,
        thing=rng.choice(act.things) if act.things else None,
        patient=_actor(rng, PEOPLE + ANIMALS) if act.on_actors else None,
        place=place,
        place_property=rng.choice(list(PLACE_PROPERTIES)) if place and rng.random() < 0.4 else None,
        time=rng.choice(list(TIMES)) if rng.random() < 0.4 else None,
        negated=rng.random() < 0.12,
    )


def _actor(rng: random.Random, kinds: list[str]) -> Actor:
    return Actor(
        number=rng.choices(list(NUMBERS), weights=[6, 3, 2, 1, 2, 1])[0],
        kind=rng.choice(kinds),
        property=rng.choice(list(PROPERTIES)) if rng.random() < 0.45 else None,
    )


# Pairs: the second scene is the first one with an edit that gives the wanted grade


def _pair(grade: int, rng: random.Random) -> tuple[float, str, str]:
    while True:
        first = random_scene(rng)
        if not first.held_out:
            continue
        edit = rng.choice(_EDITS[grade])
        for _ in range(50):  # some edits do not change some scenes; then take another scene
            second = edit(first, rng)
            if second.held_out and similarity(first, second) == grade:
                one, other = word(first, rng), word(second, rng)
                if one != other:
                    return float(grade), one, other


def _same(scene: Scene, _rng: random.Random) -> Scene:
    return scene


def _detail(scene: Scene, rng: random.Random) -> Scene:
    """Change, remove or add a property or the time."""
    other = random_scene(rng)
    choice = rng.randrange(4)
    if choice == 0:
        return replace(scene, time=other.time)
    if choice == 1 and scene.place:
        return replace(scene, place_property=other.place_property)
    if choice == 2 and scene.patient:
        return replace(scene, patient=replace(scene.patient, property=other.agent.property))
    return replace(scene, agent=replace(scene.agent, property=other.agent.property))


def _important(scene: Scene, rng: random.Random) -> Scene:
    """Change a number, an actor within its kin, the object, or the place."""
    other = random_scene(rng)
    choice = rng.randrange(5)
    if choice == 0:
        return replace(scene, agent=replace(scene.agent, number=other.agent.number))
    if choice == 1:
        kin = [kind for kind in KIN if KIN[kind] == KIN[scene.agent.kind]]
        return replace(scene, agent=replace(scene.agent, kind=rng.choice(kin)))
    if choice == 2 and scene.thing:
        return replace(scene, thing=rng.choice(ACTS[scene.act].things))
    if choice == 3 and scene.patient and other.patient:
        return replace(scene, patient=replace(scene.patient, number=other.patient.number))
    return replace(scene, place=other.place, place_property=scene.place_property if other.place else None)


def _two_details(scene: Scene, rng: random.Random) -> Scene:
    return _detail(_detail(scene, rng), rng)


def _two_important(scene: Scene, rng: random.Random) -> Scene:
    return _important(_important(scene, rng), rng)


def _negated(scene: Scene, _rng: random.Random) -> Scene:
    return replace(scene, negated=not scene.negated)


def _exchanged(scene: Scene, _rng: random.Random) -> Scene:
    return replace(scene, agent=scene.patient, patient=scene.agent) if scene.patient else scene


def _other_act(scene: Scene, rng: random.Random) -> Scene:
    other = random_scene(rng)
    patient = scene.patient if other.patient else None
    return replace(scene, act=other.act, thing=other.thing, patient=patient)


def _same_act(scene: Scene, rng: random.Random) -> Scene:
    other = random_scene(rng)
    return replace(other, act=scene.act, thing=scene.thing, patient=other.patient if scene.patient else None)


def _same_agent(scene: Scene, rng: random.Random) -> Scene:
    return replace(random_scene(rng), agent=scene.agent)


def _same_place(scene: Scene, rng: random.Random) -> Scene:
    return replace(random_scene(rng), place=scene.place, place_property=scene.place_property)


def _unrelated(_scene: Scene, rng: random.Random) -> Scene:
    return random_scene(rng)


_EDITS: dict[int, list[Callable[[Scene, random.Random], Scene]]] = {
    5: [_same],
    4: [_detail],
    3: [_important, _important, _two_details],
    2: [_two_important, _negated, _exchanged, _other_act],
    1: [_same_act, _same_agent, _same_place],
    0: [_unrelated],
}


def _number(scene: Scene, rng: random.Random) -> Scene:
    others = [number for number in NUMBERS if (number == "one") is (scene.agent.number == "one")]
    return replace(scene, agent=replace(scene.agent, number=rng.choice(others)))


EDITS: dict[str, Callable[[Scene, random.Random], Scene]] = {
    "detail": _detail,
    "number": _number,
    "exchanged roles": _exchanged,
    "negation": _negated,
    "other act": _other_act,
}
"""Kinds of edits for `edited_triples`."""


# Wordings


def word(scene: Scene, rng: random.Random) -> str:
    """A random wording of `scene`, in lower case, without a full stop."""
    verb = rng.choice(ACTS[scene.act].verbs)
    agent = _noun_phrase(scene.agent, rng)
    target, target_is_plural = "", False
    if scene.thing is not None:
        target, target_is_plural = rng.choice(THINGS[scene.thing]), scene.thing in PLURAL_THINGS
    elif scene.patient is not None:
        target, target_is_plural = _noun_phrase(scene.patient, rng), scene.patient.number != "one"
    agent_is_plural = scene.agent.number != "one"
    forms = ["progressive", "simple"] + ["passive"] * bool(target) + ["there"] * (not scene.negated)
    form = rng.choice(forms)
    if form == "passive":
        clause = f"{target} {_be(target_is_plural, scene.negated)} {_passive(verb, rng)} by {agent}"
    elif form == "there":
        clause = f"there {_be(agent_is_plural, False)} {agent} {verb.ing} {target}"
    elif form == "progressive":
        clause = f"{agent} {_be(agent_is_plural, scene.negated)} {verb.ing} {target}"
    else:
        clause = f"{agent} {_simple(verb, agent_is_plural, scene.negated)} {target}"
    return _with_circumstances(clause.strip(), scene, rng)


def _with_circumstances(clause: str, scene: Scene, rng: random.Random) -> str:
    """Add place and time in either order, one of them perhaps in front, and a frame."""
    phrases = []
    if scene.place is not None:
        preposition, noun = rng.choice(PLACES[scene.place])
        words = [rng.choice(PLACE_PROPERTIES[scene.place_property])] if scene.place_property else []
        phrases.append(f"{preposition} {_with_article([*words, noun])}")
    if scene.time is not None:
        phrases.append(rng.choice(TIMES[scene.time]))
    rng.shuffle(phrases)
    front = f"{phrases.pop()}, " if phrases and rng.random() < 0.3 else ""
    return rng.choice(FRAMES).format(front + " ".join([clause, *phrases]))


def _noun_phrase(actor: Actor, rng: random.Random) -> str:
    plural = actor.number != "one"
    words = [rng.choice(PROPERTIES[actor.property])] if actor.property else []
    words.append(rng.choice(NOUNS[actor.kind])[plural])
    if not plural:
        return _with_article(words)
    return " ".join([rng.choice(NUMBERS[actor.number]), *words])


def _with_article(words: list[str]) -> str:
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _be(plural: bool, negated: bool) -> str:
    return ("are" if plural else "is") + (" not" if negated else "")


def _simple(verb: Verb, plural: bool, negated: bool) -> str:
    if negated:
        return f"{'do' if plural else 'does'} not {verb.base}"
    return verb.base if plural else verb.third


def _passive(verb: Verb, rng: random.Random) -> str:
    return rng.choice(["", "being "]) + verb.participle
