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

"""Two processes that write a folder of torch.distributed.checkpoint, each a part of every tensor."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

__all__ = ["source", "write"]


def source() -> nn.Module:
    """The network that is written; its sizes do not divide by two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7), nn.BatchNorm1d(7))


def write(rank: int, store: str, path: str) -> None:
    """
    Run one of the processes.

    Args:
        rank: which.
        store: a file by which they find one another.
        path: the folder.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    state = {
        key: distribute_tensor(value, mesh, [Shard(value.dim() - 1)]) if value.dim() else value
        for key, value in source().state_dict().items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state, "step": 3}, checkpoint_id=path)
    dist.destroy_process_group()
