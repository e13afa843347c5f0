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

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from demo.checkpoint import AutoencoderCheckpoint, Checkpoints, as_in_monai
from demo.checks import Check
from demo.masked import Filling, fill_in, hidden_error, hide, paint, to_patches
from demo.measure import difference, exported_difference
from demo.release import Release
from demo.training import train
from demo.volume import Scan
from monai.networks.blocks import SABlock
from monai.networks.checkpoints import load_checkpoint

EXACT = 1e-5
"""How far two outputs that ought to be equal may lie apart."""
SAME_SCAN = "difference of the scan to the one the checkpoint saw"
HIDDEN_SHARE = 0.5
INFLATED_STEPS = 10
SIDE, LEVELS = 32, 16
NOISE = 0.3
BLUR = 4
"""By how much the latents of the autoencoders are smaller than the slices, along an axis."""
SHOWN = 3
"""Which of the held-out slices the picture shows reconstructed."""


@dataclass(frozen=True)
class Setting:
    """What every piece of work may use."""

    scan: Scan
    generator: torch.Generator
    device: torch.device
    checkpoints: Checkpoints
    release: Release


@dataclass(frozen=True)
class Strip:
    """A row of the picture.

    Args:
        title: what the row is about.
        images: ``(N, H, W)``, in [0, 1].
        captions: one for each image.
        compared: which two images the last panel compares.
    """

    title: str
    images: torch.Tensor
    captions: tuple[str, ...]
    compared: tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What a piece of work gave. The figure is an error: lower is better.

    Args:
        loaded: where the weights come from.
        figure: what was measured, on data no network was trained on.
        before: the figure of an untrained network or of a simple rule.
        after: the figure of the network.
        checks: what must hold besides ``after`` being below ``before``.
        strip: a slice and what the network makes of it, if that is worth a look.
        note: what else there is to tell, one line.
    """

    loaded: str
    figure: str
    before: float
    after: float
    checks: tuple[Check, ...] = ()
    strip: Strip | None = None
    note: str = ""

    def all_checks(self) -> tuple[Check, ...]:
        """The checks with the figure's own."""
        return (Check(self.figure, self.after, 0.9 * self.before), *self.checks)


@torch.no_grad()
def load_old_checkpoint(net: nn.Module, setting: Setting) -> Outcome:
    """Load the weights of an older release; hidden patches against the mean training slice."""
    old, scan = setting.checkpoints.vit, setting.scan
    patch = old.options["patch_size"]
    old.load_into(net)
    head = old.head_layer().to(setting.device)
    image = paint(scan.slices[old.slice, None], old.hidden, patch)
    exact = Check(
        f"difference to the output of {old.writer}",
        difference(net(old.input.to(setting.device))[0], old.output),
        EXACT,
    )
    same = Check(SAME_SCAN, difference(image, old.input), EXACT)

    images = scan.test_slices.to(setting.device)
    hidden, mask = hide(images, patch, HIDDEN_SHARE, setting.generator)
    mean = scan.training_slices.mean(0, keepdim=True).expand_as(images).to(setting.device)
    before = hidden_error(to_patches(mean, patch), images, mask, patch)
    after = hidden_error(fill_in(net, head, hidden), images, mask, patch)
    stale = len(set(old.state_dict) - set(net.state_dict()))
    loaded = f"{old.writer}, strict ({stale} stale keys)"
    return Outcome(loaded, "error of hidden patches, mean slice vs network", float(before), float(after), (exact, same))


def fill_in_blocks(net: nn.Module, setting: Setting) -> Outcome:
    """Learn to fill in hidden 3-D patches on three blocks, judge on the fourth."""
    blocks = setting.scan.blocks.to(setting.device)
    filling = Filling(net, blocks[3:], (4, 4, 4), HIDDEN_SHARE, setting.generator)

    def loss() -> torch.Tensor:
        return filling.loss(blocks[torch.randperm(3, generator=setting.generator)[:2]])

    before = filling.judge()
    train(filling.weights(), loss, steps=30, rate=3e-3)
    return Outcome("fresh", "error of hidden patches", before, filling.judge())


