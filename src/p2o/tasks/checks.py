"""What is wrong with a data set, found over all rows before anything is trained on it. Pure: neither files nor models.

Most faults cost their rows: those are dropped and counted. What cannot be right for any row, or leaves the choice of
the right row to chance, stops: a column of a wrong type, one question with two different answers, nothing left.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from p2o.templates import Prompt, question_text

SHOWN = 5
# The replacement character stands for bytes that somebody could not decode; lone surrogates cannot be encoded; of the
# control characters only tab and line breaks are text. Form feed and backspace are what "\frac" and "\beta" become in
# JSON when their backslash is not doubled.
BROKEN = re.compile("[\ufffd\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
CONFLICT = "same prompt, different solutions"
NOTHING_LEFT = "nothing left"


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Args:
        what: the fault, in a few words.
        rows: every row that has it, ascending, counted from 0.
        details: of the first few of these rows, what exactly; "" where there is no more to say.
        stops: whether it stops the run; its rows are dropped otherwise.
    """

    what: str
    rows: tuple[int, ...]
    details: tuple[str, ...]
    stops: bool

    def first_rows(self) -> str:
        """The first few rows by number, with details, one a line."""
        lines = [
            f"row {row}{': ' if detail else ''}{detail}"
            for row, detail in zip(self.rows, self.details, strict=False)  # details are of the first rows only
        ]
        more = len(self.rows) - len(lines)
        return "\n".join([*lines, f"… and {more} more"] if more else lines)


