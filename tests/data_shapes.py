"""Data files in the shapes in which people have them, each with what becomes of it."""

import gzip
import io
import json

import pandas


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
