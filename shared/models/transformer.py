"""The encoder of vision transformers, in layers that Opacus has hooks for, with torchvision's names in the state_dict.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv:2010.11929). Opacus does not accept nn.MultiheadAttention, and a
parameter that lies directly in a network makes it recompute the whole network for each image. So the packed projection and the added
tokens are layers of their own; only their names in the state_dict are torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.vision_transformer


def publish_as(module: nn.Module, names: Mapping[str, str]) -> None:
    """In `module`'s state_dict, what it calls by a key of `names` has the name that is the value, in saving and loading."""

    def saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        renamed = [(_renamed(name, prefix, names), tensor) for name, tensor in state.items()]
        state.clear()
        state.update(renamed)

    def loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for own, published in names.items():
            if prefix + published in state:
                state[prefix + own] = state.pop(prefix + published)

    hooked: Any = module  # torch does not annotate the two
    hooked.register_state_dict_post_hook(saved)
    hooked.register_load_state_dict_pre_hook(loaded)


def _renamed(name: str, prefix: str, names: Mapping[str, str]) -> str:
    published = names.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return name if published is None else prefix + published


class ClassToken(nn.Module):
    """Puts a learned token before those of each image: `(N, L, E)` to `(N, L + 1, E)`. Starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat((self.weight.expand(len(tokens), -1, -1), tokens), 1)


class PositionEmbedding(nn.Module):
    """Adds a learned vector to each of `length` tokens: `(N, L, E)` to `(N, L, E)`. Starts with a deviation of 0.02."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.weight


class SelfAttention(nn.Module):
    """Multi-head self-attention, scaled dot products (Vaswani et al., 2017, equation 1): `(N, L, E)` to `(N, L, E)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)
        publish_as(self, {"in_proj.weight": "in_proj_weight", "in_proj.bias": "in_proj_bias"})

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, width = tokens.shape
        packed = self.in_proj(tokens).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
        return out


class EncoderBlock(nn.Module):
    """Self-attention and an MLP with GELU, each on layer-normalised tokens and added to what came in: `(N, L, E)` to `(N, L, E)`."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _torchvision.MLPBlock(width, hidden, 0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.self_attention(self.ln_1(tokens))
        out: Tensor = tokens + self.mlp(self.ln_2(tokens))
        return out


class Encoder(nn.Module):
    """Position embedding, `depth` blocks, layer norm: `(N, length, width)` to the same shape."""

    def __init__(self, length: int, *, depth: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.pos_embedding = PositionEmbedding(length, width)
        blocks = ((f"encoder_layer_{index}", EncoderBlock(width, heads, hidden)) for index in range(depth))
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(width, eps=1e-6)
        publish_as(self, {"pos_embedding.weight": "pos_embedding"})

    def forward(self, tokens: Tensor) -> Tensor:
        encoded: Tensor = self.ln(self.layers(self.pos_embedding(tokens)))
        return encoded
