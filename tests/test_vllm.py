"""P²O on a real vLLM: what the engine samples from, what it says about it, and what becomes of that.

Runs on a CPU. The engine computes in float32 here, so that its log-probabilities can be compared with transformers'.
"""

import copy
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer

import prose
from p2o import P2OConfig, P2OTrainer
from p2o.cli import main
from p2o.completions import Sampling
from p2o.engines import vllm as engine
from p2o.engines.frozen import transformers_model
from p2o.pico import model_path, world
from p2o.policy_phase.context_distillation import ROLLOUT_LOGPS, TEMPLATED
from p2o.prompt_phase.types import Question
from p2o.templates import Template, question_text
from prose import INSTRUCTION, write_questions
from test_generation import checkpoint_with_settings
from test_processes import alike, fsdp2, launch, launched, zero3
from test_smollm2 import needs_the_model as needs_smollm2
from test_trainer import (
    TEMPLATE,
    K,
    bare_tokens,
    brute_force_logps,
    contexts_of,
    generation_batch,
    length_reward,
    load,
    logged,
    make,
    options,
    questions,
    rows_of,
    watched_batch,
    weights,
)

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)

from trl.generation import vllm_generation

pytestmark = pytest.mark.slow

MODES = ["colocate", "server"]
OTHER = Template("Think twice.", 1.0, frozenset())
SAMPLED = 96  # a token that the model would not repeat by itself


@pytest.fixture(scope="module")
def colocated():
    """TRL's engine, started once: half a minute each would be spent otherwise."""
    started = []

    def llm(**settings):
        if not started:
            started.append(vllm_generation_llm(**{**settings, "dtype": "float32", "max_num_seqs": 32}))
        return started[0]

    vllm_generation_llm = vllm_generation.LLM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_generation, "LLM", llm)
        yield {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 1536}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """vLLM's own server with the embedded model, as README says to start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path()]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--dtype", "float32"]
    command += ["--worker-extension-cls", "p2o.engines.vllm_worker.TakesWeights"]
    # Half a minute less than compiled, as the colocated one is.
    command += ["--enforce-eager"]
    command += ["--max-model-len", "1536", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        )
    try:
        # The trainer waits for it.
        yield {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": f"http://127.0.0.1:{port}",
            "vllm_server_timeout": 600,
        }
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def mode(request):
    """Options for the engine of this mode."""
    return request.getfixturevalue({"colocate": "colocated", "server": "server"}[request.param])


def make_lora(tmp_path, **changes):
    return P2OTrainer(
        model=load(),
        reward_funcs=length_reward,
        args=P2OConfig(**options(tmp_path, **changes)),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


@torch.no_grad()
def can_only_say(model, token):
    """Edits the weights so that whatever the context, only one token has a chance."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
    model.model.norm.weight.fill_(1.0)
    model.model.embed_tokens.weight.fill_(1.0)
    model.model.embed_tokens.weight[token] = 2.0


