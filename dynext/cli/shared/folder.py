"""A dynamic net's folder as the commands leave it: net, table, pictures, and the page about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dynext.atomic import replaced_folder
from dynext.cli.shared.pictures import NAME, save_pictures
from dynext.cli.shared.show import page_facts
from dynext.io.artifact import CARD, FILES, PAGE, save
from dynext.meta.start import FILE
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.page import write_page
from dynext.reporting.report import report
from dynext.types import InputSpec


def write_folder(
    folder: Path,
    net: DynamicNet,
    *,
    policy: Policy,
    table: ExitTable,
    spec: InputSpec,
    model_recipe: Mapping[str, Any] | None,
    class_names: Sequence[str] | None,
    provenance: Mapping[str, Any],
    pictures: Mapping[str, Tensor],
    same_net: bool = False,
) -> None:
    """Everything at once: a folder that is already there stays whole until the new one is complete.

    Args:
        same_net: the net is the one that was there. Another one does not start where that was meta-trained to.
    """
    told, timing = page_facts(provenance)
    shown = ("The samples that thresholds were chosen on", table, policy, report(table, policy))
    owned = (*FILES, NAME) if same_net else (*FILES, NAME, FILE)
    with replaced_folder(folder, mark=CARD, owned=owned) as partial:
        save(
            net,
            partial,
            policy=policy,
            spec=spec,
            model_recipe=model_recipe,
            class_names=class_names,
            table=table,
            provenance=provenance,
        )
        write_page(
            partial / PAGE,
            title=f"{provenance.get('model', folder.name)}, made dynamic",
            reports=[shown],
            pictures=pictures,
            timing=timing,
            provenance=told,
        )
        save_pictures(partial, pictures)
