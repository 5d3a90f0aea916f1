"""The module that is wrapped for DDP: one phase of an objective, with the models that it trains as
children.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hfgen.objectives.base import Batch, Clock, Objective, Phase
from hfgen.rng import Rng


class PhaseModule(nn.Module):
    """Computes a phase's loss in ``forward``, so that gradients synchronise however the objective
    calls the models.

    The trained models are children (their gradients are reduced); all others are held in a plain
    dict, frozen. Wrapping the models instead would lose the synchronisation at every
    ``unwrap_model(m).encode(...)``.
    """

    def __init__(self, phase: Phase, objective: Objective, models: Mapping[str, object]):
        super().__init__()
        self.phase = phase
        self.trained = nn.ModuleDict({role: models[role] for role in phase.trains})  # type: ignore[misc]
        self._objective = objective
        self._models = dict(models)

    def forward(self, batch: Batch, rng: Rng, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        return self._objective.loss(self.phase.name, self._models, batch, rng, clock)  # type: ignore[arg-type]

    def unfreeze(self) -> None:
        """Let exactly the models of this phase collect gradients."""
        for role, model in self._models.items():
            if isinstance(model, nn.Module):
                model.requires_grad_(False)
                for parameter in learned(model) if role in self.trained else ():
                    parameter.requires_grad_(True)


def learned(model: nn.Module) -> list[nn.Parameter]:
    """What training changes: the low-rank adapters where peft has put some, else everything."""
    adapters = [value for name, value in model.named_parameters() if ".lora_" in name]
    return adapters or list(model.parameters())
