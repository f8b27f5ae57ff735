"""Nets in what training and libraries put around them, and those that answer with more than a tensor."""

import functools
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from zoo import build, conv

import dynext as dx
from dynext.errors import SplitError
from dynext.graph.split import split
from dynext.graph.teacher import plain_classifier


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x: Tensor, scale: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
        x = self.third(self.second(self.first(x))) * scale
        return self.head(x if mask is None else x * mask)


class ModelEma:
    """As timm had it at first: no module, with the averaged one inside."""

    def __init__(self, model: nn.Module) -> None:
        self.ema = model


def moved_forward(model: nn.Module) -> nn.Module:
    """As libraries for mixed devices do it: the forward lies on the object."""
    model.forward = functools.partial(model.forward, scale=1.0)  # type: ignore[method-assign]
    return model


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "several": lambda model: AveragedModel(nn.DataParallel(torch.compile(model, backend="eager"))),
    "ModelEma": ModelEma,
    "moved forward": moved_forward,
}


def timm_ema(version: str) -> Callable[[nn.Module], Any]:
    return lambda model: getattr(pytest.importorskip("timm.utils"), version)(model)


WRAPPERS |= {version: timm_ema(version) for version in ("ModelEmaV2", "ModelEmaV3")}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_net_is_split_as_the_net_inside(name: str) -> None:
    model, x = build(Net)
    staged = split(WRAPPERS[name](model), x)
    plain = split(model, x)
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)
    assert staged.cuts == plain.cuts
    assert list(staged.state_dict()) == list(plain.state_dict())


def test_a_net_compiled_in_place() -> None:
    model, x = build(Net)
    wanted = model(x)
    model.compile(backend="eager")
    torch.testing.assert_close(split(model, x)(x), wanted, rtol=0, atol=0)
    assert model._compiled_call_impl is not None


def test_distributed_data_parallel(tmp_path) -> None:
    model, x = build(Net)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        staged = split(nn.parallel.DistributedDataParallel(model), x)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["DataParallel", "AveragedModel", "compiled", "several"])
def test_a_wrapped_net_inside_of_another_module(name: str) -> None:
    model, x = build(Net)
    around = nn.Sequential(nn.BatchNorm2d(3), WRAPPERS[name](model)).eval()
    staged = split(around, x)
    assert len(staged.stages) > 2
    with torch.no_grad():
        torch.testing.assert_close(staged(x), around(x))
    assert any(isinstance(part, type(around[1])) for part in around.children())


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, *args: Any) -> Tensor:
        return self.net(*args)


class Keywords(Arguments):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.net(*args, **kwargs)


class FirstAndRest(Arguments):
    def forward(self, pixels: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert labels is None
        assert not kwargs
        return self.net(pixels, *args)


class Decorated(Arguments):
    """As transformers decorate their forwards."""

    @staticmethod
    def decorate(forward: Any) -> Any:
        @functools.wraps(forward)
        def decorated(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("scale", 1.0)
            return forward(self, *args, **kwargs)

        return decorated

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        assert scale is not None
        return self.net(x, scale)

    forward = decorate(forward)


@pytest.mark.parametrize("kind", [Arguments, Keywords, FirstAndRest, Decorated])
def test_one_input_whatever_else_could_be_given(kind: type[nn.Module]) -> None:
    model, x = build(kind)
    staged = split(model, x)
    assert len(staged.stages) > 2
    torch.testing.assert_close(staged(x), model(x), rtol=0, atol=0)


class TwoNeeded(Arguments):
    def forward(self, x: Tensor, labels: Tensor, *, weight: Tensor, scale: float = 1.0) -> Tensor:
        return self.net(x)


class ByName(Arguments):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.net(x)


class NoInput(Arguments):
    def forward(self) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (TwoNeeded, r"several inputs \(x, labels, weight\)"),
        (ByName, r"takes its input by name \(x\)"),
        (NoInput, "takes no input"),
    ],
)
def test_inputs_that_are_refused(kind: type[nn.Module], says: str) -> None:
    with pytest.raises(SplitError, match=says):
        split(*build(kind))


@dataclass
class Answer:
    logits: Any
    hidden: Any = None
    loss: Any = None


