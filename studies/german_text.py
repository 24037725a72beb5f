"""German sentences and graded pairs from the HTML manuals in Debian packages.

    python studies/german_text.py FOLDER    # writes german.txt, german_dev.tsv and german_test.tsv

Every tenth page is set aside: its sentences do not go into the text, but its paragraphs give the pairs. Two consecutive
sentences have score 1; the first of them with a sentence of another page has score 0. One half of the pairs is for
choosing a checkpoint, the other half for the test.
"""

from __future__ import annotations

import html.parser
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

BLOCKS = {"p", "li", "td", "th", "dd", "dt", "div", "h1", "h2", "h3", "h4", "pre", "table", "body", "header", "footer"}
UNREAD = {"script", "style", "pre", "title", "header", "footer", "nav"}
END_OF_SENTENCE = re.compile(r"(?<=[a-zäöüß)\"“][.!?]) +(?=[A-ZÄÖÜ„\"])")
SENTENCE = re.compile(r"[A-ZÄÖÜ„\"].*[.!?]")
# nearly every German sentence has one of these, and none is an English word
GERMAN = re.compile(
    r"\b(der|das|und|ist|sind|ein|eine|einen|einer|nicht|mit|für|von|zu|auf|wird|werden|Sie|dem|den|im)\b"
)
WORDS = range(5, 41)
PAIRS = 500  # with each score


class Paragraphs(html.parser.HTMLParser):
    """Collects the texts between the tags that begin a block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = [""]
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._unread += tag in UNREAD
        if tag in BLOCKS:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._unread -= tag in UNREAD
        if tag in BLOCKS:
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self._unread <= 0:
            self.found[-1] += data


def sentences(paragraph: str) -> list[str]:
    """The parts of a paragraph that look like German sentences."""
    parts = END_OF_SENTENCE.split(" ".join(paragraph.split()))
    return [part for part in parts if SENTENCE.fullmatch(part) and len(part.split()) in WORDS and GERMAN.search(part)]


def pages(folder: Path) -> Iterator[list[list[str]]]:
    """Yield each page as paragraphs of sentences, without paragraphs that were seen before."""
    seen = set()
    for file in sorted(folder.rglob("*.html")):
        if not {"de", "de-DE"} & {*file.parts, *file.name.split(".")}:
            continue
        reader = Paragraphs()
        reader.feed(file.read_text(encoding="utf-8", errors="replace"))
        paragraphs = [found for text in reader.found if (found := sentences(text)) and tuple(found) not in seen]
        seen.update(map(tuple, paragraphs))
        yield paragraphs


def main(folder: Path) -> None:
    text: list[str] = []
    aside: list[list[list[str]]] = []
    for number, page in enumerate(pages(folder)):
        if number % 10:
            text += [sentence for paragraph in page for sentence in paragraph]
        else:
            aside.append(page)
    draw = random.Random(42)
    neighbours = [(place, *pair[:2]) for place, page in enumerate(aside) for pair in page if len(pair) > 1]
    chosen = draw.sample(neighbours, PAIRS)
    paired = {sentence for _, *pair in chosen for sentence in pair}
    text = [sentence for sentence in dict.fromkeys(text) if sentence not in paired]
    rows = [f"1\t{first}\t{second}" for _, first, second in chosen]
    for place, first, _ in chosen:
        rows.append(f"0\t{first}\t{draw.choice([second for other, second, _ in neighbours if other != place])}")
    Path("german.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    for name, half in (("dev", rows[::2]), ("test", rows[1::2])):
        Path(f"german_{name}.tsv").write_text("\n".join(half) + "\n", encoding="utf-8")
    print(f"{len(text):,} sentences, {len(rows):,} pairs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
