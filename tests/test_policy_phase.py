"""The pure parts of the policy phase: rewards, plans, kept rollouts, the sampler's memory."""

import json
import math
import random
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from p2o import P2OConfig
from p2o.policy_phase.evaluation import EvaluationSet
from p2o.policy_phase.lengths import LengthWatch
from p2o.policy_phase.logprobs import CompletionLogprobs
from p2o.policy_phase.reuse import KeptRollout, draw_successes, keep
from p2o.policy_phase.rewards import Rewards, Scoring
from p2o.policy_phase.rollouts import RolloutPlan
from p2o.policy_phase.sampler import EpochSampler, drawn_questions
from p2o.prompt_phase.types import Success
from p2o.state import P2OState, uncounted_on_failure
from p2o.templates import Template

K = 4
NAN = math.nan
scores = st.sampled_from([0.0, 0.5, 1.0, -1.0, NAN])


def rewards_of(rows, weights=(1.0,), **settings):
    return Rewards(torch.tensor(rows), torch.tensor(weights), **settings)


@given(st.lists(st.tuples(scores, scores), min_size=K, max_size=3 * K).filter(lambda rows: len(rows) % K == 0))
def test_rewards_agree_with_the_definition(rows):
    rewards = rewards_of(rows, (1.0, 0.5))
    for i, (first, second) in enumerate(rows):
        scored = [w * r for w, r in ((1.0, first), (0.5, second)) if not math.isnan(r)]
        assert bool(rewards.unscored[i]) == (not scored)
        assert rewards.total[i].item() == sum(scored) if scored else math.isnan(rewards.total[i])
        assert bool(rewards.successes[i]) == (bool(scored) and sum(scored) > 0)
    totals = rewards.total.tolist()
    for group, collapsed in enumerate(rewards.collapsed(K).tolist()):
        assert collapsed == (len({t for t in totals[group * K : (group + 1) * K] if not math.isnan(t)}) <= 1)


def test_one_function_may_decide_success():
    scoring = Scoring(torch.tensor([1.0, 1.0]), 0.0, "accuracy", ["format", "accuracy"])
    rewards = scoring.rewards(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, NAN]]))
    assert rewards.successes.tolist() == [False, True, False] and rewards.unscored.tolist() == [False, False, True]
    assert rewards.success_rate() == 0.5 and rewards.of(slice(0, 1)).success_rate() == 0.0
    with pytest.raises(ValueError, match="none of the reward functions: format, accuracy"):
        Scoring(torch.ones(2), 0.0, "length", ["format", "accuracy"])


def test_accuracy_of_a_set_is_over_scored_rollouts_and_logged_once(tmp_path):
    args = P2OConfig(str(tmp_path), num_generations=4, num_generations_eval=1, bf16=False, use_cpu=True)
    evaluation = EvaluationSet(args, Accelerator(cpu=True), "eval_hard", SimpleNamespace(eval_dataloader=None))
    assert math.isnan(evaluation.accuracy())
    rewards = [rewards_of([[1.0], [NAN], [0.0]]), rewards_of([[1.0]])]
    for earned in rewards:
        rows = len(earned.total)
        evaluation.next_batch(rows)
        evaluation.add_completions(([], [[1, 2]] * rows, None), [2])
        mask = torch.ones(rows, 2)
        evaluation.add(earned, {"completion_mask": mask, "num_items_in_batch": torch.tensor(2 * rows)}, {})
    logs = {"eval_hard_loss": 5.0}
    said = evaluation.metrics({"reward": [0.5, 1.0]}, logs, ["right"])
    assert said == {"hard_reward": [pytest.approx(2 / 3)], "hard_accuracy": [2 / 3]}
    assert evaluation.metrics({}, logs, ["right"]) == {}


