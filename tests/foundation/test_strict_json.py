"""What is written is JSON that every program reads: it has no NaN."""

from __future__ import annotations

import json
import math
import re

from diffcse_scale.foundation.strict_json import to_json
from tests.support.launch import ROOT

# fingerprints are made of JSON, and not read again
EXCEPT = {"foundation/strict_json.py", "text/cache.py"}


def test_what_is_not_finite_is_null_however_deep_it_lies() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, {"c": math.nan})], "d": True, "e": "NaN", "f": None}
    expected = {"a": None, "b": [1.5, None, [None, {"c": None}]], "d": True, "e": "NaN", "f": None}

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(to_json(value), parse_constant=refuse) == expected
    assert math.isnan(value["a"])  # type: ignore[arg-type]


def test_it_looks_as_json_does() -> None:
    value = {"b": [1, 2.5], "a": "\u00e9"}
    assert to_json(value) == json.dumps(value)
    assert to_json(value, indent=1, sort_keys=True) == json.dumps(value, indent=1, sort_keys=True)


def test_nothing_else_in_the_package_writes_json() -> None:
    package = ROOT / "diffcse_scale"
    files = {str(file.relative_to(package)): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    assert {name for name, text in files.items() if re.search(r"json\.dumps?\b", text)} == EXCEPT
