"""The report page: what it shows, and that a damaged run directory is told, not hidden."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from rich.console import Console

from p2o.cli import main
from p2o.cli.console import examples_table
from p2o.reports.differences import differences
from p2o.reports.figures import accuracy_figure
from p2o.reports.metrics import prompt_phases
from p2o.reports.page import render, write_report
from p2o.reports.run_data import RunData, hard_set_transitions, load_run
from p2o.reports.words import in_words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path):
    """A run directory as `p2o train` leaves it, in small, with a hostile template."""
    path = tmp_path / "run"
    for folder in ("hard_sets", "templates"):
        (path / folder).mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"method": "p2o", "seed": 3}))
    (path / "versions.json").write_text(json.dumps({"trl": "1.16.0"}))
    metrics = [
        {"step": 0, "eval_hard_accuracy": 0.01},
        {"step": 1, "epoch": 0.5, "loss": 0.1, "frac_reward_zero_std": 0.9, "p2o/rollouts/total": 64},
        {"step": 2, "epoch": 1, "loss": 0.1, "p2o/rollouts/total": 64, "p2o/events/single_template": 2},
        {"step": 2, "epoch": 1, "eval_hard_accuracy": 0.5},
        {"step": 3, "epoch": 1.5, "loss": 0.1, "p2o/templates": 3, "p2o/template_similarity": 0.25},
        {"step": 4, "epoch": 1.7, "loss": 0.1, "p2o/taken_over/templated": 0.5, "p2o/taken_over/bare": 0.1},
        {"step": 5, "epoch": 2, "loss": 0.1, "p2o/taken_over/templated": 0.625, "p2o/taken_over/bare": 0.375},
        {"step": 5, "epoch": 2, "loss": 0.1, "p2o/shift/head": -2.5, "p2o/shift/tail": -0.125},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for epoch, rows in ((1, [1, 2, 3, 4]), (2, [3, 4]), (3, [4])):
        (path / "hard_sets" / f"epoch-{epoch:03d}.json").write_text(json.dumps({"epoch": epoch, "rows": rows}))
    candidates = [
        {"index": 0, "text": "", "parents": [], "iteration": 0, "dev_rewards": {"1": 0}, "dev_solved": {"1": False}},
        {
            "index": 1,
            "text": "<script>alert(1)</script> Go on.",
            "parents": [0],
            "iteration": 1,
            "dev_rewards": {"1": 1},
            "dev_solved": {"1": True},
        },
    ]
    record = {"epoch": 1, "selected": [{"candidate": 1}], "evolution": {"candidates": candidates}}
    (path / "templates" / "epoch-001.json").write_text(json.dumps(record))
    for when, reward in (("before", 0.0), ("after", 1.0)):
        answers = [
            {"dataset": "hard", "question": "2 + 2 =", "completion": f"{when} </script>", "reward": reward},
            {"dataset": "hard", "question": "3 + 3 =", "completion": when, "reward": 0.0},
        ]
        (path / f"answers-{when}.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    spent = {"policy": 64, "evolution_dev": 2}
    summary = {
        "bare_accuracy": {"hard": {"before": 0.01, "after": 0.5}},
        "rollouts": {**spent, "total": 66},
        "tokens": {
            "prompt_tokens": spent,
            "completion_tokens": spent,
            "forward_tokens": 5,
            "forward_backward_tokens": 7,
        },
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_what_happened_is_said_in_words(run):
    said = " ".join(in_words(load_run(run)))
    for part in (
        "accuracy went on hard from 1.0% to 50.0%.",
        "Hard training questions: 4 in epoch 0, 1 in epoch 2.",
        "It took 66 rollouts, 3% of them to find instructions.",
        "1 prompt phase brought no instruction into use.",
    ):
        assert part in said
    record = json.loads((run / "templates" / "epoch-001.json").read_text())
    record["selected"] = [{"candidate": 1, "text": "<b>Go on.</b>", "score": 0.75}]
    (run / "templates" / "epoch-001.json").write_text(json.dumps(record))
    assert "The one with the best mean dev score, 0.75: “<b>Go on.</b>”" in in_words(load_run(run))[2]
    assert "“&lt;b&gt;Go on.&lt;/b&gt;”" in render([load_run(run)])
    assert in_words(RunData(run / "nowhere")) == []


def test_a_terminal_shows_the_same_answers_with_those_that_were_gained_first(run):
    """Long ones by their beginning and their end; what they look like is not taken for markup."""
    with (run / "answers-after.jsonl").open("a") as file:
        file.write(json.dumps({"dataset": "hard", "question": "long", "completion": "[b]" + "x" * 999, "reward": 1.0}))
    with (run / "answers-before.jsonl").open("a") as file:
        file.write(json.dumps({"dataset": "hard", "question": "long", "completion": "short", "reward": None}))
    examples = load_run(run).examples()
    assert [before["question"] for before, _ in examples] == ["2 + 2 =", "3 + 3 ="], "what nobody scored is left out"
    console = Console(width=900, file=io.StringIO())
    console.print(examples_table([*examples, (examples[0][0], {"completion": "[b]" + "x" * 999, "reward": 1.0})]))
    shown = console.file.getvalue()
    for part in (
        "2 + 2 =",
        "before </script>",
        "after </script>",
        "[reward 0]",
        "[reward 1]",
        "[b]xxx",
        "characters left out …]",
    ):
        assert part in shown
    assert shown.count("x") < 250


def test_the_page_is_whole_and_self_contained(run):
    page = render([load_run(run)])
    assert len(page.encode()) < 5e6
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:""", page.split('id="plotly"')[0])
    for part in (
        "1.0% → 50.0%",
        "#1 · 1.00",
        "in use",
        "2 + 2 =",
        "before, reward 0",
        "after, reward 1",
        "evolution dev",
        # Templates in use beside none, with Wilson's interval of one of one and of none of one.
        "none</th><td>0.0%</td><td>0.0% to 79.3%</td><td>1",
        "#1</th><td>100.0%</td><td>20.7% to 100.0%</td><td>1",
        "which made the choice",
        # The last of an epoch's values is that of all its questions.
        "run</th><td>1</td><td>62.5%</td><td>37.5%</td>",
    ):
        assert part in page
    assert "incomplete run directory" not in page
    # What a model wrote is text on this page, not markup.
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; Go on." in page
    charts = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL).group(1)
    figures = json.loads(charts)
    assert len(figures) == 7 == page.count('role="img"') == page.count("The numbers")
    assert "an epoch had a single template in use</td><td>2" in page
    similarity = next(
        f for f in figures if f["layout"]["xaxis"]["title"]["text"] == "epoch" and f["data"][0]["y"] == [0.25]
    )
    assert similarity["data"][0]["x"] == [2]
    heads = next(f for f in figures if f["data"][0].get("y") == [-2.5])
    assert heads["data"][0]["x"] == [2.0]


