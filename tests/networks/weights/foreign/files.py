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

"""The few references that the repository keeps, in small files."""

from __future__ import annotations

import io
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.networks.weights.foreign.rows import ROWS, Row

__all__ = ["COMMAND", "keep", "kept"]

FILES = Path(__file__).parents[3] / "testing_data" / "weights"
COMMAND = "python -m tests.parity.references.foreign --make-files"


def keep(row: Row, reference: Mapping[str, Any]) -> Path:
    """Keep a reference in a small file, the same bytes each time."""
    raw = io.BytesIO()
    torch.save({**reference, "row": row.full_name, "command": COMMAND}, raw)
    path = _place(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return path


def kept(full_name: str) -> tuple[Row, dict[str, Any]]:
    """A kept reference: the row, and weights, configuration, inputs and output."""
    row = next(row for row in ROWS if row.full_name == full_name)
    content = lzma.decompress(_place(row).read_bytes())
    return row, torch.load(io.BytesIO(content), weights_only=True)


def _place(row: Row) -> Path:
    return FILES / f"{row.slug}.pt.xz"
