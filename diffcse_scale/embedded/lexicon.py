"""The words of the grammar: every concept with its expressions.

Only three words express two concepts each: "play" (music, games), "road" and "wood" (a thing, a place).
"""

from __future__ import annotations

from dataclasses import dataclass

# number -> expressions; the first is the name
NUMBERS: dict[str, list[str]] = {
    "one": ["a"],
    "two": ["two", "a pair of"],
    "three": ["three"],
    "four": ["four"],
    "several": ["several", "some"],
    "many": ["many", "numerous"],
}

# kind -> (kin, [(singular, plural)]); kinds of the same kin are similar
_KINDS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "child": ("young person", [("child", "children"), ("kid", "kids")]),
    "boy": ("young person", [("boy", "boys")]),
    "girl": ("young person", [("girl", "girls")]),
    "baby": ("young person", [("baby", "babies"), ("infant", "infants")]),
    "man": ("adult", [("man", "men")]),
    "woman": ("adult", [("woman", "women"), ("lady", "ladies")]),
    "teacher": ("scholar", [("teacher", "teachers")]),
    "student": ("scholar", [("student", "students")]),
    "scientist": ("scholar", [("scientist", "scientists"), ("researcher", "researchers")]),
    "doctor": ("healer", [("doctor", "doctors"), ("physician", "physicians")]),
    "nurse": ("healer", [("nurse", "nurses")]),
    "soldier": ("guard", [("soldier", "soldiers")]),
    "policeman": ("guard", [("police officer", "police officers"), ("policeman", "policemen")]),
    "farmer": ("worker", [("farmer", "farmers")]),
    "hunter": ("worker", [("hunter", "hunters")]),
    "worker": ("worker", [("worker", "workers"), ("labourer", "labourers")]),
    "painter": ("artist", [("painter", "painters")]),
    "musician": ("artist", [("musician", "musicians")]),
    "actor": ("artist", [("actor", "actors")]),
    "king": ("noble", [("king", "kings"), ("monarch", "monarchs")]),
    "prince": ("noble", [("prince", "princes")]),
    "tourist": ("visitor", [("tourist", "tourists"), ("visitor", "visitors")]),
    "dog": ("pet", [("dog", "dogs"), ("hound", "hounds")]),
    "cat": ("pet", [("cat", "cats")]),
    "horse": ("farm animal", [("horse", "horses")]),
    "cow": ("farm animal", [("cow", "cows")]),
    "sheep": ("farm animal", [("sheep", "sheep")]),
    "goat": ("farm animal", [("goat", "goats")]),
    "bear": ("wild animal", [("bear", "bears")]),
    "wolf": ("wild animal", [("wolf", "wolves")]),
    "lion": ("wild animal", [("lion", "lions")]),
    "snake": ("wild animal", [("snake", "snakes")]),
    "bird": ("wild animal", [("bird", "birds")]),
}
NOUNS: dict[str, list[tuple[str, str]]] = {kind: nouns for kind, (_, nouns) in _KINDS.items()}
KIN: dict[str, str] = {kind: kin for kind, (kin, _) in _KINDS.items()}
ANIMALS: list[str] = [kind for kind, kin in KIN.items() if kin in ("pet", "farm animal", "wild animal")]
PEOPLE: list[str] = [kind for kind in KIN if kind not in ANIMALS]

PROPERTIES: dict[str, list[str]] = {
    "young": ["young"],
    "old": ["old", "elderly"],
    "tall": ["tall"],
    "small": ["small", "little"],
    "happy": ["happy", "pleased"],
    "sad": ["sad"],
    "strong": ["strong", "powerful"],
    "tired": ["tired", "exhausted"],
    "brave": ["brave", "heroic"],
    "quiet": ["quiet", "silent"],
    "famous": ["famous", "celebrated"],
    "hungry": ["hungry"],
    "angry": ["angry", "furious"],
    "beautiful": ["beautiful"],
}

