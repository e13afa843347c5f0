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


"""Builds and runs a network of an older package, in a process that has no other MONAI; see ``reference_process``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import torch

__all__ = ["answer", "flat"]

# how older packages called an argument
OLD_NAMES = {"channels": "num_channels", "proj_type": "pos_embed"}
# how attention is stored or computed, not what it computes: the older package has its own way
OWN_WAY = ("use_proj_attn", "include_fc", "use_combined_linear", "use_flash_attention", "use_checkpoint")
# computes the same in pieces, with seams in older releases
WHOLE = {"use_flash_attention": False, "num_splits": 1}
DISTRIBUTIONS = {"generative": "monai-generative", "monai": "monai"}


class UnusableError(Exception):
    """The package cannot run the network; the text says why."""


def answer(request):
    """
    Load a state dict strictly into the first class that takes it, and call it.

    Args:
        request: a dictionary with ``targets`` (dotted names of classes), ``arguments``, ``defaults`` (the fork's, or
            None where the arguments are the older package's own), ``projection_used``, ``state``, ``calls`` (pairs of a
            method and its tensors by name) and ``seed``.

    Returns:
        a dictionary with ``outputs`` (one a call), ``target``, ``package``, ``torch`` and ``dropped``, the arguments
        that the class does not have.

    Raises:
        UnusableError: if no class takes it.
    """
    reasons = []
    for target in request["targets"]:
        try:
            cls = _find(target)
            arguments, dropped = _arguments(cls, request)
            net = cls(**arguments).eval()
            net.load_state_dict(request["state"], strict=True)
            outputs = [_run(net, method, inputs, request["seed"]) for method, inputs in request["calls"]]
        except Exception as error:  # whatever an older package raises, another class may take the file
            reasons.append(f"{target}: {error if isinstance(error, UnusableError) else _told(error)}")
            continue
        return {
            "outputs": outputs,
            "target": target,
            "package": _package(target),
            "torch": str(torch.__version__),
            "dropped": dropped,
        }
    raise UnusableError("\n".join(reasons))


def _find(target):
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise UnusableError("there is no such class") from None
    except ModuleNotFoundError as error:
        raise UnusableError(f"there is no module '{error.name}'") from None


def _arguments(cls, request):
    """The arguments as ``cls`` knows them, and the names of those that it can do without."""
    known = inspect.signature(cls.__init__).parameters
    if request["defaults"] is None:
        return request["arguments"], []
    arguments, dropped = {}, []
    for name, value in request["arguments"].items():
        old = OLD_NAMES.get(name)
        if name in known:
            arguments[name] = value
        elif name in OWN_WAY:
            continue
        elif old in known:
            arguments[old] = value
        elif "dropout" in name or value == request["defaults"].get(name, value is None):
            dropped.append(name)
        else:
            raise UnusableError(f"it has no argument {name}, which is {value!r} here")
    arguments.update({name: value for name, value in WHOLE.items() if name in known})
    arguments.update({name: value for name, value in _stored_as(request).items() if name in known})
    return arguments, dropped


def _stored_as(request):
    """Options of the attention that the file, or its user, shows."""
    keys, options = request["state"].keys(), {}
    if any(key.endswith((".to_q.weight", ".qkv.weight")) for key in keys):
        options["use_combined_linear"] = any(key.endswith(".qkv.weight") for key in keys)
        if not any(re.search(r"(^|\.)attn1?\.out_proj\.", key) for key in keys):
            options["include_fc"] = False
    used = request["arguments"].get("use_proj_attn")
    used = request["projection_used"] if request["projection_used"] is not None else used
    if used is not None:
        options.setdefault("include_fc", used)
    return options


def _run(net, method, inputs, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        return flat(getattr(net, method)(**inputs))


def flat(value):
    """Every tensor inside ``value``, in order."""
    if torch.is_tensor(value):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in flat(item)]


def _package(target):
    from importlib.metadata import PackageNotFoundError, version

    name = target.partition(".")[0]
    try:
        return f"{DISTRIBUTIONS.get(name, name)} {version(DISTRIBUTIONS.get(name, name))}"
    except PackageNotFoundError:
        return name


def _told(error):
    return f"{type(error).__name__}: {error}"


def _load(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except TypeError:  # torch before 2.1
        return torch.load(path, map_location="cpu", weights_only=True)


def _main(folder):
    request = _load(f"{folder}/request.pt")
    request["state"] = _load(f"{folder}/state.pt")
    try:
        reply = answer(request)
    except UnusableError as error:
        reply = {"error": str(error)}
    torch.save(reply, f"{folder}/reply.pt")


if __name__ == "__main__":
    _main(sys.argv[1])
