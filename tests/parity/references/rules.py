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
What a load must come to, from the facts about who wrote the checkpoint: nothing here looks at a state dict or a loader.

Exact is what the network can represent and the keys, or the weights, tell; what it cannot represent is refused; what
nothing in the file tells is listed in ``UNTOLD``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai.networks.state_dict.hooks import CheckpointFacts
from tests.parity.references.cases import MAISI, Case
from tests.parity.references.targets import Target

__all__ = ["UNTOLD", "Expectation", "expected", "known_facts"]

UNTOLD = {
    "dead projection": "MONAI 1.4 saved the output projections that include_fc=False leaves out. Where they were "
    "trained before, or hold any other values, the file is that of a network that used them.",
    "transposed": "GenerativeModels and MAISI gave a transposed convolution the key and the shape of the convolution "
    "that follows an interpolation.",
}


@dataclass(frozen=True)
class Expectation:
    """
    What a load must come to.

    Args:
        verdict: "exact", "refused" or "untold".
        reason: why, a key of ``UNTOLD`` for the last.
        warned: whether the load has to warn; None where it may.
    """

    verdict: str
    reason: str
    warned: bool | None = False


def known_facts(case: Case) -> CheckpointFacts | None:
    """What the user knows and the keys do not tell, or None where they tell all."""
    facts: dict[str, bool] = {}
    if case.writer == "monai==1.4.0" and "include_fc" in case.options:
        facts["projection_used"] = case.options["include_fc"]
    if case.network == "AutoencoderKlMaisi" or case.network == "AutoencoderKL" and _is_generative(case):
        facts["transposed_upsampling"] = case.kwargs.get("use_convtranspose", False)
    if _has_old_transformers(case):
        facts["cross_attention_scaled"] = "unscaled" not in case.layout
    return CheckpointFacts(**facts) if facts else None


def expected(case: Case, target: Target, facts: CheckpointFacts | None = None, way: str = "plain") -> Expectation:
    """
    What a load must come to.

    Args:
        case: who wrote the checkpoint.
        target: the network that loads it.
        facts: what the user tells.
        way: "plain", "nested" or "old", see :func:`~tests.parity.references.loading.attempt`.
    """
    found = [*_projections(case, target, facts, way), *_decoder(case, target, facts), *_others(case, facts)]
    found.append(Expectation("exact", "the network can represent it"))
    order = ["refused", "untold", "exact"]
    worst = min(found, key=lambda each: (order.index(each.verdict), not each.warned))
    return Expectation(worst.verdict, worst.reason, None if worst.verdict == "refused" else worst.warned)


def _projections(case: Case, target: Target, facts: CheckpointFacts | None, way: str) -> list[Expectation]:
    arguments = target.arguments
    chosen = arguments.get("use_proj_attn")
    has = arguments.get("include_fc", target.network not in MAISI) if chosen is None else chosen
    told = facts is not None and facts.projection_used is not None
    found = []
    for kind, status in _written(case).items():
        projects = has if kind == "self" else chosen is not False
        if status == "used" and not projects:
            found.append(Expectation("refused", f"its {kind} attention used an output projection"))
        elif status == "absent" and projects and way == "nested":
            found.append(Expectation("refused", "inside another module no weight is written that the file lacks"))
        elif status.startswith("dead") and not told:
            untrained = status == "dead, untrained"
            if projects:  # a plain load looks at no weight of the network's own keys
                found.append(Expectation("untold", "dead projection", untrained and way == "old"))
            elif untrained:
                found.append(Expectation("exact", "its projections were never trained", True))
            else:
                found.append(Expectation("refused", "nothing tells that its projections were never used"))
    return found


def _written(case: Case) -> dict[str, str]:
    """
    What became of the output projections that a checkpoint may hold, by kind of attention: "used"; "dead" (saved, and
    never used, which the keys do not tell); "never" (the same, and they tell it); or "absent".
    """
    kinds = _attentions(case)
    if not case.source.startswith("monai=="):
        dead = case.source.startswith("monai-generative==0.2") and kinds == ["self"]
        status = "never" if dead and case.network != "DecoderOnlyTransformer" else "used"
        return dict.fromkeys(kinds, status)
    status = "used"
    if not case.options.get("include_fc", case.network not in MAISI):
        status = "absent"
        if case.writer == "monai==1.4.0":
            status = "dead, untrained" if case.untrained else "dead"
    return {kind: status if kind == "self" else "used" for kind in kinds}


def _attentions(case: Case) -> list[str]:
    """Kinds of attention in a network: of tokens to themselves, in SPADE's upward path, and to a context."""
    kwargs = case.kwargs
    if case.network == "VQVAE":
        return []
    if "latent_channels" in kwargs:
        between = kwargs.get("with_encoder_nonlocal_attn", case.network not in MAISI)
        return ["self"] if between or any(kwargs["attention_levels"]) else []
    kinds = ["self"]
    if case.network == "SPADEDiffusionModelUNet" and case.source.startswith("monai=="):
        kinds.append("upward")  # these blocks never see include_fc
    if kwargs.get("with_conditioning") or kwargs.get("with_cross_attention"):
        kinds.append("cross")
    return kinds


def _decoder(case: Case, target: Target, facts: CheckpointFacts | None) -> list[Expectation]:
    """Whether the target doubles the size of an image as the network did that wrote the checkpoint."""
    if "latent_channels" not in case.kwargs:
        return []
    written = _upsampling(case.network, case.kwargs, _is_generative(case))
    taken = _upsampling(target.network, target.arguments)
    if written == taken:
        told = facts is not None and facts.transposed_upsampling is not None
        if told or not _is_generative(case) or target.network not in MAISI:
            return []
        return [Expectation("refused", "nothing tells whether it doubles the size by a transposed convolution")]
    # a kernel of 3 may be either; MAISI never repeats a position, which is what a core decoder does otherwise
    ambiguous = {written, taken} in ({"nearest", "transposed 3"}, {"linear", "transposed 3"})
    told = facts is not None and facts.transposed_upsampling is not None
    if ambiguous and not told and (target.network in MAISI) == (case.network in MAISI):
        return [Expectation("untold", "transposed", None)]
    return [Expectation("refused", f"its decoder upsamples otherwise: {written}, not {taken}")]


def _upsampling(network: str, kwargs: Mapping[str, Any], generative: bool = False) -> str:
    if kwargs.get("use_convtranspose"):
        return "transposed 3" if generative or network in MAISI else "transposed 2"
    return "linear" if network in MAISI else "nearest"


def _others(case: Case, facts: CheckpointFacts | None) -> list[Expectation]:
    if case.layout == "monai-generative 0.1.0" and case.network == "AutoencoderKL":
        return [Expectation("refused", "its quantization convolutions have kernels of 3")]
    if case.writer == "monai==1.2.0" and case.network == "ViTAutoEnc" and case.kwargs["patch_size"][0] != 16:
        return [Expectation("refused", "its decoder enlarged patches of any size by 16")]
    if _has_old_transformers(case) and (facts is None or facts.cross_attention_scaled is None):
        return [Expectation("refused", "nothing tells whether its cross attention is scaled")]
    return []


def _is_generative(case: Case) -> bool:
    return not case.source.startswith("monai==")


def _has_old_transformers(case: Case) -> bool:
    older = _is_generative(case) and not case.source.startswith("monai-generative==")
    return older and bool(case.kwargs.get("with_conditioning"))
