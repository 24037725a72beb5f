"""Reads YAML and JSON and refuses duplicate keys. The standard readers silently take the last one."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

import yaml

from diffcse_scale.foundation.errors import first_line, quoted


class DuplicateKey(ValueError):
    """A key is given twice; the message says which."""


MOST_VALUES = 1_000_000  # values that a YAML text may expand to; nested aliases could expand without limit


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


# YAML 1.1 reads 2024-02-28 as a date, 12:30 as 750, 010 as 8 and 1e-4 as text. Here they are text, text, 10 and a
# number.
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
    """Parse YAML with the safe loader. Dates stay text.

    Raises:
        yaml.YAMLError: the text is malformed or nested too deeply, or its aliases expand too far or to themselves.
        DuplicateKey: a mapping has a key twice.
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
    except Exception as error:  # constructors fail in many ways: too many digits, !!int of something else
        raise yaml.YAMLError(f"a value cannot be read ({first_line(error)})") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values that `node` expands to, with every alias written out.

    Raises:
        yaml.YAMLError: there are too many values, or the node contains itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # placeholder: meeting it during the count means that the node contains itself
        parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] >= MOST_VALUES:
        raise yaml.YAMLError("its aliases stand for too many values, or for themselves")
    return known[id(node)]


def load_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: the text is malformed.
        DuplicateKey: an object has a key twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise DuplicateKey(f"key {quoted(key)} is given twice")
    return values
