"""Evaluate from the shell: accuracy with labels, agreement without, budgets from the saved table only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import done, refused, run

import dynext as dx
from dynext.data import FASHION_CLASSES
from dynext.data.content import Content
from dynext.zeroshot.convert_checks import pixels_digest


def test_the_figures_are_the_librarys(net: Path, images: Path) -> None:
    told = json.loads(done("evaluate", net, "--data", images, "--json"))
    kept = dx.load(net)
    table = dx.collect(kept.net, dx.data.array(images, kept.spec))
    expected = dx.report(table, kept.policy)
    assert told["saved_policy"]["accuracy"] == pytest.approx(expected.accuracy)
    assert told["saved_policy"]["saved"] == pytest.approx(expected.saved)
    assert [line["budget"] for line in told["budgets"]] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    chosen = dx.choose(kept.table, budget=0.9, temperature=kept.policy.temperature_e)
    assert told["budgets"][-1]["report"]["macs"] == pytest.approx(dx.simulate(table, chosen).macs)


def test_text_says_basis_rows_and_where_thresholds_come_from(net: Path, images: Path) -> None:
    text = done("evaluate", net, "--data", images)
    assert f"60 samples of {images}" in text
    assert "Accuracy" in text
    assert "basis: labels" in text
    assert "thresholds chosen on 60 unlabelled samples" in text
    assert "90%" in text


def test_without_labels_nothing_is_called_accuracy(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 3, 32, 32), np.uint8))
    text = done("evaluate", net, "--data", tmp_path / "rows.npz")
    assert "accuracy" not in text.lower()
    assert "agreement" in text
    assert "unlabelled" in text


def test_thresholds_are_checked_without_labels(net: Path, images: Path) -> None:
    card = (net / "net.json").read_text()
    text = done("evaluate", net, "--unlabelled", images)
    assert f"60 unlabelled samples of {images}" in text
    assert "at least" in text
    assert "points are lost, at most" in text
    told = json.loads(done("evaluate", net, "--unlabelled", images, "--json"))
    assert told["saved_policy"]["basis"] == "teacher"
    assert 0 <= told["saved_policy"]["agreement_at_least"] <= told["saved_policy"]["agreement"]
    assert told["chosen_policy"] is None
    assert (net / "net.json").read_text() == card


def test_thresholds_are_chosen_anew(net: Path, images: Path) -> None:
    before = dx.load(net)
    told = json.loads(done("evaluate", net, "--unlabelled", images, "--choose", "--max-drop", "1", "--json"))
    after = dx.load(net)
    assert after.policy.threshold_e == tuple(line["threshold"] for line in told["chosen_policy"]["exits"])
    assert after.policy != before.policy
    assert told["chosen_policy"]["saved"] > 0
    assert "chosen anew on 60 unlabelled samples" in after.provenance["thresholds"]
    assert "timing" not in after.provenance
    assert len(after.table) == 60
    for (name, old), new in zip(before.net.state_dict().items(), after.net.state_dict().values(), strict=True):
        assert old.equal(new) != (name.startswith("exits.") and name.endswith("classifier.bias")), name
    assert "class biases that were found without it" in after.table.rows
    assert "Inputs that leave first" in (net / "report.html").read_text()
    assert "chosen anew, and saved in" in done("evaluate", net, "--unlabelled", images, "--choose")


def test_where_nothing_is_proven_the_least_unsafe_can_be_had(net: Path, images: Path) -> None:
    asked = ("evaluate", net, "--unlabelled", images, "--choose", "--json")
    static = json.loads(done(*asked))["chosen_policy"]
    assert static["saved"] <= 0
    assert static["agreement"] == 1
    assert dx.load(net).provenance["target"]["when_unsafe"] == "static"
    least = json.loads(done(*asked, "--when-unsafe", "least"))["chosen_policy"]
    assert least["saved"] > 0
    kept = dx.load(net)
    assert kept.policy.note.startswith("not proven")
    assert kept.provenance["target"] == {"max_drop": None, "budget": None, "when_unsafe": "least"}
    assert "are wishes about thresholds; give --choose too" in refused(*asked[:4], "--when-unsafe", "least")


def test_images_that_were_distilled_on_judge_nothing(net: Path, images: Path) -> None:
    card = json.loads((net / "net.json").read_text())
    rows = dx.data.array(images, dx.load(net).spec)
    card["provenance"]["distilled_on_pixels"] = pixels_digest(rows)
    (net / "net.json").write_text(json.dumps(card))
    for more in ((), ("--choose",)):
        assert "the exits were distilled on" in refused("evaluate", net, "--unlabelled", images, *more)


def test_images_of_which_some_were_distilled_on_are_judged_by_the_others(net: Path, images: Path) -> None:
    rows = dx.data.array(images, dx.load(net).spec)
    card = json.loads((net / "net.json").read_text())
    for seen, left in ((torch.arange(29, -1, -1), 30), (torch.arange(5, 50), 15)):
        card["seen"] = Content.of(rows.subset(seen)).to_text()
        (net / "net.json").write_text(json.dumps(card))
        if left >= 20:
            told = json.loads(done("evaluate", net, "--unlabelled", images, "--json"))
            assert told["saved_policy"]["num_rows"] == left
            assert "(30 that the exits were distilled on left out)" in told["saved_policy"]["rows"]
        else:
            text = refused("evaluate", net, "--unlabelled", images, "--choose")
            assert f"the exits were distilled on {60 - left} of the 60 images" in text


def test_a_folder_with_a_sub_folder_a_class(net: Path, tmp_path: Path) -> None:
    for label in ("0", "7"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (40, 50), (200, 10, 10)).save(tmp_path / "data" / label / "x.png")
    result = run("evaluate", net, "--data", tmp_path / "data", "--json")
    assert "Note:" in result.stderr
    assert "images of 2 of 10 classes, none of '1', '2', '3'" in result.stderr
    told = json.loads(result.stdout)
    assert told["saved_policy"]["num_rows"] == 2
    assert told["saved_policy"]["basis"] == "labels"


def test_sub_folders_are_the_nets_classes(net: Path, tmp_path: Path) -> None:
    """What accuracy is of: images that the net calls class 4 lie in the folder of that class, however it is spelled."""
    data = tmp_path / "data"
    card = json.loads((net / "net.json").read_text())
    (net / "net.json").write_text(json.dumps({**card, "class_names": [*FASHION_CLASSES]}))
    kept = dx.load(net)
    (data / "x").mkdir(parents=True)
    Image.new("RGB", (32, 32), (200, 10, 10)).save(data / "x" / "x.png")
    picture = dx.data.images(data, kept.spec)
    answer = int(kept.net.staged(kept.spec.normalize(picture.pixels)).argmax(1))
    (tmp_path / "words.json").write_text(json.dumps({"rot": answer}))
    spelled = FASHION_CLASSES[answer].upper().replace("/", "_").replace(" ", "_")
    for name, more, right in (
        (spelled, (), 1.0),
        (str(answer), (), 1.0),
        ("rot", ("--class-names", tmp_path / "words.json"), 1.0),
        (FASHION_CLASSES[answer - 1].replace("/", ":"), (), 0.0),
    ):
        next(data.iterdir()).rename(data / name)
        result = run("evaluate", net, "--data", data, "--json", *more)
        assert json.loads(result.stdout)["saved_policy"]["static_accuracy"] == right
        assert "Note: " in result.stderr
    assert "Wrote" in done("report", net, "--data", data)
    (data / "Sandals").mkdir()
    (data / "Sandals" / "torn.png").write_bytes(b"torn")
    assert "did you mean 'Sandal' by 'Sandals'?" in refused("evaluate", net, "--data", data)
    (data / "Sandals").rename(data / "sandal")
    for command in ("evaluate", "report"):
        assert "torn.png is no image" in refused(command, net, "--data", data, "--strict")
    assert "torn.png is no image" in refused("evaluate", net, "--unlabelled", data, "--strict")
    assert "skipped: " in run("evaluate", net, "--data", data).stderr
    assert "Milliseconds" in done("bench", net, "--data", data, "--batch", "1")
    (tmp_path / "many.txt").write_text("\n".join(map(str, range(11))))
    assert "has 11 classes, the net 10" in refused(
        "evaluate", net, "--data", data, "--class-names", tmp_path / "many.txt"
    )


def test_a_net_without_a_table_has_no_budgets(net: Path, images: Path) -> None:
    (net / "table.safetensors").unlink()
    text = done("evaluate", net, "--data", images)
    assert "No budgets" in text
    assert json.loads(done("evaluate", net, "--data", images, "--json"))["budgets"] == []


def test_mistakes(net: Path, tmp_path: Path) -> None:
    assert "give --data DATA to judge on, or --unlabelled" in refused("evaluate", net)
    assert "not both" in refused("evaluate", net, "--data", "bundled", "--unlabelled", "bundled")
    assert "never the test samples" in refused("evaluate", net, "--data", "bundled", "--choose")
    assert "give --choose too" in refused("evaluate", net, "--unlabelled", "bundled", "--budget", "0.5")
    assert "no nowhere; give a folder" in refused("evaluate", net, "--unlabelled", "nowhere")
    assert "samples have shape (1, 28, 28), the model expects (3, 32, 32)" in refused(
        "evaluate", net, "--data", "bundled"
    )
    assert "no nowhere.npz; give fashion-mnist" in refused("evaluate", net, "--data", "nowhere.npz")
    assert "Give --root" in refused("evaluate", net, "--data", "cifar10")
    (tmp_path / "empty").mkdir()
    assert "no image in" in refused("evaluate", net, "--data", tmp_path / "empty")
    assert "there is no dynamic net in" in refused("evaluate", tmp_path / "empty", "--data", "bundled")
    assert "does not exist" in refused("evaluate", tmp_path / "gone", "--data", "bundled")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    assert "no array file" in refused("evaluate", net, "--data", tmp_path / "torn.npz")
    (net / "net.safetensors").write_bytes((net / "net.safetensors").read_bytes()[:-9])
    assert "truncated" in refused("evaluate", net, "--data", "bundled")
    (net / "net.json").write_text("{")
    assert "damaged" in refused("evaluate", net, "--data", "bundled")
