"""Awkward tiny nets. Each factory gives (model in eval mode, example), the same ones every time.

``NETS`` can be split with zero named layers; ``REFUSED`` cannot, or not where ``after`` says, and maps to what the
error must say.
"""

from __future__ import annotations

from collections.abc import Callable

from zoo.awkward import InPlacePreActivation, KeptWhole, ReadsSizesEarly, RootTensors, SharedWeights
from zoo.einops_vit import EinopsViT
from zoo.joined import DenseNorm, InceptionLike, LeNet, ShuffleLike
from zoo.making import ModelAndExample, build, conv, factory
from zoo.refused import REFUSED, TwoInputs
from zoo.used import AnyArguments, Masked, Remembering
from zoo.usual import ConvNeXtLike, DenseConcat, Plain, Residual, TwoBranches, UNetLike, ViTLike

__all__ = ["NETS", "REFUSED", "KeptWhole", "Residual", "TwoInputs", "build", "conv"]

NETS: dict[str, Callable[[], ModelAndExample]] = {
    "plain": factory(Plain),
    "residual": factory(Residual),
    "unet_like": factory(UNetLike),
    "dense_concat": factory(DenseConcat),
    "two_branches": factory(TwoBranches),
    "vit_like": factory(ViTLike),
    "shared_weights": factory(SharedWeights),
    "in_place_pre_activation": factory(InPlacePreActivation),
    "root_tensors": factory(RootTensors),
    "convnext_like": factory(ConvNeXtLike),
    "kept_whole": factory(KeptWhole),
    "reads_sizes_early": factory(ReadsSizesEarly),
    "einops_vit": factory(EinopsViT),
    "masked": factory(Masked),
    "remembering": factory(Remembering),
    "any_arguments": factory(AnyArguments),
    "dense_norm": factory(DenseNorm),
    "inception_like": factory(InceptionLike),
    "shuffle_like": factory(ShuffleLike),
    "lenet": factory(LeNet),
}
