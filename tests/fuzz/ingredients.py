"""What inputs are made of: text, numbers, JSON and files as the world has them, and damage to what was whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
NASTY_TEXT = [
    "", " ", "\u00a0", "a", "NA", "null", "nan", "#", "\ufeffmark", "\u200b", "e\u0301" * 30,
    "\U0001f469\u200d\U0001f4bb", "第四句",
    "مرحبا", '"', '""', '"unclosed', "'", "a,b", "a;b", "a\tb", ",", ";;;", "\\", "\\n", "{", "[1]", "=1+1", "-",
    "<b>&amp;",
    "%s{0}", "\x01\x02", "\x7f", "word " * 400, "x" * 3_000, "\ufffd", "İ", "ß", "\u202eabc", "..", "/", "~", "$HOME",
    "1e5",
    "A first one.", "The river watched the bridge.", "the river watched the bridge.",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(NASTY_TEXT),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text("ab ,;\t\"'", max_size=12),
)
LINE = TEXT.map(lambda text: text.translate({ord(end): " " for end in LINE_ENDS}))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 100),
    st.sampled_from([10**30, -(10**400), 2**31, 2**63, 2**64]),
    st.floats(),
    TEXT,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
# files that are nothing of what is asked for
FOREIGN = [
    b"", b"\0", b"\xff\xfe\0\0", b"\n" * 50, b"null", b"[]", b"{}", b"0", b'""', b"NaN", b"[" * 100_000,
    b'{"a":' * 50_000,
    b"{" * 3_000, b"- " * 3_000, b'{"a": 1, "a": 2}', b"\x1f\x8b\x08\0\0", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\0",
    b"7z\xbc\xaf\x27\x1c",
    b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd", b"PAR1", b"PAR1PAR1", b"%PDF-1.7", b"<html></html>",
    b"\x80\x04\x95\0\0\0\0",
    b"a: &a [*a]\n", b"\xef\xbb\xbf", b"\xff" * 100, "ü".encode("latin-1") * 20, "wide text\n".encode("utf-16"),
    b"\x93NUMPY\x01\0",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file that was whole: cut, changed, with bytes more or less, or another file under its name."""
    place = draw(st.integers(0, len(whole)))
    other = draw(st.integers(0, len(whole)))
    first, last = min(place, other), max(place, other)
    more = draw(st.binary(max_size=8) | st.sampled_from(FOREIGN))
    byte = bytes([draw(st.integers(0, 255))])
    results = [
        whole[:place],
        whole[place:],
        whole[:first] + whole[last:],
        whole[:first] + more + whole[first:],
        whole[:first] + more + whole[first + len(more) :],
        whole[:first] + byte + whole[first + 1 :],
        whole + whole,
        more,
    ]
    return draw(st.sampled_from(results))


@st.composite
def damaged_json(draw: st.DrawFn, whole: Any) -> bytes:
    """JSON of which one value, somewhere inside, is another one, or is missing."""
    value: Any = json.loads(json.dumps(whole))
    inside, key = {"": value}, ""
    node: Any = inside
    while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
        node = node[key]
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
    if draw(st.booleans()) and node is not inside:
        del node[key]
    else:
        node[key] = draw(VALUES)
    return json.dumps(inside[""], ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def damaged_folder(draw: st.DrawFn, whole: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a folder, one of them damaged, or missing, or with another's content."""
    files = dict(whole)
    name = draw(st.sampled_from(sorted(files)))
    how = draw(st.sampled_from(["bytes", "json", "missing", "another"]))
    if how == "missing":
        del files[name]
    elif how == "another":
        files[name] = whole[draw(st.sampled_from(sorted(files)))]
    elif how == "json" and name.endswith((".json", ".jsonl")):
        first, _, rest = whole[name].partition(b"\n") if name.endswith(".jsonl") else (whole[name], b"", b"")
        files[name] = draw(damaged_json(json.loads(first))) + (b"\n" + rest if rest else b"")
    else:
        files[name] = draw(damaged(whole[name]))
    return files
