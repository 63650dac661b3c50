"""`p2o report --features`: what training moved and what features are about, on the page and from the keyboard."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache

import pytest
from playwright.sync_api import sync_playwright

from p2o.cli import main
from p2o.features.dynamics import BASE, Checkpoint, leads, summarise
from p2o.features.spans import KINDS
from p2o.reports.features_data import CONTEXTS, DYNAMICS, KIND, VERSION, load_features
from p2o.reports.page import render
from p2o.reports.run_data import RunData
from test_lead import CHECKPOINTS, planted, strengths_at, unrelated

HOSTILE = "<img src=x onerror=alert(1)>"
BUCKETS = ["hard"] * 40 + ["medium"] * 20 + ["easy"] + [None] * 3


def checkpoints(run="p2o-0"):
    measured = [(Checkpoint(BASE, BASE, 0, None), strengths_at(0, *planted(5)))]
    for name, method, made in ((run, "p2o", planted(5)), ("grpo-0", "grpo", unrelated(5))):
        for at in range(1, CHECKPOINTS):
            step = None if at == CHECKPOINTS - 1 else 10 * at  # a final model whose step is not recorded
            measured.append((Checkpoint(name, method, step, None), strengths_at(at, *made)))
    return measured


def dynamics(measured, buckets=BUCKETS):
    """The content of `dynamics.json`."""
    origin = {"model": "pico", "layer": "model.layers.2", "architecture": {}}
    rows, lead = summarise(measured, buckets), leads(measured, buckets, seed=0)
    found = {"kind": KIND, "version": VERSION, "dictionary": origin, "checkpoints": rows, "lead": lead}
    return json.dumps(found).replace("NaN", "null")


def feature(number, activity, text="3*4=", **rest):
    pieces = [["Work: ", False], [text, True], ["12\n", False]]
    contexts = [{"activation": 2.5, "before": "Work: ", "token": text, "after": "12\n", "pieces": pieces}]
    known = {"feature": number, "high": number < 5, "share": 0.875, "activity": activity}
    return {**known, **rest, "contexts": contexts}


@cache
def usual():
    return dynamics(checkpoints())


@pytest.fixture
def moved(tmp_path):
    """A directory as `p2o features apply` leaves it."""
    path = tmp_path / "moved"
    path.mkdir()
    (path / DYNAMICS).write_text(usual())
    contexts = {kind: [] for kind in KINDS}
    contexts["computation"] = [feature(number, 0.01 * number) for number in range(20)]
    contexts["deliberation"] = [feature(77, 0.5, HOSTILE, endpoint_label=f"The label {HOSTILE}")]
    contexts["no label by contrast"] = [feature(99, 0.5, share=None, endpoint_label="Signs")]
    (path / CONTEXTS).write_text(json.dumps(contexts))
    return path


def page_of(*directories):
    return render([RunData(directories[0].parent / "p2o-0")], [load_features(path) for path in directories])


def figures_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])


def test_shares_by_checkpoint_run_and_bucket_with_intervals(moved):
    page = page_of(moved)
    for heading in ("All questions (64)", "Hard questions (40)", "Medium questions (20)", "Easy questions (1)"):
        assert f"<h3>{heading}</h3>" in page
    assert "One dictionary, of pico, model.layers.2, reads every checkpoint." in page
    figures = figures_of(page)
    # The reward and four kinds of each of four sets of questions, and for each run what comes first.
    assert len(figures) == 4 * (1 + len(KINDS)) + 2 == page.count('role="img"')
    reward, computation, *_ = figures
    rows = json.loads((moved / DYNAMICS).read_text())["checkpoints"]
    first = computation["data"][0]
    assert [line["name"] for line in computation["data"]] == ["p2o-0", "grpo-0"]
    assert first["x"] == [0, 10, 20, 30, 40, 41], "the base is the beginning of every line"
    shares = [row["share"]["computation"] for row in rows if row["run"] in ("base", "p2o-0")]
    assert first["y"] == [share["mean"] for share in shares]
    ends = [share["high"] - share["mean"] for share in shares]
    assert first["error_y"]["array"] == pytest.approx(ends) == first["error_y"]["arrayminus"]
    assert reward["data"][1]["y"][-1] == rows[-1]["mean_reward"]["mean"]
    hard = figures[1 + 1 + len(KINDS)]["data"][0]["y"]
    assert hard == [row["by_bucket"]["hard"]["share"]["computation"]["mean"] for row in rows[:CHECKPOINTS]]
    last = rows[CHECKPOINTS - 1]
    share, change = last["share"]["computation"], last["change"]["computation"]
    assert f"<td>{share['low']:.3f} to {share['high']:.3f}</td>" in page
    assert f"<td>{change['mean']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})</td>" in page
    assert not re.search(r"\bnan\b", page.split("<script")[0])


def test_what_comes_first_is_said(moved):
    page = page_of(moved)
    said = re.search(r"Ahead of accuracy changes the share of: (.*?)\. A group", page)[1]
    assert said.startswith("computation in p2o-0 (64 all questions, +") and "grpo-0" not in said
    figure = figures_of(page)[-2]
    assert {trace["name"] for trace in figure["data"]} == set(KINDS)
    assert page.count("<td>ahead of accuracy</td>") == said.count(" in p2o-0 ")
    (moved / DYNAMICS).write_text(dynamics([checkpoints()[0], *checkpoints()[-5:]]))
    assert "Of no group does the share change ahead of accuracy" in page_of(moved)
    (moved / DYNAMICS).write_text(dynamics(checkpoints()[:2], None))
    page = page_of(moved)
    assert "Which comes first" not in page and "All questions (64)" in page and "Hard questions" not in page


def test_the_most_active_features_are_shown_with_their_contexts(moved):
    page = page_of(moved)
    assert "computation: 8 of 20 features" in page and "12 · low-level" in page and "11 · low-level" not in page
    assert "Work: <mark>3*4=</mark>12\n</pre>" in page and "88 % on computation" in page
    assert "99 · low-level <q>Signs</q>" in page
    assert "<img" not in page.split('id="charts"')[0] and "<q>The label &lt;img src=x" in page


def test_a_directory_of_either_command_is_enough(moved):
    (moved / DYNAMICS).unlink()
    page = page_of(moved)
    assert "What features are about" in page and "reads every checkpoint" not in page
    assert "Which comes first" not in page and "is damaged" not in page


def test_a_dictionary_that_explains_little_is_told(moved):
    first, *others, last = checkpoints()
    (moved / DYNAMICS).write_text(dynamics([first, *others, (last[0], replace(last[1], explained_variance=0.4))]))
    assert "Of grpo-0 at its end the dictionary explains less than half" in page_of(moved)


@pytest.mark.parametrize("name", [DYNAMICS, CONTEXTS])
@pytest.mark.parametrize("content", ["", "[]", "7", '{"kind": "x"}', '{"computation": [{"feature": 1}]}', "null"])
def test_a_damaged_file_is_named_and_the_other_is_read(moved, name, content):
    (moved / name).write_text(content)
    data = load_features(moved)
    (problem,) = data.problems
    assert problem.startswith(f"{name} is damaged (") and problem.endswith("again, which samples nothing anew")
    assert bool(data.rows) == (name == CONTEXTS) and bool(data.features) == (name == DYNAMICS)


def test_damage_is_told_on_the_page(moved):
    (moved / CONTEXTS).write_text("[]")
    page = page_of(moved)
    assert "<strong>moved</strong>: incomplete directory of p2o features.<ul><li>contexts.json is damaged" in page
    assert "What features are about" not in page and "All questions (64)" in page and "Ledger" in page


def test_a_checkpoint_that_lacks_a_kind_is_damage(moved):
    found = json.loads((moved / DYNAMICS).read_text())
    del found["checkpoints"][2]["by_bucket"]["hard"]["share"]["computation"]
    (moved / DYNAMICS).write_text(json.dumps(found))
    assert "dynamics.json is damaged (ValueError: something is missing" in load_features(moved).problems[0]


@pytest.mark.parametrize("name", [DYNAMICS, CONTEXTS])
def test_whatever_a_file_says_is_text(moved, name):
    text = (moved / name).read_text()
    for word in ("p2o-0", "model.layers.2", "computation", "deliberation"):
        text = text.replace(f'"{word}"', json.dumps(word + HOSTILE))
    (moved / name).write_text(text)
    page = page_of(moved)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "is damaged" not in page
    assert "<img" not in page.split('id="charts"')[0]


def test_from_the_command_line(moved, tmp_path, capsys):
    (tmp_path / "p2o-0").mkdir()
    command = ["report", str(tmp_path / "p2o-0"), "--features", str(moved)]
    assert main(command) == 0
    assert "Features inside: moved" in (tmp_path / "p2o-0" / "report.html").read_text()
    assert main([*command, str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"neither dynamics.json nor contexts.json in {tmp_path}: name with --features what" in said


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_by_keyboard_on_a_narrow_screen(moved):
    path = moved / "page.html"
    path.write_text(page_of(moved))
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 360, "height": 900}, offline=True)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=120_000)
        chart = page.locator(".wide .chart").nth(1)
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
        assert chart.locator(".errorbar").count() == 2 * CHECKPOINTS
        feature = page.locator(".wide details.template").first
        assert not feature.locator("mark").first.is_visible()
        feature.locator("summary").focus()
        page.keyboard.press("Enter")
        assert feature.locator("mark").first.is_visible() and feature.locator("mark").first.inner_text() == "3*4="
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
        assert errors == []
        browser.close()