# thing -> noun phrases
THINGS: dict[str, list[str]] = {
    "guitar": ["a guitar"],
    "piano": ["a piano"],
    "violin": ["a violin"],
    "drums": ["drums"],
    "football": ["football", "soccer"],
    "tennis": ["tennis"],
    "basketball": ["basketball"],
    "chess": ["chess"],
    "cards": ["cards"],
    "apple": ["an apple"],
    "bread": ["bread"],
    "fish": ["fish"],
    "cake": ["a cake"],
    "rice": ["rice"],
    "fruit": ["fruit"],
    "soup": ["soup"],
    "milk": ["milk"],
    "tea": ["tea"],
    "coffee": ["coffee"],
    "wine": ["wine"],
    "water": ["water"],
    "bicycle": ["a bicycle", "a bike"],
    "train": ["a train"],
    "car": ["a car", "a motor car"],
    "truck": ["a truck"],
    "bus": ["a bus"],
    "book": ["a book"],
    "newspaper": ["a newspaper", "a paper"],
    "letter": ["a letter"],
    "poem": ["a poem", "some verse"],
    "story": ["a story", "a tale"],
    "song": ["a song", "a tune"],
    "map": ["a map"],
    "picture": ["a picture", "an image"],
    "house": ["a house", "a home"],
    "wall": ["a wall"],
    "boat": ["a boat", "a small ship"],
    "tower": ["a tower"],
    "road": ["a road"],
    "roof": ["a roof"],
    "window": ["a window"],
    "door": ["a door"],
    "gate": ["a gate"],
    "box": ["a box"],
    "bag": ["a bag", "a sack"],
    "stone": ["a stone", "a rock"],
    "ball": ["a ball"],
    "hat": ["a hat", "a cap"],
    "flag": ["a flag", "a banner"],
    "tree": ["a tree"],
    "wood": ["wood", "timber"],
    "meat": ["meat"],
    "clothes": ["clothes"],
    "shoes": ["shoes"],
    "flowers": ["flowers"],
    "film": ["a film", "a movie"],
    "match": ["a match"],
    "clock": ["a clock"],
    "computer": ["a computer"],
    "camera": ["a camera"],
}
PLURAL_THINGS = {"drums", "cards", "clothes", "shoes", "flowers"}


@dataclass(frozen=True)
class Verb:
    """Forms of a verb: they play, it plays, playing, it is played."""

    base: str
    third: str
    ing: str
    participle: str


@dataclass(frozen=True)
class Act:
    """An action on a thing, on an actor, or without an object."""

    name: str
    verbs: tuple[Verb, ...]
    things: tuple[str, ...] = ()
    on_actors: bool = False
    by_people: bool = False


def _act(name: str, verbs: str, things: str = "", *, on_actors: bool = False, by_people: bool = False) -> Act:
    forms = tuple(Verb(*verb.split("/")) for verb in verbs.split())
    return Act(name, forms, tuple(things.split()), on_actors, by_people or bool(things))


ACTS: dict[str, Act] = {
    act.name: act
    for act in (
        _act("perform", "play/plays/playing/played", "guitar piano violin drums"),
        _act("play", "play/plays/playing/played", "football tennis basketball chess cards"),
        _act(
            "eat",
            "eat/eats/eating/eaten consume/consumes/consuming/consumed",
            "apple bread fish cake rice soup meat",
        ),
        _act("drink", "drink/drinks/drinking/drunk", "milk tea coffee wine water"),
        _act("cook", "cook/cooks/cooking/cooked prepare/prepares/preparing/prepared", "fish rice soup meat"),
        _act("drive", "drive/drives/driving/driven", "car truck bus"),
        _act("ride", "ride/rides/riding/ridden", "bicycle train bus"),
        _act("read", "read/reads/reading/read study/studies/studying/studied", "book newspaper letter poem map"),
        _act(
            "write",
            "write/writes/writing/written compose/composes/composing/composed",
            "letter poem story song book",
        ),
        _act("draw", "draw/draws/drawing/drawn", "map picture tree flowers"),
        _act("paint", "paint/paints/painting/painted", "wall door boat house picture"),
        _act(
            "build",
            "build/builds/building/built construct/constructs/constructing/constructed",
            "house wall boat tower road",
        ),
        _act(
            "repair",
            "repair/repairs/repairing/repaired fix/fixes/fixing/fixed",
            "roof car bicycle clock computer boat",
        ),
        _act(
            "wash",
            "wash/washes/washing/washed clean/cleans/cleaning/cleaned",
            "car window clothes shoes truck",
        ),
        _act(
            "carry",
            "carry/carries/carrying/carried transport/transports/transporting/transported",
            "box bag stone flag wood flowers",
        ),
        _act("throw", "throw/throws/throwing/thrown cast/casts/casting/cast", "ball stone hat bag"),
        _act("open", "open/opens/opening/opened", "window door gate box letter"),
        _act("close", "close/closes/closing/closed shut/shuts/shutting/shut", "window door gate box"),
        _act("cut", "cut/cuts/cutting/cut", "tree wood bread meat cake"),
        _act(
            "buy",
            "buy/buys/buying/bought purchase/purchases/purchasing/purchased",
            "flowers fruit shoes camera newspaper hat",
        ),
        _act("sell", "sell/sells/selling/sold", "flowers fruit shoes bread fish wine"),
        _act(
            "find",
            "find/finds/finding/found discover/discovers/discovering/discovered",
            "camera bicycle bag car wine",
        ),
        _act("watch", "watch/watches/watching/watched view/views/viewing/viewed", "film match"),
        _act("chase", "chase/chases/chasing/chased pursue/pursues/pursuing/pursued", on_actors=True),
        _act(
            "attack",
            "attack/attacks/attacking/attacked assault/assaults/assaulting/assaulted",
            on_actors=True,
        ),
        _act("follow", "follow/follows/following/followed", on_actors=True),
        _act("lead", "lead/leads/leading/led guide/guides/guiding/guided", on_actors=True),
        _act(
            "help",
            "help/helps/helping/helped assist/assists/assisting/assisted",
            on_actors=True,
            by_people=True,
        ),
        _act("meet", "meet/meets/meeting/met encounter/encounters/encountering/encountered", on_actors=True),
        _act("feed", "feed/feeds/feeding/fed", on_actors=True, by_people=True),
        _act(
            "protect",
            "protect/protects/protecting/protected defend/defends/defending/defended",
            on_actors=True,
        ),
        _act("walk", "walk/walks/walking/walked"),
        _act("run", "run/runs/running/run race/races/racing/raced"),
        _act("swim", "swim/swims/swimming/swum"),
        _act("jump", "jump/jumps/jumping/jumped leap/leaps/leaping/leapt"),
        _act("sleep", "sleep/sleeps/sleeping/slept rest/rests/resting/rested"),
        _act("dance", "dance/dances/dancing/danced", by_people=True),
        _act("sing", "sing/sings/singing/sung", by_people=True),
        _act("talk", "talk/talks/talking/talked speak/speaks/speaking/spoken", by_people=True),
        _act("work", "work/works/working/worked", by_people=True),
        _act("travel", "travel/travels/travelling/travelled"),
        _act("wait", "wait/waits/waiting/waited"),
        _act("pray", "pray/prays/praying/prayed", by_people=True),
    )
}

