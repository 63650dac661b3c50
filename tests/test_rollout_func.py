"""Where the trainer's rows come from, and a user's own `rollout_func`."""

import zlib
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from datasets import concatenate_datasets

from p2o import P2OTrainer
from p2o.templates import question_text
from trainers import (
    TEMPLATE,
    K,
    alternate,
    answer_in_trls_place,
    bare_tokens,
    coin,
    generation_batch,
    make,
    questions,
    rows_of,
)


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


def test_a_rollout_func_is_tested_without_a_model():
    """As TRL's own tests do it, and a user's may: a trainer without `__init__`, whose model is a stand-in."""
    trainer = object.__new__(P2OTrainer)
    trainer.model, trainer.state = SimpleNamespace(training=True), SimpleNamespace(global_step=2)
    trainer.accelerator, trainer.args = (
        SimpleNamespace(device="cpu", is_main_process=True),
        SimpleNamespace(report_to=[]),
    )
    trainer._last_loaded_step, trainer.use_vllm = 1, True
    trainer.vllm_generation = Mock(has_other_weights=False)
    trainer.rollout_func = Mock(return_value={"prompt_ids": [[1]]})
    with pytest.raises(ValueError, match="rollout_func must return keys"):
        trainer._generate(["prompt"])
    trainer.vllm_generation.sync_weights.assert_called_once()
    assert trainer._last_loaded_step == 2
