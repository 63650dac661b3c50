"""Hints from worked solutions: what they show, when they show more, and who is not given them."""

import itertools

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from p2o import P2OConfig
from p2o.pico import world
from p2o.prompt_phase.guard import leaks_answer
from p2o.prompt_phase.hard_samples import Outcome
from p2o.prompt_phase.hints import WORDING, assign_hints, hint, next_levels, steps, without_hints
from p2o.templates import question_text
from trainers import ALTERNATE, K, alternate, assert_same, bare_tokens, contexts_of, make, options, rows_of, weights

HINTS = {"prompt_phase": False, "hint_column": "worked_solution", "num_train_epochs": 3}
GSM8K = "She sold 48/2 = 24 clips in May.\nTogether that makes 48+24 = 72 clips.\n#### 72"


def never(completions, **kwargs):
    return [0.0] * len(completions)


@given(st.text(alphabet="ab 12.\n=", max_size=60))
def test_the_steps_of_a_solution_are_all_of_it(solution):
    assert "".join(steps(solution)) == solution.strip()
    assert all(map(str.strip, steps(solution)))


@given(st.lists(st.sampled_from(["2+3=5", "5*4=20", "so 72", "thus", "20+52=72"]), max_size=8), st.integers(1, 4))
def test_a_hint_is_a_beginning_that_grows_and_never_says_the_answer(lines, parts):
    solution = "\n".join(lines)
    hints = [hint(solution, "72", level / parts) for level in range(1, parts + 1)]
    for shorter, longer in itertools.pairwise(hints):
        assert longer.startswith(shorter)
    for shown in hints:
        assert solution.startswith(shown) and not leaks_answer(shown, "72")
        assert shown != solution or not solution, "the last step is not shown"
    assert not hints[-1] or bool(hints[0]), "the first part is a step at least, if any may be shown"


@pytest.mark.parametrize(
    ("solution", "answer", "part", "shown"),
    [
        (GSM8K, "72", 0.25, "She sold 48/2 = 24 clips in May."),
        (GSM8K, "72", 1, "She sold 48/2 = 24 clips in May."),
        ("Add 2. Then halve 14. It is 7.", "7", 1, "Add 2. Then halve 14."),
        ("first halve then add", "x", 0.5, "first halve"),
        ("The answer is 72.\nFor 48+24=72.\nSo 72.", "72", 1, ""),
        ("", "72", 1, ""),
        ("one step", "", 1, "one"),
        ("1+1=2\n2+1=3", "3", 1, "1+1=2"),
    ],
)
def test_what_a_hint_shows(solution, answer, part, shown):
    assert hint(solution, answer, part) == shown
    assert hint(solution, answer, 1.0, shows_answer=True) == solution


def test_no_hint_of_the_embedded_world_says_the_answer():
    rows = world.train_dataset()
    shown = [hint(row["worked_solution"], row["solution"], 1.0) for row in rows]
    for row, text in zip(rows, shown, strict=True):
        assert not leaks_answer(text, row["solution"]) and row["worked_solution"].startswith(text)
        assert not text or row["worked_solution"] not in question_text(row["prompt"])
    assert sum(map(bool, shown)) > 0.7 * len(rows)


def test_a_group_that_fails_under_a_hint_gets_more_of_it():
    levels = next_levels([3, 5], {}, {}, parts=3)
    assert levels == {3: 1, 5: 1}
    levels = next_levels([3, 7], levels, {3: Outcome(0, 4), 5: Outcome(2, 4)}, parts=3)
    assert levels == {3: 2, 5: 1, 7: 1}
    levels = next_levels([3, 5, 7], levels, {3: Outcome(1, 4), 7: Outcome(0, 4)}, parts=3)
    assert levels == {3: 2, 5: 1, 7: 2}, "one success is enough of a hint; who was solved comes back to the same"
    for _ in range(3):
        levels = next_levels([7], levels, {7: Outcome(0, 4)}, parts=3)
    assert levels[7] == 3


def test_every_hard_question_has_its_own_hint():
    rows = {1: {"work": GSM8K, "solution": GSM8K}, 4: {"work": None, "solution": "2"}, 6: {"work": "a\nb\nc"}}
    names = {"column": "work", "solution_column": "solution", "parts": 2}
    found = assign_hints({1: 1, 4: 1, 6: 2}, [1, 4, 6], rows, **names, num_generations=3, bare_rollouts_per_group=1)
    assert [z.text for z in found.templates] == [WORDING + "She sold 48/2 = 24 clips in May.", WORDING + "a\nb"]
    assert found.assignment == {1: [None, 0, 0], 6: [None, 1, 1]} and found.without == [4]


