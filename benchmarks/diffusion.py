"""Training of diffusion models beside diffusers' train_unconditional.py loop and
denoising-diffusion-pytorch's Trainer: the same network, data, batch and precision.

    python benchmarks/diffusion.py speed      # images per CPU-second, fp32
    python benchmarks/diffusion.py memory     # peak resident memory, a process each
    python benchmarks/diffusion.py precision  # the pixel transformer: fp32, bf16, bf16 compiled
    python benchmarks/diffusion.py precision_memory
    python benchmarks/diffusion.py quality    # FD after the same CPU time on MNIST

Each part is written into docs/benchmarks/diffusion.json. CPU-seconds of one thread, rounds
interleaved, medians, because the machine is shared; for ``speed`` each side has a process. All
three clip the gradient to 1 and keep an average of the weights, as both peers do. Peer: `pip
install --no-deps denoising-diffusion-pytorch ema-pytorch einops`; of torchvision, which it imports,
six transforms on PIL images stand in.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hfgen import recipe as recipes
from hfgen.data import BatchStream, DataConfig, TensorSource, load_source
from hfgen.environment import describe
from hfgen.evaluation import evaluate
from hfgen.evaluation.images import SourceImages
from hfgen.models.transformer_pixel import PixelTransformer
from hfgen.objectives.base import Objective
from hfgen.objectives.diffusion import Diffusion
from hfgen.run import train_recipe
from hfgen.training.checkpoints import Checkpoints
from hfgen.training.config import EMAConfig, LoggingConfig, OptimizerConfig, TrainingConfig
from hfgen.training.log import Log
from hfgen.training.trainer import Hooks, Trainer

RESULT = Path(__file__).parents[1] / "docs" / "benchmarks" / "diffusion.json"
SIDES = ("hfgen", "diffusers train_unconditional", "denoising-diffusion-pytorch")
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32 eager": {},
    "bf16 eager": {"mixed_precision": "bf16"},
    "bf16 compiled": {"mixed_precision": "bf16", "compile": True},
}
Steps = Callable[[int], None]
"""Takes so many training steps."""
Timed = Callable[[int], float]
"""Takes so many training steps and says their CPU-seconds."""


def unet(size: int, channels: int) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def write_pngs(pixels: Tensor, folder: Path) -> Path:
    """Images as the files that both peers read."""
    folder.mkdir()
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image.squeeze()).save(folder / f"{i:05d}.png")
    return folder


# --- the three sides


def ours(
    objective: Objective, models: dict[str, Any], pixels: Tensor, batch: int, **training: Any
) -> Steps:
    """hfgen's trainer with everything on: data, clipping, an average."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=training.get("mixed_precision", "no"))
    folder = Path(tempfile.mkdtemp())
    trainer = Trainer(
        accelerator=accelerator,
        objective=objective,
        models=models,
        exported=("unet",),
        stream=BatchStream(TensorSource(pixels), batch, seed=0, random_flip=True),
        training=TrainingConfig(total_batch_size=batch, max_steps=10**9, **training),
        optimizer=OptimizerConfig(learning_rate=1e-4, max_grad_norm=1.0),
        ema=EMAConfig(half_lives=(10_000,)),
        log=Log(accelerator, LoggingConfig(), folder),
        checkpoints=Checkpoints(folder, 1),
        recipe="",
        hooks=Hooks(),
    )

    def steps(count: int) -> None:
        for _ in range(count):
            trainer.train_step()

    return steps


