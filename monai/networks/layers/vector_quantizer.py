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

"""The codebook of a VQVAE."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.state_dict.sharded import is_shard
from monai.networks.state_dict.torch_private import not_compiled, runs_backward

__all__ = ["EMAQuantizer", "VectorQuantizer"]


class Entries(nn.Embedding):
    """
    The entries of a codebook: an embedding that knows, while its weight is gathered, where its shard is.

    In a forward pass FSDP2 (``fully_shard``) sets a gathered tensor in the place of its shard, and throws it away
    afterwards. It does so by plain assignment to a module whose class says how it is done, as this one.
    """

    shard = None  # the DTensor that a gathered weight stands for; on the instance in that time alone

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            before = getattr(self, "weight", None)
            if is_shard(value):
                vars(self).pop("shard", None)
            elif is_shard(before) and isinstance(value, torch.Tensor):
                vars(self)["shard"] = before
        super().__setattr__(name, value)


def shard_of(embedding: nn.Module) -> Any:
    """The DTensor that the weight of an embedding is a gathered copy of; None if it is not one."""
    return getattr(embedding, "shard", None)


@not_compiled
def write_to_shard(shard: Any, values: torch.Tensor) -> None:
    """Write this process's part of the values, which are the same on all processes, into a DTensor."""
    from torch.distributed.tensor import distribute_tensor

    own = distribute_tensor(values, shard.device_mesh, shard.placements, src_data_rank=None)
    shard.to_local().copy_(own.to_local())


def _warn_of_backward() -> None:
    """Say that a backward pass moves a codebook, as it does where it computes a forward pass again."""
    if not torch.compiler.is_compiling() and runs_backward():
        warnings.warn(
            "The backward pass computes a codebook in training again (activation checkpointing): it moves a second "
            "time, and gradients are those of entries that the forward pass did not see. Leave it out of what is "
            "recomputed, as VQVAE(use_checkpointing=True) does, or freeze it by codebook.eval().",
            stacklevel=2,
        )


