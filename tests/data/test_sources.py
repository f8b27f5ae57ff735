"""What people have becomes the same Source in every form; what cannot be told is refused with what to do."""

import logging
import re

import numpy as np
import pytest
import torch
from kinds_of_data import FIRST, KINDS, LABELS, UNIT, WANTED, ClassLabel, Image, Items, N, Table, X, Y, picture, written
from PIL import Image as pil
from pixels import COLOR, GRAY, some_pixels
from torch.testing import assert_close
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import dynext as dx
from dynext.data.read_sources import ReadSource
from dynext.errors import SourceError
from dynext.testing import check_source


def all_of(source: dx.Source) -> tuple[torch.Tensor, torch.Tensor | None]:
    batches = list(source)
    labels = [batch.y for batch in batches if batch.y is not None]
    return torch.cat([batch.x for batch in batches]), torch.cat(labels) if labels else None


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_samples(kind: str) -> None:
    source = dx.data.as_source(KINDS[kind](), COLOR)
    for _ in range(2):
        x, y = all_of(source)
        assert_close(x, WANTED, atol=1e-5, rtol=0)
        assert torch.equal(y, LABELS)
    assert (len(source), source.shape, source.bn) == (N, COLOR.shape, "running")
    if hasattr(source, "take"):
        taken = source.take(torch.tensor([7, 3, 3]))
        assert_close(taken.x, WANTED[[7, 3, 3]], atol=1e-5, rtol=0)
        assert taken.y.tolist() == [2, 3, 3]
    check_source(source, COLOR, num_classes=5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_dropped_where_nobody_wants_them(kind: str) -> None:
    x, y = all_of(dx.data.as_source(KINDS[kind](), COLOR, labelled=False))
    assert y is None
    assert_close(x, WANTED, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_files_and_folders(tmp_path, kind: str) -> None:
    x, y = all_of(dx.data.as_source(written(tmp_path)[kind], COLOR))
    order = torch.arange(N) if kind == "file" else torch.argsort(LABELS, stable=True)
    assert_close(x, WANTED[order])
    assert torch.equal(y, LABELS[order])
    assert all_of(dx.data.as_source(str(written(tmp_path)[kind]), COLOR, labelled=False))[1] is None


def test_arrays_in_a_file_are_looked_at_as_others(tmp_path) -> None:
    np.savez(tmp_path / "bright.npz", x=X.astype(np.float32), y=np.eye(5)[Y])
    x, y = all_of(dx.data.as_source(tmp_path / "bright.npz", COLOR))
    assert_close(x, WANTED, atol=1e-5, rtol=0)
    assert torch.equal(y, LABELS)
    np.save(tmp_path / "twice.npy", WANTED.numpy())
    with pytest.raises(SourceError, match=r"twice\.npy: pixels lie .* would be once more"):
        dx.data.as_source(tmp_path / "twice.npy", COLOR)


def test_a_source_is_given_back_as_it_is() -> None:
    samples = dx.data.Samples(pixels=FIRST, y=LABELS, spec=COLOR)
    assert dx.data.as_source(samples) is samples
    assert dx.data.as_source(samples, COLOR) is samples
    assert dx.data.as_source(samples, labelled=False).y is None


def test_images_alone_are_unlabelled() -> None:
    for data in (X, FIRST, UNIT, TensorDataset(FIRST), Items(lambda i: UNIT[i]), [picture(i) for i in range(N)], (X,)):
        x, y = all_of(dx.data.as_source(data, COLOR))
        assert y is None
        assert_close(x, WANTED)
        with pytest.raises(SourceError, match=r"no labels, and labels are needed here; give \(x, y\)"):
            dx.data.as_source(data, COLOR, labelled=True)


def test_worker_processes_read_and_nothing_is_drawn_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    own = torch.Generator().manual_seed(3)
    kept = own.get_state()
    loader = DataLoader(TensorDataset(UNIT, LABELS), batch_size=16, num_workers=1, shuffle=True, generator=own)
    for data in (loader, DataLoader(Items(lambda i: (UNIT[i], int(Y[i]))), sampler=RandomSampler(range(N)))):
        assert_close(all_of(dx.data.as_source(data, COLOR))[0], WANTED)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(own.get_state(), kept)


def test_a_loader_of_some_numbers_reads_those() -> None:
    loader = DataLoader(Items(lambda i: (UNIT[i], int(Y[i]))), batch_size=4, sampler=[9, 2, 5])
    x, y = all_of(dx.data.as_source(loader, COLOR))
    assert_close(x, WANTED[[2, 5, 9]])
    assert y.tolist() == [2, 0, 4]


def test_a_large_data_set_is_not_read_before_it_is_needed() -> None:
    read = []

    class Large:
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, i: int):
            read.append(i)
            return UNIT[i % N], i % 5

    source = dx.data.as_source(Large(), COLOR)
    assert isinstance(source, ReadSource)
    assert len(source) == 1_000_000
    next(iter(source))
    assert len(read) < 200
    assert max(read) == 999_999  # those it is judged by are spread


def test_images_of_pillow_are_fitted_as_files_are() -> None:
    large = [pil.fromarray(np.repeat(np.repeat(X[i], 3, 0), 4, 1)) for i in range(4)]
    x, _ = all_of(dx.data.as_source(large, COLOR))
    assert x.shape == (4, 3, 6, 5)
    gray, _ = all_of(dx.data.as_source([one.convert("L") for one in large], COLOR))
    assert_close(COLOR.pixels(gray)[:, 0], COLOR.pixels(gray)[:, 2])


def test_channels_are_converted_and_that_is_said(caplog) -> None:
    gray = some_pixels(4, (6, 5))
    with caplog.at_level(logging.WARNING, "dynext"):
        x, _ = all_of(dx.data.as_source(gray, COLOR))
        y, _ = all_of(dx.data.as_source(X[:4], GRAY))
        rgba = np.concatenate([X[:4], np.full((4, 6, 5, 1), 255, np.uint8)], -1)
        z, _ = all_of(dx.data.as_source(rgba, COLOR))
    assert_close(COLOR.pixels(x), torch.from_numpy(gray)[:, None].expand(-1, 3, -1, -1) / 255)
    wanted = np.stack([np.asarray(picture(i).convert("L")) for i in range(4)])
    assert_close(GRAY.pixels(y)[:, 0] * 255, torch.from_numpy(wanted).float(), atol=1.0, rtol=0)
    assert_close(z, WANTED[:4])
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert "samples are gray, the model expects RGB" in told[0]
    assert "samples are RGB, the model expects gray" in told[1]


def test_vectors_of_gray_pixels_are_images() -> None:
    gray = some_pixels(4, (6, 5))
    assert_close(
        all_of(dx.data.as_source(gray.reshape(4, -1), GRAY))[0], GRAY.normalize(torch.from_numpy(gray)[:, None])
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ((FIRST.float(), LABELS), "pixels are floats from 0 to 255; they are divided by 255"),
        ((UNIT * 1.1 - 0.05, LABELS), r"pixels between -0.05 and 1.05 are clipped to \[0, 1\]"),
        ((FIRST.int(), LABELS), "pixels are torch.int32 from 0 to 255; they are taken for 8 bits"),
        ((UNIT, torch.eye(5)[LABELS]), "labels are one-hot"),
        ((UNIT, -torch.ones(N)), "all labels are -1: the samples are taken for unlabelled"),
        (Items(lambda i: (torch.rand(3, 6, 5), 0)), "another image at each reading"),
    ],
)
def test_what_is_less_than_certain_is_said_once(data, told: str, caplog) -> None:
    with caplog.at_level(logging.WARNING, "dynext"):
        source = dx.data.as_source(data, COLOR)
        list(source)
    assert len(caplog.records) == 1
    assert re.search(told, caplog.records[0].message)