# place -> (preposition, noun), so that article and property fit in between: "in a large park"
PLACES: dict[str, list[tuple[str, str]]] = {
    "park": [("in", "park")],
    "garden": [("in", "garden")],
    "beach": [("on", "beach"), ("at", "beach")],
    "forest": [("in", "forest"), ("in", "wood")],
    "street": [("on", "street"), ("on", "road")],
    "market": [("at", "market"), ("in", "market")],
    "office": [("in", "office"), ("at", "office")],
    "school": [("at", "school"), ("in", "school")],
    "river": [("near", "river"), ("by", "river")],
    "lake": [("near", "lake"), ("by", "lake")],
    "field": [("in", "field")],
    "bridge": [("on", "bridge")],
    "station": [("at", "station"), ("in", "station")],
    "church": [("in", "church")],
    "village": [("in", "village")],
    "city": [("in", "city")],
    "mountain": [("on", "mountain"), ("on", "hill")],
    "museum": [("in", "museum"), ("at", "museum")],
    "hospital": [("in", "hospital"), ("at", "hospital")],
    "castle": [("in", "castle"), ("in", "fortress")],
    "island": [("on", "island")],
    "library": [("in", "library")],
    "restaurant": [("in", "restaurant"), ("at", "restaurant")],
    "stadium": [("in", "stadium"), ("at", "stadium")],
}
PLACE_PROPERTIES: dict[str, list[str]] = {
    "large": ["large", "big", "huge"],
    "narrow": ["narrow"],
    "crowded": ["crowded", "busy"],
    "ancient": ["ancient"],
    "dark": ["dark"],
    "remote": ["remote", "distant"],
    "modern": ["modern", "new"],
}

# time or weather -> phrases
TIMES: dict[str, list[str]] = {
    "morning": ["in the morning", "before noon"],
    "noon": ["at noon", "at midday"],
    "evening": ["in the evening", "at sunset"],
    "night": ["at night", "after dark"],
    "summer": ["in summer", "during the summer"],
    "winter": ["in winter", "during the winter"],
    "sunday": ["on sunday"],
    "friday": ["on friday"],
    "rain": ["in the rain", "in rainy weather"],
    "snow": ["in the snow"],
    "storm": ["in a storm", "during a storm"],
    "sunshine": ["in the sun", "under a clear sky"],
}

# phrases of captions that add no meaning; {} is the clause
FRAMES: list[str] = [
    "{}",
    "{}",
    "{}",
    "in this picture, {}",
    "this is a picture in which {}",
    "the photograph shows that {}",
    "as you can see, {}",
    "here we can see that {}",
    "it seems that {}",
    "at the time of the photograph, {}",
    "one can see that {} here",
    "this is a scene where {}",
]
