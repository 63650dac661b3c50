"""`tools` of `p2o train`: by module and function, refused before training where they cannot work."""

import pytest

from p2o.cli import main
from p2o.cli.arguments import prepare

FILE = '''
def plain(expression):
    """No hints."""
    return expression


class calculate:
    pass


def estimate(expression: str) -> str:
    """Another one.

    Args:
        expression: what to estimate.
    """
    return expression
'''
CALCULATE, ESTIMATE = "p2o.pico.tools.world:calculate", "p2o.pico.tools.world:estimate"
WORLD = ["--dataset_name", "pico-tools", "--reward_funcs", "p2o.pico.tools.world:accuracy_reward"]


@pytest.mark.parametrize(
    ("model", "tools", "message"),
    [
        ("pico-tools", ["calculator"], "tools: 'calculator' is not of the form module:function."),
        ("pico-tools", ["nowhere:calculate"], "tools: cannot import 'nowhere:calculate'"),
        ("pico-tools", ["p2o.pico.tools.world:no_such"], "no_such"),
        ("pico-tools", ["p2o.pico.tools.world:ASKED"], "is not a function"),
        ("pico-tools", ["my_tools:calculate"], "'my_tools:calculate' is not a function"),
        ("pico-tools", ["my_tools:plain"], "The tool plain cannot be described to the model"),
        ("pico-tools", [ESTIMATE, "my_tools:estimate"], "two are named 'estimate'"),
        ("pico", [CALCULATE], "does not support tool calling"),
        ("pico-tools", [], "pico-tools takes tools"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check-only"]], ids=["train", "check"])
def test_tools_that_cannot_work_are_refused_before_training(
    tmp_path, monkeypatch, capsys, model, tools, message, check
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tools.py").write_text(FILE)
    words = ["--model_name_or_path", model, *WORLD, *(["--tools", *tools] if tools else [])]
    assert main(["train", *words, "--output_dir", "run", *check]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run" / "config.yaml").exists(), "training was not started"


def test_tools_of_a_recipe_are_those_functions():
    from p2o.pico.tools import world

    run = prepare(["--config", "recipes/embedded-tools.yaml"], "run")
    assert run.tools == [world.calculate, world.estimate] and run.rewards == [world.accuracy_reward]
    assert set(run.final_datasets) == {"easy", "hard", "unseen_families"}
