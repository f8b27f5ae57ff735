"""Meta-train, adapt and evaluate on episodes, as from a shell."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import done, refused, run

import dynext as dx
from dynext.cli.shared.classes import same_data

TINY = ("cifar:resnet8", "--argument", "width=2", "--argument", "channels=1", "--shape", "1x8x8",
        "--mean", "0.5", "--std", "0.5", "--after", "layer1,layer2")  # fmt: skip
SMALL = ("--way", "3", "--shot", "2", "--queries", "3", "--steps", "2", "--batch", "1", "--inner-steps", "1")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("meta") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("dynext.cli.commands.meta_train"), "CHECKED", 5)
        told = done("meta-train", *TINY, "-o", folder, *SMALL, "--classes", "6/4")
    return folder, told


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of light and dark images, larger than the model expects: four to learn from, three to judge by."""
    folder = tmp_path_factory.mktemp("faces")
    draw = np.random.default_rng(0)
    for part, count in (("support", 4), ("query", 3)):
        for name, light in (("dark", 40), ("light", 200)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (light + draw.integers(-30, 30, (20, 16))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def test_meta_training_says_who_owns_what_and_keeps_a_start(learned: tuple[Path, str]) -> None:
    folder, told = learned
    assert told.startswith("task  exits")
    assert "On 5 episodes of the classes that were trained on" in told
    kept = dx.load(folder)
    assert kept.net.num_classes == 3
    assert kept.provenance["class_split"] == "6/4"
    start = dx.meta.MetaStart.read(folder / "start.safetensors", kept.net)
    assert start.inner == dx.meta.InnerLoop(steps=1)
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_episodes_are_of_classes_that_training_did_not_see(learned: tuple[Path, str]) -> None:
    given = ("--data", "digits", "--episodes", "4", "--way", "3", "--shot", "2", "--queries", "3")
    told = json.loads(done("evaluate", learned[0], *given, "--json"))
    assert told["episodes"] == "4 3-way 2-shot episodes of the classes of digits that training did not see"
    start = dx.meta.MetaStart.read(learned[0] / "start.safetensors", dx.load(learned[0]).net)
    unseen = dx.data.split_classes(dx.data.digits(), [6, 4], seed=0)[1]
    wanted = dx.meta.evaluate_episodes(
        start, dx.data.Episodes(rows=unseen, way=3, shot=2, query=3, seed=1), count=4, progress=False
    )
    assert [share["mean"] for share in told["exits"]] == pytest.approx([s.mean for s in wanted.accuracy_e])
    text = done("evaluate", learned[0], *given)
    assert "where it is sure" in text
    assert "95 % intervals" in text
    assert "give some, such as digits" in refused("evaluate", learned[0], "--episodes", "4", "--unlabelled", "x")


def test_the_same_data_by_another_name_is_not_taken_for_other_data(
    learned: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = dx.data.digits()
    np.savez(tmp_path / "digits.npz", x=digits.pixels.numpy(), y=digits.y.numpy())
    there = tmp_path / "net"
    shutil.copytree(learned[0], there)
    card = json.loads((there / "net.json").read_text())
    card["provenance"]["data"] = "digits.npz"
    (there / "net.json").write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    given = ("--episodes", "1", "--way", "3", "--shot", "1", "--queries", "1", "--json", "--data")
    for name in ("digits.npz", "./digits.npz", str(tmp_path / "digits.npz")):
        told = json.loads(done("evaluate", there, *given, name))
        assert told["episodes"].endswith(f"the classes of {name} that training did not see")
    told = json.loads(done("evaluate", there, *given, "digits"))
    assert told["episodes"].endswith("all classes of digits; training saw classes of digits.npz")
    assert told["saved_policy"]["half"] is None, "one episode has no interval, and JSON no infinity"
    assert same_data("omniglot", "omniglot:background")
    assert not same_data("omniglot", "omniglot:evaluation")


def test_episodes_of_a_net_that_skips_are_answered_without_skipping(tmp_path: Path) -> None:
    model = dx.models.ResNet(8, width=2, channels=1)
    staged = dx.split(model, torch.zeros(1, 1, 8, 8), granularity="block")
    net = dx.attach_gates(dx.attach(staged, dx.heads.pooled_heads(10), at=[0]), dx.gates.recurrent_gates())
    policy = dx.Policy(threshold_e=(0.5, 0.0), temperature_e=(1.0, 1.0), keep_g=(0.5,) * net.num_gates)
    spec = dx.InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
    recipe = {"kind": "cifar", "name": "resnet8", "arguments": {"width": 2, "channels": 1}}
    dx.save(net, tmp_path / "net", policy=policy, spec=spec, model_recipe=recipe)
    told = done("evaluate", tmp_path / "net", "--data", "digits", "--episodes", "2", "--way", "2", "--queries", "2")
    assert "exits alone, no block is skipped" in told
    assert "where it is sure" in told


def test_a_folder_of_classes_is_learned(learned: tuple[Path, str], faces: Path, tmp_path: Path) -> None:
    before = (learned[0] / "net.safetensors").read_bytes()
    out = tmp_path / "faces"
    given = ("--support", faces / "support", "--query", faces / "query", "--method", "prototypes")
    told = json.loads(done("adapt", learned[0], *given, "-o", out, "--json"))
    assert told["classes"] == ["dark", "light"]
    assert told["query"]["accuracy"] == 1.0
    assert told["query"]["basis"] == told["support"]["basis"] == "labels"
    assert (learned[0] / "net.safetensors").read_bytes() == before
    kept = dx.load(out)
    assert kept.class_names == ("dark", "light")
    assert kept.net.num_classes == 2
    rows = dx.data.images(faces / "query", kept.spec, labelled=True)
    table = dx.collect(kept.net, rows)
    assert dx.simulate(table, kept.policy).accuracy == 1.0
    assert "each left out" in done("adapt", learned[0], *given)
    said = json.loads(done("predict", out, faces / "query" / "light" / "0.png", "--json"))
    assert said["name"] == "light"


def test_one_image_a_class_keeps_the_saved_thresholds(learned: tuple[Path, str], faces: Path, tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / "one" / name).mkdir(parents=True)
        (tmp_path / "one" / name / "0.png").write_bytes((faces / "support" / name / "0.png").read_bytes())
    assert "class 0 has one support sample" in refused("adapt", learned[0], "--support", tmp_path / "one",
                                                    "--method", "prototypes")  # fmt: skip
    given = ("--support", tmp_path / "one", "--method", "prototypes", "--keep-thresholds", "-o", tmp_path / "net")
    assert "Saved in" in done("adapt", learned[0], *given)
    assert dx.load(tmp_path / "net").policy == dx.load(learned[0]).policy


def test_a_start_stays_only_with_its_own_net(learned: tuple[Path, str], faces: Path, tmp_path: Path) -> None:
    there = tmp_path / "net"
    shutil.copytree(learned[0], there)
    done("evaluate", there, "--unlabelled", faces / "query", "--choose", "--max-drop", "1")
    assert (there / "start.safetensors").exists()
    done("adapt", there, "--support", faces / "support", "--method", "prototypes", "-o", there)
    assert not (there / "start.safetensors").exists()
    # The query folder lacks the first class: its names say which one it holds.
    shutil.copytree(faces / "query" / "light", tmp_path / "some" / "light")
    told = json.loads(done("evaluate", there, "--data", tmp_path / "some", "--json"))
    assert told["saved_policy"]["accuracy"] == 1.0


def test_other_ways_than_the_net_was_trained_for_are_told(learned: tuple[Path, str], faces: Path) -> None:
    given = ("--data", "digits", "--episodes", "2", "--shot", "1", "--queries", "1", "--way")
    assert "4-way episodes for a net meta-trained on 3-way ones; give --way 3" in refused(
        "evaluate", learned[0], *given, "4"
    )
    told = refused("adapt", learned[0], "--support", faces / "support")
    assert "2 classes in" in told
    assert "the classifiers that are kept know 3" in told


def test_an_interrupted_run_goes_on_and_another_net_does_not_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("dynext.cli.commands.meta_train")
    monkeypatch.setattr(module, "CHECKED", 2)
    command = ("meta-train", *TINY, "-o", tmp_path / "net", *SMALL, "--classes", "6/4")
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_episodes", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*command).exit_code == 130
    assert list(tmp_path.glob(".net.work-*/meta.ckpt"))
    done(*(("width=3" if part == "width=2" else part) for part in command))
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_class_that_was_not_learned_is_named(learned: tuple[Path, str], faces: Path, tmp_path: Path) -> None:
    (tmp_path / "q" / "gray").mkdir(parents=True)
    (tmp_path / "q" / "gray" / "0.png").write_bytes((faces / "query" / "dark" / "0.png").read_bytes())
    given = ("--support", faces / "support", "--query", tmp_path / "q", "--method", "prototypes")
    assert "none of the classes, 'gray'; classes without a sub-folder: 'dark', 'light'" in refused(
        "adapt", learned[0], *given
    )


def test_mistakes(tmp_path: Path) -> None:
    assert "--classes 'six'; give how many" in refused("meta-train", *TINY, "-o", tmp_path / "n", "--classes", "six")
    assert "no nowhere; give digits" in refused("meta-train", *TINY, "-o", tmp_path / "n", "--data", "nowhere")
    assert "10 classes for 11-way episodes" in refused("meta-train", *TINY, "-o", tmp_path / "n", "--way", "11")
    np.savez(tmp_path / "x.npz", x=torch.zeros(4, 8, 8).numpy())
    told = refused("meta-train", *TINY, "-o", tmp_path / "n", "--data", tmp_path / "x.npz")
    assert "have no labels, and episodes are drawn by class" in told
