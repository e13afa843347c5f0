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

"""The attention blocks of a network, by name, and why those of some cannot be captured."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.state_dict.torch_private import inside_of_compiled, is_compiled_in_place

__all__ = ["attention_blocks", "choose_blocks", "unwrapped"]


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside ``DataParallel`` or ``DistributedDataParallel``."""
    while isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        net = net.module
    return net


def attention_blocks(net: nn.Module) -> dict[str, AttentionBlock]:
    """
    Find the attention blocks of a network.

    Returns:
        the blocks by their qualified name, in the order of the network's modules.

    Raises:
        RuntimeError: if the network, or a part of it, is compiled or scripted, or decodes on cached keys and values.
        ValueError: if it holds no attention block.
    """
    net = unwrapped(net)
    for name, module in net.named_modules():
        _refuse(name, module)
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, AttentionBlock)}
    if not blocks:
        raise ValueError(
            f"{type(net).__name__} holds no attention block of monai.networks.blocks (SABlock, CrossAttentionBlock or "
            "a block built on them): its attention, if it has any, cannot be captured."
        )
    return blocks


def _refuse(name: str, module: nn.Module) -> None:
    """Refuse what runs without calling the attention blocks, or without their hooks."""
    part = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
    if inside_of_compiled(module) is not None:
        path = f"{name}._orig_mod" if name else "_orig_mod"
        raise RuntimeError(
            f"{part} is compiled, and compiled code runs without hooks: capture the original module, net.{path}, and "
            "call that one."
        )
    if is_compiled_in_place(module):
        raise RuntimeError(
            f"{part} was compiled by its compile() method, and compiled code runs without hooks: capture "
            "copy.deepcopy(net), which is not compiled, and call that one."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise RuntimeError(
            f"{part} is scripted or traced, and TorchScript runs without hooks: capture the network that it was made "
            "from."
        )
    reason = getattr(module, "hides_attention", None)
    if isinstance(reason, str):
        raise RuntimeError(f"{part} {reason}")


def choose_blocks(blocks: dict[str, AttentionBlock], patterns: str | Sequence[str]) -> dict[str, AttentionBlock]:
    """
    Choose blocks by name.

    Args:
        blocks: all blocks by name.
        patterns: shell-style patterns; each chooses the blocks whose name, or the name of a module around them, it
            matches.

    Raises:
        TypeError: if a pattern is no string.
        ValueError: if a pattern matches nothing; the message lists the names, the closest first.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"blocks should be a name pattern or several, got {pattern!r}.")
        found = {name for name in blocks if any(fnmatchcase(path, pattern) for path in _paths(name))}
        if not found:
            close = get_close_matches(pattern, blocks, n=3, cutoff=0.4)
            names = ", ".join(close + [name for name in blocks if name not in close])
            raise ValueError(f"no attention block matches {pattern!r}. The network's blocks: {names}.")
        chosen |= found
    if not chosen:
        raise ValueError("blocks is empty: give a name pattern, '*' for all blocks.")
    return {name: block for name, block in blocks.items() if name in chosen}


def _paths(name: str) -> list[str]:
    """A qualified name and those of the modules around it: "a.b.c", "a.b", "a"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
