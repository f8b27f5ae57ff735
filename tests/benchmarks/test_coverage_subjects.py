"""The second table of the coverage benchmark: what it tries is built, and answers ten classes."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from benchmarks import handwritten_nets, hugging_face_nets

HAND = {**handwritten_nets.HANDWRITTEN, **handwritten_nets.WRAPPED}


def answered(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer = model.eval()(x)
    return answer["logits"] if isinstance(answer, dict) else getattr(answer, "logits", answer)


@pytest.mark.parametrize("name", sorted(HAND))
def test_nets_written_by_hand_answer(name: str) -> None:
    if name.startswith("einops"):
        pytest.importorskip("einops")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older forms of torch's own say so
        assert answered(HAND[name](), torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["vit", "deit", "levit", "bit", "distilbert"])
def test_hugging_faces_nets_answer(name: str) -> None:
    pytest.importorskip("transformers")
    shape = (2, *hugging_face_nets.shape(name))
    x = torch.randint(hugging_face_nets.WORDS, shape) if name in hugging_face_nets.TEXTS else torch.randn(shape)
    assert answered(hugging_face_nets.builder(name)(), x).shape == (2, 10)


def test_every_family_that_was_asked_for_is_there() -> None:
    named = "vit deit swin convnext resnet regnet mobilevit beit dinov2 poolformer levit efficientnet segformer cvt"
    assert set(named.split()) | {"mobilenet_v1", "mobilenet_v2"} <= set(hugging_face_nets.IMAGES)
    assert {"bert", "distilbert"} <= set(hugging_face_nets.TEXTS)
