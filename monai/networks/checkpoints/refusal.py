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

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CheckpointRefused", "NetworkNotChosen", "refusing"]


class CheckpointRefused(ValueError):
    """A file that is damaged, no checkpoint, or not to be trusted."""


class NetworkNotChosen(ValueError):
    """A file holds several networks, or none of the name that was asked for: another name helps."""


@contextmanager
def refusing() -> Iterator[None]:
    """
    Let a block that reads a checkpoint raise :class:`CheckpointRefused` where the file itself is the trouble.

    Raises:
        CheckpointRefused: instead of any other ValueError.
        NetworkNotChosen: as it was raised.
    """
    try:
        yield
    except (CheckpointRefused, NetworkNotChosen):
        raise
    except ValueError as error:
        raise CheckpointRefused(str(error)) from error
