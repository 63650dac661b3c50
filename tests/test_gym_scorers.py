"""reasoning-gym: no answer is run as code, right ones are paid in the forms that models write, wrong ones never."""

import ast
import itertools
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


# -- forms in which models write answers -----------------------------------------------------------------------------


def made(family, answer, question="", **metadata):
    return {"question": question, "answer": answer, "metadata": {"source_dataset": family, **metadata}}


SUM = made("chain_sum", "24680", "State the result: 20000 + 4680 =")
EQUATION = made("simple_equations", "17", "Solve for k: 3*k = 51", equation="3*k = 51", variable="k")
LEGS = made("leg_counting", "96", "How many legs are there if you have 12 spiders?")
NEGATIVE = made("decimal_chain_sum", "-12.75", "State the result: 1 - 13.75 =")
LETTERS = made("letter_counting", "3", 'How many times does the letter "e" appear in the text: "we see"?')
TOKENS = made("ab", "B# #A")
GREATEST = made("gcd", "12", "Find the Greatest Common Divisor of these numbers: 24, 36.")
FRACTION = made(
    "fraction_simplification",
    r"$\frac{3}{7}$",
    numerator=30,
    denominator=70,
    simplified_numerator=3,
    simplified_denominator=7,
)
DICE = made("dice", "11/36", "What are the odds of rolling 10 or higher?")
COIN = made("coin_flip", "0.3125", rational={"numerator": 5, "denominator": 16})
FACTORS = made("prime_factorization", "2 × 2 × 3 × 7", number=84, factors=[2, 2, 3, 7])
COMPLEX = made("complex_arithmetic", "-3.0 + 4.5i", num1=[0, 0], num2=[3, -4.5], operation="-", result=[-3.0, 4.5])
ANGLE = made("advanced_geometry", "41.19°", "find the angle ABC (in degrees)", task_type="angle_measure")
POINT = made("advanced_geometry", "(1.500, -2.250)", task_type="orthocenter", ortho=["3/2", "-9/4"])
LIST = made("list_functions", "[4, 12, 31]", "Input: [31, 4, 12]")
FILTERED = made("number_filtering", "['4.5', '-12.0']", "Keep all numbers")
YES = made("syllogism", "Yes", "Does it follow? (Answer Yes or No)")
TRUE = made("course_schedule", "True", "Return True or False")
DAY = made("calendar_arithmetic", "Friday", task="weekday_of_date")
COUNT = made("calendar_arithmetic", "700", "how many days? Answer with a number.", task="count_days")
HALTS = made("game_of_life_halting", "False")
POWER = made("power_function", "1352605460594.2", base=2.5, exponent=3)
SPELL = made("spell_backward", "ruobrah", word="harbour")
CAESAR = made("caesar_cipher", "MEET ME AT NOON")
SORTED = made("word_sorting", "Apple, fig, pear", sorted_words=["Apple", "fig", "pear"])
MATRIX = made("rotate_matrix", "3 1\n4 2")
BASE = made("base_conversion", "1a4", target_base=11)
POLYNOMIAL = made("polynomial_multiplication", "6*x**2 + 5*x - 6", polynomial_expr="(2*x + 3)*(3*x - 2)")
INTEGRAL = made("simple_integration", "2*x**3 + C", integrand="6*x**2", variable="x")
WAVE = made("intermediate_integration", "-cos(3*x)/3 + C", integrand="sin(3*x)", variable="x")
TARGET = made("countdown", "3*25 + 4", numbers=[3, 25, 4], target=79)
FOUR = made("puzzle24", "6*(5 + 1) - 12", numbers=[5, 1, 6, 12])
LOGIC = made("propositional_logic", None, premises=["(P → Q)", "P"], variables=["P", "Q"], example_answer="Q")
ROOTS = made("polynomial_equations", "-1.5, 2.0", real_solutions=[-1.5, 2.0])
NO_ROOTS = made("polynomial_equations", "", real_solutions=[])
LOCK = made(
    "quantum_lock",
    "A → B",
    initial_value=0,
    initial_state="red",
    target_value=6,
    buttons=[
        {"name": "A", "type": "add", "value": 3, "active_state": "any"},
        {"name": "B", "type": "multiply", "value": 2, "active_state": "any"},
        {"name": "C", "type": "subtract", "value": 1, "active_state": "any"},
    ],
)
COLORS = made(
    "graph_color", None, puzzle={"vertices": [0, 1, 2], "edges": [[0, 1]], "num_colors": 2, "color_options": [1, 2]}
)
CRYPT = made("cryptarithm", "A=1,B=2,C=3", words_letters=["A", "B"], result_letters="C")
INTERVAL = made("time_intervals", "3 days, 01:05:00", task_type="datetime")
CLOCK = made("time_intervals", "07:45", task_type="time")
SORTING = made("number_sorting", "['-4.0', '2.5']", direction="ascending")
GSM = made("gsm_symbolic", "42", "How many apples are left, and what do 42 dollars buy?")
BITS = made("bitwise_arithmetic", "0x1f", problem="(0x10 + 0xf)")

