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


"""Attention of voxels of a scan in a trained network: what the command does, from its options to its report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.apps.checkpoints.command_line import facts_of
from monai.apps.checkpoints.network_config import NetworkConfig, read_network_config
from monai.apps.checkpoints.sample_inputs import MAKERS, read_inputs, sample_calls
from monai.networks.checkpoints import load_checkpoint
from monai.networks.checkpoints.untrusted import refusing
from monai.visualize.attention.capture import capture_attention
from monai.visualize.attention.maps import AttentionMap
from monai.visualize.attention.on_image import attention_of_query, chosen_heads, maximum_voxel, to_world, token_of_query
from monai.visualize.attention.relevance import attention_relevance, attention_rollout
from monai.visualize.attention.saving import check_output, save_attention, suffix_of

from .scan import Preparation, Scan, read_scan

__all__ = ["Report", "attend"]

Query = tuple[int, ...] | str
Step = Callable[[str, int], None]
LABELS = {"rows": "attention weight", "rollout": "attention rollout", "relevance": "relevance"}


@dataclass(frozen=True)
class LayerReport:
    """
    What one query attends to in one layer.

    Args:
        layer: name of the block.
        call: how many times the block had been called before.
        head: which, None for the mean.
        query: as it was asked for.
        token: that the query is.
        grid: of the tokens it attends to.
        maximum: the largest weight on the grid.
        voxel: of the scan's file, at the center of the token with that weight.
        world: its world coordinates in mm; R, A and S are positive.
        on_grid: sum of the weights on the grid; the rest is the class token's.
        entropy: of the weights on the grid in nats, scaled to a sum of one; ln(number of tokens) if all are equal.
    """

    layer: str
    call: int
    head: int | None
    query: str
    token: int
    grid: tuple[int, ...]
    maximum: float
    voxel: tuple[int, ...]
    world: list[float]
    on_grid: float
    entropy: float


@dataclass(frozen=True)
class Report:
    """
    What the command did.

    Args:
        network: class of the network.
        method: "rows", "rollout" or "relevance".
        files: that were written.
        image_size: of the prepared image.
        image_affine: from its voxels to world coordinates.
        orientation: the letters that its axes run towards.
        seconds: of the network's passes.
        peak_mib: the most memory that the process, or the GPU, has held; None where it cannot be told.
        layers: a row for each layer, head and query.
        notes: what the user might not expect.
    """

    network: str
    method: str
    files: list[str]
    image_size: tuple[int, ...]
    image_affine: list[list[float]]
    orientation: str
    seconds: float
    peak_mib: float | None
    layers: list[LayerReport]
    notes: list[str]


def attend(options: argparse.Namespace, step: Step) -> Report:
    """
    Run the command.

    Args:
        options: of :func:`monai.apps.attention_maps.command_line.make_parser`.
        step: called with what is done next, and how many steps are still known to come.

    Raises:
        ValueError, OSError, RuntimeError: with the remedy; no file is written then.
    """
    outputs = _outputs(options)
    step("network", 4)
    config = read_network_config(options.config)
    net = config.build()
    for query in options.query:  # before anything takes long
        _check_query(net, options, query)
    with refusing():
        load_checkpoint(net, options.ckpt, options.name, facts_of(options))
    step("scan", 3)
    scan = _scan(options, config)
    voxels: dict[Query, Query] = {query: _voxel(scan, query) for query in options.query}
    device = _device(options.device)
    inputs = _inputs(options, net, scan, config)
    net, inputs = net.to(device), {name: value.to(device) for name, value in inputs.items()}
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    found = METHODS[options.method](net, inputs, list(dict.fromkeys(voxels.values())), options, step)
    seconds = time.perf_counter() - start
    maps, notes = _on_grids(found)
    layers = [row for query, voxel in voxels.items() for row in _layers(maps[voxel], query, voxel, scan, options)]
    step("output", 1)
    for query, path in outputs.items():
        _save(path, maps[voxels[query]], scan, voxels[query], options)
    step("done", 0)
    return Report(
        network=config.cls.__name__,
        method=options.method,
        files=[str(path) for path in outputs.values()],
        image_size=scan.size,
        image_affine=scan.affine.tolist(),
        orientation=scan.codes,
        seconds=round(seconds, 3),
        peak_mib=_peak(device),
        layers=layers,
        notes=[*scan.changes, *notes],
    )


def _voxel(scan: Scan, query: Query) -> Query:
    return query if isinstance(query, str) else scan.voxel(query)


def query_text(query: Query) -> str:
    """A query as the command line has it."""
    return query if isinstance(query, str) else ",".join(map(str, query))


def _outputs(options: argparse.Namespace) -> dict[Query, Path]:
    """The file of each query, all of which can be written."""
    if not options.query:
        raise ValueError(
            "--query is missing: name a voxel of the scan, as --query 64,48,12, or the class token: class."
        )
    if options.target is not None and options.method != "relevance":
        raise ValueError(f"--target {options.target} is for --method relevance.")
    path, queries = Path(options.output), list(dict.fromkeys(options.query))
    suffix = suffix_of(path)
    stem = path.name[: -len(suffix)]
    outputs = {
        query: path if len(queries) == 1 else path.with_name(f"{stem}_{query_text(query).replace(',', '-')}{suffix}")
        for query in queries
    }
    for file in outputs.values():
        check_output(file, options.force)
    return outputs


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _scan(options: argparse.Namespace, config: NetworkConfig) -> Scan:
    bound = signature(config.cls).bind(**config.arguments)
    bound.apply_defaults()
    values = bound.arguments
    dims = values.get("spatial_dims")
    fixed = values.get("img_size", values.get("input_shape"))
    if fixed is not None:
        fixed = (fixed,) * (dims or 1) if isinstance(fixed, int) else tuple(fixed)
    preparation = Preparation(
        volumes=tuple(options.volume),
        orientation=options.orientation,
        spacing=tuple(options.spacing),
        plane=options.slice,
        size=tuple(options.size) or fixed,
        fit=options.fit,
        percentiles=None if options.raw else tuple(options.percentiles),
    )
    scan = read_scan(Path(options.image), dims, values.get("in_channels"), preparation)
    if any(base.__name__ in MAKERS for base in config.cls.__mro__):
        sample_calls(config.cls, config.arguments, scan.size, batch=1)  # refuses a size that does not fit
    return scan


def _inputs(options: argparse.Namespace, net: nn.Module, scan: Scan, config: NetworkConfig) -> dict[str, torch.Tensor]:
    """The arguments of the network's forward."""
    parameters = signature(net.forward).parameters
    first = next(iter(parameters), None)
    if first is None or "num_tokens" in config.arguments:
        raise ValueError(f"{config.cls.__name__} takes no image: its attention lies on none.")
    inputs = {first: scan.image.as_tensor()[None]}
    if options.timestep is not None:
        inputs["timesteps"] = torch.tensor([options.timestep])
    if options.inputs is not None:
        inputs = {**read_inputs(options.inputs)[0].inputs, **inputs}
    unknown = inputs.keys() - parameters.keys()
    if unknown:
        raise ValueError(f"{config.cls.__name__} takes no {sorted(unknown)[0]}: its arguments are {list(parameters)}.")
    if "timesteps" in parameters and "timesteps" not in inputs:
        raise ValueError(f"{config.cls.__name__} needs the time of the diffusion: pass --timestep N.")
    needed = [name for name, value in parameters.items() if value.default is Parameter.empty and name not in inputs]
    if needed:
        raise ValueError(f"{config.cls.__name__} needs {', '.join(needed)} as well: give them with --inputs FILE.")
    return {name: inputs[name] for name in parameters if name in inputs}


