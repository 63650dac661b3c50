"""Backward rewrites: which numbers of a question can be asked for, and what the question then says."""

import re
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.difficulty.rewrites import LETTERS, WORDINGS, Rewrites, numbers_in, rewrites

plain = st.text(st.sampled_from("abz xyTH0123456789 .,:;/-+*^_$\\{}()=%#\n\t'"), max_size=60)
PIECES = [
    "Tom has ",
    " apples",
    ". How many ",
    r"$x^2 + 3x$ ",
    r"\frac{3}{4}",
    " 1,250 ",
    " 2 1/2 ",
    " 3rd ",
    " 0.5",
    " H2O ",
    "$a_{10}$",
    " 12:30 ",
    " 7% ",
    "\n1. ",
    " May 5, ",
]
texts = st.lists(st.sampled_from(PIECES) | plain, max_size=8).map("".join)
answers = st.sampled_from(["7", "12", r"\frac{1}{3}", "x + 1", "1,000", " 42 "])


@given(texts)
def test_every_digit_is_of_one_number(text):
    numbers = numbers_in(text)
    assert all(one.end <= other.start for one, other in pairwise(numbers))
    covered = {place for number in numbers for place in range(number.start, number.end)}
    assert {place for place, sign in enumerate(text) if sign in "0123456789"} <= covered
    for number in numbers:
        assert text[number.start : number.end] == number.text
        assert Fraction(number.value) >= 0


@given(texts, answers, st.integers(1, 2), st.booleans())
def test_a_number_is_asked_for_or_rejected_with_a_reason(text, answer, wordings, repeated):
    numbers, found = numbers_in(text), rewrites(text, answer, wordings=wordings, repeated=repeated)
    assert all(len(rejection.reason.split()) > 1 for rejection in found.rejected)
    if found.rejected and found.rejected[0].number is None:
        assert len(found.rejected) == 1 and not found.made
        return
    asked = [rewrite.number for rewrite in found.made]
    assert sorted({n.start for n in asked} | {r.number.start for r in found.rejected}) == [n.start for n in numbers]
    assert len(asked) == wordings * len(set(asked)) <= 2 * len(numbers)
    assert not {number.start for number in asked} & {rejection.number.start for rejection in found.rejected}