RIGHT = [
    (SUM, ["24680", "**24680**", "`24680`", "$24680$", r"\(24680\)", "24,680", "$24,680$", r"24{,}680", r"24\,680"]),
    (SUM, [r"\boxed{24680}", r"\text{24680}", r"\boxed{\mathbf{24680}}", "24680.", "24680.0", "+24680", "24 680"]),
    (SUM, ["The answer is 24680", "The final answer is **24680**.", "Answer: 24680", "x = 24680", "2.468e4"]),
    (SUM, ["20000 + 4680 = 24680", r"2.468 \times 10^{4}", "```\n24680\n```", "$$24680$$", r"\[24680\]", "*24680*"]),
    (EQUATION, ["k = 17", "x = 17", "$k = 17$", r"\text{k} = 17", "k=17.", "**k = 17**", "17.00"]),
    (LEGS, ["96 legs", r"96\text{ legs}", r"96 \text{ legs}", "**96 legs**", "96 legs.", "total legs = 96"]),
    (NEGATIVE, ["-12.75", "−12.75", r"\approx -12.75", "x ≈ -12.75", "$-12.75$", "-12.750", "-12.75."]),
    (LETTERS, ["3", "3 times", "**3 times**"]),
    (TOKENS, ["B# #A", r"B\# \#A", "`B# #A`"]),
    (GREATEST, ["gcd(24, 36) = 12", "GCD = 12"]),
    (FRACTION, ["3/7", "$3/7$", r"\frac{3}{7}", r"\dfrac{3}{7}", r"\tfrac{3}{7}", r"$\dfrac{3}{7}$", r"\frac37"]),
    (FRACTION, ["**3/7**", "30/70 = 3/7", r"\frac{30}{70} = \frac{3}{7}", r"\boxed{\frac{3}{7}}", "3 / 7", "3/7."]),
    (DICE, [r"\frac{11}{36}", "$11/36$", "**11/36**", "11 / 36", "P = 11/36"]),
    (COIN, ["5/16", r"\frac{5}{16}", "$0.3125$", "0.31250", "p = 0.3125", "**5/16**"]),
    (FACTORS, ["2*2*3*7", r"2 \times 2 \times 3 \times 7", r"$2^2 \cdot 3 \cdot 7$", "7 x 3 x 2 x 2"]),
    (FACTORS, ["84 = 2 × 2 × 3 × 7", r"2^{2} \times 3 \times 7", "2·2·3·7", "2**2 * 3 * 7"]),
    (COMPLEX, ["-3 + 4.5i", "-3.0+4.5j", "$-3 + 4.5i$", "(-3 + 4.5i)", "−3 + 4.5i", "-3 + 4.5*i", r"-3 + 4.5\,i"]),
    (COMPLEX, ["z = -3 + 4.5i", "4.5i - 3", "**-3.0 + 4.5i**"]),
    (ANGLE, ["41.19°", "41.19", r"41.19^\circ", r"$41.19^{\circ}$", "41.19 degrees", r"\angle ABC = 41.19^\circ"]),
    (POINT, ["(1.5, -2.25)", r"\left(1.5, -2.25\right)", "$(1.500, -2.250)$", "H = (1.5, -2.25)", "(1.5, −2.25)"]),
    (LIST, ["[4,12,31]", "4, 12, 31", "**[4, 12, 31]**", "$[4, 12, 31]$", "[4, 12, 31]."]),
    (FILTERED, ['["4.5", "-12.0"]', "[4.5, -12.0]", "[4.50, -12]", "`['4.5', '-12.0']`"]),
    (YES, ["yes", "YES", "**Yes**", "Yes.", r"\text{Yes}", "'Yes'"]),
    (TRUE, ["true", "`True`", r"\text{True}", "**True**.", "The answer is True."]),
    (DAY, ["**Friday**", "friday", "Friday.", r"\text{Friday}"]),
    (COUNT, ["700 days", "**700**", "700."]),
    (HALTS, ["false", "**False**", r"\text{False}"]),
    (POWER, ["1.35e+12", "1.35e12", r"1.35 \times 10^{12}", "$1.35 × 10^12$", "**1.35e+12**"]),
    (SPELL, ["**ruobrah**", '"ruobrah"', r"\text{ruobrah}", "`ruobrah`", "Ruobrah"]),
    (CAESAR, ["**MEET ME AT NOON**", '"MEET ME AT NOON"', r"\text{MEET ME AT NOON}"]),
    (SORTED, ["Apple,fig,pear", "**Apple, fig, pear**", r"\text{Apple, fig, pear}"]),
    (
        MATRIX,
        ["```\n3 1\n4 2\n```", "3  1\n4  2 ", r"\begin{bmatrix} 3 & 1 \\ 4 & 2 \end{bmatrix}", "| 3 | 1 |\n| 4 | 2 |"],
    ),
    (BASE, [r"1a4_{11}", "**1a4**", "$1a4_{11}$", r"\text{1a4}"]),
    (
        POLYNOMIAL,
        [
            "6x^2 + 5x - 6",
            "$6x^{2} + 5x - 6$",
            "6*x^2+5*x-6",
            "6x² + 5x − 6",
            "**6*x**2 + 5*x - 6**",
            "`6*x**2 + 5*x - 6`",
        ],
    ),
    (INTEGRAL, ["2x^3 + C", "$2x^{3}+C$", r"\frac{6x^3}{3} + C", "F(x) = 2*x**3 + C", "2 x³ + C", "`2*x**3 + C`"]),
    (WAVE, [r"-\frac{1}{3}\cos(3x) + C", r"-\frac{\cos(3x)}{3} + C", "-cos(3x)/3", "-1/3 cos(3x) + C"]),
    (
        TARGET,
        [
            "3 × 25 + 4",
            r"3 \times 25 + 4",
            "3*25+4 = 79",
            "`3*25 + 4`",
            "$3 \\cdot 25 + 4$",
            "(3 * 25) + 4",
            "**3*25 + 4**",
        ],
    ),
    (FOUR, ["6*(5+1)-12", "6 × (5 + 1) − 12 = 24", r"6 \times (5 + 1) - 12", "[6*(5 + 1)] - 12", "6(5 + 1) - 12"]),
    (LOGIC, ["(P ∧ Q)", "P ∧ Q", "$P ∧ Q$", "**P ∧ Q**", r"P \land Q", r"P \wedge Q"]),
    (ROOTS, ["-1.5, 2", "$-1.5, 2.0$", "−1.5, 2.0", "2.0, -1.5", '"-1.5, 2.0"']),
    (NO_ROOTS, ['""', "''"]),
    (LOCK, ["A → B", r"A \rightarrow B", "A -> B", r"$A \to B$", "A, B", "a → b"]),
    (COLORS, ["{0: 1, 1: 2, 2: 1}", '```json\n{"0": 1, "1": 2, "2": 2}\n```', r'\{"0": 1, "1": 2, "2": 1\}']),
    (CRYPT, ["A=1, B=2, C=3", "A = 1, B = 2, C = 3", "**A=1,B=2,C=3**", r"A=1,\ B=2,\ C=3"]),
    (INTERVAL, ["3 days, 01:05:00", "3 days, 1:05:00", "**3 days, 01:05:00**"]),
    (CLOCK, ["07:45", "7:45", "`07:45`", "07:45:00"]),
    (SORTING, ["[-4.0, 2.5]", "-4.0, 2.5", r"\left[-4.0, 2.5\right]", '["-4.0", "2.5"]', "```\n['-4.0', '2.5']\n```"]),
    (GSM, ["42", "**42**", "$42", "42 dollars", "42 apples", "x = 42"]),
    (BITS, ["0x1f", "31", "0x1F", "`0x1f`", "**0x1f**", "0b11111"]),
]

