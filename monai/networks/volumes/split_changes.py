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

"""Whether a split network is still the one that was split: layers that were put in afterwards know no slabs."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.nn as nn
from torch.nn.utils import parametrize

from monai.networks.blocks.reach import computes_as_declared, reach_of
from monai.networks.state_dict.torch_private import not_compiled
from monai.networks.volumes.split_layers import Split, SplitLayer
from monai.networks.volumes.split_rules import (
    has_to_be_split,
    holds_weights_alone,
    is_local,
    is_part,
    is_wrapper,
    remedy,
)
from monai.networks.volumes.split_tokens import SplitPatchEmbedding
from monai.networks.volumes.volume_split import VolumeSplit

__all__ = ["Guard", "is_guard", "remember"]

MARK = "class_when_split"  # attribute of a module that split_volume() saw; a copy of the module has it, too
SHOWN = 5  # how many refusals an error tells
LATE = "put it in first and call split_volume() then, on a network that was not split before"


def remember(net: nn.Module) -> None:
    """Mark all modules of a network as seen."""
    for module in net.modules():
        vars(module)[MARK] = type(module)


class Guard:
    """
    Hooks of a split network: when it is called, or one of its halves, they look for changes, and the ranks agree.

    Args:
        net: the network.
        split: the volume that its ranks share.
    """

    def __init__(self, net: nn.Module | None, split: VolumeSplit) -> None:
        self.split = split
        self._net = None if net is None else weakref.ref(net)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """A copy of the network is guarded by itself, a copy of one of its halves looks at that half alone."""
        net = None if self._net is None else self._net()
        return Guard(memo.get(id(net)), self.split)

    def register(self, module: nn.Module) -> None:
        """Guard the calls of a module."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, always_call=True)

    @not_compiled
    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """
        Raises:
            ValueError: if a layer that would have to be split came after the split, or the ranks' inputs do not fit.
        """
        self.split.enter((args, kwargs), partial(self.look, module))

    def look(self, module: nn.Module | None = None) -> None:
        """Look for changes in the network; in ``module`` if that is no part of one any more."""
        net = None if self._net is None else self._net()
        seen = module if net is None else net
        if seen is not None:
            _check(seen, self.split.axis)

    def leave(self, *_: Any) -> None:
        """End a call."""
        self.split.leave()


def is_guard(hook: Callable) -> bool:
    """Whether a hook is one by which ranks agree."""
    return isinstance(getattr(hook, "__self__", None), Guard)


def _check(net: nn.Module, axis: int) -> None:
    """
    Raises:
        ValueError: which names what was put into the network and would have to be split.
    """
    if all(_is_known(module) for module in net.modules()):
        return
    found = list(_replaced(net, "", axis))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ValueError(f"{type(net).__name__} was changed after split_volume():\n" + "\n".join(found[:SHOWN] + more))
    remember(net)


def _is_known(module: nn.Module) -> bool:
    own = vars(module)
    return own.get(MARK) is type(module) and "forward" not in own


def _replaced(module: nn.Module, name: str, axis: int, parent: nn.Module | None = None) -> Iterator[str]:
    """What is wrong with a module and those inside of it, each told by its name."""
    why = _refusal(module, parent, axis)
    if why is not None:
        yield f"{name or 'the network itself'} ({type(module).__name__}) {why}."
    elif _is_looked_into(module):
        around = parent if is_wrapper(module) else module
        for child_name, child in module.named_children():
            if not (child_name == "parametrizations" and parametrize.is_parametrized(module)):  # they compute weights
                yield from _replaced(child, f"{name}.{child_name}" if name else child_name, axis, around)


def _is_looked_into(module: nn.Module) -> bool:
    """Whether it depends on the modules inside of one: a layer says by itself how far all of it looks."""
    if computes_as_declared(module, "spatial_reach") or isinstance(module, SplitLayer):
        return False
    return _was_seen(module) or is_part(module) or is_wrapper(module)


def _refusal(module: nn.Module, parent: nn.Module | None, axis: int) -> str | None:
    """Why a module of a split network cannot be where it is; None if it can."""
    if not _keeps_its_forward(module):
        return f"has another forward than its class: {LATE}"
    if isinstance(module, Split) and _was_seen(module):
        return _refusal_of_reach(module, axis)
    if has_to_be_split(module, axis) and not _cuts_patches(module, parent):
        return f"would work on the slab of one rank: {LATE}"
    if _was_seen(module) or is_wrapper(module) or holds_weights_alone(module):
        return None
    if reach_of(module, axis) is not None or is_local(module, parent) or is_part(module):
        return None
    return remedy(module, axis)


def _cuts_patches(module: Any, parent: nn.Module | None) -> bool:
    """Whether a convolution is a split patch embedding's own, which is not split: patches lie inside of slabs."""
    if not isinstance(parent, SplitPatchEmbedding) or not _was_seen(module):
        return False
    return tuple(module.kernel_size) == tuple(module.stride) == tuple(parent.patch_size)  # type: ignore[attr-defined]


def _was_seen(module: nn.Module) -> bool:
    """Whether split_volume() saw a module, which may be of a subclass since then: FSDP and weight norms make one."""
    seen: Any = vars(module).get(MARK)
    return seen is not None and isinstance(module, seen) and type(module).forward is seen.forward


def _keeps_its_forward(module: nn.Module) -> bool:
    """Whether a module computes as its class says; a function around its forward, such as autocast, changes nothing."""
    own: Any = vars(module).get("forward")
    if own is None:
        return True
    inner = inspect.unwrap(own)
    return getattr(inner, "__func__", inner) is type(module).forward


def _refusal_of_reach(module: Any, axis: int) -> str | None:
    """A layer that says how far it looks says it of the layers in it, which may be others now."""
    if not isinstance(module, SplitLayer) or not hasattr(module, "spatial_reach"):
        return None
    before, now = module.split_reach, module.spatial_reach(axis)
    return None if now == before else f"had {before} when it was split, and now has {now}: {LATE}"
