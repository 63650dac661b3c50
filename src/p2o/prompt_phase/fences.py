"""Fenced blocks as language models write them, which is more loosely than Markdown has them. Pure.

Beyond CommonMark: a fence may open behind words on its line and close behind the last words of its block, blocks nest
where the inner fence names a language, and a block may be quoted with "> ".
"""

import re
from dataclasses import dataclass, field

_TAG = r"[A-Za-z][\w+#-]*(?:[ \t]+[\w-]+=(?:\"[^\"]*\"|'[^']*'|\S+)|[ \t]*\{[^{}]*\})*|\{[^{}]*\}"
_LINE_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:>[ \t]?)*(?:(?:[-*+]|\d+[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>.*)"
)
_FENCE = re.compile(r"(?<!`)`{3,}")
_ON_ONE_LINE = re.compile(r"(?P<lead>[^`]*)(?P<fence>`{3,})(?P<text>[^`].*?)(?P=fence)(?!`)(?P<tail>[^`]*)")
_PROSE_LANGUAGES = ("markdown", "md", "plaintext", "text", "txt", "plain", "instruction", "instructions", "prompt")


@dataclass
class Block:
    """A fenced block.

    Args:
        language: what stands behind the opening fence, in lower case and without attributes; "" for nothing.
        between: everything between this block and the one before it.
        text: what is in it, without blank lines around and without its fence's indentation.
        closed: whether it has an end.
        nested: whether a block that is fenced alike stands in it.
    """

    language: str = ""
    between: str = ""
    text: str = ""
    closed: bool = False
    nested: bool = False

    @property
    def lead(self) -> str:
        """The last line of prose before it."""
        lines = [line for line in self.between.splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass
class _Reader:
    """Where reading a text stands: the blocks that are done, and the one that is open."""

    blocks: list[Block] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    inside: list[str] | None = None
    language: str = ""
    indent: str = ""
    fences: list[str] = field(default_factory=list)  # open ones, of the block and of those within it
    nested: bool = False

    def open(self, lead: str, fence: str, info: str) -> None:
        tag = re.fullmatch(_TAG, info.strip())
        self.language = re.split(r"[\s{]", info.strip())[0].lower() if tag else ""
        self.inside, self.fences, self.nested = [] if tag or not info.strip() else [info], [fence], False
        self.indent = lead if not lead.strip(" \t>") else ""
        if lead.strip():
            self.outside.append(lead)

    def close(self, *, closed: bool = True) -> None:
        lines = [line.removeprefix(self.indent) if self.indent else line for line in self.inside or []]
        if ">" in self.indent:
            lines = [re.sub(r"^[ \t]*>[ \t]?", "", line) for line in lines]
        text = "\n".join(lines).strip()
        self.blocks.append(Block(self.language, "\n".join(self.outside), text, closed, self.nested))
        self.outside, self.inside, self.indent, self.nested = [], None, "", False

    def read_outside(self, line: str) -> None:
        if whole := _ON_ONE_LINE.fullmatch(line):
            first, _, rest = whole["text"].strip().partition(" ")
            self.outside.append(whole["lead"])
            self.inside = [rest if rest and first in _PROSE_LANGUAGES else whole["text"]]
            self.language = ""
            self.close()
            self.outside.append(whole["tail"])
        elif fence := _LINE_FENCE.fullmatch(line):
            self.open(fence["indent"], fence["fence"], fence["info"])
        elif len(found := list(_FENCE.finditer(line))) == 1:
            self.open(line[: found[0].start()], found[0][0], line[found[0].end() :])
        else:
            self.outside.append(line)

    def read_inside(self, line: str) -> None:
        assert self.inside is not None
        fence, opened = _LINE_FENCE.fullmatch(line), self.fences[-1]
        if fence and fence["fence"][0] == opened[0] and len(fence["fence"]) >= len(opened):
            info = fence["info"].strip()
            if opened[0] in info:  # a code span within the line
                self.inside.append(line)
            elif info and re.fullmatch(_TAG, info):
                self.fences.append(fence["fence"])
                self.nested = True
                self.inside.append(line)
            elif len(self.fences) > 1:
                self.fences.pop()
                self.inside.append(line)
            else:
                self.close()
                if info:
                    self.outside.append(info)
            return
        found = [f for f in _FENCE.finditer(line) if opened[0] == "`" and len(f[0]) >= len(opened)]
        if len(found) == 1 and not line[found[0].end() :].strip() and len(self.fences) == 1:
            self.inside.append(line[: found[0].start()])
            self.close()
        else:
            self.inside.append(line)


def read_blocks(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a text, in order, and what stands behind the last one. Only the last can be without end."""
    reader = _Reader()
    for line in text.split("\n"):
        if reader.inside is None:
            reader.read_outside(line)
        else:
            reader.read_inside(line)
    if reader.inside is not None:
        reader.close(closed=False)
    return reader.blocks, "\n".join(reader.outside)
