"""reasoning-gym: answers in the forms in which models write them."""

import itertools
import json

import pytest

from p2o.verifiers.gym import score


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
