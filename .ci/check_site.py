"""Checks a documentation site that mkdocs wrote: `python .ci/check_site.py site`. Needs nothing but Python.

Its pages load nothing from the web, every link and anchor within it leads somewhere, and the API reference has all that
the package exports. (`mkdocs build --strict` has checked the links of the Markdown, not those of the HTML around it.)
"""

import ast
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
# What a browser loads by itself, in contrast to a link that a reader follows.
LOADED = {"script": ("src",), "link": ("href",), "img": ("src", "srcset"), "source": ("src", "srcset")}
LOADED |= {"iframe": ("src",), "video": ("src", "poster"), "audio": ("src",), "object": ("data",), "embed": ("src",)}
FROM_THE_WEB = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
STYLE_FROM_THE_WEB = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')]*", re.IGNORECASE)


class PageParser(HTMLParser):
    """Of one page: what it loads, where it links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.diagrams = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loaded += [given[name] for name in LOADED.get(tag, ()) if name in given]
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        # The theme's script would fetch a library to draw them.
        self.diagrams |= "mermaid" in given.get("class", "").split()


@cache
def parsed(page: Path) -> PageParser:
    parser = PageParser()
    parser.feed(page.read_text())
    return parser


def faults(folder: Path) -> list[str]:
    """Each with the page it is on."""
    pages = sorted(folder.rglob("*.html"))
    found = [f"{page}: loads {url}" for page in pages for url in parsed(page).loaded if FROM_THE_WEB.match(url)]
    found += [f"{page}: a diagram" for page in pages if parsed(page).diagrams]
    for styled in (*pages, *sorted(folder.rglob("*.css")), *sorted(folder.rglob("*.svg"))):
        found += [f"{styled}: a style loads {url}" for url in STYLE_FROM_THE_WEB.findall(styled.read_text())]
    # Links of the page that a server shows where there is none are from its root.
    found += [f"{page}: {link}" for page in pages if page.name != "404.html" for link in dead_links(page)]
    exported = [name for name in exported_names() if name not in parsed(folder / "api" / "index.html").anchors]
    return found + [f"the API reference lacks {name}" for name in exported]


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in parsed(page).links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = (page.parent / unquote(url.path)).resolve() if url.path else page
        target = target / "index.html" if target.is_dir() else target
        anchors = {"", *parsed(target).anchors} if target.is_file() and target.suffix == ".html" else {url.fragment}
        known = target.is_file() and unquote(url.fragment) in anchors
        dead += [] if known else [link]
    return dead


def exported_names() -> list[str]:
    """What `import p2o` exports, but for its version."""
    for statement in ast.parse((ROOT / "src" / "p2o" / "__init__.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return [f"p2o.{name}" for name in ast.literal_eval(statement.value) if name != "__version__"]
    raise AssertionError("p2o/__init__.py has no __all__")


if __name__ == "__main__":
    if wrong := faults(Path(sys.argv[1]).resolve()):
        sys.exit("\n".join(wrong))
    print("The site loads nothing from the web, its links lead somewhere, and its API reference is complete.")
