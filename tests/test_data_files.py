"""Data files in the shapes in which people have them, each with what a sensible person would make of it.

`SHAPES` are made in data_shapes.py. `FIELD` are files of a collection that is not part of the project; they are read
where `P2O_FIELD_CASES` names its folder, or where it lies beside the checkout.
"""

import csv
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shapes import CUT, PLAIN, QA, SHAPES, THREE, lines, rows
from p2o import P2OConfig
from p2o.input_checks import check_questions
from p2o.tasks import DataError, equal_golds, load_splits, questions
from p2o.verifiers import check_solutions, unmatchable

FIELD_CASES = Path(os.environ.get("P2O_FIELD_CASES", Path(__file__).parents[2] / "shared" / "field")) / "data"


def verdict(path, split="train", **options):
    """(rows kept, first solution), or the message that stops."""
    try:
        data, report = questions(
            load_splits(str(path))[split],
            unparsable=check_solutions,
            unmatchable=unmatchable,
            same=equal_golds,
            name=path.name,
            **options,
        )
    except DataError as error:
        return str(error)
    if problem := report.error_message():
        return problem
    return len(data), data["solution"][0] if "solution" in data.column_names else None


def agrees(found, wanted):
    if isinstance(found, str) or isinstance(wanted, str):
        return isinstance(found, str) and isinstance(wanted, str) and all(w in found for w in wanted.split(" … "))
    return found == wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape(tmp_path, shape):
    name, content, options, wanted = SHAPES[shape]
    (tmp_path / name).write_bytes(content)
    found = verdict(tmp_path / name, **options)
    assert agrees(found, wanted), found


# name: options of `questions`, what becomes of it
FIELD = {
    "01_mixed_int_str.jsonl": ({}, (3, "2")),
    "02_list.jsonl": ({}, (4, "2")),
    "02b_list_and_text.jsonl": ({}, (2, "2")),
    "03_none.jsonl": ({}, (1, "2")),
    "04_bom.jsonl": ({}, (4, "2")),
    "04b_crlf.jsonl": ({}, (4, "2")),
    "04c_bom.csv": ({}, (4, "2")),
    "04d_utf16.csv": ({}, (4, "2")),
    "04e_blank_lines.jsonl": ({}, (4, "2")),
    "05_tool_calls_null.jsonl": ({}, (2, "2")),
    "05b_nested_chat.jsonl": ({}, (3, "2")),
    "05c_dict_prompt.jsonl": ({}, (3, "2")),
    "05d_sharegpt.jsonl": ({}, "ends with the assistant's answer"),
    "05e_messages_with_answer.jsonl": (CUT, "ends with the assistant's answer … --cut_last_answer"),
    "05g_prompt_str_and_chat.jsonl": ({}, (2, "2")),
    "05h_json_string_prompt.jsonl": ({}, (3, "2")),
    "06_alpaca.jsonl": ({}, (3, "2")),
    "07_gsm8k.jsonl": (QA, (5, "22")),
    "08_verl.parquet": ({}, (5, "2")),
    "08_verl20.parquet": ({}, (20, "2")),
    "08c_solution_ndarray.parquet": ({}, (3, "2")),
    "08d_solution_int.parquet": ({}, (3, "2")),
    "08e_null_column.parquet": ({}, (3, "2")),
    "08g_timestamp.parquet": ({}, "wrong type of solution … datetime"),
    "08h_binary.parquet": ({}, (3, "2")),
    "08i_category.parquet": ({}, (3, "2")),
    "09_extra_columns.jsonl": ({}, (4, "2")),
    "10_duplicates.jsonl": ({}, (2, "2")),
    "10b_conflict.jsonl": ({}, "row 1: '3', but '2' in row 0 … --conflicts first"),
    "12_lfs.parquet": ({}, "is a Git LFS pointer … git lfs pull"),
    "12b_empty.parquet": ({}, "is empty"),
    "13_outer_key.json": ({}, (4, "2")),
    "13b_array.json": ({}, (4, "2")),
    "13c_dict_of_lists.json": ({}, (4, "2")),
    "14_nan.jsonl": ({}, (2, "3")),
    "14b_bool.jsonl": ({}, "wrong type of solution … boolean, not text"),
    "14c_bigint.jsonl": ({}, (2, "1180591620717411303424")),
    "14d_float.jsonl": ({}, (3, "0.1")),
    "15_yes_no.jsonl": ({}, (5, "Yes")),
    "16_whole_solutions.jsonl": ({"prompt_column": "problem"}, (2, "We add.\n\n$$1+1=2$$ hence $\\boxed{2}$.")),
    "17_latin1.jsonl": ({}, "row 0: not UTF-8 … iconv"),
    "17b_surrogate.jsonl": ({}, "row 0: half of a surrogate pair"),
    "17c_nul.jsonl": ({}, (4, "2")),
    "18_special_tokens.jsonl": ({}, (2, "2")),
    "19_varying_columns.jsonl": ({}, (4, "2")),
    "19b_meta_mixed.jsonl": ({}, (3, "2")),
    "20_csv_numbers.csv": ({}, (2, "2")),
    "20b_header_only.csv": ({}, "has a header (prompt, solution) and no rows"),
    "20c_semicolons.csv": ({}, (1, "2")),
    "20d_leading_zero.csv": ({}, (2, "004")),
    "21_dict_solution.jsonl": ({}, (3, "2")),
    "22_empty_prompt.jsonl": ({}, (1, "4")),
    "23b_same_all_text.jsonl": ({}, (5, "3")),
    "25_plain.jsonl": (QA, (24, "2")),
    "26_golds.jsonl": ({}, (19, "√17")),
}


