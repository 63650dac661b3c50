"""Bad input of every kind, one in some; `benchmarks/bad_input.py` has all of them."""

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bad_input
from bad_files import configurations, data_files
from p2o import P2OConfig
from p2o.options import RANGES_OF_TRL, check_ranges


@dataclasses.dataclass
class One:
    x: object


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from("(["), st.sampled_from(")]"))
def test_ranges(value, least, most, opening, closing):
    inside = (least < value or (opening == "[" and least == value)) and (
        value < most or (closing == "]" and value == most)
    )
    expected = contextlib.nullcontext() if inside else pytest.raises(ValueError, match=f"x={value} must be in")
    with expected:
        check_ranges(One(value), {"x": f"{opening}{least}, {most}{closing}"})


def test_what_is_not_set_or_no_number():
    check_ranges(One(None), {"x": 1})
    with pytest.raises(ValueError, match="x='much' must be a number"):
        check_ranges(One("much"), {"x": 1})
    with pytest.raises(ValueError, match="x=nan must be at least 1"):
        check_ranges(One(float("nan")), {"x": 1})


@pytest.mark.parametrize("name", RANGES_OF_TRL)
def test_trls_options_have_their_ranges_in_a_script_too(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        P2OConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: -2})


def test_damaged_configurations_one_in_sixteen(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_input, "configurations", lambda path: list(configurations(path))[::16])
    found = list(bad_input.configs(tmp_path))
    assert len(found) >= 10 and {outcome for _, outcome in found} <= {bad_input.TRAINED, bad_input.REFUSED}, found


def test_damaged_data_files_one_in_sixteen(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_input, "data_files", lambda: list(data_files())[::16])
    found = list(bad_input.data(tmp_path))
    assert len(found) >= 10 and {outcome for _, outcome in found} == {bad_input.READ, bad_input.REFUSED}, found
