"""A hook of mkdocs: links from docs/ to files outside it, such as `../src/p2o/trainer.py`, work on the site as well.

On GitHub such a link shows the file. Here each file that is linked gets a page of its own below `repository/`: Markdown
as it reads, anything else as code; and a folder its README, or else a list of its files. So the site needs neither a
network nor the address of a repository, and mkdocs checks these links and their anchors like all others.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FOLDER = "repository"
# Code is matched first, so that nothing in it is taken for a link.
LINK = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)", re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every path outside docs/ that a page links to, and for those that these link to."""
    todo = [file.src_uri for file in files.documentation_pages()]
    while todo:
        page = todo.pop()
        markdown = files.src_uris[page].content_string
        for path in links(markdown, repository_path(page)):
            if (uri := site_path(path)) not in files.src_uris:
                files.append(File.generated(config, uri, content=content(path), inclusion=InclusionLevel.NOT_IN_NAV))
                todo.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to such paths into links to their pages."""
    here, source = posixpath.dirname(page.file.src_uri), repository_path(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        path = None if link["code"] else linked_path(link["target"], source)
        if path is None:
            return link[0]
        return f"]({posixpath.relpath(site_path(path), here or '.')}{link['anchor'] or ''})"

    return LINK.sub(on_site, markdown)


def links(markdown: str, source: PurePosixPath) -> Iterator[PurePosixPath]:
    """Paths in the repository that a page links to."""
    for link in LINK.finditer(markdown):
        if not link["code"] and (path := linked_path(link["target"], source)) is not None:
            yield path


def linked_path(target: str, source: PurePosixPath) -> PurePosixPath | None:
    """The path in the repository that `target` means in the file `source`; None for the web and for what is missing."""
    if re.match(r"[a-z]+:", target):
        return None
    path = PurePosixPath(posixpath.normpath(source.parent / target))
    if path.parts[:1] in ((), ("..",)) or not (ROOT / path).exists():
        return None
    return path / "README.md" if (ROOT / path / "README.md").exists() else path


def is_in_docs(path: PurePosixPath) -> bool:
    """Whether mkdocs has it already: a file of docs/."""
    return path.parts[0] == "docs" and (ROOT / path).is_file()


def site_path(path: PurePosixPath) -> str:
    """Where the site has a path of the repository, from its docs folder."""
    if is_in_docs(path):
        return str(path.relative_to("docs"))
    if (ROOT / path).is_dir():
        return f"{FOLDER}/{path}/index.md"
    return f"{FOLDER}/{path if path.suffix == '.md' else f'{path}.md'}"


def repository_path(uri: str) -> PurePosixPath:
    """The path from which the links of a page are resolved."""
    inside = uri.removeprefix(f"{FOLDER}/")
    return PurePosixPath("docs", uri) if inside == uri else PurePosixPath(inside)


def content(path: PurePosixPath) -> str:
    """The Markdown of the page about a path. The site's search leaves out what is no prose."""
    file, head = ROOT / path, f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if one.name[0] != "." and one.name != "__pycache__")
        return head + "".join(f"- [{name}]({name})\n" for name in names)
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        return f"{head}This file is no text; it is in the repository.\n"
    if file.suffix == ".md":
        return text
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{head}{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}\n"