@pytest.mark.skipif(not FIELD_CASES.is_dir(), reason="the collection is not here")
@pytest.mark.parametrize("name", FIELD)
def test_a_file_of_the_collection(name):
    options, wanted = FIELD[name]
    found = verdict(FIELD_CASES / name, **options)
    assert agrees(found, wanted), found


@pytest.mark.skipif(not FIELD_CASES.is_dir(), reason="the collection is not here")
def test_the_collection_is_judged_in_full():
    assert {path.name for path in FIELD_CASES.iterdir()} == FIELD.keys()


def test_what_was_read_in_another_way_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(SHAPES["columns that TRL takes"][1])
    data, report = questions(load_splits(str(tmp_path / "a.jsonl"))["train"])
    assert data.column_names == ["level", "prompt", "solution"]
    assert any("prompts, completions, trainer_state" in note for note in report.notes)
    for shape, told in (
        ("verl", "`reward_model.ground_truth`"),
        ("worked answers", "2 solutions end in `#### …`"),
        ("a chat as JSON text", "1 prompts were chats serialized as text"),
        ("chats with the answer, cut", "1 chats ended with the assistant's answer"),
    ):
        name, content, options, _ = SHAPES[shape]
        (tmp_path / name).write_bytes(content)
        _, report = questions(load_splits(str(tmp_path / name))["train"], **options)
        assert any(told in note for note in report.notes), report.notes


def test_other_columns_stay_as_they_are(tmp_path):
    extra = [{"a": ["x", 1, None]}, "007", 7, [True], None, 2.5, "[1]"]
    (tmp_path / "a.jsonl").write_bytes(
        lines(*({**row, "extra": e} for row, e in zip(rows(*"1234567"), extra, strict=True)))
    )
    (tmp_path / "a.csv").write_text("prompt,solution,level,share\na,1,3,0.5\nb,2,4,\n")
    assert load_splits(str(tmp_path / "a.jsonl"))["train"]["extra"][:] == extra
    table = load_splits(str(tmp_path / "a.csv"))["train"]
    assert table["level"][:] == [3, 4] and table["share"][:] == [0.5, None]


def test_folders_and_patterns(tmp_path):
    for name, content in (("train-1.jsonl", PLAIN), ("train-2.jsonl", lines(*rows(1, 2))), ("test.jsonl", PLAIN)):
        (tmp_path / name).write_bytes(content)
    splits = load_splits(str(tmp_path))
    assert splits["train"]["solution"][:] == ["11", "13", "17", "1", "2"] and len(splits["test"]) == 3
    assert len(load_splits(str(tmp_path / "train-*.jsonl"))["train"]) == 5
    DatasetDict({"train": Dataset.from_list(THREE)}).save_to_disk(tmp_path / "saved")
    assert len(load_splits(str(tmp_path / "saved"))["train"]) == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="contains no file in a supported format"):
        load_splits(str(tmp_path / "folder"))
    (tmp_path / "folder" / "train.parquet").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match="Git LFS pointer"):
        load_splits(str(tmp_path / "folder"))


def test_golds_that_nobody_can_be_paid_for_are_told_whatever_the_reward_is(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(SHAPES["golds that no answer can match"][1])
    loaded = load_splits(str(tmp_path / "a.jsonl"))["train"]
    data, report = questions(loaded, unmatchable=unmatchable)
    (finding,) = report.findings
    assert (finding.rows, finding.kept, report.stops, len(data)) == ((0, 1, 2), True, False, 4)
    assert (
        "Kept with a warning: 3 solution that no answer can match" in report.line() and "proof" in finding.first_rows()
    )
    assert not questions(loaded, unmatchable=unmatchable, strict=True)[1].stops, (
        "a function of the user's may know better"
    )
    data, report = questions(loaded, unmatchable=unmatchable, unparsable=lambda golds: [])
    assert data["solution"][:] == ["43"] and "3 of 4 questions dropped" in report.line()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["007", "[1]", "null", '{"role": "user", "content": "x"}', "2020-01-01", "#### 4", "['x']"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "ground_truth", "text"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", 3, None]), "content": JSON})
COLUMN = st.sampled_from(["prompt", "solution", "extra", "reward_model"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(COLUMN, JSON | st.lists(MESSAGE, max_size=3), max_size=4), min_size=1, max_size=4),
    st.sampled_from([None, True, False]),
    st.booleans(),
)
def test_whatever_stands_in_a_file_has_a_verdict(made, cut, chat):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(lines(*made))
        try:
            data, report = questions(
                load_splits(str(path))["train"],
                cut_last_answer=cut,
                system_prompt="S" if chat else None,
                answer_format="F",
                unmatchable=unmatchable,
            )
        except DataError:
            return
    assert report.stops == bool(report.error_message())
    if not report.stops:
        assert [row["prompt"] for row in data] and len(data) == len(report.kept)
        assert all(isinstance(row.get("solution", ""), str) for row in data)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet='a0.5-e,"\n; ', min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_cell_of_csv_stays_as_it_is_written(cells):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["prompt", "solution"], *([f"q{n}", cell] for n, cell in enumerate(cells))])
        data, report = questions(load_splits(str(path))["train"]) if any(map(str.strip, cells)) else ([], None)
        kept = [cell for cell in cells if cell.strip()]
        assert report is None or data["solution"][:] == kept


def test_a_script_is_told_of_columns_that_trl_takes(tmp_path):
    config = P2OConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, per_device_train_batch_size=2)
    data = Dataset.from_dict({"prompt": ["a", "b"], "completions": ["c", "d"]})
    with pytest.raises(ValueError, match="a column completions, which is what TRL hands"):
        check_questions(data, config)
