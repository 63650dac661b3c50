"""The process in which untrusted text is parsed: one JSON line in, one out, until it is killed or input ends.

math-verify's own time limits are signals, which work in no thread and reach no C code; they are off, and the parent of
this process watches the clock. It imports nothing of torch, so that a fresh one is there in a second.
"""

import json
import logging
import math
import os
import re
import resource
import sys
import time
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

# The configuration of TRL's `accuracy_reward`, so that the two agree: boxes first, LaTeX in delimiters after them.
GOLD = (LatexExtractionConfig(), ExprExtractionConfig())
ANSWER = (LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)
SHOWN = 200
BOX = "\\boxed{"
BETWEEN = re.compile(r"[\s$.,;]*(and|or)?[\s$.,;]*")
DELIMITERS = ("$", "\\boxed", "\\(", "\\[")


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every closed `\\boxed{…}` that is not within another, braces matched."""
    found, place = [], text.find(BOX)
    while place >= 0:
        depth, end = 0, place + len(BOX) - 1
        for end in range(place + len(BOX) - 1, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                break
        if depth:
            break  # nothing after an open brace is closed
        found.append((place, end + 1, text[place + len(BOX) : end]))
        place = text.find(BOX, end + 1)
    return found


def final_answer(text: str) -> str | None:
    """The last box; boxes with nothing but a comma, 'and' or 'or' between them are one answer. None without any."""
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and BETWEEN.fullmatch(text[found[first - 1][1] : found[first][0]]):
        first -= 1
    return ", ".join(content for _, _, content in found[first:])


def judge_exact(completion: str, solution: str) -> dict[str, Any]:
    """Whether the last box, or the whole completion where there is none, is the solution to the letter."""
    box = final_answer(completion)
    answer = (completion if box is None else box).strip()
    right = answer == solution.strip()
    reason = "right" if right else "wrong" if answer else "no answer"
    return {"reward": float(right), "extracted": answer[:SHOWN] or None, "reason": reason}


def judge_math(completion: str, solution: str) -> dict[str, Any]:
    """Whether math-verify finds the answer in the completion and finds it equal to the solution.

    The solution is the answer itself, in LaTeX or plain, or a text with the answer in LaTeX's delimiters.
    """
    if solution.strip() and not any(delimiter in solution for delimiter in DELIMITERS):
        solution = f"\\boxed{{{solution}}}"
    box = final_answer(completion)
    if box is not None:
        completion = f"\\boxed{{{box}}}"
    gold = _attempt(lambda strict: parse(solution, GOLD, parsing_timeout=None, raise_on_error=strict), [])
    if not gold:
        return {"reward": None, "extracted": None, "reason": "unparsable solution"}
    answer = _attempt(
        lambda strict: parse(
            completion, ANSWER, extraction_mode="first_match", parsing_timeout=None, raise_on_error=strict
        ),
        [],
    )
    if not answer:
        return {"reward": 0.0, "extracted": None, "reason": "no answer"}
    right = _attempt(lambda strict: verify(gold, answer, timeout_seconds=None, raise_on_error=strict), False)
    # The text of it: writing an expression out can take longer than to find it wrong.
    text = next((found for found in answer if isinstance(found, str)), "")
    return {"reward": float(right), "extracted": text[:SHOWN], "reason": "right" if right else "wrong"}


def _attempt(call: Any, otherwise: Any) -> Any:
    """math-verify swallows every error; running out of memory is to be told apart."""
    try:
        return call(True)
    except MemoryError:
        raise
    except Exception:
        try:
            return call(False)
        except MemoryError:
            raise
        except Exception:
            return otherwise


JUDGES = {"math": judge_math, "exact": judge_exact}


def main(memory: int, seconds: float) -> None:
    """Serves standard input; what others print on standard output goes nowhere.

    Args:
        memory: bytes of address space beyond what the imports take.
        seconds: of computing for one completion, after which the kernel ends a process that nobody watches any more.
    """
    logging.disable(logging.CRITICAL)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=results, flush=True)
    for line in sys.stdin.buffer:
        verifier, completion, solution = json.loads(line)
        began = time.perf_counter()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 2, resource.RLIM_INFINITY))
        try:
            verdict = JUDGES[verifier](completion, solution)
        except MemoryError:
            verdict = {"reward": 0.0, "extracted": None, "reason": "memory"}
        verdict["milliseconds"] = round(1000 * (time.perf_counter() - began), 3)
        print(json.dumps(verdict), file=results, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
