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

"""What each network of the table does on the scan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from demo.checkpoint import OldCheckpoint
from demo.checks import Check
from demo.masked import fill_in, hidden_error, hide, paint, to_patches
from demo.measure import difference, exported_difference
from demo.training import train
from demo.volume import Scan
from monai.networks.blocks import SABlock

EXACT = 1e-5
"""How far two outputs that ought to be equal may lie apart."""
HIDDEN_SHARE = 0.5
SIDE, LEVELS = 32, 16
NOISE = 0.3
SHOWN = 3
"""Which of the held-out slices the picture shows reconstructed."""


@dataclass(frozen=True)
class Setting:
    """What every piece of work may use."""

    scan: Scan
    generator: torch.Generator
    device: torch.device
    checkpoint: OldCheckpoint


@dataclass(frozen=True)
class Outcome:
    """What a piece of work gave. The figure is an error: lower is better.

    Args:
        loaded: where the weights come from.
        figure: what was measured, on data no network was trained on.
        before: the figure of an untrained network or of a simple rule.
        after: the figure of the network.
        checks: what must hold besides ``after`` being below ``before``.
        picture: a slice and what the network makes of it, (2, H, W), if that is worth a look.
    """

    loaded: str
    figure: str
    before: float
    after: float
    checks: tuple[Check, ...] = ()
    picture: torch.Tensor | None = None

    def all_checks(self) -> tuple[Check, ...]:
        """The checks with the figure's own."""
        return (Check(self.figure, self.after, 0.9 * self.before), *self.checks)


@torch.no_grad()
def load_old_checkpoint(net: nn.Module, setting: Setting) -> Outcome:
    """Load the weights of an older release; hidden patches against the mean training slice."""
    old, scan, patch = setting.checkpoint, setting.scan, setting.checkpoint.options["patch_size"]
    old.load_into(net)
    head = old.head_layer().to(setting.device)
    image = paint(scan.slices[old.slice, None], old.hidden, patch)
    exact = Check(
        f"difference to the output of MONAI {old.monai}",
        difference(net(old.input.to(setting.device))[0], old.output),
        EXACT,
    )
    same = Check("difference of the scan to the one the checkpoint saw", difference(image, old.input), EXACT)

    images = scan.test_slices.to(setting.device)
    hidden, mask = hide(images, patch, HIDDEN_SHARE, setting.generator)
    mean = scan.training_slices.mean(0, keepdim=True).expand_as(images).to(setting.device)
    before = hidden_error(to_patches(mean, patch), images, mask, patch)
    after = hidden_error(fill_in(net, head, hidden), images, mask, patch)
    stale = len(set(old.state_dict) - set(net.state_dict()))
    loaded = f"MONAI {old.monai}, strict ({stale} stale keys)"
    return Outcome(loaded, "error of hidden patches, mean slice vs network", float(before), float(after), (exact, same))


def fill_in_blocks(net: nn.Module, setting: Setting) -> Outcome:
    """Learn to fill in hidden 3-D patches on three blocks, judge on the fourth."""
    blocks, patch = setting.scan.blocks.to(setting.device), (4, 4, 4)
    hidden_test, mask_test = hide(blocks[3:], patch, HIDDEN_SHARE, setting.generator)
    head = nn.Linear(net(hidden_test)[0].shape[-1], math.prod(patch)).to(setting.device)

    @torch.no_grad()
    def judge() -> float:
        return float(hidden_error(fill_in(net, head, hidden_test), blocks[3:], mask_test, patch))

    def loss() -> torch.Tensor:
        images = blocks[torch.randperm(3, generator=setting.generator)[:2]]
        hidden, mask = hide(images, patch, HIDDEN_SHARE, setting.generator)
        return hidden_error(fill_in(net, head, hidden), images, mask, patch)

    before = judge()
    train([*net.parameters(), *head.parameters()], loss, steps=30, rate=3e-3)
    return Outcome("fresh", "error of hidden patches", before, judge())


def reconstruct(net: nn.Module, setting: Setting) -> Outcome:
    """Learn to give a slice back."""
    images, tests = setting.scan.training_slices.to(setting.device), setting.scan.test_slices.to(setting.device)

    @torch.no_grad()
    def judge() -> float:
        return float(F.l1_loss(net(tests)[0], tests))

    def loss() -> torch.Tensor:
        batch = images[torch.randperm(len(images), generator=setting.generator)[:4]]
        return F.l1_loss(net(batch)[0], batch)

    before = judge()
    train(net.parameters(), loss, steps=60, rate=5e-3)
    return Outcome("fresh", "error of reconstruction", before, judge())


