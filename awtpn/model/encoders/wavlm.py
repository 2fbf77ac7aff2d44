"""WavLM's attention by calls of its projections.

The library's own hands the projections' weights to one function, past their modules: low-rank additions to
them would have no effect, and the weights of attention [T, T] would be kept for each layer.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor
from torch.nn import functional

from awtpn.model.encoders.structure import layers_of


def call_projections(network: Any) -> None:
    """Replace the function of attention in all layers of a WavLM."""
    for layer in layers_of(network):
        attention: Any = layer.attention
        attention.torch_multi_head_self_attention = MethodType(self_attention, attention)


def self_attention(
    attention: Any, hidden: Tensor, valid: Tensor | None, position_bias: Tensor, *unused: Any
) -> tuple[Tensor, None]:
    """Attention with WavLM's gated bias for relative positions (Chen et al., 2022, Eq. 1-4).

    Args:
        attention: the module, with its projections.
        hidden: [B, T, D].
        valid: [B, T], false where there is padding; None without padding.
        position_bias: [B * heads, T, T], added to the scores.
        unused: what earlier versions of transformers pass besides.

    Returns:
        [B, T, D], and None in place of the weights.
    """
    batch, steps, dim = hidden.shape
    query, key, value = (
        project(hidden).view(batch, steps, attention.num_heads, -1).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = position_bias.view(batch, attention.num_heads, steps, steps).to(query.dtype)
    if valid is not None:
        bias = bias.masked_fill(valid.ne(1)[:, None, None], float("-inf"))
    dropout = attention.dropout if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, steps, dim)), None