def test_curves_begin_at_zero_and_show_prompt_phases_and_what_there_was_before(tmp_path):
    def spent(policy, feedback=0, dev=0, reflection=0):
        parts = {"policy": policy, "evolution_feedback": feedback, "evolution_dev": dev, "reflection": reflection}
        return {f"p2o/rollouts/{name}": n for name, n in (*parts.items(), ("total", sum(parts.values())))}

    metrics = [
        {"step": 0, "eval_hard_accuracy": 0.25},
        {"step": 1, **spent(64)},
        {"step": 2, **spent(128)},
        {"step": 2, "eval_hard_accuracy": 0.5},
        {"step": 3, **spent(192, 20, 10, 6)},
        {"step": 4, **spent(256, 20, 10, 6)},
        {"step": 5, **spent(320, 21, 10, 6)},
    ]
    assert prompt_phases(metrics) == [(128, 164), (292, 293)] and prompt_phases([]) == []
    one, other = (RunData(tmp_path / name, metrics=metrics) for name in "ab")
    alone, both = accuracy_figure([one], "hard"), accuracy_figure([one, other], "hard")
    assert [(s.x0, s.x1) for s in alone.layout.shapes if s.x0 != 0] == [(128, 164), (292, 293)]
    for figure in (alone, both):
        assert [s.y0 for s in figure.layout.shapes if s.y0 == s.y1] == [0.25]
        assert figure.layout.xaxis.rangemode == "tozero" and figure.layout.yaxis.range[0] == 0
    assert len(both.layout.shapes) == 1, "phases of several runs would lie on top of each other"


