"""LPIPS (Zhang et al. 2018, eq. 1) with AlexNet: distance as a network sees it."""

from __future__ import annotations

from pathlib import Path

from hfgen.errors import HfgenError
from hfgen.perceptual import AlexNetDistance as LPIPS

WEIGHTS = (
    "no weights at hand: no package brings them; pass a local file with `--weights lpips=PATH`"
)


def load_lpips(weights: str | Path | None) -> LPIPS:
    """The network with weights from a local file, ``.safetensors`` or ``.pth``.

    Raises:
        HfgenError: no file given (no package index or pinned Hub file holds these weights), or one
            that does not hold this network.
    """
    if weights is None:
        raise HfgenError(
            "lpips: no weights at hand; join torchvision's alexnet-owt-7be5be79.pth (features.*) "
            "and LPIPS 0.1's weights/v0.1/alex.pth (lin*) in one file and pass --weights lpips=PATH"
        )
    # here, not above: the file's reader is shared with the FID network
    from hfgen.evaluation.backbones.inception_weights import read_tensors

    network = LPIPS()
    state = {k: v for k, v in read_tensors(Path(weights)).items() if k in network.state_dict()}
    missing = sorted(network.state_dict().keys() - state.keys())
    if missing:
        raise HfgenError(f"lpips: {weights} lacks {len(missing)} tensors, first {missing[0]}")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
