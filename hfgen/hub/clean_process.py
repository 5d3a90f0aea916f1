"""Draws a few images from a pipeline folder (or scores some), in a process of its own.

``python -I clean_process.py FOLDER IMAGES.npy --without-hfgen`` does so where hfgen cannot be
imported and the folder's own code runs; without the flag ``hfgen.load`` uses the installed classes.
Both draw from the same seed, so the two arrays are to be equal, bit for bit.
"""

import inspect
import sys
from typing import Any

NUM_IMAGES = 2
TEXT = "a picture"
MAX_STEPS = 5


class _Absent:
    """A finder that denies hfgen, as on a machine that never heard of it."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load(folder: str, without_hfgen: bool) -> Any:
    """The pipeline of ``folder``, by its own code or by installed classes."""
    if without_hfgen:
        sys.meta_path.insert(0, _Absent)  # type: ignore[arg-type]
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, use_safetensors=True
        )
    import hfgen

    return hfgen.load(folder)


def draw(pipeline: Any) -> Any:
    """[NUM_IMAGES, H, W, C] float array in [0, 1], from a fixed seed and few steps; of a dual
    encoder the scores [NUM_IMAGES] of two images and a text.
    """
    import torch

    accepted = inspect.signature(pipeline.__call__).parameters
    if "generator" not in accepted:
        return pipeline(_pictures(), TEXT).numpy()
    steps = getattr(getattr(pipeline, "scheduler", None), "config", {}).get("num_train_timesteps")
    wanted = {
        "num_inference_steps": min(MAX_STEPS, steps or MAX_STEPS),
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }
    texts = pipeline.components.get("tokenizer") is not None
    if texts:
        wanted["prompt"] = [TEXT] * NUM_IMAGES
    if _classes(pipeline):
        wanted["class_labels"] = [0] * NUM_IMAGES
    if not texts:
        wanted["batch_size"] = NUM_IMAGES
    given = {name: value for name, value in wanted.items() if name in accepted}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**given).images


def _pictures() -> Any:
    """Two different images."""
    from PIL import Image

    return [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]


def _classes(pipeline: Any) -> int | None:
    """Number of classes of a conditional pipeline: its own word, or DiT's transformer's."""
    transformer = getattr(pipeline, "transformer", None)
    stock = getattr(transformer, "config", {}).get("num_embeds_ada_norm")
    return getattr(pipeline, "num_classes", None) or stock


def main() -> None:
    import numpy

    folder, target, *flags = sys.argv[1:]
    images = draw(load(folder, "--without-hfgen" in flags))
    numpy.save(target, numpy.asarray(images))


if __name__ == "__main__":
    main()
