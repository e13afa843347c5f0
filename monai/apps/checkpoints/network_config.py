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


"""The network that a bundle configuration describes."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.checkpoints.saved_folder import CONFIG

__all__ = ["NetworkConfig", "raw_network_config", "read_network_config"]

# what a network takes that GenerativeModels called otherwise
RENAMED = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}
NOT_ARGUMENTS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_meta_"}
# modules with a forward that nobody saves as a network
NOT_NETWORKS = ("torch.nn.", "monai.losses.", "monai.metrics.")


@dataclass(frozen=True)
class NetworkConfig:
    """
    A network's class and what it is built from.

    Args:
        path: the file.
        key: where in the file the network stands, in the bundle's notation; empty for the top.
        cls: the class.
        arguments: of the class, by name; references and expressions of the bundle are resolved.
    """

    path: Path
    key: str
    cls: type[nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The file and the key in it, as a message names them."""
        return f"{self.path}{f'::{self.key}' if self.key else ''}"

    def build(self, device: str = "cpu") -> nn.Module:
        """
        Build the network in evaluation mode.

        Args:
            device: "meta" builds it without its weights' memory, where the class can.

        Raises:
            ValueError: if the class does not take the arguments.
        """
        try:
            with torch.device(device):
                return self.cls(**self.arguments).eval()
        except RuntimeError as error:
            if device != "cpu":  # some constructors compute with their weights, which meta tensors do not have
                return self.build()
            raise ValueError(self._misfit(error)) from error
        except Exception as error:  # whatever a constructor raises is about the arguments of the file
            raise ValueError(self._misfit(error)) from error

    def _misfit(self, error: Exception) -> str:
        return f"{self.place}: {self.cls.__name__} cannot be built from these arguments: {error}"


def read_network_config(source: str) -> NetworkConfig:
    """
    Read the network that a MONAI bundle configuration describes.

    Expressions (``$...``) in the arguments are evaluated and the modules of ``_target_`` are imported, as MONAI does
    with every bundle: read only files that you trust.

    Args:
        source: a JSON or YAML file whose top has a ``_target_``; or one with exactly one network inside; or
            ``FILE::KEY`` (or ``FILE#KEY``, nested keys as ``KEY::KEY``).

    Raises:
        ValueError: if it describes no network, or several; the text lists them.
        FileNotFoundError: if there is no such file.
    """
    path, key = _split(source)
    parser = _parser(path)
    key = key or _only_network(parser.get(), path)
    entry = _entry(parser, path, key)
    cls = _network_class(entry["_target_"])
    if isinstance(cls, str):
        raise ValueError(f"{path}{f'::{key}' if key else ''}: {cls}")
    return NetworkConfig(path, key, cls, _renamed(cls, _arguments(parser, path, key, entry)))


def raw_network_config(source: str) -> tuple[str, dict[str, Any]]:
    """
    Name and arguments of a network, whose class need not exist here.

    Args:
        source: as :func:`read_network_config` takes it; without a key the top must have the ``_target_``.

    Raises:
        ValueError: if there is no ``_target_``.
        FileNotFoundError: if there is no such file.
    """
    path, key = _split(source)
    parser = _parser(path)
    targets = dict(_entries(parser.get()))
    if not key and "" not in targets and len(targets) == 1:
        key = next(iter(targets))
    entry = _entry(parser, path, key)
    return str(entry["_target_"]), _arguments(parser, path, key, entry)


def _split(source: str) -> tuple[Path, str]:
    """File and key; a file whose own name holds a separator is found all the same, and one in a saved folder."""
    if Path(source).is_file():
        return Path(source), ""
    if (Path(source) / CONFIG).is_file():  # a folder of save_pretrained
        return Path(source) / CONFIG, ""
    match = re.match(r"(?P<path>.*?\.(?:json|yaml|yml))(?:::|#)(?P<key>.+)$", source, re.IGNORECASE)
    path, key = (Path(match["path"]), match["key"].replace("#", "::")) if match else (Path(source), "")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file with the network, as {path / 'configs' / 'train.json'}.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration '{path}': name a JSON or YAML file, as train.json.")
    return path, key


