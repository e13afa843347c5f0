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

"""Norms of slabs by the statistics of the whole volume."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from monai.networks.blocks.volume_statistics import type_of_statistics
from monai.networks.state_dict.torch_private import not_compiled
from monai.networks.volumes.exchange import Ranks
from monai.networks.volumes.slabs import Slabs
from monai.networks.volumes.split_layers import Split

__all__ = ["SplitDeclaredNorm", "SplitGroupNorm", "SplitInstanceNorm"]


def _by_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, C, sizes) to (B, groups, positions of a group)."""
    return x.reshape(x.shape[0], groups, -1)


def _statistics(x: torch.Tensor, groups: int, ranks: Ranks, slabs: Slabs) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and variance of each group of a volume's channels, by the formula of Chan, Golub and LeVeque (1979), which
    holds however large the mean is.

    Args:
        x: this rank's slab, (B, C, sizes).
        groups: how many groups of channels there are.
        ranks: the ranks that share the volume.
        slabs: how it is cut.

    Returns:
        (B, groups) each, in float32 at least
    """
    whole, dtype = _by_group(x, groups), type_of_statistics(x.dtype)
    # a group at a time where it has to be copied to another type: not all of the volume twice
    pieces = [whole] if x.dtype == dtype else list(whole.split(1, 1))
    moments = [torch.var_mean(piece.to(dtype), 2, correction=0) for piece in pieces]
    mine = torch.stack([torch.cat([each[1] for each in moments], 1), torch.cat([each[0] for each in moments], 1)])
    share = torch.tensor(slabs.lengths, dtype=dtype, device=x.device).view(-1, 1, 1) / slabs.total
    means, variances = torch.stack(ranks.all_gather(mine, "norm")).unbind(1)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B, groups) or (B, C) as it meets (B, C, sizes)."""
    wide = values.repeat_interleave(x.shape[1] // values.shape[1], 1)
    return wide.view(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))


class _Normalized(torch.autograd.Function):
    """Group norm by the statistics of all ranks' slabs; of what it is given it keeps nothing but the slab itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        groups: int,
        eps: float,
        dtype: torch.dtype,
        ranks: Ranks,
        slabs: Slabs,
    ) -> torch.Tensor:
        mean, variance = _statistics(x, groups, ranks, slabs)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.groups, ctx.ranks, ctx.has_bias = groups, ranks, bias is not None
        ctx.count = _by_group(x, groups).shape[2] // slabs.lengths[ranks.rank] * slabs.total
        factor, shift = _channels(scale, x), _channels(-mean * scale, x)
        if weight is not None:
            by_channel = _channels(weight.expand(x.shape[0], -1), x)
            factor, shift = factor * by_channel, shift * by_channel
        if bias is not None:
            shift = shift + _channels(bias.expand(x.shape[0], -1), x)
        return _affine(x, factor, shift, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, weight, mean, scale = ctx.saved_tensors
        batch, width = x.shape[0], x.shape[1] // ctx.groups
        sums, products = _sums(grad, x)
        factor = torch.ones_like(sums) if weight is None else weight.to(sums.dtype).expand(batch, -1)
        # of the gradient, and of its product with the centered input
        centered = products - sums * mean.repeat_interleave(width, 1)
        mine = torch.stack([sums * factor, centered * factor]).view(2, batch, ctx.groups, width).sum(3)
        whole_sums, whole_products = ctx.ranks.all_reduce(mine, "norm").unbind(0)
        slope = -whole_products * scale.pow(3) / ctx.count
        constant = -whole_sums * scale / ctx.count - slope * mean
        of_grad = _channels(factor * scale.repeat_interleave(width, 1), x)
        dx = _affine_of_two(grad, of_grad, x, _channels(slope, x), _channels(constant, x))
        dw = None if weight is None else (centered * scale.repeat_interleave(width, 1)).sum(0).to(weight.dtype)
        db = sums.sum(0).to(weight.dtype if weight is not None else sums.dtype) if ctx.has_bias else None
        return dx, dw, db, None, None, None, None, None


def _affine(x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x * factor + shift in the wider type, rounded to ``dtype`` once."""
    if x.dtype == dtype == factor.dtype:
        return torch.addcmul(shift, x, factor)
    out = torch.empty_like(x, dtype=dtype)
    for channel in range(x.shape[1]):  # no copy of all of it in another type
        part = slice(channel, channel + 1)
        out[:, part] = torch.addcmul(shift[:, part], x[:, part].to(factor.dtype), factor[:, part])
    return out


