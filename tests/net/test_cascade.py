"""Exits that build on those before them: what each rule says, what it costs, and that nothing else need know."""

import itertools
from pathlib import Path

import pytest
import torch
from reference import losses as slow
from torch import nn
from zoo import NETS

import dynext as dx
from dynext.errors import SplitError
from dynext.net.cascade import Stacked, cascade, links_of
from dynext.net.collect import table_of
from dynext.testing import check_net

RULES = ("stack", "inline", "boost", "mean", "surest")
EVERY = pytest.mark.parametrize("rule", RULES)


def plain(name: str = "residual") -> tuple[dx.DynamicNet, torch.Tensor]:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example, after=[0.25, 0.5, 0.75]), dx.heads.conv_heads(10, hidden=8, separable=0))
    return net, torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(2))


def scattered(net: dx.DynamicNet) -> dx.DynamicNet:
    """With what the cascade adds away from its neutral start."""
    draw = torch.Generator().manual_seed(5)
    for link in links_of(net):
        for name, parameter in link.named_parameters():
            if not name.startswith("exit."):
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return net


@EVERY
@pytest.mark.parametrize("name", ["residual", "unet_like", "vit_like"])
def test_a_cascade_is_a_net_like_any_other(rule: str, name: str) -> None:
    model, example = NETS[name]()
    net = dx.attach(dx.split(model, example, after=[0.3, 0.6]), dx.default_heads(10))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    cascaded = scattered(cascade(net, rule))
    x = torch.randn(12, *example.shape[1:], generator=torch.Generator().manual_seed(2))
    check_net(cascaded, x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert cascaded.num_exits == net.num_exits + (rule in ("mean", "surest"))
    assert cascaded.exit_names[:2] == net.exit_names[:2]


@EVERY
def test_answers_that_a_run_overwrites_are_not_live_tensors(rule: str) -> None:
    net, x = plain()
    cascaded = scattered(cascade(net, rule))
    with torch.no_grad():
        table = table_of(cascaded, cascaded.all_exits(x), label_n=None, rows="made-up samples")
    high_e = table.logits_nek.softmax(-1).amax(-1).quantile(0.8, dim=0).tolist()
    policy = dx.Policy(threshold_e=(*high_e[:-1], 0.0), temperature_e=(1.0,) * cascaded.num_exits)
    expected = dx.simulate(table, policy)
    left = set(expected.exit_n.tolist())
    assert cascaded.num_exits - 1 in left
    assert len(left) > 1
    for compact in ("never", "always"):
        out = cascaded.run(x, policy, compact=compact)
        assert out.exit.tolist() == expected.exit_n.tolist()
        torch.testing.assert_close(out.logits, table.logits_nek[torch.arange(12), out.exit], rtol=1e-4, atol=1e-5)


def test_stacked_heads_see_earlier_logits_and_exits_answer_with_a_geometric_mean() -> None:
    net, x = plain()
    cascaded = scattered(cascade(net, "stack"))
    taps, final = net.taps(x)
    logits_e: list[torch.Tensor] = []
    with torch.no_grad():
        answers = cascaded.all_exits(x)
        for e, (link, tap) in enumerate(zip(links_of(cascaded), taps, strict=True)):
            assert isinstance(link, Stacked)
            embedding, weight = link.exit.embed(tap), link.exit.classifier.weight
            own = embedding @ weight.T + link.exit.classifier.bias
            if e:  # the layer on both side by side
                former = nn.functional.layer_norm(logits_e[-1], (10,), link.norm.weight, link.norm.bias)
                both = torch.cat([weight, link.recycle.weight], dim=1)
                own = torch.cat([embedding, former], dim=1) @ both.T + link.exit.classifier.bias
            logits_e.append(own)
            expected = slow.stacked(torch.stack(logits_e).numpy(), link.weight.numpy(), link.bias.numpy())
            torch.testing.assert_close(answers[:, e].numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[:, -1], final, rtol=0, atol=0)


def test_no_gradient_goes_from_a_head_or_a_mean_to_another_head() -> None:
    net, x = plain()
    links = links_of(scattered(cascade(net, "stack")))
    taps, _ = net.taps(x)
    first = links[0].own(links[0].exit.reduce(taps[0]), ())
    second = links[1].own(links[1].exit.reduce(taps[1]), (first,))
    links[1].answer((first, second)).sum().backward()
    assert all(p.grad is None for link in links for p in link.exit.parameters())
    second.sum().backward()
    assert all(p.grad is None for p in links[0].exit.parameters())
    assert links[1].recycle.weight.grad is not None


def test_boosting_adds_half_of_the_answer_before() -> None:
    net, x = plain()
    with torch.no_grad():
        own_ebk = net.all_exits(x).transpose(0, 1)
        cascaded = cascade(net, "boost").all_exits(x).transpose(0, 1)
    torch.testing.assert_close(cascaded.numpy(), slow.boosted(own_ebk.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "surest"])
def test_together_exits_have_the_last_word(rule: str) -> None:
    net, x = plain()
    with torch.no_grad():
        own, cascaded = net.all_exits(x), cascade(net, rule).all_exits(x)
    torch.testing.assert_close(cascaded[:, :-1], own)
    surest_b = own.softmax(-1).amax(-1).argmax(1)
    expected = own.mean(1) if rule == "mean" else own[torch.arange(12), surest_b]
    torch.testing.assert_close(cascaded[:, -1], expected)
    assert len(set(surest_b.tolist())) > 1


def test_an_untrained_collaboration_joins_the_embedding() -> None:
    net, x = plain()
    cascaded = cascade(net, "inline")
    links, (taps, _) = links_of(cascaded), net.taps(x)
    with torch.no_grad():
        first = links[0].exit(taps[0])
        widened = links[1].widen(first)
        classifier = links[1].exit.classifier
        both = torch.cat([classifier.weight, links[1].recycle.weight], dim=1)
        expected = torch.cat([links[1].exit.embed(taps[1]), widened], dim=1) @ both.T + classifier.bias
        torch.testing.assert_close(cascaded.all_exits(x)[:, 1], expected, rtol=1e-4, atol=1e-5)
    assert widened.shape[1] == classifier.in_features


@EVERY
def test_heads_cost_what_they_cost_and_exits_nothing_more(rule: str) -> None:
    net, _ = plain()
    cascaded = cascade(net, rule)
    heads = list(itertools.accumulate(net.head_macs_e))
    extra = [a - b - c for a, b, c in zip(cascaded.trunk_macs_e, net.trunk_macs_e, heads, strict=False)]
    added = {"stack": 100, "inline": 2 * 10 * net.exits[0].classifier.in_features}.get(rule, 0)
    assert extra == [0, added, 2 * added, 2 * added]
    assert set(cascaded.head_macs_e) == {0}


@EVERY
def test_a_cascade_is_saved_and_comes_back(rule: str, tmp_path: Path) -> None:
    opened = dx.open_model("cifar:resnet8", arguments={"width": 2})
    staged = dx.split(opened.model, torch.zeros(1, 3, 32, 32), after=["layer1", "layer2"])
    net = scattered(cascade(dx.attach(staged, dx.heads.pooled_heads(10)), rule))
    policy = dx.Policy.always(net.num_exits)
    dx.save(net, tmp_path / "net", policy=policy, spec=opened.spec, model_recipe=opened.recipe)
    again = dx.load(tmp_path / "net").net
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.all_exits(x), net.all_exits(x), rtol=0, atol=0)
    assert again.cascade == net.cascade


def test_what_is_no_cascade_is_refused() -> None:
    net, _ = plain()
    with pytest.raises(SplitError, match="rule 'pile' on a net with 3 early exits, not yet a cascade"):
        cascade(net, "pile")
    with pytest.raises(SplitError, match="already a cascade"):
        cascade(cascade(net, "boost"), "boost")
    with pytest.raises(SplitError, match="0 early exits"):
        cascade(dx.DynamicNet(net.staged, []), "mean")
    assert cascade(net, "stack", seed=1).state_dict().keys() == cascade(net, "stack").state_dict().keys()
