"""`p2o features` on the embedded world in small: a dictionary, its labels and the truth, and what training moves."""

import contextlib
import json
import math
import re
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from endpoints import completion, serve, status
from p2o.cli import main
from p2o.difficulty.buckets import Cutoffs
from p2o.difficulty.profile import Profile, profiled, reward_identity
from p2o.engines.frozen import encode
from p2o.engines.loading import load_transformers
from p2o.evaluation.results import questions_digest
from p2o.evaluation.types import Sample
from p2o.features.activations import completion_loss, find_layer, layer_names, read_activations
from p2o.features.autoencoder import Dictionary, DictionaryError, Shape
from p2o.features.dynamics import checkpoints_of, interval
from p2o.features.labels import label_by_contrast, top_contexts
from p2o.features.saved import load_dictionary
from p2o.features.shards import Passage
from p2o.features.spans import KINDS, text_spans, token_kinds
from p2o.pico import model_path, world
from p2o.pico.spans import pico_spans, true_documents

SMALL = ["--reward_func", "pico", "--n", "12", "--questions_per_batch", "6", "--max_completion_length", "96"]
SIZES = ["--features", "192", "--k", "8", "--dictionary_steps", "150", "--pairs_per_batch", "128"]


def run(directory, *options, data, code=0):
    """Where the data lies, since samples depend on the name of the questions as it is given."""
    command = ["features", "pico", "--dataset", data.name, *SMALL, *SIZES, "--output_dir", str(directory), *options]
    with contextlib.chdir(data.parent):
        assert main(command) == code


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A directory with data of 8 hard and 4 easy questions, and the features of the embedded model on it."""
    directory = tmp_path_factory.mktemp("features")
    world.train_dataset(hard=8, easy=4).to_json(directory / "train.jsonl")
    run(directory / "found", data=directory / "train.jsonl")
    return directory


def test_quality_is_reported_against_a_plain_dictionary(there):
    found = json.loads((there / "found" / "features.json").read_text())
    ours, plain = found["quality"]["T-SAE"], found["quality"]["plain BatchTopK"]
    assert ours["tokens"] == plain["tokens"] > 60 and plain["low_smoothness"] is None
    for quality in (ours, plain):
        assert 0.3 < quality["explained_variance"] < 1 and 0.4 < quality["loss_recovered"] < 1.05
        assert 0 <= quality["dead"] < 0.9 and 4 < quality["active"] < 16
    assert ours["smoothness"] > 1.1 * plain["smoothness"]
    assert ours["high_smoothness"] > ours["low_smoothness"] + 0.1
    assert "</svg>" in (there / "found" / "features.svg").read_text()


def test_labels_are_those_of_the_corpus(there):
    found = json.loads((there / "found" / "features.json").read_text())["labels"]
    assert set(found) == set(KINDS)
    for kind in ("computation", "direct answer"):
        assert found[kind]["tokens"] > 100 and found[kind]["high"] + found[kind]["low"] > 3
        assert found[kind]["judged"] and found[kind]["agreeing"] > 0.7 and found[kind]["auroc"] > 0.85
    contexts = json.loads((there / "found" / "contexts.json").read_text())
    first = contexts["computation"][0]["contexts"]
    assert first[0]["activation"] >= first[-1]["activation"] > 0
    assert any("=" in place["before"] + place["token"] + place["after"] for place in first)


def labelled(handler):
    (mark, *_) = re.findall("⟦(.*?)⟧", handler.body["messages"][0]["content"], re.DOTALL)
    handler.send(200, completion(f"Where it says {mark.split()[0] if mark.split() else 'nothing'}"))


def test_an_endpoint_labels_the_most_active_features(there, tmp_path, capsys, no_keys):
    """Beside the labels by contrast, which stay as they are; in the same directory, without sampling anew."""
    shutil.copytree(there / "found", tmp_path / "found")
    dictionary = (tmp_path / "found" / "dictionary" / "dictionary.json").read_bytes()
    with serve(labelled) as server:
        options = ["--label_endpoint_model", "openai/m", "--label_endpoint_base_url", server.url]
        options += ["--label_endpoint_features", "9"]
        run(tmp_path / "found", *options, data=there / "train.jsonl")
        assert len(server.requests) == 9 and server.requests[0]["max_tokens"] == 1024
    assert "label by the endpoint" in capsys.readouterr().out
    contexts = json.loads((tmp_path / "found" / "contexts.json").read_text())
    features = {feature["feature"]: feature for group in contexts.values() for feature in group}
    said = {number: feature["endpoint_label"] for number, feature in features.items() if "endpoint_label" in feature}
    assert len(said) == 9 and all(label.startswith("Where it says") for label in said.values())
    activity = load_dictionary(tmp_path / "found").labels.activity
    assert sorted(said) == sorted(sorted(range(192), key=lambda feature: -activity[feature])[:9])
    assert (tmp_path / "found" / "dictionary" / "dictionary.json").read_bytes() == dictionary
    # Without an endpoint, what it said stays; with one that is down, too, which is asked for the others only.
    run(tmp_path / "found", data=there / "train.jsonl")
    assert json.loads((tmp_path / "found" / "contexts.json").read_text()) == contexts
    capsys.readouterr()
    with serve(status(500)) as server:
        options[3] = server.url
        run(tmp_path / "found", *options[:4], "--label_endpoint_max_retries", "0", data=there / "train.jsonl")
    assert "41 of 50 labels could not be had of openai/m: 41 × InternalServerError" in capsys.readouterr().out


def test_it_resumes_and_says_the_same_again(there, tmp_path, capsys):
    shutil.copytree(there / "found", tmp_path / "found")
    before = {path.name: path.read_bytes() for path in (tmp_path / "found").iterdir() if path.is_file()}
    weights = tmp_path / "found" / "dictionary" / "dictionary.safetensors"
    first = weights.read_bytes()
    (tmp_path / "found" / "shards" / "00001.json").unlink()  # it died between the two files of a shard
    (tmp_path / "found" / "training-t-sae.pt").unlink()
    weights.unlink()
    capsys.readouterr()
    run(tmp_path / "found", data=there / "train.jsonl")
    assert weights.read_bytes() == first
    for name in ("features.json", "contexts.json", "features.svg"):
        assert (tmp_path / "found" / name).read_bytes() == before[name], name
    said = capsys.readouterr().out
    assert "144/144" in said and "loss recovered" in said and "p2o features apply" in said


# -- dynamics ----------------------------------------------------------------------------------------------------------


def save_run(path, model, tokenizer, started_from="pico"):
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"model_name_or_path": started_from, "method": "sft"}))
    (path / "metrics.jsonl").write_text('{"step": 7}\n')
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")


@pytest.fixture(scope="module")
def runs(there):
    """Two runs: one that learnt nothing, and one that learnt to work bare questions through."""
    model, tokenizer = load_transformers(model_path())
    save_run(there / "idle", model, tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    worked = [document for document in true_documents(240) if "Work" in document.text]
    for start in range(0, 120, 8):
        rows = []
        for document in worked[start : start + 8]:
            question = document.question.rpartition("\n\n")[2]
            (prompt,) = encode(tokenizer, [[{"role": "user", "content": question}]])
            rows.append([*prompt, *tokenizer(document.text)["input_ids"], tokenizer.eos_token_id])
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=torch.where(ids == 0, -100, ids)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_run(there / "works", model.eval(), tokenizer)
    model.save_pretrained(there / "works" / "checkpoint-5")
    tokenizer.save_pretrained(there / "works" / "checkpoint-5")
    return ["idle", "works"]


def apply(there, *words, output, options=(), code=0):
    command = ["features", "apply", *words, "--dataset", "train.jsonl", *SMALL, "--n", "4", *options]
    with contextlib.chdir(there):
        assert main([*command, "--output_dir", str(output)]) == code


def profile_of(there, directory, solution=None):
    """A profile of all questions but the first, by which those of hard families are hard, and the rest easy.

    With a solution, it is one of other questions.
    """
    rows = [json.loads(line) for line in (there / "train.jsonl").read_text().splitlines()][1:]
    rows = [{**row, "solution": solution or row["solution"]} for row in rows]
    samples = [[Sample("x", 0, 0, "", None, float(row["level"] != "hard"), "", 9, 9, False)] * 2 for row in rows]
    questions = profiled("train", rows, samples, 0.0, 0)
    settings = {"n": 2, "questions": {"train": questions_digest([question.key for question in questions])}}
    profile = Profile("pico", settings, 0.0, {"train": reward_identity("pico")}, Cutoffs(), tuple(questions))
    (directory / "profile.json").write_text(json.dumps(profile.to_dict()))
    return str(directory)


def test_a_profile_of_other_questions_is_told(there, runs, tmp_path, capsys):
    for path, message in (
        (profile_of(there, tmp_path, solution="none"), "of other questions: none of the 12 here is in it. Profile"),
        ("nowhere", "Cannot read the difficulty profile nowhere"),
    ):
        apply(there, "found", "idle", output=tmp_path / "x", options=["--difficulty_profile", path], code=2)
        assert message in capsys.readouterr().err


def test_dynamics_show_what_training_strengthened(there, runs, tmp_path, capsys):
    options = ["--difficulty_profile", profile_of(there, tmp_path)]
    apply(there, "found", *runs, output=tmp_path / "moved", options=options)
    everything = json.loads((tmp_path / "moved" / "dynamics.json").read_text())
    found = everything["checkpoints"]
    assert [(row["run"], row["step"]) for row in found] == [("base", 0), ("idle", 7), ("works", 5), ("works", 7)]
    base, idle, _, works = found
    assert idle["share"] == base["share"] and set(idle["change"]["computation"].values()) == {0.0}
    for kind, sign in (("computation", 1), ("direct answer", -1)):
        change = works["change"][kind]
        assert change["low"] < change["mean"] < change["high"]
        assert min(sign * change["low"], sign * change["high"]) > 0.02, kind
    assert works["mean_length"]["mean"] > 2 * base["mean_length"]["mean"]
    assert sum(share["mean"] for share in base["share"].values()) < 1
    assert "</svg>" in (tmp_path / "moved" / "dynamics.svg").read_text()
    buckets = works["by_bucket"]
    assert {name: own["questions"] for name, own in buckets.items()} == {"hard": 7, "easy": 4}, "and one is not in it"
    assert buckets["hard"]["change"]["computation"]["mean"] > 0.02
    # Two checkpoints, and two that are the same model: nothing to tell of the first run, nothing led in the second.
    assert {row["run"] for row in everything["lead"]} == {"works"}
    assert not any(row["is_ahead"] for row in everything["lead"])
    said = capsys.readouterr().out
    assert "Questions by bucket: 7 hard, 0 medium, 4 easy; 1 not in the profile" in said
    assert "on 7 hard questions" in said and "correlation across questions" in said
    assert (tmp_path / "moved" / "contexts.json").read_bytes() == (there / "found" / "contexts.json").read_bytes()
    # Said again without sampling; a line that was cut off is measured anew.
    before = (tmp_path / "moved" / "dynamics.json").read_bytes()
    measured = tmp_path / "moved" / "measured.jsonl"
    whole = measured.read_bytes()
    measured.write_bytes(whole[:-9])
    capsys.readouterr()
    apply(there, "found", *runs, output=tmp_path / "moved", options=options)
    assert (tmp_path / "moved" / "dynamics.json").read_bytes() == before and measured.read_bytes() == whole
    assert "checkpoints: 4/4" in capsys.readouterr().out


def test_an_interval_of_one_question_is_not_known():
    assert interval([0.5])["mean"] == 0.5 and math.isnan(interval([0.5])["low"])
    found = interval([0.0, 1.0, 0.0, 1.0])
    assert found["low"] < 0 < 0.5 == found["mean"] < 1 < found["high"]


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "7"], "has no layer 7: its layers are 0 to 4 (model.layers.0 to model.layers.4)"),
        (["--layer", "model.h.0"], "has no layer model.h.0: its layers are 0 to 4"),
        (["--k", "1"], "--k 1: choose at least 2 active features"),
        (["--k", "500"], "--k 500: choose at least 2 active features of a token, and at most the 192 there are"),
        (["--n", "1", "--limit", "3"], "are too few to train on in batches of 128 pairs"),
        (["--use_vllm"], "reads a model from inside, which only transformers allows"),
        (["--high_share", "1"], "high_share=1.0 must be in (0, 1)"),
        (["--instructions", "nowhere.txt"], "Cannot read the instructions in nowhere.txt"),
        (["--label_endpoint_base_url", "http://x/v1"], "label_endpoint_base_url needs label_endpoint_model"),
        (["--label_endpoint_model", "nobody"], "label_endpoint_model='nobody' is not a name that litellm can place"),
        (["--spans", "nowhere:spans"], "spans: cannot import 'nowhere:spans'"),
    ],
)
def test_bad_input_is_one_message(there, tmp_path, capsys, options, message):
    run(tmp_path / "x", *options, data=there / "train.jsonl", code=2)
    said = capsys.readouterr().err
    assert message in said and said.startswith("Error: ") and "Traceback" not in said


def test_a_truncated_shard_is_named(there, tmp_path, capsys):
    shutil.copytree(there / "found", tmp_path / "found")
    shard = tmp_path / "found" / "shards" / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    run(tmp_path / "found", data=there / "train.jsonl", code=2)
    said = capsys.readouterr().err
    assert "The shard 00000 in" in said and "Delete it and run the same command again" in said


def one_kind(text):
    return []


def test_answers_of_one_kind_are_told(there, tmp_path, capsys):
    run(tmp_path / "x", "--spans", f"{__name__}:one_kind", "--baseline", "false", data=there / "train.jsonl")
    assert "nothing can be told by contrast. Sample more, harder or" in capsys.readouterr().out
    apply(there, str(tmp_path / "x"), str(there / "found"), output=tmp_path / "y", code=2)
    assert "No feature of this dictionary has a label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["found"], "Name a dictionary that `p2o features` wrote, and runs to apply it to"),
        (["nowhere", "idle"], "nowhere holds no dictionary: name a directory that `p2o features` wrote"),
        (["found", "nowhere"], "nowhere is neither a run directory of `p2o train`, with its config.yaml, nor a model"),
        (["found", "idle", "idle"], "Two runs have the same name (idle, idle)"),
        (["found", "other"], "other started from someone/else, the dictionary is of pico"),
        (["found", "narrow"], "The dictionary is of pico, narrow is another model: hidden_size was 128, is 16"),
    ],
)
def test_what_a_dictionary_cannot_be_applied_to(there, runs, tmp_path, capsys, words, message):
    if "other" in words and not (there / "other").exists():
        shutil.copytree(there / "idle", there / "other")
        (there / "other" / "config.yaml").write_text("model_name_or_path: someone/else\n")
    if "narrow" in words:
        from random_model import save_random_model

        heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
        save_random_model(there / "narrow", hidden_size=16, intermediate_size=16, num_hidden_layers=5, **heads)
    apply(there, *words, output=tmp_path / "x", options=["--limit", "2"], code=2)
    said = capsys.readouterr().err
    assert message in said and said.count("Error: ") == 1


def test_a_damaged_dictionary_is_told(there, tmp_path):
    shutil.copytree(there / "found" / "dictionary", tmp_path / "dictionary")
    (tmp_path / "dictionary" / "dictionary.safetensors").write_bytes(b"half")
    with pytest.raises(DictionaryError, match=r"The dictionary in .* is damaged"):
        load_dictionary(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: grpo\n")
    with pytest.raises(DictionaryError, match="has no model yet"):
        checkpoints_of(tmp_path / "run")


# -- parts -------------------------------------------------------------------------------------------------------------


def test_activations_are_those_of_the_model():
    model = AutoModelForCausalLM.from_pretrained(model_path())
    model.config.output_hidden_states = True
    passages = [Passage([5, 6, 7], [9, 8], 0, ""), Passage([11], [12] * 7, 0, ""), Passage([3] * 5, [], 0, "")]
    assert layer_names(model) == [f"model.layers.{n}" for n in range(5)]
    assert find_layer(model, None) == find_layer(model, "2") == find_layer(model, "model.layers.2")
    read = read_activations(model, "model.layers.2", passages, batch_size=2)
    for passage, found in zip(passages, read, strict=True):
        with torch.no_grad():
            true = model(input_ids=torch.tensor([passage.input_ids])).hidden_states[3][0, len(passage.context) :]
        assert torch.allclose(found, true, atol=1e-4)
    own = completion_loss(model, "model.layers.2", passages[0], None)
    assert completion_loss(model, "model.layers.2", passages[0], lambda inner: inner) == pytest.approx(own, abs=1e-5)
    assert completion_loss(model, "model.layers.2", passages[0], torch.zeros_like) != pytest.approx(own, abs=1e-3)
    with pytest.raises(DictionaryError, match="is no residual stream"):
        read_activations(model, "model.rotary_emb", passages, 2)


def test_the_rules_of_the_embedded_world_find_what_was_written():
    for document in true_documents(60):
        found = [kind for kind, start, end in pico_spans(document.text) for _ in range(start, end)]
        written = [kind for kind, start, end in document.spans for _ in range(start, end)]
        assert found == written, document.text


def test_spans_of_any_text():
    text = "Let me think about it. 12 * 3 = 36, so far. Then 36 + 4 = 40.\nThe answer is \\boxed{40}."
    said = {(kind, text[start:end].strip(" ")) for kind, start, end in text_spans(text)}
    assert ("computation", "12 * 3 = 36,") in said or ("computation", "12 * 3 = 36") in said
    assert ("deliberation", "Let me think about it.") in said and ("conclusion", "The answer is \\boxed{40}.") in said
    assert [span.kind for span in text_spans("\\boxed{40}")] == ["direct answer"]
    assert text_spans(" ") == []


def test_tokens_get_the_kind_of_their_first_character():
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = "Work: four parts\n3*4=12\nAnswer: 12"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    kinds = token_kinds(tokenizer, ids, text, pico_spans(text))
    assert len(kinds) == len(ids) and kinds[-1] is None
    assert list(dict.fromkeys(kinds[:-1])) == ["deliberation", "computation", "conclusion"]
    text = "é π – 3+4=7"  # characters of several tokens, which are nothing when they are read alone
    ids = tokenizer(text)["input_ids"]
    kinds = token_kinds(tokenizer, ids, text, text_spans(text))
    assert len(kinds) == len(ids) and tokenizer.decode(ids[kinds.index("computation") :]).startswith("3")


def test_features_are_labelled_by_what_they_stand_out_on():
    dictionary = Dictionary(Shape(width=4, features=4, high=2, k=2))
    with torch.no_grad():
        dictionary.encoder.copy_(torch.eye(4))
        dictionary.decoder.copy_(torch.eye(4))
    inner = torch.zeros(40, 4)
    inner[:20, 0], inner[20:, 1], inner[:, 2], inner[0, 3] = 1.0, 1.0, 1.0, 1.0
    kinds = ["computation"] * 20 + ["direct answer"] * 20
    labels = label_by_contrast(dictionary, [(inner, kinds)], least_share=0.6, least_tokens=5)
    assert labels.kinds == ("computation", "direct answer", None, None), "both kinds alike, and too seldom"
    assert labels.tokens["computation"] == labels.tokens["direct answer"] == 20
    contexts = top_contexts(dictionary, [(inner[:5], range(5)), (2 * inner[25:30], range(10, 15))], str, contexts=2)
    assert [place["token"] for place in contexts[1]] == ["[10]"] and contexts[1][0]["after"] == "[11, 12, 13, 14]"
    assert [place["activation"] for place in contexts[2]] == [2.0, 1.0] and contexts[3][0]["token"] == "[0]"
