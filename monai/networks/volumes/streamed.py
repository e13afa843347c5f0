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

"""Autoencoders of volumes that do not fit into the memory of a device."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.reach import BATCH_NORMS, CONVOLUTIONS, INSTANCE_NORMS, POOLS, TRANSPOSED_CONVOLUTIONS
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.networks.state_dict.torch_private import inside_of_compiled, own_module, twin_for_a_while
from monai.networks.volumes.stream_plan import Plan, make_plan
from monai.networks.volumes.stream_ranks import company_of, unsplit
from monai.networks.volumes.stream_run import Run, measure_steps
from monai.networks.volumes.stream_sample import Sample, as_class_of, bytes_of_sample, plain, sample_of
from monai.networks.volumes.stream_sizes import Sizes, VolumeSize
from monai.networks.volumes.stream_storage import Storage, as_bytes, check_storage, storage_of
from monai.utils import optional_import

__all__ = ["Needs", "StreamedAutoencoder"]

OF_SOME_AXES = (CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, INSTANCE_NORMS, BATCH_NORMS, POOLS[:3], POOLS[3:])
"""Layers whose classes tell how many spatial axes they work on: one, two or three."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """
    What a streamed computation needs.

    Args:
        device: bytes on the device at most, beside the weights and the inputs.
        storage: bytes in the storage at most.
        parts: how many parts are computed in all.
        steps: in how many steps.
    """

    device: int
    storage: int
    parts: int
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.device / 2**20:,.0f} MiB on the device and {self.storage / 2**20:,.0f} MiB in the storage, for "
            f"{self.parts} parts in {self.steps} steps"
        )


class StreamedAutoencoder(nn.Module):
    """
    An autoencoder whose volumes are computed part by part, exactly.

    Every layer reads parts of what the layer before it wrote, with the neighbors that it reaches. Norms are those of
    the whole volume: their statistics are gathered while parts are written. So the outputs are those of
    ``autoencoder``, to rounding, while the device holds a part of one layer instead of whole volumes.

    It has the methods of ``autoencoder``, and may stand in its place in inferers and scripts: :class:`AutoencoderKL`,
    :class:`SPADEAutoencoderKL`, :class:`VQVAE`, MAISI's autoencoder, and other networks with a child ``encoder`` or
    ``decoder`` whose layers are known to be local or say how far they look. It is for inference: gradients are refused.
    A volume may lie on the host while the network lies on a GPU; results lie where the inputs do.

    Of a network that :func:`split_volume` has changed, every rank streams its slab: all methods take and give slabs.
    What a rank reads of the slabs of others rests in its storage, too.

    Args:
        autoencoder: the network. It is not changed, and shares its weights.
        memory: how many bytes the device may hold beside the weights and the inputs. Workspaces that libraries of
            convolutions allocate by themselves are not counted.
        storage: where volumes rest between layers: "cpu", a folder for files, or None. Without storage they rest on
            the device, within ``memory``, and what does not fit is computed again where it is read.
        progress: whether a progress bar is shown; it needs ``tqdm``. Defaults to False.

    Raises:
        TypeError: if ``autoencoder`` has neither an encoder nor a decoder, or has a layer that cannot be computed in
            parts.
        ValueError: if ``memory`` or ``storage`` cannot be.

    Example::

        streamed = StreamedAutoencoder(autoencoder, memory=8 * 2**30)
        image = streamed.decode(latent)
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        memory: int,
        storage: str | os.PathLike | None = "cpu",
        progress: bool = False,
    ) -> None:
        super().__init__()
        whole_bytes = as_bytes(memory)
        check_storage(storage)
        autoencoder = inside_of_compiled(autoencoder) or autoencoder  # its layers are not called as it was compiled
        self.autoencoder = autoencoder
        self.memory = whole_bytes
        self.storage = storage
        self.progress = progress
        self._told: set[str] = set()
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        network = unsplit(autoencoder)
        for name in _paths(network):
            path = getattr(network, name)
            # a layer that says how far it looks says it of the first axis whatever their number is
            VolumeSteps(network, _spatial_dims(path) or 1, inputs=2, checks_mode=False).add(0, path)

    def _class_of_autoencoder(self) -> type:
        """Inferers ask ``isinstance(autoencoder, SPADEAutoencoderKL)``; ``type`` tells the truth."""
        return type(own_module(self, "autoencoder")) if "autoencoder" in dict(self.named_children()) else type(self)

    __class__ = property(_class_of_autoencoder)  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamedAutoencoder, (self.autoencoder, self.memory, self.storage, self.progress)

    def __getattr__(self, name: str) -> Any:
        """What the autoencoder has besides: its own methods run on the streamed encoder and decoder, too."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name == "autoencoder" or "autoencoder" not in dict(self.named_children()):
                raise
            autoencoder = self.autoencoder
            if hasattr(OldCheckpoints, name):  # loads weights, of which the streams have none
                return getattr(autoencoder, name)
            if isinstance(vars(autoencoder).get(name), (FunctionType, MethodType)):
                self._tell_of_whole([name])
            if isinstance(getattr(type(autoencoder), name, None), Callable):  # type: ignore[arg-type]
                return partial(self._call, name)
            return getattr(autoencoder, name)

    def network_inside(self) -> nn.Module:
        """The network that holds the weights: what reads and writes checkpoints looks through this one."""
        return self.autoencoder

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the keys of the autoencoder, as it does itself: old ones, too, and all of them or none."""
        if any(str(key).startswith("autoencoder.") for key in state_dict):  # names of this module's own parameters
            return super().load_state_dict(state_dict, strict, assign)
        return self.autoencoder.load_state_dict(state_dict, strict, assign)

    def _get_name(self) -> str:
        return "StreamedAutoencoder"

    def extra_repr(self) -> str:
        return f"memory={self.memory}, storage={self.storage!r}"

    def needs(self, method: str, *inputs: torch.Tensor) -> Needs:
        """
        What a method will need, without running it.

        Args:
            method: "encode" or "decode".
            inputs: its inputs; slabs of them where the network is split, on all ranks.

        Raises:
            MemoryTooSmall: if ``memory`` is too small, with the smallest that suffices.
        """
        if method not in ("encode", "decode"):
            raise ValueError(f"method={method!r} should be 'encode' or 'decode'.")
        return _needs(_Streamed(f"{method}r", self).plan(*map(plain, inputs)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The ``forward`` of the autoencoder."""
        return self._call("forward", *args, **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """The ``encode`` of the autoencoder: images (B, C, sizes) to latents."""
        return self._call("encode", *args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The ``decode`` of the autoencoder: latents (B, C, sizes) to images."""
        return self._call("decode", *args, **kwargs)

    def reconstruct(self, *args: Any, **kwargs: Any) -> Any:
        """The ``reconstruct`` of the autoencoder: images to images."""
        return self._call("reconstruct", *args, **kwargs)

    def encode_stage_2_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The ``encode_stage_2_inputs`` of the autoencoder: images to the latents that a diffusion model learns."""
        return self._call("encode_stage_2_inputs", *args, **kwargs)

    def decode_stage_2_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """The ``decode_stage_2_outputs`` of the autoencoder: latents of a diffusion model to images."""
        return self._call("decode_stage_2_outputs", *args, **kwargs)

    def _tell_of_whole(self, names: Iterable[str]) -> None:
        """Warn, once of each, that methods on the autoencoder object itself call its layers, not the streams."""
        new = sorted(set(names) - self._told)
        if not new:
            return
        self._told.update(new)
        warnings.warn(
            f"{', '.join(new)} of {type(self.autoencoder).__name__} was set on the object, not in its class: it is "
            "called as it is, computes whole what it computes with the autoencoder's layers, and may need more than "
            f"memory={self.memory:,}. Write it as a method of a subclass, which is streamed.",
            stacklevel=4,
        )

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """
        Run a method of the autoencoder, with streams in the place of its encoder and decoder.

        Raises:
            RuntimeError: if a gradient is asked for.
            ValueError: if the network has no weights yet.
        """
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        company_of(self.autoencoder).alike(lambda: _refuse_calls(tensors, self.autoencoder))
        given = tensors[0].device if tensors else None
        if name.startswith("decode"):  # latents are small
            device = _device(self.autoencoder)
            args = (*(value.to(device) if torch.is_tensor(value) else value for value in args[:1]), *args[1:])
            moved = {key: value.to(device) for key, value in kwargs.items() if torch.is_tensor(value) and key != "seg"}
            kwargs = {**kwargs, **moved}
        kind = type(self.autoencoder)
        self._tell_of_whole(own for own in vars(self.autoencoder) if callable(getattr(kind, own, None)))
        streams = {path: _Streamed(path, self) for path in _paths(self.autoencoder)}
        with twin_for_a_while(self.autoencoder, streams) as view, torch.no_grad():
            found = getattr(view, name)(*args, **kwargs)
        return _on_device(found, given)


class _Streamed(nn.Module):
    """
    Stands in the place of an encoder or a decoder.

    Args:
        name: "encoder" or "decoder".
        owner: says how it is streamed.
    """

    def __init__(self, name: str, owner: StreamedAutoencoder) -> None:
        super().__init__()
        self.name = name
        self.path = getattr(owner.autoencoder, name)
        self.owner = [owner]  # in a list, so that it is no child

    def plan(self, *inputs: torch.Tensor) -> Plan:
        """How the computation of these inputs fits into the memory."""
        company, owner = company_of(self.path), self.owner[0]
        with company.call(inputs):
            slabs = company.slabs(inputs)
            memory = company.memory(owner.memory, owner.storage is None)
            return company.alike(lambda: self._plan(inputs, slabs, memory))

    def _plan(self, inputs: Sequence[torch.Tensor], slabs: dict[str, Any], memory: int) -> Plan:
        owner, spatial_dims = self.owner[0], inputs[0].dim() - 2
        wanted = _spatial_dims(self.path) or max(1, spatial_dims)
        if spatial_dims != wanted:
            raise ValueError(f"the input should have {wanted + 2} axes, (B, C, sizes), got {list(inputs[0].shape)}.")
        batches = [each.shape[0] for each in inputs]
        if any(batch not in (1, batches[0]) for batch in batches):
            raise ValueError(f"the inputs have batches of {batches}: they should be as long as the first, or 1.")
        network = unsplit(owner.autoencoder)
        steps = VolumeSteps(network, spatial_dims, len(inputs))
        steps.add(0, getattr(network, self.name))
        sizes = [VolumeSize(each.shape[0], each.shape[1], tuple(each.shape[2:]), each.dtype) for each in inputs]
        if slabs:
            sizes = [each.of_length(slabs["axis"], cut.total) for each, cut in zip(sizes, slabs["cuts"])]
        with torch.no_grad():
            measured = measure_steps(Sizes(steps, sizes, **slabs), _device(self.path))
        return make_plan(measured, memory, owner.storage is None, bytes_of_sample(measured))

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, other sizes), where volumes rest; slabs of both where the network is split."""
        if x.shape[0] == 0:
            empty: torch.Tensor = self.path(x, *others)
            return empty
        company, owner, device = company_of(self.path), self.owner[0], _device(self.path)
        given = (x, *others)
        inputs = [plain(each) for each in given]
        with company.call(inputs):
            plan = self.plan(*inputs)
            needs = _needs(plan)
            logger.info(f"{type(self.path).__name__} of {list(x.shape)}: {needs}")
            storage, sample = company.alike(lambda: self._before(plan, given, needs))
            with _progress(owner.progress, needs.parts, type(self.path).__name__) as bar:
                run = Run(plan, inputs, storage, device, sample.layout, bar.update, company.ranks)
                found = run.result()
            company.know(plan.sizes.cuts[-1])
        return as_class_of(found, sample.empty)

    def _before(self, plan: Plan, given: Sequence[torch.Tensor], needs: Needs) -> tuple[Storage, Sample]:
        """What is needed before the first step: room where volumes rest, and what the result looks like."""
        owner, device = self.owner[0], _device(self.path)
        path = getattr(unsplit(owner.autoencoder), self.name)
        return storage_of(owner.storage, device, needs.storage), sample_of(path, plan.sizes, given, device)


class _NoBar:
    """A progress bar that is not shown."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self) -> None:
        """Nothing is shown."""


def _progress(wanted: bool, total: int, title: str) -> Any:
    if not wanted:
        return _NoBar()
    tqdm, _ = optional_import("tqdm", name="tqdm")
    return tqdm(total=total, desc=title, unit="part")


def _needs(plan: Plan) -> Needs:
    return Needs(plan.device, plan.storage, plan.number_of_parts, len(plan.sizes.sized))


def _paths(autoencoder: nn.Module) -> list[str]:
    """
    Names of the children that are streamed.

    Raises:
        TypeError: if there is none.
    """
    names = [name for name in ("encoder", "decoder") if isinstance(getattr(autoencoder, name, None), nn.Module)]
    if not names:
        raise TypeError(
            f"{type(autoencoder).__name__} has neither an encoder nor a decoder: pass the autoencoder itself, without "
            "what is wrapped around it."
        )
    return names


def _spatial_dims(path: nn.Module) -> int | None:
    """How many spatial axes a path's volumes have; None if its layers do not tell it."""
    for module in path.modules():
        for kinds in OF_SOME_AXES:
            for dims, kind in enumerate(kinds, 1):
                if isinstance(module, kind):
                    return dims
    return None


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _on_device(found: Any, device: torch.device | None) -> Any:
    if isinstance(found, tuple):
        return tuple(_on_device(each, device) for each in found)
    return found.to(device) if torch.is_tensor(found) and device is not None else found


def _refuse_calls(tensors: list[torch.Tensor], autoencoder: nn.Module) -> None:
    """
    Raises:
        ValueError: if the network has no weights yet.
        RuntimeError: if a gradient would be lost.
    """
    if _device(autoencoder).type == "meta":
        raise ValueError(
            f"{type(autoencoder).__name__} has no weights yet, it is on the meta device: call to_empty(device=...) and "
            "load a checkpoint first."
        )
    if not torch.is_grad_enabled():
        return
    learns = autoencoder.training and any(parameter.requires_grad for parameter in autoencoder.parameters())
    if learns or any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "StreamedAutoencoder computes no gradients: call eval() and use torch.no_grad(), or the autoencoder itself."
        )


def _without_prefix(module: nn.Module, state_dict: dict, prefix: str, local_metadata: Any) -> None:
    """Save the keys of the autoencoder."""
    inner = prefix + "autoencoder."
    for key in [key for key in state_dict if key.startswith(inner)]:
        state_dict[prefix + key[len(inner) :]] = state_dict.pop(key)


def _with_prefix(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
    """Load the keys of the autoencoder."""
    inner = prefix + "autoencoder."
    for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(inner)]:
        state_dict[inner + key[len(prefix) :]] = state_dict.pop(key)