def test_certain_things_are_not_commented_on(caplog) -> None:
    with caplog.at_level(logging.DEBUG, "dynext"):
        for data in ((X, Y), (UNIT, LABELS), DataLoader(TensorDataset(UNIT, LABELS))):
            list(dx.data.as_source(data, COLOR))
    assert not caplog.records


IMAGENET = dx.InputSpec(shape=COLOR.shape, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = dx.InputSpec(shape=COLOR.shape, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("form", ["tensors", "arrays", "data set", "loader", "list"])
@pytest.mark.parametrize(
    ("x", "spec", "told"),
    [
        (WANTED, COLOR, "look normalized by the spec's own mean and std already, and would be once more"),
        (UNIT * 2 - 1, COLOR, "look normalized by mean 0.5 and std 0.5, the spec says"),
        (IMAGENET.normalize(FIRST), COLOR, "look normalized by ImageNet's mean and std, the spec says"),
        (WANTED * 7, COLOR, "neither pixels nor normalized by the spec"),
        (WANTED, PLAIN, r"the net takes pixels in \[0, 1\]"),
        (FIRST.float() - 120, COLOR, "neither pixels nor normalized"),
        (UNIT / 255, COLOR, "divided by 255 twice"),
        (UNIT * 16, COLOR, "divide by what white is, such as x / 16"),
        (FIRST.float() * 257, COLOR, "such as x / 65535 for 16 bits"),
        (FIRST.int() * 257, COLOR, "such as x / 65535 for 16 bits"),
        (UNIT.round().to(torch.uint8), COLOR, "none is above 1, of 255"),
        (UNIT.where(UNIT < 0.9, torch.nan), COLOR, "NaN or infinite"),
    ],
)
def test_pixels_of_another_scale_are_refused(x: torch.Tensor, spec: dx.InputSpec, told: str, form: str) -> None:
    data = {
        "tensors": (x, LABELS),
        "arrays": (x.permute(0, 2, 3, 1).numpy(), Y),
        "data set": Items(lambda i: (x[i], int(Y[i]))),
        "loader": DataLoader(TensorDataset(x, LABELS), batch_size=40),
        "list": [(x[i], int(Y[i])) for i in range(N)],
    }[form]
    with pytest.raises(SourceError, match=told):
        dx.data.as_source(data, spec)


def test_samples_that_are_normalized_already_are_caught_too() -> None:
    with pytest.raises(SourceError, match="would be once more"):
        dx.data.as_source(dx.data.Samples(pixels=WANTED, spec=COLOR))
    with pytest.raises(SourceError, match=r"give pixels / 255"):
        dx.data.as_source(dx.data.Samples(pixels=FIRST.float(), spec=COLOR))
    with pytest.raises(SourceError, match=r"dataclasses\.replace\(samples, spec=spec\)"):
        dx.data.as_source(dx.data.Samples(pixels=FIRST, spec=COLOR), IMAGENET)
    with pytest.raises(SourceError, match=r"the net's own spec: as_source\(data, spec\)"):
        dx.data.as_source(dx.data.as_source(Items(lambda i: UNIT[i]), COLOR), IMAGENET)


def test_normalized_samples_are_taken_when_one_says_so() -> None:
    for data in ((WANTED, LABELS), DataLoader(TensorDataset(WANTED, LABELS), batch_size=9)):
        assert_close(all_of(dx.data.as_source(data, COLOR, normalized=True))[0], WANTED)
    assert_close(all_of(dx.data.as_source((WANTED * 9, LABELS), PLAIN, normalized=True))[0], WANTED * 9)
    with pytest.raises(SourceError, match="normalized by other figures; give the spec those"):
        dx.data.as_source(
            (UNIT * 2 - 1, LABELS),
            IMAGENET.__class__(shape=COLOR.shape, mean=(0.0,) * 3, std=(0.2,) * 3),
            normalized=True,
        )
    with pytest.raises(SourceError, match=r"the samples are torch\.uint8: these are pixels; leave it out"):
        dx.data.as_source((FIRST, LABELS), COLOR, normalized=True)


def test_a_scale_that_changes_on_the_way_is_told() -> None:
    bright = [(UNIT[i % N] * (1 if i != 77 else 255), 0) for i in range(130)]
    with pytest.raises(SourceError, match="in some samples, in the first ones between 0 and 1"):
        list(dx.data.as_source(bright, COLOR))


CUBE = dx.InputSpec(shape=(3, 3, 3), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("data", "spec", "told"),
    [
        (X, None, r"give spec=dx\.InputSpec\(shape="),
        (some_pixels(4, (3, 3, 3)), CUBE, "channels first or last; give a tensor with channels first"),
        (some_pixels(4, (90,)), COLOR, "it cannot be told whether channels come first"),
        (X[0], COLOR, r"is one image; give some of them, x\[None\]"),
        (FIRST[0], COLOR, r"is one image; give some of them, x\[None\]"),
        (some_pixels(4, (7, 5, 3)), COLOR, r"samples have shape \(7, 5, 3\), the model expects \(3, 6, 5\); resize"),
        (Items(lambda i: some_pixels(1, (7, 5, 3))[0]), COLOR, "resize them"),
        (X[:0], COLOR, "there is not one sample"),
        ([], COLOR, "the data set is empty"),
        (iter([(UNIT[0], 0)]), COLOR, r"can be read once only, .* give list\(\.\.\.\)"),
        (((UNIT[i], 0) for i in range(3)), COLOR, r"a generator can be read once only"),
        (object(), COLOR, "a object holds no samples that can be read; give"),
        (3, COLOR, "a int holds no samples"),
        (
            {"train": Table([]), "test": Table([])},
            COLOR,
            r"there are 'train', 'test'; give one of them, such as data\['train'\]",
        ),
        ({"a": X, "b": Y}, COLOR, "call the pixels 'x', the labels 'y'"),
        (np.array(["a", "b"]), COLOR, "holds no pixels"),
        ((X, Y[:-1]), COLOR, r"labels have shape \(39,\) for 40 samples"),
        ((X, Y + 0.5), COLOR, "labels are no whole numbers, such as 0.5"),
        ((X, Y - 1), COLOR, "labels from -1 to 3; .*leave out the unlabelled"),
        ((X, np.array(["cat"] * N)), COLOR, r"labels are such as .*'cat'.*, no numbers; .*names\.index"),
        ((X, np.full((N, 5), 0.2)), COLOR, "mixtures of classes or several at once"),
        (Items(lambda i: (UNIT[i], "cat")), COLOR, r"labels are such as .*'cat'.*class_encode_column"),
        (Items(lambda i: (UNIT[i], UNIT[i])), COLOR, "its second part is no class number"),
        (Items(lambda i: (UNIT[i], {"boxes": 1})), COLOR, "its second part is no class number"),
        (Items(lambda i: ("a.png", 1)), COLOR, r"an item is \(str, int\); give \(image, label\)"),
        (Items(lambda i: {"text": "a", "label": 1}), COLOR, "holds 'text', 'label', and none is an image"),
        (
            Table([{"a": picture(0), "b": picture(0)}], {"a": Image(), "b": Image()}),
            COLOR,
            "which image is meant, 'a', 'b'",
        ),
        (
            Table([{"img": picture(0), "fine": 1, "coarse": 1}], {"fine": ClassLabel(), "coarse": ClassLabel()}),
            COLOR,
            r"which label is meant, 'fine', 'coarse'\? Select or rename",
        ),
        (Table([{"image": {"bytes": b"no image", "path": "x.png"}, "label": 0}]), COLOR, "x.png is no image"),
        (([picture(0)] * 3, [0, 1]), COLOR, "2 labels for 3 images"),
        ("nowhere.npz", COLOR, "no file nowhere.npz"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_do(data, spec, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        dx.data.as_source(data, spec)


def test_mapped_arrays_are_not_written_to_and_raise_no_warning(tmp_path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_close(all_of(dx.data.as_source((mapped, Y), COLOR))[0], WANTED)


def test_real_data_sets_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcde")))
    data = datasets.Dataset.from_dict({"image": [picture(i) for i in range(N)], "label": Y.tolist()}, features=features)
    x, y = all_of(dx.data.as_source(data, COLOR))
    assert_close(x, WANTED)
    assert torch.equal(y, LABELS)
