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

"""Copying a state dict by names: a checkpoint of an older layout gets the network's names first, or is refused."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from monai.networks.state_dict.adapting import adapted_for_copying
from monai.networks.utils import get_state_dict, logger


def copy_model_state(
    dst: torch.nn.Module | Mapping,
    src: torch.nn.Module | Mapping,
    dst_prefix="",
    mapping=None,
    exclude_vars=None,
    inplace=True,
    filter_func=None,
):
    """
    Put the values of one state dict into another one, wherever names and shapes agree.

    A checkpoint of an older layout, whose keys a network of this package has to translate, gets that network's names
    first, unless ``mapping`` or ``filter_func`` say which names are meant.

    Args:
        dst: a module or state dict whose values are to change.
        src: a module or state dict with the new values.
        dst_prefix: put before the names of ``src``.
        mapping: further names of ``src``, each with the name in ``dst``, without ``dst_prefix``, that gets its value,
            whatever its shape.
        exclude_vars: a regular expression; what it finds in names of ``src`` is not copied.
        inplace: whether ``dst`` loads the result, if it is a module. Defaults to True.
        filter_func: takes each name and value of ``src``; returns a name and a value to put into ``dst``, or None.

    Returns:
        the updated state dict, the sorted names that got a value, and the sorted names that did not

    Raises:
        RuntimeError: if ``src`` is of an older layout and cannot be adapted, as where ``dst`` is no module; ``dst`` is
            then as it was.

    Example::

        net = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1)
        state, updated, unchanged = copy_model_state(net, torch.load("generative_models_0.2.3.pt"))
    """
    given, result = get_state_dict(src), OrderedDict(get_state_dict(dst))
    module = dst.module if isinstance(dst, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else dst
    by_name = given
    if not mapping and filter_func is None:
        by_name = adapted_for_copying(module, given, dst_prefix)
    own = list(result)
    skipped = {name for name in {**given, **by_name} if exclude_vars and re.search(exclude_vars, name)}
    updated = set()

    def put(name: str, value: Any) -> None:
        result[name] = value
        updated.add(name)

    for name, value in by_name.items():
        target = f"{dst_prefix}{name}"
        if target in result and target not in skipped and result[target].shape == value.shape:
            put(target, value)
    for name, wanted in (mapping or {}).items():
        target = f"{dst_prefix}{wanted}"
        if target in result and target not in skipped:
            if result[target].shape != given[name].shape:
                change = f"from {result[target].shape} to {given[name].shape}"
                warnings.warn(f"Param. shape changed {change}.", stacklevel=2)
            put(target, given[name])
    for name, value in given.items() if filter_func is not None else ():
        pair = filter_func(name, value)
        if pair is not None and pair[0] not in skipped:
            put(*pair)

    logger.info(f"'dst' model updated: {len(updated)} of {len(result)} variables.")
    if inplace and isinstance(module, nn.Module):
        module.load_state_dict(result)
    return result, sorted(updated), sorted(set(own) - updated)