class TrainUnconditional:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py, with
    its defaults: images decoded and transformed in the loader, AdamW(0.95, 0.999, decay 1e-6),
    cosine schedule, gradient clipping, EMA with inverse gamma 1 and power 3/4.
    """

    def __init__(self, model: UNet2DModel, folder: Path, batch: int, lr: float, total: int):
        from datasets import load_dataset

        AcceleratorState._reset_state()
        self.accelerator = Accelerator()
        grey = model.config["in_channels"] == 1
        size = model.config["sample_size"]

        def augment(image: Image.Image) -> Tensor:
            image = image.convert("L" if grey else "RGB").resize(
                (size, size), Image.Resampling.BILINEAR
            )
            array = np.asarray(image, dtype=np.float32).reshape(size, size, -1) / 255
            return (torch.from_numpy(array).permute(2, 0, 1) - 0.5) / 0.5

        data: Any = load_dataset("imagefolder", data_dir=str(folder), split="train")
        data.set_transform(lambda rows: {"input": [augment(image) for image in rows["image"]]})
        loader = DataLoader(data, batch_size=batch, shuffle=True, num_workers=0)
        self.ema = EMAModel(
            model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=UNet2DModel,
            model_config=model.config,
        )
        self.noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        schedule = get_scheduler(
            "cosine", optimizer, num_warmup_steps=min(500, total // 10), num_training_steps=total
        )
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule
        )
        self._batches = iter(())

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._step(self._next()["input"])

    def _next(self) -> dict[str, Tensor]:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def _step(self, clean: Tensor) -> None:
        noise = torch.randn(clean.shape)
        steps: Any = torch.randint(0, self.noise.config["num_train_timesteps"], (len(clean),))
        noisy = self.noise.add_noise(clean, noise, steps)
        with self.accelerator.accumulate(self.model):
            output = self.model(noisy, steps).sample
            loss = nn.functional.mse_loss(output.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        loss.detach().item()  # it logs the loss of every step


class _Adapter(nn.Module):
    """diffusers' UNet behind the names that denoising-diffusion-pytorch asks for."""

    def __init__(self, network: UNet2DModel):
        super().__init__()
        self.network = network
        self.channels = self.out_dim = network.config["in_channels"]
        self.self_condition = self.random_or_learned_sinusoidal_cond = False

    def forward(self, x: Tensor, time: Tensor, self_cond: Any = None) -> Tensor:
        return self.network(x, time).sample


class PytorchTrainer:
    """denoising-diffusion-pytorch's Trainer and GaussianDiffusion, as they are, over the same UNet.

    Its loader's worker processes are set to 0, so that their CPU time is counted.
    """

    def __init__(self, model: UNet2DModel, folder: Path, batch: int, lr: float, flip: bool):
        _stand_in_for_torchvision()
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as peer

        AcceleratorState._reset_state()
        peer.cpu_count = lambda: 0
        diffusion = peer.GaussianDiffusion(
            _Adapter(model),
            image_size=model.config["sample_size"],
            timesteps=1000,
            sampling_timesteps=50,
        )
        self.trainer = peer.Trainer(
            diffusion,
            str(folder),
            train_batch_size=batch,
            train_lr=lr,
            augment_horizontal_flip=flip,
            save_and_sample_every=10**9,
            results_folder=tempfile.mkdtemp(),
            calculate_fid=False,
            num_samples=1,
        )

    def __call__(self, count: int) -> None:
        self.trainer.train_num_steps = self.trainer.step + count
        self.trainer.train()


