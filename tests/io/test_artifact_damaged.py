"""Folders that are damaged, foreign or of the future are refused, and say what is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import CIFAR, SPEC, dynamic, half

from dynext.errors import ArtifactError
from dynext.io.artifact import CARD, WEIGHTS, load, save
from dynext.models.catalog import open_model
from dynext.policy.policy import Policy


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = dynamic()
    return save(net, tmp_path / "net", policy=half(net), spec=SPEC, model_recipe=CIFAR)


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        change(card)
        (folder / CARD).write_text(json.dumps(card))

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def other_weights(folder: Path) -> None:
    net = dynamic(seed=9)
    save(net, folder.with_name("other"), policy=half(net), spec=SPEC, model_recipe=CIFAR)
    (folder.with_name("other") / WEIGHTS).rename(folder / WEIGHTS)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (lambda folder: folder.rename(folder.with_name("gone")), r"no dynamic net in .* \(no net.json\)"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "net.safetensors is missing"),
    "half the weights": (cut(WEIGHTS, 0.5), "truncated, damaged or another net's"),
    "no bytes of weights": (cut(WEIGHTS, 0), "truncated, damaged or another net's"),
    "another net's weights": (other_weights, "truncated, damaged or another net's"),
    "half the card": (cut(CARD, 0.5), "net.json is damaged"),
    "a card of binary": (lambda folder: (folder / CARD).write_bytes(b"\xff\xfe\x00"), "net.json is damaged"),
    "a list": (lambda folder: (folder / CARD).write_text("[]"), "was not written by dynext"),
    "another format": (edit(lambda card: card.update(format="onnx")), "was not written by dynext"),
    "the future": (edit(lambda card: card.update(version=2)), "format version 2, this dynext reads up to 1; update"),
    "a version of words": (edit(lambda card: card.update(version="new")), "version 'new'"),
    "no exits": (edit(lambda card: card.pop("exits")), r"net.json is damaged \(no 'exits'\)"),
    "an exit short": (edit(lambda card: card["exits"].pop()), "is not the one in"),
    "an unknown head": (edit(lambda card: card["exits"][0]["head"].update(kind="x")), "head kind 'x'"),
    "a head that fits nothing": (
        edit(lambda card: card["exits"][0]["head"].update(tap=[9, 4, 4])),
        "does not fit the tap",
    ),
    "an exit after nothing": (edit(lambda card: card["exits"][0].update(after=9)), "net.json is damaged"),
    "a policy of NaN": (edit(lambda card: card["policy"].update(temperature_e=[float("nan")] * 3)), "temperature nan"),
    "a policy for others": (edit(lambda card: card.update(policy=Policy.never(7).to_dict())), "policy is for 7 exits"),
    "another model": (edit(lambda card: card["model"].update(name="resnet14")), "is not the one in|damaged"),
    "a wider model": (edit(lambda card: card["model"].update(arguments={"width": 8})), "stages' live shapes are"),
    "an unknown model": (edit(lambda card: card["model"].update(kind="hub")), "kind 'hub' is not known"),
    "somebody's code": (
        edit(lambda card: card.update(model={"kind": "file", "name": "/x.py:f", "arguments": {}})),
        "is code of yours; open it and give model=",
    ),
    "unknown cuts": (edit(lambda card: card["stages"].update(after=["layer9"])), "layer9"),
    "a name short": (edit(lambda card: card.update(class_names=["a"] * 9)), "9 class names for 10 classes"),
    "no shape": (edit(lambda card: card["input"].pop("shape")), "net.json is damaged"),
    "cost of words": (edit(lambda card: card.update(cost={"rows": "many"})), "net.json is damaged"),
    "a type that is none": (edit(lambda card: card.update(dtype="nn")), "damaged"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damaged_and_foreign_folders_are_refused(saved: Path, name: str) -> None:
    damage, told = DAMAGES[name]
    damage(saved)
    with pytest.raises(ArtifactError, match=told):
        load(saved)


def test_a_model_that_is_not_the_one_is_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="is not the one in"):
        load(saved, model=open_model("cifar:resnet8", arguments={"width": 4, "option": "B"}).model)


def test_a_damaged_table_is_refused(saved: Path) -> None:
    (saved / "table.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ArtifactError, match="no exit table that can be read"):
        load(saved)


def test_no_card_is_written_by_hand_to_test_the_future(saved: Path) -> None:
    """The card has what a later version needs to tell it apart."""
    card = json.loads((saved / CARD).read_text())
    assert (card["format"], card["version"]) == ("dynext", 1)
    assert card["versions"].keys() == {"dynext", "torch", "python"}
    assert replace(half(dynamic())) == Policy.from_dict(card["policy"])