@torch.no_grad()
def disturb(model, scale=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def in_policy_phase(trainer):
    output = generation_batch(trainer)
    return [completion for _, completion in rows_of(output)]


def in_prompt_phase(trainer):
    requests = [(Question(i, "", ""), z) for i in range(3) for z in ("", TEMPLATE.text)]
    said = []
    trainer.feedback_func = lambda completion, row: said.append(completion) or ""
    rollouts = trainer.policy_rollouts(requests, 1)
    ids = [trainer.processing_class(r.completion)["input_ids"] for r in rollouts]
    assert [r.completion for r in rollouts] == said
    return ids


def in_evaluation(trainer):
    seen = []
    original = trainer.reward_funcs[0]
    trainer.reward_funcs[0] = lambda completions, completion_ids, **kwargs: (
        seen.extend(completion_ids) or length_reward(completions)
    )
    trainer.evaluate(questions(8))
    trainer.reward_funcs[0] = original
    return seen


def in_reflection(trainer):
    said = trainer.reflect(["Improve this.", "And this."], seed=0)
    return [trainer.processing_class(reflection.text)["input_ids"] for reflection in said]


PHASES = {
    "policy": in_policy_phase,
    "prompt": in_prompt_phase,
    "evaluation": in_evaluation,
    "reflection": in_reflection,
}


# -- no stale weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, indirect=True)
@pytest.mark.parametrize("phase", PHASES)
def test_the_engine_never_samples_from_old_weights(tmp_path, mode, phase):
    """Weights are exchanged between two generations of one step, where counting steps would not notice."""
    trainer = make(
        tmp_path,
        num_generations_eval=2,
        per_device_eval_batch_size=8,
        reflection_model="policy",
        reflection_max_tokens=12,
        **mode,
    )
    original = copy.deepcopy(trainer.model.state_dict())
    generate = PHASES[phase]
    first = generate(trainer)
    assert {token for ids in first for token in ids} != {SAMPLED}
    can_only_say(trainer.model, SAMPLED)
    assert {token for ids in generate(trainer) for token in ids} == {SAMPLED}
    trainer.model.load_state_dict(original)
    again = generate(trainer)
    assert {token for ids in again for token in ids} != {SAMPLED}
    if mode["vllm_mode"] == "colocate":
        assert again == first, "the same weights and the same stream"


@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_nothing_cached_survives_a_change_of_weights(tmp_path, mode):
    """Prompts of several cache blocks: keys and values computed with the old weights would be found again."""
    trainer = make(tmp_path, **mode)
    prompt = (bare_tokens(trainer, 0) * 40)[:600]
    for seed in range(2):
        disturb(trainer.model, seed=seed)
        for _ in range(2):  # the second time from the cache
            ((completion,), (logps,)) = trainer._generate_single_turn([prompt], None, {}, 1)
            with torch.no_grad():
                expected = brute_force_logps(trainer.model, prompt, completion)
            torch.testing.assert_close(torch.tensor(logps), expected, atol=2e-3, rtol=1e-3)


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


@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_adapters_reach_the_engine_merged_and_stay_apart_in_the_trainer(tmp_path, mode):
    trainer = make_lora(tmp_path, **mode)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    before = weights(trainer)
    output = generation_batch(trainer, assign={})
    for (prompt, completion), logps in zip(rows_of(output), output["sampling_per_token_logps"], strict=True):
        with torch.no_grad():
            expected = brute_force_logps(trainer.model, prompt, completion)
            with trainer.model.disable_adapter():
                base = brute_force_logps(trainer.model, prompt, completion)
        torch.testing.assert_close(logps[: len(completion)], expected, atol=5e-3, rtol=1e-3)
        assert not torch.allclose(base, expected, atol=0.02)
    # An engine may hold on to what it is given until a layer is complete, by when the adapters are apart again.
    sent = dict(trainer.vllm_generation._copied_weights())
    layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    torch.testing.assert_close(sent["model.layers.0.self_attn.q_proj.weight"], merged)
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-5)


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


# -- reflection by the engine ------------------------------------------------------------------------------------------


def by_transformers(trainer, prompts):
    """The same reflections without the engine."""
    return replace(trainer.reflect, engine=None)(prompts, seed=0)


REFLECTORS = {
    "policy": {"reflection_model": "policy"},
    "the frozen copy": {},
    "TRL's reference": {"beta": 0.1},
}


@pytest.mark.parametrize("mode", MODES, indirect=True)
@pytest.mark.parametrize("who", [*REFLECTORS, "the base of an adapter"])
def test_the_engine_reflects_with_the_weights_of_who_reflects(tmp_path, mode, who):
    """While the policy moves away from what it was; rollouts before and behind are the policy's, of that moment."""
    prompts = ["Improve this.", "For sums, go on", "Count the legs of the animals"]
    settings = {"reflection_temperature": 0.0, "reflection_max_tokens": 24, **mode}
    lora = who not in REFLECTORS
    trainer = make_lora(tmp_path, **settings) if lora else make(tmp_path, **settings, **REFLECTORS[who])
    before = by_transformers(trainer, prompts)
    assert trainer.reflect(prompts, seed=0) == before
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and (not lora or "lora_B" in name):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    kept = weights(trainer)
    for _ in range(2):
        ids = in_policy_phase(trainer)
        again = trainer.reflect(prompts, seed=0)
        assert again == by_transformers(trainer, prompts)
        assert (again == before) == (who != "policy"), "only the policy has moved"
        sampled = generation_batch(trainer, assign={})
        for (prompt, completion), logps in zip(rows_of(sampled), sampled["sampling_per_token_logps"], strict=True):
            with torch.no_grad():
                expected = brute_force_logps(trainer.model, prompt, completion)
            torch.testing.assert_close(logps[: len(completion)], expected, atol=5e-3, rtol=5e-3)
        assert ids
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, kept[name], atol=1e-5, rtol=1e-4)


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


