"""Data files in the shapes in which people have them, each with what a sensible person would make of it.

`SHAPES` are made here. `FIELD` are files of a collection that is not part of the project; they are read where
`P2O_FIELD_CASES` names its folder, or where it lies beside the checkout.
"""

import csv
import gzip
import io
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

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


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def parquet(**columns):
    file = io.BytesIO()
    pandas.DataFrame(columns).to_parquet(file)
    return file.getvalue()


def rows(*solutions):
    return [{"prompt": f"Question number {n}?", "solution": s} for n, s in enumerate(solutions)]


def asked(text, role="user"):
    return {"role": role, "content": text}


THREE = rows("11", "13", "17")
PLAIN = lines(*THREE)
CSV = "prompt,solution\nHow many?,007\nAnd then?,4.50\n"
CHAT = [asked("Half of 46?")]
CUT = {"prompt_column": "messages", "solution_column": "answer"}
ANSWERED = lines({"messages": [*CHAT, asked("It is 23.", "assistant")], "answer": "23"})
QA = {"prompt_column": "question", "solution_column": "answer"}

# name: file name, content, options of `questions`, what becomes of it
SHAPES = {
    # values
    "numbers beside texts": ("a.jsonl", lines(*rows(7, "007", "y-2")), {}, (3, "7")),
    "texts that look like something else": ("a.jsonl", lines(*rows("007", 3, "1e3", ["x"])), {}, (4, "007")),
    "texts that look like dates": ("a.jsonl", lines(*rows("2021-03-04", "2022-05-06")), {}, (2, "2021-03-04")),
    "numbers that no float holds": ("a.jsonl", lines(*rows(2**80 + 1, 0.5)), {}, (2, str(2**80 + 1))),
    "tiny numbers": ("a.jsonl", lines(*rows(2.5e-7, 1)), {}, (2, "0.00000025")),
    "huge numbers": ("a.jsonl", lines(*rows(6e23)), {}, (1, "600000000000000000000000")),
    "whole floats": ("a.jsonl", lines(*rows(12.0, 2.5)), {}, (2, "12")),
    "not a number": ("a.jsonl", lines('{"prompt": "a", "solution": NaN}', *rows(5)), {}, (1, "5")),
    "lists of one": ("a.jsonl", lines(*rows(["19"], ["23"])), {}, (2, "19")),
    "a list of one beside a text": ("a.jsonl", lines(*rows(["19"], "23")), {}, (2, "19")),
    "lists of several": ("a.jsonl", lines(*rows(["19", "20"])), {}, "wrong type of solution … list of 2"),
    "mappings with ground_truth": ("a.jsonl", lines(*rows({"ground_truth": "29", "style": "x"})), {}, (1, "29")),
    "mappings": ("a.jsonl", lines(*rows({"value": "29", "unit": "m"})), {}, "mapping with value, unit … COLUMN.PART"),
    "parts of mappings": (
        "a.jsonl",
        lines(*rows({"value": "29", "unit": "m"})),
        {"solution_column": "solution.value"},
        (1, "29"),
    ),
    "booleans": ("a.jsonl", lines(*rows(True, False)), {}, "wrong type of solution … boolean, not text"),
    "a boolean among texts": ("a.jsonl", lines(*rows("31", True)), {}, (1, "31")),
    "nothing in some rows": ("a.jsonl", lines(*rows("31", None), {"prompt": None, "solution": "3"}), {}, (1, "31")),
    "worked answers": (
        "a.jsonl",
        lines(*rows("The answer for one is 6, so 6*7=<<6*7=42>>42 in all.\n#### 42", "#### 1,042\n")),
        {},
        (2, "42"),
    ),
    "a number sign within": ("a.jsonl", lines(*rows("### 42 is \\boxed{43}")), {}, (1, "### 42 is \\boxed{43}")),
    "golds that no answer can match": (
        "a.jsonl",
        lines(*rows("proof", "See the figure below.", "Every prime greater than two must of course be odd.", "43")),
        {},
        (1, "43"),
    ),
    # prompts
    "chats with empty tool calls": (
        "a.jsonl",
        lines(
            {"prompt": [{**asked("One?"), "tool_calls": None}], "solution": "1"},
            {"prompt": [asked("S", "system"), asked("Two?")], "solution": "2"},
        ),
        {},
        (2, "1"),
    ),
    "a chat in a list": ("a.jsonl", lines({"prompt": [CHAT], "solution": "23"}), {}, (1, "23")),
    "two chats in a list": ("a.jsonl", lines({"prompt": [CHAT, CHAT], "solution": "23"}), {}, "wrong type of prompt"),
    "a single message": ("a.jsonl", lines({"prompt": CHAT[0], "solution": "23"}), {}, (1, "23")),
    "a chat as JSON text": ("a.jsonl", lines({"prompt": json.dumps(CHAT), "solution": "23"}), {}, (1, "23")),
    "a chat as Python writes it": ("a.csv", f'prompt,solution\n"{CHAT}",23\n'.encode(), {}, (1, "23")),
    "texts and chats": ("a.jsonl", lines(*THREE, {"prompt": CHAT, "solution": "23"}), {}, (4, "11")),
    "chats of parts": (
        "a.jsonl",
        lines({"prompt": [asked([{"type": "text", "text": "Half of 46?"}])], "solution": "23"}, *THREE),
        {},
        (4, "23"),
    ),
    "empty prompts": (
        "a.jsonl",
        lines({"prompt": [], "solution": "1"}, {"prompt": " ", "solution": "1"}, *THREE),
        {},
        (3, "11"),
    ),
    "no user": ("a.jsonl", lines({"prompt": [asked("S", "system")], "solution": "1"}), {}, "no user message"),
    "chats with the answer": ("a.jsonl", ANSWERED, CUT, "ends with the assistant's answer … --cut_last_answer true"),
    "chats with the answer, cut": ("a.jsonl", ANSWERED, {**CUT, "cut_last_answer": True}, (1, "23")),
    "chats with the answer, kept": ("a.jsonl", ANSWERED, {**CUT, "cut_last_answer": False}, (1, "23")),
    # layouts
    "ShareGPT": (
        "a.jsonl",
        lines({"conversations": [{"from": "human", "value": "Half of 46?"}, {"from": "gpt", "value": "23"}]}),
        {"cut_last_answer": True},
        (1, None),
    ),
    "Alpaca": (
        "a.jsonl",
        lines(
            {"instruction": "Add.", "input": "20 and 3", "output": "23"}, {"instruction": "Half of 46?", "output": "23"}
        ),
        {},
        (2, "23"),
    ),
    "verl": (
        "a.parquet",
        parquet(
            data_source=["made_up"] * 2,
            prompt=[[asked("Half of 46?")], [asked("Half of 62?")]],
            reward_model=[{"ground_truth": "23", "style": "rule"}, {"ground_truth": "31", "style": "rule"}],
            extra_info=[{"answer": "twenty-three", "index": 0}, {"answer": "thirty-one", "index": 1}],
        ),
        {},
        (2, "23"),
    ),
    "verl, lists as text": (
        "a.jsonl",
        lines({"prompt": CHAT, "reward_model": {"ground_truth": '["\\\\frac{46}{2}"]'}}),
        {},
        (1, "\\frac{46}{2}"),
    ),
    "verl, another part": (
        "a.jsonl",
        lines({"prompt": CHAT, "reward_model": {"ground_truth": "0"}, "extra_info": {"answer": "23"}}),
        {"solution_column": "extra_info.answer"},
        (1, "23"),
    ),
    "verl, no such part": (
        "a.jsonl",
        lines({"prompt": CHAT, "reward_model": {"ground_truth": "0", "style": "rule"}}),
        {"solution_column": "reward_model.gold"},
        "`reward_model` has no part `gold`; it has ground_truth, style … --solution_column",
    ),
    "columns of other names": (
        "a.jsonl",
        lines({"question": "Half of 46?", "answer": "23"}),
        {},
        "no `prompt` column; it has question, answer … --prompt_column, perhaps question",
    ),
    "no such column": (
        "a.jsonl",
        lines({"question": "Half of 46?", "answer": "23"}),
        {"prompt_column": "question", "solution_column": "solutions"},
        "no `solutions` column … --solution_column, perhaps answer",
    ),
    "columns that TRL takes": (
        "a.jsonl",
        lines(*({**row, "prompts": "p", "completions": "c", "trainer_state": 1, "level": 2} for row in THREE)),
        {},
        (3, "11"),
    ),
    "columns in some rows only": ("a.jsonl", lines(THREE[0], {**THREE[1], "tags": ["a", 1]}), {}, (2, "11")),
    "a column of everything": (
        "a.jsonl",
        lines(
            *({**row, "meta": meta} for row, meta in zip(THREE, ({"a": 1}, {"a": "x", "b": []}, "none"), strict=True))
        ),
        {},
        (3, "11"),
    ),
    # the same question again
    "the same but for blanks": (
        "a.jsonl",
        lines(*({"prompt": p, "solution": "5"} for p in ("2 + 3?", " 2 + 3?\n", "2  + 3?", "3 + 2?"))),
        {},
        (2, "5"),
    ),
    "the same with equal golds": (
        "a.jsonl",
        lines(
            *({"prompt": "Half?", "solution": s} for s in (r"\frac{1}{2}", r"\dfrac{1}{2}", r"\frac12", "0.5", "1/2"))
        ),
        {},
        (1, r"\frac{1}{2}"),
    ),
    "the same with other golds": (
        "a.jsonl",
        lines(*rows("5"), *rows("6"), {"prompt": "b", "solution": "8"}),
        {},
        "same prompt, different solutions … row 1: '6', but '5' in row 0 … --conflicts first",
    ),
    "the first of other golds": (
        "a.jsonl",
        lines(*rows("5"), *rows("6"), {"prompt": "b", "solution": "8"}),
        {"conflicts": "first"},
        (2, "5"),
    ),
    "none of other golds": (
        "a.jsonl",
        lines(*rows("5"), *rows("6"), *rows("5"), {"prompt": "b", "solution": "8"}),
        {"conflicts": "drop"},
        (1, "8"),
    ),
    # encodings
    "a mark in front": ("a.jsonl", b"\xef\xbb\xbf" + PLAIN, {}, (3, "11")),
    "a mark and a broken row": ("a.jsonl", b"\xef\xbb\xbf" + PLAIN + b'{"prompt": \n', {}, "row 3: not valid JSON"),
    "DOS lines and empty ones": ("a.jsonl", b"\r\n" + PLAIN.replace(b"\n", b"\r\n\r\n"), {}, (3, "11")),
    "UTF-16": ("a.jsonl", PLAIN.decode().encode("utf-16"), {}, (3, "11")),
    "UTF-16 without a mark": ("a.csv", CSV.encode("utf-16-le"), {}, "looks like UTF-16 … iconv"),
    "Latin-1": (
        "a.jsonl",
        PLAIN + '{"prompt": "Où?", "solution": "1"}\n'.encode("latin-1"),
        {},
        "row 3: not UTF-8 … iconv",
    ),
    "Latin-1 in the header": ("a.csv", "prompt,réponse\na,1\n".encode("latin-1"), {}, "the header: not UTF-8"),
    "half of a pair": ("a.jsonl", PLAIN + b'{"prompt": "\\udc12", "solution": "1"}\n', {}, "row 3 … surrogate"),
    "a NUL": ("a.jsonl", PLAIN + b'{"prompt": "a\\u0000b", "solution": "1"}\n', {}, (3, "11")),
    "compressed": ("a.jsonl.gz", gzip.compress(PLAIN), {}, (3, "11")),
    "compressed and cut off": ("a.jsonl.gz", gzip.compress(PLAIN)[:-9], {}, "cannot be decompressed"),
    "compressed under a plain name": ("a.jsonl", gzip.compress(PLAIN), {}, "is a gzip file"),
    # JSON
    "an array": ("a.json", json.dumps(THREE, indent=1).encode(), {}, (3, "11")),
    "an array in JSON Lines": ("a.jsonl", json.dumps(THREE).encode(), {}, (3, "11")),
    "lines in JSON": ("a.json", PLAIN, {}, (3, "11")),
    "one object over lines": ("a.json", json.dumps(THREE[0], indent=1).encode(), {}, (1, "11")),
    "an outer key": ("a.json", json.dumps({"license": "x", "rows": THREE}).encode(), {}, (3, "11")),
    "splits as keys": ("a.json", json.dumps({"train": THREE, "test": THREE[:1]}).encode(), {}, (3, "11")),
    "several outer keys": ("a.json", json.dumps({"a": THREE, "b": THREE}).encode(), {}, "several lists of rows: a, b"),
    "lists by column": (
        "a.json",
        json.dumps({"prompt": ["a", "b"], "solution": ["37", "41"]}, indent=1).encode(),
        {},
        (2, "37"),
    ),
    "mappings by column": ("a.json", pandas.DataFrame(THREE).to_json().encode(), {}, (3, "11")),
    "a broken array": ("a.json", b'[{"prompt": "a",\n]', {}, "not valid JSON"),
    "rows that are none": ("a.jsonl", b'{"prompt": "a"}\n"b"\n', {}, "row 1: str, not an object"),
    "no rows": ("a.json", b"[]", {}, "has no rows"),
    # CSV
    "CSV": ("a.csv", CSV.encode(), {}, (2, "007")),
    "CSV with a mark": ("a.csv", b"\xef\xbb\xbf" + CSV.encode(), {}, (2, "007")),
    "CSV with semicolons": ("a.csv", CSV.replace(",", ";").encode(), {}, (2, "007")),
    "CSV with tabs": ("a.tsv", CSV.replace(",", "\t").encode(), {}, (2, "007")),
    "CSV over lines": ("a.csv", b'prompt,solution\n"One,\ntwo?",2\nThree?,\n', {}, (1, "2")),
    "CSV with words for nothing": ("a.csv", b"prompt,solution\nOf what?,None\nTrue or false?,True\n", {}, (2, "None")),
    "CSV with commas": ("a.csv", b"prompt,solution\nOne, two?,2\n", {}, "row 0: 3 fields, the header has 2 … quotes"),
    "CSV that does not close": ("a.csv", b'prompt,solution\n"One?,2\n', {}, "row 0: not valid CSV"),
    "a header alone": ("a.csv", b"prompt,solution\n", {}, "has a header (prompt, solution) and no rows"),
    "two columns of one name": ("a.csv", b"prompt,prompt\na,b\n", {}, "several columns named prompt"),
    # Parquet
    "Parquet": ("a.parquet", parquet(prompt=["a", "b"], solution=[43, 47]), {}, (2, "43")),
    "arrays": ("a.parquet", parquet(prompt=["a", "b"], solution=[["43"], ["47"]]), {}, (2, "43")),
    "bytes": ("a.parquet", parquet(prompt=[b"a", b"b"], solution=[b"43", b"\xff"]), {}, (1, "43")),
    "categories": ("a.parquet", parquet(prompt=["a", "b"], solution=pandas.Categorical(["43", "47"])), {}, (2, "43")),
    "days": ("a.parquet", parquet(prompt=["a"], solution=[pandas.Timestamp("2020-02-03")]), {}, "datetime, not a text"),
    "an empty column": ("a.parquet", parquet(prompt=["a"], solution=["43"], other=[None]), {}, (1, "43")),
    "Parquet, cut off": (
        "a.parquet",
        parquet(prompt=["a"], solution=["43"])[:-50],
        {},
        "is cut off … Download it again",
    ),
    # no data at all
    "nothing": ("a.parquet", b"", {}, "is empty"),
    "blanks": ("a.jsonl", b" \n\n", {}, "is empty"),
    "a pointer": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
        {},
        "is a Git LFS pointer … git lfs pull",
    ),
    "a web page": ("a.parquet", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", {}, "is a web page"),
    "a web page as JSON": ("a.json", b"\n<html>Not found</html>", {}, "is a web page"),
    "JSON as Parquet": ("a.parquet", PLAIN, {}, "is not a Parquet file"),
    "another format": ("a.xlsx", b"PK\x03\x04", {}, "has an unsupported format"),
}


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
