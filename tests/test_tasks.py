"""Own data is mapped and checked over all rows; named sets are as the table says, or an error tells the difference."""

import dataclasses
import json
import random
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from p2o.tasks import NAMED_SETS, DataError, check_questions, load_splits, load_task, questions
from p2o.tasks.named import balanced, load_set

ROWS = st.lists(
    st.tuples(st.sampled_from([None, "", " ", "a", "b", "c\ufffd", 3]), st.sampled_from([None, "", "1", "2"]))
)


@given(ROWS)
def test_every_row_is_kept_or_has_one_fault(rows):
    report = check_questions([p for p, _ in rows], [s for _, s in rows])
    faulty = [row for finding in report.findings for row in finding.rows]
    assert sorted([*report.kept, *faulty]) == list(range(len(rows)))
    kept = [rows[row] for row in report.kept]
    assert len({p for p, _ in kept}) == len(kept) and all(p in ("a", "b") and s in ("1", "2") for p, s in kept)
    assert report.stops == (report.error_message() is not None)
    json.dumps(report.to_dict())


def test_faults_by_row():
    report = check_questions(
        [
            "a",
            "a",
            "a ",
            "b\x0crac",
            "long",
            "odd",
            "c",
            [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}],
        ],
        ["1", "1 ", "1.0", "2", "3", "?", "4", "5"],
        same=lambda pairs: [float(a) == float(b) for a, b in pairs],
        refused=lambda prompts: {i: "no system" for i, p in enumerate(prompts) if isinstance(p, list)},
        too_long=lambda prompts: {prompts.index("long"): 99},
        unparsable=lambda solutions: [solutions.index("?")],
    )
    found = {finding.what: finding.rows for finding in report.findings}
    assert found == {
        "duplicate": (1, 2),
        "prompt that the chat template refuses": (7,),
        "broken encoding": (3,),
        "prompt too long": (4,),
        "unparsable solution": (5,),
    }
    assert report.kept == (0, 6) and not report.stops and "6 of 8 questions dropped" in report.line()
    conflict = check_questions(["a", "a"], ["1", "2"])
    assert conflict.stops and "row 1: '2', but '1' in row 0" in conflict.error_message()
    assert check_questions([1, 2], ["1", "2"]).stops and check_questions(["a", ""], ["1", "2"], strict=True).stops


def test_columns_are_mapped_and_prompts_formatted(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "a", "answer": 1}\n{"question": "b", "answer": "x"}\n')
    own = load_splits(str(path))["train"]
    kept, report = questions(
        own, prompt_column="question", solution_column="answer", system_prompt="S", answer_format="Box it."
    )
    assert kept["prompt"][0] == [{"role": "system", "content": "S"}, {"role": "user", "content": "a\n\nBox it."}]
    assert kept["solution"][:] == ["1", "x"] and not report.findings
    assert questions(own, prompt_column="question")[0]["prompt"][:] == ["a", "b"], "text stays text"
    with pytest.raises(DataError, match=r"no `prompts` column; it has question, answer"):
        questions(own, prompt_column="prompts")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": \n', "row 1: not valid JSON"),
        (b'{"a": "\xff"}\n', "row 1: not UTF-8"),
        (b'{"a": "\\ud800"}\n', "surrogate"),
    ],
)
def test_unreadable_rows_are_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": "b"}\n' + line)
    with pytest.raises(DataError, match=message):
        load_splits(str(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize("named", NAMED_SETS, ids=lambda named: named.name)
def test_a_set_in_the_hubs_layout(tmp_path, named):
    small = dataclasses.replace(named, rows=40, sample=named.sample and 8)
    listed = named.name == "olympiadbench"
    rows = [
        {
            named.prompt: f"Question {i}?",
            named.solution: [str(i)] if listed else str(i),
            "difficulty": 6.0 + i % 3,
            "topic": f"Mathematics -> {'AB'[i % 10 == 1]} -> x",
        }
        for i in range(40)
    ]
    Dataset.from_list(rows).to_json(tmp_path / f"{named.split}.jsonl")
    task = load_set(small, path=str(tmp_path))
    assert task.verifier == "math" and len(task.dataset) == (8 if named.sample else 40)
    row = task.dataset[0]
    assert row["prompt"][0]["content"] == f"Question {row['solution']}?\n\n{named.answer_format}"
    if named.balance:
        assert all(int(s) % 3 for s in task.dataset["solution"]), "only the difficult ones"
    with pytest.raises(DataError, match="expected 41"):
        load_set(dataclasses.replace(small, rows=41), path=str(tmp_path))
    with pytest.raises(DataError, match="no column nowhere"):
        load_set(dataclasses.replace(small, prompt="nowhere"), path=str(tmp_path))


@given(st.lists(st.sampled_from("abc"), max_size=40), st.data())
def test_balanced_is_as_even_as_can_be(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    drawn = balanced(labels, count, random.Random(0))
    assert len(set(drawn)) == len(drawn) == count
    had, got = Counter(labels), Counter(labels[i] for i in drawn)
    assert all(got[a] >= got[b] - 1 or got[a] == had[a] for a in had for b in had)


def test_reasoning_gym_and_the_embedded_world():
    task = load_task("gym:chain_sum@2+gcd", limit=6)
    assert [row["family"] for row in task.dataset] == ["chain_sum", "gcd"] * 3 and task.verifier == "gym"
    assert task.dataset.to_list() == load_task("gym:chain_sum@2+gcd", limit=6).dataset.to_list()
    assert len(load_task("pico:hard", limit=3).dataset) == 3
    for name, message in [
        ("gym:chain_sums", "chain_sum"),
        ("gym:gcd@9", "levels 0 to"),
        ("pico:x", "pico:hard"),
        ("aime", "aime24"),
    ]:
        with pytest.raises(DataError, match=message):
            load_task(name)
