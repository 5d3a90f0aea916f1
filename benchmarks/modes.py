"""Modes covered by each adversarial loss: 25 Gaussians on a grid, and stacked MNIST's 1,000 digits.

    python benchmarks/modes.py grid [--steps 2000] [--output docs/benchmarks/modes.json]
    python benchmarks/modes.py stacked [--steps 2000] [--output docs/benchmarks/modes.json]

Every loss trains the same networks from the same seed through hfgen's objective, for the same
number of the generator's steps; WGAN-GP takes five of its critic for each. A mode is covered
when a sample falls into it; the reverse KL is KL(generated modes | uniform), in nats (Srivastava et
al. 2017, VEEGAN, section 4.1; Lin et al. 2018, PacGAN). Results of the losses that were run replace
those in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from hfgen.data import BatchStream, load_source
from hfgen.data.config import DataConfig
from hfgen.models.gan_dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.layers.gan import DiscriminatorOutput, GeneratorOutput
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_regularizers import GradientPenalty
from hfgen.rng import Rng


@dataclass(frozen=True)
class Contender:
    """A loss with what its paper wants beside it."""

    objective: GAN
    beta2: float = 0.99
    spectral_norm: bool = False


def contenders(gamma: float, penalty: float) -> dict[str, Contender]:
    """By name; ``gamma`` weighs R1 (and R2), ``penalty`` the gradient penalty of WGAN-GP."""
    hinge = GAN(adversarial_loss="hinge", r1_gamma=0.0)
    wgan_gp = GAN(
        adversarial_loss="wasserstein",
        r1_gamma=0.0,
        regularizers=(GradientPenalty(weight=penalty),),
        n_critic=5,
    )
    table = {name: Contender(objective) for name, objective in objectives(gamma).items()}
    return {
        **table,
        "hinge + spectral norm (SNGAN)": Contender(hinge, spectral_norm=True),
        "WGAN-GP": Contender(wgan_gp, beta2=0.9),  # Gulrajani et al. 2017, algorithm 1
    }


def objectives(gamma: float) -> dict[str, GAN]:
    """The losses that need nothing else."""
    plain: dict[str, Any] = {"r1_gamma": 0.0}
    r1: dict[str, Any] = {"r1_gamma": gamma, "r1_every": 1}
    pairing: dict[str, Any] = {"adversarial_loss": "relativistic_pairing"}
    return {
        "minimax": GAN(adversarial_loss="minimax", **plain),
        "non-saturating": GAN(**plain),
        "non-saturating + R1": GAN(**r1),
        "least squares": GAN(adversarial_loss="least_squares", **plain),
        "hinge": GAN(adversarial_loss="hinge", **plain),
        "relativistic average + R1": GAN(adversarial_loss="relativistic_average", **r1),
        "dual contrastive + R1": GAN(adversarial_loss="dual_contrastive", **r1),
        "relativistic pairing": GAN(**pairing, **plain),
        "R3GAN (pairing + R1 + R2)": GAN(**pairing, **r1, r2_gamma=gamma),
    }


def train(
    contender: Contender,
    models: Mapping[str, nn.Module],
    batch: Callable[[], Mapping[str, Tensor]],
    steps: int,
    rate: float,
) -> nn.Module:
    """Train the generator for ``steps`` steps of Adam and hand back its average."""
    objective = contender.objective
    steps *= objective.n_critic
    if contender.spectral_norm:
        normalise(models["discriminator"])
    average = torch.optim.swa_utils.AveragedModel(
        models["generator"],
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99),
        use_buffers=True,
    )
    optimizers = {
        role: torch.optim.Adam(model.parameters(), rate, betas=(0.0, contender.beta2))
        for role, model in models.items()
    }
    for step in range(steps):
        for phase in objective.phases:
            if step % phase.every:
                continue
            (role,) = phase.trains
            for name, model in models.items():
                model.requires_grad_(name == role)
            rows = batch()
            clock = Clock(step, step * len(rows["images"]), steps * len(rows["images"]))
            optimizers[role].zero_grad()
            rng = Rng(0, step, phase.name)
            objective.loss(phase.name, models, rows, rng, clock)[0].backward()
            optimizers[role].step()
        average.update_parameters(models["generator"])
    return average.module.eval()


def normalise(model: nn.Module) -> None:
    """Spectral norm (Miyato et al. 2018) on every layer with weights."""
    for layer in list(model.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.utils.parametrizations.spectral_norm(layer)


def reverse_kl(counts: Tensor) -> float:
    """KL(counts / sum | uniform) in nats."""
    share = counts[counts > 0] / counts.sum()
    return float((share * (share * len(counts)).log()).sum())


# -- 25 Gaussians: points are "images" of two channels and one pixel

STD, SIDE = 0.05, 5
CENTERS = torch.cartesian_prod(*[torch.linspace(-1, 1, SIDE)] * 2) * 2


class PointGenerator(nn.Module):
    config = FrozenDict(latent_dim=2, num_class_embeds=None)

    def __init__(self, width: int = 128):
        super().__init__()
        layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.ReLU())
        self.last = nn.Linear(width, 2)

    def forward(self, z: Tensor, class_labels: None = None) -> GeneratorOutput:
        return GeneratorOutput(sample=self.last(self.layers(z))[:, :, None, None])


class PointDiscriminator(nn.Module):
    config = FrozenDict(num_class_embeds=None)

    def __init__(self, width: int = 128):
        super().__init__()
        act = nn.LeakyReLU(0.2)
        layers = [nn.Linear(2, width), act, nn.Linear(width, width), act]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), act)
        self.head = nn.Linear(width, 1)

    def forward(self, sample: Tensor, class_labels: None = None) -> DiscriminatorOutput:
        features = self.layers(sample.flatten(1))
        return DiscriminatorOutput(logits=self.head(features).squeeze(1), features=features)


def grid(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Modes, reverse KL, and the share of samples within three standard deviations of a mode."""
    torch.manual_seed(options.seed)
    models = {"generator": PointGenerator(), "discriminator": PointDiscriminator()}
    draws = torch.Generator().manual_seed(options.seed)

    def batch() -> dict[str, Tensor]:
        which = torch.randint(SIDE**2, (256,), generator=draws)
        points = CENTERS[which] + STD * torch.randn(256, 2, generator=draws)
        return {"images": points[:, :, None, None]}

    generator = train(contender, models, batch, options.steps, 1e-3)
    with torch.no_grad():
        z = torch.randn(2500, 2, generator=torch.Generator().manual_seed(1))
        distance, nearest = torch.cdist(generator(z).sample.flatten(1), CENTERS).min(1)
    good = distance < 3 * STD
    counts = torch.bincount(nearest[good], minlength=SIDE**2).float()
    return {
        "modes": int((counts > 0).sum()),
        "reverse_kl": round(reverse_kl(counts), 3) if good.any() else None,
        "within_3_std": round(float(good.float().mean()), 3),
    }


