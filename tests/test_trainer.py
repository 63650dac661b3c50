"""P2OTrainer against TRL's GRPOTrainer and against the definition written out."""

import inspect
import itertools
import random
import zlib
from statistics import fmean

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.policy_phase.context_distillation import ROLLOUT_LOGPS, TEMPLATED
from p2o.policy_phase.dynamic_sampling import replace_rows
from p2o.policy_phase.reuse import KeptRollout
from p2o.prompt_phase import phase
from p2o.prompt_phase.hard_samples import HardSamples
from p2o.prompt_phase.types import Reflection
from p2o.reflection.reference import Reference
from p2o.state import CheckpointError, P2OState
from p2o.templates import Template, apply_template, question_text

K = 4
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]
TEMPLATE = Template("Go from left to right. Write every step.", 1.0, frozenset())


def options(tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path),
        "num_generations": K,
        "per_device_train_batch_size": 8,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return {**values, **changes}


def length_reward(completions, **kwargs):
    """Spread enough that no group is without variance."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [len(set(text)) + 0.01 * len(text) for text in texts]


def load():
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


def questions(count=12):
    return world.train_dataset(hard=count, easy=0)


def make(
    tmp_path,
    trainer=P2OTrainer,
    config=P2OConfig,
    reward=length_reward,
    data=None,
    eval_dataset=None,
    rollout_func=None,
    tokenizer=None,
    **changes,
):
    return trainer(
        model=load(),
        reward_funcs=reward,
        args=config(**options(tmp_path, **changes)),
        train_dataset=questions() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer or AutoTokenizer.from_pretrained(model_path()),
        rollout_func=rollout_func,
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("loss_type", LOSSES)
def test_without_templates_it_is_grpo_bit_for_bit(tmp_path, loss_type):
    changes = {"loss_type": loss_type}
    if loss_type in ("grpo", "luspo"):
        changes["steps_per_generation"] = 2
    grpo = make(tmp_path / "a", GRPOTrainer, GRPOConfig, **changes)
    grpo.train()
    p2o = make(tmp_path / "b", min_hard_questions=2, skip_zero_advantages=False, **changes)
    p2o.train()
    assert_same(weights(grpo), weights(p2o))


def test_plain_text_prompts_are_grpo_too(tmp_path):
    data = Dataset.from_dict({"prompt": [question_text(p) for p in questions()["prompt"]]})
    grpo = make(tmp_path / "a", GRPOTrainer, GRPOConfig, data=data)
    grpo.train()
    p2o = make(tmp_path / "b", data=data, skip_zero_advantages=False)
    p2o.train()
    assert_same(weights(grpo), weights(p2o))


class Watch(P2OCallback):
    """Keeps what the trainer tells."""

    def __init__(self):
        self.batches, self.phases = [], []

    def on_rollouts(self, args, state, control, p2o, rollouts, **kwargs):
        self.batches.append((p2o.epoch, rollouts))

    def on_prompt_phase_end(self, args, state, control, p2o, result, reason, **kwargs):
        self.phases.append((p2o.epoch, result, reason))

    @property
    def rollouts(self):
        return [rollout for _, rollouts in self.batches for rollout in rollouts]


def drawn_batch(trainer, questions=2, **state):
    """The rows of the first questions, from the trainer's own dataloader, and a watcher of what becomes of them."""
    for name, value in state.items():
        setattr(trainer.p2o, name, value)
    trainer.shuffle_dataset = False
    trainer.add_callback(watch := Watch())
    trainer.model.train()
    return next(iter(trainer.get_train_dataloader()))[: questions * K], watch


def watched_batch(trainer, templates=(TEMPLATE,), assign=None):
    """One scored generation batch of two questions, of which the first is templated in rollouts 1 to 3."""
    assign = {0: [None, 0, 0, 0]} if assign is None else assign
    rows, watch = drawn_batch(trainer, templates=list(templates), assignment=assign)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return trainer._generate_and_score_completions(rows), watch


def generation_batch(trainer, *args, **kwargs):
    return watched_batch(trainer, *args, **kwargs)[0]


def logged(trainer):
    """What the next log of a training step says."""
    logs = {}
    trainer.log(logs)
    return logs


def contexts_of(trainer, rollouts):
    """Tokens of T(x, z) of each rollout."""
    chats = [apply_template(prompt, template) for prompt, template, *_ in rollouts]
    return [trainer.processing_class.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]


def hard_set(trainer):
    return HardSamples(trainer.args.near_hard, trainer.p2o.outcomes).hard_set()


