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


"""Tells a checkpoint that is refused from a question that its user has to answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .reading import networks_in

__all__ = ["CheckpointRefused", "refusing"]


class CheckpointRefused(ValueError):
    """A file that is damaged, no checkpoint, or not to be trusted."""


@contextmanager
def refusing(path: str | os.PathLike, name: str | None) -> Iterator[None]:
    """
    Let a block that reads a checkpoint raise :class:`CheckpointRefused` where the file itself is the trouble.

    Args:
        path: the file.
        name: the network that was asked for.

    Raises:
        CheckpointRefused: instead of a ValueError, unless another ``name`` would help.
    """
    try:
        yield
    except ValueError as error:
        if _is_about_the_name(path, name):
            raise
        raise CheckpointRefused(str(error)) from error


def _is_about_the_name(path: str | os.PathLike, name: str | None) -> bool:
    try:
        names = networks_in(path)
    except ValueError:
        return False
    return len(names) > 1 if name is None else name not in names
