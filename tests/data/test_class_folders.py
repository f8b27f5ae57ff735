"""Class numbers of sub-folders: names as people and file systems change them, numbers, WordNet ids, files, ranks."""

import json
import logging
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pixels import GRAY
from torchvision.models import ResNet18_Weights

from dynext.data.datasets import FASHION_CLASSES
from dynext.data.folders import images
from dynext.data.image_files import class_names
from dynext.errors import SourceError

IMAGENET = tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def made(folder: Path, names: Iterable[str], empty: Iterable[str] = ()) -> Path:
    """One image a class, all black."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("L", (6, 6)).save(folder / name / "0.png")
    for name in empty:
        (folder / name).mkdir(parents=True)
    return folder


def numbers(folder: Path, classes: Any = None) -> dict[str, int]:
    """What each sub-folder is, read off the labels."""
    y = images(folder, GRAY, labelled=True, classes=classes).y
    assert y is not None
    return dict(zip(sorted(class_names(folder)), y.tolist(), strict=True))


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("T-shirt_top", "T-shirt/top"),
        ("T-shirt-top", "T-shirt/top"),
        ("T-shirt:top", "T-shirt/top"),
        ("t-shirt top", "T-shirt/top"),
        ("Tshirt top", "T-shirt/top"),
        ("T-shirt%2Ftop", "T-shirt/top"),
        ("T-shirt／top", "T-shirt/top"),
        ("ANKLE_BOOT", "Ankle boot"),
        ("AnkleBoot", "Ankle boot"),
        ("9 - Ankle boot", "Ankle boot"),
        ("009.Ankle_boot", "Ankle boot"),
        (unicodedata.normalize("NFD", "Café crème"), "café-crème"),
        ("Cafe creme", "café crème"),
        ("straße", "STRASSE"),
        ("St Bernard", "St. Bernard"),
        ("zero", "0 - zero"),
        ("tench", "tench, Tinca tinca"),
        ("n01440764", "n01440764 tench"),
        ("n00007846", "n00007846 person"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("N01440764", "tench"),
        ("golden_retriever", "n02099601"),
    ],
)
def test_names_are_matched_as_they_get_changed(tmp_path: Path, changed: str, name: str) -> None:
    assert numbers(made(tmp_path, [changed]), ["other", "something else", name, "more"]) == {changed: 2}


def test_nine_of_ten_names_and_one_that_cannot_be_a_folder(tmp_path: Path) -> None:
    names = [name for name in FASHION_CLASSES if "/" not in name]
    expected = {name: FASHION_CLASSES.index(name) for name in (*names, "T-shirt_top") if name != "T-shirt_top"}
    assert numbers(made(tmp_path / "some", names), FASHION_CLASSES) == expected
    assert numbers(made(tmp_path / "all", [*names, "T-shirt_top"]), FASHION_CLASSES) == {**expected, "T-shirt_top": 0}


def test_an_exact_name_goes_before_one_that_is_alike(tmp_path: Path) -> None:
    kinds = ["C", "c", "C++", "C#", "1.5", "15"]
    assert numbers(made(tmp_path, ["c", "C", "C#", "1.5", "15"]), kinds) == {"C": 0, "c": 1, "C#": 3, "1.5": 4, "15": 5}
    assert numbers(made(tmp_path / "in", ["1_5"]), ["15", "1.5"]) == {"1_5": 1}
    with pytest.raises(SourceError, match=r"none of the classes, '3-door car'"):
        numbers(made(tmp_path / "cars", ["3-door car"]), ["2-door car", "4-door car"])


def test_a_partial_match_is_refused_with_both_sides_and_the_nearest(tmp_path: Path) -> None:
    made(tmp_path, ["Coats", "Bag", "Tee"])
    with pytest.raises(SourceError) as error:
        numbers(tmp_path, FASHION_CLASSES)
    told = str(error.value)
    assert "2 sub-folders are none of the classes, 'Coats', 'Tee'" in told
    assert "classes without a sub-folder: 'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'" in told
    assert "did you mean 'Coat' by 'Coats'?" in told
    assert "class_to_idx.json" in told


@pytest.mark.parametrize(
    ("names", "classes", "told"),
    [
        (["Coat", "coat"], FASHION_CLASSES, "sub-folders 'Coat', 'coat' are one class, 'Coat'"),
        (["3", "03"], 10, "sub-folders '03', '3' are one class, '3'|sub-folders '3', '03' are one class, '3'"),
        (["crane"], ["Crane", "x", "CRANE"], r"may be any of the classes Crane \(0\), CRANE \(2\)"),
        (["train", "val"], FASHION_CLASSES, "holds parts of a data set, 'train', 'val'.*name one of them, such as"),
        (["12"], 10, "1 sub-folder is of no class, '12', where there are 10, 0 to 9"),
        (["0", "10"], FASHION_CLASSES, "1 sub-folder is of no class, '10'"),
        (["1", "cat"], FASHION_CLASSES, "none of the classes, '1', 'cat'"),
        (["a", "b"], 10, "2 sub-folders, the net 10 classes without names: which is which cannot be told"),
        ([str(n) for n in range(1, 10)], 10, "called 1 to 9, and there is no 0, for 10 classes: it cannot be told"),
        (["1", "3"], None, "there is no 0: it cannot be told whether they count from 0 or from 1"),
        ([f"class_{n}" for n in range(11)], 11, "may be numbered by the alphabet or by the numbers in their names"),
        (["0", "1"], ["1", "2", "3"], "none of the classes, '0'"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, names: list[str], classes: Any, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        numbers(made(tmp_path, names), classes)


@pytest.mark.parametrize("classes", [10, FASHION_CLASSES, None])
def test_integers_are_class_numbers(tmp_path: Path, classes: Any, caplog: pytest.LogCaptureFixture) -> None:
    lacking = [str(n) for n in range(10) if n != 3]
    assert numbers(made(tmp_path / "0", lacking), classes) == {name: int(name) for name in lacking}
    if classes is not None:
        assert "images of 9 of 10 classes, none of 'Dress'" in caplog.text.replace("'3'", "'Dress'")
    assert numbers(made(tmp_path / "00", ["000", "007"]), classes) == {"000": 0, "007": 7}
    caplog.clear()
    from_one = [str(n) for n in range(1, 11)]
    assert numbers(made(tmp_path / "1", from_one), classes) == {name: int(name) - 1 for name in from_one}
    assert "count from 1 (there is no 0), so 1 is class 0" in caplog.text


def test_an_empty_folder_says_where_counting_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert numbers(made(tmp_path / "0", ["1", "2"], ["0"]), 10) == {"1": 1, "2": 2}
    assert numbers(made(tmp_path / "1", ["1", "2"], ["10"]), 10) == {"1": 0, "2": 1}
    assert numbers(made(tmp_path / "2", ["2", "10"]), 10) == {"2": 1, "10": 9}
    assert "no image in '0'" in caplog.text


def test_integers_that_are_names_of_classes_are_names(tmp_path: Path) -> None:
    trained = ("0", "1", "10", "2")  # as torchvision numbers folders 0, 1, 2 and 10
    assert numbers(made(tmp_path, trained), trained) == {"0": 0, "1": 1, "10": 2, "2": 3}


def test_wordnet_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, ["n01440764", "n02012849", "n15075141"])
    expected = {"n01440764": 0, "n02012849": 134, "n15075141": 999}
    assert numbers(tmp_path, IMAGENET) == expected
    assert numbers(tmp_path, 1000) == expected
    assert "numbered as ImageNet's 1,000 classes are" in caplog.text
    with pytest.raises(SourceError, match="which is which cannot be told"):
        numbers(tmp_path, 1001)
    assert numbers(made(tmp_path / "more", ["n03126707_crane"]), IMAGENET) == {"n03126707_crane": 517}


def test_ranks_only_where_none_is_missing_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, ["cat", "dog"], ["bee"])
    assert numbers(tmp_path, 3) == {"cat": 1, "dog": 2}
    assert "by the order of their sub-folders' names, as the net keeps no names of its classes: bee is 0" in caplog.text
    with pytest.raises(SourceError, match="the net 2 classes"):
        numbers(tmp_path, 2)
    assert caplog.records[0].levelno == logging.WARNING


FORMS = [
    {"kitten": 2, "puppy": 0},
    {"0": "puppy", "1": "fish", "2": "kitten"},
    {"2": ["n02123045", "kitten"], "0": ["n02085620", "puppy"]},
    ["puppy", "fish", "Kitten"],
    {"model_type": "vit", "id2label": {"0": "puppy", "2": "kitten"}},
    {"class_to_idx": {"kitten": 2, "puppy": 0}},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_beside_them_says_which_is_which(tmp_path: Path, form: Any, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, ["kitten", "puppy"])
    (tmp_path / "class_to_idx.json").write_text(json.dumps(form))
    expected = {"kitten": 2, "puppy": 0}
    assert numbers(tmp_path, 3) == numbers(tmp_path) == numbers(tmp_path, ("Hund", "Fisch", "Katze")) == expected
    assert "numbered by its class_to_idx.json" in caplog.text
    assert numbers(tmp_path, {"kitten": 0, "puppy": 1}) == {"kitten": 0, "puppy": 1}, "a mapping is the caller's word"
    if form != FORMS[-2]:
        with pytest.raises(SourceError, match="gives 'kitten' the number 2, the net's own names give it 0"):
            numbers(tmp_path, ("kitten", "puppy", "fish"))
    with pytest.raises(SourceError, match="of no class, 'kitten', where there are 2"):
        numbers(tmp_path, 2)


def test_lists_in_files(tmp_path: Path) -> None:
    made(tmp_path / "data", ["kitten", "puppy"])
    (tmp_path / "names.txt").write_bytes("\ufeffPuppy\r\nfish\r\nkitten\r\n\r\n".encode())
    assert numbers(tmp_path / "data", tmp_path / "names.txt") == {"kitten": 2, "puppy": 0}
    assert numbers(tmp_path / "data", str(tmp_path / "names.txt")) == {"kitten": 2, "puppy": 0}
    for name, text, told in (
        ("torn.json", "{", "is no JSON"),
        ("odd.json", '{"a": "b"}', "is no list of classes"),
        ("below.json", '{"a": -1}', "is no list of classes"),
        ("empty.txt", "", "is no list of classes"),
        ("gap.txt", "a\n\nb", "is no list of classes"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=told):
            numbers(tmp_path / "data", tmp_path / name)
    with pytest.raises(SourceError, match="holds no class names that can be read"):
        numbers(tmp_path / "data", tmp_path / "gone.txt")
    with pytest.raises(SourceError, match="classes=0; give the number of classes"):
        numbers(tmp_path / "data", 0)
