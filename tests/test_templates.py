"""Application, selection and assignment of templates."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.templates import (
    Template,
    apply_template,
    assign_templates,
    mean_similarity,
    question_text,
    select_templates,
)

texts = st.text(min_size=1, max_size=30)
messages = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts})
chats = st.lists(messages, max_size=4).map(lambda head: [*head, {"role": "user", "content": "How much?"}])


@given(st.one_of(texts, chats), st.text(max_size=30))
def test_template_touches_only_the_last_user_message(prompt, template):
    before = copy.deepcopy(prompt)
    result = apply_template(prompt, template)
    assert prompt == before
    if not template.strip():
        assert result == prompt
        return
    expected = template.strip() + "\n\n" + question_text(prompt)
    assert question_text(result) == expected
    if isinstance(prompt, list):
        assert result[:-1] == prompt[:-1] and result[-1]["role"] == "user"


def test_template_goes_before_the_last_user_message_not_the_last_message():
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Let me"}]
    assert apply_template(chat, " Think. ")[0]["content"] == "Think.\n\nQ"
    assert apply_template(chat, "Think.")[1] == chat[1]


def test_template_in_front_of_content_parts():
    chat = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]
    assert apply_template(chat, "Z")[0]["content"][0] == {"type": "text", "text": "Z\n\n"}


@given(chats, st.text(max_size=30))
def test_a_template_in_the_system_message_touches_nothing_else(chat, template):
    before = copy.deepcopy(chat)
    result = apply_template(chat, template, "system")
    assert chat == before
    if not template.strip():
        assert result == chat
    elif chat[0]["role"] == "system":
        head, rest = result[0]["content"], result[1:]
        assert rest == chat[1:] and head.endswith(template.strip())
        assert head.removesuffix(template.strip()).strip() == chat[0]["content"].strip()
    else:
        assert result == [{"role": "system", "content": template.strip()}, *chat]


def test_a_template_behind_content_parts_of_a_system_message():
    chat = [{"role": "system", "content": [{"type": "text", "text": "S"}]}, {"role": "user", "content": "Q"}]
    assert apply_template(chat, "Z", "system")[0]["content"][1] == {"type": "text", "text": "\n\nZ"}
    with pytest.raises(ValueError, match="no system message"):
        apply_template("Q", "Z", "system")


def test_chat_without_a_user_is_refused():
    with pytest.raises(ValueError, match="no user message"):
        apply_template([{"role": "system", "content": "Be brief."}], "Z")


candidates = st.lists(
    st.builds(
        Template,
        text=st.sampled_from(["", "a", "b", "c"]),
        score=st.floats(0, 1),
        solves=st.frozensets(st.integers(0, 12)),
    ),
    max_size=8,
)


@given(candidates)
def test_cover_covers_all_that_can_be_covered_and_nothing_twice(pool):
    selected = select_templates(pool)
    coverable = frozenset().union(*(t.solves for t in pool if t.text))
    assert frozenset().union(*(t.solves for t in selected)) == coverable
    assert all(t.text for t in selected)
    seen: set[int] = set()
    for template in selected:
        gain = len(template.solves - seen)
        assert gain > 0
        assert gain == max(len(t.solves - seen) for t in pool if t.text)
        seen |= template.solves


@given(candidates)
def test_cover_is_the_best_of_the_rest_again_and_again(pool):
    rest, covered, expected = [t for t in pool if t.text], set(), []
    while rest:
        best = max(rest, key=lambda t: (len(t.solves - covered), t.score))  # the first of equals
        if best.solves <= covered:
            break
        rest.remove(best)
        covered |= best.solves
        expected.append(best)
    assert select_templates(pool) == expected


def test_cover_prefers_the_higher_score_in_a_tie():
    low, high = Template("a", 0.1, frozenset({1})), Template("b", 0.9, frozenset({1}))
    assert select_templates([low, high]) == [high]


def test_similarity_of_templates():
    assert mean_similarity(["Go on.", "Go on."]) == 1
    assert mean_similarity(["a b", "c d"]) == 0
    assert mean_similarity(["a b", "b c", "x"]) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert mean_similarity(["a"]) == mean_similarity([]) == 1


@given(
    st.lists(st.integers(0, 30), unique=True, max_size=10),
    candidates.map(select_templates),
    st.integers(2, 8),
    st.booleans(),
    st.integers(0, 1),
    st.integers(),
)
def test_assignment(questions, templates, k, same, bare, seed):
    def draw():
        return assign_templates(
            questions,
            templates,
            k,
            rng=random.Random(seed),
            same_template_per_group=same,
            bare_rollouts_per_group=bare,
        )

    assignment = draw()
    assert assignment == draw()
    if not templates:
        assert assignment == {}
        return
    assert set(assignment) == set(questions)
    for question, draws in assignment.items():
        assert len(draws) == k and draws[:bare] == [None] * bare and None not in draws[bare:]
        solving = {i for i, t in enumerate(templates) if question in t.solves}
        if solving:
            assert set(draws[bare:]) <= solving
        if same:
            assert len(set(draws[bare:])) == 1


def test_draws_follow_the_scores():
    templates = [Template("a", 0.75, frozenset()), Template("b", 0.25, frozenset())]
    draws = assign_templates([0], templates, 4000, rng=random.Random(0))[0]
    # Three standard errors of a binomial(4000, 0.75).
    assert abs(draws.count(0) / 4000 - 0.75) < 3 * (0.75 * 0.25 / 4000) ** 0.5
