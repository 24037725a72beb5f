"""YAML and JSON as users write them: what a plain reader takes for something else, and what it never ends with."""

from __future__ import annotations

import pytest
import yaml

from diffcse_scale.foundation.unique_keys import DuplicateKey, load_json, load_yaml
from tests.support.files import yaml_bomb


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-02-28", "2024-02-28"),
        ("2024-02-30", "2024-02-30"),
        ("2024-02-30 10:00:00", "2024-02-30 10:00:00"),
        ("12:30", "12:30"),
        ("010", 10),
        ("1_000", 1000),
        ("-3", -3),
        ("0x1f", "0x1f"),
        ("'64'", "64"),
        ("'1e-4'", "1e-4"),
        ("1e-4", 1e-4),
        ("-1E+5", -1e5),
        (".5e1", 5.0),
        ("1.5", 1.5),
        ("e5", "e5"),
        ("1e", "1e"),
        (".inf", float("inf")),
        ("~", None),
        ("", None),
        ("yes", True),
    ],
)
def test_a_word_of_yaml_is_what_its_writer_meant(text: str, value: object) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (yaml_bomb(9), "aliases stand for too many values"),
        ("a: &a [*a]", "or for themselves"),
        ("a: &a {b: {c: *a}}", "or for themselves"),
        ("[" * 20_000, "nested too deeply"),
        ("9" * 5000, "cannot be read"),
        ("!!int ''", "cannot be read"),
        ("!!bool maybe", "cannot be read"),
        ("!!timestamp soon", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("{[1]: 2}", "unhashable key"),
    ],
)
def test_what_yaml_cannot_hold_is_one_error(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        load_yaml(text)


def test_aliases_that_stand_for_little_are_read() -> None:
    assert load_yaml("a: &a [x, y]\nb: [*a, *a]")["b"] == [["x", "y"]] * 2
    assert len(load_yaml(yaml_bomb(3))["a2"]) == 9


def test_a_key_given_twice_is_cut_in_the_message() -> None:
    for read, text in ((load_yaml, "{? k: 1, ? k: 2}"), (load_json, '{"k": 1, "k": 2}')):
        with pytest.raises(DuplicateKey) as error:
            read(text.replace("k", "k" * 10_000))
        assert len(str(error.value)) < 150
