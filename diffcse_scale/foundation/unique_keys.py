"""YAML and JSON in which a key that is given twice is an error: the plain readers let the last one win."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

import yaml

from diffcse_scale.foundation.errors import first_line, quoted


class DuplicateKey(ValueError):
    """Says which key is given twice."""


MOST_VALUES = 1_000_000  # that a YAML text may stand for; aliases of aliases would make any number of them


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value == "<<" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line
                again = f", again in line {line + 1}" if line else ""
                raise DuplicateKey(f"key {quoted(key.value)} is given twice{again}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 2024-02-28 for a date, 12:30 for 750, 010 for 8 and 1e-4 for a word: here they are text, text, 10 and a
# number
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp", _INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, lambda _, node: int(node.value))


def load_yaml(text: str) -> Any:
    """What `text` says, read with the safe loader; dates are text.

    Raises:
        yaml.YAMLError: malformed, nested too deeply, or aliases that stand for too much or for themselves.
        DuplicateKey: a key twice in one mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, DuplicateKey):
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except Exception as error:  # constructors fail in many ways: a number of too many digits, !!int of no number
        raise yaml.YAMLError(f"a value cannot be read ({first_line(error)})") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` stands for, each alias written out.

    Raises:
        yaml.YAMLError: too many, or it is a part of itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # until it is known: whoever meets it again meets it in itself
        parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] >= MOST_VALUES:
        raise yaml.YAMLError("its aliases stand for too many values, or for themselves")
    return known[id(node)]


def load_json(text: str) -> Any:
    """What `text` says.

    Raises:
        json.JSONDecodeError: malformed.
        DuplicateKey: a key twice in one object.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise DuplicateKey(f"key {quoted(key)} is given twice")
    return values
