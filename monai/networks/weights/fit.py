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

"""Fits a state dict whose sizes are another network's, as far as the caller asks for it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.refusals import PLAIN
from monai.networks.state_dict.rules import Misfit
from monai.networks.weights.channels import adapt_in_channels, adapt_out_channels
from monai.networks.weights.inflate import inflate_kernel, inflate_patches, inflate_positions
from monai.networks.weights.journal import Journal
from monai.networks.weights.patches import as_kernel, as_linear, resample_patches, told_patch
from monai.networks.weights.places import Place, places
from monai.networks.weights.positions import FIXED, place_grid, rebuild_positions, resample_positions, told_grid
from monai.networks.weights.size_options import SizeOptions

__all__ = ["SizeOptions", "fit"]


def fit(journal: Journal, net: nn.Module, options: SizeOptions, grid: tuple[int, ...] | None = None) -> None:
    """
    Change the tensors of a state dict that have the network's keys and another network's sizes.

    What a tensor is, the module tells that holds the parameter. Only what ``options`` ask for is done; what has another
    shape afterwards is left to the load, which refuses it.

    Args:
        journal: the state dict; what is done is written down in it.
        net: the network that is to load it, which stays as it is.
        options: what may be done.
        grid: of the file's position embeddings, where its configuration says it.

    Raises:
        RuntimeError: with all problems together, if anything that was asked for is ambiguous, cannot be done, or is not
            needed by any tensor. Then the journal is as it was.
    """
    if not options and grid is None:
        return
    plan = _Plan(journal, options, places(net), grid)
    for key, place in plan.places.items():
        if type(journal.get(key)) in PLAIN and type(place.own) in PLAIN:
            plan.consider(key, place)
    problems = plan.problems + plan.ambiguous_channels() + plan.unused()
    if problems:
        text = "\n\t".join(problems)
        raise RuntimeError(f"The sizes of the file are not fitted to {type(net).__name__}:\n\t{text}")
    for key, steps in plan.steps.items():
        for step in steps:
            with journal.doing(step.text, step.kind):
                journal[key] = step.value
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)


@dataclass(frozen=True)
class _Step:
    value: torch.Tensor
    text: str
    kind: str
    option: str


@dataclass
class _Plan:
    """What is going to be done to which tensor, and what speaks against it."""

    journal: Journal
    options: SizeOptions
    places: dict[str, Place]
    grid: tuple[int, ...] | None
    steps: dict[str, list[_Step]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    ins: dict[str, tuple[int, int]] = field(default_factory=dict)
    outs: dict[str, tuple[int, int]] = field(default_factory=dict)

    def consider(self, key: str, place: Place) -> None:
        """Plan what is done to one tensor."""
        work = {"position": self._position, "patch": self._patch}.get(place.role, self._layer)
        try:
            work(key, place, self.journal[key])
        except Misfit as error:
            self.problems.append(f"{key}: {error}")

    def ambiguous_channels(self) -> list[str]:
        """Why the layers with other channels cannot all be the first or the last ones."""
        problems = []
        for option, found in (("in_channels", self.ins), ("out_channels", self.outs)):
            if len(set(found.values())) > 1:
                pairs = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in found.items())
                problems.append(f"{option} would change layers with different numbers of channels: {pairs}.")
        if not self.ins and not self.outs:
            return problems
        # told by the shapes, not by what is planned: a layer that may stay as it is (`allow`) is changed by no plan
        order, gives, takes = list(self.places), self._widths(gives=True), self._widths(gives=False)
        for key, pair in self.ins.items():
            before = [other for other in gives if gives[other] == pair and order.index(other) < order.index(key)]
            if before:
                problems.append(
                    f"{key} takes other channels {pair[0]} -> {pair[1]}, as {before[0]} before it gives: these are "
                    "inner layers of another width, not the first and the last ones."
                )
        for key, pair in self.outs.items():
            after = [other for other in takes if takes[other] == pair and order.index(other) > order.index(key)]
            if after:
                problems.append(
                    f"{key} gives other channels {pair[0]} -> {pair[1]}, as {after[0]} after it takes: these are "
                    "inner layers of another width, not the first and the last ones."
                )
        return problems

    def _widths(self, gives: bool) -> dict[str, tuple[int, int]]:
        """The layers that give, or take, another number of channels in the file than in the network: both numbers."""
        found = {}
        for key, place in self.places.items():
            have: Any = self.journal.get(key)
            if place.name != "weight" or place.role not in ("convolution", "transposed", "linear"):
                continue
            if type(have) not in PLAIN or type(place.own) not in PLAIN or min(have.dim(), place.own.dim()) < 2:
                continue
            axis = place.channel_axis if gives else 1 - place.channel_axis
            if have.shape[axis] != place.own.shape[axis]:
                found[key] = (have.shape[axis], place.own.shape[axis])
        return found

    def unused(self) -> list[str]:
        """Options that no tensor needs."""
        if self.problems:  # what a problem stopped was needed
            return []
        asked = {name: f"resample={name!r}" for name in self.options.resample}
        for name in ("grid", "spacings", "in_channels", "out_channels", "inflate"):
            value = getattr(self.options, name)
            asked.update({} if value is None else {name: f"{name}={value!r}"})
        used = self.used.union(step.option for steps in self.steps.values() for step in steps)
        left = [text for name, text in asked.items() if name not in used]
        return [f"{text} changes nothing: no tensor of the file {_what_needs(text)}." for text in left]

    def _add(self, key: str, value: torch.Tensor, text: str, kind: str, option: str) -> torch.Tensor:
        self.steps.setdefault(key, []).append(_Step(value, text, kind, option))
        return value

    # positions

    def _position(self, key: str, place: Place, have: torch.Tensor) -> None:
        new, options = place.grid, self.options
        dims = 2 if options.inflate and len(new) == 3 else len(new)
        if have.dim() != 3 or have.shape[0] != 1 or have.shape[2] != place.own.shape[-1]:
            return
        if have.shape[1] == 1 and math.prod(new) > 1:  # one for all
            return
        wanted = "position" in options.resample
        said = self._said_grid(have.shape[1], dims) if options.grid is None else None
        if dims == len(new):
            as_many = have.shape == place.own.shape
            if as_many and said is not None and list(said) != new and not wanted:
                raise Misfit(
                    f"the file's positions lie on the grid {said}, as its configuration says, and the network's, as "
                    f"many, on {tuple(new)}: ask for resample='position'."
                )
            fits = as_many and options.grid is None and options.spacings is None and said in (None, tuple(new))
            if fits or not wanted:
                return
        old = told_grid(have.shape[1], dims, options.grid or said)
        if options.grid is not None:
            self.used.add("grid")
        x = have
        if wanted:
            x = self._resampled(key, place, x, old, new[:dims])
        elif list(old) != new[:dims]:
            raise Misfit(
                f"the file's positions lie on the grid {old}, the network's on {tuple(new)}: ask for "
                "resample='position', too, or build the network for the file's img_size."
            )
        if dims < len(new):
            text = f"repeated {new[-1]} times along the last axis"
            self._add(key, inflate_positions(x, new[-1]), text, "inflated", "inflate")
            self._warn_of_class_token(place)

    def _said_grid(self, number: int, dims: int) -> tuple[int, ...] | None:
        """The grid in the configuration of the file, if it is one of so many positions."""
        grid = self.grid
        return grid if grid is not None and len(grid) == dims and math.prod(grid) == number else None

    def _resampled(
        self, key: str, place: Place, have: torch.Tensor, old: tuple[int, ...], new: list[int]
    ) -> torch.Tensor:
        begins = steps = None
        if self.options.spacings is not None:
            begins, steps = self._in_millimeters(place, old, new)
            self.used.add("spacings")
        elif list(old) == new:
            return have
        sizes = f"{_times(old)} to {_times(new)}" + ("" if begins is None else ", by spacing")
        if place.kind in FIXED:
            rebuilt = rebuild_positions(have, new, old, place.kind, place.temperature, begins, steps)
            if rebuilt is not None:
                text = f"{place.kind} positions from {sizes}, by their formula"
                return self._add(key, rebuilt, text, "written by rule", "position")
        moved = resample_positions(have, new, old, 0, begins, steps)
        if moved is have:
            return have
        text = f"positions resampled from {sizes}"
        return self._add(key, moved, text, "resampled", "position")

    def _in_millimeters(self, place: Place, old: tuple[int, ...], new: list[int]) -> tuple[list[float], list[float]]:
        assert self.options.spacings is not None
        there, here = self.options.spacings
        if len(there) != len(old) or len(here) != len(place.grid):
            raise Misfit(
                f"spacings={self.options.spacings} should have {len(old)} axes for the file and {len(place.grid)} "
                "for the network."
            )
        patch = self._old_patch(place, len(old))
        old_token = [spacing * size for spacing, size in zip(there, patch)]
        new_token = [spacing * size for spacing, size in zip(here, place.patch_size)]
        return place_grid(old, new, old_token, new_token[: len(new)])

    def _old_patch(self, place: Place, dims: int) -> tuple[int, ...]:
        """Size of the file's patches, in its dimensions."""
        weight: Any = self.journal.get(place.patch_key)
        if type(weight) not in PLAIN:
            raise Misfit(f"the file has no {place.patch_key}, which tells the size of its patches: leave out spacings.")
        if weight.dim() > 2:
            return tuple(weight.shape[2:])
        return self._perceptron(self.places[place.patch_key], weight, dims)[0]

    def _warn_of_class_token(self, place: Place) -> None:
        token = place.prefix.rpartition("patch_embedding.")[0] + "cls_token"
        if token in self.places and place.grid[-1] > 1:
            self.warnings.append(
                f"{token} attends to itself once and to every patch {place.grid[-1]} times, as often as there are "
                "patches along the new axis: a volume of equal slices does not give the features of one, unless the "
                "network has no class token (classification=False)."
            )

    # patches

    def _perceptron(self, place: Place, weight: torch.Tensor, dims: int) -> tuple[tuple[int, ...], int]:
        """Patch size and number of channels of the file, from its linear."""
        columns = weight.shape[1]
        channels = place.own.shape[1] // math.prod(place.patch_size)
        mine = tuple(place.patch_size[:dims])
        if "patch" not in self.options.resample:
            if columns % math.prod(mine):
                raise Misfit(f"a perceptron of {columns} columns projects no patches of {mine}: resample='patch'.")
            return mine, columns // math.prod(mine)
        if self.options.in_channels is not None:
            raise Misfit("the columns of a perceptron do not tell a patch size and a number of channels at once.")
        return told_patch(columns, channels, dims), channels

    def _patch(self, key: str, place: Place, have: torch.Tensor) -> None:
        if place.name != "weight":
            return
        want, options, size = place.own, self.options, place.patch_size
        flat = want.dim() == 2
        dims = 2 if options.inflate and len(size) == 3 else len(size)
        # columns of a perceptron may be as many for patches of another shape
        if have.shape == want.shape and not (flat and "patch" in options.resample):
            if dims < len(size) and (not flat or size[-1] > 1):
                raise Misfit("it has three axes already, and inflate is for the weights of a 2-D network.")
            return
        if have.dim() != (2 if flat else 2 + dims) or have.shape[0] != want.shape[0]:
            return
        old = self._perceptron(place, have, dims)[0] if flat else tuple(have.shape[2:])
        before = len(self.steps.get(key, []))
        x = as_kernel(have, old) if flat else have
        if list(old) != size[:dims] and "patch" in options.resample:
            text = f"patches resized from {_times(old)} to {_times(size[:dims])}"
            x = self._kernel(key, flat, resample_patches(x, size[:dims]), text, "resampled", "patch")
        if dims < len(size):
            text = f"inflated to {size[-1]} slices ({options.inflate})"
            x = self._kernel(key, flat, inflate_patches(x, size[-1], str(options.inflate)), text, "inflated", "inflate")
        own = as_kernel(want, size) if flat else want
        if x.shape[1] != own.shape[1] and options.in_channels is not None and x.shape[2:] == own.shape[2:]:
            self.ins[key] = (x.shape[1], own.shape[1])
            x = adapt_in_channels(x, own.shape[1], options.in_channels, own)
            text = _channels_text("in_channels", options.in_channels, self.ins[key])
            x = self._kernel(key, flat, x, text, "converted", "in_channels")
        self._keep_if_fits(key, x.shape == own.shape, before)

    def _kernel(self, key: str, flat: bool, x: torch.Tensor, text: str, kind: str, option: str) -> torch.Tensor:
        self._add(key, as_linear(x) if flat else x, text, kind, option)
        return x

    def _keep_if_fits(self, key: str, fits: bool, before: int) -> None:
        """Forget what was planned for a tensor that has another shape in spite of it."""
        if not fits and key in self.steps:
            del self.steps[key][before:]

    # other layers

    def _layer(self, key: str, place: Place, have: torch.Tensor) -> None:
        options, want, x = self.options, place.own, have
        inflates = options.inflate is not None and isinstance(place.module, (nn.Conv3d, nn.ConvTranspose3d))
        if inflates and place.name == "weight":
            if have.dim() == want.dim():
                raise Misfit("it has three axes already, and inflate is for the weights of a 2-D network.")
            if have.dim() == want.dim() - 1 and have.shape[2:] == want.shape[2:-1]:
                x = inflate_kernel(have, place.module, str(options.inflate))
                text = f"inflated to {want.shape[-1]} slices ({options.inflate})"
                self._add(key, x, text, "inflated", "inflate")
        if x.shape == want.shape or x.dim() != want.dim():
            return
        other = [axis for axis in range(x.dim()) if x.shape[axis] != want.shape[axis]]
        if len(other) == 1:
            self._channels(key, place, x, other[0])
        self._keep_if_fits(key, key in self.ins or key in self.outs, 0)

    def _channels(self, key: str, place: Place, x: torch.Tensor, axis: int) -> None:
        options, want = self.options, place.own
        pair = (x.shape[axis], want.shape[axis])
        first = place.role == "convolution" and place.name == "weight" and axis == 1
        if first and options.in_channels is not None and getattr(place.module, "groups", 1) == 1:
            self.ins[key] = pair
            value = adapt_in_channels(x, pair[1], options.in_channels, want)
            text = _channels_text("in_channels", options.in_channels, pair)
            self._add(key, value, text, "converted", "in_channels")
        last = place.role in ("convolution", "transposed", "linear") and axis == place.channel_axis
        if last and options.out_channels is not None and getattr(place.module, "groups", 1) == 1:
            self.outs[key] = pair
            if len(options.out_channels) != pair[1]:
                raise Misfit(f"out_channels has {len(options.out_channels)} indices, and the layer gives {pair[1]}.")
            value = adapt_out_channels(x, options.out_channels, want, axis)
            text = _channels_text("out_channels", options.out_channels, pair)
            self._add(key, value, text, "converted", "out_channels")


def _what_needs(asked: str) -> str:
    if asked.startswith(("in_channels=(", "out_channels=(")):
        return (
            "has another number of channels than the network. Leave it out if their order is the same, and reorder the "
            "weights of the file if it is not"
        )
    if asked == "resample='position'":
        return "has another number of positions. Leave it out, or say by grid= on which other grid the file has as many"
    return "needs it. Leave it out"


def _times(sizes: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, sizes))


def _channels_text(option: str, how: object, pair: tuple[int, int]) -> str:
    return f"{option} {pair[0]} to {pair[1]} ({how if isinstance(how, str) else 'old channels ' + str(how)})"
