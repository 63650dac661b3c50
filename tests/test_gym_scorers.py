"""reasoning-gym: no answer is run as code, and right ones are paid. The forms of answers are in test_gym_forms.py."""

import ast
import json
import re
import sys
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS
from reasoning_gym.games.rush_hour import Board

from p2o.tasks.loading import DataError
from p2o.tasks.named import load_task
from p2o.verifiers.answers import GoldError
from p2o.verifiers.gym import check_gold, own_answer, score
from p2o.verifiers.gym_audit import evaluating_calls
from p2o.verifiers.gym_readers import EVALUATING, READERS, is_right

FAMILIES = sorted(set(DATASETS) - {"composite"})


@cache
def dataset(family, size=40, **settings):
    if family == "rush_hour":
        settings |= {"min_moves": 1, "max_moves": 6}  # a search has to solve them
    return reasoning_gym.create_dataset(family, size=size, seed=7, **settings)


@cache
def entry_text(family, index=0):
    return json.dumps(dataset(family)[index], default=str)


def entry_of(family, index=0):
    return json.loads(entry_text(family, index))


@cache
def right_answer(family, index=0):
    gold = own_answer(dataset(family)[index])
    if gold is not None:
        return gold
    return {"boxnet": solved_boxnet, "rush_hour": solved_rush_hour}[family](entry_of(family, index))


def solved_boxnet(entry):
    """One box after the other, first along its rows, then along its columns, onto its target."""
    places = {item: square for square, items in entry["metadata"]["initial_state"].items() for item in items}
    plan = []
    for box, square in places.items():
        if not box.startswith("box_"):
            continue
        here = [float(number) for number in square.split("_")]
        target = [float(number) for number in places[f"target_{box[4:]}"].split("_")]
        for axis in (0, 1):
            while here[axis] != target[axis]:
                there = list(here)
                there[axis] += 1 if target[axis] > here[axis] else -1
                plan.append({f"Agent[{here[0]}, {here[1]}]": f"move({box}, square[{there[0]}, {there[1]}])"})
                here = there
        plan.append({f"Agent[{here[0]}, {here[1]}]": f"move({box}, target_{box[4:]})"})
    return json.dumps(plan)


def solved_rush_hour(entry):
    """Breadth first over single steps."""
    start = entry["metadata"]["board_config"]
    letters = [chr(ord("A") + index) for index in range(len(Board(start)._pieces))]
    seen, queue = {str(Board(start))}, deque([()])
    while queue:
        moves = queue.popleft()
        for move in (f"{letter}{sign}1" for letter in letters for sign in "+-"):
            board = Board(start)
            board.perform_moves(" ".join((*moves, move)))
            if board.solved:
                return " ".join((*moves, move))
            if str(board) not in seen:
                seen.add(str(board))
                queue.append((*moves, move))
    raise AssertionError("no solution")


def reward(answer, family, index=0):
    return score(f"<answer>{answer}</answer>", {"entry": entry_text(family, index), "family": family})[0]


# -- nothing is evaluated --------------------------------------------------------------------------------------------

_events: list[str] = []
_watching = [False]
_FORBIDDEN = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.", "import")


def _watch(event, arguments):
    if _watching[0] and (event.startswith(_FORBIDDEN) or (event == "open" and "w" in str(arguments[1]))):
        _events.append(f"{event} {str(arguments)[:200]}")


sys.addaudithook(_watch)


def hostile_texts(canary):
    steal = f"open({str(canary)!r},'w').write(__import__('os').environ['PLANTED_KEY'])"
    return [
        steal,
        f"__import__('os').system('touch {canary}')",
        f"exec({steal!r})",
        f"(lambda: {steal})()",
        f"[x for x in [{steal}]][0]",
        f"(k := {steal})",
        "{" + steal + "}",
        f"f'{{{steal}}}'",
        f"().__class__.__mro__[1].__subclasses__()[0] or {steal}",
        f"Symbol('x').__class__.__init__.__globals__['__builtins__']['open']({str(canary)!r},'w')",
        f"S({steal!r})",
        f"sympify({steal!r})",
        f"Integral({steal}, x)",
        f"!!python/object/apply:os.system ['touch {canary}']",
        "9**9**9**9",
        "factorial(10**9)",
    ]