@given(texts, answers)
def test_with_the_number_put_back_it_is_the_question_again(text, answer):
    for rewrite in rewrites(text, answer).made:
        number = rewrite.number
        letter = next(x for x in LETTERS if f"value of {x}" in rewrite.question)
        assert not re.search(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", text)
        before, after = text[: number.start], text[number.end :]
        asked = re.escape(before) + rf" ?{letter}(?:-th)?[ *]?" + re.escape(after)
        assert re.search(asked, rewrite.question)
        assert rewrite.solution == number.value and answer.strip() in rewrite.question


@given(st.from_regex(r"[A-Za-z]{1,5}-?\d{1,4}[A-Za-z]{0,3}", fullmatch=True), answers)
def test_digits_in_words_are_left_alone(word, answer):
    found = rewrites(f"What is a {word}?", answer)
    assert not found.made


def asked(question, answer="99"):
    """By number, the question with the letter in its place."""
    made = rewrites(question, answer, wordings=1).made
    ending = "\n\n" + WORDINGS[0].split("\n\n")[1]
    return {one.solution: one.question.split(ending[:25])[0] for one in made}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Tom has 3 apples and buys 5.", {"3": "Tom has z apples and buys 5.", "5": "Tom has 3 apples and buys z."}),
        ("35 - 88 =", {"35": "z - 88 =", "88": "35 - z ="}),
        ("Pay 1,250.50 dollars.", {"1250.50": "Pay z dollars."}),
        ("Half is .5 here", {"0.5": "Half is z here"}),
        ("Take 3/4 of it", {"3/4": "Take z of it"}),
        ("Take 2 1/2 cups", {"5/2": "Take z cups"}),
        (r"Add $\frac{3}{4}$ to $\dfrac12$", {"3/4": r"Add $z$ to $\dfrac12$", "1/2": r"Add $\frac{3}{4}$ to $z$"}),
        ("Find the 21st term", {"21": "Find the z-th term"}),
        ("Solve 2x + 7 = 11", {"2": "Solve z*x + 7 = 11", "7": "Solve 2x + z = 11", "11": "Solve 2x + 7 = z"}),
        (r"Solve $2x = 6$", {"2": "Solve $z x = 6$", "6": "Solve $2x = z$"}),
        (r"Find $\sqrt2 \cdot3$", {"2": r"Find $\sqrt z \cdot3$", "3": r"Find $\sqrt2 \cdot z$"}),
        (r"Let $x^{12}$ be", {"12": r"Let $x^{z}$ be"}),
        ("A rope of 5kg and 20%", {"5": "A rope of z kg and 20%", "20": "A rope of 5kg and z%"}),
        ("A 3-digit code", {"3": "A z-digit code"}),
        ("Let z = 4 and w be", {"4": "Let z = u and w be"}),
        ("The sum of 10,20 and 30", {"10": "The sum of z,20 and 30", "30": "The sum of 10,20 and z"}),
    ],
)
def test_a_number_is_replaced_as_it_is_written(question, expected):
    found = asked(question)
    assert {value: found.get(value) for value in expected} == expected


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What is H2O?", "part of a word"),
        ("What is a T-34?", "part of a word"),
        ("What is 3D?", "part of a word"),
        ("Let $a_1$ be", "a subscript, which names something"),
        (r"Let $a_{10}$ be", "a subscript, which names something"),
        ("Let $x^12$ be", "an exponent without braces, of which TeX takes one digit"),
        ("At 12:30 it rings", "inside a ratio or a time"),
        ("From 20:53:04.592 on", "inside a ratio or a time"),
        ("Answer with -1 if not", "inside an instruction about the answer"),
        ("On 2024-05-17 it", "inside a date"),
        ("On May 5 it", "inside a date"),
        ("On 5 May it", "inside a date"),
        ("On 12/05/2024 it", "inside a date"),
        ("Python 3.11.7 is", "inside a version or an address"),
        ("See Figure 3 for", "a label"),
        ("Choose:\n1. a cat", "a label"),
        ("[asy] draw(3); [/asy]", "inside a drawing"),
        (r"\begin{array}{c} x \\[2mm] y \end{array}", "inside a formula's layout"),
        ("see https://a.b/7 now", "inside an address"),
        ("run `f(3)` now", "inside code"),
        ("He has 99 cats", "it equals the answer, which is stated"),
        ("3 cats and 3.0 dogs", "the question states its value a second time"),
        ("What is 5/0?", "a fraction over 0"),
    ],
)
def test_what_cannot_be_asked_for_says_why(question, reason):
    found = rewrites(question, "99")
    assert not found.made and {rejection.reason for rejection in found.rejected} == {reason}


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How many?", "3", "there is no number in it"),
        ("Take 3", "  ", "there is no answer to state"),
        ("Is 3 (A) odd (B) even?", "A", "the answer names a choice, which says nothing about a number"),
        ("z w u v k p q t 5", "3", "all of the letters z, w, u, v, k, p, q, t are in use"),
    ],
)
def test_a_question_may_be_rejected_as_a_whole(question, answer, reason):
    found = rewrites(question, answer)
    assert isinstance(found, Rewrites) and not found.made and [r.reason for r in found.rejected] == [reason]


def test_both_wordings_ask_for_the_number_and_state_the_answer():
    first, second = rewrites("Tom has 3 apples. How many are left?", "2").made
    assert first.question == (
        "Tom has z apples. How many are left?\n\nThe answer to this question is 2. What is the value of z?"
    )
    assert second.question == (
        "Find the value of z for which the answer to the following question is 2.\n\n"
        "Tom has z apples. How many are left?"
    )
    (tex,) = rewrites("Half of $3$ is?", r"\frac{3}{2}", wordings=1).made
    assert r"is $\frac{3}{2}$. What" in tex.question
    assert len(rewrites("3 cats and 3 dogs", "6", repeated=True).made) == 4
    with pytest.raises(ValueError, match="wordings=3 must be from 1 to 2"):
        rewrites("3", "3", wordings=3)