def _check_query(net: nn.Module, options: argparse.Namespace, query: Query) -> None:
    """Refuse layers and queries that the network does not have."""
    asked = query if isinstance(query, str) else [query]
    capture_attention(net, options.layers, asked)


def _forward(net: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    try:
        net(**inputs)
    except (RuntimeError, TypeError, LookupError) as error:
        raise ValueError(f"{type(net).__name__} does not run on these inputs: {_shapes(inputs)}: {error}") from error


def _shapes(inputs: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} of {list(value.shape)}" for name, value in inputs.items())


def _rows(
    net: nn.Module, inputs: dict[str, torch.Tensor], queries: list[Query], options: argparse.Namespace, step: Step
) -> dict[Query, list[AttentionMap]]:
    """The maps of each query; those of voxels are captured in one pass."""
    maps: dict[Query, list[AttentionMap]] = {}
    voxels = [query for query in queries if not isinstance(query, str)]
    words = [query for query in queries if isinstance(query, str)]
    groups: list[list[tuple[int, ...]] | str] = list(words)
    if voxels:
        groups.insert(0, voxels)
    for group in groups:
        capture = capture_attention(net, options.layers, group, average_heads=options.heads is None)
        with torch.no_grad(), capture, _telling(capture.blocks, step):
            _forward(net, inputs)
        asked: list[Query] = [group] if isinstance(group, str) else [*group]
        maps.update(dict.fromkeys(asked, capture.maps))
    return maps


def _rollout(
    net: nn.Module, inputs: dict[str, torch.Tensor], queries: list[Query], options: argparse.Namespace, step: Step
) -> dict[Query, list[AttentionMap]]:
    capture = capture_attention(net, options.layers, "all", average_heads=True)
    with torch.no_grad(), capture, _telling(capture.blocks, step):
        _forward(net, inputs)
    last = capture.maps[-1]
    size = last.image_size or ()
    tokens = torch.tensor([token_of_query(last, query, size) for query in queries])
    weights = attention_rollout(capture.maps, tokens=tokens)
    found = replace(last, name="rollout", weights=weights[:, None], queries=tokens.to(last.queries.device))
    return {query: [found] for query in queries}


def _relevance(
    net: nn.Module, inputs: dict[str, torch.Tensor], queries: list[Query], options: argparse.Namespace, step: Step
) -> dict[Query, list[AttentionMap]]:
    step("relevance", 2)
    target = options.target if options.target is not None else _largest
    maps: dict[Query, list[AttentionMap]] = {}
    for query in queries:
        asked = query if isinstance(query, str) else [query]
        maps[query] = [attention_relevance(net, tuple(inputs.values()), target, asked, options.layers)]
    return maps


def _largest(output: Any) -> torch.Tensor:
    """The largest logit of each image."""
    logits = output if torch.is_tensor(output) else output[0]
    if logits.dim() != 2:
        raise ValueError(
            f"relevance explains a class, and the network's output of shape {list(logits.shape)} is none of "
            "(1, classes): take --method rows or rollout."
        )
    out: torch.Tensor = logits.max(dim=1).values
    return out


METHODS = {"rows": _rows, "rollout": _rollout, "relevance": _relevance}


@contextmanager
def _telling(blocks: Mapping[str, nn.Module], step: Step) -> Iterator[None]:
    """Tell of each layer when it is done."""
    handles = []
    for left, (name, block) in zip(reversed(range(2, 2 + len(blocks))), blocks.items()):
        handles.append(block.register_forward_hook(lambda *_, name=name, left=left: step(name, left)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_grids(found: dict[Query, list[AttentionMap]]) -> tuple[dict[Query, list[AttentionMap]], list[str]]:
    """The maps with keys on a grid, and a note on the others."""
    maps = {query: [item for item in items if item.key_grid is not None] for query, items in found.items()}
    left_out = {item.name: None for items in found.values() for item in items if item.key_grid is None}
    if not all(maps.values()):
        raise ValueError(f"the keys of {', '.join(left_out)} lie on no grid of the image: choose other --layers.")
    notes = [f"{name} is left out: its keys lie on no grid of the image." for name in left_out]
    return maps, notes


def _layers(
    maps: Sequence[AttentionMap], query: Query, voxel: Query, scan: Scan, options: argparse.Namespace
) -> list[LayerReport]:
    rows = []
    for item in maps:
        for head in chosen_heads(item, options.heads):
            weights = attention_of_query(item, scan.size, voxel, head).double()
            total = float(weights.sum())
            share = weights / total if total > 0 else weights
            place = maximum_voxel(item, weights, scan.size)
            rows.append(
                LayerReport(
                    layer=item.name,
                    call=item.call,
                    head=head,
                    query=query_text(query),
                    token=token_of_query(item, voxel, scan.size),
                    grid=tuple(weights.shape),
                    maximum=float(weights.max()),
                    voxel=scan.file_voxel(place),
                    world=[round(value, 3) for value in to_world(scan.affine, place)],
                    on_grid=total,
                    entropy=float(torch.special.entr(share).sum()),
                )
            )
    return rows


def _save(path: Path, maps: list[AttentionMap], scan: Scan, query: Query, options: argparse.Namespace) -> None:
    figure = {"label": LABELS[options.method], "name_voxel": scan.file_voxel} if suffix_of(path) == ".png" else {}
    save_attention(path, maps, scan.image, query, options.heads, options.force, mode=options.mode, **figure)


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