def hostile_answers(canary, gold):
    texts = hostile_texts(canary)
    for text in texts:
        yield from (text, f"{gold} + {text}", f"{text}\n{gold}")
    for text in (texts[0], texts[-1]):
        quoted = json.dumps(text)
        yield from (
            f"[{text}]",
            f"[[{text}, 0], [0, 1]]",
            f"[{quoted}]",
            f'{{"0": {quoted}}}',
            f"`{text}`",
            f"```python\n{text}\n```",
            f"${text}$",
            f"x = {text}",
            f"{text} = {gold}",
            f"{gold}\n{text}",
            f"{gold}, {text}",
            f"{gold} # {text}",
            f"{gold} {text}",
            f"{gold} if {text} else {gold}",
            f"({gold}) or {text}",
            f"{gold}*({text} or 1)",
            f"Shape: {text}\n{gold}",
        )
        if gold.startswith(("[", "{")):
            yield gold[:-1] + f", {text}" + gold[-1]
            yield gold[:-1] + f", {quoted}" + gold[-1]
            yield gold[:-1] + f", {quoted}: 1" + gold[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_answers_neither_run_nor_score(family, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("PLANTED_KEY", "planted")
    monkeypatch.chdir(tmp_path)
    gold = right_answer(family)
    assert reward(gold, family) == 1.0  # imports what it needs, before anybody watches
    reward(f"{gold} + q", family)
    _events.clear()
    _watching[0] = True
    try:
        rewarded = [answer for answer in hostile_answers(canary, gold) if reward(answer, family)]
    finally:
        _watching[0] = False
    assert not rewarded
    assert not _events
    assert not list(tmp_path.iterdir())


def test_a_family_whose_scorer_evaluates_text_has_a_reader_and_a_new_one_is_refused(monkeypatch):
    """A release of reasoning-gym that brings another such family fails here, with its name."""
    found = {family: calls for family in FAMILIES if (calls := evaluating_calls(family))}
    assert set(found) == set(EVALUATING) and set(EVALUATING) <= set(READERS)

    @dataclass
    class Config:
        seed: int = 0
        size: int = 10

    class Careless(ProceduralDataset):
        def __getitem__(self, index):
            return {"question": f"{index}?", "answer": "1", "metadata": {"source_dataset": "careless"}}

        def score_answer(self, answer, entry):
            return float(self.read(answer) == entry["answer"])

        def read(self, answer):
            return eval(answer)

    monkeypatch.setitem(DATASETS, "careless", (Careless, Config))
    with pytest.raises(GoldError, match=r"careless runs text as code \(eval\)"):
        score("<answer>1</answer>", {"entry": {"answer": "1", "metadata": {"source_dataset": "careless"}}})
    with pytest.raises(DataError, match=r"gym:gcd\+careless: .*careless runs text as code \(eval\).*another family"):
        load_task("gym:gcd+careless", limit=4)


def test_questions_whose_own_answer_would_not_be_right_are_left_out(monkeypatch):
    family = type(dataset("chain_sum"))
    made = family.__getitem__

    def with_some_wrong(self, index):
        entry = made(self, index)
        return {**entry, "answer": "none"} if index % 2 else entry

    monkeypatch.setattr(family, "__getitem__", with_some_wrong)
    assert all(row["solution"] != "none" for row in load_task("gym:chain_sum", limit=12).dataset)
    monkeypatch.setattr(family, "__getitem__", lambda self, index: {**made(self, index), "answer": "none"})
    with pytest.raises(DataError, match=r"only 0 different questions.*'none' would not be scored as right"):
        load_task("gym:chain_sum", limit=2)


def test_calls_that_evaluate_text_stand_in_the_modules_that_were_read():
    """Those of the whole of reasoning-gym, so that a scorer that reaches one in another way does not go unread."""
    names = {"eval", "exec", "parse_expr", "sympify", "__import__", "parse_latex", "lambdify", "unsafe_load"}
    found = set()
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if any(getattr(call, "id", getattr(call, "attr", "")) in names for call in calls):
            found.add(path.stem)
    # These make questions from what reasoning-gym wrote itself; propositional_logic's parse_expr is its own.
    others = {"basic_arithmetic", "codeio", "generators_00_49", "generators_50_99", "propositional_logic"}
    assert found == set(EVALUATING) | others


def test_fields_of_an_entry_are_not_run_either(tmp_path):
    canary = tmp_path / "canary"
    steal = f"open({str(canary)!r},'w').write('1')"
    for family, fields in (
        ("bitwise_arithmetic", {"metadata": {"problem": steal}}),
        ("number_sorting", {"answer": f"[{steal}]"}),
        ("polynomial_multiplication", {"answer": steal}),
        ("simple_integration", {"metadata": {"integrand": steal, "variable": "x"}}),
    ):
        entry = entry_of(family)
        answer = entry["answer"]
        entry["metadata"] |= fields.get("metadata", {})
        entry["answer"] = fields.get("answer", answer)
        with pytest.raises(GoldError, match="its own answer"):
            score(f"<answer>{answer}</answer>", {"entry": entry, "family": family})
    assert not canary.exists()


# -- honest answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_answers_are_right(family):
    for index in range(2 if family in ("rush_hour", "knight_swap", "arc_agi") else 6):
        answer = right_answer(family, index)
        if "Integral(" in answer:  # sympy gave up: the question itself is no answer
            continue
        check_gold({"entry": entry_text(family, index), "family": family})
        assert is_right(answer, family, entry_of(family, index))


@pytest.mark.parametrize("name", ["word_ladder@0", "word_ladder@2", "polynomial_multiplication@3", "chain_sum@4"])
def test_gold_answers_of_other_levels_are_right(name):
    assert len(load_task(f"gym:{name}", limit=2, split="train").dataset) == 2


def honest_answers(family, index):
    """Right ones, written in several ways, equivalent ones and wrong ones; no code among them."""
    gold = right_answer(family, index)
    other = right_answer(family, index + 1)
    yield from (gold, other, gold + " ", "\n" + gold, gold.replace(" ", ""), gold.replace(", ", ","), gold.lower())
    yield from ("", "0", "1", "24", "no", "I do not know", gold[:-1], gold + "0", gold[::-1], f"({gold})", f"[{gold}]")
    yield from (gold.replace("\n", " "), f'"{gold}"', gold.replace("1", "2", 1), gold.replace("+", "-", 1))
    if family in ("binary_matrix", "n_queens"):
        rows = [row.split() for row in gold.split("\n")]
        yield from (str(rows), json.dumps(rows), str(tuple(map(tuple, rows))), "\n".join(map(",".join, rows)))
    if family in ("spiral_matrix", "string_insertion"):
        yield from (str(gold.split()), json.dumps(gold.split()), ", ".join(gold.split()), str(list(gold)), repr(gold))
    if family == "n_queens":
        yield from entry_of(family, index)["metadata"]["valid_answers"]
    if family in ("countdown", "puzzle24"):
        yield from (f"1*({gold})", f"{gold} + 0", f"({gold})/1", f"-(-({gold}))", f"({gold}) - 1 + 1", f"{gold} = 24")
        yield from (gold.replace(" ", ""), gold.replace("*", " * "), gold + " apples", gold.replace("*", "×"), "1/0")
        numbers = [str(number) for number in entry_of(family, index)["metadata"]["numbers"]]
        yield from (sign.join(order) for order in (numbers, numbers[::-1], numbers[1:]) for sign in (" + ", "*", " - "))
    if family.endswith("integration"):
        yield from (gold.replace(" + C", ""), f"2*({gold})", f"{gold} + 5", f"{gold} + K", gold + " + x", "C")
        yield from (gold.replace("**", "^"), f"({gold})*1.0", f"{gold} - C", f"sin(x) + {gold}", "x**2/2 + C")
    if family == "polynomial_multiplication":
        terms = gold.split(" + ")
        yield from (" + ".join(reversed(terms)), f"1*({gold})", f"{gold} + 0", gold.replace("**", "^"))
        yield from (entry_of(family, index)["metadata"]["polynomial_expr"], f"({gold})/1", f"2*({gold})/2", gold + "*x")
    if family == "bitwise_arithmetic":
        value = int(gold, 16)
        yield from (str(value), bin(value), oct(value), gold.upper(), gold.upper().replace("X", "x"), hex(-value))
        yield from (f"{value}.0", hex(value + 1), gold.replace("0x", ""), f"{value:,}", f"0x0{value:x}")
    if family == "number_sorting":
        items = ast.literal_eval(gold)
        yield from (json.dumps(items), json.dumps([float(item) for item in items]), str(items[::-1]), str(items[:-1]))
        yield from (str([str(float(item) + 5) for item in items]), str(items + items[-1:]), ", ".join(items))
        yield from (str([f"{float(item):.3f}" for item in items]), str(tuple(items)), str(sorted(items)))


@pytest.mark.parametrize("family", sorted(EVALUATING))
def test_readers_agree_with_reasoning_gym_on_honest_answers(family):
    theirs = dataset(family).score_answer
    verdicts = []
    for index in range(3 if family.endswith("integration") or family == "puzzle24" else 5):
        if "Integral(" in right_answer(family, index):
            continue
        for answer in honest_answers(family, index):
            try:
                ours = is_right(answer, family, entry_of(family, index))
            except Exception:  # as `score` has it
                ours = False
            verdicts.append(ours)
            wanted = theirs(answer, dataset(family)[index]) >= 1.0
            if family == "puzzle24":  # theirs takes four numbers of any kind for the given ones
                numbers = entry_of(family, index)["metadata"]["numbers"]
                wanted = wanted and sorted(map(int, re.findall(r"\d+", answer))) == sorted(numbers)
            assert ours == wanted, answer
    assert len(verdicts) > 50 and 10 <= sum(verdicts) < len(verdicts)
