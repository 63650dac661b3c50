"""P²O on a real vLLM: what the engine samples from, what it says about it, and what becomes of that.

Runs on a CPU. The engine computes in float32 here, so that its log-probabilities can be compared with transformers'.
"""

import copy

import pytest
import torch

from either_engine import (  # noqa: F401 - tests that are run here, too
    disturb,
    engine_started_once,
    in_evaluation,
    in_policy_phase,
    in_prompt_phase,
    test_a_group_under_several_templates_is_one_call_with_a_completion_each,
    test_adapters_reach_the_engine_merged_and_stay_apart_in_the_trainer,
    test_nothing_cached_survives_a_change_of_weights,
    test_the_engine_never_samples_from_old_weights,
    test_the_engine_reflects_with_the_weights_of_who_reflects,
    world_trainer,
)
from p2o.policy_phase.context_distillation import ROLLOUT_LOGPS, TEMPLATED
from p2o.prompt_phase.types import Question
from trainers import (
    K,
    brute_force_logps,
    contexts_of,
    generation_batch,
    length_reward,
    logged,
    make,
    rows_of,
    watched_batch,
    weights,
)

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def colocated():
    with engine_started_once() as options:
        yield options


@pytest.fixture
def mode(colocated):
    """Options for the engine, for tests that hold of either."""
    return colocated


@pytest.mark.parametrize("steps", [3, 1])
def test_every_step_sends_the_weights_once_and_so_does_a_second_training(tmp_path, colocated, steps):
    """After a training of one step the next begins at the same count, with other weights."""
    trainer = make(tmp_path, max_steps=steps, learning_rate=3e-2, **colocated)
    sent = []
    send = trainer.vllm_generation.sync_weights
    trainer.vllm_generation.sync_weights = lambda: sent.append(trainer.state.global_step) or send()
    for _ in range(2):
        trainer.train()
        logged = [log["sampling/sampling_logp_difference/max"] for log in trainer.state.log_history if "loss" in log]
        assert len(logged) == steps and max(map(float, logged)) < 0.01
    assert sent == [*range(steps)] * 2


def test_a_sleeping_engine_is_woken_in_order(tmp_path, colocated, monkeypatch):
    """Sleep itself needs a GPU; here a CPU's engine stays awake, and what it is told is written down."""
    trainer = make(tmp_path, **colocated)
    generation, told = trainer.vllm_generation, []
    generation.enable_sleep_mode, generation._llm_weights_sleeping = True, True
    llm = generation.llm
    monkeypatch.setattr(llm, "wake_up", lambda tags: told.append(f"wake {tags[0]}"))
    monkeypatch.setattr(llm, "sleep", lambda level: told.append("sleep"))
    for name in ("collective_rpc", "reset_prefix_cache", "generate"):
        real = getattr(llm, name)
        monkeypatch.setattr(llm, name, lambda *a, name=name, real=real, **kw: told.append(name) or real(*a, **kw))
    trainer._last_loaded_step = trainer.state.global_step  # asleep, with the weights of this step
    requests = [(Question(i, "", ""), "") for i in range(6)]
    trainer.args.prompt_phase_batch_size = 2
    trainer.policy_rollouts(requests, 1)
    once = ["wake weights", "collective_rpc", "reset_prefix_cache", "wake kv_cache", "generate", "sleep"]
    assert told == once, "a batch of any size wakes it once"