def test_the_column_is_hidden_unless_it_is_the_gold_answers():
    rows = [{"prompt": "x", "solution": "w", "work": "v"}]
    assert without_hints(rows, "work", "solution") == [{"prompt": "x", "solution": "w"}]
    assert without_hints(rows, "solution", "solution") == without_hints(rows, None, "solution") == rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs in which nobody succeeds but by chance, under hints from the second on."""
    given = []

    def reward(completions, **columns):
        given.append(columns.keys())
        return [float(len(set(str(c))) % 7 == 0) for c in completions]

    trainer, events = alternate(tmp_path_factory.mktemp("hints"), reward, **HINTS, save_strategy="epoch")
    return trainer, events, given, reward


def test_rollouts_of_hard_questions_are_sampled_under_hints(run):
    trainer, events, given, _ = run
    assert given and not any("worked_solution" in columns for columns in given)
    worked = {question_text(row["prompt"]): row["worked_solution"] for row in trainer.train_dataset}
    templated = [(epoch, r) for epoch, rollouts in events.batches for r in rollouts if r.template]
    assert templated and {epoch for epoch, _ in templated} <= {1, 2}
    for _, rollout in templated:
        assert worked[question_text(rollout.prompt)].startswith(rollout.template.removeprefix(WORDING))
    assert trainer.p2o.ledger.rollouts["policy"] == trainer.p2o.ledger.total_rollouts, "hints cost no rollout"
    assert not events.phases and not trainer.p2o.selected
    logs = [log for log in trainer.state.log_history if "p2o/hinted_questions" in log]
    assert all(0 < log["p2o/hint_share"] <= 1 for log in logs if log["p2o/hinted_questions"])


@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_it_gives_the_same_hints(run, epoch):
    trainer, *_, reward = run
    steps_an_epoch = trainer.state.global_step // 3
    checkpoint = f"{trainer.args.output_dir}/checkpoint-{epoch * steps_an_epoch}"
    settings = {"reward": reward, "data": trainer.train_dataset, **ALTERNATE, **HINTS}
    again = make(trainer.args.output_dir, **settings)
    again.train(resume_from_checkpoint=checkpoint)
    assert_same(weights(trainer), weights(again))
    for name in ("hint_levels", "templates", "assignment", "ledger", "events"):
        assert getattr(again.p2o, name) == getattr(trainer.p2o, name), name


def test_nobody_succeeds_so_hints_grow_and_the_loss_is_on_the_bare_question(tmp_path):
    trainer, watch = alternate(tmp_path, never, **HINTS, hint_parts=2)
    hinted = set(trainer.p2o.assignment)
    assert hinted and {trainer.p2o.hint_levels[q] for q in hinted} == {2}
    question = min(hinted)
    trainer.model.train()
    trainer._sampler.drawn = [question] * K
    trainer._step = trainer._first_pass_of_epoch
    watch.batches.clear()
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[question]) for _ in range(K)])
    assert all(prompt == bare_tokens(trainer, question) for prompt, _ in rows_of(output))
    assert all(context != bare_tokens(trainer, question) for context in contexts_of(trainer, watch.rollouts))


def test_questions_without_worked_solutions_stay_bare_and_are_counted(tmp_path):
    rows = list(world.train_dataset(hard=12, easy=0))
    data = Dataset.from_list(
        [{**row, "worked_solution": row["worked_solution"] * (i > 5)} for i, row in enumerate(rows)]
    )
    trainer, _ = alternate(tmp_path, never, data, **{**HINTS, "num_train_epochs": 2})
    assert trainer.p2o.events["hint_unavailable"] >= 6
    assert trainer.p2o.assignment and min(trainer.p2o.assignment) > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hint_column": "work", "prompt_phase": True}, "takes the place of evolved templates: set prompt_phase=False"),
        ({"hint_column": "work", "prompt_phase": False, "epoch_batches": 2}, "leave out rewrite_share and hint_column"),
        ({"hint_parts": 0}, "hint_parts=0"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        P2OConfig(**options(tmp_path, **changes))


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="hint_column='work': train_dataset has no such column of worked solutions"):
        make(tmp_path, prompt_phase=False, hint_column="work")