def _stand_in_for_torchvision() -> None:
    """The transforms that the peer's data set uses, on PIL images of the right size."""

    def compose(parts: list[Any]) -> Any:
        def apply(image: Any) -> Any:
            for part in parts:
                image = part(image)
            return image

        return apply

    def to_tensor(image: Image.Image) -> Tensor:
        array = np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)
        return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)

    def flip(image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image

    transforms = ModuleType("torchvision.transforms")
    parts: dict[str, Any] = {
        "Compose": compose,
        "Lambda": lambda function: function,
        "Resize": lambda size: lambda image: image.resize(size, Image.Resampling.BILINEAR),
        "RandomHorizontalFlip": lambda: flip,
        "CenterCrop": lambda size: lambda image: image,
        "ToTensor": lambda: to_tensor,
    }
    vars(transforms).update(parts)
    module, utils = ModuleType("torchvision"), ModuleType("torchvision.utils")
    vars(module).update(transforms=transforms, utils=utils)
    sys.modules.update(
        {"torchvision": module, "torchvision.transforms": transforms, "torchvision.utils": utils}
    )


def build_side(name: str, pixels: Tensor, folder: Path, batch: int) -> Steps:
    """One of ``SIDES`` on the same network, fp32."""
    model = unet(pixels.shape[-1], pixels.shape[1])
    if name == "hfgen":
        models = {"unet": model, "scheduler": DDPMScheduler()}
        return ours(Diffusion(), models, pixels, batch)
    if name == "denoising-diffusion-pytorch":
        return PytorchTrainer(model, folder, batch, 1e-4, flip=True)
    return TrainUnconditional(model, folder, batch, 1e-4, total=10_000)


# --- the parts


def race(sides: dict[str, Timed], batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Median images per CPU-second, rounds interleaved; the first round warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, take in sides.items():
            seconds = take(steps)
            if number:
                speeds[name].append(steps * batch / seconds)
    return {name: round(statistics.median(values), 1) for name, values in speeds.items()}


def timed(take: Steps) -> Timed:
    """``take`` with its CPU-seconds as result."""

    def seconds(count: int) -> float:
        began = time.process_time()
        take(count)
        return time.process_time() - began

    return seconds


class Worker:
    """A side in a process of its own, which waits while others run: hfgen's trainer tells the C
    library to keep freed memory, which would help a peer in the same process.
    """

    def __init__(self, side: str, folder: Path, batch: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (side, folder, batch, theirs)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()

    def __call__(self, count: int) -> float:
        self.pipe.send(count)
        return self.pipe.recv()


def _serve(side: str, folder: Path, batch: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    take = timed(build_side(side, emoji(), folder, batch))
    for count in iter(pipe.recv, None):
        pipe.send(take(count))


def emoji(count: int = 512) -> Tensor:
    return load_source(DataConfig(path="emoji")).pixels(range(count))


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """The three sides at one UNet, fp32."""
    pixels = emoji()
    folder = write_pngs(pixels, Path(tempfile.mkdtemp()) / "png")
    sides = {name: Worker(name, folder, 32) for name in SIDES}
    found = race(sides, 32, options.steps, options.rounds)
    for worker in sides.values():
        worker.pipe.send(None)
    ratios = {name: round(found["hfgen"] / found[name], 3) for name in SIDES[1:]}
    return {"images_per_cpu_second": found, "hfgen_over": ratios, "batch": 32, "network": "32x32x3"}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of four steps, each side in a process of its own."""
    return {"peak_mebibytes": {name: _peak(name) for name in SIDES}}


def _peak(side: str) -> int:
    """Mebibytes."""
    words = [sys.executable, __file__, "one", "--side", side]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return round(int(output.splitlines()[-1]) / 1024)


def one(options: argparse.Namespace) -> dict[str, Any]:
    pixels = emoji()
    if options.side in PRECISIONS:
        transformer(options.side, pixels)(4)
    else:
        folder = write_pngs(pixels, Path(tempfile.mkdtemp()) / "png")
        build_side(options.side, pixels, folder, 32)(4)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return {}


def transformer(precision: str, pixels: Tensor) -> Steps:
    """The transformer of emoji32-jit, a third wider, in one of ``PRECISIONS``; batches of 64."""
    torch.manual_seed(0)
    model = PixelTransformer(patch_size=4, hidden_dim=256, bottleneck_dim=48)
    models = {"unet": model, "scheduler": DDPMScheduler(prediction_type="sample")}
    return ours(Diffusion(), models, pixels, 64, **PRECISIONS[precision])


def precision_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The same of each of ``PRECISIONS``."""
    return {"peak_mebibytes": {name: _peak(name) for name in PRECISIONS}}


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Images per CPU-second of each of ``PRECISIONS``."""
    pixels = emoji()
    sides = {name: timed(transformer(name, pixels)) for name in PRECISIONS}
    found = race(sides, 64, options.steps, options.rounds)
    ratios = {name: round(found[name] / found["fp32 eager"], 2) for name in sides}
    return {"images_per_cpu_second": found, "over_fp32_eager": ratios, "amx": _amx()}


def _amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """FD of 500 samples after the same CPU-seconds of training on the bundled MNIST.

    The peers train the UNet above at batch 64 and learning rate 1e-3 in fp32 with their own loops;
    ours is the recommended recipe, ``mnist-jit``, cut to the same CPU-seconds. 50 DDIM steps, or
    25 of the recipe's solver.
    """
    train = load_source(DataConfig(path="mnist"))
    pixels = train.pixels(range(len(train)))
    folder = write_pngs(pixels, Path(tempfile.mkdtemp()) / "png")
    found = {"hfgen (mnist-jit)": _quality_of_ours(options.seconds, train)}
    for name in SIDES[1:]:
        found[name] = _quality_of_peer(name, options.seconds, folder, train)
    return {"cpu_seconds": options.seconds, "threads": torch.get_num_threads(), "results": found}


def _score(images: Tensor, train: Any) -> dict[str, Any]:
    drawn = SourceImages(TensorSource(images))
    scores = evaluate(images=drawn, data=train, metrics=("fd",), num_images=len(images)).scores
    return {"fd": round(float(scores[0].value), 2), "error": scores[0].standard_error}


def _quality_of_ours(seconds: float, train: Any) -> dict[str, Any]:
    speeds = recipes.load("mnist-jit")
    rate = _rate_of("mnist-jit")
    count = int(rate * seconds)
    folder = tempfile.mkdtemp()
    changed = {
        "training": {"total_images": count, "checkpoint_every": 0, "sample_every": 0},
        "output_dir": f"{folder}/run",
    }
    began = time.process_time()
    run = train_recipe(recipes.load("mnist-jit", changed))
    used = time.process_time() - began
    pipeline = run.pipeline
    pipeline.set_progress_bar_config(disable=True)
    labels = [i % 10 for i in range(500)]
    generator = torch.Generator().manual_seed(0)
    steps = speeds.logging.num_inference_steps
    call = {"num_inference_steps": steps, "generator": generator, "output_type": "pt"}
    images = pipeline(batch_size=500, class_labels=labels, **call).images
    return {**_score(_uint8(images), train), "images": count, "cpu_seconds_used": round(used)}


def _rate_of(name: str) -> float:
    """Images per CPU-second of a recipe, from 30 steps."""
    words = {"max_steps": 30, "checkpoint_every": 0, "sample_every": 0}
    recipe = recipes.load(name, {"training": words, "output_dir": f"{tempfile.mkdtemp()}/run"})
    began = time.process_time()
    train_recipe(recipe)
    return 30 * recipe.training.total_batch_size / (time.process_time() - began)


def _quality_of_peer(name: str, seconds: float, folder: Path, train: Any) -> dict[str, Any]:
    model = unet(28, 1)
    if name == "denoising-diffusion-pytorch":
        side: Any = PytorchTrainer(model, folder, 64, 1e-3, flip=False)
    else:
        total = int(seconds * 60 / 64)  # steps that fit, for its cosine schedule
        side = TrainUnconditional(model, folder, 64, 1e-3, total=total)
    began, steps = time.process_time(), 0
    while time.process_time() - began < seconds:
        side(10)
        steps += 10
    if name == "denoising-diffusion-pytorch":
        torch.manual_seed(0)
        parts = [side.trainer.ema.ema_model.sample(batch_size=100) for _ in range(5)]
        images = torch.cat(parts)  # in [0, 1]
    else:
        side.ema.copy_to(model.parameters())
        scheduler: Any = DDIMScheduler.from_config(side.noise.config)
        pipeline: Any = DDIMPipeline(model, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 50, "generator": torch.Generator().manual_seed(0)}
        array = pipeline(batch_size=500, output_type="np", **call).images
        images = torch.from_numpy(array).permute(0, 3, 1, 2)
    return {**_score(_uint8(images), train), "images": steps * 64}


def _uint8(images: Tensor) -> Tensor:
    return images.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


PARTS = {
    "speed": speed,
    "memory": memory,
    "precision": precision,
    "precision_memory": precision_memory,
    "quality": quality,
    "one": one,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0, help="of CPU, for quality")
    parser.add_argument("--side", choices=(*SIDES, *PRECISIONS), help="for one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = PARTS[options.part](options)
    if options.part == "one":
        return
    written = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    written = {**written, "environment": describe(1), options.part: result}
    RESULT.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
