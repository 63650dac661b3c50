"""Reward functions are handed the same in training, in its prompt phase, in `p2o eval` and in `p2o evolve`."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import parse_response

from p2o.cli import main
from p2o.completions import Completion, as_message, decoded
from p2o.engines.decoding import decode
from p2o.evaluation.scorers import reward_scorer, scorer
from p2o.pico import model_path, world
from p2o.prompt_phase.types import Question
from p2o.reflection.model import transformers_reflection
from p2o.thoughts import thought_reading
from p2o.verifiers import rewards
from trainers import generation_batch, make, questions

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {"content": {"open": "Answer:", "close": "<|end|>", "content": "text"}},
}
handed: list[dict] = []
told: list[tuple[str, dict]] = []


def reward(prompts, completions, completion_ids, **columns):
    """Nothing for what it writes down."""
    handed.extend(
        {"prompt": prompt, "completion": completion, "ids": list(ids)}
        for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True)
    )
    return [0.0] * len(completions)


def feedback(completion, row):
    told.append((completion, row))
    return "Wrong."


def tokenizer_of(template):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    if template:
        tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


@pytest.fixture(params=[True, False], ids=["response template", "none"])
def checkpoint(request, tmp_path):
    path = tmp_path / "model"
    tokenizer_of(request.param).save_pretrained(path)
    AutoModelForCausalLM.from_pretrained(model_path()).save_pretrained(path)
    handed.clear()
    told.clear()
    return path


def in_training(path, tmp_path):
    trainer = make(tmp_path, reward=reward, tokenizer=AutoTokenizer.from_pretrained(path), max_completion_length=48)
    generation_batch(trainer, assign={})


def in_the_prompt_phase(path, tmp_path):
    trainer = make(tmp_path, reward=reward, tokenizer=AutoTokenizer.from_pretrained(path), max_completion_length=48)
    trainer.feedback_func = feedback
    for rollout in trainer.policy_rollouts([(Question(n, "", ""), "") for n in range(8)], 0):
        assert rollout.feedback


def command(name, path, tmp_path, *options):
    questions(8).to_json(tmp_path / "questions.jsonl")
    words = [name, str(path), "--dataset", str(tmp_path / "questions.jsonl"), "--reward_func", "test_one_way:reward"]
    words += ["--max_completion_length", "48", "--output_dir", str(tmp_path / "out"), *options]
    return main(words)


def in_eval(path, tmp_path):
    assert command("eval", path, tmp_path, "--n", "1") == 0


def in_evolve(path, tmp_path):
    options = ["--num_generations", "1", "--evolution_budget", "16", "--min_hard_questions", "2"]
    options += ["--reflection_prompt", world.REFLECTION_PROMPT, "--feedback_func", "test_one_way:feedback"]
    command("evolve", path, tmp_path, *options, "--reflection_max_tokens", "8", "--confirm_samples", "0")


@pytest.mark.parametrize("where", [in_training, in_the_prompt_phase, in_eval, in_evolve], ids=lambda f: f.__name__)
def test_reward_functions_are_handed_what_trl_hands_them(checkpoint, tmp_path, where, capsys):
    where(checkpoint, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    parsed = getattr(tokenizer, "response_template", None) is not None
    assert len(handed) >= 8, capsys.readouterr().err
    for one in handed:
        text = tokenizer.decode(one["ids"], skip_special_tokens=True)
        whole = [{"role": "assistant", "content": text}]
        prefix = tokenizer.apply_chat_template(one["prompt"], add_generation_prompt=True)["input_ids"]
        assert one["completion"] == ([parse_response(tokenizer, one["ids"], prefix=prefix)] if parsed else whole)
    assert any(one["completion"][0]["content"] and "Answer:" not in str(one["completion"]) for one in handed) == parsed
    # Feedback is on what was scored.
    scored = {one["completion"][0]["content"] for one in handed}
    assert bool(told) == (where in (in_the_prompt_phase, in_evolve)) and {text for text, _ in told} <= scored
    assert all("thought_taken_out" in row for _, row in told)


VERIFIED = {"math": ({"solution": "42"}, r"\boxed{42}"), "exact": ({"solution": "42"}, "Answer: 42")}


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("verifier", VERIFIED)
def test_verifiers_read_the_same_in_evaluation(verifier, template, thinks):
    """Of what the response template has cut out, of a text, and of what stands behind a thought."""
    row, answer = VERIFIED[verifier]
    tokenizer = tokenizer_of(template)
    tokenizer.chat_template += "{# <think> #}" if thinks else ""
    prompt = [{"role": "user", "content": "6 x 7?"}]
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    texts = [answer, "Answer: no", f"Answer: {answer}", f"<think>{answer}</think> Answer: no", f"<think>{answer}", ""]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    found = decode(tokenizer, [prompt_ids] * len(texts), ids, [True] * len(texts))
    reading = thought_reading("auto", tokenizer)
    (trained,) = reading.given_to(getattr(rewards, verifier))
    (scored,) = reading.given_to(scorer(verifier))
    columns = {name: [value] * len(texts) for name, value in row.items()}
    completions = [one.completion for one in found]
    paid = trained(completions=completions, prompts=[prompt] * len(texts), completion_ids=ids, **columns)
    assert [v.reward for v in scored(found, [{"prompt": prompt, **row}] * len(texts))] == paid
    assert 0 in paid and 1 in paid


def test_reflections_are_texts_alone():
    """They are written down in the journal."""
    model = AutoModelForCausalLM.from_pretrained(model_path())
    reflect = transformers_reflection(model, tokenizer_of(template=True), max_new_tokens=3)
    assert [reflection.decoded for reflection in reflect(["Improve this."], seed=0)] == [None]


def test_what_a_server_returns_is_a_message_as_it_is():
    """It has no tokens, and a reward function that would be told them is not."""
    seen = []
    score = reward_scorer(lambda completions, **columns: seen.append((completions, columns)) or [1.0], "f")
    for prompt, wanted in (("6 x 7?", "42"), ([{"role": "user"}], [{"role": "assistant", "content": "42"}])):
        score([decoded(Completion("42"), prompt)], [{"prompt": prompt, "extra": 3}])
        assert seen.pop() == ([wanted], {"prompts": [prompt], "extra": [3]})
    strict = reward_scorer(lambda prompts, completions: [1.0], "f")
    assert strict([as_message("42", chat=False, ids=[4, 2])], [{"prompt": "6 x 7?"}])[0].reward == 1.0
