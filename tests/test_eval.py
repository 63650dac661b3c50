"""`p2o eval` on the embedded world: whole evaluations in small, killed and continued, compared, and given bad input."""

import errno
import json
import os
import re
import time

import pytest
from transformers import AutoTokenizer

import forked
from endpoints import completion, serve
from p2o.cli import main
from p2o.completions import Completion, Sampling
from p2o.engines.frozen import FrozenModel, encode, transformers_model
from p2o.engines.loading import weights_digest
from p2o.evaluation.comparison import compare
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import default_ks
from p2o.evaluation.types import QuestionSet
from p2o.pico import model_path, world

COMMAND = ["eval", "pico", "--tasks", "pico:easy,pico:hard", "--limit", "6", "--n", "3", "--questions_per_batch", "2"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(directory, *options, command=COMMAND):
    assert main([*command, *options, "--output_dir", str(directory)]) == 0
    return json.loads((directory / "eval.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eval") / "a"
    return directory, run(directory)


def test_an_instruction_is_in_front_of_every_question(tmp_path, finished, capsys):
    """As a template in training, and the questions stay the same ones, so that bare answers can be compared."""
    directory, bare = finished
    told = run(tmp_path / "told", "--instruction", " Go from left to right. Show every line to the end.\n", "--n", "3")
    assert told["settings"]["instruction"] == "Go from left to right. Show every line to the end."
    families = [row["family"] for row in list(world.eval_dataset()["hard"])[:6]]
    assert set(families) == {"chain_sum"}
    assert told["tasks"]["pico:hard"]["avg"] > 0.5 > bare["tasks"]["pico:hard"]["avg"]
    assert told["prompt_tokens"] > bare["prompt_tokens"]
    assert main(["eval", "--compare", str(directory), str(tmp_path / "told")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "first: pico second: pico, told: Go from left to right. Show every line to the end." in said
    again = [*COMMAND, "--output_dir", str(tmp_path / "told")]
    assert main(again) == 2, "bare answers are not added to these"
    assert "instruction" in capsys.readouterr().err


def test_an_instruction_in_the_system_message_needs_chats(tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "1+1?", "solution": "2"}) + "\n")
    command = ["eval", "pico", "--dataset", str(tmp_path / "texts.jsonl"), "--n", "1", "--instruction", "Add."]
    command += ["--template_position", "system", "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--prompts_as_chats", "false"]) == 2
    assert "A text has no system message for a template" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--prompts_as_chats", "true", "--max_completion_length", "8"]) == 0


def test_an_evaluation_says_what_it_found(finished, capsys):
    directory, result = finished
    transcripts = lines(directory / "transcripts.jsonl")
    assert len(transcripts) == 2 * 6 * 3
    for name, task in result["tasks"].items():
        own = [t for t in transcripts if t["task"] == name]
        assert task["avg"] == pytest.approx(sum(t["reward"] for t in own) / len(own))
        assert task["mean_length"] == pytest.approx(sum(t["completion_tokens"] for t in own) / len(own))
        assert task["pass@k"]["1"] == pytest.approx(task["avg"]) and task["pass@k"]["3"] >= task["avg"]
        assert set(task["maj@k"]) == {"1", "2", "3"} and sum(task["reasons"].values()) == 18
        assert [q["rewards"] for q in task["by_question"]] == [
            [t["reward"] for t in own if t["question"] == q] for q in range(6)
        ]
        # Who verifies is who rewards in training.
        rows = list(world.eval_dataset()[name.removeprefix("pico:")])
        for t in own:
            row = rows[t["question"]]
            assert world.accuracy_reward([t["completion"]], [row["family"]], [row["entry"]]) == [t["reward"]]
    assert result["tasks"]["pico:easy"]["avg"] > result["tasks"]["pico:hard"]["avg"]
    # Finished, it is only told again.
    assert run(directory) == result
    said = capsys.readouterr().out
    assert "avg@3" in said and "answers: 36/36" in said


def test_answers_do_not_depend_on_what_else_is_asked(tmp_path, finished):
    # Streams depend on a batch's place in its task, not on what came before.
    first = run(tmp_path, "--tasks", "pico:hard")
    assert first["tasks"]["pico:hard"] == finished[1]["tasks"]["pico:hard"]
    assert run(tmp_path / "other", "--seed", "1")["tasks"] != finished[1]["tasks"]


@pytest.mark.parametrize("cut", [0, 1, 700, 3000, -20])
def test_it_goes_on_after_the_last_whole_batch(tmp_path, finished, cut):
    directory, result = finished
    whole = (directory / "transcripts.jsonl").read_bytes()
    (tmp_path / "settings.json").write_bytes((directory / "settings.json").read_bytes())
    (tmp_path / "transcripts.jsonl").write_bytes(whole[:cut])
    assert run(tmp_path) == result
    assert (tmp_path / "transcripts.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_numbers(tmp_path, finished):
    directory = tmp_path / "killed"
    (process,) = forked.start_command(*COMMAND, "--output_dir", str(directory), logs=tmp_path)
    transcripts = directory / "transcripts.jsonl"
    deadline = time.monotonic() + 120
    while not (transcripts.exists() and transcripts.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert run(directory) == finished[1]
    assert transcripts.read_bytes() == (finished[0] / "transcripts.jsonl").read_bytes()


def test_two_are_compared_question_by_question(tmp_path, finished, capsys):
    other = tmp_path / "b"
    run(other, "--seed", "1")
    capsys.readouterr()
    out = tmp_path / "compared.json"
    assert main(["eval", "--compare", str(finished[0]), str(other / "eval.json"), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert "paired bootstrap over questions, seed 0" in said and "questions differ" in said
    compared = json.loads(out.read_text())
    for name, task in compared.items():
        values = [json.loads((d / "eval.json").read_text())["tasks"][name]["avg"] for d in (finished[0], other)]
        assert [task["first"], task["second"]] == pytest.approx(values)
        assert task["low"] <= task["difference"] <= task["high"]
        changes = [abs(q["second"] - q["first"]) for q in task["questions"]]
        assert changes == sorted(changes, reverse=True) and 0 not in changes


def result(rights, n=1, key="k", temperature=1.0):
    by_question = [
        {"question": i, "key": f"{key}{i}", "text": f"Question {i}", "rewards": [r] * n, "right": n * r}
        for i, r in enumerate(rights)
    ]
    settings = {"model": "m", "sampling": {"temperature": temperature}}
    return {"settings": settings, "tasks": {"t": {"by_question": by_question}}}


def test_one_answer_a_question_is_a_case_for_mcnemar():
    first, second = result([1, 1, 0, 0, 0, 0, 0, 0]), result([0, 1, 1, 1, 1, 1, 1, 0])
    assert compare(first, second)["t"]["mcnemar"] == {"gained": 5, "lost": 1, "p_value": 14 / 64}
    assert "mcnemar" not in compare(result([1, 0], n=2), result([0, 1], n=2))["t"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (result([1, 0, 1]), "the first has 2 questions, the second 3"),
        (result([1, 0], key="other"), "2 of 2 questions are not the same, question 0 the first"),
        (result([1, 0], n=4), "n = 1 in the first and 4 in the second"),
        (result([1, 0], temperature=0.6), "temperature was 1.0, is 0.6"),
        ({**result([1, 0]), "tasks": {"u": {}}}, "only the first has t, only the second u"),
    ],
)
def test_what_cannot_be_compared_is_refused(second, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(result([1, 0]), second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --tasks"),
        (["--tasks", "maths500"], "Unknown task 'maths500'; did you mean math500?"),
        (["--tasks", "pico:esay"], "the embedded world has"),
        (["--tasks", "pico:hard", "--n", "0"], "n=0 must be at least 1"),
        (["--tasks", "pico:hard", "--temperature", "0"], "evaluate with --n 1"),
        (["--tasks", "pico:hard", "--k", "1,16"], "k is from 1 to --n, which is 8"),
        (["--tasks", "pico:hard", "--k", "two"], "not a list of integers"),
        (["--tasks", "pico:hard", "--top_p", "0"], "top_p=0.0 must be in (0, 1]"),
        (["--tasks", "pico:hard", "--verifier", "math"], "--verifier is for --dataset"),
        (["--tasks", "pico:hard", "--max_completion_length", "100000"], "100000. Lower it to at most 2005."),
        (["--tasks", "pico:hard", "--base_url", "http://me:secret@host/v1"], "contains a user name or a password"),
        (["--tasks", "pico:hard", "--base_url", "http://127.0.0.1:1/v1"], "MODEL='pico' is not a name"),
        (["--dataset", "nowhere.jsonl"], "The dataset file nowhere.jsonl does not exist"),
        (["--tasks", "pico:hard", "--reward_func", "nowhere:f"], "cannot import 'nowhere:f'"),
        (["--tasks", "pico:hard", "--verifer", "math"], "Unknown option(s): --verifer (perhaps verifier)"),
        (["--tasks", "pico:hard", "--limi", "3"], "Unknown option(s): --limi (perhaps limit)"),
        (["--tasks", "pico:hard", "--limit", "three"], "invalid int value: 'three'"),
        (["--compare", "a", "b"], "Cannot read a"),
        (["--compare", "a"], "--compare takes two evaluations, not 1"),
    ],
)
def test_bad_input_is_told_in_one_message(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    command = ["eval", *options] if "--compare" in options else ["eval", "pico", *options]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and message in " ".join(said.split()) and "Traceback" not in said


def test_other_settings_do_not_go_on_in_its_directory(finished, capsys):
    assert main([*COMMAND, "--output_dir", str(finished[0]), "--seed", "7"]) == 2
    assert "holds results made with other settings: seed was 0, is 7" in " ".join(capsys.readouterr().err.split())


def test_own_data_is_verified_as_it_says(tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    rows = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "What is 2 + 2?", "answer": "4"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "", "answer": "1"}]))
    options = ["--dataset", str(data), "--prompt-column", "question", "--solution-column", "answer"]
    command = ["eval", "pico", *options, "--prompts-as-chats", "true", "--n", "2", "--verifier", "exact"]
    found = run(tmp_path / "out", command=command)
    assert found["tasks"][str(data)]["questions"] == 2
    assert "1 of 3 questions dropped" in capsys.readouterr().out


def test_a_reward_function_of_the_users_judges(tmp_path, monkeypatch):
    (tmp_path / "brevity.py").write_text(
        "def short(prompts, completions, solution, **columns):\n"
        "    return [0.5 * (len(c[-1]['content']) < 12) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = run(tmp_path / "out", "--reward_func", "brevity:short")["tasks"]["pico:easy"]
    assert found["avg"] == pytest.approx(0.5 * found["pass@k"]["1"]) and found["avg"] > 0
    assert found["maj@k"]["1"] is None


def test_an_answer_that_nobody_could_score_is_none_and_no_zero(tmp_path, monkeypatch, capsys):
    (tmp_path / "doubt.py").write_text(
        "def doubt(prompts, completions, **columns):\n"
        "    values = [1.0, None, float('nan')] * len(completions)\n"
        "    return values[:len(completions)]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = run(tmp_path / "out", "--reward_func", "doubt:doubt")["tasks"]["pico:easy"]
    assert (found["avg"], found["unscored"], found["pass@k"]["1"], found["pass@k"]["2"]) == (1.0, 12, 1.0, None)
    assert found["reasons"] == {"unscored": 12, "right": 6}
    assert {tuple(q["rewards"]) for q in found["by_question"]} == {(1.0, None, None)}
    assert "(12 unscored)" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_leaves_out_questions_that_one_of_the_two_has_no_score_for():
    first, second = result([1, 0, 0]), result([1, 1, 0])
    second["tasks"]["t"]["by_question"][2]["rewards"] = [None]
    compared = compare(first, second)["t"]
    assert (compared["first"], compared["second"], compared["unscored"]) == (0.5, 1.0, 1)
    second = result([1])
    second["tasks"]["t"]["by_question"][0]["rewards"] = [None]
    with pytest.raises(ValueError, match="no question of which both have a scored answer"):
        compare(result([1]), second)


def test_a_served_model_is_asked_n_times(tmp_path, monkeypatch):
    def act(handler):
        prompt = handler.body["messages"][-1]["content"]
        handler.send(200, completion(f"Answer: {len(prompt)}"))

    with serve(act) as server:
        options = ["--tasks", "pico:hard", "--limit", "2", "--n", "2", "--base_url", server.url, "--max_retries", "0"]
        command = ["eval", "openai/m", *options, "--output_dir", str(tmp_path / "out")]
        assert main(command) == 0
        assert len(server.requests) == 4 and len({r["seed"] for r in server.requests}) == 4
        assert not any("chat_template_kwargs" in request for request in server.requests)
        template = {"enable_thinking": False}
        options = ["--chat_template_kwargs", json.dumps(template), "--output_dir", str(tmp_path / "off")]
        assert main([*command, *options]) == 0
        assert [request["chat_template_kwargs"] for request in server.requests[4:]] == [template] * 4
    transcripts = lines(tmp_path / "out" / "transcripts.jsonl")
    assert [t["extracted"] is not None for t in transcripts] == [True] * 4
    assert {t["prompt_tokens"] for t in transcripts} == {70}


def test_a_server_that_fails_costs_nothing_that_is_finished(tmp_path, capsys):
    fails = [False]

    def act(handler):
        if fails[0] and len(handler.server.requests) > 4:
            handler.send(400, {"error": {"message": "too much"}})
        else:
            handler.send(200, completion("", choices=[cut_off]))

    cut_off = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": ""}}
    with serve(act) as server:
        options = ["--tasks", "pico:hard", "--limit", "4", "--n", "2", "--questions_per_batch", "2"]
        command = ["eval", "openai/m", *options, "--base_url", server.url, "--output_dir", str(tmp_path / "out")]
        fails[0] = True
        assert main(command) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "pico:hard, questions 2 to 3: 4 of 4 completions by openai/m failed" in said
        assert "--max_completion_length" in said and "same command again" in said
        assert len(lines(tmp_path / "out" / "transcripts.jsonl")) == 4
        fails[0] = False
        assert main(command) == 0
    # A model that spends its tokens on thinking has said nothing; that is a result, and it is counted.
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["tasks"]["pico:hard"]
    assert found["truncated"] == 1 and found["reasons"] == {"no answer": 8}


def test_prompts_become_tokens_as_trl_makes_them():
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    chat = [{"role": "user", "content": "Calculate 3 + 4."}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids, plain = encode(tokenizer, [chat, "Calculate"])
    assert tokenizer.decode(ids) == text and plain == tokenizer("Calculate")["input_ids"]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        encode(tokenizer, [chat])


def test_a_completion_ends_where_it_ended():
    model = transformers_model(model_path(), batch_size=4, attn_implementation="eager")
    prompts = [row["prompt"] for row in world.eval_dataset(per_split=4)["easy"]]
    long = model.complete(prompts, sampling=Sampling(64), seed=0)
    short = model.complete(prompts, sampling=Sampling(2), seed=0)
    again = model.complete(prompts, sampling=Sampling(64), seed=0)
    assert long == again and not any(c.truncated for c in long)
    assert all(c.truncated and c.completion_tokens == 2 for c in short)
    assert all("<" not in c.text and c.completion_tokens > 2 for c in long)
    greedy = [model.complete(prompts, sampling=Sampling(16, temperature=0), seed=seed) for seed in (0, 1)]
    assert greedy[0] == greedy[1]


def test_questions_that_no_answer_came_to_are_not_zeros(tmp_path):
    def complete(prompts, *, sampling, seed):
        return [Completion("x", 1, 1) for _ in prompts[1:]]

    with pytest.raises(ValueError, match="zip"):
        evaluate(
            [QuestionSet("t", [{"prompt": "a"}, {"prompt": "b"}], lambda c, rows: [])],
            FrozenModel(complete),
            Sampling(4),
            n=1,
            seed=0,
            transcripts=tmp_path / "t.jsonl",
        )
    assert not (tmp_path / "t.jsonl").exists()


def test_default_ks_are_powers_of_two_and_n():
    assert default_ks(1) == [1] and default_ks(6) == [1, 2, 4, 6] and default_ks(8) == [1, 2, 4, 8]


def test_weights_are_told_apart(tmp_path):
    assert weights_digest(tmp_path / "nowhere") is None
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3 * 2**20))
    digest = weights_digest(tmp_path)
    assert digest == weights_digest(tmp_path)
    file.write_bytes(os.urandom(3 * 2**20))
    assert weights_digest(tmp_path) != digest


def test_one_question_has_no_error(tmp_path, finished):
    found = run(tmp_path, "--limit", "1")["tasks"]["pico:easy"]
    assert found["standard_error"] is None and found["questions"] == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more_is_a_message(tmp_path, monkeypatch, capsys, number):
    """The file system fails at the fourth write; when it is mended, the same command goes on behind what is there."""
    batches = []

    def sync(descriptor):
        batches.append(descriptor)
        if len(batches) > 3:  # the settings come first
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", sync)
        assert main([*COMMAND, "--output_dir", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "Cannot write " in said and f": {os.strerror(number)}." in said and "same command again to continue" in said
    kept = lines(tmp_path / "transcripts.jsonl")
    assert len(kept) >= 6
    run(tmp_path)
    assert lines(tmp_path / "transcripts.jsonl")[: len(kept)] == kept
