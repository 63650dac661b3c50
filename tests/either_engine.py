"""What holds of a colocated engine and of a server alike; a `mode` fixture gives the options of one of them."""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl.generation import vllm_generation

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.prompt_phase.types import Question
from p2o.templates import Template
from test_processes import alike, launch, launched
from trainers import (
    TEMPLATE,
    K,
    bare_tokens,
    brute_force_logps,
    contexts_of,
    generation_batch,
    length_reward,
    load,
    make,
    options,
    questions,
    rows_of,
    watched_batch,
    weights,
)

OTHER = Template("Think twice.", 1.0, frozenset())
SAMPLED = 96  # a token that the model would not repeat by itself


@contextlib.contextmanager
def engine_started_once():
    """TRL's colocated engine in float32, for all who ask inside: each would take half a minute. Gives its options."""
    started, llm = [], vllm_generation.LLM

    def once(**settings):
        if not started:
            started.append(llm(**{**settings, "dtype": "float32", "max_num_seqs": 32}))
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_generation, "LLM", once)
        yield {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 1536}


def make_lora(tmp_path, modules_to_save=None, **changes):
    return P2OTrainer(
        model=load(),
        reward_funcs=length_reward,
        args=P2OConfig(**options(tmp_path, **changes)),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=modules_to_save
        ),
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
    assert all(r.feedback == "" for r in rollouts) and [r.completion for r in rollouts] == said
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


# -- reflection by the engine ------------------------------------------------------------------------------------------


def by_transformers(trainer, prompts):
    """The same reflections without the engine."""
    return replace(trainer.reflect, engine=None)(prompts, seed=0)


REFLECTORS = {
    "policy": {"reflection_model": "policy"},
    "the frozen copy": {},
    "TRL's reference": {"beta": 0.1},
}
ADAPTERS = {"the base of an adapter": {}, "the base of modules that are trained whole": {"modules_to_save": ["norm"]}}


@pytest.mark.parametrize("who", [*REFLECTORS, *ADAPTERS])
def test_the_engine_reflects_with_the_weights_of_who_reflects(tmp_path, mode, who):
    """While the policy moves away from what it was; rollouts before and behind are the policy's, of that moment."""
    prompts = ["Improve this.", "For sums, go on", "Count the legs of the animals"]
    settings = {"reflection_temperature": 0.0, "reflection_max_tokens": 24, **mode}
    lora = who in ADAPTERS
    trainer = (
        make_lora(tmp_path, **settings, **ADAPTERS[who]) if lora else make(tmp_path, **settings, **REFLECTORS[who])
    )
    before = by_transformers(trainer, prompts)
    assert trainer.reflect(prompts, seed=0) == before
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and (not lora or "lora_B" in name or "modules_to_save" in name):
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


# -- groups of different prompts -------------------------------------------------------------------------------------


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


def world_trainer(tmp_path, **changes):
    data = world.train_dataset(hard=12, easy=4)
    settings = {"min_hard_questions": 2, "evolution_budget": "30", "parents_per_iteration": 2, "max_steps": 12}
    settings |= {"reflection_prompt": world.REFLECTION_PROMPT, "reflection_max_tokens": 48, "save_strategy": "steps"}
    settings |= {"save_steps": 2, "max_completion_length": 48, **changes}
    return make(tmp_path, reward=world.accuracy_reward, data=data, **settings)


def assert_two_processes_are_told_what_they_asked(tmp_path, engine, shards=None):
    """In both phases, asking for different numbers, with half of the weights each where they are sharded."""
    environment, needed = launched(shards) if shards else ({}, {})
    # A server draws as it likes: enough rollouts for a template to be found whatever it says.
    settings = {**engine, **needed, "reused_rollouts_per_group": 1, "evolution_budget": "300"}
    first, second = launch(tmp_path, 2, environment=environment.items(), **settings)
    assert alike(first) == alike(second)
    assert first["templates"] and first["kept"]
    for rank in (first, second):
        # Under another context they are off by several; bfloat16, which a colocated engine computes in, makes it 0.1.
        assert rank["engine_gaps"] and max(rank["engine_gaps"]) < 0.5
