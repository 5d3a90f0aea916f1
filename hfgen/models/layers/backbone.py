"""Frozen networks that were trained on other images: their feature maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hfgen.models.layers.efficientnet_lite import EfficientNetLite0

LITE0 = "efficientnet-lite0"


class HubBackbone(nn.Module):
    """A backbone of transformers: [B, 3, H, W] in [-1, 1] -> its feature maps, finest first."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.widths = tuple(network.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        mean = images.new_tensor([0.485, 0.456, 0.406])[:, None, None]
        std = images.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        return list(self.network((images / 2 + 0.5 - mean) / std).feature_maps)


def make_backbone(source: str | dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A frozen feature network and the configuration from which it is built anew."""
    if source == LITE0:
        network = EfficientNetLite0()
        network.load_package()
        return network.eval(), {"model_type": LITE0}
    if isinstance(source, dict) and source.get("model_type") == LITE0:
        return EfficientNetLite0().eval(), source
    from transformers import AutoBackbone, AutoConfig

    try:
        if isinstance(source, str):
            config = AutoConfig.from_pretrained(source)
            if len(config.out_features) == 1:  # the default: the last stage alone
                config.out_features = config.stage_names[1:]
            cls = type(AutoBackbone.from_config(config))  # its own from_pretrained asks the Hub
            network = cls.from_pretrained(source, config=config)
        else:
            network = AutoBackbone.from_config(AutoConfig.for_model(**source))
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"backbone {source!r} cannot be loaded: {reason}") from None
    return HubBackbone(network.eval()), network.config.to_dict()
