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

"""Networks whose parameters are spread over several processes, and whole checkpoints for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.adapting import adapted_for_copying, adapted_state_dict
from monai.networks.state_dict.hooks import CheckpointFacts

__all__ = ["is_shard", "is_sharded", "load_into_sharded"]


def is_shard(tensor: Any) -> bool:
    """Whether something is a DTensor, as ``fully_shard`` and tensor parallel plans make them."""
    # Asked for by its attribute: to import torch.distributed.tensor for a network on one device would cost a second.
    return hasattr(tensor, "device_mesh")


def is_sharded(net: nn.Module) -> bool:
    """Whether a network holds a DTensor."""
    return any(map(is_shard, (*net.parameters(), *net.buffers())))


def load_into_sharded(
    net: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, facts: CheckpointFacts | None = None
) -> None:
    """
    Load a whole checkpoint of any age into a sharded network. Each process calls it with the whole checkpoint, and
    keeps what is its own; no process asks another one.

    Args:
        net: the network, which may lie on the meta device.
        state_dict: the checkpoint, which is left as it is.
        strict: whether every key has to fit. Without, keys that the network does not have are left out, and weights
            that the checkpoint does not have stay as they are.
        facts: what the keys of a strict load cannot tell; None leaves everything open.

    Raises:
        RuntimeError: if the checkpoint does not fit the network, which is left as it is.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    whole = adapted_state_dict(net, state_dict, facts) if strict else dict(adapted_for_copying(net, state_dict))
    with torch.no_grad():
        set_model_state_dict(net, whole, options=StateDictOptions(full_state_dict=True, strict=strict))