def brute_force_logps(model, prompt, completion):
    """log π(completion | prompt), token by token, without padding."""
    ids = torch.tensor([prompt + completion])
    logps = model(input_ids=ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    return logps[torch.arange(len(completion)), torch.tensor(completion)]


def rows_of(output):
    for row in range(len(output["prompt_ids"])):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        completion = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        yield prompt, completion


def bare_tokens(trainer, question):
    chat = trainer.train_dataset[question]["prompt"]
    return trainer.processing_class.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_rollouts_are_sampled_under_the_template_and_learnt_on_the_bare_question(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    asked, generate = [], GRPOTrainer._generate_single_turn
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *args: asked.extend(args[1]) or generate(*args))
    output, watch = watched_batch(trainer)
    assert [template for _, template, *_ in watch.rollouts] == ["", *[TEMPLATE.text] * 3, *[""] * 4]
    assert asked == contexts_of(trainer, watch.rollouts)
    for (prompt, _), question in zip(rows_of(output), [0] * K + [1] * K, strict=True):
        assert prompt == bare_tokens(trainer, question)
    for row, context in enumerate(asked):
        assert (TEMPLATE.text in trainer.processing_class.decode(context)) == (1 <= row < K)


@pytest.mark.parametrize("mode", ["hard", "soft", "off"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_equal_the_definition(tmp_path, loss_type, mode):
    """Ten lines of reference: π_θ(y|x) in the loss, the mask on every token's term, denominators as they were."""
    low, high = 0.6, 1.4  # narrow, so that the mask bites
    trainer = make(
        tmp_path,
        loss_type=loss_type,
        context_mask=mode,
        context_ratio_min=low,
        context_ratio_max=high,
        importance_sampling_level="sequence" if loss_type == "luspo" else "token",
    )
    output, watch = watched_batch(trainer)
    model, contexts = trainer.model, contexts_of(trainer, watch.rollouts)
    groups = torch.tensor([reward for *_, reward in watch.rollouts]).view(-1, K)
    advantage = ((groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()

    terms, lengths, masked = [], [], 0
    for row, (prompt, completion) in enumerate(rows_of(output)):
        logps = brute_force_logps(model, prompt, completion)
        factor = torch.ones(len(completion))
        if watch.rollouts[row].template:
            with torch.no_grad():
                ratio = (logps - brute_force_logps(model, contexts[row], completion)).exp()
            outside = (ratio < low) | (ratio > high)
            masked += int(outside.sum())
            if mode == "hard":
                factor = (~outside).float()
            elif mode == "soft":
                factor = torch.where(outside, ratio.clamp(low, high) / ratio, 1.0)
        on_policy = (logps - logps.detach()).exp()  # 1, with the gradient of the policy ratio
        if loss_type in ("cispo", "vespo"):
            # Both weigh log-probabilities by a constant: min(1, ε_high) = ε_high here, and φ(1) = 1.
            term = -min(1.0, trainer.epsilon_high if loss_type == "cispo" else 1.0) * factor * advantage[row] * logps
        elif loss_type == "sapo":
            signed = factor * advantage[row]
            t = torch.where(signed > 0, trainer.args.sapo_temperature_pos, trainer.args.sapo_temperature_neg)
            term = -torch.sigmoid(t * (on_policy - 1)) * 4 / t * signed
        elif loss_type == "luspo":
            term = -((logps - logps.detach()).mean().exp()) * factor * advantage[row]
        else:
            term = -on_policy * factor * advantage[row]
        terms.append(term)
        lengths.append(len(completion))
    assert masked > 0, "the range must bite for the test to mean anything"
    total = sum(term.sum() for term in terms)
    if loss_type in ("grpo", "sapo"):
        expected = sum(term.sum() / n for term, n in zip(terms, lengths, strict=True)) / len(terms)
    elif loss_type == "luspo":
        expected = total / len(terms)
    elif loss_type == "dr_grpo":
        expected = total / (len(terms) * trainer.max_completion_length)
    else:
        expected = total / sum(lengths)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected_gradient = torch.autograd.grad(expected, parameters)

    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(model, output)
    gradient = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(loss, expected, atol=2e-5, rtol=2e-4)
    assert trainer._compute_loss(model, output) == loss, "the same rollouts may be learnt from again"
    for name, actual, wanted in zip(names, gradient, expected_gradient, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_every_token_is_counted_by_what_it_was_for(tmp_path, mask_truncated):
    trainer = make(tmp_path, mask_truncated_completions=mask_truncated, max_completion_length=10)
    lengths = []
    trainer.reward_funcs[0] = lambda completion_ids, **kwargs: [
        float(lengths.append(len(ids)) or i) for i, ids in enumerate(completion_ids)
    ]
    output, watch = watched_batch(trainer)
    assert 10 in lengths and min(lengths) < 10, "some are truncated, some are not"
    ledger, read = trainer.p2o.ledger, sum(map(len, contexts_of(trainer, watch.rollouts)))
    assert ledger.rollouts["policy"] == 8
    assert ledger.prompt_tokens["policy"] == read > int(output["prompt_mask"].sum())
    assert ledger.completion_tokens["policy"] == sum(lengths)
    assert ledger.forward_tokens == 0, "the context ratio takes no pass of its own"
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    assert ledger.forward_backward_tokens == output["prompt_mask"].sum().item() + output["completion_mask"].sum().item()


def test_mask_statistics_reach_the_metrics(tmp_path):
    trainer = make(tmp_path, context_ratio_min=0.6, context_ratio_max=1.4)
    output, watch = watched_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    metrics, contexts = logged(trainer), contexts_of(trainer, watch.rollouts)
    assert metrics["p2o/templated_rollouts"] == 3 / 8
    below = above = tokens = 0
    shifts: dict[str, list[float]] = {"head": [], "tail": []}
    for row, (prompt, completion) in enumerate(rows_of(output)):
        if watch.rollouts[row].template:
            bare = brute_force_logps(trainer.model, prompt, completion)
            ratio = (bare - brute_force_logps(trainer.model, contexts[row], completion)).exp()
            below, above = below + int((ratio < 0.6).sum()), above + int((ratio > 1.4).sum())
            tokens += len(completion)
            quarter = -(-len(completion) // 4)
            shifts["head"] += ratio[:quarter].log().tolist()
            shifts["tail"] += ratio[-quarter:].log().tolist()
    for part, values in shifts.items():
        assert metrics[f"p2o/shift/{part}"] == pytest.approx(sum(values) / len(values), rel=1e-4) != 0.0
    assert metrics["p2o/context_ratio/below"] == pytest.approx(below / tokens)
    assert metrics["p2o/context_ratio/above"] == pytest.approx(above / tokens) != 0.0


def assert_sampled(trainer, output, contexts):
    """The log-probabilities of the templated rows are those of what was sampled, at the temperature of sampling."""
    lengths = set()
    for row, (_, completion) in enumerate(rows_of(output)):
        if not output[TEMPLATED][row]:
            continue
        ids = torch.tensor([contexts[row] + completion])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, -len(completion) - 1 : -1] / trainer.temperature
        expected = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(output[ROLLOUT_LOGPS][row][: len(completion)], expected, atol=1e-4, rtol=1e-4)
        lengths.add(len(completion))
    return lengths


SHAPED = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.05, "max_completion_length": 48}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("changes", [{}, SHAPED, {"generation_kwargs": {"use_cache": False}}])
def test_log_probabilities_are_taken_while_sampling(tmp_path, changes, adapter):
    trainer = make(tmp_path, **changes)
    if adapter:
        trainer = P2OTrainer(
            model=load(),
            reward_funcs=length_reward,
            args=P2OConfig(**options(tmp_path, **changes)),
            train_dataset=questions(),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        )
    output, watch = watched_batch(trainer, assign={0: [0] * K, 1: [None, 0, 0, 0]})
    contexts = contexts_of(trainer, watch.rollouts)
    assert len(assert_sampled(trainer, output, contexts)) > 1, "some have ended before others"
    assert trainer.p2o.ledger.forward_tokens == 0


def answer_in_trls_place(prompts, trainer):
    """A `rollout_func` that generates as TRL would, and does not say with which log-probabilities."""
    ids = [trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts]
    completions, _ = GRPOTrainer._generate_single_turn(trainer, ids, None, {}, 1)
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None, "words": [len(c) for c in completions]}


@pytest.mark.parametrize("rollout_func", [None, answer_in_trls_place])
def test_log_probabilities_that_were_not_recorded_take_a_pass(tmp_path, rollout_func):
    changes = {} if rollout_func else {"generation_kwargs": {"prefill_chunk_size": 16}}
    trainer = make(tmp_path, rollout_func=rollout_func, **changes)
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    assert_sampled(trainer, output, contexts)
    templated = sum(map(len, contexts[1:K])) + int(output["completion_mask"][1:K].sum())
    assert trainer.p2o.ledger.forward_tokens == templated


def test_old_logprobs_under_the_rollout_context(tmp_path):
    trainer = make(tmp_path, old_logprobs_context="rollout")
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    for row, (_, completion) in enumerate(rows_of(output)):
        with torch.no_grad():
            expected = brute_force_logps(trainer.model, contexts[row], completion)
        actual = output["old_per_token_logps"][row][: len(completion)]
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_failed_templated_rollouts_can_be_dropped(tmp_path):
    def alternating(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    trainer = make(tmp_path, reward=alternating, drop_failed_templated=True, context_mask="off")
    advantages = generation_batch(trainer)["advantages"]
    assert (advantages[2] == 0).all(), "templated and failed"
    assert (advantages[1] > 0).all() and (advantages[3] > 0).all(), "templated and successful"
    assert (advantages[0] < 0).all() and (advantages[4] < 0).all(), "bare ones stay, failed or not"


def test_a_template_that_does_not_fit_is_not_used(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    data = questions().select(range(2))
    chats = [tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in data["prompt"]]
    longest = max((0, 1), key=lambda row: len(chats[row]))
    trainer = make(tmp_path, data=data, max_prompt_length=len(chats[longest]))
    _, watch = watched_batch(trainer, assign={longest: [None, 0, 0, 0]})
    assert not any(template for _, template, *_ in watch.rollouts)
    assert trainer.p2o.events == {"template_too_long_for_question": 3}
    assert trainer.p2o.ledger.prompt_tokens["policy"] == K * len(chats[0]) + K * len(chats[1])


def test_mining_counts_success_per_question(tmp_path):
    def by_row(completions, **kwargs):
        return [1.0, 0, 0, 0, 1, 1, 0, 0]

    trainer = make(tmp_path, reward=by_row)
    generation_batch(trainer, assign={})
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {0: (1, 4), 1: (2, 4)}
    assert hard_set(trainer) == [0]


def test_success_may_be_one_reward_among_several(tmp_path):
    def accuracy(completions, **kwargs):
        return [0.0] * len(completions)

    def formatting(completions, **kwargs):
        return [1.0] * len(completions)

    both = make(tmp_path / "a", reward=[accuracy, formatting])
    generation_batch(both, assign={})
    assert hard_set(both) == []
    one = make(tmp_path / "b", reward=[accuracy, formatting], success_reward="accuracy", reward_weights=[1.0, 0.2])
    generation_batch(one, assign={})
    assert hard_set(one) == [0, 1]


def test_unscored_rollouts_are_no_failures(tmp_path):
    def reward(completions, **kwargs):
        return [None] * K + [None, 1.0, 0.0, 1.0]

    trainer = make(tmp_path, reward=reward)
    generation_batch(trainer, assign={})
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {1: (2, 3)}
    assert trainer.p2o.events == {"unscored_rollouts": 5}


def test_evaluation_is_bare_and_leaves_the_generators_alone(tmp_path):
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=8)
    trainer.p2o.templates, trainer.p2o.assignment = [TEMPLATE], {i: [0] * K for i in range(12)}
    trainer.eval_dataset = questions(8)
    seen = []
    trainer.reward_funcs[0] = lambda prompts, completions, **kwargs: [seen.extend(prompts), [1.0] * len(prompts)][1]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = trainer.evaluate()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seen and all(TEMPLATE.text not in question_text(prompt) for prompt in seen)
    assert trainer.evaluate()["eval_completions/mean_length"] == first["eval_completions/mean_length"]
    assert trainer.p2o.ledger.total_rollouts == 0
    assert trainer.p2o.ledger.rollouts["evaluation"] == 16


def test_accuracy_is_over_all_rollouts_of_a_set(tmp_path):
    """Also where the last batch is smaller than the others."""
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=4, per_device_train_batch_size=8)
    trainer.reward_funcs[0] = lambda prompts, **kwargs: [float(len(prompts) == 4) for _ in prompts]
    metrics = trainer.evaluate({"six": questions(8).select(range(6)), "four": questions(4)})
    assert metrics["eval_six_accuracy"] == pytest.approx(4 / 6)
    assert metrics["eval_four_accuracy"] == 1
    assert "eval_accuracy" not in metrics


def test_a_fall_in_accuracy_is_told(tmp_path, caplog):
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=8)
    trainer.eval_dataset = questions(8)
    for accuracy, events in ((0.8, {}), (0.76, {}), (0.7, {"accuracy_regression": 1})):
        trainer.p2o.watch_accuracy("eval_easy", {"eval_easy_accuracy": accuracy}, margin=0.05)
        assert trainer.p2o.events == events
    assert "eval_easy_accuracy fell from 0.800 to 0.700" in caplog.text
    trainer.reward_funcs[0] = lambda prompts, **kwargs: [1.0] * len(prompts)
    trainer.evaluate()
    assert trainer.p2o.first_accuracy == {"eval_easy": 0.8, "eval": 1.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_which_question_a_row_is_shows_nowhere(tmp_path, workers):
    """Neither to subclasses nor collators, reward functions or whoever reads the dataset; mining knows all the same."""
    seen = []

    class Subclass(P2OTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.extend(inputs)
            return super().training_step(model, inputs, num_items_in_batch)

        def _prepare_inputs(self, inputs):
            seen.extend(inputs)
            return super()._prepare_inputs(inputs)

    def reward(prompts, completions, **kwargs):
        given = {"prompt", *kwargs} - {"completion_ids", "trainer_state", "log_extra", "log_metric"}
        seen.append(dict.fromkeys(given))
        return [float(zlib.crc32(question_text(prompt).encode()) % 3 == 0) for prompt in prompts]

    data = questions(12)
    # A third of the questions stands in the data twice: each of the two is a question of its own.
    data = concatenate_datasets([data, data.select(range(4))])
    trainer = make(tmp_path, Subclass, reward=reward, data=data, max_steps=8, dataloader_num_workers=workers)
    trainer.data_collator = lambda rows: seen.extend(rows) or rows
    trainer.train()
    assert trainer.train_dataset.column_names == data.column_names
    assert {tuple(sorted(row)) for row in seen} == {tuple(sorted(data.column_names))}
    expected = [float(zlib.crc32(question_text(prompt).encode()) % 3 == 0) * K for prompt in data["prompt"]]
    assert {q: o.successes for q, o in trainer.p2o.outcomes.items()} == dict(enumerate(expected))


def test_a_batch_of_unknown_origin_is_refused(tmp_path):
    trainer = make(tmp_path)
    trainer.model.train()
    with pytest.raises(RuntimeError, match="not drawn by its sampler"):
        trainer._generate_and_score_completions([trainer.train_dataset[i] for i in (0, 1) for _ in range(K)])


def test_a_users_rollout_func_is_given_templated_prompts(tmp_path):
    asked = []

    def rollout(prompts, trainer):
        asked.extend(question_text(p) for p in prompts)
        return {"prompt_ids": [[5]] * len(prompts), "completion_ids": [[6, 7, 1]] * len(prompts), "logprobs": None}

    trainer = make(tmp_path, rollout_func=rollout)
    output = generation_batch(trainer)
    assert [text.startswith(TEMPLATE.text) for text in asked] == [False, True, True, True, *[False] * 4]
    assert next(iter(rows_of(output)))[0] == bare_tokens(trainer, 0)
    assert trainer.p2o.ledger.prompt_tokens["policy"] == 8, "what the function says that it has read"


def test_a_users_rollout_func_generates_in_the_prompt_phase_too(tmp_path):
    """A reward that needs its further fields would otherwise fail there, after a whole epoch."""
    asked = []

    def rollout(prompts, trainer):
        asked.extend(question_text(p) for p in prompts)
        return answer_in_trls_place(prompts, trainer)

    def reward(completions, words, **kwargs):
        assert len(words) == len(completions)
        return coin(completions)

    trainer, watch = alternate(tmp_path, reward=reward, rollout_func=rollout)
    ((_, result, _),) = watch.phases
    assert result.metric_calls > 0 and trainer.p2o.templates
    spent = trainer.p2o.ledger.rollouts
    assert len(asked) == spent["policy"] + spent["evolution_dev"] + spent["evolution_feedback"]
    assert {template.text for template in trainer.p2o.templates} <= {text.split("\n\n")[0] for text in asked}


def test_a_rollout_func_that_returns_too_few_completions_is_told_in_the_prompt_phase(tmp_path):
    def rollout(prompts, trainer):
        output = answer_in_trls_place(prompts, trainer)
        short = trainer.p2o.epoch > 0
        return {name: values[:1] if short and values else values for name, values in output.items()}

    with pytest.raises(ValueError, match=r"1 completions for \d+ prompts"):
        alternate(tmp_path, reward=lambda completions, **kwargs: coin(completions), rollout_func=rollout)


def test_the_signature_is_grpo_trainers_and_ours():
    ours, theirs = (inspect.signature(t.__init__).parameters for t in (P2OTrainer, GRPOTrainer))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default and ours[name].kind == parameter.kind
    assert list(ours)[len(theirs) :] == ["feedback_func", "reflect"]
    assert all(parameter.annotation is not parameter.empty for name, parameter in ours.items() if name != "self")


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs a train_dataset"),
        (Dataset.from_dict({"question": ["a"]}), "no `prompt` column; it has question"),
        (Dataset.from_dict({"prompt": []}), "is empty"),
        (Dataset.from_dict({"prompt": ["a", "  "]}), "row 1, field `prompt`: empty"),
        (Dataset.from_dict({"prompt": [[{"role": "system", "content": "x"}]] * 2}), "row 0, field `prompt`: .*no user"),
        (Dataset.from_dict({"prompt": ["a"]}), "1 questions, fewer than the 2 of one generation batch"),
        (Dataset.from_dict({"prompt": ["a", "b"], "image": ["x", "y"]}), "images"),
        (Dataset.from_dict({"prompt": ["a", "b " * 2500]}), "row 1: .* tokens"),
    ],
)
def test_bad_questions_are_refused_before_training(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        P2OTrainer(
            model=load(),
            reward_funcs=length_reward,
            args=P2OConfig(**options(tmp_path)),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(model_path()),
        )


def test_a_streamed_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="streaming"):
        make(tmp_path, data=questions().to_iterable_dataset())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_mask": "sharp"}, "choose one of hard, soft, off"),
        ({"old_logprobs_context": "x"}, "choose one of bare, rollout"),
        ({"evolution_budget": "huge"}, "light, medium, heavy, heavy_4"),
        ({"min_hard_questions": 1}, "at least 2"),
        ({"bare_rollouts_per_group": K}, "smaller than num_generations"),
        ({"context_ratio_min": 2.0, "context_ratio_max": 1.0}, "context_ratio_min < context_ratio_max"),
        ({"reflection_prompt": "Improve <curr_param>"}, "<side_info>"),
        ({"num_generations": 1}, "2"),
        ({"per_device_train_batch_size": 6}, "does not divide 6 rollouts"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        P2OConfig(**options(tmp_path, **changes))


def test_names_swap_in_pairs(tmp_path):
    with pytest.raises(ValueError, match="P2OConfig"):
        make(tmp_path, config=GRPOConfig)


def test_an_unknown_success_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="length_reward"):
        make(tmp_path, success_reward="accuracy")


@pytest.mark.parametrize("failure", ["raise", "length", "nan"])
def test_failing_reward_functions_lose_nothing(tmp_path, failure):
    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            if failure == "raise":
                raise RuntimeError("the verifier is gone")
            if failure == "length":
                return [1.0]
            return [float("nan")] * len(completions)
        return length_reward(completions)

    trainer = make(tmp_path, reward=reward, save_strategy="steps", save_steps=50, max_steps=3)
    if failure == "nan":
        trainer.train()
        assert trainer.p2o.events["unscored_rollouts"] == 8
        return
    with pytest.raises((RuntimeError, ValueError)) as caught:
        trainer.train()
    assert "resume from" in caught.value.__notes__[0]

    # What was saved goes on as if nothing had happened.
    resumed = make(tmp_path, save_strategy="steps", save_steps=50, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    straight = make(tmp_path / "straight", max_steps=3)
    straight.train()
    assert_same(weights(straight), weights(resumed))


def test_resuming_another_configuration_is_refused(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(CheckpointError, match=r"temperature was 1\.0, is 0\.5"):
        make(tmp_path, temperature=0.5).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make(tmp_path / "elsewhere").train(resume_from_checkpoint=True)
    state = next(tmp_path.glob("checkpoint-1/p2o_state.json"))
    state.write_text(state.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(CheckpointError, match="version 0"):
        make(tmp_path).train(resume_from_checkpoint=True)
    state.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        make(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 4, "num_iterations": 2}])
def test_resume_is_exact_at_every_step(tmp_path, changes):
    """Also within a generation batch, whose remaining rollouts belong to the checkpoint."""
    settings = {"max_steps": 5, "gradient_accumulation_steps": 1, **changes}
    straight = make(tmp_path / "a", **settings)
    straight.train()
    make(tmp_path / "b", save_strategy="steps", save_steps=1, **settings).train()
    for step in (1, 2, 3, 4):
        resumed = make(tmp_path / "b", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{step}"))
        assert_same(weights(straight), weights(resumed))


def test_order_of_questions_does_not_depend_on_having_lived_through_earlier_epochs(tmp_path):
    trainer = make(tmp_path)
    lived = make(tmp_path)._get_train_sampler()
    epochs = []
    for epoch in range(3):
        trainer.p2o.epoch = epoch
        epochs.append(list(trainer._get_train_sampler()))
    reference = super(P2OTrainer, trainer)._get_train_sampler()
    assert epochs == [list(reference) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert list(lived) == epochs[0]


def test_checkpoints_appear_whole(tmp_path, monkeypatch):
    """Whatever fails while a checkpoint is written, what is called a checkpoint is complete."""
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    save, calls = P2OState.save, []

    def fails_second(state, *args):
        calls.append(state)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(state, *args)

    monkeypatch.setattr(P2OState, "save", fails_second)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    make(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_the_prompt_phase_leaves_the_policy_phases_generators_alone(tmp_path):
    trainer = make(tmp_path)
    states = random.getstate(), torch.random.get_rng_state()
    asked = [phase.question(trainer.train_dataset, row, "solution") for row in (0, 1)]
    requests = list(zip(asked, ("Think.", ""), strict=True))
    first = trainer.policy_rollouts(requests, 1)
    trainer.reflect(["Improve this."], seed=1)
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert trainer.policy_rollouts(requests, 1) == first


def test_a_completion_of_the_prompt_phase_is_decoded_once(tmp_path, monkeypatch):
    """At a recipe's thousands of tokens it is most of what a prompt phase does by itself."""
    trainer = make(tmp_path)
    decode, decoded = type(trainer.processing_class).batch_decode, []

    def counted(tokenizer, sequences, **options):
        decoded.extend(sequences)
        return decode(tokenizer, sequences, **options)

    monkeypatch.setattr(type(trainer.processing_class), "batch_decode", counted)
    requests = [(phase.question(trainer.train_dataset, row, "solution"), "Think.") for row in (0, 1, 2)]
    rollouts = trainer.policy_rollouts(requests, 1)
    assert len(rollouts) == len(decoded) == 3 and all(rollout.completion for rollout in rollouts)


# -- alternation ------------------------------------------------------------------------------------------------------


def coin(completions, **kwargs):
    """Right by chance: one completion in three."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(zlib.crc32(text.encode()) % 3 == 0) for text in texts]


ALTERNATE = {
    "num_train_epochs": 2,
    "max_steps": -1,
    "max_completion_length": 8,
    "min_hard_questions": 2,
    "evolution_budget": 60,
    "parents_per_iteration": 2,
    "reflection_max_tokens": 8,
}


def alternate(
    tmp_path,
    reward=coin,
    data=None,
    reflect=None,
    model=None,
    peft_config=None,
    rollout_func=None,
    feedback_func=None,
    callbacks=(),
    **changes,
):
    numbers = itertools.count()
    settings = {**ALTERNATE, **changes}
    trainer = P2OTrainer(
        model=load() if model is None else model,
        reward_funcs=reward,
        args=P2OConfig(**options(tmp_path, **settings)),
        train_dataset=questions(16) if data is None else data,
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=peft_config,
        rollout_func=rollout_func,
        feedback_func=feedback_func,
        reflect=reflect
        or (lambda prompts, *, seed: [Reflection(f"```\nTry way {next(numbers)}.\n```") for _ in prompts]),
    )
    events = Watch()
    for callback in (events, *callbacks):
        trainer.add_callback(callback)
    trainer.train()
    return trainer, events


@pytest.mark.parametrize("plain", [False, True])
def test_hard_questions_are_templated_in_the_next_epoch(tmp_path, plain):
    data = questions(24)
    if plain:
        data = Dataset.from_dict({"prompt": [question_text(p) for p in data["prompt"]], "solution": data["solution"]})
    trainer, events = alternate(tmp_path, data=data, evolution_budget=150)
    ((epoch, result, _),) = events.phases
    assert epoch == 1
    used = set()
    for epoch, rollouts in events.batches:
        for prompt, template, _, _ in rollouts:
            assert template == "" or epoch == 1
            assert "Try way" not in question_text(prompt), "the loss is on the bare question"
            used.add(template)
    assigned = {z for draws in trainer.p2o.assignment.values() for z in draws}
    assert used == {"", *(trainer.p2o.templates[z].text for z in assigned)}
    assert set(trainer.p2o.assignment) == set(result.feedback_ids) | set(result.dev_ids) == set(trainer.p2o.hard_set)
    # Templates that solved a dev question are drawn for it, in proportion to their scores.
    for question in result.dev_ids:
        solving = {i for i, t in enumerate(trainer.p2o.templates) if question in t.solves}
        assert not solving or set(trainer.p2o.assignment[question]) <= solving
    # Bare and templated success of the same questions, side by side.
    logs = trainer.state.log_history
    (phase_logs,) = [record for record in logs if "p2o/dev_success/bare" in record]
    solved = [candidate.dev_solved for candidate in result.candidates]
    assert phase_logs["p2o/dev_success/bare"] == pytest.approx(fmean(solved[0].values()))
    scores = [template.score for template in trainer.p2o.templates]
    rates = [fmean(solved[template.candidate].values()) for template in trainer.p2o.templates]
    drawn = sum(score * rate for score, rate in zip(scores, rates, strict=True)) / sum(scores)
    assert phase_logs["p2o/dev_success/templated"] == pytest.approx(drawn)
    rewards = [[r.reward > 0 for r in batch if r.template] for _, batch in events.batches]
    by_batch = [record["p2o/rollout_success/templated"] for record in logs if record.get("p2o/templated_rollouts")]
    assert by_batch == pytest.approx([fmean(batch) for batch in rewards if batch])
    spent = trainer.p2o.ledger.rollouts
    assert spent["policy"] == 2 * 24 * K
    assert spent["evolution_dev"] + spent["evolution_feedback"] == result.metric_calls
    assert spent["reflection"] == result.reflections > 0


def test_when_nothing_is_solved_the_next_epoch_is_bare_and_training_goes_on(tmp_path, caplog):
    trainer, events = alternate(tmp_path, reward=lambda completions, **kwargs: [0.0] * len(completions))
    assert len(trainer.p2o.hard_set) == 16
    assert trainer.p2o.templates == [] and trainer.p2o.assignment == {}
    assert "No template solved any dev question" in caplog.text
    assert trainer.state.global_step == trainer.state.max_steps
    assert all(not template for _, rollouts in events.batches for _, template, _, _ in rollouts)


def test_templates_collapsed_to_one_are_told(tmp_path, caplog):
    trainer, _ = alternate(tmp_path, reflect=lambda prompts, *, seed: [Reflection("```\nThink.\n```")] * len(prompts))
    assert [t.text for t in trainer.p2o.templates] == ["Think."]
    assert trainer.p2o.events["single_template"] == 1
    assert "A single template is in use in epoch 1: 'Think.'" in caplog.text


def test_a_small_hard_set_skips_the_prompt_phase(tmp_path, caplog):
    trainer, events = alternate(tmp_path, min_hard_questions=17)
    assert events.phases == [(1, None, "too few hard questions")]
    assert "fewer than min_hard_questions=17" in caplog.text
    assert trainer.p2o.ledger.rollouts["evolution_dev"] == 0


def test_bare_rollouts_and_one_template_per_group(tmp_path):
    trainer, _ = alternate(tmp_path, bare_rollouts_per_group=1, same_template_per_group=True)
    assert trainer.p2o.assignment
    for draws in trainer.p2o.assignment.values():
        assert draws[0] is None and len(set(draws[1:])) == 1 and draws[1] is not None


def test_an_unscored_rollout_in_evolution_is_counted_not_fatal(tmp_path):
    def reward(completions, **kwargs):
        return [None if i == 0 else value for i, value in enumerate(coin(completions))]

    trainer, events = alternate(tmp_path, reward=reward)
    # One in each policy batch (16 of them) and one in each batch of evolution.
    assert trainer.p2o.events["unscored_rollouts"] > 16
    assert events.phases[0][1] is not None


@pytest.mark.parametrize("reused", [0, 2])
def test_the_learning_rate_is_scheduled_over_what_the_budget_allows(tmp_path, reused):
    """Not over the million epochs that a budget may end: a share of warm-up ends, and the rate decays."""
    settings = {"max_steps": -1, "num_train_epochs": 10**6, "max_rollouts": 64, "gradient_accumulation_steps": 1}
    settings |= {"prompt_phase": False, "warmup_steps": 0.25, "lr_scheduler_type": "linear", "max_completion_length": 4}
    trainer = make(tmp_path, reused_rollouts_per_group=reused, steps_per_generation=2, **settings)
    trainer.train()
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    assert trainer.p2o.ledger.total_rollouts == 64 and len(rates) == 7  # the last batch is sampled in step 7
    total = 8 if not reused else 16  # half of each group might be reused ones
    warm = total // 4
    expected = [min(step / warm, (total - step) / (total - warm)) * 1e-3 for step in range(7)]
    assert rates == pytest.approx(expected)


def test_the_rollout_budget_covers_the_prompt_phase(tmp_path):
    trainer, events = alternate(tmp_path, max_rollouts=90, num_train_epochs=9)
    assert events.phases[0][1].metric_calls <= 90 - 64 + 2 * 2 * 3 + 2 * 8
    assert 90 <= trainer.p2o.ledger.total_rollouts <= 90 + 64


@pytest.mark.parametrize(("lora", "beta"), [(False, 0.0), (True, 0.0), (False, 0.04)])
def test_reflection_is_by_the_model_as_it_was_before_training(tmp_path, lora, beta):
    """Self-reflection with the current policy makes templates collapse; the frozen start answers the same for ever."""
    peft = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    trainer = P2OTrainer(
        model=load(),
        reward_funcs=length_reward,
        args=P2OConfig(**options(tmp_path, reflection_max_tokens=12, reflection_temperature=0.0, beta=beta)),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=peft,
    )
    assert (trainer.reflect.frozen is None) == (lora or beta > 0), (
        "no copy where TRL has one, or the base is the reference"
    )
    before = trainer.reflect(["Improve this."] * 2, seed=0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and (not lora or "lora" in name):
                parameter.add_(torch.randn_like(parameter))
    assert trainer.reflect(["Improve this."] * 2, seed=0) == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_frozen_reference_takes_memory_only_while_it_is_in_use(tmp_path, dtype):
    model = load()
    kept = Reference(model, Accelerator(cpu=True), tmp_path, dtype=dtype)
    assert not list(tmp_path.iterdir()), "nothing is left to clear away"
    expected = {name: value.to(dtype or value.dtype, copy=True) for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for _ in range(2):
        assert not sum(parameter.numel() for parameter in kept._model.parameters())
        with kept.on(torch.device("cpu")) as frozen:
            assert_same(dict(frozen.named_parameters()), expected)
            assert_same(dict(frozen.named_buffers()), buffers)  # positions are not what half precision is for
            assert frozen.lm_head.weight is frozen.model.embed_tokens.weight
            assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_frozen_reference_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / ".reference-0.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=f"cannot be written to {tmp_path}: .*reflection_model"):
        make(tmp_path)
    make(tmp_path, reflection_model="policy")


@pytest.mark.parametrize("given", [False, True])
def test_adapters_alternate_like_whole_models(tmp_path, given):
    """Whether TRL makes the adapter or the user does; gradient accumulation and two updates a batch beside."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer, events = alternate(
        tmp_path,
        model=get_peft_model(load(), lora) if given else None,
        peft_config=None if given else lora,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        reused_rollouts_per_group=1,
    )
    assert any(template for _, rollouts in events.batches for _, template, _, _ in rollouts)
    base = {f"base_model.model.{name}": value for name, value in load().state_dict().items()}
    moved = 0
    for name, value in weights(trainer).items():
        if "lora" in name:
            moved += bool(value.abs().sum() > 0) if "lora_B" in name else 0  # an adapter's B starts at zero
        else:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name
    assert moved > 0


def test_without_distillation_the_templated_question_is_learnt_on(tmp_path):
    trainer = make(tmp_path, context_distillation=False)
    output, watch = watched_batch(trainer)
    assert [prompt for prompt, _ in rows_of(output)] == contexts_of(trainer, watch.rollouts)
    assert output["advantages"].dim() == 1, "there is one context, so there is nothing to mask"


def test_templates_of_the_last_prompt_phase_go_on_being_assigned(tmp_path):
    trainer, events = alternate(tmp_path, max_prompt_phases=1, num_train_epochs=4, seed=1, data=questions(24))
    assert len(events.phases) == 1
    assert trainer.p2o.templates and trainer.p2o.epoch == 3
    assert set(trainer.p2o.assignment) == set(trainer.p2o.hard_set)
    used = {template for epoch, rollouts in events.batches if epoch == 3 for _, template, _, _ in rollouts} - {""}
    assert used and used <= {template.text for template in trainer.p2o.templates}


# -- dynamic sampling -------------------------------------------------------------------------------------------------


def test_collapsed_groups_are_replaced_until_none_is_left_or_the_rounds_are_over(tmp_path):
    trainer = make(tmp_path, reward=coin, data=questions(24), dynamic_sampling_rounds=3, per_device_train_batch_size=16)
    assignment = {i: [None, 0, 0, 0] for i in range(0, 24, 2)}  # some groups are templated, some are not
    rows, watch = drawn_batch(trainer, questions=4, templates=[TEMPLATE], assignment=assignment)
    torch.manual_seed(5)
    output = trainer._generate_and_score_completions(rows)

    sizes = [len(rollouts) for _, rollouts in watch.batches]
    assert sizes[0] == 16 and all(a >= b for a, b in itertools.pairwise(sizes)) and len(sizes) > 1
    assert trainer.p2o.ledger.rollouts["policy"] == sum(sizes)
    assert len(output["advantages"]) == 16
    # Every row of the result is, without its padding, a row of one of the batches, and the first batch's where it had
    # variance.
    decode = trainer.processing_class.decode
    learnt = [(prompt, decode(completion, skip_special_tokens=True)) for prompt, completion in rows_of(output)]
    bare = [rollout._replace(template="") for rollout in watch.rollouts]
    sampled = [
        (context, completion[0]["content"])
        for context, (_, _, completion, _) in zip(contexts_of(trainer, bare), bare, strict=True)
    ]
    assert all(row in sampled for row in learnt)
    rewards = [reward for *_, reward in watch.rollouts]
    kept = [g for g in range(4) if len(set(rewards[g * K : (g + 1) * K])) > 1]
    for group in kept:
        assert learnt[group * K : (group + 1) * K] == sampled[group * K : (group + 1) * K]
    with_advantage = output["advantages"].reshape(4, -1).abs().sum(1) > 0
    assert with_advantage.sum() > len(kept), "something was won"
    assert logged(trainer)["p2o/collapsed_after_resampling"] == 1 - with_advantage.float().mean()
    assert output["num_items_in_batch"] == output["completion_mask"].sum()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, output).isfinite()


def test_an_unscored_rollout_has_no_advantage_over_a_wrong_one(tmp_path):
    def reward(completions, **kwargs):
        return [None, -1.0, -1.0, 1.0, -1.0, -1.0, -1.0, None]

    trainer = make(tmp_path, reward=reward)
    advantages = generation_batch(trainer, assign={})["advantages"].view(2 * K, -1)[:, 0]
    assert advantages[0] == advantages[7] == 0
    assert (advantages[1:3] < 0).all() and advantages[3] > 0
    # One was right, of three; of the others none, of three.
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {0: (1, 3), 1: (0, 3)}


def test_evolution_is_told_what_nobody_could_score(tmp_path):
    told = []

    def accuracy(completions, **kwargs):
        return [None if value else -1.0 for value in coin(completions)]

    def feedback(completion, row):
        told.append(row["reward"])
        return "Wrong."

    trainer, events = alternate(
        tmp_path,
        reward=[accuracy, lambda completions, **kwargs: [0.5] * len(completions)],
        success_reward="accuracy",
        feedback_func=feedback,
    )
    # The other reward alone is none, and beats no wrong answer.
    assert set(told) == {-0.5}
    rewards = {r for _, found, _ in events.phases if found for c in found.candidates for r in c.dev_rewards.values()}
    assert rewards == {-0.5} and trainer.p2o.events["unscored_rollouts"] > 0


@given(st.data())
def test_replaced_rows_keep_their_content(data):
    def batch(rows):
        widths = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        numbers = torch.arange(1.0, 1000.0)[torch.randperm(999, generator=torch.Generator().manual_seed(rows))]
        per_token = data.draw(st.booleans())
        return {
            "prompt_ids": numbers[: rows * widths[0]].view(rows, -1),
            "prompt_mask": torch.ones(rows, widths[0], dtype=torch.long),
            "completion_ids": numbers[-rows * widths[1] :].view(rows, -1),
            "completion_mask": torch.ones(rows, widths[1], dtype=torch.long),
            "advantages": numbers[: rows * widths[1]].view(rows, -1) if per_token else numbers[:rows],
            "num_items_in_batch": torch.tensor(rows * widths[1]),
        }

    old, new = batch(5), batch(3)
    result = dict(old)
    replace_rows(result, [4, 0], new, [1, 2], pad_token_id=0)
    origin = {0: (new, 2), 4: (new, 1), **{row: (old, row) for row in (1, 2, 3)}}
    for row, (source, index) in origin.items():
        for side in ("prompt", "completion"):
            mask = result[f"{side}_mask"][row].bool()
            assert result[f"{side}_ids"][row][mask].tolist() == source[f"{side}_ids"][index].tolist()
            padding = mask.nonzero().flatten()
            assert padding[-1] == len(mask) - 1 if side == "prompt" else padding[0] == 0
        expected = source["advantages"][index].expand(source["completion_mask"].size(1))
        actual = result["advantages"][row].expand(result["completion_mask"].size(1))
        assert actual[result["completion_mask"][row].bool()].tolist() == expected.tolist()
    assert result["num_items_in_batch"] == result["completion_mask"].sum()


def test_dynamic_sampling_resumes_exactly_and_counts_nothing_of_a_failed_batch(tmp_path):
    settings = {
        "reward": coin,
        "dynamic_sampling_rounds": 2,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 50,
    }
    straight = make(tmp_path / "a", **settings)
    straight.train()
    calls = []

    def fails_once(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 4:
            raise RuntimeError("the verifier is gone")
        return coin(completions)

    fails_once.__name__ = "coin"
    with pytest.raises(RuntimeError, match="verifier"):
        make(tmp_path / "b", **{**settings, "reward": fails_once}).train()
    resumed = make(tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(straight), weights(resumed))
    assert straight.p2o == resumed.p2o


# -- reuse of evolution's successes -----------------------------------------------------------------------------------


def perturb(trainer, scale=0.02):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            parameter += scale * torch.randn_like(parameter)


@pytest.mark.parametrize("template", [TEMPLATE.text, ""])
@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 2}, {"old_logprobs_context": "rollout"}])
def test_a_reused_rollout_is_held_against_the_policy_that_sampled_it(tmp_path, changes, template):
    trainer = make(tmp_path, reused_rollouts_per_group=1, context_ratio_min=0.5, context_ratio_max=2.0, **changes)
    before, tokenizer = load(), trainer.processing_class
    completion = tokenizer("1+1=2\nAnswer: 2")["input_ids"] + [tokenizer.eos_token_id]
    chat = trainer.train_dataset[0]["prompt"]
    (context,) = contexts_of(trainer, [(chat, template)])
    with torch.no_grad():
        bare = brute_force_logps(before, bare_tokens(trainer, 0), completion)
        told = brute_force_logps(before, context, completion)
    trainer.p2o.kept = {0: [KeptRollout(template, completion, bare, told)]}
    perturb(trainer)
    counted = dict(trainer.p2o.ledger.rollouts)
    output, watch = watched_batch(trainer)

    assert watch.rollouts[K - 1].template == template
    prompt, learnt = list(rows_of(output))[K - 1]
    assert (prompt, learnt) == (bare_tokens(trainer, 0), completion)
    assert trainer.p2o.ledger.rollouts["policy"] == counted["policy"] + 2 * K - 1, "it was paid for in the prompt phase"
    assert trainer.p2o.outcomes[0].rollouts == K - 1, "it says nothing of the present policy"
    with torch.no_grad():
        now = brute_force_logps(trainer.model, prompt, completion)
        others = [brute_force_logps(trainer.model, *row) for row in list(rows_of(output))[K:]]
    assert (now - bare).abs().max() > 0.05, "the policy has moved"
    end = len(completion)
    old = output["old_per_token_logps"]
    expected = told if trainer.args.old_logprobs_context == "rollout" else bare
    torch.testing.assert_close(old[K - 1][:end], expected, atol=1e-4, rtol=1e-4)
    for row, logps in enumerate(others, start=K):
        torch.testing.assert_close(old[row][: len(logps)], logps, atol=1e-4, rtol=1e-4)
    # The context ratio, too, is that of the policy that sampled.
    ratio = (bare - told).exp()
    masked = ((ratio < 0.5) | (ratio > 2)).float()
    assert masked.sum() > 0 or not template
    advantages = output["advantages"][K - 1][:end]
    assert ((advantages == 0).float() == masked).all()


def test_successes_of_the_prompt_phase_are_learnt_from_in_the_next_epoch(tmp_path):
    trainer, events = alternate(tmp_path, reused_rollouts_per_group=1)
    ((_, result, _),) = events.phases
    assert set(trainer.p2o.kept) == {success.question for success in result.successes} != set()
    solved = {
        question for candidate in result.candidates for question, solved in candidate.dev_solved.items() if solved
    }
    assert solved <= set(trainer.p2o.kept), "dev rollouts are reused as well"
    assert trainer.p2o.ledger.rollouts["policy"] == 2 * 16 * K - len(trainer.p2o.kept)
    texts = {
        trainer.processing_class.decode(k.completion_ids, skip_special_tokens=True) for [k] in trainer.p2o.kept.values()
    }
    learnt = {completion[0]["content"] for epoch, rollouts in events.batches if epoch for *_, completion, _ in rollouts}
    assert texts <= learnt
    assert "successes" not in result.to_dict()


def test_reuse_resumes_exactly(tmp_path):
    settings = {
        "reused_rollouts_per_group": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 1,
    }
    straight, _ = alternate(tmp_path, **settings)
    middle = 3 * straight.state.max_steps // 4
    resumed = make(
        tmp_path,
        reward=coin,
        data=questions(16),
        **{**ALTERNATE, **settings},
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{middle}"))
    assert resumed.p2o.kept.keys() == straight.p2o.kept.keys() != set()
    assert_same(weights(straight), weights(resumed))
    assert resumed.p2o.ledger == straight.p2o.ledger


@pytest.mark.parametrize(
    "changes",
    [{"reused_rollouts_per_group": K}, {"context_distillation": False}, {"dynamic_sampling_rounds": 1}],
)
def test_reuse_refuses_what_it_cannot_do(tmp_path, changes):
    with pytest.raises(ValueError, match="reused_rollouts_per_group"):
        make(tmp_path, **{"reused_rollouts_per_group": 1, **changes})
    with pytest.raises(ValueError, match="rollout_func of your own"):
        P2OTrainer(
            model=load(),
            reward_funcs=coin,
            args=P2OConfig(**options(tmp_path, reused_rollouts_per_group=1)),
            train_dataset=questions(),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            rollout_func=lambda prompts, trainer: {},
        )


# -- nothing for nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("templated", [False, True])
@pytest.mark.parametrize("live", [[1, 2, 5], [], list(range(8))])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_rollouts_without_advantage_are_left_out_and_nothing_changes(tmp_path, loss_type, live, templated):
    changes = {"steps_per_generation": 2, "importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    trainer = make(tmp_path, loss_type=loss_type, **{"steps_per_generation": 2, **changes})
    output = generation_batch(trainer, assign=None if templated else {})
    dead = torch.ones(8, dtype=torch.bool)
    dead[live] = False
    output["advantages"] = output["advantages"].clone()
    output["advantages"][dead] = 0.0
    perturb(trainer, 0.01)  # a later update of the same rollouts: ratios are not 1
    trainer.current_gradient_accumulation_steps = 1
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    results = {}
    for skip in (False, True):
        trainer.args.skip_zero_advantages = skip
        before = trainer.p2o.ledger.forward_backward_tokens
        logged(trainer)
        loss = trainer._compute_loss(trainer.model, output)
        gradient = torch.autograd.grad(loss, parameters)
        spent = trainer.p2o.ledger.forward_backward_tokens - before
        results[skip] = (loss, gradient, spent, logged(trainer))
    torch.testing.assert_close(results[True][0], results[False][0], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(results[True][1], results[False][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    passed = live or [0]
    tokens = output["prompt_mask"][passed].sum() + output["completion_mask"][passed].sum()
    assert results[True][2] == tokens
    assert results[True][3]["p2o/skipped_rollouts"] == pytest.approx(1 - len(live) / 8)
    clipped = {name for name in results[False][3] if name.startswith("clip_ratio")}
    for name in clipped:
        assert results[True][3][name] == pytest.approx(results[False][3][name])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_groups_without_variance_can_be_left_out_of_the_kl_term(tmp_path, loss_type, skip):
    """Against TRL's loss with the reference's log-probabilities of these groups replaced by the policy's own."""
    trainer = make(
        tmp_path,
        reward=lambda completions, **kwargs: [1.0] * K + [float(i) for i in range(len(completions) - K)],
        loss_type=loss_type,
        beta=0.5,
        kl_on_collapsed_groups=False,
        skip_zero_advantages=skip,
    )
    output = generation_batch(trainer, assign={})
    assert output["collapsed_rows"].tolist() == [True] * K + [False] * K
    output["advantages"][K] = 0.0  # a rollout without advantage in a group with variance is still held back
    perturb(trainer, 0.01)
    trainer.current_gradient_accumulation_steps = 1
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    before = trainer.p2o.ledger.forward_backward_tokens
    loss = trainer._compute_loss(trainer.model, dict(output))
    spent = trainer.p2o.ledger.forward_backward_tokens - before
    gradient = torch.autograd.grad(loss, parameters)
    assert logged(trainer).get("p2o/skipped_rollouts") == (0.5 if skip else None)

    theirs = {name: value for name, value in output.items() if name != "collapsed_rows"}
    for row, (prompt, completion) in enumerate(rows_of(output)):
        if row < K:
            own = brute_force_logps(trainer.model, prompt, completion).detach()
            theirs["ref_per_token_logps"][row, : len(completion)] = own
    trainer.args.kl_on_collapsed_groups = True
    expected = trainer._compute_loss(trainer.model, theirs)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    for ours, wanted in zip(gradient, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    passed = slice(K, 2 * K) if skip else slice(0, 2 * K)
    assert spent == output["prompt_mask"][passed].sum() + output["completion_mask"][passed].sum()


def test_with_a_kl_term_all_rollouts_are_learnt_from(tmp_path):
    trainer = make(tmp_path, beta=0.1)
    output = generation_batch(trainer, assign={})
    output["advantages"] = torch.zeros(8)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    everything = output["prompt_mask"].sum() + output["completion_mask"].sum()
    assert trainer.p2o.ledger.forward_backward_tokens == everything
    assert "p2o/skipped_rollouts" not in logged(trainer)
