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

"""Classes that users may replace by name, as in the release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["UNET_NAMES", "Names"]

T = TypeVar("T")


class Names:
    """
    The classes that go by their names in one module.

    The release keeps its diffusion U-Net, with all of its blocks, in one module. Users assign a class of their own to
    a name in that module (``diffusion_model_unet.SABlock = MyBlock``), and what is built afterwards consists of it.
    Here the blocks have modules of their own; they look up the names of the release's module when they build.

    Args:
        namespace: of the module, ``globals()`` there. It may follow later, by :meth:`follow`.
    """

    def __init__(self, namespace: Mapping[str, Any] | None = None) -> None:
        self._namespace: Mapping[str, Any] = {} if namespace is None else namespace

    def follow(self, namespace: Mapping[str, Any]) -> None:
        """Look names up in ``namespace`` from now on."""
        self._namespace = namespace

    def __call__(self, cls: type[T]) -> type[T]:
        """The class that goes by the name of ``cls``: ``cls`` itself unless a user has replaced it."""
        found: type[T] = self._namespace.get(cls.__name__, cls)
        return found


UNET_NAMES = Names()
"""The names in :mod:`monai.networks.nets.diffusion_model_unet`."""
