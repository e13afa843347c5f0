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

"""What a load that cannot succeed says: what does not fit, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.layouts import Layout

__all__ = ["PLAIN", "misfit", "refuse", "remedy_for_unexpected"]

PLAIN = (torch.Tensor, nn.Parameter)
"""Types of tensors whose shape says what they hold."""
WITH_PROJECTION = "That network's attention had an output projection: build this one with use_proj_attn=True."
MAYBE_NOT_USED = (
    "Only if MONAI 1.4 wrote the file with include_fc=False was the projection never used: then load it by "
    "load_old_state_dict(state_dict, facts=CheckpointFacts(projection_used=False))."
)
# what decides the size of a weight: a pattern of its key, the axis, and the argument that it follows
SIZES: tuple[tuple[str, int, str], ...] = (
    (r"(?:^|\.)(?:decoder_pos_embedding|position_embeddings)$", 1, "an image of {0} patches (img_size, patch_size)"),
    (r"(?:^|\.)position_embeddings\.embedding\.weight$", 0, "max_seq_len={0}"),
    (r"(?:^|\.)token_embeddings\.weight$", 0, "num_tokens={0}"),
    (r"(?:^|\.)classification_head(?:\.0)?\.(?:weight|bias)$", 0, "num_classes={0}"),
    (r"(?:^|\.)class_embedding\.weight$", 0, "num_class_embeds={0}"),
    (r"(?:^|\.)(?:patch_embeddings|conv_in\.conv|encoder\.blocks\.0\.(?:conv\.)?conv)\.weight$", 1, "in_channels={0}"),
    (r"(?:^|\.)(?:out\.2\.conv|out\.conv\.conv)\.(?:weight|bias)$", 0, "out_channels={0}"),
    (r"(?:^|\.)attn2\.to_[kv]\.weight$", 1, "cross_attention_dim={0}"),
    (r"(?:^|\.)rel_pos_arr\.\d+$", 1, "heads of width {0}"),
    (r"(?:^|\.)(?:blocks\.\d+\.norm\d|norm1|norm2)\.(?:weight|bias)$", 0, "blocks of width {0}"),
)


def misfit(key: str, have: Any, want: Any) -> str:
    """Why ``have`` of a checkpoint cannot take the place of ``want``, in a line; empty where torch has to judge."""
    if not torch.overrides.is_tensor_like(have):
        return f"{key} is a {type(have).__name__}, not a tensor."
    if type(have) not in PLAIN or type(want) not in PLAIN or have.shape == want.shape:
        return ""
    if have.shape == (1,) and want.dim() == 0:  # torch once saved a scalar as one element
        return ""
    sizes = f"{list(have.shape)} in the checkpoint, {list(want.shape)} in the network."
    return f"size mismatch for {key}: {sizes}{_size_remedy(key, have, want)}"


def remedy_for_unexpected(keys: Collection[str], projections_used: bool) -> str:
    """What to do about keys that the network does not have, with a space before it; empty where nothing is known."""
    if not any("out_proj." in key for key in keys):
        return ""
    return f" {WITH_PROJECTION}" + ("" if projections_used else f" {MAYBE_NOT_USED}")


def refuse(
    module: nn.Module,
    problems: Iterable[str],
    layouts: Iterable[Layout] = (),
    own: Collection[str] = (),
    written: Mapping[str, Any] | None = None,
) -> None:
    """
    Raise with all problems; with none do nothing.

    Args:
        module: what was to be loaded.
        problems: a line each.
        layouts: of the checkpoint.
        own: keys of the module.
        written: the checkpoint, as it was written.

    Raises:
        RuntimeError: if there is a problem.
    """
    lines = list(problems)
    if not lines:
        return
    old = [layout for layout in layouts if layout.is_old]
    lines += [] if old else _wrapper_hint(own, written or {})
    lines += [f"The keys are those of {one.source} ({one.evidence}): {one.meaning}." for one in old]
    raise RuntimeError(
        f"Error(s) in loading state_dict for {type(module).__name__}, which is left unchanged:\n\t" + "\n\t".join(lines)
    )


def _wrapper_hint(own: Collection[str], written: Mapping[str, Any]) -> Iterator[str]:
    mine, first = ({str(key).partition(".")[0] for key in keys} for keys in (own, written))
    if written and mine and mine.isdisjoint(first) and len(first) < 5:
        yield (
            f"All keys begin with {' or '.join(sorted(first))}, as wrappers and trainers save them: read the file by "
            "monai.networks.read_checkpoint."
        )


def _size_remedy(key: str, have: torch.Tensor, want: torch.Tensor) -> str:
    """Which argument of the network decides the size that differs."""
    for pattern, axis, argument in SIZES:
        if re.search(pattern, key) and have.dim() == want.dim() > axis and have.shape[axis] != want.shape[axis]:
            return f" The checkpoint's network was built for {argument.format(have.shape[axis])}: build this one alike."
    return ""
