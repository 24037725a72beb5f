"""Reading a page as a browser does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


@dataclass
class Page(HTMLParser):
    """What is in an HTML page.

    Attributes:
        tags: name and attributes of each, in order.
        text: all that is read, white space joined.
        scripts: the content of each script.
        styles: that of the style sheets.
    """

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.inside = ""

    @classmethod
    def of(cls, file: Path) -> Page:
        page = cls()
        page.feed(file.read_text(encoding="utf-8"))
        return page

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles, "": self.words}[self.inside].append(data)

    def charts(self) -> dict[str, list[list[Any]]]:
        """Metric to the points (step, x, y, text) of each of its lines."""
        names = [attributes["data-metric"] for _, attributes in self.tags if "data-metric" in attributes]
        return dict(zip(names, map(json.loads, self.scripts[:-1]), strict=True))
