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

"""The work of a case as a function without arguments. It is made alike in the fork's process and in the release's."""

from __future__ import annotations

import copy
import functools
import importlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn

from benchmarks.case import Case, Setting
from benchmarks.limit import bare_decoding, limit_of

__all__ = ["DECODING", "VARIANTS", "WORK", "build", "make"]

VARIANTS = ("network", "flash", "limit", "rival")
"""What may be measured of a case: its network, with flash attention, the limit, another package's network."""

DECODING = ("sample", "greedy")
"""The work whose limit is a number of bare steps."""

Call = Callable[[], Any]


def make(case: Case, variant: str, setting: Setting) -> Call:
    """
    Make the work of a case. The same weights and inputs come out in every process.

    Args:
        case: the case.
        variant: one of ``VARIANTS``.
        setting: device and type.

    Raises:
        ValueError: if the variant is unknown, or the case has no limit.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}, there are {', '.join(VARIANTS)}.")
    inputs = make_inputs(case, setting)
    if variant == "rival":
        return _rival(case, setting)
    net = build(case, {"use_flash_attention": True} if variant == "flash" else {}, setting)
    if variant == "limit":
        return _limit(case, net, inputs)
    if case.compiled:
        net.compile(fullgraph=True)
    return WORK[case.work](case, net, inputs)


def build(case: Case, changes: Mapping[str, Any], setting: Setting) -> nn.Module:
    """The network of a case in evaluation mode; its weights follow from their names."""
    module, _, name = case.target.rpartition(".")
    net: nn.Module = getattr(importlib.import_module(module), name)(**{**case.options, **changes})
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            parameter.copy_(_weights(key, parameter))
    return net.to(setting.device, setting.dtype).eval()


def make_inputs(case: Case, setting: Setting) -> dict[str, torch.Tensor]:
    """The inputs of a case."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, given in case.inputs.items():
        if given.below:
            inputs[name] = torch.randint(given.below, given.shape, generator=generator).to(setting.device)
        else:
            inputs[name] = torch.randn(given.shape, generator=generator).to(setting.device, setting.dtype)
    return inputs


def _weights(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Weights that keep the scale of what flows through them; none are zero, as those of some last layers would be."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim > 1:
        out: torch.Tensor = drawn / parameter[0].numel() ** 0.5
        return out
    return 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)


def _forward(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    method = getattr(net, case.method)
    return torch.no_grad()(functools.partial(method, **inputs))


def _train(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    """A forward and a backward pass; the result is the gradient of the first input."""
    method = getattr(net, case.method)
    first = next(iter(inputs.values())).requires_grad_()

    def call() -> torch.Tensor | None:
        method(**inputs).sum().backward()
        gradient, first.grad = first.grad, None
        net.zero_grad(set_to_none=True)
        return gradient

    return call


def _train_with_dropout(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    """As ``train``, in training mode. What is dropped differs from side to side: the result is the gradient's shape."""
    call = _train(case, net.train(), inputs)
    return lambda: torch.tensor(call().shape)


def _step(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    """
    A step of training; the result is the loss. The learning rate is zero, so that all steps are the same one, and what
    a network draws is drawn alike.
    """
    method = getattr(net.train(), case.method)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

    def call() -> torch.Tensor:
        torch.manual_seed(0)
        loss = torch.stack([part.float().square().mean() for part in _tensors(method(**inputs))]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return call


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    """The outputs of a network that ask for a gradient."""
    if torch.is_tensor(outputs):
        outputs = [outputs]
    for part in outputs:
        if not torch.is_tensor(part):
            yield from _tensors(part)
        elif part.requires_grad:
            yield part


def _load(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    """A load of another network's state dict; the result is how many tensors it holds."""
    state = copy.deepcopy(net).state_dict()

    def call() -> torch.Tensor:
        net.load_state_dict(state)
        return torch.tensor(len(state))

    return call


def _sample(case: Case, net: Any, inputs: dict[str, torch.Tensor]) -> Call:
    """Tokens drawn from a decoder by the inferer; the VQVAE that would turn them into an image is left out."""
    from monai.inferers import VQVAETransformerInferer
    from monai.utils.ordering import Ordering

    size = (case.tokens, 1)
    vqvae: Any = SimpleNamespace(num_embeddings=_begin_token(case), decode_samples=lambda tokens: tokens)
    return functools.partial(
        VQVAETransformerInferer().sample,
        latent_spatial_dim=size,
        starting_tokens=_begin(case, inputs),
        vqvae_model=vqvae,
        transformer_model=net,
        ordering=Ordering("raster_scan", 2, (1, *size)),
        conditioning=inputs.get("context"),
        verbose=False,
    )


def _greedy(case: Case, net: Any, inputs: dict[str, torch.Tensor]) -> Call:
    """Likeliest tokens of a cached decoder, which only the fork has."""
    decoder = net.cached(len(inputs["x"]), inputs.get("context"))
    if case.compiled:
        decoder.compile(fullgraph=True)

    @torch.no_grad()
    def call() -> torch.Tensor:
        decoder.reset()
        token, tokens = _begin(case, inputs), []
        for _ in range(case.tokens):
            token = decoder(token)[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens, 1)

    return call


def _state_dict(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    """The number of bytes of the tensors that are saved."""
    return lambda: sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def _limit(case: Case, net: nn.Module, inputs: dict[str, torch.Tensor]) -> Call:
    if case.work in DECODING:
        begin, context = _begin(case, inputs), inputs.get("context")
        return torch.no_grad()(bare_decoding(net, begin, case.tokens, context, draw=case.work == "sample"))
    limit = limit_of(net)
    if limit is None:
        raise ValueError(f"no limit is known for {case.target}: add one to LIMITS in benchmarks/limit.py.")
    if case.work == "train":
        return _train(case, _Bare(net, limit), inputs)
    return torch.no_grad()(functools.partial(limit, *inputs.values()))


class _Bare(nn.Module):
    """A limit as a module, which owns the weights of the network."""

    def __init__(self, net: nn.Module, limit: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.limit(*inputs.values())


def _rival(case: Case, setting: Setting) -> Call:
    """As many tokens drawn by x-transformers, from a network of the same size with its own cache."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    options = case.options
    width, heads = options["attn_layers_dim"], options["attn_layers_heads"]
    layers = Decoder(
        dim=width, depth=options["attn_layers_depth"], heads=heads, attn_dim_head=width // heads, attn_flash=True
    )
    net = TransformerWrapper(num_tokens=options["num_tokens"], max_seq_len=options["max_seq_len"], attn_layers=layers)
    wrapper = AutoregressiveWrapper(net.to(setting.device, setting.dtype)).eval()
    begin = torch.full((len(make_inputs(case, setting)["x"]), 1), _begin_token(case), device=setting.device)
    return functools.partial(
        wrapper.generate, begin, case.tokens, cache_kv=True, filter_logits_fn=lambda scores: scores
    )


def _begin_token(case: Case) -> int:
    out: int = case.options["num_tokens"] - 1
    return out


def _begin(case: Case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.full_like(inputs["x"], _begin_token(case))


WORK: dict[str, Callable[[Case, Any, dict[str, torch.Tensor]], Call]] = {
    "forward": _forward,
    "train": _train,
    "dropout": _train_with_dropout,
    "step": _step,
    "load": _load,
    "sample": _sample,
    "greedy": _greedy,
    "state_dict": _state_dict,
}
"""What may be measured: a name in ``Case.work``."""
