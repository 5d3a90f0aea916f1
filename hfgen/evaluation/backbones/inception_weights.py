"""Where the FID network's weights come from: a pinned Hub file, a local one, or the original."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hfgen.errors import HfgenError

REPO = "nikhilr01/sen-bridge-weights"
FILE = "fid_inception.safetensors"
SHA256 = "b7a528bf4051f62c057bc14657865abf180a23eb1748d00ff0933d84698202ed"
ORIGINAL = "pt_inception-2015-12-05-6726825d.pth"
"""pytorch-fid's port of TensorFlow's file; its name ends with how its sha256 begins."""


def find_weights(weights: str | Path | None, sha256: str | None) -> tuple[Path, str]:
    """The file, and what its sha256 must begin with (empty: anything).

    Raises:
        HfgenError: a local file that is not there, or a Hub file that cannot be had.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise HfgenError(f"backbone inception: weights {path}: no such file")
        return path, sha256 or ""
    try:
        return Path(hf_hub_download(REPO, FILE)), sha256 or SHA256
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise HfgenError(
            f"backbone inception: {FILE} (sha256 {SHA256[:12]}...) cannot be had from "
            f"https://huggingface.co/{REPO} ({type(error).__name__}); pass a local file with "
            f"--weights inception=PATH, that file or the original {ORIGINAL}"
        ) from error


def read_weights(network: nn.Module, path: Path) -> None:
    """Load ``path`` (.safetensors or .pth) into the FID network; HfgenError when it does not
    fit.
    """
    state = {
        name: value for name, value in read_tensors(path).items() if name in network.state_dict()
    }
    missing = sorted(_required(network) - state.keys())
    if missing:
        raise HfgenError(
            f"backbone inception: {path} lacks {len(missing)} tensors, the first is {missing[0]}"
        )
    try:
        network.load_state_dict(state, strict=False)  # batch counters may be absent
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise HfgenError(f"backbone inception: {path} does not fit: {reason}") from error


def convert(original: str | Path, output: str | Path) -> None:
    """Write the original ``.pth`` as ``.safetensors``; only tensors are unpickled."""
    state = {name: value.contiguous() for name, value in read_tensors(Path(original)).items()}
    save_file(state, str(output), metadata={"format": "pt"})


def _required(network: nn.Module) -> set[str]:
    return {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from ``.safetensors``, or from a pickle of which only tensors are read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise HfgenError(f"{path}: cannot be read as weights: {reason}") from error
