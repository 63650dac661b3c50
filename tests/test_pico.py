"""The embedded world: its tasks, how its model is made, and that the shipped weights are what they claim to be."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from p2o.holdout import is_held_out
from p2o.pico import build, ladder, model_path, world
from p2o.pico.corpus import Source, documents
from p2o.pico.methods import METHODS, RIGHT_METHODS, work
from p2o.pico.premise import Premise, measure
from p2o.pico.world import EASY_FAMILIES, LEVELS, TRAINED_FAMILIES, UNREACHABLE_FAMILIES
from p2o.templates import question_text


@pytest.mark.parametrize(("family", "level"), LEVELS)
def test_right_methods_are_right_and_the_others_are_not(family, level):
    """By reasoning-gym's own scorer."""
    wrong = 0
    for entry in islice(world.questions(family, level, seed=7), 60):
        row = json.dumps(entry)
        answer = world.direct_answer(family, entry)
        assert world.is_correct(f"Answer: {answer}", family, row)
        for method in METHODS:
            worked = work(family, entry, method)
            right = world.is_correct(f"Answer: {worked.answer}", family, row)
            if method in RIGHT_METHODS[family]:
                assert right
                assert 1 <= len(worked.lines) <= 16
            else:
                wrong += not right
    if level != "easy":
        assert wrong > 0.95 * 60 * (len(METHODS) - len(RIGHT_METHODS[family]))


WAYS = [(family, method) for family, methods in RIGHT_METHODS.items() for method in methods]


@pytest.mark.parametrize(("family", "method"), WAYS)
def test_every_line_of_a_worked_solution_is_true(family, method):
    for entry in islice(world.questions(family, "hard", seed=11), 40):
        for line in work(family, entry, method).lines:
            left, right = line.split(": ")[-1].split("=")
            assert abs(eval(left) - float(right)) < 1e-9, line


@pytest.mark.parametrize(("family", "method"), WAYS)
def test_slips_are_in_demanding_lines_only_and_work_goes_on_from_them(family, method):
    """How many lines are demanding makes the tier: none, some, and of two kinds."""
    kinds = {"chain_sum": set(), "decimal_chain_sum": set()}
    kinds |= {"basic_arithmetic": {"product"}, "complex_arithmetic": {"product", "re", "im"}}
    kinds["complex_sum"] = {"re", "im"}
    changed = 0
    for entry in islice(world.questions(family, "hard", seed=12), 40):
        seen = []

        def slipping(kind, result, seen=seen):
            seen.append(kind)
            return result + 1 if kind else result

        lines = work(family, entry, method, slipping).lines
        assert set(seen) - {None} == kinds[family] and len(seen) == len(lines)
        for line, kind in zip(lines, seen, strict=True):
            left, right = line.split(": ")[-1].split("=")
            assert abs(eval(left) + bool(kind) - float(right)) < 1e-9, line
        changed += work(family, entry, method, slipping).answer != work(family, entry, method).answer
    assert changed > 25 if kinds[family] else changed == 0


@pytest.mark.parametrize(("hard", "easy"), [(8, 4), (1, 0), (0, 4), (13, 5)])
def test_there_are_as_many_questions_as_asked_for(hard, easy):
    levels = world.train_dataset(hard=hard, easy=easy)["level"]
    assert (levels.count("hard"), levels.count("easy")) == (hard, easy)
    assert {len(rows) for rows in world.eval_dataset(per_split=5).values()} == {5}


def test_evaluation_is_on_questions_that_nothing_was_trained_on():
    train = {question_text(p) for p in world.train_dataset()["prompt"]}
    evaluation = world.eval_dataset()
    held_out = {question_text(p) for split in evaluation.values() for p in split["prompt"]}
    assert len(train) == 96 and len(held_out) == 5 * 96
    assert not train & held_out
    assert all(is_held_out(q) for q in held_out)
    assert set(evaluation["hard"]["family"]) == set(TRAINED_FAMILIES)
    assert set(evaluation["easy"]["family"]) == set(EASY_FAMILIES)
    assert set(world.train_dataset()["family"]) == {*TRAINED_FAMILIES, *UNREACHABLE_FAMILIES}
    assert set(evaluation["unseen_families"]["family"]) == {"decimal_chain_sum"}
    assert set(evaluation["unseen_levels"]["family"]) < set(TRAINED_FAMILIES)
    assert set(evaluation["upper_tiers"]["family"]) == {"complex_arithmetic", "complex_sum"}
    validation = world.validation_dataset()
    watched = {question_text(p) for split in validation.values() for p in split["prompt"]}
    assert {split: len(rows) for split, rows in validation.items()} == {"validation_easy": 48, "validation_hard": 48}
    assert not watched & (held_out | train)
    source = Source(3)
    for family, level in LEVELS:
        assert not any(is_held_out(source.question(family, level)[0]) for _ in range(50))


def test_answers_are_read_from_the_last_answer_line():
    assert world.extract_answer("Work\n1+1=2\nAnswer: 2") == "2"
    assert world.extract_answer("Answer: 1\nAnswer:  2 ") == "2"
    assert world.extract_answer("The Answer: 2") is None
    assert world.extract_answer("Answer: ") is None
    entry = next(world.questions("chain_sum", "easy", 0))
    rows = {"family": ["chain_sum"] * 3, "entry": [json.dumps(entry)] * 3}
    completions = [f"Answer: {entry['answer']}", "Answer: nonsense", ""]
    assert world.accuracy_reward(completions, **rows) == [1.0, 0.0, 0.0]
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    assert world.accuracy_reward(chats, **rows) == [1.0, 0.0, 0.0]