def _parser(path: Path) -> Any:
    from monai.bundle import ConfigParser  # takes seconds

    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{path}: a configuration ends in .json, .yaml or .yml.")
    parser = ConfigParser()
    try:
        content = ConfigParser.load_config_file(str(path))
    except Exception as error:  # json and yaml, which may be absent, have errors of their own
        raise ValueError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a configuration is an object with names, this one is a {type(content).__name__}.")
    parser.read_config(content)
    return parser


def _entries(config: Any, key: str = "") -> Iterator[tuple[str, dict]]:
    """Every part of a configuration that has a ``_target_`` and is not switched off, outermost ones alone."""
    if isinstance(config, dict) and "_target_" in config:
        if str(config.get("_disabled_", False)).strip().lower() != "true":
            yield key, config
        return
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for name, value in items:
        yield from _entries(value, f"{key}::{name}" if key else str(name))


def _only_network(config: dict, path: Path) -> str:
    if "_target_" in config:
        return ""
    networks = [key for key, entry in _entries(config) if _is_network(_network_class(entry["_target_"]))]
    if len(networks) == 1:
        return networks[0]
    if not networks:
        raise ValueError(
            f"{path} describes no network: it needs a part with a '_target_' such as "
            '{"_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": 2, ...}.'
        )
    choices = ", ".join(f"{path}::{key}" for key in networks)
    raise ValueError(f"{path} describes {len(networks)} networks, name one of them: {choices}.")


def _is_network(cls: type[nn.Module] | str) -> bool:
    return not isinstance(cls, str) and not f"{cls.__module__}.".startswith(NOT_NETWORKS)


def _entry(parser: Any, path: Path, key: str) -> dict[str, Any]:
    entry = parser.get(key) if key in parser or not key else None
    if isinstance(entry, dict) and "_target_" in entry:
        return entry
    known = [name for name, _ in _entries(parser.get()) if name]
    hint = f": choose from {', '.join(get_close_matches(key, known, 8, 0.0))}" if known else ""
    if key and entry is None:
        raise ValueError(f"{path} has no '{key}'{hint}.")
    raise ValueError(f"{path}{f'::{key}' if key else ''} has no '_target_', the name of a class{hint}.")


def _network_class(target: Any) -> type[nn.Module] | str:
    """The network's class, or what is wrong with ``target``."""
    if not isinstance(target, str) or target.startswith(("$", "@", "%")):
        return f"_target_ {target!r} should be the name of a class."
    try:
        found = pydoc.locate(_modern(target)) or _locate_by_name(target)
    except (ImportError, pydoc.ErrorDuringImport) as error:
        return f"_target_ '{target}' cannot be imported: {error}."
    if found is None:
        return f"_target_ '{target}' cannot be imported: is its package installed, or its folder on PYTHONPATH?"
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        return f"_target_ '{target}' is no network: only classes derived from torch.nn.Module are built."
    return found


def _modern(target: str) -> str:
    """MONAI's name of a network of GenerativeModels."""
    return re.sub(r"^generative\.networks\.nets\.", "monai.networks.nets.", target)


def _locate_by_name(target: str) -> Any:
    """A class of MONAI without its module, as bundles may name it."""
    if "." in target:
        return None
    from monai.bundle import ComponentLocator

    modules = ComponentLocator().get_component_module_name(target)
    module = modules[0] if isinstance(modules, list) else modules
    return pydoc.locate(f"{module}.{target}") if module else None


def _arguments(parser: Any, path: Path, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Arguments with their references and expressions resolved, the network itself not built."""
    arguments = {}
    for name in entry.keys() - NOT_ARGUMENTS:
        place = f"{key}::{name}" if key else name
        try:
            arguments[name] = parser.get_parsed_content(place)
        except Exception as error:  # an expression may raise anything
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            raise ValueError(f"{path}::{place} cannot be resolved: {' '.join(str(cause).split())}") from error
    return {name: arguments[name] for name in entry if name in arguments}


def _renamed(cls: type[nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments under the names that ``cls`` has for them, where the configuration is one of GenerativeModels."""
    known = signature(cls).parameters
    return {
        RENAMED[name] if name in RENAMED and name not in known and RENAMED[name] in known else name: value
        for name, value in arguments.items()
    }
