"""A decoder-only transformer over the codes of an image, after a text, a class or nothing."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2Model


class CodeTransformer(ModelMixin, ConfigMixin):
    """p(codes | condition) = prod_i p(code_i | condition, codes before it) (Ramesh et al. 2021).

    A GPT-2 of transformers over [text tokens | class | nothing], a start token and the codes in
    raster order, the levels of a residual code one after the other.

    Args:
        num_embeddings: size of the codes' vocabulary.
        code_size: side of the square map of codes.
        num_quantizers: codes at each position.
        text_vocab_size: size of the tokenizer's vocabulary; None for a model without text.
        text_length: tokens of a text, padding included.
        num_class_embeds: number of classes; None for a model without classes.
        hidden_size, num_layers, num_heads, dropout: of the transformer.
    """

    @register_to_config
    def __init__(
        self,
        num_embeddings: int = 512,
        code_size: int = 8,
        num_quantizers: int = 1,
        text_vocab_size: int | None = None,
        text_length: int | None = None,
        num_class_embeds: int | None = None,
        hidden_size: int = 192,
        num_layers: int = 6,
        num_heads: int = 6,
        dropout: float = 0.0,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"CodeTransformer: hidden_size {hidden_size} is no multiple of {num_heads} heads"
            )
        if (text_vocab_size is None) != (text_length is None):
            raise ValueError("CodeTransformer: text_vocab_size and text_length belong together")
        if text_vocab_size is not None and num_class_embeds is not None:
            raise ValueError("CodeTransformer: either text or classes, not both")
        self.length = code_size**2 * num_quantizers
        self.prefix_length = 1 + (text_length or 0) + (num_class_embeds is not None)
        self.gpt2 = GPT2Model(
            GPT2Config(
                vocab_size=num_embeddings + 1,  # the last one is the start
                n_positions=self.prefix_length + self.length,
                n_embd=hidden_size,
                n_layer=num_layers,
                n_head=num_heads,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=num_embeddings,
                eos_token_id=num_embeddings,
            )
        )
        conditions = text_vocab_size or num_class_embeds
        self.condition = nn.Embedding(conditions, hidden_size) if conditions else None
        self.head = nn.Linear(hidden_size, num_embeddings, bias=False)
        for layer in filter(None, (self.condition, self.head)):
            nn.init.normal_(layer.weight, std=0.02)

    @property
    def has_text(self) -> bool:
        """Whether the condition is a text."""
        return self.config["text_vocab_size"] is not None

    def prefix(self, batch_size: int, condition: Tensor | None) -> Tensor:
        """Embeddings [B, prefix_length, hidden_size] of the condition and the start token.

        Args:
            condition: token ids [B, text_length], labels [B], or None for a model without.
        """
        weight: Any = self.gpt2.wte.weight
        start = weight[-1].expand(batch_size, 1, -1)
        if (condition is None) != (self.condition is None):
            kind = "a text" if self.has_text else "a class"
            needs = f"needs {kind}" if self.condition is not None else "takes no condition"
            raise ValueError(f"CodeTransformer: this model {needs}")
        if condition is None or self.condition is None:
            return start
        ids = condition if condition.dim() == 2 else condition.unsqueeze(1)
        if ids.shape[1] != self.prefix_length - 1:
            raise ValueError(
                f"CodeTransformer: texts of {ids.shape[1]} tokens; must be {self.prefix_length - 1}"
            )
        return torch.cat([self.condition(ids), start], dim=1)

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Codes [B, n] in raster order -> logits [B, n + 1, num_embeddings] of each, and the next.

        Teacher forcing: the logits at i depend on the condition and the codes before i only.
        """
        h = torch.cat([self.prefix(len(codes), condition), self.gpt2.wte(codes)], dim=1)
        h = h[:, : self.prefix_length + self.length - 1]
        out = self.gpt2(inputs_embeds=h, use_cache=False).last_hidden_state
        return self.head(out[:, self.prefix_length - 1 :])

    @apply_forward_hook
    def start(self, batch_size: int, condition: Tensor | None) -> tuple[Tensor, DynamicCache]:
        """Logits [B, num_embeddings] of the first code, and the keys and values so far."""
        cache = DynamicCache(config=self.gpt2.config)
        return self._step(self.prefix(batch_size, condition), cache), cache

    @apply_forward_hook
    def step(self, codes: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [B, num_embeddings] of the code after ``codes`` [B, n], which join the cache."""
        return self._step(self.gpt2.wte(codes), cache)

    def _step(self, h: Tensor, cache: DynamicCache) -> Tensor:
        out = self.gpt2(inputs_embeds=h, past_key_values=cache, use_cache=True)
        return self.head(out.last_hidden_state[:, -1])

    def log_prob(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """ln p(codes | condition) in nats, [B], of whole images [B, length]."""
        log_p = torch.log_softmax(self(codes[:, :-1], condition).float(), dim=-1)
        return log_p.gather(2, codes.unsqueeze(2)).flatten(1).sum(1)