def test_corpus_is_a_function_of_its_seed():
    assert list(islice(documents(5), 50)) == list(islice(documents(5), 50))
    assert list(islice(documents(5), 50)) != list(islice(documents(6), 50))


def test_digits_are_tokens_and_markup_is_not_text():
    tokenizer = build.build_tokenizer(0, sample=500)
    for text in ("42+69=111", "Work: left to right\n", "Über 3 Äpfel ≥ 2 🍎"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    pieces = tokenizer.tokenize("42+69=111")
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("4269111")
    chat = [{"role": "user", "content": "1+1"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>1+1<|assistant|>"


def test_drills_teach_results_only():
    tokenizer = build.build_tokenizer(0, sample=500)
    ids, learnt = build.Encoder(tokenizer)([build.Document(None, "4*-9=-36\n12+5=17")])[0]
    text = tokenizer.decode(
        [token for token, learn in zip(ids, learnt, strict=True) if learn], skip_special_tokens=True
    )
    assert text == "=-36\n=17" and learnt[-1]


def test_an_interrupted_build_ends_with_the_same_weights(tmp_path, monkeypatch):
    def options(name, *more):
        places = ["--out", str(tmp_path / name / "model"), "--work", str(tmp_path / name)]
        small = ["--tokens", "1300", "--batch-tokens", "256", "--threads", "1", "--save-minutes", "0"]
        return build.parse([*places, *small, *more])

    real = build.build_tokenizer
    monkeypatch.setattr(build, "build_tokenizer", lambda seed, **given: real(seed, sample=500, **given))
    monkeypatch.setattr(build, "CHUNK", 200)
    build.train(options("straight"))
    save, saves = build._save, []

    def dies_after_three(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(build, "_save", dies_after_three)
    with pytest.raises(KeyboardInterrupt):
        build.train(options("killed"))
    build.train(options("killed", "--resume"))
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_is_shipped_is_small_and_plain():
    path = Path(model_path())
    assert sum(file.stat().st_size for file in path.iterdir()) < 5e6
    weights = load_file(path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert 1e6 <= sum(tensor.numel() for tensor in weights.values()) <= 2e6
    assert AutoConfig.from_pretrained(path).model_type == "qwen3"


@pytest.mark.slow
def test_the_premise_holds_on_the_shipped_weights():
    """What `python -m p2o.pico.premise` prints, as bounds."""
    result = measure(Premise(model_path(), samples=1))
    hard = {condition: success["all"] for condition, success in result["hard"].items()}
    assert 0.40 <= result["easy"]["bare"]["all"] <= 0.95
    assert hard["bare"] <= 0.03
    assert hard["vague"] <= 0.05, "a vague instruction helps little"
    assert hard["wrong method, care"] <= 0.05, "a wrong method fails"
    for condition in ("right method, care", "right clause first, care"):
        told = result["hard"][condition]
        assert told["chain_sum"] >= 0.6, "an instruction for tier 0 works from the first day"
        assert 0.02 <= told["basic_arithmetic"] <= 0.45, "one for tier 1 now and then"
        assert told["complex_arithmetic"] <= 0.05 and told["complex_sum"] <= 0.05, "and for the tiers above not yet"
    assert hard["right clause second, care"] <= 0.1, "the first clause is heeded"
    assert result["wrong method followed"] >= 0.75, "although it is followed"
    # No single choice is hopeless: the mask, which begins at 0.01, lets each of them through with room to spare.
    bare, told = result["choices"].pop("all of them")
    assert bare < 1 / 500, "plain GRPO meets a success less than once in hundreds of rollouts"
    assert told >= 0.8
    for bare, told in result["choices"].values():
        assert bare / told >= 0.03
    assert result["reflection"]["well-formed"] >= 0.90
    assert 0.30 <= result["reflection"]["names a right one"] <= 0.90
    for split in ("unseen_levels", "unseen_families"):
        assert result[split]["bare"]["all"] <= 0.03
        assert result[split]["right method, care"]["all"] >= 0.15, "the skill reaches beyond what is trained on"


@pytest.mark.slow
def test_each_tier_opens_the_next(monkeypatch):
    """What `python -m p2o.pico.ladder` prints, in small."""
    monkeypatch.setattr(ladder, "STEPS", 30)
    found = ladder.measure(Premise(model_path(), samples=1, per_split=32))
    assert list(found) == ["nothing", *(f"tier {tier} and below" for tier in range(3))]
    families = ("chain_sum", "basic_arithmetic", "complex_arithmetic", "complex_sum")
    for family, learnt in zip(families, found, strict=True):
        below, above = found[learnt], found.get(f"tier {families.index(family)} and below")
        assert below["bare"][family] <= 0.15, "nothing is learnt ahead"
        assert above is None or above["bare"][family] >= 0.5, "what is learnt needs no instruction"
    told = {learnt: conditions["right method, care"] for learnt, conditions in found.items()}
    for family, opened in (("complex_arithmetic", "tier 1 and below"), ("complex_sum", "tier 2 and below")):
        assert told["nothing"][family] <= 0.13 < 0.25 <= told[opened][family]