def inflate(net: nn.Module, setting: Setting) -> Outcome:
    """Load a 2-D file into a 3-D ViT; before any training of it, against steps of training without the file."""
    old, scan, device = setting.checkpoints.vit, setting.scan, setting.device
    patch, volumes = (*old.options["patch_size"], 8), scan.volumes.to(device)
    filling = Filling(net, volumes[1:], patch, HIDDEN_SHARE, setting.generator)
    train(filling.weights(), lambda: filling.loss(volumes[:1]), steps=INFLATED_STEPS, rate=3e-3)
    before = filling.judge()

    report: Any = load_checkpoint(net, old.file, inflate="center").report
    filling.head.load_state_dict({key: value.repeat_interleave(patch[-1], 0) for key, value in old.head.items()})
    depth = scan.volumes.shape[-1]
    with torch.no_grad():
        equal = net.eval()(old.input.unsqueeze(-1).repeat(1, 1, 1, 1, depth).to(device))[0]
    checks = (
        Check(
            f"difference to the output of {old.writer}, slice by slice",
            difference(equal, old.output.repeat_interleave(depth // patch[-1], 1)),
            EXACT,
        ),
        Check("number of parameters that stayed as they were", len(report.left), 0),
    )
    figure = f"error of hidden patches, {INFLATED_STEPS} steps without the file vs none with it"
    return Outcome(f"{old.writer}, inflated", figure, before, filling.judge(), checks)


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
        shown = torch.stack([tests[SHOWN, 0], reconstruct(tests[SHOWN, None])[0, 0]]).cpu()
    captions = ("a slice that was held out", "the same, through its latents")
    strip = Strip("AutoencoderKL without projection, trained for some seconds", shown, captions, (0, 1))
    exported = Check("difference of the exported network to the eager one", exported_difference(net, tests), EXACT)
    return Outcome("fresh", "error of reconstruction", before, judge(), (exported,), strip)


@torch.no_grad()
def load_generative_models(net: nn.Module, setting: Setting) -> Outcome:
    """Load an autoencoder that GenerativeModels trained, here and in the release; against blurred slices."""
    old, tests = setting.checkpoints.autoencoder, setting.scan.test_slices
    old.load_into(net)
    reconstruct: Any = net.eval().reconstruct
    image = setting.scan.slices[old.slice, None]
    ours = reconstruct(image.to(setting.device)).cpu()
    theirs = setting.release.ask("load_old", old.network, as_in_monai(old.options), old.state_dict, image)
    three = ThreeLoads(old, image, ours, theirs, f"MONAI {setting.release.version()}")

    blurred = F.interpolate(F.avg_pool2d(tests, BLUR), scale_factor=BLUR, mode="bilinear")
    before = float(F.l1_loss(blurred, tests))
    after = float(F.l1_loss(reconstruct(tests.to(setting.device)).cpu(), tests))
    figure = "error of reconstruction, blurred slice vs network"
    return Outcome(f"{old.writer}, strict", figure, before, after, three.checks(), three.strip(), three.note())


class ThreeLoads:
    """One checkpoint in three packages: what each makes of a slice.

    Args:
        old: the checkpoint; it holds what the package that wrote it makes of the slice.
        image: the slice of the scan, ``(1, 1, H, W)``.
        ours: what the fork makes of it.
        theirs: what the release makes of it after ``load_old_state_dict``.
        release: the release's name.
    """

    def __init__(
        self, old: AutoencoderCheckpoint, image: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor, release: str
    ) -> None:
        self.old, self.image, self.release = old, image, release
        self.images = (old.output, ours, theirs)
        self.errors = [float(F.l1_loss(x, image)) for x in self.images]
        self.apart = [difference(x, old.output) for x in self.images]

    def checks(self) -> tuple[Check, ...]:
        """The fork repeats the old package; the release does worse."""
        return (
            Check(f"difference to the reconstruction of {self.old.writer}", self.apart[1], EXACT),
            Check(SAME_SCAN, difference(self.image, self.old.input), EXACT),
            Check(
                "error as a fraction of that of the release's load_old_state_dict", self.errors[1] / self.errors[2], 0.9
            ),
        )

    def strip(self) -> Strip:
        """The slice and the three reconstructions side by side."""
        packages = (self.old.writer, "this fork, load_state_dict", f"{self.release}, load_old_state_dict")
        captions = [f"{name}:\nerror {error:.3f}" for name, error in zip(packages, self.errors)]
        return Strip(
            f"AutoencoderKL trained by {self.old.writer}: one file, loaded three times",
            torch.cat([self.image, *self.images])[:, 0],
            (f"slice {self.old.slice}, held out", *captions),
            compared=(1, 3),
        )

    def note(self) -> str:
        """The figures of the strip, as a line."""
        first, ours, theirs = self.errors
        return (
            f"slice {self.old.slice}: error {first:.4f} in {self.old.writer}, {ours:.4f} here "
            f"({self.apart[1]:.0e} apart), {theirs:.4f} in {self.release}'s load_old_state_dict "
            f"({self.apart[2]:.2f} apart)"
        )


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
