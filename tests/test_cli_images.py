"""Images of own data in `p2o train`, `eval`, `profile` and `evolve`: whole commands with a model made at random."""

import json
import shutil

import pytest
from datasets import Dataset, Features, Image, Value

import vision_model
from endpoints import completion, serve
from p2o.cli import main
from p2o.tasks import DataError, load_splits, questions
from small_run import SMALL

REWARDS = '''
"""Rewards by chance, of questions whose images are there."""

import zlib

from p2o.completions import final_text


def luck(completions, prompts, images, picture=None, **kwargs):
    assert picture is None, "the column is images by now"
    for prompt, shown in zip(prompts, images, strict=True):
        blocks = [b for b in prompt[-1]["content"] if b["type"] == "image"]
        assert len(blocks) == len(shown) and all(image.size == (16, 16) for image in shown)
    return [float(zlib.crc32(final_text(c).encode()) % 3 == 0) for c in completions]


def reflect(prompts, *, seed, images=()):
    from p2o.prompt_phase.types import Reflection

    assert any(map(len, images)) and all(p.count("\\ufffc") == len(i) for p, i in zip(prompts, images, strict=True))
    return [Reflection(f"```\\nTry way {seed % 97 + n}.\\n```") for n in range(len(prompts))]


reflect.sees_images = True
'''
COUNTS = [1, 2, 1, 2, 1, 1, 2, 1]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A model, and questions with images in a folder beside the data."""
    place = tmp_path_factory.mktemp("images")
    model, processor = vision_model.make("gemma")
    model.save_pretrained(place / "model")
    processor.save_pretrained(place / "model")
    (place / "data" / "pictures").mkdir(parents=True)
    rows = []
    for row, count in enumerate(COUNTS):
        names = [f"pictures/{row}-{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            vision_model.picture(6 * (2 * row + number)).save(place / "data" / name)
        rows.append({"question": "What is shown?", "picture": names, "answer": str(row)})
    (place / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "image_rewards.py").write_text(REWARDS)
    return place


@pytest.fixture
def at_work(there, tmp_path, monkeypatch):
    """Elsewhere than where the data lies, with the rewards in the working directory."""
    shutil.copy(there / "image_rewards.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_options(there):
    columns = ["--prompt_column", "question", "--image_column", "picture", "--solution_column", "answer"]
    return ["--dataset_name", str(there / "data" / "train.jsonl"), *columns]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def own(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_a_run_of_ones_own_questions_with_images(there, at_work, capsys):
    """Questions with the same text and other images are not duplicates; both phases see the images."""
    left_out = ("model_name_or_path", "reward_funcs", "feedback_func", "reflection_prompt")
    settings = {name: value for name, value in SMALL.items() if name not in left_out}
    words = [*data_options(there), *own({**settings, "max_completion_length": 4})]
    words += ["--model_name_or_path", str(there / "model"), "--reward_funcs", "image_rewards:luck"]
    words += ["--reflection_func", "image_rewards:reflect", "--output_dir", "run", "--evaluate_before_and_after", "no"]
    assert main(["train", *words, "--check_only"]) == 0
    assert "8 rows, 8 kept" in capsys.readouterr().out
    assert main(["train", *words]) == 0
    summary = json.loads((at_work / "run" / "summary.json").read_text())
    assert summary["rollouts"]["policy"] == 2 * 8 * 4 and summary["rollouts"]["reflection"] > 0
    assert {sample["question"] for sample in lines(at_work / "run" / "samples.jsonl")} == {"What is shown?"}


def test_answers_profiles_and_templates(there, at_work, monkeypatch):
    common = [str(there / "model"), *data_options(there), "--max_completion_length", "4", "--temperature", "1"]
    common += ["--reward_func", "image_rewards:luck"]
    assert main(["eval", *common, "--n", "2", "--output_dir", "eval"]) == 0
    result = json.loads((at_work / "eval" / "eval.json").read_text())
    (task,) = result["tasks"].values()
    assert task["questions"] == 8 and len({question["key"] for question in task["by_question"]}) == 8
    answers = lines(at_work / "eval" / "transcripts.jsonl")
    lengths = {COUNTS[answer["question"]]: answer["prompt_tokens"] for answer in answers}
    assert lengths[2] - lengths[1] > 4, "each image has tokens"
    assert main(["profile", *common, "--n", "2", "--output_dir", "profile"]) == 0
    profile = json.loads((at_work / "profile" / "profile.json").read_text())
    assert [q["key"] for q in profile["questions"]] == [q["key"] for q in task["by_question"]]
    evolution = ["--num_generations", "2", "--min_hard_questions", "2", "--evolution_budget", "90"]
    evolution += ["--reflection_func", "image_rewards:reflect", "--confirm_samples", "1"]
    assert main(["evolve", *common, *evolution, "--output_dir", "evolve"]) in (0, 1)
    found = json.loads((at_work / "evolve" / "evolution.json").read_text())
    assert len(found["hard_set"]) >= 2 and found["spent"]["rollouts"]["reflection"] > 0


def test_the_frozen_model_sees_them_when_it_reflects(there, at_work):
    words = [str(there / "model"), *data_options(there), "--max_completion_length", "4", "--temperature", "1"]
    words += ["--reward_func", "image_rewards:luck", "--num_generations", "2", "--min_hard_questions", "2"]
    words += ["--evolution_budget", "90", "--reflection_max_tokens", "4", "--output_dir", "evolve"]
    assert main(["evolve", *words]) in (0, 1)
    found = json.loads((at_work / "evolve" / "evolution.json").read_text())
    assert found["spent"]["rollouts"]["reflection"] > 0


def test_a_server_is_sent_them(there, at_work, no_keys):
    with serve(lambda handler: handler.send(200, completion("none"))) as server:
        words = ["openai/x", "--base_url", server.url, *data_options(there), "--reward_func", "image_rewards:luck"]
        assert main(["eval", *words, "--n", "1", "--output_dir", "eval"]) == 0
        contents = [request["messages"][-1]["content"] for request in server.requests]
    kinds = sorted([block["type"] for block in content] for content in contents)
    assert kinds == sorted([*["image_url"] * count, "text"] for count in COUNTS)
    assert all(c[0]["image_url"]["url"].startswith("data:image/png;base64,") for c in contents)


# -- where images are ------------------------------------------------------------------------------------------------


def test_paths_are_beside_the_data_file(there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(there / "data", tmp_path / "moved")
    for name in ("moved/train.jsonl", "moved"):
        data, report = questions(
            load_splits(name, image_column="picture")["train"],
            prompt_column="question",
            solution_column="answer",
            image_column="picture",
        )
        assert len(data) == 8 and not report.findings and "picture" not in data.column_names
        assert [len(images) for images in data["images"]] == COUNTS
        assert data[0]["images"][0].size == (16, 16)
        assert data[0]["prompt"] == [{"role": "user", "content": "What is shown?"}]


@pytest.mark.parametrize("form", ["parquet", "csv", "stored"])
def test_one_image_a_question(there, tmp_path, form):
    rows = {"prompt": ["What?"] * 2, "image": [f"pictures/{n}-0.png" for n in range(2)], "solution": ["1", "1"]}
    shutil.copytree(there / "data" / "pictures", tmp_path / "pictures")
    data = Dataset.from_dict(rows)
    file = tmp_path / f"train.{'parquet' if form == 'stored' else form}"
    if form == "csv":
        data.to_csv(file)
    elif form == "stored":
        whole = Dataset.from_dict({**rows, "image": [str(tmp_path / path) for path in rows["image"]]})
        whole.cast_column("image", Image()).map(lambda row: row).to_parquet(file)
    else:
        data.to_parquet(file)
    loaded, report = questions(load_splits(str(file))["train"])
    assert len(loaded) == 2 and not report.findings, "other images, so no duplicates"
    assert [image.size for image in loaded["image"]] == [(16, 16), (16, 16)]


def test_a_folder_of_images_with_their_metadata(there, tmp_path):
    for number in range(3):
        shutil.copy(there / "data" / "pictures" / f"{number}-0.png", tmp_path / f"{number}.png")
    rows = [{"file_name": f"{n}.png", "prompt": "What?", "solution": str(n)} for n in range(3)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, report = questions(load_splits(str(tmp_path))["train"])
    assert len(data) == 3 and not report.findings and data[1]["image"].size == (16, 16)


def test_blocks_say_where_images_stand():
    blocks = [{"type": "text", "text": "Left:"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    rows = {"prompt": [[{"role": "user", "content": blocks}]] * 3, "solution": ["1"] * 3}
    shown = [[vision_model.picture(n)] for n in range(3)]
    shown[2] = []
    data, report = questions(Dataset.from_dict({**rows, "images": shown}))
    assert len(data) == 2
    (finding,) = report.findings
    assert finding.what == "images that do not fit the prompt" and finding.rows == (2,)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(there, tmp_path, capsys):
    shutil.copytree(there / "data", tmp_path / "data")
    (tmp_path / "data" / "pictures" / "3-1.png").unlink()
    file = tmp_path / "data" / "train.jsonl"
    with pytest.raises(DataError, match=rf"{file}, row 3, field `picture`: there is no file .*pictures/3-1.png"):
        load_splits(str(file), image_column="picture")
    words = [*data_options(tmp_path), "--reward_funcs", "exact"]
    for command in (["train", "--model_name_or_path"], ["eval"], ["profile"], ["evolve"]):
        assert main([*command, str(there / "model"), *(words if command[0] == "train" else words[:-2])]) == 2
        assert "row 3, field `picture`: there is no file" in capsys.readouterr().err


def test_no_paths(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "What?", "image": 7}\n')
    with pytest.raises(DataError, match="row 0, field `image`: int, neither the path of an image nor a list of paths"):
        load_splits(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train", "--model_name_or_path", "pico", "--reward_funcs", "exact"],
            "(column 'images'), and the model reads",
        ),
        (["eval", "pico"], "the questions have images, and it reads texts only"),
        (["eval", "{model}", "--use_vllm"], "does not show to a model. Leave it out, or remove the field `picture`."),
        (["rewrite"], "which this command does not show to a model. Remove the field `picture`."),
        (
            ["train", "--reward_funcs", "exact", "--image_column", "picure"],
            "has no `picure` column; it has question, pi",
        ),
    ],
)
def test_what_cannot_see_them_says_so(there, at_work, capsys, command, message):
    judged = ["--reward_func", "image_rewards:luck"] if command[0] == "eval" else []
    first, *rest = [word.format(model=there / "model") for word in command + judged]
    positional, options = (rest[:1], rest[1:]) if rest and not rest[0].startswith("--") else ([], rest)
    given = data_options(there)
    assert main([first, *positional, *given, *options]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()) and "Traceback" not in said


def test_columns_of_another_name_stay_what_they_are():
    """Without the option nothing but `image` and `images` is taken for images."""
    features = Features({"prompt": Value("string"), "picture": Value("string"), "solution": Value("string")})
    rows = {"prompt": ["a"], "picture": ["x.png"], "solution": ["1"]}
    data, _ = questions(Dataset.from_dict(rows, features=features))
    assert data["picture"][:] == ["x.png"] and data["prompt"][:] == ["a"]