@dataclass(frozen=True)
class Report:
    """What the checks of one data set found.

    Args:
        name: of the data set, for people.
        rows: how many there were.
        kept: the rows that are left, ascending, counted from 0.
        findings: the faults, those that stop first.
        notes: what was done to the data, and is no fault.
    """

    name: str
    rows: int
    kept: tuple[int, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def stops(self) -> bool:
        return any(finding.stops for finding in self.findings)

    def line(self) -> str:
        """The outcome in one line."""
        dropped = [f for f in self.findings if not f.stops]
        if not dropped:
            return f"{self.name}: {len(self.kept)} questions, nothing dropped."
        kinds = ", ".join(f"{len(f.rows)} {f.what}" for f in dropped)
        return f"{self.name}: {self.rows - len(self.kept)} of {self.rows} questions dropped ({kinds})."

    def problem(self) -> str | None:
        """What stops the run, with the first rows, or None."""
        if not self.stops:
            return None
        parts = [f"{self.name} cannot be trained on ({self.rows} rows, counted from 0):"]
        for finding in self.findings:
            if finding.stops or self.findings[0].what == NOTHING_LEFT:
                count = f"{len(finding.rows)} × " if finding.rows else ""
                parts.append(f"- {count}{finding.what}" + (":" if finding.rows else ""))
                parts += [f"    {line}" for line in finding.first_rows().splitlines()]
        return "\n".join(parts)

    def table(self) -> Table:
        """Everything found, for a terminal."""
        verdict = "stops the run" if self.stops else "fit to train on"
        table = Table(title=f"{escape(self.name)}: {self.rows} rows, {len(self.kept)} kept · {verdict}")
        for column in ("finding", "rows", "first rows (counted from 0)", "what happens"):
            table.add_column(column, justify="right" if column == "rows" else "left")
        for finding in self.findings:
            happens = "[bold red]stops the run[/]" if finding.stops else "dropped"
            table.add_row(finding.what, str(len(finding.rows)), escape(finding.first_rows()), happens)
        if not self.findings:
            table.add_row("nothing", "0", "", "")
        table.caption = escape("\n".join(self.notes)) or None
        return table

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; of the rows of a fault the first hundred."""
        return {
            "name": self.name,
            "rows": self.rows,
            "kept": len(self.kept),
            "findings": [
                {"what": f.what, "count": len(f.rows), "rows": list(f.rows[:100]), "stops": f.stops}
                for f in self.findings
            ],
            "notes": list(self.notes),
        }


def check_questions(
    prompts: Sequence[Any],
    solutions: Sequence[Any] | None,
    *,
    too_long: Callable[[list[Prompt]], dict[int, int]] | None = None,
    unparsable: Callable[[list[str]], list[int]] | None = None,
    strict: bool = False,
    name: str = "data",
    notes: tuple[str, ...] = (),
) -> Report:
    """Checks every row. A row counts for the first fault that it has.

    Args:
        prompts: texts or chats, as they came.
        solutions: gold answers, of the same length; None when the data has none, which some rewards do without.
        too_long: of these prompts, those over the limit, as index to tokens; see [`long_prompts`].
        unparsable: of these gold answers, the indices of those that the verifier cannot read.
        strict: whether every fault stops, and not only those that must.
        name: of the data, for people.
        notes: go into the report as they are.

    Returns:
        The report; a pure function of the arguments, so that a resumed run keeps the same rows.
    """
    faults: dict[str, dict[int, str]] = {}
    sound: list[int] = []
    for row, prompt in enumerate(prompts):
        fault = _prompt_fault(prompt) or (solutions is not None and _solution_fault(solutions[row]))
        fault = fault or _broken(prompt, solutions[row] if solutions is not None else "")
        if fault:
            faults.setdefault(fault[0], {})[row] = fault[1]
        else:
            sound.append(row)

    first: dict[Any, int] = {}
    unique = []
    for row in sound:
        before = first.setdefault(_key(prompts[row]), row)
        if before == row:
            unique.append(row)
        elif solutions is None or solutions[row].strip() == solutions[before].strip():
            faults.setdefault("duplicate", {})[row] = f"of row {before}"
        else:
            detail = f"{_short(solutions[row])}, but {_short(solutions[before])} in row {before}"
            faults.setdefault(CONFLICT, {})[row] = detail
    sound = unique
    if too_long is not None and sound:
        lengths = {sound[index]: tokens for index, tokens in too_long([prompts[row] for row in sound]).items()}
        faults["prompt too long"] = {row: f"{tokens} tokens" for row, tokens in sorted(lengths.items())}
        sound = [row for row in sound if row not in lengths]
    if unparsable is not None and solutions is not None and sound:
        unread = {sound[index] for index in unparsable([solutions[row] for row in sound])}
        faults["unparsable solution"] = {row: _short(solutions[row]) for row in sorted(unread)}
        sound = [row for row in sound if row not in unread]

    present = {
        "wrong type of prompt": sum(prompt is not None for prompt in prompts),
        "wrong type of solution": sum(solution is not None for solution in solutions or ()),
    }
    findings = [
        Finding(
            what,
            tuple(rows),
            tuple(list(rows.values())[:SHOWN]),
            strict or what == CONFLICT or len(rows) == present.get(what),
        )
        for what, rows in faults.items()
        if rows
    ]
    findings.sort(key=lambda finding: (not finding.stops, finding.what))
    if not sound:
        findings.insert(0, Finding(NOTHING_LEFT, (), (), True))
    return Report(name, len(prompts), tuple(sound), tuple(findings), notes)


def _prompt_fault(prompt: Any) -> tuple[str, str] | None:
    if prompt is None:
        return "missing prompt", ""
    if isinstance(prompt, str):
        return None if prompt.strip() else ("empty prompt", "")
    if not isinstance(prompt, list):
        return "wrong type of prompt", f"{type(prompt).__name__}, not a text or a list of messages"
    if not prompt:
        return "empty prompt", ""
    for number, message in enumerate(prompt):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            return "wrong type of prompt", f"message {number} is no mapping with `role` and `content`"
        if not isinstance(message["content"], str):
            parts = message["content"]
            if not isinstance(parts, list) or not all(isinstance(p, dict) and _is_text(p) for p in parts):
                return "wrong type of prompt", f"message {number} has a `content` that is neither text nor text parts"
    if all(message["role"] != "user" for message in prompt):
        return "no user message", ""
    return None if question_text(prompt).strip() else ("empty prompt", "")


def _is_text(part: dict[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _solution_fault(solution: Any) -> tuple[str, str] | None:
    if solution is None:
        return "missing solution", ""
    if not isinstance(solution, str):
        return "wrong type of solution", f"{type(solution).__name__}, not a text or a number"
    return None if solution.strip() else ("empty solution", "")


def _broken(prompt: Prompt, solution: str) -> tuple[str, str] | None:
    for where, text in (("prompt", _text(prompt)), ("solution", solution)):
        found = BROKEN.search(text)
        if found:
            start = found.start()
            detail = f"U+{ord(found[0]):04X} in the {where}, near {text[max(start - 12, 0) : start + 12]!a}"
            if found[0] in "\x08\x0c":
                detail += " (in JSON the backslash of LaTeX is written twice)"
            return "broken encoding", detail
    return None


def _text(prompt: Prompt) -> str:
    """All text of a sound prompt."""
    if isinstance(prompt, str):
        return prompt
    contents = [message["content"] for message in prompt]
    return "\n".join(c if isinstance(c, str) else "\n".join(part["text"] for part in c) for c in contents)


def _key(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _short(text: str, limit: int = 60) -> str:
    line = repr(text)
    return line if len(line) <= limit else f"{line[:limit]}…"


def long_prompts(prompts: Sequence[Prompt], tokenizer: Any, limit: int, **template_options: Any) -> dict[int, int]:
    """Which prompts are longer than `limit` tokens, as index to tokens.

    Chats are counted as the chat template renders them with the generation prompt, as TRL does. Only prompts with more
    bytes than `limit` are tokenized, since a token is a byte at least; so a generous limit costs next to nothing.

    Args:
        prompts: sound ones.
        tokenizer: of the model, a fast one.
        limit: in tokens.
        template_options: for `apply_chat_template`.

    Raises:
        ValueError: chats, and a tokenizer without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None) and any(not isinstance(prompt, str) for prompt in prompts):
        raise ValueError("The prompts are chats, but the model's tokenizer has no chat template.")

    def render(batch: list[Prompt]) -> list[str]:
        if isinstance(batch[0], str):
            return batch  # type: ignore[return-value]
        return tokenizer.apply_chat_template(batch, add_generation_prompt=True, tokenize=False, **template_options)

    around: dict[tuple[str, ...], int] = {(): 0}  # bytes that the template adds, by the roles of the chat
    suspects = []
    for index, prompt in enumerate(prompts):
        roles = () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
        size = len(_text(prompt).encode())
        if roles not in around:
            around[roles] = max(len(render([prompt])[0].encode()) - size, 0) + 16
        if size + around[roles] > limit:
            suspects.append(index)
    long = {}
    for texts in (True, False):
        chosen = [index for index in suspects if isinstance(prompts[index], str) is texts]
        for start in range(0, len(chosen), 1000):
            batch = chosen[start : start + 1000]
            # A chat template writes the special tokens itself.
            encoded = tokenizer(render([prompts[index] for index in batch]), add_special_tokens=texts)["input_ids"]
            long.update({i: len(ids) for i, ids in zip(batch, encoded, strict=True) if len(ids) > limit})
    return long