# -- groups of different prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_a_group_under_several_templates_is_one_call_with_a_completion_each(tmp_path, mode):
    trainer = make(tmp_path, **mode)
    calls = []
    engine = trainer.vllm_generation
    generate, ask = engine.generate, getattr(engine, "vllm_client", None) and engine.vllm_client.generate
    engine.generate = lambda **kw: calls.append((kw["prompts"], kw["num_generations"])) or generate(**kw)
    sent = []
    if ask:
        engine.vllm_client.generate = lambda prompts, **kw: sent.append((prompts, kw["n"])) or ask(prompts, **kw)
    output, watch = watched_batch(trainer, [TEMPLATE, OTHER], {0: [None, 0, 1, 1], 1: [0, 0, 0, 0]})
    contexts = contexts_of(trainer, watch.rollouts)
    assert calls == [(contexts, 1)]
    assert sent == ([(contexts, 1)] if ask else [])
    assert len({tuple(context) for context in contexts[:K]}) == 3
    # Who asks the same again does not get the same answer again: bare, the model guesses.
    guesses, _ = trainer._generate_single_turn([bare_tokens(trainer, 1)] * 16, None, {}, 1)
    assert len({tuple(guess) for guess in guesses}) > 1
    for row, (_, completion) in enumerate(rows_of(output)):
        with torch.no_grad():
            expected = brute_force_logps(trainer.model, contexts[row], completion)
            bare = brute_force_logps(trainer.model, bare_tokens(trainer, row // K), completion)
        logps = output["sampling_per_token_logps"][row][: len(completion)]
        if not output["advantages"][row].any():
            continue  # nothing is computed for what teaches nothing
        # Under the bare question where a template was in use (they were replaced), else what the engine said.
        torch.testing.assert_close(logps, bare if watch.rollouts[row].template else expected, atol=2e-3, rtol=1e-3)

    calls.clear()
    sent.clear()
    generation_batch(trainer, assign={})
    assert [(len(prompts), n) for prompts, n in calls] == [(2 * K, K)]
    assert [(len(prompts), n) for prompts, n in sent] == ([(2, K)] if ask else [])


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


def world_trainer(tmp_path, **changes):
    data = world.train_dataset(hard=12, easy=4)
    settings = {"min_hard_questions": 2, "evolution_budget": "30", "parents_per_iteration": 2, "max_steps": 12}
    settings |= {"reflection_prompt": world.REFLECTION_PROMPT, "reflection_max_tokens": 48, "save_strategy": "steps"}
    settings |= {"save_steps": 2, "max_completion_length": 48, **changes}
    return make(tmp_path, reward=world.accuracy_reward, data=data, **settings)


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


# -- the whole of it -------------------------------------------------------------------------------------------------


def alone():
    """This process's environment without the rendezvous that a colocated engine has left in it."""
    inherited = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in inherited}


def test_the_command_line_trains_with_a_colocated_engine(config, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "p2o", "train", "--config", config(), "--output_dir", str(run)]
    command += ["--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_max_model_length", "1024"]
    code = "import sys; from p2o.cli import main; sys.exit(main(sys.argv[3:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command[1:]], capture_output=True, text=True, timeout=900, env=alone()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rollouts"]["evolution_dev"] > 0 and summary["rollouts"]["policy"] > 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("sampling/sampling_logp_difference/mean" in line for line in metrics)


