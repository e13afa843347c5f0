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
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.volume_steps import Layer, VolumeSteps
from monai.networks.state_dict.torch_private import inside_of_compiled, own_module, twin_with_children
from monai.networks.volumes.stream_plan import Plan, make_plan
from monai.networks.volumes.stream_run import Run, measure_steps
from monai.networks.volumes.stream_sizes import VolumeSize
from monai.networks.volumes.stream_storage import FolderStorage, Layout, MemoryStorage, Storage, layout_of
from monai.utils import optional_import

__all__ = ["Needs", "StreamedAutoencoder"]

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
        if isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory >= 1:
            raise ValueError(f"memory={memory!r} should be the number of bytes that the device may hold.")
        if storage is not None and storage != "cpu" and not isinstance(storage, (str, os.PathLike)):
            raise ValueError(f"storage={storage!r} should be 'cpu', None or an existing folder.")
        if storage not in (None, "cpu"):
            FolderStorage(storage)  # type: ignore[arg-type]  # says whether there is one
        autoencoder = inside_of_compiled(autoencoder) or autoencoder  # its layers are not called as it was compiled
        self.autoencoder = autoencoder
        self.memory = int(memory)
        self.storage = storage
        self.progress = progress
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        for name in _paths(autoencoder):
            path = getattr(autoencoder, name)
            VolumeSteps(autoencoder, _spatial_dims(path), inputs=2, checks_mode=False).add(0, path)

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
            if isinstance(getattr(type(autoencoder), name, None), Callable):  # type: ignore[arg-type]
                return partial(self._call, name)
            return getattr(autoencoder, name)

    def _get_name(self) -> str:
        return "StreamedAutoencoder"

    def extra_repr(self) -> str:
        return f"memory={self.memory}, storage={self.storage!r}"

    def needs(self, method: str, *inputs: torch.Tensor) -> Needs:
        """
        What a method will need, without running it.

        Args:
            method: "encode" or "decode".
            inputs: its inputs.

        Raises:
            MemoryTooSmall: if ``memory`` is too small, with the smallest that suffices.
        """
        if method not in ("encode", "decode"):
            raise ValueError(f"method={method!r} should be 'encode' or 'decode'.")
        path = getattr(self.autoencoder, f"{method}r")
        return _needs(_Streamed(path, self).plan(*inputs))

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

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """
        Run a method of the autoencoder, with streams in the place of its encoder and decoder.

        Raises:
            RuntimeError: if a gradient is asked for.
        """
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        _refuse_gradients(tensors, self.autoencoder)
        given = tensors[0].device if tensors else None
        if name.startswith("decode"):  # latents are small
            device = _device(self.autoencoder)
            args = (*(value.to(device) if torch.is_tensor(value) else value for value in args[:1]), *args[1:])
            moved = {key: value.to(device) for key, value in kwargs.items() if torch.is_tensor(value) and key != "seg"}
            kwargs = {**kwargs, **moved}
        with torch.no_grad():
            found = getattr(_view(self), name)(*args, **kwargs)
        return _on_device(found, given)


class _Streamed(nn.Module):
    """
    Stands in the place of an encoder or a decoder.

    Args:
        path: the encoder or decoder.
        owner: says how it is streamed.
    """

    def __init__(self, path: nn.Module, owner: StreamedAutoencoder) -> None:
        super().__init__()
        self.path = path
        self.owner = [owner]  # in a list, so that it is no child

    def plan(self, *inputs: torch.Tensor) -> Plan:
        """How the computation of these inputs fits into the memory."""
        owner, x = self.owner[0], inputs[0]
        spatial_dims = _spatial_dims(self.path)
        if x.dim() != spatial_dims + 2:
            raise ValueError(f"the input should have {spatial_dims + 2} axes, (B, C, sizes), got {list(x.shape)}.")
        steps = VolumeSteps(owner.autoencoder, spatial_dims, len(inputs))
        steps.add(0, self.path)
        sizes = [VolumeSize(each.shape[0], each.shape[1], tuple(each.shape[2:]), each.dtype) for each in inputs]
        with torch.no_grad():
            measured = measure_steps(steps, sizes, _device(self.path))
        return make_plan(measured, owner.memory, owner.storage is None)

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, other sizes), where volumes rest."""
        owner, device = self.owner[0], _device(self.path)
        inputs = [_plain(each) for each in (x, *others)]
        if x.shape[0] == 0:
            empty: torch.Tensor = self.path(*inputs)
            return empty
        plan = self.plan(*inputs)
        needs = _needs(plan)
        logger.info(f"{type(self.path).__name__} of {list(x.shape)}: {needs}")
        storage = _storage(owner.storage, device)
        storage.check_room(needs.storage)
        with _progress(owner.progress, needs.parts, type(self.path).__name__) as bar:
            return Run(plan, inputs, storage, device, self._layout(plan), bar.update).result()

    def _layout(self, plan: Plan) -> Layout:
        """What is contiguous in the path's results: noise of their shape is drawn in that order."""
        steps, inputs = plan.sizes.sized, plan.sizes.inputs
        reaches = [op.reaches[0] for step in steps for op in step.step.operations if isinstance(op, Layer)]
        length = 2 * math.prod(reach.down for reach in reaches)
        device = _device(self.path)
        few = []
        for each in inputs:
            shape = (min(each.batch, 2), each.channels, *(min(size, length) for size in each.sizes))
            few.append(torch.zeros(shape, dtype=each.dtype, device=device))
        try:
            return layout_of(self.path(*few))
        except RuntimeError:  # too few for a large kernel: then the result is laid out as images are
            return Layout.CHANNELS


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


def _view(streamed: StreamedAutoencoder) -> Any:
    """A second autoencoder on the same modules, with streams in the place of the encoder and decoder."""
    autoencoder = streamed.autoencoder
    streams = {name: _Streamed(getattr(autoencoder, name), streamed) for name in _paths(autoencoder)}
    return twin_with_children(autoencoder, streams)


def _spatial_dims(path: nn.Module) -> int:
    weights = [parameter.dim() - 2 for parameter in path.parameters() if parameter.dim() > 2]
    return weights[0] if weights else 3


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _storage(wanted: Any, device: torch.device) -> Storage:
    if wanted is None:
        return MemoryStorage(device)
    if wanted == "cpu":
        return MemoryStorage(torch.device("cpu"), pinned=device.type == "cuda")
    return FolderStorage(wanted)


def _plain(x: torch.Tensor) -> torch.Tensor:
    """``x`` without the metadata that it may carry."""
    return x.as_subclass(torch.Tensor) if type(x) is not torch.Tensor else x


def _on_device(found: Any, device: torch.device | None) -> Any:
    if isinstance(found, tuple):
        return tuple(_on_device(each, device) for each in found)
    return found.to(device) if torch.is_tensor(found) and device is not None else found


def _refuse_gradients(tensors: list[torch.Tensor], autoencoder: nn.Module) -> None:
    """
    Raises:
        RuntimeError: if a gradient would be lost.
    """
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