class EMAQuantizer(nn.Module):
    """
    Codebook of a VQVAE (van den Oord et al., https://arxiv.org/abs/1711.00937). Its entries follow, in training, an
    exponential moving average of the encodings that they stand for.

    Distances and averages are computed in float32 at least, whatever the type of the network. A scripted codebook does
    not synchronize between processes. Under FSDP2 (``fully_shard``) every process also writes the entries of its own
    shard, which takes ``ddp_sync=True``: one codebook for all processes. Where a backward pass computes a codebook in
    training again (activation checkpointing), it moves twice, with a warning.

    Args:
        spatial_dims: number of spatial axes: 1, 2 or 3.
        num_embeddings: number K of entries.
        embedding_dim: width C of an entry, and number of channels of the encodings.
        commitment_cost: weight of the loss that draws encodings to their entries. Defaults to 0.25.
        decay: share of the average that a training step keeps. Defaults to 0.99.
        epsilon: added to the entries' counts, so that none is zero. Defaults to 1e-5.
        embedding_init: "normal" or "kaiming_uniform", how the entries are drawn at first. Defaults to "normal".
        ddp_sync: whether all processes of a distributed training share one codebook. Defaults to True.

    Raises:
        ValueError: if ``spatial_dims`` is not 1, 2 or 3.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        embedding_init: str = "normal",
        ddp_sync: bool = True,
    ):
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims should be 1, 2 or 3, got {spatial_dims}.")
        self.spatial_dims = spatial_dims
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.ddp_sync = ddp_sync

        self.embedding = Entries(num_embeddings, embedding_dim)
        if embedding_init == "kaiming_uniform":
            nn.init.kaiming_uniform_(self.embedding.weight, nonlinearity="linear")
        self.embedding.weight.requires_grad_(False)
        self.ema_cluster_size: torch.Tensor
        self.ema_w: torch.Tensor
        self.register_buffer("ema_cluster_size", torch.zeros(num_embeddings))
        self.register_buffer("ema_w", self.embedding.weight.detach().clone())
        # the order of the axes with the channels last, and the way back
        self.flatten_permutation = [0, *range(2, spatial_dims + 2), 1]
        self.quantization_permutation = [0, spatial_dims + 1, *range(1, spatial_dims + 1)]

    def quantize(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Find the entry that is nearest to each encoding.

        Args:
            inputs: encodings, (B, C, sizes).

        Returns:
            the encodings as rows, (N, C) with N = B x sizes; their entries as one-hot rows, (N, K); and the entries'
            indices, (B, sizes).
        """
        if torch.jit.is_scripting():
            return self._quantize(inputs)
        else:
            with torch.autocast(inputs.device.type, enabled=False):  # which would compare in half precision
                return self._quantize(inputs)

    def _quantize(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        channels_last = inputs.permute(self.flatten_permutation)
        rows = channels_last.reshape(-1, self.embedding_dim)
        if rows.dtype != torch.float64:
            rows = rows.float()
        entries = self.embedding.weight.to(rows.dtype)
        squares = rows.pow(2).sum(1, keepdim=True) + entries.pow(2).sum(1)
        indices = (squares - 2 * rows @ entries.t()).argmin(1)
        one_hot = torch.zeros_like(squares).scatter_(1, indices.unsqueeze(1), 1.0)
        return rows, one_hot, indices.reshape(channels_last.shape[:-1])

    def embed(self, embedding_indices: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embedding_indices: indices of entries, (B, sizes).

        Returns:
            the entries, (B, C, sizes)
        """
        out: torch.Tensor = self.embedding(embedding_indices).permute(self.quantization_permutation).contiguous()
        return out

    def distributed_synchronization(self, encodings_sum: torch.Tensor, dw: torch.Tensor) -> None:
        """
        Add up what the processes of a distributed training counted, in place.

        Args:
            encodings_sum: number of encodings of each entry, (K,).
            dw: sum of the encodings of each entry, (K, C).
        """
        if self.ddp_sync and torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in (encodings_sum, dw):
                torch.distributed.all_reduce(tensor)

    def synchronize(self, encodings_sum: torch.Tensor, dw: torch.Tensor) -> None:
        """See :meth:`distributed_synchronization`, which is called where processes share one codebook."""
        if self.ddp_sync:
            self.distributed_synchronization(encodings_sum, dw)

    def update(self, rows: torch.Tensor, one_hot: torch.Tensor) -> None:
        """
        Let the entries follow the encodings of a training step, see :meth:`quantize`.

        Raises:
            RuntimeError: if FSDP2 has shared the entries out, and processes do not agree on them (``ddp_sync=False``).
        """
        if not torch.jit.is_scripting():
            self._check_shard()
            _warn_of_backward()
        counts, sums = one_hot.sum(0), one_hot.t() @ rows
        if not torch.jit.is_scripting():
            self.synchronize(counts, sums)
        self.ema_cluster_size.mul_(self.decay).add_((1 - self.decay) * counts)
        self.ema_w.mul_(self.decay).add_((1 - self.decay) * sums)
        # Laplace smoothing: an entry that stands for nothing keeps a small count
        sizes = self.ema_cluster_size.to(rows.dtype)
        total = sizes.sum()
        smoothed = (sizes + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        entries = self.ema_w.to(rows.dtype) / smoothed[:, None]
        self.embedding.weight.copy_(entries)
        if not torch.jit.is_scripting():
            self._write_shard(entries)

    def _check_shard(self) -> None:
        """
        Raises:
            RuntimeError: if every process would write other entries into its shard of them.
        """
        shard = shard_of(self.embedding)
        if shard is not None and shard.device_mesh.size() > 1 and not self.ddp_sync:
            raise RuntimeError(
                f"{shard.device_mesh.size()} processes share the entries of a codebook out (fully_shard), but each "
                "would learn entries of its own, ddp_sync=False: build it with ddp_sync=True, or leave the entries "
                "out by fully_shard(net, ignored_params={codebook.embedding.weight})."
            )

    def _write_shard(self, entries: torch.Tensor) -> None:
        """Keep the entries (K, C) where FSDP2 has its shard of them, too: it throws the gathered weight away."""
        shard = shard_of(self.embedding)
        if shard is not None:
            write_to_shard(shard, entries)

    def commitment_loss(self, quantized: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """How far the encodings are from their entries, both (B, C, sizes): the mean square, a scalar."""
        # a mean over nothing would be NaN
        return F.mse_loss(quantized.detach(), inputs) if inputs.numel() > 0 else inputs.sum()

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs: encodings, (B, C, sizes).

        Returns:
            the nearest entries, (B, C, sizes), with the gradient of the encodings; the loss, a scalar; and the
            entries' indices, (B, sizes)
        """
        rows, one_hot, indices = self.quantize(inputs)
        quantized = self.embed(indices)
        if self.training:
            with torch.no_grad():
                self.update(rows, one_hot)
        loss = self.commitment_loss(quantized, inputs)
        return inputs + (quantized - inputs).detach(), self.commitment_cost * loss, indices


class VectorQuantizer(nn.Module):
    """
    A codebook that also tells how many of its entries are in use: their perplexity in the last call is in
    ``perplexity``. Exported and traced programs do not compute it.

    Args:
        quantizer: the codebook.
    """

    works_on_slabs = True

    def __init__(self, quantizer: EMAQuantizer):
        super().__init__()
        self.quantizer = quantizer
        self.perplexity: torch.Tensor = torch.rand(1)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            inputs: encodings, (B, C, sizes).

        Returns:
            the loss, a scalar, and the nearest entries, (B, C, sizes)
        """
        quantized, loss, indices = self.quantizer(inputs)
        if torch.jit.is_scripting():
            self._measure(indices)
        elif not (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            self._measure(indices)
        return loss, quantized

    def count(self, indices: torch.Tensor) -> torch.Tensor:
        """How often each entry is in use in the indices (B, sizes): (K,)."""
        entries = self.quantizer.num_embeddings
        return torch.histc(indices.float(), bins=entries, max=entries)

    def _measure(self, indices: torch.Tensor) -> None:
        """Set the perplexity to that of the indices (B, sizes)."""
        counts = self.count(indices)
        shares = counts / counts.sum().clamp_min(1)
        self.perplexity = torch.exp(-torch.sum(shares * torch.log(shares + 1e-10)))

    @torch.jit.export
    def embed(self, embedding_indices: torch.Tensor) -> torch.Tensor:
        """Entries (B, C, sizes) of the indices (B, sizes)."""
        return self.quantizer.embed(embedding_indices)

    @torch.jit.export
    def quantize(self, encodings: torch.Tensor) -> torch.Tensor:
        """Indices (B, sizes) of the entries that are nearest to the encodings (B, C, sizes)."""
        out: torch.Tensor = self.quantizer(encodings)[2]
        return out
