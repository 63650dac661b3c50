"""Checks a data set before training. Pure: reads neither files nor models.

Most faulty rows are dropped and counted. An error stops the run if a whole column has a wrong type, one prompt has two
different answers, or no rows are left.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from p2o.images import question_prompt
from p2o.templates import Prompt, question_text

SHOWN = 5
# The replacement character marks bytes that could not be decoded; lone surrogates cannot be encoded; of the control
# characters only tab and line breaks are text. Form feed and backspace are what "\frac" and "\beta" become in JSON when
# their backslash is not doubled.
BROKEN = re.compile("[\ufffd\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
CONFLICT = "same prompt, different solutions"
ANSWERED = "chat that ends with the assistant's answer"
UNMATCHABLE = "solution that no answer can match"
CONFLICTS = ("stop", "first", "drop")
# What to do about a fault that an option decides.
REMEDIES = {
    CONFLICT: "--conflicts first uses the first solution of each, --conflicts drop leaves these questions out.",
    ANSWERED: "--cut_last_answer true removes it; false keeps it, for the model to continue.",
}
NOTHING_LEFT = "nothing left"


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Args:
        what: the fault, in a few words.
        rows: every row that has it, ascending, counted from 0.
        details: of the first few of these rows; "" for none.
        stops: whether it stops the run; its rows are dropped otherwise.
        kept: whether its rows are used anyway, with a warning.
    """

    what: str
    rows: tuple[int, ...]
    details: tuple[str, ...]
    stops: bool
    kept: bool = False

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
        kept: the remaining rows, ascending, counted from 0.
        findings: the faults, first those that stop the run.
        notes: conversions of the data, which are not faults.
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
        dropped = [f for f in self.findings if not f.stops and not f.kept]
        kept = "".join(f" Kept with a warning: {len(f.rows)} {f.what}." for f in self.findings if f.kept)
        if not dropped:
            return f"{self.name}: {len(self.kept)} questions, nothing dropped.{kept}"
        kinds = ", ".join(f"{len(f.rows)} {f.what}" for f in dropped)
        return f"{self.name}: {self.rows - len(self.kept)} of {self.rows} questions dropped ({kinds}).{kept}"

    def error_message(self) -> str | None:
        """Message with the faults that stop the run and their first rows, or None."""
        if not self.stops:
            return None
        parts = [f"{self.name} cannot be trained on ({self.rows} rows, counted from 0):"]
        for finding in self.findings:
            if finding.stops or self.findings[0].what == NOTHING_LEFT:
                count = f"{len(finding.rows)} × " if finding.rows else ""
                parts.append(f"- {count}{finding.what}" + (":" if finding.rows else ""))
                parts += [f"    {line}" for line in finding.first_rows().splitlines()]
                if finding.what in REMEDIES:
                    parts.append(f"    {REMEDIES[finding.what]}")
        return "\n".join(parts)

    def table(self) -> Table:
        """Everything found, for a terminal."""
        verdict = " · stops the run" if self.stops else ""
        table = Table(title=f"{escape(self.name)}: {self.rows} rows, {len(self.kept)} kept{verdict}")
        for column in ("finding", "rows", "first rows (counted from 0)", "what happens"):
            table.add_column(column, justify="right" if column == "rows" else "left")
        for finding in self.findings:
            happens = "[bold red]stops the run[/]" if finding.stops else "kept" if finding.kept else "dropped"
            what = "\n".join([finding.what, *([REMEDIES[finding.what]] if finding.what in REMEDIES else [])])
            table.add_row(what, str(len(finding.rows)), escape(finding.first_rows()), happens)
        if not self.findings:
            table.add_row("nothing", "0", "", "")
        table.caption = escape("\n".join(self.notes)) or None
        return table

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; at most the first hundred rows of each fault."""
        return {
            "name": self.name,
            "rows": self.rows,
            "kept": len(self.kept),
            "findings": [
                {"what": f.what, "count": len(f.rows), "rows": list(f.rows[:100]), "stops": f.stops, "kept": f.kept}
                for f in self.findings
            ],
            "notes": list(self.notes),
        }


Faults = dict[str, dict[int, str]]
"""By kind of fault, the details by row."""


def check_questions(
    prompts: Sequence[Any],
    solutions: Sequence[Any] | None,
    images: Sequence[Sequence[str]] | None = None,
    *,
    refused: Callable[[list[Prompt]], dict[int, str]] | None = None,
    too_long: Callable[[list[Prompt]], dict[int, int]] | None = None,
    unparsable: Callable[[list[str]], list[int]] | None = None,
    unmatchable: Callable[[str], str | None] | None = None,
    same: Callable[[list[tuple[str, str]]], list[bool]] | None = None,
    conflicts: str = "stop",
    answered: bool = False,
    strict: bool = False,
    name: str = "data",
    notes: tuple[str, ...] = (),
) -> Report:
    """Checks every row. A row is counted under its first fault only.

    Args:
        prompts: texts or chats, as loaded.
        solutions: gold answers, of the same length; None if the data has none, which some rewards do not need.
        images: what the images of each row are told apart by, blocks for the checks of prompts; None without any.
        refused: the prompts that the chat template refuses, as index to reason; see [`p2o.tasks.rendering`].
        too_long: the prompts over the limit, as index to tokens.
        unparsable: indices of gold answers that the verifier cannot parse. None if no verifier parses them.
        unmatchable: why no answer can match a gold answer, or None. Such rows are dropped if `unparsable` is given;
            otherwise reported and kept, since a custom reward may accept them.
        same: for pairs of gold answers, which are equal; by default only equal texts.
        conflicts: what to do about one prompt with unequal solutions: `stop`, use the `first`, or `drop` all.
        answered: whether chats may end with an assistant message.
        strict: whether every fault stops the run.
        name: of the data, for messages.
        notes: added to the report unchanged.

    Returns:
        The report; a pure function of the arguments, so that a resumed run keeps the same rows.
    """
    faults: Faults = {}
    shown = images or [()] * len(prompts)
    valid = _valid_rows(prompts, solutions, shown, answered, faults)
    valid = _drop_duplicates(valid, prompts, solutions, shown, same, conflicts, faults)
    for what, check in (("prompt that the chat template refuses", refused), ("prompt too long", too_long)):
        if check is not None and valid:
            asked = [question_prompt({"prompt": prompts[row], "images": shown[row]}) for row in valid]
            found: Mapping[int, Any] = check(asked)
            rows = {valid[i]: f"{detail} tokens" if isinstance(detail, int) else detail for i, detail in found.items()}
            valid = _drop_faulty(valid, what, rows, faults)
    if solutions is not None:
        valid = _matchable_rows(valid, solutions, unmatchable, unparsable, faults)
    findings = []
    for what, rows in faults.items():
        kept = what == UNMATCHABLE and unparsable is None
        column = {"wrong type of prompt": prompts, "wrong type of solution": solutions}.get(what)
        all_of_them = column is not None and len(rows) == sum(value is not None for value in column)
        stops = (strict and not kept) or (what == CONFLICT and conflicts == "stop") or all_of_them
        findings.append(Finding(what, tuple(rows), tuple(list(rows.values())[:SHOWN]), stops, kept))
    findings.sort(key=lambda finding: (not finding.stops, finding.what))
    if not valid:
        findings.insert(0, Finding(NOTHING_LEFT, (), (), True))
    return Report(name, len(prompts), tuple(valid), tuple(findings), notes)


def _drop_faulty(valid: list[int], what: str, rows: Mapping[int, str], faults: Faults) -> list[int]:
    """The rows without the faulty ones, which are recorded in `faults`."""
    if rows:
        faults[what] = dict(sorted(rows.items()))
    return [row for row in valid if row not in rows]


def _valid_rows(
    prompts: Sequence[Any], solutions: Sequence[Any] | None, images: Sequence[Any], answered: bool, faults: Faults
) -> list[int]:
    """The rows without a fault of their own; faulty ones are recorded in `faults`."""
    valid = []
    for row, prompt in enumerate(prompts):
        fault = _prompt_fault(prompt, images[row]) or (solutions is not None and _solution_fault(solutions[row]))
        fault = fault or _broken(prompt, solutions[row] if solutions is not None else "")
        if not fault and not answered and not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            fault = ANSWERED, _short(text_of(prompt[-1:]))
        if fault:
            faults.setdefault(fault[0], {})[row] = fault[1]
        else:
            valid.append(row)
    return valid


def _drop_duplicates(
    valid: list[int],
    prompts: Sequence[Any],
    solutions: Sequence[Any] | None,
    images: Sequence[Sequence[str]],
    same: Callable[[list[tuple[str, str]]], list[bool]] | None,
    conflicts: str,
    faults: Faults,
) -> list[int]:
    """Rows after removing prompts that are duplicates, images included, or in conflict; whitespace is ignored."""
    first: dict[Any, int] = {}
    again = [
        (row, before) for row in valid if (before := first.setdefault(_key(prompts[row], images[row]), row)) != row
    ]
    pairs = {}
    if solutions is not None:
        pairs = {(row, before): (solutions[before].strip(), solutions[row].strip()) for row, before in again}
    unequal = sorted({pair for pair in pairs.values() if pair[0] != pair[1]})
    equal = (
        {pair for pair, verdict in zip(unequal, same(unequal), strict=True) if verdict} if same and unequal else set()
    )
    contested: dict[int, str] = {}
    for row, before in again:
        old, new = pairs.get((row, before), ("", ""))
        if old == new:
            faults.setdefault("duplicate", {})[row] = f"of row {before}"
        elif (old, new) in equal:
            faults.setdefault("duplicate", {})[row] = f"of row {before}, whose {_short(old)} equals {_short(new)}"
        else:
            contested[row] = f"{_short(new)}, but {_short(old)} in row {before}"
            if conflicts == "drop":
                contested.setdefault(before, f"{_short(old)}, but {_short(new)} in row {row}")
    repeated = {row for row, _ in again}
    return _drop_faulty([row for row in valid if row not in repeated], CONFLICT, contested, faults)


def _matchable_rows(
    valid: list[int],
    solutions: Sequence[str],
    unmatchable: Callable[[str], str | None] | None,
    unparsable: Callable[[list[str]], list[int]] | None,
    faults: Faults,
) -> list[int]:
    """The rows with a solution that an answer can match; if the reward is unknown, all rows, with a warning."""
    reasons = {row: unmatchable(solutions[row]) for row in valid} if unmatchable is not None else {}
    details = {row: f"{_short(solutions[row])}, {reason}" for row, reason in reasons.items() if reason}
    left = _drop_faulty(valid, UNMATCHABLE, details, faults)
    if unparsable is None:
        return valid
    unread = {left[index] for index in unparsable([solutions[row] for row in left])} if left else set()
    return _drop_faulty(left, "unparsable solution", {row: _short(solutions[row]) for row in unread}, faults)


def _prompt_fault(prompt: Any, images: Sequence[str]) -> tuple[str, str] | None:
    if prompt is None:
        return "missing prompt", ""
    if isinstance(prompt, str):
        return None if prompt.strip() else ("empty prompt", "")
    if not isinstance(prompt, list):
        return "wrong type of prompt", f"{type(prompt).__name__}, not text or a list of messages"
    if not prompt:
        return "empty prompt", ""
    for number, message in enumerate(prompt):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            return "wrong type of prompt", f"message {number} is not a mapping with `role` and `content`"
        if not isinstance(message["content"], str):
            parts = message["content"]
            if not isinstance(parts, list) or not all(isinstance(p, dict) and _is_content(p) for p in parts):
                return "wrong type of prompt", f"message {number} has a `content` that is neither text nor text parts"
    if all(message["role"] != "user" for message in prompt):
        return "no user message", ""
    try:
        question_prompt({"prompt": prompt, "images": images})
    except ValueError as error:
        return "images that do not fit the prompt", str(error)
    return None if images or question_text(prompt).strip() else ("empty prompt", "")


def _is_content(part: dict[str, Any]) -> bool:
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _solution_fault(solution: Any) -> tuple[str, str] | None:
    if solution is None:
        return "missing solution", ""
    if not isinstance(solution, str):
        return "wrong type of solution", _kind(solution)
    return None if solution.strip() else ("empty solution", "")


def _kind(solution: Any) -> str:
    if isinstance(solution, bool):
        return "boolean, not text; write the expected answer, e.g. Yes or No"
    if isinstance(solution, list):
        return f"list of {len(solution)}, not a single text or number"
    if isinstance(solution, dict):
        parts = ", ".join(map(str, solution))
        return f"mapping with {parts}; name the part that has the answer: --solution_column COLUMN.PART"
    return f"{type(solution).__name__}, not a text or a number"


def _broken(prompt: Prompt, solution: str) -> tuple[str, str] | None:
    for where, text in (("prompt", text_of(prompt)), ("solution", solution)):
        found = BROKEN.search(text)
        if found:
            start = found.start()
            detail = f"U+{ord(found[0]):04X} in the {where}, near {text[max(start - 12, 0) : start + 12]!a}"
            if found[0] in "\x08\x0c":
                detail += " (in JSON a LaTeX backslash must be doubled)"
            return "broken encoding", detail
    return None


def text_of(prompt: Prompt) -> str:
    """All text of a valid prompt, messages joined by line breaks."""
    if isinstance(prompt, str):
        return prompt
    contents = [message["content"] for message in prompt]
    return "\n".join(
        c if isinstance(c, str) else "\n".join(part["text"] for part in c if part["type"] == "text") for c in contents
    )


def _key(prompt: Prompt, images: Sequence[str]) -> Any:
    """Key that is equal for prompts that differ only in whitespace."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    messages = ((message["role"], " ".join(text_of([message]).split())) for message in prompt)
    return (*messages, *images)


def _short(text: str, limit: int = 60) -> str:
    line = repr(text)
    return line if len(line) <= limit else f"{line[:limit]}…"
