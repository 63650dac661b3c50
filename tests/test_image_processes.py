"""Two processes, really started, on questions of which some show images: they agree with one process."""

import json
import os
from pathlib import Path

import pytest
import torch

from test_images import LAYOUTS
from torchrun import torchrun
from trainers import assert_same

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "image_process.py"


def launch(out, kind, mode, processes):
    """Of each process what it found, and the weights it ended with."""
    out.mkdir()
    done = torchrun(SCRIPT, str(out), kind, mode, processes=processes, environment=dict(os.environ))
    assert done.returncode == 0, done.stderr[-6000:]
    files = [out / f"rank-{rank}" for rank in range(processes)]
    return [(json.loads(f.with_suffix(".json").read_text()), torch.load(f.with_suffix(".pt"))) for f in files]


def alike(found):
    own = ("templated", "shown to the model that reflects")
    return {name: value for name, value in found.items() if name not in own}


@pytest.mark.parametrize("kind", [layout for layout in LAYOUTS if "gemma" not in layout.values])
def test_two_processes_end_as_one_does(tmp_path, kind):
    """Rollouts are given: the phases, the masks of both contexts and the updates are the same, to rounding."""
    ((one, whole),) = launch(tmp_path / "one", kind, "given", 1)
    (first, weights), (second, same) = launch(tmp_path / "two", kind, "given", 2)
    assert_same(weights, same)
    assert one["templates"] and one["templated"] and one["moved"] > 1e-3
    for name in ("hard_set", "templates", "assignment", "evolved", "rollouts"):
        assert one[name] == first[name] == second[name], name
    for name, value in whole.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0.01 * one["moved"], msg=name)


@pytest.mark.parametrize("kind", [layout for layout in LAYOUTS if "idefics" not in layout.values])
def test_the_prompt_phase_does_not_depend_on_the_number_of_processes(tmp_path, kind):
    """The model generates and reflects, with the images of its process's part."""
    ((one, _),) = launch(tmp_path / "one", kind, "sampled", 1)
    (first, weights), (second, same) = launch(tmp_path / "two", kind, "sampled", 2)
    assert_same(weights, same)
    assert alike(first) == alike(second)
    assert one["templates"] and first["templated"] and one["shown to the model that reflects"]
    for name in ("hard_set", "templates", "assignment", "evolved", "shown to the model that reflects"):
        assert one[name] == first[name], name
