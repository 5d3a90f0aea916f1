"""One trainer for all families: it knows phases, not what they minimise."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hfgen.data import BatchStream
from hfgen.errors import HfgenError
from hfgen.memory import keep_freed_memory
from hfgen.objectives.base import Batch, Clock, Objective, Phase
from hfgen.rng import Rng, seed_from
from hfgen.training.checkpoints import Checkpoints, Snapshot, load_into, read_state
from hfgen.training.config import EMAConfig, OptimizerConfig, TrainingConfig
from hfgen.training.ema import EMA, PowerEMA
from hfgen.training.ema_snapshots import save_averages
from hfgen.training.log import Log, Progress
from hfgen.training.meter import Meter
from hfgen.training.optimizers import (
    beta2,
    build_optimizer,
    build_schedule,
    config_for_role,
    halve_rates,
    set_beta2,
)
from hfgen.training.phase import PhaseModule, learned
from hfgen.training.signals import StopFlag

Models = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Hooks:
    """What the composition root does with the models now and then; called on the main process only.

    Attributes:
        sample: draw a picture of the averaged models.
        evaluate: measure the averaged models; lower is better for ``training.best_metric``.
        saved: a checkpoint is on disk.
    """

    sample: Callable[[Models, int], None] = lambda models, images_seen: None
    evaluate: Callable[[Models], dict[str, float]] = lambda models: {}
    saved: Callable[[Models, Path], None] = lambda models, checkpoint: None


@dataclass
class Progression:
    """The counters that are the whole random state of a run."""

    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    roll_backs: int = 0


@dataclass
class _Speed:
    since: float = field(default_factory=time.perf_counter)
    images: int = 0


class Trainer:
    """Runs an objective's phases over a stream of batches.

    Args:
        accelerator: decides device, processes and precision.
        objective: what is minimised.
        models: every component by role; the ``nn.Module``s among them move to the device, the
            trained ones are checkpointed.
        exported: trained roles that an average follows and the pipeline holds.
        stream: endless global batches.
        recipe: YAML text that is kept in each checkpoint.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        objective: Objective,
        models: Mapping[str, Any],
        exported: tuple[str, ...],
        stream: BatchStream,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        ema: EMAConfig,
        log: Log,
        checkpoints: Checkpoints,
        recipe: str,
        hooks: Hooks,
    ):
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self._accelerator = accelerator
        self._objective = objective
        self._config = training
        self._max_grad_norm = optimizer.max_grad_norm
        self._stream = stream
        self._log = log
        self._checkpoints = checkpoints
        self._recipe = recipe
        self._hooks = hooks
        self._rows_per_process, self._rows = self._split(training)
        objective.check(models, self._rows, training.compile)
        self.now = Progression()
        self._meter = Meter()
        self._speed = _Speed()
        self._said: set[str] = set()

        self._phases = objective.phases
        roles = sorted({role for phase in self._phases for role in phase.trains})
        self.models: dict[str, nn.Module] = {role: models[role] for role in roles}
        state = [role for role in objective.extra_models() if role not in roles]
        self._state: dict[str, nn.Module] = {role: models[role] for role in state}
        self._place(models)
        followed = {role: self.models[role] for role in exported if role in roles}
        ramps = (ema.rampup_ratio, ema.ramp_images)
        self._emas = [EMA(followed, half, *ramps) for half in ema.half_lives]
        self._profiles = [PowerEMA(followed, width) for width in ema.sigma_rels]
        self._profile_every = -(-training.steps // ema.snapshots) * training.total_batch_size
        learns = {role: learned(model) for role, model in self.models.items()}
        settings = {role: config_for_role(optimizer, role) for role in roles}
        raw = {role: build_optimizer(settings[role], self.models[role]) for role in roles}
        self._modules = {
            phase.name: accelerator.prepare(PhaseModule(phase, objective, models, learns))
            for phase in self._phases
        }
        self._active: str | None = None
        self._moving = {r: raw[r] for r in roles if settings[r].final_adam_beta2 is not None}
        self._settings = settings
        self._schedules = {
            role: build_schedule(settings[role], raw[role], training.steps) for role in roles
        }
        # Accelerate's wrapper is there for the loss scaler of fp16; without one it only costs time.
        scaled = accelerator.scaler is not None
        self._optimizers = {r: accelerator.prepare(raw[r]) if scaled else raw[r] for r in roles}

    # -- the run

    def run(self) -> int:
        """Train to the end: 0; or to a signal: its number, after a checkpoint."""
        progress = Progress(
            self._config.steps, self.now.step, show=self._accelerator.is_main_process
        )
        self._speed = _Speed()
        try:
            with StopFlag() as stop:
                while self.now.step < self._config.steps:
                    self._meter.add(self.train_step())
                    progress.advance()
                    if self.now.step % self._log.every == 0 or self.now.step == self._config.steps:
                        progress.report(self.now.step, self._write_log())
                    finished = self.now.step == self._config.steps
                    stopped = self._largest(stop.number)
                    self._periodic(finished=finished, stopped=stopped > 0)
                    if stopped and not finished:
                        return stopped
        finally:
            progress.close()
        return 0

    def train_step(self) -> dict[str, Tensor]:
        """One training step: each due phase on its own batch, then schedules, counters,
        averages.
        """
        self._seed_global_draws()
        size = self._config.total_batch_size
        clock = Clock(self.now.step, self.now.images_seen, self._config.steps * size, size)
        for role, optimizer in self._moving.items():
            set_beta2(optimizer, beta2(self._settings[role], clock.progress()))
        terms: dict[str, Tensor] = {}
        for phase in self._phases:
            if self.now.step % phase.every == 0:
                terms.update(self._run_phase(phase, clock))
        for schedule in self._schedules.values():
            schedule.step()
        self.now.step += 1
        self.now.images_seen += self._config.total_batch_size
        for ema in (*self._emas, *self._profiles):
            ema.update(self.now.images_seen, self._config.total_batch_size)
        return terms

    def _seed_global_draws(self) -> None:
        """Make what is not drawn through ``Rng`` (dropout) a function of the step, for an exact
        resume.

        Not ``torch.manual_seed``: without a GPU it queues a call with a stack trace at every step.
        """
        seed = seed_from(self._config.seed, self.now.step, self._accelerator.process_index)
        torch.default_generator.manual_seed(seed)
        if self._accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _run_phase(self, phase: Phase, clock: Clock) -> dict[str, Tensor]:
        module = self._modules[phase.name]
        if self._active != phase.name:
            self._accelerator.unwrap_model(module).unfreeze()
            self._active = phase.name
        optimizers = [self._optimizers[role] for role in phase.trains]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        splits = self._config.gradient_accumulation_steps
        terms: dict[str, Tensor] = {}
        for split in range(splits):
            start = self._accelerator.process_index * self._rows_per_process + split * self._rows
            rng = Rng(
                self._config.seed,
                self.now.step,
                phase.name,
                start=start,
                device=self._accelerator.device,
            )
            last = split == splits - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(module):
                loss, new = module(self._batch(start), rng, clock)
                self._accelerator.backward(loss / splits)
            self._stop_if_not_finite(phase, loss, new)
            for name, value in new.items():
                terms[name] = terms[name] + value / splits if name in terms else value / splits
        self._clip(phase)
        for optimizer in optimizers:
            optimizer.step()
        if phase.data:
            self._stream.advance()
        return terms

    def _batch(self, start: int) -> Batch:
        batch = self._stream.rows(start, start + self._rows, device=self._accelerator.device)
        if self._config.channels_last:
            batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
        return batch

    def _clip(self, phase: Phase) -> None:
        if self._max_grad_norm is None:
            return
        if self._accelerator.scaler is not None:
            for role in phase.trains:
                self._accelerator.unscale_gradients(self._optimizers[role])
        parameters = [p for role in phase.trains for p in self.models[role].parameters()]
        nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)

    # -- what happens now and then

    def _periodic(self, *, finished: bool, stopped: bool) -> None:
        began = time.perf_counter()
        config = self._config
        total = config.steps * config.total_batch_size
        if self._due(config.sample_every, total // 5) or (finished and config.sample_every != 0):
            self._on_main(lambda: self._hooks.sample(self.averaged, self.now.images_seen))
        if self._profiles and (self._due(self._profile_every, 0) or finished):
            folder = self._checkpoints.folder.with_name("ema")
            self._on_main(lambda: save_averages(folder, self.now.images_seen, self._profiles))
        saved = self._due(config.checkpoint_every, total // 10) or finished or stopped
        if saved:
            self._stop_clock(began)
            self.save()
        if self._due(config.evaluate_every, 0):
            self._evaluate(saved)
        self._speed.since += time.perf_counter() - began

    def _due(self, every: int | None, default: int) -> bool:
        every = default if every is None else every
        seen, batch = self.now.images_seen, self._config.total_batch_size
        return bool(every) and seen // every > (seen - batch) // every

    def _evaluate(self, saved: bool) -> None:
        values: dict[str, float] = {}
        self._on_main(lambda: values.update(self._hooks.evaluate(self.averaged)))
        if not self._accelerator.is_main_process:
            return
        self._log.write(self.now.step, {"images_seen": self.now.images_seen, **values})
        best = self._checkpoints.best()
        value = values.get(self._config.best_metric)
        if value is None:
            raise HfgenError(
                f"training.best_metric: {self._config.best_metric!r} was not measured; "
                f"measured: {', '.join(values)}"
            )
        if best is None or value < best["value"]:
            path = self._checkpoints.latest() if saved else self._checkpoints.save(self.snapshot())
            if path is not None:
                self._checkpoints.mark_best(path, self._config.best_metric, value)

    def _write_log(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self._speed.since
        images = self.now.images_seen - self._speed.images
        values = self._meter.reduce(self._accelerator)
        self._say_symptoms(values)
        values["images_per_second"] = images / elapsed if elapsed > 0 else 0.0
        for role, schedule in self._schedules.items():
            values[f"lr/{role}"] = float(schedule.get_last_lr()[0])
        self._stop_clock(time.perf_counter())
        self._log.write(
            self.now.step,
            {"images_seen": self.now.images_seen, "seconds": round(self.now.seconds, 3), **values},
        )
        return values

    def _say_symptoms(self, values: Mapping[str, float]) -> None:
        """One line for each trouble that the objective sees in the logged means, once in a run;
        and back to the best checkpoint, as often as that is allowed.
        """
        size = self._config.total_batch_size
        clock = Clock(self.now.step, self.now.images_seen, self._config.steps * size, size)
        symptoms = self._objective.symptoms(values, clock)
        for name, line in symptoms.items():
            if name not in self._said:
                self._say(f"warning: {name} at step {self.now.step}: {line}")
            self._said.add(name)
        if symptoms and self.now.roll_backs < self._config.roll_backs:
            self._roll_back(", ".join(symptoms))

    def _roll_back(self, reason: str) -> None:
        """Weights, averages and moments of the best checkpoint; the counters go on, so that what
        comes is not what came, and the learning rates are halved.
        """
        self._accelerator.wait_for_everyone()
        best = self._checkpoints.best()
        if best is None:
            return
        optimizers = load_into(
            self._checkpoints.folder / best["checkpoint"], self._modules_to_save()
        )
        for role, values in optimizers["optimizers"].items():
            self._optimizers[role].load_state_dict(values)
            halve_rates(self._schedules[role])
        self.now.roll_backs += 1
        self._say(
            f"rolled back to {best['checkpoint']} ({best['metric']} {best['value']:.4g}) at step "
            f"{self.now.step} for {reason}; learning rates halved"
        )

    def _say(self, line: str) -> None:
        if self._accelerator.is_main_process:
            print(line, file=sys.stderr)

    def _stop_clock(self, until: float) -> None:
        """Add the time since the last look to the seconds of training (sampling and saving do not
        count).
        """
        self.now.seconds += until - self._speed.since
        self._speed = _Speed(since=until, images=self.now.images_seen)

    # -- state

    @property
    def averaged(self) -> dict[str, nn.Module]:
        """The trained models with the first average in place of those that it follows."""
        return {**self.models, **(self._emas[0].models if self._emas else {})}

    def save(self) -> None:
        """Write a checkpoint (main process) and wait for it."""

        def write() -> None:
            path = self._checkpoints.save(self.snapshot())
            self._hooks.saved(self.averaged, path)

        self._on_main(write)

    def snapshot(self) -> Snapshot:
        """All that must survive a restart."""
        optimizers: dict[str, Any] = {
            "optimizers": {role: o.state_dict() for role, o in self._optimizers.items()},
            "schedules": {role: s.state_dict() for role, s in self._schedules.items()},
        }
        if self._accelerator.scaler is not None:
            optimizers["scaler"] = self._accelerator.scaler.state_dict()
        state = {**vars(self.now), "stream": self._stream.state_dict()}
        return Snapshot(self._modules_to_save(), optimizers, state, self._recipe)

    def restore(self, checkpoint: Path) -> None:
        """Continue from ``checkpoint`` as if nothing had happened."""
        state = read_state(checkpoint)
        optimizers = load_into(checkpoint, self._modules_to_save())
        for role, values in optimizers["optimizers"].items():
            self._optimizers[role].load_state_dict(values)
        for role, values in optimizers["schedules"].items():
            self._schedules[role].load_state_dict(values)
        if self._accelerator.scaler is not None and "scaler" in optimizers:
            self._accelerator.scaler.load_state_dict(optimizers["scaler"])
        counted = (state["step"], state["images_seen"], state["seconds"])
        self.now = Progression(*counted, state.get("roll_backs", 0))
        self._speed.images = self.now.images_seen
        self._stream.load_state_dict(state["stream"])
        self._log.rewind(self.now.step)
        self._accelerator.wait_for_everyone()

    def _modules_to_save(self) -> dict[str, nn.Module]:
        averages = {
            f"{kind}{i}-{role}": m
            for kind, emas in (("ema", self._emas), ("profile", self._profiles))
            for i, ema in enumerate(emas)
            for role, m in ema.models.items()
        }
        return {**self.models, **self._state, **averages}

    # -- processes and devices

    def _split(self, config: TrainingConfig) -> tuple[int, int]:
        processes, splits = self._accelerator.num_processes, config.gradient_accumulation_steps
        if config.total_batch_size % (processes * splits):
            raise HfgenError(
                f"training.total_batch_size: {config.total_batch_size} is not divisible by "
                f"{processes} process(es) x "
                f"{splits} gradient_accumulation_steps"
            )
        per_process = config.total_batch_size // processes
        return per_process, per_process // splits

    def _place(self, models: Mapping[str, Any]) -> None:
        for role, model in models.items():
            if not isinstance(model, nn.Module):
                continue
            layout = torch.channels_last if self._config.channels_last else torch.preserve_format
            model.to(self._accelerator.device, memory_format=layout)  # type: ignore[call-overload]
            model.train(role in self.models)
            if self._config.gradient_checkpointing and role in self.models:
                _enable_checkpointing(role, model)
            if self._config.compile and role in self.models:
                model.compile()

    def _on_main(self, action: Callable[[], None]) -> None:
        if self._accelerator.is_main_process:
            action()
        self._accelerator.wait_for_everyone()

    def _largest(self, number: int) -> int:
        """The largest number over the processes, so that they agree on what to do."""
        if self._accelerator.num_processes == 1:
            return number
        everyone = self._accelerator.gather(torch.tensor([number], device=self._accelerator.device))
        return int(everyone.max())  # type: ignore[union-attr]

    def _stop_if_not_finite(self, phase: Phase, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        if not self._largest(int(not torch.isfinite(loss.detach()))):
            return
        broken = [name for name, value in terms.items() if not bool(torch.isfinite(value).all())]
        where = f"step {self.now.step}, phase {phase.name!r}, term(s) {', '.join(broken) or 'loss'}"
        finite = all(
            bool(torch.isfinite(p).all())
            for model in self.models.values()
            for p in model.parameters()
        )
        if finite:
            self.save()
        latest = self._checkpoints.latest()
        raise HfgenError(
            f"loss is not finite at {where}; last finite state: {latest or 'none'}. "
            "Try a lower optimizer.learning_rate, optimizer.max_grad_norm 1.0 or "
            "mixed_precision bf16 instead of fp16"
        )


def _enable_checkpointing(role: str, model: nn.Module) -> None:
    enable = getattr(model, "enable_gradient_checkpointing", None)
    if enable is None or not getattr(model, "_supports_gradient_checkpointing", False):
        raise HfgenError(
            f"training.gradient_checkpointing: {type(model).__name__} (role {role}) does not "
            f"support it"
        )
    enable()
