# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Self attention over a sequence of tokens."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.layers.utils import get_rel_pos_embedding_layer

__all__ = ["SABlock"]


class SABlock(AttentionBlock):
    """
    Self attention over a sequence of tokens, as in "Dosovitskiy et al., An Image is Worth 16x16 Words
    <https://arxiv.org/abs/2010.11929>".

    Args:
        hidden_size: width of the attention when ``dim_head`` is not given.
        num_heads: number of attention heads.
        dropout_rate: fraction of the attention weights, and of the outputs, dropped in training. Defaults to 0.0.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether to keep the attention matrix of the last call in ``att_mat``. Defaults to False.
        dim_head: width of one head. Defaults to ``hidden_size // num_heads``.
        hidden_input_size: width C of the input and output. Defaults to ``hidden_size``.
        causal: whether a token attends to itself and to earlier tokens only. Defaults to False.
        sequence_length: number of tokens, required where ``causal`` is True. Longer inputs work too.
        rel_pos_embedding: ``"decomposed"`` adds relative positions per axis (see https://arxiv.org/abs/2112.01526).
            Or a module, such as a :class:`~monai.networks.blocks.attention.positions.Positions`.
        input_size: spatial size of the tokens' grid, 2-D or 3-D, required by ``rel_pos_embedding``.
        attention_dtype: type in which q, k and v meet; the result is cast back.
        include_fc: whether an output projection follows, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to True.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether an output projection follows; None (the default) follows ``include_fc``.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads`` and
            ``dim_head`` is not given, ``sequence_length`` is missing for causal attention, ``use_flash_attention``
            comes with ``save_attn`` or ``rel_pos_embedding``, or a width does not fit without a projection.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    __constants__ = [*AttentionBlock.__constants__, "use_combined_linear"]
    layout_role = "self attention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout_rate: float = 0.0,
        qkv_bias: bool = False,
        save_attn: bool = False,
        dim_head: int | None = None,
        hidden_input_size: int | None = None,
        causal: bool = False,
        sequence_length: int | None = None,
        rel_pos_embedding: str | tuple | nn.Module | None = None,
        input_size: tuple | None = None,
        attention_dtype: torch.dtype | None = None,
        include_fc: bool = True,
        use_combined_linear: bool = True,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = AttentionOptions(
            dropout_rate=dropout_rate,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
            attention_dtype=attention_dtype,
        )
        super().__init__(
            hidden_size=hidden_size,
            num_heads=num_heads,
            options=options,
            dim_head=dim_head,
            hidden_input_size=hidden_input_size,
            causal=causal,
            sequence_length=sequence_length,
            rel_pos_embedding=rel_pos_embedding,
            input_size=input_size,
        )
        self.dim_head = self.head_dim
        self.include_fc = self.use_proj_attn
        self.use_combined_linear = use_combined_linear
        self._make_linears(qkv_bias)
        rel_pos = None
        if isinstance(rel_pos_embedding, nn.Module):
            rel_pos = rel_pos_embedding
        elif rel_pos_embedding is not None:
            rel_pos = get_rel_pos_embedding_layer(rel_pos_embedding, input_size, self.head_dim, num_heads)
        self._make_parts(use_combined_linear, rel_pos)

    def _make_linears(self, bias: bool) -> None:
        """The linears that are not used exist as one identity, as upstream has it: TorchScript finds every name."""
        unused = nn.Identity()
        self.qkv: nn.Linear | nn.Identity
        self.to_q: nn.Linear | nn.Identity
        self.to_k: nn.Linear | nn.Identity
        self.to_v: nn.Linear | nn.Identity
        if self.use_combined_linear:
            self.qkv = nn.Linear(self.hidden_input_size, 3 * self.inner_dim, bias=bias)
            self.to_q = self.to_k = self.to_v = unused
        else:
            self.to_q = nn.Linear(self.hidden_input_size, self.inner_dim, bias=bias)
            self.to_k = nn.Linear(self.hidden_input_size, self.inner_dim, bias=bias)
            self.to_v = nn.Linear(self.hidden_input_size, self.inner_dim, bias=bias)
            self.qkv = unused

    def forward(self, x: torch.Tensor, attn_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, N, C).
            attn_mask: nonzero where a token may be attended to: (B, N), (B, N, N) or (B, 1 or heads, N, N).
                A token that may attend to nothing gets zeros from the attention.

        Returns:
            (B, N, C)

        Raises:
            ValueError: if the mask has another shape or floating values other than 0 and 1, or comes with causal
                attention.
        """
        q, k, v = self.project(x)
        return self.attend(x, q, k, v, attn_mask)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of the tokens ``x``, (B, N, C): each (B, heads, N, D)."""
        if self.use_combined_linear:
            qkv = self.input_rearrange(self.qkv(x))
            if isinstance(qkv, torch.Tensor):
                q, k, v = qkv.unbind(0)
            else:  # another module in its place may give them one by one
                q, k, v = qkv
            return q, k, v
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return self.input_rearrange(q), self.input_rearrange(k), self.input_rearrange(v)
