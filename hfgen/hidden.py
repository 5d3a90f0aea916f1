"""What a network's layers hold while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hfgen.errors import HfgenError, one_of


@contextmanager
def layer_outputs(network: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """A list that gets the output of the module ``layer`` each time the network runs inside.

    Of a layer with several outputs (a down block of a UNet) the first.

    Args:
        layer: its name in ``named_modules``: "mid_block", "blocks.3".
    Raises:
        HfgenError: no such layer.
    """
    layers = dict(network.named_modules())
    if layer not in layers or not layer:
        top = [name for name in layers if name and name.count(".") < 2]
        raise one_of(f"layer of {type(network).__name__}", layer, top)
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[layer].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def middle_layer(network: nn.Module) -> str:
    """The bottom of a UNet, or the middle block of a transformer: half of the longest list.

    Raises:
        HfgenError: a network with neither.
    """
    if "mid_block" in dict(network.named_children()):
        return "mid_block"
    lists = {n: len(m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and m}
    if not lists:
        raise HfgenError(f"{type(network).__name__} has no blocks; name one of its layers")
    longest = max(lists, key=lambda name: lists[name])
    return f"{longest}.{lists[longest] // 2}"