@dataclass
class Single:
    prediction: Any
    loss: Any = None


class Tupled(NamedTuple):
    features: Any
    logits: Any


class Slotted:
    __slots__ = ("features", "logits")

    def __init__(self, features: Any, logits: Any) -> None:
        self.features, self.logits = features, logits


class Computed:
    def __init__(self, features: Any, scores: Any) -> None:
        self.features, self._scores = features, scores

    @property
    def logits(self) -> Any:
        return self._scores


Scores = namedtuple("Scores", ["scores"])
TAKEN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda features, logits: {"features": features, "logits": logits},
    "ordered dict of one": lambda features, logits: OrderedDict(out=logits),
    "dict of one and nothing": lambda features, logits: {"loss": None, "out": logits, "name": "net"},
    "data class": lambda features, logits: Answer(logits=logits, hidden=(features, features)),
    "data class of one": lambda features, logits: Single(prediction=logits),
    "named tuple": Tupled,
    "named tuple of one": lambda features, logits: Scores(logits),
    "slots": Slotted,
    "property": Computed,
    "list of one": lambda features, logits: [logits],
    "tuple of one and nothing": lambda features, logits: (logits, None),
    "dict in a tuple": lambda features, logits: ({"features": features, "logits": logits},),
}
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "dict": (lambda f, y: {"features": f, "scores": y}, r"dict of several tensors \(features, scores\)"),
    "tuple": (lambda f, y: (f, y), r"tuple of several tensors \(\[0\], \[1\]\)"),
    "data class": (lambda f, y: Single(prediction=y, loss=[f]), r"Single of several tensors \(prediction, loss\)"),
    "logits that are several": (lambda f, y: {"logits": [f, y], "x": y}, r"several tensors \(logits, x\)"),
    "nothing": (lambda f, y: {"loss": None}, "gives a dict; expected one tensor of logits"),
}


class Answering(nn.Module):
    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.head, self.answer = conv(3, 8), conv(8, 8), nn.Linear(8, 10), answer

    def forward(self, x: Tensor) -> Any:
        features = self.second(self.first(x)).mean((2, 3))
        return self.answer(features, self.head(features))


def logits_alone(features: Tensor, logits: Tensor) -> Tensor:
    return logits


@pytest.mark.parametrize("name", TAKEN)
def test_the_logits_of_an_answer_are_taken(name: str) -> None:
    model, x = build(lambda: Answering(TAKEN[name]))
    plain, _ = build(lambda: Answering(logits_alone))
    torch.testing.assert_close(split(model, x)(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(plain_classifier(model, x)(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_answers_without_logits_are_refused_with_their_names(name: str) -> None:
    answer, says = REFUSED[name]
    with pytest.raises(SplitError, match=says):
        split(*build(lambda: Answering(answer)))


def test_transformers_outputs() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    model, x = build(lambda: Answering(lambda f, y: outputs.ImageClassifierOutput(logits=y, hidden_states=(f, f))))
    plain, _ = build(lambda: Answering(logits_alone))
    torch.testing.assert_close(split(model, x)(x), plain(x), rtol=0, atol=0)


def test_a_net_that_answers_otherwise_is_saved_and_loaded(tmp_path) -> None:
    model, x = build(lambda: Answering(TAKEN["data class"]))
    teacher = plain_classifier(nn.DataParallel(model), x)
    staged = split(teacher, x)
    assert staged.cuts == split(model, x).cuts
    net = dx.attach(staged, dx.default_heads(10)).eval()
    policy = dx.Policy(threshold_e=(*[1.0] * len(staged.cuts), 0.0), temperature_e=(1.0,) * len(staged.stages))
    dx.save(net, tmp_path / "net", policy=policy, spec=dx.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    for given in (model, nn.DataParallel(model), teacher):
        torch.testing.assert_close(dx.load(tmp_path / "net", model=given).net(x), teacher(x), rtol=0, atol=0)


def test_a_plain_classifier_stays_itself() -> None:
    model, x = build(Net)
    assert plain_classifier(model, x) is model
    assert plain_classifier(nn.DataParallel(model), x) is model
