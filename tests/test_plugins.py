"""Parts of other packages: found by entry points without an import, a broken one named and nobody else kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import dynext as dx
from dynext import plugins
from dynext.errors import PluginError

GROUP = "dynext.confidences"


def install(folder: Path, name: str, version: str, entries: str, code: str) -> None:
    """A distribution as pip leaves it: a module, and a ``.dist-info`` beside it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entries)
    (folder / f"{name}.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_registered", {group: {} for group in plugins.GROUPS})
        yield


def test_an_installed_part_is_listed_unimported_and_loads(site: Path) -> None:
    install(site, "plug_a", "1.2", f"[{GROUP}]\nmine = plug_a:mine\n", "def mine(x): return x\n")
    part = plugins.registered(GROUP)["mine"]
    assert (part.reference, part.version) == ("plug_a:mine", "plug_a 1.2")
    assert part.load()(3) == 3
    assert "mine" not in plugins.registered("dynext.heads")


@pytest.mark.parametrize(
    ("entry", "code", "said"),
    [
        ("plug_b:mine", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("plug_b:mine", "def mine(:", "SyntaxError"),
        ("plug_b:missing", "", "AttributeError"),
        ("plug_b:mine", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_package_is_named_and_keeps_nobody_from_the_rest(
    site: Path, monkeypatch: pytest.MonkeyPatch, entry: str, code: str, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "plug_b", raising=False)
    install(site, "plug_b", "0.1", f"[{GROUP}]\nbroken = {entry}\n", code)
    install(site, "plug_c", "0.1", f"[{GROUP}]\nsound = plug_c:sound\n", "def sound(): return 7\n")
    parts = plugins.registered(GROUP)
    assert parts["sound"].load()() == 7
    with pytest.raises(PluginError, match=r"'broken' of plug_b 0.1 \(plug_b") as raised:
        parts["broken"].load()
    assert said in str(raised.value)


def test_what_is_installed_meanwhile_is_seen(site: Path) -> None:
    assert "late" not in plugins.registered(GROUP)
    install(site, "plug_f", "1.0", f"[{GROUP}]\nlate = plug_f:late\n", "def late(): return 1\n")
    assert plugins.registered(GROUP)["late"].load()() == 1


def test_a_name_that_two_packages_offer_is_nobodys(site: Path) -> None:
    for name in ("plug_d", "plug_e"):
        install(site, name, "1.0", f"[{GROUP}]\nboth = {name}:both\n", "def both(): return 1\n")
    with pytest.raises(PluginError, match=r"offered by plug_. 1.0 and by plug_. 1.0; uninstall all but one"):
        plugins.registered(GROUP)["both"].load()


def test_a_part_registered_here_goes_first_and_can_be_replaced() -> None:
    plugins.register(GROUP, "here", len)
    plugins.register(GROUP, "here", max)
    assert plugins.registered(GROUP)["here"].load() is max


def test_nonsense_is_refused() -> None:
    with pytest.raises(PluginError, match=r"no group 'dynext.head'; groups are dynext.synthesizers, dynext.heads"):
        plugins.registered("dynext.head")
    with pytest.raises(PluginError, match="name 'two words'"):
        plugins.register(GROUP, "two words", len)
    with pytest.raises(PluginError, match="nothing to register"):
        plugins.register(GROUP, "nothing", None)
    assert issubclass(PluginError, dx.DynextError)


def test_a_reference_says_where_a_part_was_defined() -> None:
    assert plugins.reference(install) == f"{install.__module__}:install"
    assert plugins.reference(partial(install, 1)) == f"{install.__module__}:install"
    assert plugins.reference(dx.Policy) == "dynext.policy.policy:Policy"
    assert plugins.reference(dx.Policy.never(2)) == "dynext.policy.policy:Policy"


def scaled(x: float, by: float) -> float:
    return x * by


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: float) -> float:
        return x * self.by


def closed(by: object) -> object:
    return lambda x: x * by


def test_parts_with_other_figures_or_code_have_another_identity() -> None:
    two, three = (lambda x: x * 2), (lambda x: x * 3)
    parts = [two, three, partial(scaled, by=2), partial(scaled, by=3), Scale(2), Scale(3), closed(2), closed(3)]
    parts += [closed(torch.ones(2)), closed(torch.zeros(2)), Scale(2).__call__, Scale(3).__call__, len, Scale, scaled]
    assert len({plugins.identity(part) for part in parts}) == len(parts)


def test_an_identity_stays_the_same() -> None:
    for make in (lambda: partial(scaled, by=2), lambda: Scale(2), lambda: closed(torch.ones(2)), lambda: scaled):
        assert plugins.identity(make()) == plugins.identity(make())
    assert plugins.identity(scaled).startswith(f"{scaled.__module__}:scaled, code ")
