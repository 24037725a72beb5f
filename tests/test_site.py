"""The site of the documentation: built without a warning, whole, found by its search, and read on a telephone."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import needs_browser, opened

ROOT = Path(__file__).parents[1]
NEEDED = ("furo", "myst_parser", "sphinx")
REFERENCE = ("diffcse_kernels", "diffcse_kernels.nn", "diffcse_kernels.gather", "diffcse_kernels.reference")
REFERENCE += ("diffcse_scale", "diffcse_scale.evaluation", "diffcse_scale.encoding", "diffcse_scale.export")
REFERENCE += ("diffcse_scale.training",)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in map(find_spec, NEEDED), reason="Sphinx and its theme, the extra `docs`, are not here"),
]


def arguments(output: Path) -> list[str]:
    """Those that `make docs` has, but for the folders."""
    (words,) = re.findall(r"^SPHINX := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    places = {"build/docs": str(output / "site"), "build/doctrees": str(output / "doctrees")}
    return [places.get(word, word) for word in shlex.split(words)]


def build(output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", *arguments(output), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what its building said."""
    output = tmp_path_factory.mktemp("docs")
    done = build(output)
    assert done.returncode == 0, done.stderr
    return output / "site", done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(built: tuple[Path, str]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where a server on this machine shows the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


class Read(HTMLParser):
    """Addresses and ids of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values["id"]} if values.get("id") else set()
        self.links += [value for name in ("href", "src") if (value := values.get(name))]


def broken_links(site: Path) -> list[str]:
    """Links within the site to a file or a place on a page that is not there."""
    read = {page: Read(page) for page in pages(site)}
    found = []
    for page, content in read.items():
        for link in content.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = target.is_file() or (target / "index.html").is_file()
            if not there or (parts.fragment and target in read and unquote(parts.fragment) not in read[target].ids):
                found.append(f"{page.relative_to(site)}: {link}")
    return found


def test_it_is_built_without_a_word(built: tuple[Path, str]):
    assert built[1] == ""


def test_a_broken_link_fails_the_build(tmp_path: Path):
    """In a copy of three pages, without the reference, which takes long to import."""
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    (source / "README.md").write_text("# First\n\n[second](docs/second.md#a-place)\n")
    second = source / "docs" / "second.md"
    second.write_text("# Second\n\n## A place\n")
    (source / "docs" / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    few = 'SECTIONS = {"All": ["docs/second"]}'
    conf = re.sub(r"^SECTIONS = \{.*?^\}", few, (ROOT / "docs" / "conf.py").read_text(), flags=re.DOTALL | re.MULTILINE)
    (source / "docs" / "conf.py").write_text(conf)
    command = [sys.executable, "-m", "sphinx", *arguments(tmp_path)]
    codes = []
    for heading in ("## A place\n", "## Another place\n"):
        second.write_text(f"# Second\n\n{heading}")
        done = subprocess.run(command, cwd=source, capture_output=True, text=True)
        codes.append(done.returncode)
    assert codes[0] == 0 and codes[1] != 0 and "a-place" in done.stderr


def test_every_page_of_the_documentation_is_there(site: Path):
    sources = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    assert [page for page in sources if not (site / page.relative_to(ROOT)).with_suffix(".html").is_file()] == []
    assert (site / "index.html").read_text() == (site / "README.html").read_text()


def test_every_link_within_the_site_leads_to_a_page_and_a_place_on_it(site: Path):
    assert len(pages(site)) > 60
    assert broken_links(site) == []


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#here"></a><a href="#here"></a>')
    (tmp_path / "b.html").write_text('<a href="a.html#there"></a><a href="c.html"></a><img src="d.png">')
    found = ["a.html: b.html#here", "b.html: a.html#there", "b.html: c.html", "b.html: d.png"]
    assert broken_links(tmp_path) == found


def test_every_public_class_and_function_is_in_the_reference(site: Path):
    ids = set().union(*(Read(page).ids for page in (site / "docs" / "api").glob("*.html")))
    found = [(module, name) for module in map(import_module, REFERENCE) for name in module.__all__]
    names = [
        f"{module.__name__}.{name}"
        for module, name in found
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
    ]
    assert len(names) > 30 and [name for name in names if name not in ids] == []


def test_docstrings_and_fields_of_the_recipe_are_shown(site: Path):
    kernels, trainer = (re.sub(r"<[^>]+>", "", (site / f"docs/api/{name}.html").read_text()) for name in NAMES)
    assert "F.cross_entropy(F.normalize(queries)" in kernels
    assert "The backbone to train and keep" in trainer  # the description of model.encoder


NAMES = ("kernels", "trainer")


# All pages in frames of one width: a page may not be wider than its frame, and what is wider has to lie in a box that
# scrolls.
LOOK = """
<script>
addEventListener("load", () => {
  const told = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement, width = frame.contentWindow.innerWidth;
    const tell = what => told.push([frame.getAttribute("src"), what]);
    if (root.scrollWidth > root.clientWidth) tell("page of " + root.scrollWidth);
    if (!page.querySelector("article h1, #search-results, .genindextable, .modindextable")) tell("no content");
    for (const element of page.querySelectorAll("article *")) {
      if (!element.getClientRects().length || element.getBoundingClientRect().right <= width + 1) continue;
      let box = element.parentElement;
      while (box && !["auto", "scroll"].includes(frame.contentWindow.getComputedStyle(box).overflowX))
        box = box.parentElement;
      if (!box) tell(element.tagName + " " + element.className);
    }
  }
  document.body.append("FOUND" + JSON.stringify([document.querySelectorAll("iframe").length, told]) + "END");
});
</script>"""


def too_wide(site: Path, address: str, width: int, addresses: list[str], folder: Path) -> list[list[str]]:
    """The pages, with what is wider than they may be."""
    frames = "".join(
        f"<iframe style='width:{width}px;height:900px;border:0' src='{page}'></iframe>" for page in addresses
    )
    (site / "frames.html").write_text(f"<!doctype html><body>{frames}{LOOK}")
    try:
        document, _, _ = opened(f"{address}/frames.html", folder, "window-size=1400,1000")
    finally:
        (site / "frames.html").unlink()
    found = re.search(r"FOUND(\[.*\])END", document)
    assert found is not None, document[-2000:]
    number, told = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert number == len(addresses)
    return told


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(site: Path, address: str, tmp_path: Path, width: int):
    addresses = [str(page.relative_to(site)) for page in pages(site)]
    for first in range(0, len(addresses), 16):
        assert too_wide(site, address, width, addresses[first : first + 16], tmp_path) == []


@needs_browser
def test_what_is_too_wide_is_noticed(site: Path, address: str, tmp_path: Path):
    wide = "<div style='width:600px'>wide</div>"
    page = "<body><article><h1>One</h1>{}</article>"
    (site / "wide.html").write_text(page.format(wide))
    (site / "boxed.html").write_text(page.format(f"<div style='overflow-x:auto'>{wide}</div>"))
    (site / "cut.html").write_text(page.format(f"<div style='overflow-x:hidden'>{wide}</div>"))
    try:
        told = too_wide(site, address, 390, ["wide.html", "boxed.html", "cut.html"], tmp_path)
    finally:
        for name in ("wide", "boxed", "cut"):
            (site / f"{name}.html").unlink()
    assert {name for name, _ in told} == {"wide.html", "cut.html"}


def search(address: str, word: str, folder: Path) -> list[str]:
    """What the site's own search finds, the first first."""
    document, console, asked = opened(f"{address}/search.html?q={word}", folder, "virtual-time-budget=20000")
    assert not any("Uncaught" in line for line in console), console
    assert all(one.startswith(address) for one in asked), asked  # nothing is taken from elsewhere
    results = document.partition('id="search-results"')[2]
    return re.findall(r'<a href="([^"]+)"', results.partition("</ul>")[0])


@needs_browser
def test_the_search_finds_info_nce(address: str, tmp_path: Path):
    found = search(address, "info_nce", tmp_path)
    assert "docs/api/kernels.html#diffcse_kernels.info_nce" in found
    assert any(link.startswith("docs/kernels.html") for link in found)
    assert search(address, "quagmirean", tmp_path) == []
