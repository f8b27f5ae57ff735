"""Verbs give the same under ``no_grad``, in inference mode, with a default type of float64 and inside autocast."""

from contextlib import contextmanager

import pytest
import torch
from zoo import NETS

import dynext as dx


@contextmanager
def default_double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "disabled": lambda: torch.set_grad_enabled(False),
    "double": default_double,
    "autocast": lambda: torch.autocast("cpu"),
}


@pytest.mark.parametrize("name", MODES)
def test_the_modes_of_the_caller_change_nothing_and_come_back(name):
    model, x = NETS["plain"]()
    asked = {"synthesis": dx.Synthesis(n=32), "training": dx.Frozen(steps=2), "run": dx.Run(progress=False)}
    wanted = dx.convert(model, x, **asked)
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with MODES[name]():
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        given = dx.convert(model, x + 0, **asked)
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    torch.set_grad_enabled(grad)
    assert torch.get_default_dtype() == dtype
    torch.testing.assert_close(given.net.state_dict(), wanted.net.state_dict())
    assert given.policy == wanted.policy


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, x = NETS["plain"]()
        staged = dx.split(model, x)
    net = dx.attach(staged, dx.default_heads(10))
    net(x.clone()).sum().backward()
    assert next(net.parameters()).grad is not None
