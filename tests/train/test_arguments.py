"""One way to say how to train: a `FitConfig` or its fields as keywords, in every public verb that trains."""

from __future__ import annotations

import inspect

import pytest

import dynext as dx
from dynext.errors import FitError
from dynext.fitting import configured

SPACES = ("", "train", "prune", "meta", "align", "zeroshot")
NO_TRAINING = {"fit", "convert", "adapt", "evaluate_episodes"}
"""`fit` is the loop; a conversion has settings of its own; `adapt` takes the steps of an inner loop, not of a fit."""


def trainers() -> dict[str, inspect.Signature]:
    """The functions that take steps."""
    verbs = {}
    for space in SPACES:
        place = getattr(dx, space) if space else dx
        for name in place.__all__:
            verb = getattr(place, name)
            if inspect.isfunction(verb) and name not in NO_TRAINING:
                signature = inspect.signature(verb)
                told = " ".join(str(one) for one in signature.parameters.values())
                if (
                    "FitConfig" in told
                    or "FitOptions" in told
                    or "LearnOptions" in told
                    or "steps" in signature.parameters
                ):
                    verbs[f"dx.{space}.{name}"] = signature
    return verbs


def test_every_verb_that_trains_takes_a_config_and_its_fields() -> None:
    verbs = trainers()
    assert len(verbs) >= 20
    for name, signature in verbs.items():
        config, options = signature.parameters.get("config"), signature.parameters.get("options")
        assert config is not None, f"{name} has no config"
        assert config.annotation == "FitConfig | None", name
        assert config.default is None, name
        assert config.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, name
        assert options is not None, f"{name} takes no fields as keywords"
        assert options.annotation in ("Unpack[FitOptions]", "Unpack[LearnOptions]"), name
        doubled = {"steps", "lr", "seed", "checkpoint", "progress"} & signature.parameters.keys()
        assert not doubled, f"{name} says {doubled} twice"
        for phase, parameter in signature.parameters.items():
            if phase != "config" and "FitConfig" in str(parameter.annotation):
                assert "FitOptions" in str(parameter.annotation), f"{name}: {phase} takes no mapping"


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(FitError, match=r"did you mean steps=\?"):
        configured(dx.FitConfig(), {"stepps": 1}, {})  # type: ignore[typeddict-unknown-key]
