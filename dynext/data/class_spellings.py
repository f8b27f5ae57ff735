"""The ways in which one class is spelled: what file systems forbid, people change, and WordNet says instead.

Each spelling is tried on all classes before the next, looser one. A loose spelling of one side is compared with the
plain one of the other, never two loose ones: "2-door car" and "4-door car" must stay two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from urllib.parse import unquote

from dynext.data.bundled import bundled_file

SEPARATORS = re.compile(r"[\s_\-/\\:|]+")
MEANT = "+#%@$=~^"
"""Signs that tell classes apart, C from C++; others go with a file system or with a hurried typist."""
WORDNET_ID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)", re.IGNORECASE)
NUMBER_IN_FRONT = re.compile(r"^\d+[\s._\-]+(?=\D)")
PROBES = {0: "tench", 1: "goldfish", 207: "golden retriever", 999: "toilet tissue"}
"""By these names a net of 1,000 classes is known as ImageNet's."""


def matching(name: str, classes: Sequence[tuple[str, int]]) -> list[int]:
    """The numbers of those ``classes`` that ``name`` spells best: one if all is well, several if it is ambiguous."""
    table = _table(tuple(classes))
    for stage, (spell, _) in enumerate(STAGES):
        numbers = sorted({number for key in spell(name) for number in table[stage].get(key, ())})
        if numbers:
            return numbers
    return []


def plain(name: str) -> str:
    """Case, composed letters and separators put aside: ``T-shirt/top`` is ``t shirt top``."""
    return SEPARATORS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()


def squeezed(name: str) -> str:
    """Accents, punctuation and spaces gone as well, except between digits: ``tshirttop``, but ``1.5`` is not ``15``."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", plain(name)) if not unicodedata.combining(c))
    spaced = "".join(c if c.isalnum() or c in MEANT else " " for c in letters)
    return re.sub(r"(?<!\d) +| +(?!\d)", "", spaced)


def imagenet_number(name: str) -> int | None:
    """The class number of a WordNet id among ImageNet's 1,000."""
    ids = WORDNET_ID.findall(name)
    return wordnet_ids().get(ids[0].lower()) if ids else None


@cache
def wordnet_ids() -> dict[str, int]:
    """ImageNet's 1,000 classes (ILSVRC 2012) in the order of their numbers."""
    lines = bundled_file("imagenet_wordnet_ids.txt").read_text(encoding="ascii").split()
    return {line: number for number, line in enumerate(lines)}


@cache
def _table(classes: tuple[tuple[str, int], ...]) -> list[dict[str, set[int]]]:
    """For each stage the classes by their spellings."""
    tables: list[dict[str, set[int]]] = []
    for _, spell in STAGES:
        keys: dict[str, set[int]] = {}
        for name, number in classes:
            for key in spell(name):
                keys.setdefault(key, set()).add(number)
        tables.append(keys)
    if _is_imagenet(classes):
        for wordnet, number in wordnet_ids().items():
            tables[WORDNET_STAGE].setdefault(wordnet, set()).add(number)
    return tables


def _is_imagenet(classes: Iterable[tuple[str, int]]) -> bool:
    names = {number: name for name, number in classes}
    return len(names) == 1000 and all(
        squeezed(words) in (squeezed(names.get(number, "")), *_loose(names.get(number, "")))
        for number, words in PROBES.items()
    )


def _exact(name: str) -> set[str]:
    return {name}


def _plain(name: str) -> set[str]:
    return {plain(name)} - {""}


def _wordnet(name: str) -> set[str]:
    return {one.lower() for one in WORDNET_ID.findall(name)}


def _squeezed(name: str) -> set[str]:
    return {squeezed(name)} - {""}


def _loose(name: str) -> set[str]:
    """Without a number or a WordNet id in front, each of several synonyms, and with a browser's %2F undone."""
    variants = [unquote(name), NUMBER_IN_FRONT.sub("", name), WORDNET_ID.sub("", name), *name.split(",")]
    return {squeezed(variant) for variant in variants} - {"", squeezed(name)}


def _english(name: str) -> set[str]:
    """What ImageNet calls a WordNet id."""
    number = imagenet_number(name)
    if number is None:
        return set()
    from torchvision.models import ResNet18_Weights

    return {squeezed(ResNet18_Weights.DEFAULT.meta["categories"][number])}


Spelling = Callable[[str], set[str]]
STAGES: tuple[tuple[Spelling, Spelling], ...] = (
    (_exact, _exact),
    (_plain, _plain),
    (_wordnet, _wordnet),
    (_squeezed, _squeezed),
    (_loose, _squeezed),
    (_squeezed, _loose),
    (_english, _squeezed),
    (_english, _loose),
    (_squeezed, _english),
)
"""How a folder's name is spelled, and how a class's is, from strict to loose."""
WORDNET_STAGE = 2