def _affine_of_two(
    grad: torch.Tensor, of_grad: torch.Tensor, x: torch.Tensor, of_x: torch.Tensor, constant: torch.Tensor
) -> torch.Tensor:
    """grad * of_grad + x * of_x + constant, in the type of ``x``."""
    if x.dtype == grad.dtype == of_x.dtype:
        return torch.addcmul(constant, x, of_x).addcmul_(grad, of_grad)
    out = torch.empty_like(x)
    for channel in range(x.shape[1]):
        part = slice(channel, channel + 1)
        total = torch.addcmul(constant[:, part], x[:, part].to(of_x.dtype), of_x[:, part])
        out[:, part] = total.addcmul_(grad[:, part].to(of_x.dtype), of_grad[:, part])
    return out


def _sums(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel: the sum of the gradient, and of its product with the input; (B, C) in float32 at least."""
    dtype = type_of_statistics(x.dtype)
    if x.dtype == grad.dtype == dtype:
        return grad.flatten(2).sum(2), torch.linalg.vecdot(grad.flatten(2), x.flatten(2))
    sums, products = [], []
    for gradients, values in zip(grad.split(1, 1), x.split(1, 1)):
        wide = gradients.flatten(2).to(dtype)
        sums.append(wide.sum(2))
        products.append(torch.linalg.vecdot(wide, values.flatten(2).to(dtype)))
    return torch.cat(sums, 1), torch.cat(products, 1)


class _Moments(torch.autograd.Function):
    """Mean and variance of all ranks' slabs, which every rank uses: their gradients are added up."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, groups: int, ranks: Ranks, slabs: Slabs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = _statistics(x, groups, ranks, slabs)
        ctx.save_for_backward(x, mean)
        ctx.ranks = ranks
        ctx.count = _by_group(x, groups).shape[2] // slabs.lengths[ranks.rank] * slabs.total
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None, None]:
        of_mean, of_variance = grads
        x, mean = ctx.saved_tensors
        whole_mean, whole_variance = ctx.ranks.all_reduce(torch.stack([of_mean, of_variance]), "norm").unbind(0)
        slope = 2 * whole_variance / ctx.count
        constant = whole_mean / ctx.count - slope * mean
        return _affine(x, _channels(slope, x), _channels(constant, x), x.dtype), None, None, None


class SplitGroupNorm(Split):
    """A group norm, by the statistics of the whole volume."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to the same shape."""
        return self._normalize(x, self.num_groups)  # type: ignore[attr-defined]

    @not_compiled
    def _normalize(self: Any, x: torch.Tensor, groups: int) -> torch.Tensor:
        split = self.volume_split
        with torch.no_grad():  # autocast decides on the type, and torch on what it refuses
            dtype = super().forward(x.new_zeros(1, x.shape[1], *[2] * (x.dim() - 2))).dtype  # type: ignore[misc]
        with split.call((x,)), torch.autocast(x.device.type, enabled=False):
            slabs = split.slabs(x)
            out: torch.Tensor = _Normalized.apply(
                x, self.weight, self.bias, groups, self.eps, dtype, split.ranks, slabs
            )
        return out


class SplitInstanceNorm(SplitGroupNorm):
    """An instance norm, by the statistics of the whole volume."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to the same shape."""
        return self._normalize(x, x.shape[1])


class SplitDeclaredNorm(Split):
    """A group norm of another way to compute, which says in ``apply_statistics`` what it does with the statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to the same shape."""
        mean, variance = self._moments(x)
        out: torch.Tensor = self.apply_statistics(x, mean, variance)  # type: ignore[attr-defined]
        return out

    @not_compiled
    def _moments(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        split = self.volume_split
        with split.call((x,)):
            mean, variance = _Moments.apply(x, self.num_groups, split.ranks, split.slabs(x))
        return mean, variance