REAL = {
    "model_name_or_path": "smollm2-135m",
    "dataset_name": "gcd.jsonl",
    "reward_funcs": ["prose:says_it_in_french"],
    "feedback_func": "prose:feedback",
    "reflection_func": "prose:reflect",
    "evaluate_before_and_after": False,
    **{"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "bf16": True, "dtype": "bfloat16"},
    **{"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 512},
    **{"num_generations": 4, "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-4},
    **{"max_completion_length": 20, "temperature": 0.6, "evolution_budget": 12, "near_hard": True},
    **{"min_hard_questions": 2, "save_steps": 1, "logging_steps": 1, "report_to": "none"},
}


@needs_smollm2
def test_a_real_model_trains_killed_and_resumed(tmp_path):
    """SmolLM2 with LoRA in bfloat16: two bare steps, a prompt phase, a templated one, a kill, another one."""
    write_questions(tmp_path / "gcd.jsonl")
    shutil.copy(prose.__file__, tmp_path)
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(REAL))
    command = [sys.executable, "-m", "p2o", "train"]
    # Two starts of an engine that is compiled for one batch each would be most of the time.
    settings = {"env": {**alone(), "VLLM_USE_AOT_COMPILE": "0", "TORCHDYNAMO_DISABLE": "1"}, "cwd": tmp_path}
    run, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as out:
        begun = [*command, "--config", "real.yaml", "--output_dir", "run"]
        first = subprocess.Popen(begun, stdout=out, stderr=subprocess.STDOUT, **settings)
        while first.poll() is None and not (run / "checkpoint-3").exists():
            time.sleep(0.1)
        first.kill()
        first.wait()
    assert (run / "checkpoint-3").exists() and not (run / "summary.json").exists(), log.read_text()[-3000:]
    done = subprocess.run(
        [*command, "--resume", "--output_dir", "run"], capture_output=True, text=True, timeout=900, **settings
    )
    assert done.returncode == 0 and "resumed from step 3" in done.stdout, done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["rollouts"]["policy"] == 32
    assert [template["text"] for template in summary["templates"]] == [INSTRUCTION]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    templated = {line["step"]: line["p2o/templated_rollouts"] for line in logged if "p2o/templated_rollouts" in line}
    assert templated == {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0}
    # Whether it moved depends on draws: a group has an advantage only where its rewards differ.
    assert any("lora_B" in name for name in load_file(run / "model" / "adapter_model.safetensors"))


def test_a_server_trains_with_a_prompt_phase(tmp_path, server):
    trainer = world_trainer(tmp_path, max_steps=9, save_strategy="no", **server)
    trainer.train()
    spent = trainer.p2o.ledger.rollouts
    assert spent["evolution_dev"] > 0 and spent["policy"] == 72
    name = "sampling/sampling_logp_difference/max"
    assert max(float(log[name]) for log in trainer.state.log_history if name in log) < 0.01


@pytest.mark.parametrize(
    ("mode", "shards", "engines"),
    [("colocate", None, 2), ("colocate", None, 1), ("server", None, 1), ("server", fsdp2, 1), ("server", zero3, 1)],
)
def test_two_processes_are_told_what_they_asked(tmp_path, request, mode, shards, engines):
    """In both phases, asking for different numbers, with half of the weights each, and with half of an engine each."""
    environment, needed = launched(shards) if shards else ({}, {})
    engine = {"use_vllm": True, "vllm_max_model_length": 1024, "vllm_tensor_parallel_size": 2 // engines}
    if mode == "server":
        engine = request.getfixturevalue("server")
    # A server draws as it likes: enough rollouts for a template to be found whatever it says.
    settings = {**engine, **needed, "reused_rollouts_per_group": 1, "evolution_budget": "300"}
    first, second = launch(tmp_path, 2, environment=environment.items(), **settings)
    assert alike(first) == alike(second)
    assert first["templates"] and first["kept"]
    for rank in (first, second):
        # Under another context they are off by several; bfloat16, which a colocated engine computes in, makes it 0.1.
        assert rank["engine_gaps"] and max(rank["engine_gaps"]) < 0.5


def test_vllms_server_reflects(server, tmp_path):
    """The embedded model behind an OpenAI-compatible endpoint writes an instruction."""
    make(tmp_path, **server).vllm_generation.sync_weights()
    records = "\n\n".join(f"Question: {question_text(p)}\nFeedback: wrong" for p in questions()["prompt"][:3])
    prompt = world.REFLECTION_PROMPT.replace("<curr_param>", "").replace("<side_info>", records)
    body = {"model": model_path(), "messages": [{"role": "user", "content": prompt}], "max_tokens": 48}
    request = urllib.request.Request(
        f"{server['vllm_server_base_url']}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        reply = json.load(answer)
    assert reply["choices"][0]["message"]["content"].strip()
    assert reply["usage"]["completion_tokens"] > 0


SAMPLINGS = [(1, 1.0, 1.0, 0), (1, 0.7, 0.9, 20)]
FROZEN = """
import json, sys
import vllm
from p2o.completions import Sampling
from p2o.engines.frozen import vllm_model
from p2o.pico import world

class Watched(vllm.LLM):
    '''Tells the distribution that each first token is drawn from, by token.'''

    watches, drawn_from = False, []

    def __init__(self, **settings):
        super().__init__(**settings, logprobs_mode="processed_logprobs", max_logprobs=-1)

    def generate(self, prompts, parameters, **options):
        for one in parameters:
            one.logprobs = -1 if self.watches else None
        outputs = super().generate(prompts, parameters, **options)
        if self.watches:
            first = [output.outputs[0].logprobs[0] for output in outputs]
            self.drawn_from.append([{token: value.logprob for token, value in step.items()} for step in first])
        return outputs

vllm.LLM = Watched
prompts = [row["prompt"] for split in ("easy", "hard") for row in world.eval_dataset(per_split=16)[split]]
model = vllm_model(sys.argv[2], dtype="float32", max_model_length=1024)
def texts(prompts, temperature, seed):
    return [c.text for c in model.complete(prompts, sampling=Sampling(112, temperature), seed=seed)]
cut = model.complete(prompts, sampling=Sampling(2), seed=0)
found = {
    "greedy": texts(prompts, 0.0, 0),
    "sampled": [texts(prompts[16:], 1.0, seed) for seed in (0, 0, 1)],
    "one question": texts([prompts[16]] * 16, 1.0, 0),
    "cut": [[c.completion_tokens, c.truncated] for c in cut],
    "context": model.context_length,
}
Watched.watches = True
for settings in json.loads(sys.argv[3]):
    model.complete(prompts[:8], sampling=Sampling(*settings), seed=0)
found["drawn from"] = Watched.drawn_from
json.dump(found, open(sys.argv[1], "w"))
"""


def test_a_frozen_model_is_the_same_in_either_engine(tmp_path, monkeypatch):
    """What `p2o eval --use_vllm` samples from; in a process of its own, beside the trainer's engine."""
    out, path = tmp_path / "found.json", checkpoint_with_settings(tmp_path / "model")
    subprocess.run([sys.executable, "-c", FROZEN, str(out), path, json.dumps(SAMPLINGS)], check=True, timeout=280)
    found = json.loads(out.read_text())
    prompts = [row["prompt"] for split in ("easy", "hard") for row in world.eval_dataset(per_split=16)[split]]
    model = transformers_model(path, attn_implementation="eager")
    greedy = [c.text for c in model.complete(prompts, sampling=Sampling(112, 0.0), seed=0)]
    assert found["greedy"] == greedy
    first, again, other = found["sampled"]
    assert first == again and sum(a != b for a, b in zip(first, other, strict=True)) > 8
    # The streams are vLLM's own, not those of transformers, and one for each sample of a question.
    sampled = [c.text for c in model.complete(prompts[16:], sampling=Sampling(112), seed=0)]
    assert sum(a != b for a, b in zip(first, sampled, strict=True)) > 8
    assert len(set(found["one question"])) > 8
    assert found["cut"] == [[2, True]] * len(prompts) and found["context"] == 1024
    # The same settings are the same distribution, whatever the checkpoint has in its generation_config.json.
    draw, drawn_from = torch.multinomial, []
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **kw: drawn_from.append(p) or draw(p, *args, **kw))
    for settings in SAMPLINGS:
        model.complete(prompts[:8], sampling=Sampling(*settings), seed=0)
    for ours, engines in zip(drawn_from, found["drawn from"], strict=True):
        theirs = torch.zeros_like(ours)
        for row, logprobs in enumerate(engines):
            for token, logprob in logprobs.items():
                theirs[row, int(token)] = math.exp(logprob)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)


def test_a_frozen_model_is_the_same_behind_a_server(tmp_path, server):
    pytest.importorskip("litellm")
    url = server["vllm_server_base_url"]
    engine._wait_for(url, server["vllm_server_timeout"], "")
    command = ["--tasks", "pico:easy", "--limit", "12", "--n", "1", "--temperature", "0"]
    command += ["--max_completion_length", "112"]
    served = ["eval", f"openai/{model_path()}", *command, "--base_url", f"{url}/v1"]
    assert main([*served, "--output_dir", str(tmp_path / "served")]) == 0
    assert main(["eval", "pico", *command, "--output_dir", str(tmp_path / "here")]) == 0
    told = [
        [(t["completion"], t["reward"], t["completion_tokens"], t["truncated"]) for t in map(json.loads, lines)]
        for lines in ((tmp_path / d / "transcripts.jsonl").read_text().splitlines() for d in ("served", "here"))
    ]
    assert told[0] == told[1]
