"""What a stage and a staged net say about themselves."""

import torch
from torch import nn
from zoo import NETS

from dynext.graph.split import split
from dynext.graph.stage import Stage, StagedNet

TABLE = """\
stage  ends after  live tensors    MACs  up to here  skippable
    0  stem        8x8x8         13,824       4.7 %  -
    1  layer1.0    8x8x8         73,728      29.9 %  yes
    2  layer1.1    8x8x8         73,728      55.1 %  yes
    3  layer2.0    16x4x4        57,344      74.7 %  -
    4  layer2.1    16x4x4        73,728      99.9 %  yes
    5  output      10               160     100.0 %  -"""


def test_table():
    staged = split(*NETS["residual"](), granularity="block")
    assert staged.table() == str(staged) == TABLE


def test_a_stage_always_gives_a_tuple():
    about = {"num_live_in": 1, "live": [((4,), torch.float32)], "tap": 0, "skippable": False, "macs": 0}
    x = torch.zeros(2, 4)
    assert Stage(nn.Identity(), name="a", **about)(x) == (x,)


def test_bytes():
    linear = nn.Linear(4, 3).double()
    live = [((3,), torch.float64), ((2, 5), torch.float16)]
    stage = Stage(linear, name="a", num_live_in=1, live=live, tap=0, skippable=False, macs=12)
    assert stage.param_bytes == (12 + 3) * 8
    assert stage.live_bytes == 3 * 8 + 10 * 2
    assert stage.live_shapes == ((3,), (2, 5))
    assert repr(stage).startswith("Stage('a', macs=12, skippable=False;")


def test_a_net_of_one_stage_has_no_cuts():
    stage = Stage(
        nn.Flatten(), name="output", num_live_in=1, live=[((4,), torch.float32)], tap=0, skippable=False, macs=0
    )
    net = StagedNet([stage], input_shape=(2, 2), num_classes=4, granularity="hand")
    assert net.cuts == ()
    assert net.macs == 0
    assert net(torch.zeros(3, 2, 2)).shape == (3, 4)
