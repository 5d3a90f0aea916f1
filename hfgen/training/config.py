"""Settings of the trainer. Counts of training are in images, so that they mean the same at any
batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _positive(**values: float | int | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _not_negative(**values: float | int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One optimizer per trained role; ``roles`` overrides settings for one of them.

    Attributes:
        type: adamw, adam, sgd, rmsprop or adafactor.
        lr_scheduler: a name of ``diffusers.optimization.get_scheduler`` (constant, linear, cosine,
            ...).
        lr_warmup_steps: training steps of linear warm-up, whatever the accumulation and the number
            of processes.
        lr_final_ratio: a decaying schedule ends at this share of the learning rate instead of at 0
            (R3GAN: 0.25).
        final_adam_beta2: the second moment's decay moves from ``adam_beta2`` to this along half a
            cosine over the run (Huang et al. 2024, R3GAN: 0.9 to 0.99).
        max_grad_norm: clip the gradient of each phase to this norm; null leaves it alone.
        roles: e.g. ``{discriminator: {learning_rate: 4.0e-4}}``.
    """

    type: Literal["adamw", "adam", "sgd", "rmsprop", "adafactor"] = "adamw"
    learning_rate: float = 1e-3
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    momentum: float = 0.0
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    lr_final_ratio: float = 0.0
    final_adam_beta2: float | None = None
    max_grad_norm: float | None = None
    roles: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive(learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        _not_negative(
            lr_warmup_steps=self.lr_warmup_steps, adam_weight_decay=self.adam_weight_decay
        )
        for name in ("adam_beta1", "adam_beta2", "final_adam_beta2", "lr_final_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        if self.final_adam_beta2 is not None and self.type not in ("adam", "adamw"):
            raise ValueError(f"final_adam_beta2: type {self.type} has no beta2; valid: adam, adamw")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch, precision and rhythm of a run.

    Attributes:
        total_images: length of the run, in images of real data batches. ``max_steps`` is accepted
            instead and wins.
        total_batch_size: images in one optimizer step, over all processes and micro-batches.
        gradient_accumulation_steps: micro-batches that a step is split into on each process.
        checkpoint_every, sample_every, evaluate_every: rhythm in images; null means ten checkpoints
        and five sample
            grids a run, and no evaluation before the end; 0 means never.
        best_metric: the metric of ``evaluate_every`` whose lowest value marks the best checkpoint.
        roll_backs: how often a run may return to its best checkpoint when the objective sees it go
            wrong (collapse, an overfitting discriminator). It goes on from there with fresh batches
            at half the learning rates; the counters go on as well, so that it ends when it would.
        resume_from_checkpoint: "latest" or a checkpoint's folder (short: ``--resume``).
        allow_recipe_change: lets a resumed run go on under a recipe that differs from the
            checkpoint's.
    """

    total_images: int = 1_000_000
    max_steps: int | None = None
    total_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    compile: bool = False
    channels_last: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = None
    checkpoints_total_limit: int | None = 3
    sample_every: int | None = None
    evaluate_every: int | None = None
    evaluate_num_images: int = 500
    best_metric: str = "fd"
    roll_backs: int = 0
    resume_from_checkpoint: str | None = None
    allow_recipe_change: bool = False

    def __post_init__(self) -> None:
        _positive(
            total_images=self.total_images,
            max_steps=self.max_steps,
            total_batch_size=self.total_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            checkpoints_total_limit=self.checkpoints_total_limit,
            evaluate_num_images=self.evaluate_num_images,
        )
        for name in ("checkpoint_every", "sample_every", "evaluate_every"):
            _not_negative(**{name: getattr(self, name)})
        _not_negative(roll_backs=self.roll_backs)
        if self.roll_backs and not self.evaluate_every:
            raise ValueError(
                "roll_backs needs evaluate_every: without it no checkpoint is the best"
            )

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.max_steps or -(-self.total_images // self.total_batch_size)


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving averages of the exported models (Karras et al. 2020, StyleGAN2-ADA; Karras
    et al. 2024, EDM2).

    Attributes:
        half_lives: half-life of each average, in images; the first is the one that is sampled and
            exported. Empty: none.
        rampup_ratio: the half-life grows as this share of the images seen, until it is reached;
            null for no ramp.
        ramp_images: the half-life grows from 0 along half a cosine over so many images instead
            (Huang et al. 2024, R3GAN); set ``rampup_ratio`` to null with it.
        sigma_rels: relative widths of power-function averages that are stored ``snapshots`` times
            a run, so that ``hfgen ema RUN --sigma-rel W`` makes a pipeline of any width afterwards;
            two of them, 0.05 and 0.1, are enough.
    """

    half_lives: tuple[int, ...] = (50_000,)
    rampup_ratio: float | None = 0.05
    ramp_images: int | None = None
    sigma_rels: tuple[float, ...] = ()
    snapshots: int = 16

    def __post_init__(self) -> None:
        _positive(snapshots=self.snapshots)
        for width in self.sigma_rels:
            if not 0 < width <= 12**-0.5:
                raise ValueError(f"sigma_rels must lie in (0, 0.2886], got {width}")
        for value in self.half_lives:
            _positive(half_lives=value)
        _positive(rampup_ratio=self.rampup_ratio, ramp_images=self.ramp_images)
        if self.ramp_images is not None and self.rampup_ratio is not None:
            raise ValueError("ramp_images wants rampup_ratio: null")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers and pictures go. ``metrics.jsonl`` in the run is always written.

    Attributes:
        report_to: trackers by name: tensorboard, trackio, wandb, or "none".
        logging_steps: how often the mean of the loss terms is written.
        num_sample_images: images in a sample grid.
        sample_prompts: texts that a text-conditional model draws for the grid, a row each; by
            default captions of the data.
        sample_call: further arguments of the pipeline's call for the grid and the measurements,
            e.g. ``{guidance_scale: 3.0}``.
        num_inference_steps: steps of a diffusion sampler for these grids; an export samples with
            its own number.
    """

    report_to: str | list[str] = "none"
    project_name: str = "hfgen"
    logging_steps: int = 50
    num_sample_images: int = 64
    sample_prompts: tuple[str, ...] = ()
    sample_call: dict[str, Any] = field(default_factory=dict)
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("logging_steps", "num_sample_images", "num_inference_steps"):
            _positive(**{name: getattr(self, name)})
        known = {"tensorboard", "trackio", "wandb", "none"}
        for name in self.trackers or ("none",):
            if name not in known:
                raise ValueError(
                    f"report_to: unknown tracker {name!r}; valid: {', '.join(sorted(known))}"
                )

    @property
    def trackers(self) -> list[str]:
        """The trackers asked for, without "none"."""
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in names if name != "none"]
