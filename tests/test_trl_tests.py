"""The script that runs TRL's own tests with P²O, on a small checkout written here."""

import io
import json

import pytest
from rich.console import Console

import trl_tests
from trl_plugin import ENVIRONMENTS, IMAGES, TEXT, TOOLS, kind_of
from trl_stand_ins import ORGANIZATION, make_stand_ins, renumber, zen
from trl_tests import Outcome, compare, differences, swap_names

TESTS = '''
"""In TRL's style: a class, hub names, and one way for the two names to come in."""

import pytest
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from .testing_utils import OPTIONS


def reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def make(directory, config="standard_prompt_only", **given):
    return GRPOTrainer(
        model="trl-internal-testing/tiny-Qwen2ForCausalLM-2.5",
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(directory), **OPTIONS),
        train_dataset=load_dataset("trl-internal-testing/zen", config, split="train"),
        **given,
    )


class TestSmall:
    @pytest.mark.parametrize("config", ["standard_prompt_only", "conversational_prompt_only"])
    def test_weights_move(self, tmp_path, config):
        trainer = make(tmp_path, config)
        assert trainer.train_dataset.num_rows == 17
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        if config == "standard_prompt_only":
            trainer.train()
            assert not any(before[name].equal(value) for name, value in trainer.model.named_parameters())

    def test_the_name_is_grpos(self):
        assert (GRPOConfig.__name__, GRPOTrainer.__name__) == ("GRPOConfig", "GRPOTrainer"), ModelConfig

    def test_a_tool_is_taken(self, tmp_path):
        def double(number: int) -> int:
            """Doubles a number.

            Args:
                number: it.
            """
            return 2 * number

        args = GRPOConfig(output_dir=str(tmp_path), **OPTIONS)
        data = load_dataset("trl-internal-testing/zen", "conversational_prompt_only", split="train")
        model = "trl-internal-testing/tiny-Qwen3ForCausalLM"
        GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data, tools=[double])

    def test_an_environment_is_taken(self, tmp_path):
        class Shop:
            def reset(self, **kwargs):
                return None

            def buy(self, number: int) -> str:
                """Buys things.

                Args:
                    number: of them.

                Returns:
                    What was bought.
                """
                return "bread"

        args = GRPOConfig(output_dir=str(tmp_path), **OPTIONS)
        data = load_dataset("trl-internal-testing/zen", "conversational_prompt_only", split="train")
        model = "trl-internal-testing/tiny-Qwen3ForCausalLM"
        GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data, environment_factory=Shop)

    def test_train_with_iterable_dataset(self, tmp_path):
        args = GRPOConfig(output_dir=str(tmp_path), **{**OPTIONS, "max_steps": 1})
        data = load_dataset("trl-internal-testing/zen", "standard_prompt_only", split="train").to_iterable_dataset()
        model = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
        GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data)

    def test_both_fail(self):
        assert GRPOTrainer is None, "on [purpose]"

    def test_left_out(self):
        raise AssertionError

    @pytest.mark.parametrize("name", ["trl-internal-testing/tiny-MadeUpForCausalLM"])
    def test_unknown_architecture(self, name):
        raise AssertionError


class TestSmallVLM:
    def test_an_image(self, tmp_path):
        data = load_dataset("trl-internal-testing/zen-image", "conversational_prompt_only", split="train")
        args = GRPOConfig(output_dir=str(tmp_path), **OPTIONS)
        model = "trl-internal-testing/tiny-Gemma3ForConditionalGeneration"
        trainer = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data)
        assert trainer.train_dataset[0]["image"].size and len(data) == 17
'''
# Two epochs, so that there is one prompt phase where it is forced. Tests of another release ask TRL for what it lacks.
OPTIONS = (
    "from trl.import_utils import is_made_up_available, is_peft_available\n\nassert not is_made_up_available()\n"
    'OPTIONS = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 3, "max_completion_length": 4, '
    '"per_device_train_batch_size": 24, "num_train_epochs": 2, "learning_rate": 0.1, "save_strategy": "no"}\n'
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    tests = tmp_path_factory.mktemp("trl") / "tests"
    tests.mkdir()
    (tests / "__init__.py").touch()
    (tests / "testing_utils.py").write_text(OPTIONS)
    (tests / "test_grpo_trainer.py").write_text(TESTS)
    (tests / "test_of_something_else.py").write_text("raise AssertionError('not this one')\n")
    return tests.parent


@pytest.fixture(scope="module")
def run(checkout, tmp_path_factory):
    """The exit code of a run in all modes, and its outcomes."""
    path = tmp_path_factory.mktemp("results") / "out.json"
    code = trl_tests.main([str(checkout), "--json", str(path), "-k", "not left_out"])
    written = json.loads(path.read_text())
    return code, {mode: {row["test"]: Outcome(**row) for row in rows} for mode, rows in written.items()}


def reported(results):
    console = Console(width=160, file=io.StringIO())
    return trl_tests.report(console, results), console.file.getvalue()


def test_both_are_run_and_the_difference_is_told(run):
    code, results = run
    _, printed = reported(results)
    outcomes = {mode: {test: found.outcome for test, found in of_mode.items()} for mode, of_mode in results.items()}
    assert outcomes["grpo"] == {
        "TestSmall::test_weights_move[standard_prompt_only]": "passed",
        "TestSmall::test_weights_move[conversational_prompt_only]": "passed",
        "TestSmall::test_the_name_is_grpos": "passed",
        "TestSmall::test_a_tool_is_taken": "passed",
        "TestSmall::test_an_environment_is_taken": "passed",
        "TestSmall::test_train_with_iterable_dataset": "passed",
        "TestSmall::test_both_fail": "failed",
        "TestSmall::test_unknown_architecture[trl-internal-testing/tiny-MadeUpForCausalLM]": "skipped",
        "TestSmallVLM::test_an_image": "passed",
    }
    refused = {"TestSmall::test_the_name_is_grpos": "failed", "TestSmall::test_train_with_iterable_dataset": "failed"}
    assert outcomes["p2o"] == outcomes["forced"] == outcomes["grpo"] | refused
    # The name is on no list: somebody has to look at it.
    assert code == 1
    stream = printed[printed.rindex("TestSmall::test_train_with_iterable_dataset") :]
    assert "train_dataset is an IterableDataset" in stream and "known: a streamed training set is refused" in stream
    name = printed[printed.rindex("TestSmall::test_the_name_is_grpos") :]
    assert "ForcedConfig" in name[: name.index("not known")]
    assert "fails with GRPO: TestSmall::test_both_fail: AssertionError: on [purpose]" in printed
    # That the prompt phase was forced shows in what was sampled.
    (forced,) = [found for found in results["forced"].values() if found.counts.get("trainings")]
    assert forced.counts["prompt phases"] == 1 and forced.counts["templated rollouts"] > 0
    assert "forced: 1 tests train, of which 1 passed; with a prompt phase 1" in printed


def test_known_differences_are_no_failure(run):
    known = {mode: {t: found for t, found in of_mode.items() if "iterable" in t} for mode, of_mode in run[1].items()}
    code, printed = reported(known)
    assert code == 0 and "p2o: 1 tests that GRPO passes and P²O does not" in printed


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        trl_tests.main([str(tmp_path)])
    assert "is no checkout of TRL" in capsys.readouterr().err


def test_the_names_are_swapped_wherever_they_come_in():
    text = "import trl\n\nfrom trl import (\n    GRPOConfig,\n    GRPOTrainer,\n    ModelConfig,\n)\nx = GRPOTrainer\n"
    swapped = swap_names(text, "p2o")
    assert (
        "from p2o import P2OConfig as GRPOConfig, P2OTrainer as GRPOTrainer\nfrom trl import ModelConfig\n" in swapped
    )
    assert swapped.startswith("import trl\n\n") and swapped.endswith("\nx = GRPOTrainer\n")
    with pytest.raises(ValueError, match="does not import"):
        swap_names("from trl import GRPOConfig\n", "p2o")


def outcome(test="T::test_x[1]", result="passed", kind=TEXT):
    return Outcome(test, kind, result)


def test_a_difference_is_a_test_that_grpo_passes(monkeypatch, capsys):
    grpo = {"a": "passed", "b": "failed", "c": "passed", "d": "passed"}
    ours = {"a": "passed", "b": "failed", "c": "skipped"}
    grpo, ours = ({test: outcome(test, result) for test, result in of.items()} for of in (grpo, ours))
    assert [(o.test, o.outcome) for o in differences(grpo, ours)] == [("c", "skipped"), ("d", "failed")]
    monkeypatch.setitem(trl_tests.KNOWN, "p2o", {"test_x": "a reason"})
    assert outcome().reason("p2o") == "a reason" and outcome().reason("forced") is None
    assert compare(Console(), {"grpo": {"T::test_x[1]": outcome()}, "p2o": {"T::test_x[1]": outcome()}}) == 0
    assert "on the list of known differences, but it passes: test_x" in capsys.readouterr().out
    assert all(outcome(kind=kind).reason("forced") is None for kind in (TOOLS, ENVIRONMENTS, IMAGES))


def test_a_missing_outcome_is_unknown(capsys):
    assert compare(Console(), {"grpo": {"T::test_y": outcome("T::test_y")}, "p2o": {}}) == 1
    assert "it was not run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "source", "kind"),
    [
        ("TestX::test_train", "def test_train(self):\n    GRPOTrainer(model='x', args=GRPOConfig())", TEXT),
        ("TestX::test_train_with_tools", "    def test_t(self):\n        GRPOTrainer(\n            tools=[f])", TOOLS),
        ("TestX::test_train", "def test_t(self):\n    GRPOTrainer(environment_factory=E)", ENVIRONMENTS),
        ("TestX::test_needs_environment", "def test_t(self):\n    GRPOTrainer(model='x')", TEXT),
        ("TestGRPOTrainerVLM::test_train[x]", "def test_t(self):\n    GRPOTrainer(tools=[f])", IMAGES),
    ],
)
def test_the_kind_of_a_test(name, source, kind):
    assert kind_of(name, source) == kind


