"""Tools on a real vLLM: whole conversations under the template, in both phases, and what the engine says of each turn.

Runs on a CPU. The engine computes in float32 here, so that its log-probabilities can be compared with transformers'.
"""

import pytest
import torch

from either_engine import engine_started_once
from p2o.models import model_path
from p2o.pico.tools import world
from p2o.prompt_phase.types import Reflection
from p2o.templates import Template
from test_tools import make, spread
from trainers import assert_loss_is, brute_force_logps, contexts_of, rows_of, terms_with_tools, watched_batch

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


TOLD = "Call the calculator. Do not skip a step."


@pytest.fixture(scope="module")
def engine():
    with engine_started_once() as options:
        yield options


def tools_trainer(tmp_path, reward, **changes):
    """The shipped model with tools, at its hard questions."""
    told = {"reward": reward, "train": world.train_dataset(hard=16, easy=0), "tools": [world.calculate, world.estimate]}
    return make(tmp_path, model_path("pico-tools"), **told, **changes)


def test_loss_and_gradient_equal_the_definition(tmp_path, engine):
    """With the engine's log-probabilities of every turn."""
    low, high = 0.1, 3.0
    changes = {"context_ratio_min": low, "context_ratio_max": high, "vllm_importance_sampling_correction": False}
    trainer = tools_trainer(tmp_path, spread, **changes, **engine)
    output, watch = watched_batch(trainer, [Template(TOLD, 1.0)])
    contexts = contexts_of(trainer, watch.rollouts)
    for row, (_, completion) in enumerate(rows_of(output)):
        own = output["tool_mask"][row][: len(completion)].bool()
        with torch.no_grad():
            passed = brute_force_logps(trainer.model, contexts[row], completion)
        sampled = output["sampling_per_token_logps"][row][: len(completion)]
        torch.testing.assert_close(sampled[own], passed[own], atol=1e-3, rtol=1e-3)
    terms, lengths, masked, returned = terms_with_tools(trainer, output, watch, low, high)
    assert masked > 0 and returned > 0, "calls and masked tokens there must be for the test to mean anything"
    assert_loss_is(trainer, output, terms, lengths)


def test_both_phases_call_tools(tmp_path, engine):
    def reflect(prompts, *, seed):
        return [Reflection(f"```\n{TOLD}\n```")] * len(prompts)

    evolving = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "evolution_budget": 60,
        "min_hard_questions": 2,
        "max_dev_questions": 4,
    }
    run = {"reflect": reflect, "feedback_func": world.feedback, "save_strategy": "no"}
    trainer = tools_trainer(tmp_path, world.accuracy_reward, **run, **evolving, **engine)
    trainer.train()
    assert [template.text for template in trainer.p2o.templates] == [TOLD]
    last = [log for log in trainer.state.log_history if "tools/call_frequency" in log][-1]
    assert last["tools/call_frequency"] > 1 and last["p2o/rollout_success/templated"] > 0.5