def test_rollouts_settings_do_not_reach_reflection_and_are_back_behind_it(tmp_path, colocated):
    kinds = {"top_k": 1, "top_p": 0.5, "repetition_penalty": 1.3, "temperature": 0.3}
    trainer = make(tmp_path, reflection_max_tokens=3, **kinds, **colocated)
    seen, generation = [], trainer.vllm_generation
    generate = generation.llm.generate
    generation.llm.generate = lambda *a, sampling_params, **kw: (
        seen.append(sampling_params) or generate(*a, sampling_params=sampling_params, **kw)
    )
    try:
        reflections = trainer.reflect(["Count the legs of the animals"] * 8, seed=0)
        assert trainer.reflect(["Count the legs of the animals"] * 8, seed=0) == reflections, "the same stream"
        in_policy_phase(trainer)
    finally:
        generation.llm.generate = generate
    asked, _, rollouts = seen
    assert (asked.max_tokens, asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty) == (3, 1, 0, 1, 1)
    assert (rollouts.temperature, rollouts.top_k, rollouts.repetition_penalty) == (0.3, 1, 1.3)
    assert len({reflection.text for reflection in reflections}) > 1
    cut = [reflection for reflection in reflections if reflection.truncated]
    assert cut and all(reflection.completion_tokens == 3 for reflection in cut)
    assert trainer.reflect.prompt_limit.tokens == 1536 - 3, "the engine's length, not the model's"


def test_bare_and_templated_rollouts_of_dynamic_sampling_fit_together(tmp_path, colocated):
    rewards = iter([[1.0] * K + length_reward(["a", "ab", "abc", "abcd"])])

    def reward(completions, **kwargs):
        return next(rewards, length_reward(completions))

    trainer = make(tmp_path, reward=reward, dynamic_sampling_rounds=1, **colocated)
    output = generation_batch(trainer)
    shape = output["completion_ids"].shape
    assert logged(trainer)["p2o/collapsed_after_resampling"] == 0.0
    for name in ("sampling_per_token_logps", "old_per_token_logps"):
        assert output[name].shape == shape
    assert output["importance_sampling_ratio"].shape == (2 * K, 1)
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, output).isfinite()


# -- two contexts, two engines ---------------------------------------------------------------------------------------

CORRECTIONS = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def differing(trainer):
    """The engine keeps the weights it has; the trainer's move away from them. Returns a copy of the engine's."""
    trainer.vllm_generation.sync_weights()
    trainer.vllm_generation.sync_weights = lambda: None
    sampler = copy.deepcopy(trainer.model)
    vars(sampler).pop("forward", None)
    disturb(trainer.model, 0.01)
    return sampler


@torch.no_grad()
def log_ratios(trainer, sampler, output, contexts):
    """For each row: log of trainer under x over engine under the context sampled from; log of the same within x."""
    for row, (prompt, completion) in enumerate(rows_of(output)):
        bare = brute_force_logps(trainer.model, prompt, completion)
        yield bare - brute_force_logps(sampler, contexts[row], completion)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_both_ratios_equal_the_definition(tmp_path, colocated, correction):
    low, high, least, most = 0.8, 1.25, 0.9, 1.1  # narrow, so that the mask and the correction bite
    trainer = make(
        tmp_path,
        context_ratio_min=low,
        context_ratio_max=high,
        vllm_importance_sampling_mode=correction,
        vllm_importance_sampling_clip_min=least,
        vllm_importance_sampling_clip_max=most,
        **colocated,
    )
    sampler = differing(trainer)
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    masked = passed = corrected = 0
    ratios, differences = [], []
    for row, log_ratio in enumerate(log_ratios(trainer, sampler, output, contexts)):
        length = len(log_ratio)
        correction_ratio = output["importance_sampling_ratio"][row]
        if watch.rollouts[row].template:
            assert (correction_ratio == 1).all(), "the context ratio belongs in the mask alone"
            ratio = log_ratio.exp()
            clear = (ratio / low).log().abs().minimum((ratio / high).log().abs()) > 0.01
            factor = ((ratio >= low) & (ratio <= high)).float()
            advantage = output["advantages"][row][:length]
            assert ((advantage != 0).float() == factor)[clear].all()
            masked, passed = masked + int((factor == 0).sum()), passed + int(factor.sum())
            continue
        if correction.startswith("sequence"):
            log_ratio = log_ratio.sum(0, keepdim=True)
        ratio = log_ratio.exp()
        inside = (ratio >= least) & (ratio <= most)
        expected = ratio.clamp(least, most) if correction.endswith("truncate") else ratio * inside
        clear = (ratio / least).log().abs().minimum((ratio / most).log().abs()) > 0.01
        torch.testing.assert_close(correction_ratio[: len(ratio)][clear], expected[clear], atol=5e-3, rtol=5e-3)
        corrected += int((~inside).sum())
        ratios.append(correction_ratio[: len(ratio)])
        difference = output["old_per_token_logps"][row] - output["sampling_per_token_logps"][row]
        differences.append(difference[:length].abs())
    assert masked and passed and corrected, "all of it must bite for the test to mean anything"

    # What is logged about the engines leaves the rows with two contexts out.
    metrics, ratios, differences = logged(trainer), torch.cat(ratios), torch.cat(differences)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(ratios.mean().item())
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(ratios.max().item())
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(differences.max().item())

    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output).backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_the_context_ratio_costs_no_pass(tmp_path, colocated):
    trainer = make(tmp_path, **colocated)
    output = generation_batch(trainer)
    seen = output["prompt_mask"].sum() + output["completion_mask"].sum()
    assert trainer.p2o.ledger.forward_tokens == seen, "TRL's own pass over the batch, and nothing else"