def test_stand_ins_are_what_tests_expect(tmp_path):
    """Beginnings that a test spells out, in their places; ids are the texts that they are in Qwen's vocabulary."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    words = zen()[3].split()
    names = [f"{ORGANIZATION}/{name}" for name in ("zen", "tiny-Qwen3ForCausalLM", "tiny-MadeUpForCausalLM")]
    assert make_stand_ins(tmp_path, f'{names} [{{"prompt": "{words[0]}"}}] * 4') == names[2:]
    hub = tmp_path / ORGANIZATION
    data = load_dataset(str(hub / "zen"), "standard_prompt_only", split="train", cache_dir=str(tmp_path / "cache"))
    assert data["prompt"][3] == words[0] and len(data) == 17
    assert all(line.startswith(prompt) for line, prompt in zip(zen(), data["prompt"], strict=False))
    tokenizer = AutoTokenizer.from_pretrained(hub / "tiny-Qwen3ForCausalLM")
    ids = json.loads(renumber("[151657, 198, 4913, 606, 788, 330, 9520, 95642, 151658, 151645]"))
    assert tokenizer.decode(ids) == '<tool_call>\n{"name": "step"}}\n</tool_call><|im_end|>'
    assert tokenizer.eos_token_id == ids[-1]
    assert tokenizer.decode(tokenizer("ß <tool_call>")["input_ids"]) == "ß <tool_call>"
