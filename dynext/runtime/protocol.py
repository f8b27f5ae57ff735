"""What a net offers to be executed. The runtime knows this and no net in particular."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dynext.graph import StagedNet
from dynext.modules.exits import Exit
from dynext.modules.gates import Gates
from dynext.modules.modes import Modal
from dynext.policy.policy import Policy
from dynext.runtime.cost import CostTable


class Runnable(Modal, Protocol):
    """Stages, exits between them, perhaps gates before them, perhaps measured costs. A `DynamicNet` is one.

    Shapes: e exits (the last is the full net), k classes.
    """

    staged: StagedNet
    gates: Gates | None
    cost: CostTable | None

    @property
    def exits(self) -> Sequence[Exit]: ...

    @property
    def exit_stages(self) -> tuple[int, ...]: ...

    @property
    def num_exits(self) -> int: ...

    @property
    def num_gates(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def check_policy(self, policy: Policy) -> None: ...
