"""The ``hub`` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """What of a run is shared, and when. A token is never stored: it comes from ``hf auth login``
    or ``HF_TOKEN``.

    Attributes:
        push_to_hub: push the pipeline, its card and its recipe when training ends.
        hub_model_id: "user/name"; required with ``push_to_hub``.
        private: create the repository as private; an existing one keeps what it is.
        strategy: "end" pushes once; "every_save" also while training goes on; "checkpoint" pushes
            the newest training checkpoint along, so that ``hfgen train user/name --resume`` goes on
            elsewhere.
        push_every_images: with "every_save" and "checkpoint", the images between two pushes; null
            pushes at each save.
        license: an identifier of the Hub ("apache-2.0", "cc-by-4.0"); null is shown as unknown.
    """

    push_to_hub: bool = False
    hub_model_id: str | None = None
    private: bool = False
    strategy: Literal["end", "every_save", "checkpoint"] = "end"
    push_every_images: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, as in 'user/name'")
        if self.push_every_images is not None and self.push_every_images <= 0:
            raise ValueError(f"push_every_images must be positive, got {self.push_every_images}")
        if self.push_every_images is not None and self.strategy == "end":
            raise ValueError(
                "push_every_images has no effect with strategy 'end'; valid: every_save, checkpoint"
            )
