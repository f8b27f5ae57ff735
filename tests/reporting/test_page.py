import re
from html.parser import HTMLParser

import pytest
import torch
from tables import make_table

from dynext.errors import SourceError
from dynext.policy.choose import choose
from dynext.reporting.page import write_page
from dynext.reporting.report import report

VOID = {"meta", "img", "path", "br", "use"}


class Balanced(HTMLParser):
    """Remembers the tags that are open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def section(name, **changes):
    table = make_table(120, **changes)
    policy = choose(table, max_drop=0.1)
    return name, table, policy, report(table, policy)


def test_one_page_that_loads_nothing(tmp_path):
    path = write_page(
        tmp_path / "deep" / "report.html",
        title="A net <script>alert(1)</script>",
        reports=[section("On <test> samples", basis="labels"), section("On others", rows="samples & more")],
        pictures={"first & last": torch.rand(70, 1, 9, 9), "color": torch.rand(2, 3, 9, 9)},
        timing={"batch 1": {"static": "4 ms", "dynamic": "<2 ms"}},
        provenance={"seed": 0},
    )
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "<script" not in page
    assert "On &lt;test&gt; samples" in page
    assert "samples &amp; more" in page
    assert "&lt;2 ms" in page
    # namespaces aside, every address is data or a place in the page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) > 10
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "url(http" not in page
    assert "@import" not in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.seen.count("svg") == 2 * 2 + 4 + 3  # front and histogram; reliability, not of the teacher itself
    assert parser.seen.count("img") == 2


def test_without_labels_the_word_is_agreement(tmp_path):
    page = write_page(tmp_path / "page.html", title="x", reports=[section("y", synthetic=True)]).read_text(
        encoding="utf-8"
    )
    assert "accuracy" not in page.lower()
    assert "agreement with the full net on synthesized samples" in page


def test_the_same_figures_give_the_same_page(tmp_path):
    first, again = (write_page(tmp_path / name, title="x", reports=[section("y")]).read_bytes() for name in "ab")
    assert first == again


def test_a_net_without_early_exits_has_a_page_too(tmp_path):
    page = write_page(tmp_path / "page.html", title="x", reports=[section("y", e=1)]).read_text(encoding="utf-8")
    assert "no exit is safe" in page


def test_pictures_of_another_shape_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"pictures of shape \[3, 2, 4, 4\]"):
        write_page(tmp_path / "page.html", title="x", reports=[], pictures={"odd": torch.rand(3, 2, 4, 4)})
    assert list(tmp_path.iterdir()) == []
