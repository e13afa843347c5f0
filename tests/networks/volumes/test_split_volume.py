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

"""What can be split and what is refused, how volumes are cut: in one process."""

from __future__ import annotations

import copy
import tempfile
import unittest
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks.reach import Reach
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import UNETR, AutoencoderKL, DecoderOnlyTransformer, DiffusionModelUNet, ViT
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.volumes import split_volume
from monai.networks.volumes.slabs import Slabs, even_slabs
from monai.networks.volumes.split import _Plan
from tests.networks.volumes.split_cases import controlled, kl, maisi, unet, unetr, vit, vqvae


class Flipping(nn.Module):
    """A layer of a user's that says nothing of itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(2)


class Derived(DiffusionModelUNet):
    """A network of a user's that computes in another way."""

    def _middle(self, h, emb, context, context_mask):
        return h.flip(2)


def with_layer(layer: nn.Module, *others: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer, *others)


def replaced() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3))
    net[0].forward = lambda x: x.flip(2)
    return net


def positions_of_its_own() -> nn.Module:
    net = vit()
    net.blocks[0].attn.rel_positional_embedding = nn.Identity()
    return net


class Counting(nn.SyncBatchNorm):
    """A batch norm of a user's that computes in another way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(2))


def hooked(register: str) -> nn.Module:
    net = with_layer(nn.SiLU())
    getattr(net[1], register)(lambda *_: None)
    return net


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)
REFUSED = [
    *((name, partial(hooked, name), r"1 \(SiLU\) has hooks.*register them after the split") for name in HOOKS),
    ("synchronized_in_another_way", lambda: with_layer(Counting(4)), r"1 \(Counting\) is not known"),
    ("batch_norm", lambda: with_layer(nn.BatchNorm2d(4)), r"1 \(BatchNorm2d\).*convert_sync_batchnorm"),
    (
        "running_instance_norm",
        lambda: with_layer(nn.InstanceNorm2d(4, track_running_stats=True)),
        "track_running_stats",
    ),
    ("reflect", lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding_mode="reflect", padding=1)), "'zeros'"),
    ("unknown", lambda: with_layer(Flipping()), r"1 \(Flipping\).*spatial_reach"),
    ("derived", lambda: Derived(2, 1, 1, (1, 1), (4, 4), (False, False), 4, num_head_channels=4), "works_on_slabs"),
    ("replaced", replaced, "another forward"),
    ("flatten", lambda: with_layer(nn.Flatten()), "Flatten"),
    ("adaptive_pool", lambda: with_layer(nn.AdaptiveAvgPool2d(1)), "AdaptiveAvgPool2d"),
    ("linear_of_images", lambda: with_layer(nn.Linear(4, 4)), "last axis"),
    ("layer_norm_of_images", lambda: with_layer(nn.LayerNorm(4)), "last axis"),
    ("channel_dropout", lambda: with_layer(nn.Dropout2d(0.5)), "nn.Dropout"),
    ("loose_attention", lambda: with_layer(SABlock(4, 1)), "token_grids"),
    ("decoder", lambda: DecoderOnlyTransformer(7, 9, 8, 1, 2), "neither a convolution nor patches"),
    ("save_attn", lambda: vit(save_attn=True), "save_attn=False"),
    ("positions", positions_of_its_own, "'decomposed'"),
    ("script", lambda: torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3))), "cannot be scripted"),
]
STRIDES = [
    ("autoencoder", kl, 2),
    ("maisi", maisi, 2),
    ("vqvae", vqvae, 4),
    ("unet", unet, 2),
    ("controlled", controlled, 2),
    ("unetr", unetr, 16),
    ("vit", vit, 4),
]


class TestPlan(unittest.TestCase):
    @parameterized.expand(REFUSED)
    def test_refused_before_anything_changes(self, _, build, message):
        net = build()
        kinds = [type(module) for module in net.modules()]
        with self.assertRaisesRegex(ValueError, message):
            split_volume(net, None)
        self.assertEqual([type(module) for module in net.modules()], kinds)

    def test_methods_replaced_at_a_class_are_refused(self):
        cases = ((AEKLResBlock, "forward"), (nn.Conv2d, "_conv_forward"), (AutoencoderKL, "decode"))
        for cls, name in cases:
            net = kl()
            with patch.object(cls, name, lambda *args: args[1].flip(2)), self.assertRaisesRegex(ValueError, name):
                _Plan(net, 0).check()

    @parameterized.expand(STRIDES)
    def test_total_stride(self, _, build, stride):
        plan = _Plan(build(), 0)
        plan.check()
        self.assertEqual(plan.stride, stride)

    def test_axis(self):
        with self.assertRaisesRegex(ValueError, "axis=2 should be one of the 2"):
            split_volume(kl(), None, axis=2)

    def test_many_refusals_are_counted(self):
        with self.assertRaisesRegex(ValueError, "and 2 more"):
            split_volume(with_layer(*[nn.BatchNorm2d(4) for _ in range(7)]), None)

    def test_what_is_not_refused(self):
        frozen = with_layer(nn.BatchNorm2d(4)).eval()
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(with_layer(nn.BatchNorm2d(4)))
        for net in (frozen, synchronized, AutoencoderKL(3, norm_num_groups=4, channels=(4, 4, 4, 4)), UNETR(1, 1, 32)):
            _Plan(net, 0).check()


class TestOneRank(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from torch.distributed.device_mesh import init_device_mesh

        if not (dist.is_available() and dist.is_gloo_available()):
            raise unittest.SkipTest("this torch is built without gloo")
        cls.folder = tempfile.TemporaryDirectory()
        dist.init_process_group("gloo", init_method=f"file://{cls.folder.name}/store", rank=0, world_size=1)
        cls.mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("space",))

    @classmethod
    def tearDownClass(cls):
        dist.destroy_process_group()
        cls.folder.cleanup()

    def test_one_rank_changes_nothing(self):
        net = kl()
        whole = copy.deepcopy(net)
        volume = split_volume(net, self.mesh)
        x = torch.randn(1, 1, 8, 8)
        self.assertTrue(torch.equal(volume.gather(net.reconstruct(volume.scatter(x))), whole.reconstruct(x)))
        self.assertEqual([type(one) for one in net.modules()], [type(one) for one in whole.modules()])

    def test_noise(self):
        volume = split_volume(kl(), self.mesh)
        noise = volume.noise((1, 2, 8, 8), torch.Generator().manual_seed(1))
        self.assertTrue(torch.equal(noise, torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))))

    def test_mean(self):
        volume = split_volume(kl(), self.mesh)
        x = torch.randn(2, 3, 4, 5)
        torch.testing.assert_close(volume.mean(x), x.mean())

    def test_other_axes(self):
        volume = split_volume(kl(), self.mesh)
        with self.assertRaisesRegex(ValueError, "volumes of 2 axes"):
            volume.scatter(torch.zeros(1, 1, 8, 8, 8))

    def test_two_axes_of_a_mesh(self):
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "space"))
        with self.assertRaisesRegex(ValueError, "mesh of one axis"):
            split_volume(kl(), mesh)
        self.assertEqual(split_volume(kl(), mesh["space"]).size, 1)

    def test_repr(self):
        self.assertEqual(
            repr(split_volume(ViT(1, 16, 8, 12, 12, 1, 2), self.mesh)), "VolumeSplit(rank 0 of 1, axis=0, stride=8)"
        )


class TestSlabs(unittest.TestCase):
    def test_even(self):
        self.assertEqual(even_slabs(21, 2, 3, 0), Slabs((6, 6, 9)))
        self.assertEqual(even_slabs(8, 1, 4, 0).begins, (0, 2, 4, 6, 8))

    def test_too_few(self):
        with self.assertRaisesRegex(ValueError, "15 slices along axis 1 are 3 times 4.*too few for 4 ranks"):
            even_slabs(15, 4, 4, 1)

    def test_inside_of_a_stride(self):
        with self.assertRaisesRegex(ValueError, "conv has a stride of 2, but a slab begins at slice 3"):
            Slabs((3, 5)).after(Reach(down=2), "conv")

    def test_nothing_left(self):
        with self.assertRaisesRegex(ValueError, "conv leaves slabs of"):
            Slabs((4, 1)).after(Reach(after=2, offset=-2), "conv")

    def test_further_than_a_neighbor(self):
        slabs, reach = Slabs((4, 1, 1, 4)), Reach(before=3, after=3)
        self.assertEqual(slabs.needed_for(slabs.after(reach, "conv"), reach), [(0, 7), (1, 8), (2, 9), (3, 10)])

    def test_conflicts(self):
        self.assertTrue(Slabs((2, 3)).conflicts_with(Slabs((2, 4))))
        self.assertFalse(Slabs((2, 3)).conflicts_with(Slabs((2, 3))))
        self.assertFalse(Slabs((2, 3)).conflicts_with(Slabs((4, 6))))


if __name__ == "__main__":
    unittest.main()
