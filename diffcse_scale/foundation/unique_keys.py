"""YAML and JSON in which a key that is given twice is an error: the plain readers let the last one win."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

from diffcse_scale.foundation.errors import shown


class DuplicateKey(ValueError):
    """Says which key is given twice."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value == "<<" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line
                again = f", again in line {line + 1}" if line else ""
                raise DuplicateKey(f"key {shown(key.value)} is given twice{again}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """What `text` says, read with the safe loader.

    Raises:
        yaml.YAMLError: malformed.
        DuplicateKey: a key twice in one mapping.
    """
    return yaml.load(text, _Loader)


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
        raise DuplicateKey(f"key {shown(key)} is given twice")
    return values
