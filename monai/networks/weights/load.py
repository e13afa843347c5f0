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

"""Somebody else's weights become those of a network, and every parameter and tensor is accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn as nn
from torch.nn.parameter import is_lazy

from monai.networks.state_dict.adapting import AdaptedKeys
from monai.networks.state_dict.hooks import CheckpointFacts, Request
from monai.networks.state_dict.refusals import PLAIN, refuse
from monai.networks.state_dict.rules import Drop
from monai.networks.state_dict.sharded import is_sharded

from .journal import Journal
from .report import LoadReport, account
from .size_options import SizeOptions
from .source import Source, becomes, recognize, translate

__all__ = ["WeightOptions", "account_of_partial", "adapt_weights", "tied_keys", "weight_options"]

Config = Mapping[str, Any]
FEW = 8
ALLOWED = "it may stay, by allow={!r}"
IGNORED = "left out by ignore={!r}"
OTHER_SHAPE = "its shape {} is not the network's {}, and {}"
HINT = (
    "To load what fits, name the parameters that may stay as they are by allow=('name.*', ...), and the tensors of the "
    "file that are not wanted by ignore=('name.*', ...)."
)


@dataclass(frozen=True)
class WeightOptions:
    """
    What may be done to weights on their way into a network, and what may be left.

    Args:
        source: name of the layout of another package; None lets the keys tell.
        allow: patterns of the parameters and buffers that may stay as they are, ``*`` standing for anything.
        ignore: patterns of the tensors of the file that may be left out.
        sizes: how sizes are changed; by default none is.

    Raises:
        TypeError: if patterns are not a sequence of texts.
        ValueError: if there is no such layout.
    """

    source: str | None = None
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    sizes: SizeOptions = field(default_factory=SizeOptions)

    def __post_init__(self) -> None:
        for name in ("allow", "ignore"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
                raise TypeError(f"{name}={value!r} should be a tuple of patterns, such as ({name!r}.*,).")
            object.__setattr__(self, name, tuple(value))
        if self.source is not None:
            _source_called(self.source)


def weight_options(
    source: str | None = None,
    allow: Sequence[str] = (),
    ignore: Sequence[str] = (),
    resample: str | Sequence[str] = (),
    **sizes: Any,
) -> WeightOptions:
    """
    Options as :func:`monai.networks.load_checkpoint` takes them.

    Args:
        source: see :class:`WeightOptions`.
        allow: likewise.
        ignore: likewise.
        resample: what is resampled, one name or several.
        sizes: the other arguments of ``SizeOptions``.

    Raises:
        TypeError, ValueError: if one is not what it should be.
    """
    names = (resample,) if isinstance(resample, str) else tuple(resample)
    return WeightOptions(source, allow, ignore, SizeOptions(resample=names, **sizes))  # type: ignore[arg-type]


def adapt_weights(
    net: nn.Module,
    state_dict: Mapping[str, Any],
    options: WeightOptions | None = None,
    facts: CheckpointFacts | None = None,
    config: Callable[[], Config] | None = None,
) -> tuple[dict[str, Any], LoadReport]:
    """
    Bring the tensors of a file to the names and sizes of a network, which is left as it is.

    Args:
        net: the network; it may lie on the meta device, or be sharded.
        state_dict: the tensors of the file, which are left as they are.
        options: what may be done and left; by default everything has to fit as it is.
        facts: what the keys of older releases cannot tell.
        config: gives the configuration that another package saved beside its weights.

    Returns:
        the tensors by the keys of the network, without those that stay as they are; and the account

    Raises:
        RuntimeError: if anything is left that the options do not name, or nothing is loaded at all.
    """
    options = options or WeightOptions()
    if options.sizes and is_sharded(net):
        refuse(net, ["sizes are not changed on the way into a sharded network: load it first, and shard it then."])
    journal, own = Journal(state_dict), net.state_dict(keep_vars=True)
    _leave_out(journal, list(journal), options)
    source, grid = _source_of(net, journal, own, options), None
    if source is not None:
        said = config() if config is not None else {}
        translate(net, journal, source, said)
        grid = _grid_in(said)
    request = Request(strict=True, facts=facts or CheckpointFacts(), careful=True)
    # what another package did not write is missing: nothing is completed, as it is for our own older networks
    keys = AdaptedKeys(net, journal, state_dict, request, older=source is None or source.is_monai)
    _fit(journal, net, options.sizes, grid)
    _leave_out(journal, [key for key in journal if key not in own], options)  # by the names that they have by now
    left = _leave(own, journal, options)
    if source is not None:
        idle = {key for load in keys.loads for key in load.idle_keys()}
        left.update(dict.fromkeys((key for key in own if key in idle and key not in journal), Drop.does))
    problems = [
        *_settle_ties(own, journal, left),
        *_patterns_without_use(own, journal, options),
        *_with_remedies(keys.misfits(), journal, own, net),
    ]
    keys.whole.own = {key: value for key, value in keys.whole.own.items() if key not in left}
    gaps = list(keys.whole.missing_and_unexpected())
    problems += [*gaps, HINT] if gaps and _loads_anything(own, left, journal) else gaps
    if not problems and not _loads_anything(own, left, journal):
        problems.append("Nothing of the file would be loaded: it is the file of another network.")
    refuse(net, problems, keys.layouts, own, state_dict)
    keys.warn()
    written_by = [source.package] if source is not None else [layout.source for layout in keys.layouts]
    report = account(type(net).__name__, own, journal, written_by, left)
    in_order = [key for key in own if key in journal]
    return {key: journal[key] for key in [*in_order, *(key for key in journal if key not in own)]}, report


def account_of_partial(net: nn.Module, state_dict: Mapping[str, Any]) -> LoadReport:
    """
    The account of a load with torch's ``strict=False``: what fits is loaded.

    Args:
        net: the network.
        state_dict: what was loaded.
    """
    journal, own = Journal(state_dict), net.state_dict()
    keys = AdaptedKeys(net, journal, state_dict, Request(strict=False))
    left = {key: "the file does not hold it, and the load was not strict" for key in own if key not in journal}
    layouts = [layout.source for layout in keys.layouts]
    return account(type(net).__name__, own, journal, layouts, left, others_handed_on=False)


def _source_of(net: nn.Module, journal: Journal, own: Mapping[str, Any], options: WeightOptions) -> Source | None:
    """
    The package whose layout the file has, if it is another one's.

    Raises:
        RuntimeError: if the keys are those of several, or not those of the one that was named.
    """
    foreign = [key for key in journal if key not in own]
    if options.source is not None:
        source = _source_called(options.source)
        if source.evidence(journal) is None:
            refuse(net, [f"source={source.name!r}, but no key of the file is one of {source.package}."])
        return source
    found = _recognized(net, foreign)
    signs = [f"{source.package} ({key})" for source, key in found]
    if len(signs) > 1:
        choice = f"Name the one that wrote it by source=: {', '.join(repr(source.name) for source, _ in found)}."
        refuse(net, [f"the keys are those of several packages: {'; '.join(signs)}. {choice}"])
    return found[0][0] if found else None


def _grid_in(config: Config) -> tuple[int, ...] | None:
    """The grid of patches that transformers' configuration of a vision transformer speaks of."""
    sizes = [config.get(name) for name in ("image_size", "patch_size")]
    image, patch = [[size] * 2 if isinstance(size, int) else size for size in sizes]
    if not isinstance(image, list) or not isinstance(patch, list) or len(image) != len(patch):
        return None
    if not all(isinstance(size, int) and size > 0 for size in (*image, *patch)):
        return None
    return tuple(size // part for size, part in zip(image, patch))


def _leave_out(journal: Journal, keys: Iterable[str], options: WeightOptions) -> None:
    """Take the tensors out that the user does not want."""
    for key in keys:
        pattern = _matching((key,), options.ignore)
        if pattern is not None:
            journal.ignore(key, IGNORED.format(pattern))


def _leave(own: Mapping[str, Any], journal: Journal, options: WeightOptions) -> dict[str, str]:
    """The parameters that stay as they are, and why."""
    left: dict[str, str] = {}
    for key, want in own.items():
        pattern = _matching((key,), options.allow)
        if pattern is None:
            continue
        have, reason = journal.get(key), ALLOWED.format(pattern)
        if have is None:
            left[key] = reason
        elif getattr(have, "shape", None) != getattr(want, "shape", None):
            journal.ignore(key, OTHER_SHAPE.format(list(have.shape), list(want.shape), reason))
            left[key] = reason
    return left


def _settle_ties(own: Mapping[str, Any], journal: Journal, left: dict[str, str]) -> Iterator[str]:
    """
    Where parameters are one and the same tensor, what is loaded into one of them is in all of them.

    Yields:
        which of them have other values in the file, a line each
    """
    for keys in tied_keys(own):
        held = [key for key in keys if key in journal]
        for key in keys:
            if held and key not in journal:
                left.pop(key, None)
                journal.share(key, held[0])
        values = [journal[key] for key in held]
        if any(value is not values[0] and not _equal(value, values[0]) for value in values[1:]):
            yield (
                f"{', '.join(held)} are one and the same tensor in the network, and have other values each in the "
                "file: it is of a network in which they are several. Build one like it."
            )


def tied_keys(own: Mapping[str, Any]) -> list[list[str]]:
    """Keys of a state dict with ``keep_vars=True`` that stand for one and the same tensor, for each with several."""
    names: dict[Any, list[str]] = {}
    for key, value in own.items():
        if isinstance(value, torch.Tensor):
            names.setdefault(_place(value), []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def _place(tensor: torch.Tensor) -> Any:
    """What two tensors have in common that are one: themselves, or where their values are."""
    if type(tensor) not in PLAIN or is_lazy(tensor) or not tensor.numel() or not tensor.data_ptr():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _equal(value: Any, other: Any) -> bool:
    return value.shape == other.shape and bool(torch.equal(value, other))


def _matching(keys: Iterable[str], patterns: Iterable[str]) -> str | None:
    names = list(keys)
    return next((pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)), None)


def _patterns_without_use(own: Mapping[str, Any], journal: Journal, options: WeightOptions) -> Iterator[str]:
    for pattern in options.allow:
        if _matching(own, [pattern]) is None:
            yield f"allow={pattern!r} names no parameter of the network."
    for pattern in options.ignore:
        used = IGNORED.format(pattern) in journal.ignored.values()
        if not used and _matching(journal.file, [pattern]) is None:
            yield f"ignore={pattern!r} names no tensor of the file."


def _with_remedies(lines: list[str], journal: Journal, own: Mapping[str, Any], net: nn.Module) -> Iterator[str]:
    """Lines about sizes, each with the option that would change the size; of another network all sizes differ."""
    for line in lines:
        found = re.match(r"size mismatch for (\S+):", line) if len(lines) <= FEW else None
        key = found[1] if found else ""
        remedy = _remedy(key, journal[key], own[key], net) if key in own and key in journal else ""
        yield f"{line} {remedy}".rstrip()


def _recognized(net: nn.Module, keys: Iterable[str]) -> list[tuple[Source, str]]:
    """The layouts that keys show; those that are for the network, if any is."""
    from .sources import SOURCES  # it knows networks, which need monai.networks to be imported

    found = recognize(SOURCES, keys)
    return [(source, key) for source, key in found if becomes(net, source)] or found


def _source_called(name: str) -> Source:
    from .sources import source_called  # likewise

    return source_called(name)


def _fit(journal: Journal, net: nn.Module, sizes: SizeOptions, grid: tuple[int, ...] | None) -> None:
    from .fit import fit  # likewise

    fit(journal, net, sizes, grid)


def _remedy(key: str, have: Any, want: Any, net: nn.Module) -> str:
    from .size_remedies import remedy_for_size  # likewise

    return remedy_for_size(key, have, want, net)


def _loads_anything(own: Mapping[str, Any], left: Mapping[str, str], journal: Journal) -> bool:
    return any(key in journal and journal.origins[key].keys for key in own if key not in left)
