"""Templates in the system message: in both phases, and refused where a prompt has no place for one."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from p2o.pico import model_path
from p2o.policy_phase.context_distillation import ROLLOUT_LOGPS
from p2o.prompt_phase.types import Success
from trainers import (
    TEMPLATE,
    alternate,
    bare_tokens,
    brute_force_logps,
    make,
    questions,
    rows_of,
    watched_batch,
)


def under_system(trainer, question):
    chat = [{"role": "system", "content": TEMPLATE.text}, *trainer.train_dataset[question]["prompt"]]
    return trainer.processing_class.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_a_policy_phase_samples_under_it_and_learns_without(tmp_path):
    trainer = make(tmp_path, template_position="system")
    told = []
    generate = trainer.model.generate
    trainer.model.generate = lambda input_ids, **given: told.append(input_ids) or generate(input_ids, **given)
    output, watch = watched_batch(trainer)
    assert [prompt for prompt, _ in rows_of(output)][:4] == [bare_tokens(trainer, 0)] * 4
    words = trainer.processing_class
    given = [words.decode(ids) for batch in told for ids in batch]
    assert sum(f"<|system|>{TEMPLATE.text}<|user|>" in text for text in given) == 3
    # The context ratio is to what was sampled under.
    for row in range(1, 4):
        assert watch.rollouts[row].template == TEMPLATE.text
        _, completion = list(rows_of(output))[row]
        expected = brute_force_logps(trainer.model, under_system(trainer, 0), completion)
        torch.testing.assert_close(output[ROLLOUT_LOGPS][row, : len(completion)], expected, atol=1e-4, rtol=1e-4)


def test_evolution_tries_it_there_and_keeps_what_it_reuses(tmp_path):
    asked = []

    def rollout(prompts, trainer):
        asked.extend(prompts)
        ids = [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts
        ]
        return {"prompt_ids": ids, "completion_ids": [[6, 7, 1]] * len(ids), "logprobs": None}

    _, watch = alternate(tmp_path, rollout_func=rollout, template_position="system")
    ((_, result, _),) = watch.phases
    texts = {template.text for template in result.selected} | {c.text for c in result.candidates}
    systems = {chat[0]["content"] for chat in asked if chat[0]["role"] == "system"}
    assert texts - {""} <= systems
    assert not [chat for chat in asked if "Try way" in chat[-1]["content"]]


def test_reused_rollouts_were_sampled_under_it(tmp_path):
    trainer = make(tmp_path, template_position="system", reused_rollouts_per_group=1)
    success = Success(0, TEMPLATE.text, [6, 7, 1])
    kept = trainer._policy_phase.keep_successes(trainer.p2o, [success], trainer.train_dataset, trainer.model)
    expected = brute_force_logps(trainer.model, under_system(trainer, 0), [6, 7, 1])
    torch.testing.assert_close(kept[0][0].sampled_logps, expected.detach(), atol=1e-4, rtol=1e-4)


def tokenizer(chat_template):
    words = AutoTokenizer.from_pretrained(model_path())
    words.chat_template = chat_template
    return words


REFUSES = "{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
DROPS = "{%- for m in messages if m.role != 'system' -%}<|user|>{{- m.content -}}{%- endfor -%}<|assistant|>"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tokenizer": REFUSES + DROPS}, "System role not supported"),
        ({"tokenizer": DROPS}, "leaves the system message out"),
        ({"data": Dataset.from_dict({"prompt": ["1+1?"] * 8})}, "row 0, field `prompt`, is a text"),
    ],
)
def test_prompts_without_a_place_for_it_are_refused(tmp_path, given, why):
    given = {name: tokenizer(value) if name == "tokenizer" else value for name, value in given.items()}
    make(tmp_path, **given)
    with pytest.raises(ValueError, match=rf"template_position='system'.*{why}"):
        make(tmp_path, template_position="system", **given)


def test_no_other_place_is_known(tmp_path):
    with pytest.raises(ValueError, match="choose one of user, system"):
        make(tmp_path, data=questions(4), template_position="assistant")
