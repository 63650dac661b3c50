"""Small trainers on the embedded model, batches of theirs, and what tests read off both."""

import itertools
import zlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.prompt_phase.hard_samples import HardSamples
from p2o.prompt_phase.types import Reflection
from p2o.templates import Template, apply_template

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


def group_advantages(watch):
    """Of each rollout of the last batch, as GRPO has them."""
    groups = torch.tensor([reward for *_, reward in watch.rollouts]).view(-1, K)
    return ((groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def terms_with_tools(trainer, output, watch, low, high):
    """What a batch's loss is of, where tokens outside [low, high] are masked and what tools returned is not learnt.

    Returns terms and number of learnt tokens of each rollout, and in all how many are masked and were returned.
    """
    contexts, advantage = contexts_of(trainer, watch.rollouts), group_advantages(watch)
    terms, lengths, masked, returned = [], [], 0, 0
    for row, (bare, completion) in enumerate(rows_of(output)):
        own = output["tool_mask"][row][: len(completion)].float()
        logps = brute_force_logps(trainer.model, bare, completion)
        factor = own.clone()
        if watch.rollouts[row].template:
            with torch.no_grad():
                ratio = (logps - brute_force_logps(trainer.model, contexts[row], completion)).exp()
            outside = (ratio < low) | (ratio > high)
            masked += int((outside * own).sum())
            factor = factor * ~outside
        returned += int((1 - own).sum())
        terms.append(-(logps - logps.detach()).exp() * factor * advantage[row])
        lengths.append(int(own.sum()))
    return terms, lengths, masked, returned


def assert_loss_is(trainer, output, terms, lengths):
    """The loss of a batch and its gradient are those of these terms, with the denominators of the trainer's loss type.

    Args:
        terms: of each rollout, of its tokens.
        lengths: of each rollout, tokens in the loss.
    """
    total = sum(term.sum() for term in terms)
    if trainer.loss_type in ("grpo", "sapo"):
        expected = sum(term.sum() / n for term, n in zip(terms, lengths, strict=True)) / len(terms)
    elif trainer.loss_type == "luspo":
        expected = total / len(terms)
    elif trainer.loss_type == "dr_grpo":
        expected = total / (len(terms) * trainer.max_completion_length)
    else:
        expected = total / sum(lengths)
    names, parameters = zip(*trainer.model.named_parameters(), strict=True)
    expected_gradient = torch.autograd.grad(expected, parameters, materialize_grads=True)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, output)
    gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
    torch.testing.assert_close(loss, expected, atol=2e-5, rtol=2e-4)
    assert trainer._compute_loss(trainer.model, output) == loss, "the same rollouts may be learnt from again"
    for name, actual, wanted in zip(names, gradient, expected_gradient, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def bare_tokens(trainer, question):
    chat = trainer.train_dataset[question]["prompt"]
    return trainer.processing_class.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


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


def perturb(trainer, scale=0.02):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            parameter += scale * torch.randn_like(parameter)


def answer_in_trls_place(prompts, trainer):
    """A `rollout_func` that generates as TRL would, and does not say with which log-probabilities."""
    ids = [trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts]
    completions, _ = GRPOTrainer._generate_single_turn(trainer, ids, None, {}, 1)
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None, "words": [len(c) for c in completions]}
