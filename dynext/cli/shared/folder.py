"""A dynamic net's folder as the commands leave it: net, table, pictures, and the page about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dynext.atomic import replaced_folder
from dynext.cli.shared.pictures import NAME, save_pictures
from dynext.cli.shared.show import page_facts
from dynext.io.artifact import CARD, FILES, PAGE, Artifact, save
from dynext.meta.start import FILE
from dynext.models.catalog import Opened
from dynext.net.dynamic_net import DynamicNet
from dynext.policy.policy import Policy
from dynext.policy.table import ExitTable
from dynext.reporting.page import write_page
from dynext.reporting.report import report


def write_folder(
    folder: Path,
    net: DynamicNet,
    origin: Artifact | Opened,
    *,
    policy: Policy,
    table: ExitTable,
    provenance: Mapping[str, Any],
    pictures: Mapping[str, Tensor],
    same_net: bool = False,
) -> None:
    """Everything at once: a folder that is already there stays whole until the new one is complete.

    Args:
        origin: what the net was made of: it says what is expected as input, how the static net is built again, and what
            its classes are called.
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
            spec=origin.spec,
            model_recipe=origin.recipe if isinstance(origin, Opened) else origin.model_recipe,
            class_names=origin.class_names,
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
