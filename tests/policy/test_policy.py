import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynext.errors import PolicyError
from dynext.policy.confidence import CONFIDENCES
from dynext.policy.policy import Policy

EXIT = st.tuples(st.one_of(st.none(), st.floats(0, 2)), st.floats(0.05, 20))


RULE = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=4).map(tuple))


@given(
    st.lists(EXIT, max_size=6),
    st.sampled_from(CONFIDENCES),
    st.sampled_from([None, "labels", "teacher"]),
    st.text(),
    RULE,
)
def test_json_round_trip_is_exact(exits, measure, basis, note, keep_g):
    policy = Policy(
        confidence=measure,
        threshold_e=(*(t for t, _ in exits), 0.0),
        temperature_e=(*(t for _, t in exits), 1.0),
        basis=basis,
        note=note,
        keep_g=keep_g,
    )
    assert Policy.from_json(policy.to_json()) == policy
    assert json.loads(json.dumps(policy.to_dict())) == policy.to_dict()


def test_never_and_always():
    assert Policy.never(3).threshold_e == (None, None, 0.0)
    assert Policy.always(3).threshold_e == (0.0, None, 0.0)
    assert Policy.always(3, 1).enabled_e == (False, True, True)
    assert Policy.always(3, -1) == Policy.never(3)
    assert Policy.never(1).num_exits == 1
    with pytest.raises(PolicyError, match=r"exit 3 of a net with 3 exits; give 0 to 2, or -1"):
        Policy.always(3, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold_e": (0.5, 0.0, 0.0)}, "3 thresholds and 2 temperatures"),
        ({"threshold_e": (math.nan, 0.0)}, "threshold nan of exit 0"),
        ({"threshold_e": (math.inf, 0.0)}, "threshold inf of exit 0"),
        ({"threshold_e": (-0.1, 0.0)}, "threshold -0.1 of exit 0"),
        ({"threshold_e": (True, 0.0)}, "threshold True of exit 0"),
        ({"threshold_e": ("0.5", 0.0)}, "threshold '0.5' of exit 0"),
        ({"threshold_e": (0.5, 0.5)}, "the last exit's threshold is 0.5; it must be 0.0"),
        ({"threshold_e": (0.5, None)}, "the last exit's threshold is None; it must be 0.0"),
        ({"temperature_e": (0.0, 1.0)}, "temperature 0.0 of exit 0; give a positive number"),
        ({"temperature_e": (1.0, math.nan)}, "temperature nan of exit 1"),
        ({"confidence": "max_probabilty"}, "did you mean max_probability"),
        ({"basis": "guess"}, "basis 'guess'"),
        ({"threshold_e": (), "temperature_e": ()}, "0 thresholds"),
        ({"keep_g": (0.5, math.nan)}, "threshold nan of gate 1; give a probability"),
        ({"keep_g": (1.5,)}, "threshold 1.5 of gate 0"),
        ({"keep_g": (-0.1,)}, "threshold -0.1 of gate 0"),
        ({"keep_g": ("0.5",)}, "threshold '0.5' of gate 0"),
    ],
)
def test_nonsense_is_refused(changes, says):
    good = {"threshold_e": (0.5, 0.0), "temperature_e": (1.0, 1.0)}
    with pytest.raises(PolicyError, match=says):
        Policy(**{**good, **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list, expected an object"),
        ('{"threshold_e": [0.0]}', r"missing \['temperature_e'\], unknown nothing"),
        ('{"threshold_e": [0.0], "temperature_e": [1.0], "treshold": 1}', r"unknown \['treshold'\]"),
        ('{"threshold_e": 0.0, "temperature_e": [1.0]}', "must be lists"),
        ('{"threshold_e": [0.0], "temperature_e": [1.0], "keep_g": 0.5}', "keep_g must be lists"),
        ('{"threshold_e": [NaN, 0.0], "temperature_e": [1.0, 1.0]}', "threshold nan of exit 0"),
    ],
)
def test_hostile_json_is_refused(text, says):
    with pytest.raises(PolicyError, match=says):
        Policy.from_json(text)


def test_policies_from_before_there_were_gates_still_load_and_are_still_written():
    old = '{"confidence": "margin", "threshold_e": [0.5, 0.0], "temperature_e": [1.5, 1.0], "basis": null, "note": ""}'
    policy = Policy.from_json(old)
    assert policy.keep_g is None
    assert policy.to_dict() == json.loads(old)


def test_what_a_policy_skips():
    assert Policy.skipping(2, 3).keep_g == (0.5, 0.5, 0.5)
    assert Policy.skipping(2, 3, keep=0.1).threshold_e == Policy.never(2).threshold_e
    assert Policy.skipping(1, 2).skip_rule == (0.5, 0.5)
    for asks_none in (None, (), (None, None)):
        assert dataclasses.replace(Policy.never(2), keep_g=asks_none).skip_rule is None
    Policy.never(2).check_gates(7)
    with pytest.raises(PolicyError, match="the policy is for 3 gates, this net has 0; choose one for it, or attach"):
        Policy.skipping(1, 3).check_gates(0)


def test_a_policy_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy.never(2).note = "changed"
