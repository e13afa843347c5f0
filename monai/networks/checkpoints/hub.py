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
Networks as huggingface_hub's models, which it saves, loads and pushes.

The class is made when it is asked for: ``import monai`` imports this module, and huggingface_hub takes a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.construction import record_construction
from monai.utils import optional_import

from .pretrained import from_pretrained, save_pretrained
from .saved_folder import PARTS
from .untrusted import listed

__all__ = ["PretrainedMixin"]  # noqa: F822  # by __getattr__


def __getattr__(name: str) -> Any:
    if name == "PretrainedMixin":
        return _mixin()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def _mixin() -> type:
    base, has_hub = optional_import("huggingface_hub", name="ModelHubMixin")
    if not has_hub:
        raise ImportError("PretrainedMixin needs huggingface_hub: pip install huggingface_hub.")

    class PretrainedMixin(base):  # type: ignore[misc,valid-type]
        """
        What huggingface_hub adds to a network: to be saved, loaded and pushed by it.

        The folder is that of :func:`monai.networks.save_pretrained`, which checks what it saves;
        :func:`monai.networks.from_pretrained` takes it, too. The class has to stand at the top of a module.

        Example::

            class MyUNETR(PretrainedMixin, UNETR):
                pass

            MyUNETR(in_channels=1, out_channels=14, img_size=96).push_to_hub("organization/my-unetr")
            net = MyUNETR.from_pretrained("organization/my-unetr")
        """

        def _save_pretrained(self, save_directory: Path) -> None:
            save_pretrained(_network(self), save_directory, overwrite=True)

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            device: str | torch.device = "cpu",
            dtype: torch.dtype | None = None,
            allow: Sequence[str] = (),
            **others: Any,
        ) -> nn.Module:
            # huggingface_hub hands parts of the configuration on to classes that take **kwargs
            download = {name: value for name, value in others.items() if name in DOWNLOAD}
            unknown = sorted(others.keys() - download.keys() - set(PARTS))
            if unknown:
                raise TypeError(f"{cls.__name__} is built as it was saved, without {listed(unknown)}: leave them out.")
            net = from_pretrained(model_id, device=device, dtype=dtype, allow=(cls.__module__, *allow), **download)
            if not isinstance(net, cls):
                raise ValueError(
                    f"'{model_id}' holds a {type(net).__name__}, not a {cls.__name__}: use "
                    f"monai.networks.from_pretrained, or from_pretrained of {type(net).__name__}."
                )
            return net

    PretrainedMixin.__qualname__ = "PretrainedMixin"
    return record_construction(PretrainedMixin)


DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _network(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(module).__name__} is no network: derive it from one, too, after PretrainedMixin.")
    return module
