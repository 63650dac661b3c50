"""Runs killed at random moments (SIGKILL) end, once resumed, with the same weights bit for bit."""

import pytest

from kill_and_resume import kill_and_resume


@pytest.mark.slow
def test_kills_in_both_phases_and_at_a_checkpoint_change_nothing(tmp_path):
    kills = list(kill_and_resume(3, seed=0, work=tmp_path, moments=("policy", "prompt", "checkpoint")))
    assert [kill for kill in kills if not kill.identical] == []
    assert {kill.phase for kill in kills} == {"policy", "prompt", "checkpoint"}, kills