@given(st.text("ab1 .\n", max_size=30), st.text("ab1 .\n", max_size=30))
def test_differences_leave_texts_as_they_are_and_mark_what_only_one_has(before, after):
    old, new = differences(before, after)
    assert ["".join(piece.text for piece in side) for side in (old, new)] == [before, after]
    assert [p.text for p in old if not p.is_new] == [p.text for p in new if not p.is_new]
    assert any(p.is_new for p in (*old, *new)) == (before != after)


def test_answers_are_compared_word_by_word_beside_the_instruction(run):
    record = json.loads((run / "templates" / "epoch-001.json").read_text())
    record["selected"] = [{"candidate": 1, "text": "Go <on>.", "score": 0.5}, {"candidate": 0, "text": "", "score": 1}]
    (run / "templates" / "epoch-001.json").write_text(json.dumps(record))
    for when, completion in (("before", "So 5 <b>."), ("after", "So 2+2=4 <b>.")):
        answer = {"dataset": "hard", "question": "2 + 2 =", "completion": completion, "reward": 0.0}
        (run / f"answers-{when}.jsonl").write_text(json.dumps(answer) + "\n")
    page = render([load_run(run)])
    assert ">So <u>5</u> &lt;b&gt;.</pre>" in page and ">So <u>2+2=4</u> &lt;b&gt;.</pre>" in page
    assert "<blockquote>Go &lt;on&gt;.</blockquote>" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_pictures_for_the_documentation_are_taken_by_a_script(run, tmp_path):
    script = Path(__file__).parent.parent / ".ci" / "screenshots.py"
    subprocess.run([sys.executable, script, run, tmp_path / "shown"], check=True, timeout=120)
    for scheme in ("light", "dark"):
        assert (tmp_path / f"shown-{scheme}.png").read_bytes().startswith(b"\x89PNG")


def test_trials_take_the_place_of_evolutions_own_rollouts(run):
    path = run / "templates" / "epoch-001.json"
    record = json.loads(path.read_text())
    solved = {str(question): 0.25 for question in range(8)}
    record["evolution"]["trials"] = {
        "0": {"solved": {**solved, "0": 0.0}, "reward": 0.2},
        "1": {"solved": solved, "reward": 0.25},
    }
    path.write_text(json.dumps(record))
    page = render([load_run(run)])
    assert "made again after the choice" in page
    assert "none</th><td>21.9%</td>" in page and "#1</th><td>25.0%</td><td>7.1% to 59.1%</td><td>8" in page


HOSTILE = "<img src=x onerror=alert(1)>"


def planted(value):
    """The value with markup in place of everything in it but what is computed with."""
    if isinstance(value, dict):
        computed = ("dev_rewards", "dev_solved", "reward", "dataset")
        return {name: inner if name in computed else planted(inner) for name, inner in value.items()}
    return [planted(item) for item in value] if isinstance(value, list) else HOSTILE


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "templates/epoch-001.json", "answers-before.jsonl"])
def test_whatever_a_file_says_is_text_on_the_page(run, name):
    path = run / name
    if name == "config.yaml":
        path.write_text(yaml.safe_dump({"method": HOSTILE, HOSTILE: HOSTILE}))
    elif name.endswith("jsonl"):
        for when in ("before", "after"):
            file = run / f"answers-{when}.jsonl"
            records = [planted(json.loads(line)) for line in file.read_text().splitlines()]
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        record = planted(json.loads(path.read_text()))
        if "evolution" in record:
            # One is the child of the other, so that both are in the tree.
            for index, candidate in enumerate(record["evolution"]["candidates"]):
                candidate["index"] = f"{index}{HOSTILE}"
                candidate["parents"] = [f"0{HOSTILE}"] if index else []
        path.write_text(json.dumps(record))
    page = render([load_run(run)])
    assert "&lt;img src=x onerror=alert(1)&gt;" in page, "it is shown"
    assert "<img" not in page.split('id="charts"')[0]


