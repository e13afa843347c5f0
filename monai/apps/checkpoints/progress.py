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


"""Progress bars of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["LARGE", "bar"]

LARGE = 64 * 2**20
"""From so many bytes on a terminal gets a bar unasked."""


@contextmanager
def bar(label: str, total: int, wanted: bool | None = None) -> Iterator[Callable[[int], None]]:
    """
    Show on stderr how many bytes are done.

    Args:
        label: what is being done.
        total: number of bytes.
        wanted: whether to show the bar; None shows it on a terminal, for a large file. It needs tqdm.

    Yields:
        a function to call with the number of bytes that were done since its last call.
    """
    show = sys.stderr.isatty() and total >= LARGE if wanted is None else wanted
    tqdm = _tqdm() if show else None
    if tqdm is None:
        yield lambda done: None
        return
    with tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr) as shown:

        def advance(done: int) -> None:
            shown.update(done)

        yield advance


def _tqdm():
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