WRONG = [
    (SUM, ["24681", "24.680", "-24680", "24680 or 24681", "24680, 24681", "x > 24680", "x = 24680 or 5", "24680%"]),
    (
        SUM,
        [
            "24680 million",
            "24680 thousand",
            "24680^2",
            "1/24680",
            "24680!",
            "24680 = 24681",
            "2468",
            "246,80",
            "24,68,0",
        ],
    ),
    (
        SUM,
        ["20000 + 4681 = 24680", "x + 1 = 24680", "2x = 24680", "-x = 24680", "not 24680", "24680 apples", "24680 5"],
    ),
    (EQUATION, ["k = -17", "k = 17/2", "3k = 17", "k ≠ 17", "k < 17", "17k", "k = 17 or k = 18", "k = 1, 7", "1 7"]),
    (LEGS, ["96 spiders more", "96 dozen", "96 hundred legs", "96 legs or 97 legs", "legs", "9 6 legs", "96 percent"]),
    (NEGATIVE, ["12.75", "-12,75", "-1275", "- 12.76", "(12.75)", "-12.75e1"]),
    (LETTERS, ["3 letters e or so", "33", "3 times more", "3 times 2"]),
    (TOKENS, ["#A B#", "B##A", "B A"]),
    (GREATEST, ["24, 36", "1, 2", "gcd = 21", "12, 24", "2^12"]),
    (FRACTION, ["30/70", "6/14", "7/3", "-3/7", r"\frac{30}{70}", "0.428571", "3/7 + 1", "3/7/1", "37", "3, 7"]),
    (DICE, ["1136", "22/72", "25/36", "11/36 + 1/36", "11", "0.31"]),
    (COIN, ["5", "16/5", "0.32", "5/16/2", "3125", "1e999999999", "0.3125, 0.5"]),
    (
        FACTORS,
        ["2 × 3 × 7", "4 × 3 × 7", "84", "2 + 2 + 3 + 7", "2 × 2 × 3 × 7 × 1", "2^3 × 3 × 7", "42 = 2 × 2 × 3 × 7"],
    ),
    (
        COMPLEX,
        [
            "nan",
            "-3 - 4.5i",
            "3 + 4.5i",
            "-3",
            "4.5i",
            "4.5i + 3",
            "-4.5i - 3",
            "-3 + 4.6i",
            "nan+nanj",
            "inf",
            "-3, 4.5",
            "-34.5i",
        ],
    ),
    (ANGLE, ["41.19 radians", "-41.19°", "4119", "41.29°", "41.19, 2", "nan"]),
    (POINT, ["(-2.25, 1.5)", "(1.5, 2.25)", "1.5", "(1.5, -2.25, 7)", "(15, -2.25)", "(nan, nan)"]),
    (
        LIST,
        [
            "41231",
            "[4, 12]",
            "[12, 4, 31]",
            "[4, 12, 31, 31]",
            "4 12 31",
            "[41, 2, 31]",
            "{4, 12, 31}",
            "[[4, 12, 31]]",
        ],
    ),
    (FILTERED, ["[-12.0, 4.5]", "['4.5']", "[4.5, 12.0]", "4.5 -12.0", "['4.5', '-12.0', '-12.0']"]),
    (YES, ["No", "Yes and no", "not yes", "Yes No", "Yeah? No"]),
    (TRUE, ["False", "not True", "True or False", "1", "Untrue"]),
    (DAY, ["Thursday", "Friday or Monday", "Fri", "not Friday"]),
    (COUNT, ["699", "701", "700.4", "70", "700 or 701"]),
    (HALTS, ["True", "anything", "not False", "1", "0"]),
    (POWER, ["1.36e+12", "1.35e+11", "1.35", "13.5e12", "nan", "1e9999"]),
    (SPELL, ["ruobrahx", "ruobra", "harbour", "r u o b r a h", "ruobrah ruobrah"]),
    (CAESAR, ["MEET ME AT NOO", "meet me at noon", "MEETMEATNOON", "MEET ME AT NOON NOON"]),
    (SORTED, ["Apple, pear, fig", "Apple, fig, pear, zebra", "Apple, fig", "apple, fig, pear", "Apple fig pear"]),
    (MATRIX, ["3 1 4 2", "3 1\n2 4", "31\n42", "3 4\n1 2", "3 1\n4 2\n0 0"]),
    (BASE, ["1a4_{12}", "1a5", "420", "1A4_{10}", "01a4"]),
    (POLYNOMIAL, ["(2*x + 3)*(3*x - 2)", "6x^2 + 5x + 6", "6x2 + 5x - 6", "6*y**2 + 5*y - 6", "6x^2", "6x^3 + 5x - 6"]),
    (INTEGRAL, ["6*x**2", "3*x**2 + C", "2*y**3 + C", "2*x**3 + x", "Integral(6*x**2, x)", r"\int 6x^2 dx", "2x3 + C"]),
    (WAVE, ["cos(3x)/3 + C", "-cos(3x) + C", "-sin(3x)/3", "Integral(sin(3*x), x) + C", "-cos(x)/3 + C", "nan", "zoo"]),
    (TARGET, ["79", "3*25 + 4 + 0", "25*3 - 4", "3*25 + 4 = 80", "80 - 1", "3*25 + 04", "25*(3 + 4)", "3*25 + 4 # 7"]),
    (FOUR, ["24", "6*4*1*1", "6*(5+1)-12+0", "12 + 12", "6*5 - 6", "(6*(5 + 1) - 12)*1", "4!"]),
    (LOGIC, ["¬Q", "R", "P ∨ anything", "Q ∧ ¬P", "", "(", "Q)"]),
    (ROOTS, ["-1.5", "2.0", "-1.5, 2.0, 3.0", "1.5, 2.0", "-1.52.0", "-1.5, two", "nan, nan", "-1.5, 2.0, none"]),
    (NO_ROOTS, ["0", "no", "1.0, 2.0", "anything at all"]),
    (LOCK, ["A", "B → A", "A → C", "press A and then B", "A → B → C → C"]),
    (COLORS, ['{"0": 1, "1": 1, "2": 1}', '{"0": 1, "1": 2}', '{"0": 1, "1": 3, "2": 1}', "[1, 2, 1]", "1, 2, 1"]),
    (CRYPT, ["A=2,B=1,C=4", "A=1,B=2", "A=1,B=2,C=3,D=4", "123", "A=1,B=1,C=2", "A=12,B=3,C=15"]),
    (
        INTERVAL,
        ["3 days, 01:06:00", "4 days, 01:05:00", "01:05:00", "3 days", "3 days, 01:05:00, 5", "30 days, 01:05:00"],
    ),
    (CLOCK, ["07:46", "19:45", "0745", "7:45 pm", "07:45 or 08:45"]),
    (SORTING, ["[2.5, -4.0]", "[-4.0]", '["nan", "nan"]', "[NaN, NaN]", "[-4.0, 2.5, 9]", "-4.02.5", "[-8.0, 2.5]"]),
    (GSM, ["41", "42 or 43", "4 2", "42 43", "420", "4.2", "-42", "40 + 2 - 1"]),
    (BITS, ["0x1e", "-0x1f", "1f", "0x1f + 1", "0x1f or 31"]),
]


