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

"""
Where torch's own ``scaled_dot_product_attention`` builds the L x L matrix after all: its peak memory, by head width,
type and option.

A call is timed and measured in a process of its own, ``python -m benchmarks.kernels`` with ``FIXED_ALLOCATION``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.case import Setting
from benchmarks.measure import FIXED_ALLOCATION, peak_bytes
from fork.referee import ROOT

__all__ = ["HEAD_WIDTHS", "OPTIONS", "KernelRow", "kernel_table", "measure_kernels", "rows_of"]

TOKENS = 8192
HEAD_WIDTHS = (32, 64, 128, 256, 257, 320, 512)
DTYPES = ("float32", "bfloat16", "float64")
OPTIONS = ("plain", "causal", "mask of keys", "mask of pairs", "bias of pairs", "dropout")
LINEAR = 0.3
"""Memory below this part of an L x L matrix holds none."""


@dataclass(frozen=True)
class KernelRow:
    """What one call of the kernel costs."""

    width: int
    dtype: str
    option: str
    training: bool
    tokens: int
    seconds: float
    bytes: int

    @property
    def matrices(self) -> float:
        """Peak memory in L x L matrices of the type, the arguments not counted."""
        out: float = self.bytes / (self.tokens**2 * getattr(torch, self.dtype).itemsize)
        return out


def rows_of(width: int, dtype: str, tokens: int, device: str = "cpu") -> Iterator[KernelRow]:
    """Measure every option of a head width and type, forward alone and with a backward pass, in this process."""
    for option, training in itertools.product(OPTIONS, (False, True)):
        call = _attention(width, dtype, option, training, tokens, device)
        start = time.perf_counter()
        peak = peak_bytes(call, Setting(device))
        yield KernelRow(width, dtype, option, training, tokens, time.perf_counter() - start, peak)


def measure_kernels(quick: bool = False, device: str = "cpu") -> Iterator[KernelRow]:
    """
    Measure the kernel.

    Args:
        quick: whether fewer tokens, widths and types will do.
        device: where.
    """
    tokens = TOKENS // 4 if quick else TOKENS
    for width, dtype in itertools.product((64, 512) if quick else HEAD_WIDTHS, DTYPES[:1] if quick else DTYPES):
        command = [sys.executable, "-m", "benchmarks.kernels", str(width), dtype, str(tokens), device]
        environment = {**os.environ, **FIXED_ALLOCATION, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
        for row in json.loads(done.stdout):
            yield KernelRow(**row)


def kernel_table(rows: list[KernelRow]) -> str:
    """The rows as Markdown: L x L matrices at the peak, forward / forward and backward; bold where there is one."""
    groups: dict[tuple[int, str], dict[tuple[str, bool], KernelRow]] = {}
    for row in rows:
        groups.setdefault((row.width, row.dtype), {})[row.option, row.training] = row
    head = ("head width", "type", *OPTIONS)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (width, dtype), found in groups.items():
        cells = [" / ".join(_cell(found[option, training]) for training in (False, True)) for option in OPTIONS]
        lines.append(f"| {width} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: KernelRow) -> str:
    text = f"{row.matrices:.1f}"
    return f"**{text}**" if row.matrices > LINEAR else text


def _attention(width: int, dtype: str, option: str, training: bool, tokens: int, device: str) -> Callable[[], Any]:
    """A call of the kernel, one head, with what an option adds to it."""
    kind = getattr(torch, dtype)
    q, k, v = (torch.randn(1, 1, tokens, width, dtype=kind, device=device, requires_grad=training) for _ in range(3))
    arguments: dict[str, Any] = {}
    if option == "causal":
        arguments["is_causal"] = True
    elif option == "mask of keys":
        arguments["attn_mask"] = torch.rand(1, 1, 1, tokens, device=device) > 0.1
    elif option == "mask of pairs":
        arguments["attn_mask"] = torch.rand(1, 1, tokens, tokens, device=device) > 0.1
    elif option == "bias of pairs":
        arguments["attn_mask"] = torch.randn(1, 1, tokens, tokens, dtype=kind, device=device)
    elif option == "dropout":
        arguments["dropout_p"] = 0.1

    def call() -> Any:
        out = F.scaled_dot_product_attention(q, k, v, **arguments)
        if training:
            out.sum().backward()
            q.grad = k.grad = v.grad = None
        return out

    return call


def _main(width: str, dtype: str, tokens: str, device: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps([asdict(row) for row in rows_of(int(width), dtype, int(tokens), device)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