# -- stacked MNIST


def judge() -> nn.Module:
    """A classifier of real digits, with its accuracy on the held-out ones in ``accuracy``."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 49, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    stream = BatchStream(load_source(DataConfig(path="mnist"), split="train"), 100, seed=0)
    for _ in range(500):
        rows = stream.rows(0, 100)
        stream.advance()
        optimizer.zero_grad()
        F.cross_entropy(model(rows["images"]), rows["labels"]).backward()
        optimizer.step()
    held_out = BatchStream(load_source(DataConfig(path="mnist"), split="validation"), 1000, seed=0)
    rows = held_out.rows(0, 1000)
    right = model.eval()(rows["images"]).argmax(1) == rows["labels"]
    model.accuracy = round(float(right.float().mean()), 4)  # type: ignore[assignment]
    return model


def stacked(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Modes among 1,000 and reverse KL of 25,600 samples, by a judge of real digits."""
    torch.manual_seed(options.seed)
    sizes: dict[str, Any] = {"sample_size": 28, "channels": 32}
    models = {
        "generator": DCGANGenerator(out_channels=3, latent_dim=64, **sizes),
        "discriminator": DCGANDiscriminator(in_channels=3, norm="none", **sizes),
    }
    source = load_source(DataConfig(path="stacked-mnist"), split="train")
    stream = BatchStream(source, 64, seed=options.seed)

    def batch() -> Mapping[str, Tensor]:
        rows = stream.rows(0, 64)
        stream.advance()
        return rows

    generator = train(contender, models, batch, options.steps, 5e-4)
    counts, digits = torch.zeros(1000), options.judge
    with torch.no_grad():
        for _ in range(100):
            images = generator(torch.randn(256, 64)).sample
            digit = digits(images.flatten(0, 1)[:, None]).argmax(1).unflatten(0, (256, 3))
            counts += torch.bincount(digit @ torch.tensor([100, 10, 1]), minlength=1000)
    return {"modes": int((counts > 0).sum()), "reverse_kl": round(reverse_kl(counts), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=("grid", "stacked"))
    parser.add_argument("--losses", nargs="+", help="some of them, by name; default all")
    parser.add_argument("--steps", type=int, default=2000, help="batches: 256 points, 64 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/modes.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    on_grid = options.task == "grid"
    table = contenders(0.1, 0.1) if on_grid else contenders(0.5, 10.0)
    for name in options.losses or table:
        if name not in table:
            parser.error(f"unknown loss {name!r}; valid: {', '.join(table)}")
    settings: dict[str, Any] = {"steps": options.steps}
    if not on_grid:
        options.judge = judge()
        settings["judge_accuracy"] = options.judge.accuracy
    for name in options.losses or table:
        began = time.process_time()
        result = (grid if on_grid else stacked)(table[name], options)
        result["cpu_seconds"] = math.ceil(time.process_time() - began)
        print(name, result, flush=True)
        keep(options.output, options.task, name, {**result, **settings})


def keep(path: Path, task: str, name: str, result: dict[str, Any]) -> None:
    """Write one row into the file."""
    table = json.loads(path.read_text()) if path.is_file() else {}
    table.setdefault(task, {})[name] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
