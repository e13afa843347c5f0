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


"""The few references that the repository keeps: every layout and every network at least once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

import torch

from tests.parity.references.cases import CASES, Case
from tests.parity.references.store import FILES, load_file, save_file, write

__all__ = ["find", "kept", "make_subset", "subset"]

PATTERNS = [
    # the ancestor, and GenerativeModels before it came to PyPI
    "stable-diffusion-sdkit==2.1.5, *, 2-D",
    "monai-generative before 0.1.0, *, 3-D, *",
    "monai-generative before 0.1.0, *, 2-D conditioned, *",
    "monai-generative 0.1.0, *, 2-D, *",
    "monai-generative 0.1.0, *, 2-D conditioned, *",
    "monai-generative 0.1.0, unscaled, *, 2-D conditioned, *",
    "monai-generative 0.1.x, *, 3-D, *",
    # its releases
    "monai-generative==0.2.1, DecoderOnlyTransformer, cross",
    "monai-generative==0.2.3, *, 2-D",
    "monai-generative==0.2.3, DiffusionModelUNet, 3-D conditioned",
    "monai-generative==0.2.3, AutoencoderKL, 3-D transposed",
    "monai-generative==0.2.3, DecoderOnlyTransformer, *",
    # MONAI: projections that are used, saved in vain, and left out
    "monai==1.2.0, ViT*, 2-D",
    "monai==1.3.2, ViT, 3-D perceptron",
    "monai==1.4.0, *, 2-D, include_fc=False, use_combined_linear=False",
    "monai==1.4.0, AutoencoderKlMaisi, 3-D*, include_fc=False, use_combined_linear=False",
    "monai==1.4.0, DiffusionModelUNet, 2-D conditioned, *=False, *=False, untrained projections",
    "monai==1.4.0, AutoencoderKL, 2-D, *=False, *=False, untrained projections",
    "monai==1.4.0, SPADEDiffusionModelUNet, 2-D, *=False, *=False, untrained projections",
    "monai==1.4.0, DecoderOnlyTransformer, cross, *=False, *=False, untrained projections",
    "monai==1.4.0, ViT, 2-D",
    "monai==1.5.2, *, 2-D, include_fc=False, use_combined_linear=True",
    "monai==1.5.2, ViTAutoEnc, 2-D",
    "monai==1.5.2, UNETR, 2-D",
    "monai==1.5.2, MaskedAutoEncoderViT, 2-D",
    "monai==1.6.1, DiffusionModelUNet, 3-D, include_fc=True, use_combined_linear=False",
    "monai==1.6.1, ControlNet, 3-D, include_fc=True, use_combined_linear=False",
    "monai==1.6.1, AutoencoderKlMaisi, 3-D, include_fc=True, use_combined_linear=False",
    "monai==1.6.1, DecoderOnlyTransformer, cross, include_fc=True, use_combined_linear=True",
    "monai==1.6.1, ViT, 3-D perceptron",
]


def subset() -> list[Case]:
    """The cases whose references are kept."""
    return [case for case in CASES if any(fnmatchcase(case.name, pattern) for pattern in PATTERNS)]


def make_subset(folder: Path = FILES, chosen: Sequence[Case] | None = None) -> list[Path]:
    """
    Write the files of the subset, or of some of its cases.

    Returns:
        the files
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for _, cases in groupby(subset() if chosen is None else chosen, key=lambda case: case.writer):
        members = list(cases)
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch, "references.pt")
            write(members, place)
            written = torch.load(place, weights_only=True)
            made += [save_file(case, written[case.name], folder) for case in members]
    return made


def find(beginning: str, cases: list[Case] = CASES) -> Case:
    """The first case whose name begins so, and continues with options at most."""
    return next(case for case in cases if f"{case.name}, ".startswith(f"{beginning.rstrip(',')}, "))


def kept(beginning: str) -> tuple[Case, dict]:
    """A kept reference."""
    return load_file(FILES / f"{find(beginning, subset()).slug}.pt.xz")