def test_a_plan_draws_templates_by_place_and_keeps_rollouts_at_the_end():
    kept = KeptRollout("kept", [7], torch.zeros(1), torch.zeros(1))
    plan = RolloutPlan.draw(
        [3] * K + [5] * K,
        slice(2, 8),
        num_generations=K,
        assignment={3: [0, 1, None, 1]},
        templates=[Template("a", 1.0), Template("b", 1.0)],
        kept={3: [kept]},
    )
    assert plan.templates == ("", "kept", "", "", "", "") and plan.kept == (None, kept, *[None] * 4)
    assert plan.sampled_rows() == [0, 2, 3, 4, 5] and plan.is_templated(torch.device("cpu")).tolist()[:3] == [0, 1, 0]
    ids, logprobs = plan.with_kept_rollouts([[i] for i in range(5)], [[-1.0]] * 5)
    assert ids == [[0], [7], [1], [2], [3], [4]] and logprobs[1] == [0.0]
    assert not plan.two_contexts
    fitted = plan.fitted(["x"] * 6, lambda prompts: [list(prompt.encode()) for prompt in prompts], max_length=4)
    assert fitted.two_contexts and fitted.templates_in_use() == 0 and fitted.contexts[1] == list(b"x")


@pytest.mark.parametrize("ahead", [0, 3])
def test_the_sampler_knows_what_a_batch_is_about_however_far_ahead_it_is(ahead):
    sampler = EpochSampler(RepeatSampler(list(range(6)), K, batch_size=2, repeat_count=2, seed=1), lambda: 0)
    expected, drawn = list(sampler), iter(sampler)
    rows = 2 * K
    for batch in range(2):
        while len(sampler.drawn) < (batch + 1 + ahead) * rows and next(drawn, None) is not None:
            pass
        assert drawn_questions(sampler, batch, rows) == expected[batch * rows : (batch + 1) * rows]
    with pytest.raises(RuntimeError, match="not drawn by its sampler"):
        drawn_questions(sampler, 99, rows)


def test_kept_rollouts_have_the_log_probabilities_of_both_contexts():
    successes = [Success(1, "z", [4, 5]), Success(1, "z", [4, 5]), Success(0, "", [6, 7, 8])]
    drawn = draw_successes(successes, 2, random.Random(0))
    assert [s.question for s in drawn] == [0, 1], "the same one counts once"

    def forward(model, input_ids, attention_mask, width):
        return -(input_ids * attention_mask).cumsum(1)[:, -width:].float(), None, None

    logprobs = CompletionLogprobs(forward, lambda: None, Accelerator(cpu=True), pad_token_id=99)
    dataset = [{"prompt": "a"}, {"prompt": "bb"}]
    tokenize = lambda prompts: [[len(prompt)] for prompt in prompts]  # noqa: E731
    kept = keep(drawn, dataset, tokenize, logprobs, batch_size=2)
    assert kept[0][0].bare_logps.tolist() == kept[0][0].sampled_logps.tolist() == [-7, -14, -22]
    assert kept[1][0].bare_logps.tolist() == [-6, -11]
    assert kept[1][0].sampled_logps.tolist() == [-4 - len("z\n\nbb"), -9 - len("z\n\nbb")]


@given(st.lists(st.floats(1, 1000), max_size=40), st.floats(1.01, 20))
def test_a_length_watch_agrees_with_the_definition(lengths, factor):
    watch = LengthWatch()
    for count, length in enumerate(lengths, start=1):
        watch = watch.after(length, factor)
        ratio = 1.0 if count < 10 else fmean(lengths[max(count - 10, 0) : count]) / fmean(lengths[:10])
        assert watch.ratio == pytest.approx(ratio)
        assert watch.outside == (not 1 / factor <= watch.ratio <= factor)


@pytest.mark.parametrize("lengths", [[511.0] * 15 + [46.0] * 20, [46.0] * 10 + [511.0] * 20])
def test_a_change_of_response_length_is_told_once_also_after_resuming(lengths, caplog):
    state = P2OState()
    for length in lengths:
        state.watch_length(length, factor=3.0)
        state = P2OState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert state.events == {"response_length_changed": 1}
    assert caplog.text.count("Response length has changed") == 1
    assert state.metrics(near_hard=True)["p2o/length_ratio"] == pytest.approx(lengths[-1] / lengths[0])
    for _ in range(10):
        state.watch_length(lengths[0], factor=3.0)
    for _ in range(10):
        state.watch_length(lengths[-1], factor=3.0)
    assert state.events == {"response_length_changed": 2}


def test_a_failed_batch_leaves_no_trace_in_the_lengths():
    state = P2OState()

    def fail():
        with uncounted_on_failure(state, {}):
            state.watch_length(5.0, factor=3.0)
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert state == P2OState()
