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


from __future__ import annotations

import copy
import unittest
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.data import MetaTensor
from monai.networks.blocks import SABlock, SpatialAttentionBlock
from monai.networks.blocks.attention.token_grid import TokenGrid
from monai.networks.nets import AutoencoderKL, DecoderOnlyTransformer, DiffusionModelUNet, UNet, ViT
from monai.visualize.attention.capture import capture_attention
from tests.networks.nets.diffusion_cases import CONDITIONED, normal
from tests.visualize.capture_cases import (
    BLOCKS,
    GRID,
    KL,
    NETWORKS,
    SELF,
    TOKENS,
    UNET,
    VIT,
    VOLUME,
    WORDS,
    build,
    captured,
    vit,
)

torch.set_num_threads(1)


class TestPlaces(unittest.TestCase):
    """Networks that attend to a known place, on grids whose axes differ."""

    def attending(self, size: tuple[int, ...], place: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
        """A block in which all positions attend to the one that is marked in the second of two channels."""
        block = SpatialAttentionBlock(len(size), 2, norm_num_groups=2, use_combined_linear=False)
        with torch.no_grad():
            block.attn.to_q.weight.zero_()
            block.attn.to_q.bias.copy_(torch.tensor([0.0, 5.0]))
            block.attn.to_k.weight.copy_(torch.eye(2))
        image = torch.zeros(1, 2, *size)
        image[(0, 1, *place)] = 1
        return block, image

    @parameterized.expand([((5, 3), (4, 1)), ((2, 5, 3), (1, 3, 2)), ((7,), (5,))])
    def test_spatial_attention(self, size, place):
        block, image = self.attending(size, place)
        other = tuple(0 for _ in size)
        (m,) = captured(block, (image,), queries=[other, place])
        self.assertEqual((m.query_grid, m.key_grid, m.image_size, m.class_tokens), (size, size, size, 0))
        for row in m.on_grid()[0, 0]:
            self.assertEqual(tuple(int(i) for i in np.unravel_index(int(row.argmax()), size)), place)
            self.assertGreater(float(row.max()), 0.9)
        self.assertEqual(int(m.queries[1]), int(np.ravel_multi_index(place, size)))

    @parameterized.expand([("conv", False), ("perceptron", False), ("conv", True)])
    def test_patches_of_vit(self, proj_type, classification):
        """A patch's keys do not change when another patch of the image does: those that change lie in that patch."""
        net = vit(proj_type=proj_type, classification=classification, img_size=(16, 12))
        image = normal(1, 1, 16, 12)
        changed = image.clone()
        changed[..., 9, 5] += 30
        options = {"blocks": "blocks.0", "queries": [(0, 0)]}
        (before,), (after,) = captured(net, (image,), **options), captured(net, (changed,), **options)
        self.assertEqual((before.key_grid, before.class_tokens), ((4, 3), int(classification)))
        logits = [(m.on_grid().log() - m.on_grid().log()[..., :1, :1]).abs() for m in (before, after)]
        difference = (logits[0] - logits[1]).abs().sum(dim=(0, 1, 2))
        self.assertEqual(difference.gt(1e-3).nonzero().tolist(), [[2, 1]])

    def test_a_module_that_declares_its_grid(self):
        class Words(nn.Sequential):
            def token_grids(self):
                return {"1": TokenGrid(grid=(3, 2), class_tokens=1)}

        net = Words(SABlock(8, 2), SABlock(8, 2))
        first, second = captured(net, (normal(1, 7, 8),), queries="all")
        self.assertEqual((first.query_grid, first.class_tokens), (None, 0))
        self.assertEqual((second.query_grid, second.class_tokens), ((3, 2), 1))

    def test_a_module_that_hides_its_attention(self):
        net = nn.Sequential(SABlock(8, 2), nn.Identity())
        net[1].hides_attention = "never calls its blocks."
        with self.assertRaisesRegex(RuntimeError, r"'1' \(Identity\) never calls its blocks\."):
            capture_attention(net)

    def test_class_token(self):
        (m, _) = captured(vit(classification=True), (normal(2, 1, 16, 8),), queries="class")
        self.assertEqual((m.queries.tolist(), list(m.weights.shape)), ([0], [2, 4, 1, 9]))
        self.assertEqual(list(m.on_grid().shape), [2, 4, 1, 4, 2])
        self.assertEqual(list(m.to_class_token().shape), [2, 4, 1, 1])
        joined = torch.cat([m.to_class_token(), m.on_grid().flatten(3)], dim=-1)
        self.assertTrue(torch.equal(joined, m.weights))

    @parameterized.expand(
        [
            ("voxels", [(0, 0), (15, 7), (4, 3), (4, 3)], [0, 7, 2, 2]),
            ("numpy_voxels", [np.array([15, 7])], [7]),
            ("numbers", torch.tensor([5, 1]), [5, 1]),
            ("array", np.array([3]), [3]),
        ]
    )
    def test_queries_on_patches(self, _name, queries, expected):
        for m in captured(vit(), (normal(1, 1, 16, 8),), queries=queries):
            self.assertEqual(m.queries.tolist(), expected)

    @parameterized.expand([(False, torch.Tensor), (True, torch.Tensor), (True, MetaTensor)])
    def test_mask(self, with_channel, kind):
        mask = torch.zeros(16, 8, dtype=torch.bool)
        mask[3:5, 7] = True
        mask[12, 0] = True
        mask = mask[None] if with_channel else mask
        mask = MetaTensor(mask) if kind is MetaTensor else mask
        for m in captured(vit(classification=True), (normal(1, 1, 16, 8),), queries=mask):
            self.assertEqual(m.queries.tolist(), [1 + 1, 1 + 3, 1 + 6])

    def test_rest_of_an_image_that_patches_leave_out(self):
        net, image = vit(img_size=(18, 9)), normal(1, 1, 18, 9)
        (m, _) = captured(net, (image,), queries=[(15, 7)])
        self.assertEqual((m.queries.tolist(), m.image_size, m.covered_size), ([7], (18, 9), (16, 8)))
        everywhere = torch.ones(18, 9, dtype=torch.bool)
        self.assertEqual(captured(net, (image,), queries=everywhere)[0].queries.tolist(), list(range(8)))
        with self.assertRaisesRegex(ValueError, r"\(17, 0\).*\(16, 8\).*\(18, 9\)"):
            captured(net, (image,), queries=[(17, 0)])
        everywhere[:16] = False
        with self.assertRaisesRegex(ValueError, "no patch"):
            captured(net, (image,), queries=everywhere)

    def test_levels_of_a_network(self):
        """A voxel is the token whose cell it lies in at every resolution; text has no place."""
        cls, kwargs, args, values = NETWORKS["unet_conditioned"]
        net = build(cls, {**kwargs, "attention_levels": (True, True)})
        maps = captured(net, args, values, queries=[(7, 2)])
        grids = {(m.query_grid, m.image_size) for m in maps}
        self.assertEqual(grids, {((8, 8), (8, 8)), ((4, 4), (8, 8))})
        for m in maps:
            self.assertEqual(m.queries.tolist(), [7 * 8 + 2 if m.query_grid == (8, 8) else 3 * 4 + 1])
            if m.name.endswith("attn2"):
                self.assertIsNone(m.key_grid)
                self.assertRaisesRegex(ValueError, "attn2", m.on_grid)
            else:
                self.assertEqual(m.key_grid, m.query_grid)

    def test_own_tokens_as_context(self):
        net = build(DiffusionModelUNet, {**UNET, **CONDITIONED, "cross_attention_dim": 16})
        values = {"x": normal(1, 1, 8, 8), "timesteps": torch.tensor([3])}
        maps = [m for m in captured(net, (), values) if m.name.endswith("attn2")]
        self.assertEqual({m.key_grid for m in maps}, {(4, 4)})

    def test_context_before_the_image(self):
        """The image is the first one in the signature, in whatever order keywords come."""
        cls, kwargs, _, values = NETWORKS["unet_conditioned"]
        maps = captured(build(cls, kwargs), (), dict(reversed(values.items())), queries=[(0, 0)])
        self.assertEqual({m.image_size for m in maps}, {(8, 8)})

    def test_masked_autoencoder(self):
        cls, kwargs, args, _ = NETWORKS["mae"]
        net = build(cls, kwargs)
        with self.assertRaisesRegex(ValueError, "blocks.0.attn.*no grid.*decoder_blocks.1.attn"):
            capture_attention(net, queries=[(0, 0)])
        for m in captured(net, args, queries="class"):
            encoder = m.name.startswith("blocks.")
            self.assertEqual((m.key_grid, m.class_tokens), (None if encoder else (4, 2), 1))
        (m, _) = captured(net, args, blocks="decoder_blocks.*", queries=[(15, 7)])
        self.assertEqual(m.queries.tolist(), [8])

    def test_relative_positions_give_a_grid(self):
        (m,) = captured(build(SABlock, {**SELF, **VOLUME}), (normal(2, 12, 24),))
        self.assertEqual(list(m.on_grid().shape), [2, 4, 12, 2, 3, 2])
        cls, kwargs, values = BLOCKS["cross_rel_pos"]
        (m,) = captured(build(cls, kwargs), (normal(2, 12, 24),), values)
        self.assertEqual((m.query_grid, m.key_grid), ((3, 4), (5, 2)))

    def test_plain_blocks_and_sequences_lie_on_no_grid(self):
        (m,) = captured(build(SABlock, SELF), (normal(2, 12, 24),))
        self.assertEqual((m.query_grid, m.key_grid, m.image_size), (None, None, None))
        (m, _) = captured(build(DecoderOnlyTransformer, WORDS), (TOKENS,))
        self.assertRaisesRegex(ValueError, "blocks.0.attn.*no grid", m.on_grid)

    def test_tokens_that_a_network_adds(self):
        class Registers(ViT):
            def forward(self, x):
                x = torch.cat([self.patch_embedding(x), torch.zeros(x.shape[0], 2, 24)], dim=1)
                return self.blocks[1](self.blocks[0](x))

        for m in captured(build(Registers, VIT), (normal(1, 1, 16, 8),)):
            self.assertIsNone(m.key_grid)

    def test_methods_beside_forward(self):
        net = build(AutoencoderKL, KL)
        with torch.no_grad(), capture_attention(net, queries=[(11, 7)], blocks="encoder") as capture:
            net.encode(normal(1, 1, 12, 8))
        self.assertEqual({(m.image_size, int(m.queries)) for m in capture.maps}, {((12, 8), 23)})


class TestRefusals(unittest.TestCase):
    @parameterized.expand(
        [
            ("no attention", lambda: UNet(2, 1, 1, (4, 8), (2,)), {}, ValueError, "UNet holds no attention block"),
            ("compiled", lambda: torch.compile(vit()), {}, RuntimeError, r"net\._orig_mod"),
            (
                "compiled part",
                lambda: nn.ModuleDict({"head": torch.compile(vit())}),
                {},
                RuntimeError,
                r"net\.head\._orig_mod",
            ),
            ("scripted", lambda: torch.jit.script(vit()), {}, RuntimeError, "TorchScript"),
            (
                "scripted part",
                lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2)), vit()),
                {},
                RuntimeError,
                "'0'.*TorchScript",
            ),
            (
                "cached",
                lambda: build(DecoderOnlyTransformer, WORDS).cached(2),
                {},
                RuntimeError,
                "DecoderOnlyTransformer",
            ),
            ("no such block", vit, {"blocks": "block.1.attn"}, ValueError, "'block.1.attn'.*: blocks.1.attn, blocks.0"),
            ("one of several", vit, {"blocks": ["*", "x"]}, ValueError, "'x'"),
            ("no block", vit, {"blocks": []}, ValueError, "empty"),
            ("block by number", vit, {"blocks": [3]}, TypeError, "3"),
            ("word", vit, {"queries": "cls"}, ValueError, "'cls'"),
            ("number", vit, {"queries": 3}, TypeError, "int"),
            ("bare voxel", vit, {"queries": (3, 4)}, TypeError, r"\(3, 4\)"),
            ("broken voxel", vit, {"queries": [(3.5, 4)]}, TypeError, "3.5"),
            ("no voxels", vit, {"queries": []}, ValueError, "no coordinates"),
            ("float mask", vit, {"queries": torch.ones(16, 8)}, TypeError, "float32.*> 0"),
            ("numbers in 2-D", vit, {"queries": torch.ones(2, 2, dtype=torch.long)}, TypeError, "tolist"),
            ("empty mask", vit, {"queries": torch.zeros(16, 8) > 0}, ValueError, "holds no voxel"),
            ("no numbers", vit, {"queries": torch.zeros(0, dtype=torch.long)}, ValueError, "no token number"),
            ("no class token", vit, {"queries": "class"}, ValueError, "blocks.0.attn.*no class token"),
            ("chunk", vit, {"chunk_size": 0}, ValueError, "0"),
            (
                "sequence",
                lambda: build(DecoderOnlyTransformer, WORDS),
                {"queries": [(0, 0)]},
                ValueError,
                "blocks.0.attn.*no grid",
            ),
        ]
    )
    def test_before_the_call(self, _name, make, options, error, message):
        with self.assertRaisesRegex(error, message):
            capture_attention(make(), **options)

    def test_compiled_in_place(self):
        net = vit()
        net.compile()
        with self.assertRaisesRegex(RuntimeError, "deepcopy"):
            capture_attention(net)
        self.assertEqual(len(captured(copy.deepcopy(net), (normal(1, 1, 16, 8),))), 2)
        net = vit()
        capture = capture_attention(net)
        net.blocks[0].compile()
        with self.assertRaisesRegex(RuntimeError, "'blocks.0'"), capture:
            pass

    @parameterized.expand(
        [
            ([(16, 0)], r"\(16, 0\).*\(16, 8\)"),
            ([(-1, 0)], r"\(-1, 0\).*\(16, 8\)"),
            ([(1, 0, 0)], r"\(1, 0, 0\).*\(16, 8\)"),
            (torch.ones(8, 16) > 0, r"\[8, 16\].*\[16, 8\]"),
            (torch.tensor([8, 1, -1]), r"0 to 7, not \[8, -1\]"),
        ]
    )
    def test_in_the_call(self, queries, message):
        net = vit()
        with self.assertRaisesRegex(ValueError, message), capture_attention(net, queries=queries):
            net(normal(1, 1, 16, 8))

    def test_no_image(self):
        block = build(SABlock, {**SELF, **GRID})
        with self.assertRaisesRegex(ValueError, r"\(3, 4\).*\(24,\)"):
            captured(block, (normal(1, 12, 24),), queries=[(0, 0)])

    @parameterized.expand([(torch.export.export,), (torch.jit.trace,)])
    def test_recording_a_graph(self, record: Callable):
        net = vit()
        with (
            self.assertRaisesRegex(RuntimeError, "blocks.0.attn.*leave"),
            capture_attention(net),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            record(net, (normal(1, 1, 16, 8),))


if __name__ == "__main__":
    unittest.main()
