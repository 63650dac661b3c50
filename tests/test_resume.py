"""Runs killed at random moments (SIGKILL) end, once resumed, with the same weights bit for bit."""

import pytest
from kill_and_resume import kill_and_resume


@pytest.mark.slow
def test_four_kills_over_both_phases_change_nothing(tmp_path):
    kills = kill_and_resume(4, seed=0, work=tmp_path)
    assert [kill for kill in kills if not kill.identical] == []
    phases = [kill.phase for kill in kills]
    assert phases.count("prompt") >= 2 and phases.count("policy") >= 2, kills
