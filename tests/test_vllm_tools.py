"""Tools with a real vLLM, colocated, on a CPU."""

import pytest
import torch

from p2o.prompt_phase.types import Question
from test_tools import CALLS, make, tool_model  # noqa: F401 - a fixture
from tool_model import INSTRUCTION
from trainers import K, brute_force_logps, contexts_of, rows_of, watched_batch

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


def test_conversations_of_an_engine_are_masked_and_evolved_as_any_other(tmp_path, tool_model):  # noqa: F811
    low, high = 0.2, 3.0
    engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 2048}
    trainer = make(tmp_path, tool_model, context_ratio_min=low, context_ratio_max=high, **engine)
    output, watch = watched_batch(trainer, [CALLS])
    groups = torch.tensor([reward for *_, reward in watch.rollouts]).view(-1, K)
    advantage = ((groups - groups.mean(1, True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    contexts, returned, masked = contexts_of(trainer, watch.rollouts), 0, 0
    for row, (bare, completion) in enumerate(rows_of(output)):
        own = output["tool_mask"][row][: len(completion)].bool()
        returned += int((~own).sum())
        found = output["advantages"][row][: len(completion)]
        with torch.no_grad():
            logps = brute_force_logps(trainer.model, bare, completion)
            ratio = (logps - brute_force_logps(trainer.model, contexts[row], completion)).exp()
        inside = (ratio >= low) & (ratio <= high) if watch.rollouts[row].template else torch.ones_like(own)
        # The engine's log-probabilities differ in the last digits: at the edge of the range a token may go either way.
        edge = ((ratio / low - 1).abs() < 0.02) | ((ratio / high - 1).abs() < 0.02)
        compared = own & ~edge
        torch.testing.assert_close(found[compared], (advantage[row] * inside)[compared], atol=1e-3, rtol=1e-3)
        masked += int((~inside & own).sum())
    assert returned > 0 and masked > 0

    tried = trainer.policy_rollouts([(Question(row, "", ""), INSTRUCTION) for row in range(8)], 1)
    called = [rollout for rollout in tried if "[calls multiply]" in rollout.completion]
    assert len(called) >= 4 and all("[multiply returned]" in rollout.completion for rollout in called)
    trainer.train()
    assert trainer.state.global_step == 2