def autoencode(net: nn.Module, setting: Setting) -> Outcome:
    """Learn to give a slice back through a small latent image, then leave Python by export."""
    reconstruct: Any = net.reconstruct
    images, tests = setting.scan.training_slices.to(setting.device), setting.scan.test_slices.to(setting.device)

    @torch.no_grad()
    def judge() -> float:
        return float(F.l1_loss(reconstruct(tests), tests))

    def loss() -> torch.Tensor:
        batch = images[torch.randperm(len(images), generator=setting.generator)[:4]]
        return F.l1_loss(reconstruct(batch), batch)

    before = judge()
    train(net.parameters(), loss, steps=60, rate=5e-3)
    net.eval()
    with torch.no_grad():
        picture = torch.stack([tests[SHOWN, 0], reconstruct(tests[SHOWN, None])[0, 0]]).cpu()
    exported = Check("difference of the exported network to the eager one", exported_difference(net, tests), EXACT)
    return Outcome("fresh", "error of reconstruction", before, judge(), (exported,), picture)


def segment(net: nn.Module, setting: Setting) -> Outcome:
    """Learn to find the head in noisy slices; against the best plain threshold."""
    scan, device = setting.scan, setting.device
    head = F.avg_pool2d(scan.slices, 3, 1, 1) > 0.15
    noisy = scan.slices + NOISE * torch.randn(scan.slices.shape, generator=setting.generator)
    labels, noisy = head.to(device), noisy.to(device)
    learn = (~scan.held_out).nonzero()[:, 0]

    def loss() -> torch.Tensor:
        which = learn[torch.randperm(len(learn), generator=setting.generator)[:6]].to(device)
        return F.cross_entropy(net(noisy[which]), labels[which, 0].long())

    rule = min(
        dice_error(noisy[scan.held_out] > t, labels[scan.held_out]) for t in torch.linspace(0.1, 0.6, 11).tolist()
    )
    train(net.parameters(), loss, steps=30, rate=5e-3)
    net.eval()
    with torch.no_grad():
        found = net(noisy[scan.held_out]).argmax(1, keepdim=True) == 1
    return Outcome(
        "fresh", "1 - Dice of the head, threshold vs network", rule, dice_error(found, labels[scan.held_out])
    )


def dice_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """One minus the Dice coefficient of two masks."""
    return 1 - float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def sequences(scan: Scan) -> torch.Tensor:
    """The slices as token sequences behind a begin token, the last token left out: ``(24, SIDE * SIDE)``."""
    return F.pad(scan.tokens(SIDE, LEVELS), (1, 0), value=LEVELS)[:, :-1]


def predict_tokens(net: nn.Module, setting: Setting) -> Outcome:
    """Learn the next token; against the frequencies of the tokens."""
    scan, device = setting.scan, setting.device
    inputs, targets = sequences(scan).to(device), scan.tokens(SIDE, LEVELS).to(device)
    learn, held = (~scan.held_out).nonzero()[:, 0].to(device), scan.held_out.to(device)

    def loss() -> torch.Tensor:
        which = learn[torch.randperm(len(learn), generator=setting.generator)[:2].to(device)]
        return F.cross_entropy(net(inputs[which]).flatten(0, 1), targets[which].flatten())

    shares = torch.bincount(targets[learn].flatten(), minlength=LEVELS).float() / targets[learn].numel()
    before = float(-shares[targets[held]].log().mean())
    train(net.parameters(), loss, steps=80, rate=5e-3)
    net.eval()
    with torch.no_grad():
        after = float(F.cross_entropy(net(inputs[held]).flatten(0, 1), targets[held].flatten()))
    checks = causal_checks(net, inputs[held])
    return Outcome("fresh", "nats per token, frequencies vs network", before, after, checks)


@torch.no_grad()
def causal_checks(net: nn.Module, tokens: torch.Tensor) -> tuple[Check, ...]:
    """Every block owns a registered ``causal_mask``; a token changes its own and later outputs, no earlier ones."""
    blocks = [block for block in net.modules() if isinstance(block, SABlock)]
    registered = sum("causal_mask" in dict(block.named_buffers()) for block in blocks)
    half = tokens.shape[1] // 2
    changed = tokens.clone()
    changed[:, half:] = (tokens[:, half:] + 1) % LEVELS
    a, b = net(tokens), net(changed)
    untouched = (a[:, half:] == b[:, half:]).all(-1).sum()
    return (
        Check("number of blocks without a registered causal_mask", max(1, len(blocks)) - registered, 0),
        Check("change of earlier outputs by later tokens", difference(a[:, :half], b[:, :half]), EXACT),
        Check("number of outputs that do not follow their own token", float(untouched), 0),
    )
