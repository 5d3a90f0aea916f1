"""The module that is wrapped for DDP: one phase of an objective, with the models that it trains as
children.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hfgen.errors import one_of
from hfgen.objectives.base import Batch, Clock, Objective, Phase
from hfgen.rng import Rng


class PhaseModule(nn.Module):
    """Computes a phase's loss in ``forward``, so that gradients synchronise however the objective
    calls the models.

    The trained models are children (their gradients are reduced); all others are held in a plain
    dict, frozen. Wrapping the models instead would lose the synchronisation at every
    ``unwrap_model(m).encode(...)``. What the phase keeps is frozen before it is wrapped, since DDP
    waits for the gradient of everything else.

    Args:
        learns: of each trained role, ``learned`` of its model before any phase froze it.
    Raises:
        HfgenError: a part to keep that no trained model has.
    """

    def __init__(
        self,
        phase: Phase,
        objective: Objective,
        models: Mapping[str, object],
        learns: Mapping[str, list[nn.Parameter]],
    ):
        super().__init__()
        self.phase = phase
        self.trained = nn.ModuleDict({role: models[role] for role in phase.trains})  # type: ignore[misc]
        self._objective = objective
        self._models = dict(models)
        kept = _named(self.trained, phase.keeps)
        self._learns = [p for role in phase.trains for p in learns[role] if id(p) not in kept]
        self.unfreeze()

    def forward(self, batch: Batch, rng: Rng, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        return self._objective.loss(self.phase.name, self._models, batch, rng, clock)  # type: ignore[arg-type]

    def unfreeze(self) -> None:
        """Let exactly what this phase learns collect gradients."""
        for model in self._models.values():
            if isinstance(model, nn.Module):
                model.requires_grad_(False)
        for parameter in self._learns:
            parameter.requires_grad_(True)


def _named(models: nn.ModuleDict, keeps: tuple[str, ...]) -> set[int]:
    """The parameters that ``keeps`` means, by identity."""
    found: set[int] = set()
    for name in keeps:
        inside = [p for n, p in models.named_parameters() if f"{n}.".startswith(f"{name}.")]
        if not inside:
            depth = name.count(".") + 1
            parts = {".".join(n.split(".")[:depth]) for n, _ in models.named_parameters()}
            raise one_of("phase.keeps", name, sorted(parts))
        found |= {id(p) for p in inside}
    return found


def learned(model: nn.Module) -> list[nn.Parameter]:
    """What training changes of a model: what was left free when it was built. So low-rank adapters
    learn without the weights below them, and what a model freezes itself stays as it is: a
    backbone, or the frequencies of diffusers' ``GaussianFourierProjection``.
    """
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