def test_a_batch_of_templated_rollouts_alone_logs_nothing_about_the_engines(tmp_path, colocated):
    trainer = make(tmp_path, **colocated)
    generation_batch(trainer, assign={0: [0] * K, 1: [0] * K})
    assert not [name for name in logged(trainer) if name.startswith("sampling/")]


@pytest.mark.parametrize("logprobs", [True, False])
def test_without_the_correction_the_context_ratio_is_the_same(tmp_path, colocated, logprobs):
    """Also where no engine hands out log-probabilities, as a `rollout_func` may not: transformers supplies them."""
    trainer = make(tmp_path, vllm_importance_sampling_correction=False, **colocated)
    if not logprobs:
        generate = trainer._generate_single_turn
        trainer._generate_single_turn = lambda *args: (generate(*args)[0], None)
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    assert "importance_sampling_ratio" not in output and "old_per_token_logps" not in output
    assert output[TEMPLATED].tolist() == [bool(rollout.template) for rollout in watch.rollouts]
    for row, (_, completion) in enumerate(rows_of(output)):
        if watch.rollouts[row].template:
            with torch.no_grad():
                expected = brute_force_logps(trainer.model, contexts[row], completion)
            actual = output[ROLLOUT_LOGPS][row][: len(completion)]
            torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)
    templated = [row for row, rollout in enumerate(watch.rollouts) if rollout.template]
    passes = sum(len(contexts[row]) for row in templated) + int(output["completion_mask"][templated].sum())
    assert trainer.p2o.ledger.forward_tokens == (0 if logprobs else passes)
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, output).isfinite()
    assert logged(trainer)["p2o/context_ratio/mean_log"]


# -- randomness ------------------------------------------------------------------------------------------------------


def test_a_colocated_engine_draws_from_the_trainers_streams(tmp_path, colocated):
    trainer = make(tmp_path, seed=5, num_generations_eval=2, per_device_eval_batch_size=8, **colocated)
    assert torch.initial_seed() == 5
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    prompt, evaluation = in_prompt_phase(trainer), in_evaluation(trainer)
    assert torch.equal(torch.random.get_rng_state(), state), "the policy phase is left alone"
    assert (in_prompt_phase(trainer), in_evaluation(trainer)) == (prompt, evaluation)
    trainer.args.seed = 6
    assert in_evaluation(trainer) != evaluation


def test_a_colocated_run_with_a_prompt_phase_can_be_repeated(tmp_path, colocated):
    runs = []
    for name in "ab":
        trainer = world_trainer(tmp_path / name, **colocated)
        trainer.train()
        assert trainer.p2o.ledger.rollouts["evolution_dev"] > 0
        runs.append(trainer)
    for name, value in weights(runs[0]).items():
        assert torch.equal(value, weights(runs[1])[name]), name
    assert runs[0].p2o.templates == runs[1].p2o.templates
