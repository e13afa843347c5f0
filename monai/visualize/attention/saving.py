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


"""Attention in files: pictures, arrays and NIfTI volumes."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai.utils.module import optional_import
from monai.utils.whole_files import check_place, replacing

from .figure import plot_attention
from .maps import AttentionMap
from .on_image import affine_of, attention_of_query, chosen_heads, covered_part, on_voxels

__all__ = ["SUFFIXES", "check_output", "save_attention", "suffix_of"]

SUFFIXES = (".png", ".npy", ".npz", ".nii", ".nii.gz")
PACKAGES = (
    ("matplotlib", (".png",), "draws figures"),
    ("nibabel", (".nii", ".nii.gz"), "writes NIfTI files"),
)


def save_attention(
    path: str | os.PathLike,
    maps: AttentionMap | Sequence[AttentionMap],
    image: torch.Tensor | None = None,
    query: Sequence[int] | str | None = None,
    head: int | str | None = None,
    overwrite: bool = True,
    **options: Any,
) -> None:
    """
    Write attention to a file, by its suffix; the file is there whole, or not at all.

    - ``.png``: the figure of :func:`plot_attention`.
    - ``.npy``: what the query attends to, on the grid of the keys: ``(maps, heads, *grid)``, with one head for the
      mean. Grids of several sizes need ``.npz``.
    - ``.npz``: the same for each map, under its name; with ``affine``, of the image, where it has one.
    - ``.nii``, ``.nii.gz``: the same at the voxels of the image, with its affine: ``(*size)``, or ``(*size, volumes)``
      with a volume for each map and head. A 2-D image is a volume of one slice.

    Args:
        path: the file.
        maps: what was captured, with keys on a grid.
        image: ``(C, *size)``, for the figure and the volume.
        query: see :func:`plot_attention`.
        head: which, "all", or None for the mean.
        overwrite: whether the file may exist.
        options: of :func:`plot_attention`; ``batch`` and ``mode`` hold for arrays and volumes, too.

    Raises:
        ValueError: for another suffix, or without the image that the format needs; as :func:`plot_attention`.
        ImportError: without the package that writes the format: matplotlib or nibabel.
        OSError: if the file exists, or cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite)
    maps = [maps] if isinstance(maps, AttentionMap) else list(maps)
    suffix = suffix_of(path)
    write = WRITERS[suffix](maps, image, query, head, options)
    with replacing(path, overwrite) as partial:
        with open(partial, "xb") as file:
            if suffix == ".nii.gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:  # equal runs, equal files
                    write(packed)
            else:
                write(file)


def suffix_of(path: Path) -> str:
    """
    The suffix that tells the format.

    Raises:
        ValueError: if it is none of :data:`SUFFIXES`.
    """
    found = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    if not found:
        raise ValueError(f"'{path}' has no suffix that tells a format: name it {', '.join('*' + s for s in SUFFIXES)}.")
    return found[0]


def check_output(path: Path, overwrite: bool) -> None:
    """
    Say beforehand why attention cannot be written to a file.

    Raises:
        ValueError: if its suffix tells no format.
        ImportError: without the package that writes the format.
        OSError: as :func:`check_place`.
    """
    suffix = suffix_of(path)
    check_place(path, overwrite)
    for package, suffixes, what in PACKAGES:
        if suffix in suffixes and not optional_import(package)[1]:
            raise ImportError(f"{package} {what} and is not installed: pip install {package}.")


Write = Callable[[Any], None]


def _png(maps: Sequence[AttentionMap], image: Any, query: Any, head: Any, options: dict[str, Any]) -> Write:
    figure = plot_attention(_needed(image, "a figure"), maps, query, head, **options)
    return lambda file: figure.savefig(file, format="png", dpi=110)


def _npy(maps: Sequence[AttentionMap], image: Any, query: Any, head: Any, options: dict[str, Any]) -> Write:
    arrays = [array for _, array in _arrays(maps, image, query, head, options)]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"one array cannot hold maps of the shapes {sorted(shapes)}: name the file *.npz.")
    return lambda file: np.save(file, np.stack(arrays))


def _npz(maps: Sequence[AttentionMap], image: Any, query: Any, head: Any, options: dict[str, Any]) -> Write:
    arrays: dict[str, Any] = dict(_arrays(maps, image, query, head, options))
    affine = affine_of(image)
    if affine is not None:
        arrays["affine"] = affine
    return lambda file: np.savez(file, **arrays)


def _nifti(maps: Sequence[AttentionMap], image: Any, query: Any, head: Any, options: dict[str, Any]) -> Write:
    nibabel, _ = optional_import("nibabel")
    image = _needed(image, "a NIfTI volume")
    size, mode = tuple(image.shape[1:]), options.get("mode", "linear")
    volumes = [
        on_voxels(torch.as_tensor(heads), covered_part(attention, size), size, mode).numpy()
        for attention, (_, heads) in zip(maps, _arrays(maps, image, query, head, options))
    ]
    volume = np.concatenate(volumes).astype(np.float32)
    volume = np.moveaxis(volume.reshape(len(volume), *size, *[1] * (3 - len(size))), 0, -1)
    volume = volume[..., 0] if volume.shape[-1] == 1 else volume
    written = nibabel.Nifti1Image(volume, _affine_3d(affine_of(image)))
    written.header.set_xyzt_units("mm")
    written.header["descrip"] = ", ".join(attention.name for attention in maps).encode("ascii", "replace")[:79]
    return lambda file: file.write(written.to_bytes())


WRITERS: dict[str, Callable[..., Write]] = {
    ".png": _png,
    ".npy": _npy,
    ".npz": _npz,
    ".nii": _nifti,
    ".nii.gz": _nifti,
}


def _needed(image: torch.Tensor | None, what: str) -> torch.Tensor:
    if image is None:
        raise ValueError(f"{what} needs the image: pass image=..., as it went into the network.")
    return image


def _arrays(
    maps: Sequence[AttentionMap], image: Any, query: Any, head: Any, options: dict[str, Any]
) -> list[tuple[str, np.ndarray]]:
    """Each map's name and what the query attends to in it, ``(heads, *grid)``; names are told apart by their call."""
    if not maps:
        raise ValueError("there is no map to save: capture a block.")
    names = [attention.name for attention in maps]
    found = []
    for attention, name in zip(maps, names):
        size: Any = attention.image_size if image is None else tuple(image.shape[1:])
        batch = options.get("batch", 0)
        rows = [attention_of_query(attention, size, query, one, batch) for one in chosen_heads(attention, head)]
        unique = name if names.count(name) == 1 else f"{name}, call {attention.call}"
        found.append((unique, torch.stack(rows).detach().cpu().float().numpy()))
    return found


def _affine_3d(affine: np.ndarray | None) -> np.ndarray:
    """An affine of three axes, from that of two or three."""
    whole = np.eye(4)
    if affine is None:
        return whole
    dims = min(len(affine) - 1, 3)
    whole[:dims, :dims], whole[:dims, 3] = affine[:dims, :dims], affine[:dims, -1]
    return whole