@pytest.mark.parametrize("content", ["[]", "7", '{"epoch": 1}', '"x"'])
@pytest.mark.parametrize("name", ["templates/epoch-001.json", "hard_sets/epoch-001.json", "answers-after.jsonl"])
def test_a_record_of_another_shape_is_named(run, name, content):
    (run / name).write_text(content)
    page = render([load_run(run)])
    assert f"{name} is damaged" in page or f"{name} has 1 damaged line(s)" in page
    assert "Ledger" in page


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "summary.json", "metrics.jsonl"])
def test_a_file_that_holds_a_number_is_named(run, name):
    (run / name).write_text("7")
    page = render([load_run(run)])
    assert f"{name} is damaged" in page or f"{name} has 1 damaged line(s)" in page


def test_a_report_that_cannot_be_written_is_a_message(run, tmp_path, capsys):
    assert main(["report", str(run), "--output", str(tmp_path / "nowhere" / "page.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot write" in said and "No such file" in said


def test_fate_of_the_hard_set():
    run = RunData(None, hard_sets={1: [1, 2, 3, 4], 2: [3, 4], 3: [4, 5]})
    assert sorted(hard_set_transitions(run)) == sorted(
        [
            ("hard · 1", "solved with template · 2", 2),
            ("hard · 1", "hard · 2", 2),
            ("solved with template · 2", "solved bare · 3", 2),
            ("hard · 2", "solved with template · 3", 1),
            ("hard · 2", "hard · 3", 1),
            ("not hard yet · 2", "hard · 3", 1),
        ]
    )


@pytest.mark.parametrize(
    "name", ["config.yaml", "versions.json", "summary.json", "metrics.jsonl", "answers-after.jsonl"]
)
def test_a_missing_file_is_named_and_the_rest_is_shown(run, name):
    (run / name).unlink()
    page = render([load_run(run)])
    assert f"{name} is missing" in page and "Templates: run" in page


@pytest.mark.parametrize("name", ["versions.json", "summary.json", "metrics.jsonl", "templates/epoch-001.json"])
def test_a_half_written_file_is_named_and_the_rest_is_shown(run, name):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    page = render([load_run(run)])
    assert f"{name} is damaged" in page or f"{name} has 1 damaged line(s)" in page
    assert "Configuration and versions" in page


def test_several_runs_side_by_side(run, tmp_path, capsys):
    assert main(["report", str(run), str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "p2o (2 runs)" in (tmp_path / "page.html").read_text()
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such run directory" in capsys.readouterr().err


# -- in a real browser ------------------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1920, "light")])
def test_the_page_in_a_browser(run, tmp_path, browser, width, scheme):
    write_report([load_run(run)], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=120_000)
    charts = page.locator(".chart").all()
    drawn = [chart.locator(".main-svg").count() > 0 for chart in charts]
    assert len(charts) >= 3 and (width > 1000 or not all(drawn)), "what is far from the window waits"
    for chart in charts:
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    for chart in page.locator(".chart").all():
        box, drawn = chart.bounding_box(), chart.locator(".main-svg").first.bounding_box()
        assert drawn["width"] <= box["width"] + 1

    template = page.locator("details.template").nth(1)
    assert "<script>alert(1)</script> Go on." in template.locator("blockquote").inner_text(), "in use: it is open"
    template.locator("summary").click()
    assert not template.locator("blockquote").is_visible()
    # The same from the keyboard.
    template.locator("summary").focus()
    page.keyboard.press("Enter")
    assert template.locator("blockquote").is_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 19, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert errors == []