@pytest.mark.parametrize(
    ("entry", "answers"), RIGHT, ids=lambda value: None if isinstance(value, list) else str(value["answer"])
)
def test_the_same_answer_in_another_form_is_right(entry, answers):
    assert [answer for answer in answers if not score(f"<answer>{answer}</answer>", {"entry": entry})[0]] == []


@pytest.mark.parametrize(
    ("entry", "answers"), WRONG, ids=lambda value: None if isinstance(value, list) else str(value["answer"])
)
def test_another_answer_stays_wrong_in_any_form(entry, answers):
    for answer, frame in itertools.product(answers, ("{}", "**{}**", r"\boxed{{{}}}", "${}$", "`{}`", "Answer: {}")):
        completion = f"<answer>{frame.format(answer)}</answer>"
        assert not score(completion, {"entry": json.loads(json.dumps(entry))})[0], completion


@pytest.mark.parametrize(
    "entry", [entry for entry, _ in RIGHT], ids=lambda entry: f"{entry['metadata']['source_dataset']}"
)
def test_long_repetitive_answers_are_wrong_and_not_searched_for_ever(entry):
    parts = (
        "a",
        "1",
        " ",
        "-",
        "(",
        "{",
        "[",
        "$",
        "*",
        "\\",
        "1a",
        "1 ",
        "a ",
        "a=",
        "1,",
        "\\frac{",
        "\\text{",
        "x^",
        "\n",
    )
    for part, frame in itertools.product(parts, ("{}", "1{}!", r"\frac{{{}}}!", "x = {}", "{}°")):
        answer = frame.format(part * (4_000 // len(part)))
        assert not score(f"<answer>{answer}</answer>", {"entry": json.loads(json.dumps(entry))})[0]
