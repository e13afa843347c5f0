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

"""What users do around the vision transformers and the decoder. All of it works on the release, too."""

from __future__ import annotations

import copy
import io
import unittest
import warnings
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from monai.networks.blocks import PatchEmbeddingBlock
from monai.networks.nets import UNETR, DecoderOnlyTransformer, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from monai.networks.nets import masked_autoencoder_vit as mae_module
from monai.networks.nets import transformer as decoder_module
from monai.networks.nets import unetr as unetr_module
from monai.networks.nets import vit as vit_module
from monai.networks.nets import vitautoenc as vitautoenc_module

torch.set_num_threads(1)
TOKENS = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "spatial_dims": 2}
SLICE = {**TOKENS, "img_size": (16, 8), "patch_size": 4, "num_layers": 2}
SEGMENTER = {**TOKENS, "img_size": (32, 16), "out_channels": 2, "feature_size": 4, "norm_name": "batch"}
MASKED = {**SLICE, "decoder_hidden_size": 12, "decoder_num_heads": 2, "decoder_num_layers": 1}
NETWORKS = [
    ("vit", ViT, SLICE, (16, 8)),
    ("vit_with_head", ViT, {**SLICE, "classification": True}, (16, 8)),
    ("vit_perceptron", ViT, {**SLICE, "proj_type": "perceptron", "pos_embed_type": "sincos"}, (16, 8)),
    ("vit_fourier", ViT, {**SLICE, "pos_embed_type": "fourier"}, (16, 8)),
    ("vitautoenc", ViTAutoEnc, SLICE, (16, 8)),
    ("unetr", UNETR, SEGMENTER, (32, 16)),
    ("masked_autoencoder", MaskedAutoEncoderViT, MASKED, (16, 8)),
]


def build(cls: type[nn.Module], kwargs: dict) -> nn.Module:
    torch.manual_seed(0)
    return cls(**kwargs).eval()


def image(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1))


def run(net: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """The first output, with whatever is drawn at random the same each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        out = net(*args)
    return out[0] if isinstance(out, tuple) else out


class OwnBlock(nn.Module):
    """A transformer block of the user's own, which takes what the release gives."""

    def __init__(self, hidden_size, mlp_dim, num_heads, dropout_rate=0.0, qkv_bias=False, save_attn=False):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.options = (mlp_dim, num_heads, dropout_rate, qkv_bias, save_attn)

    def forward(self, x):
        return x + self.linear(x)


class OwnDecoderBlock(nn.Module):
    """A block of an autoregressive decoder, likewise: by name, and with a context alone."""

    def __init__(
        self,
        *,
        hidden_size,
        mlp_dim,
        num_heads,
        dropout_rate,
        qkv_bias,
        causal,
        sequence_length,
        with_cross_attention,
        include_fc,
        use_combined_linear,
        use_flash_attention,
    ):
        super().__init__()
        self.linear = nn.Linear(hidden_size, mlp_dim)
        self.options = (causal, sequence_length, with_cross_attention)

    def forward(self, x, context=None):
        return x if context is None else x + context.mean(1, keepdim=True)


class TestPositionEmbedding(unittest.TestCase):
    def larger(self, net: PatchEmbeddingBlock, grid: tuple[int, ...], wanted: tuple[int, ...]) -> torch.Tensor:
        """The embedding of a larger grid, interpolated as everybody does."""
        positions = net.position_embeddings.detach()
        table = positions.transpose(1, 2).reshape(1, positions.shape[2], *grid)
        return F.interpolate(table, size=wanted, mode="bicubic").flatten(2).transpose(1, 2)

    def give(self, net: PatchEmbeddingBlock, positions: torch.Tensor, how: str) -> None:
        if how == "in place":
            net.position_embeddings.data = positions
        elif how == "another parameter":
            net.position_embeddings = nn.Parameter(positions)
        else:
            del net.position_embeddings
            net.register_buffer("position_embeddings", positions)

    @parameterized.expand([("in place",), ("another parameter",), ("a buffer",)])
    def test_vit(self, how):
        net = build(ViT, SLICE)
        expected = run(net.patch_embedding.patch_embeddings, image(32, 24)).flatten(2).transpose(1, 2)
        positions = self.larger(net.patch_embedding, (4, 2), (8, 6))
        self.give(net.patch_embedding, positions, how)
        self.assertTrue(torch.allclose(run(net.patch_embedding, image(32, 24)), expected + positions, atol=1e-6))
        self.assertEqual(run(net, image(32, 24)).shape, (2, 48, 24))
        script = torch.jit.script(net)
        self.assertTrue(torch.allclose(run(script, image(32, 24)), run(net, image(32, 24)), atol=1e-5))

    def test_as_many_patches_on_another_grid(self):
        """Whoever interpolates to it has as many positions as before."""
        net = build(ViT, SLICE)
        expected = run(net.patch_embedding.patch_embeddings, image(8, 16)).flatten(2).transpose(1, 2)
        positions = self.larger(net.patch_embedding, (4, 2), (2, 4))
        self.give(net.patch_embedding, positions, "in place")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(net.patch_embedding, image(8, 16))
            self.assertEqual(run(net, image(8, 16)).shape, (2, 8, 24))
        self.assertTrue(torch.allclose(found, expected + positions, atol=1e-6))

    def test_no_positions(self):
        net = build(ViT, SLICE)
        net.patch_embedding.position_embeddings = nn.Parameter(torch.zeros(1, 1, 24))
        for size in ((16, 8), (32, 32)):
            expected = run(net.patch_embedding.patch_embeddings, image(*size)).flatten(2).transpose(1, 2)
            self.assertTrue(torch.equal(run(net.patch_embedding, image(*size)), expected))

    def test_parametrized(self):
        class Scaled(nn.Module):
            def forward(self, x):
                return 2 * x

        net = build(ViT, SLICE)
        before = net.patch_embedding.position_embeddings.detach().clone()
        tokens = run(net.patch_embedding, image(16, 8)) - before
        parametrize.register_parametrization(net.patch_embedding, "position_embeddings", Scaled())
        self.assertTrue(torch.allclose(run(net.patch_embedding, image(16, 8)), tokens + 2 * before, atol=1e-6))

    def test_vitautoenc(self):
        net = build(ViTAutoEnc, SLICE)
        self.give(net.patch_embedding, self.larger(net.patch_embedding, (4, 2), (8, 6)), "another parameter")
        self.assertEqual(run(net, image(32, 24)).shape, (2, 1, 32, 24))

    def test_unetr(self):
        net = build(UNETR, SEGMENTER)
        positions = self.larger(net.vit.patch_embedding, (2, 1), (3, 4))
        self.give(net.vit.patch_embedding, positions, "another parameter")
        net.feat_size = (3, 4)
        net.proj_view_shape = [3, 4, 24]
        self.assertEqual(run(net, image(48, 64)).shape, (2, 2, 48, 64))

    def test_masked_autoencoder(self):
        net = build(MaskedAutoEncoderViT, MASKED)
        self.give(net.patch_embedding, torch.rand(1, 48, 24), "in place")
        net.decoder_pos_embedding = nn.Parameter(torch.rand(1, 48, 12))
        patches, mask = net(image(32, 24))
        self.assertEqual((patches.shape, mask.shape), ((2, 48, 16), (2, 48)))

    def test_decoder(self):
        net = build(DecoderOnlyTransformer, decoder_sizes(use_flash_attention=True))
        longer = nn.Embedding(20, 24)
        net.position_embeddings.embedding = longer
        self.assertEqual(run(net, torch.zeros(2, 15, dtype=torch.long)).shape, (2, 15, 7))
        net.position_embeddings = nn.Identity()
        net.token_embeddings = nn.Linear(5, 24)
        net.position_embeddings = OwnPositions()
        self.assertEqual(run(net, torch.rand(2, 12, 5)).shape, (2, 12, 7))


class OwnPositions(nn.Module):
    def forward(self, x):
        return torch.arange(x.shape[1], dtype=torch.float32)[None, :, None] / 10


def decoder_sizes(**kwargs) -> dict:
    names = ("num_tokens", "max_seq_len", "attn_layers_dim", "attn_layers_depth", "attn_layers_heads")
    return {**dict(zip(names, (7, 9, 24, 2, 4))), **kwargs}


class TestHead(unittest.TestCase):
    def test_deleted(self):
        net = build(ViT, {**SLICE, "classification": True})
        tokens = run(net.norm, net(image(16, 8))[1][-1])
        del net.classification_head
        self.assertTrue(torch.equal(run(net, image(16, 8)), tokens))
        self.assertEqual(tokens.shape, (2, 9, 24))
        self.assertTrue(torch.allclose(run(torch.jit.script(net), image(16, 8)), tokens, atol=1e-5))

    def test_replaced(self):
        net = build(ViT, {**SLICE, "classification": True})
        net.classification_head = nn.Linear(24, 11)
        self.assertEqual(run(net, image(16, 8)).shape, (2, 11))
        net.classification_head = nn.Identity()
        self.assertEqual(run(net, image(16, 8)).shape, (2, 24))

    def test_added(self):
        net = build(ViT, SLICE)
        net.classification_head = nn.Linear(24, 3)
        self.assertEqual(run(net, image(16, 8)).shape, (2, 3))
        net.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.assertEqual(run(net, image(16, 8)).shape, (2, 3))
        self.assertEqual(net(image(16, 8))[1][0].shape, (2, 9, 24))

    def test_class_token_deleted(self):
        net = build(ViT, {**SLICE, "classification": True})
        del net.cls_token
        self.assertEqual(net(image(16, 8))[1][0].shape, (2, 8, 24))
        self.assertEqual(run(net, image(16, 8)).shape, (2, 2))


class TestOwnClasses(unittest.TestCase):
    @parameterized.expand(
        [
            ("vit", vit_module, ViT, SLICE, (16, 8)),
            ("vitautoenc", vitautoenc_module, ViTAutoEnc, SLICE, (16, 8)),
            ("unetr", vit_module, UNETR, SEGMENTER, (32, 16)),
            ("masked_autoencoder", mae_module, MaskedAutoEncoderViT, MASKED, (16, 8)),
        ]
    )
    def test_block_of_the_module(self, _, module, cls, kwargs, size):
        with mock.patch.object(module, "TransformerBlock", OwnBlock):
            net = build(cls, {**kwargs, "qkv_bias": True, "save_attn": True, "dropout_rate": 0.25})
        blocks = [part for part in net.modules() if isinstance(part, OwnBlock)]
        self.assertGreaterEqual(len(blocks), 2)
        self.assertEqual(blocks[0].options, (32, 4, 0.25, True, True))
        self.assertTrue(bool(run(net, image(*size)).isfinite().all()))

    def test_block_of_the_decoder(self):
        with mock.patch.object(decoder_module, "TransformerBlock", OwnDecoderBlock):
            net = build(DecoderOnlyTransformer, decoder_sizes(with_cross_attention=True))
        self.assertEqual([block.options for block in net.blocks], [(True, 9, True)] * 2)
        tokens = torch.zeros(2, 5, dtype=torch.long)
        self.assertFalse(torch.equal(run(net, tokens), run(net, tokens, torch.ones(2, 3, 24))))

    @parameterized.expand(
        [
            ("vit", vit_module, ViT, SLICE),
            ("vitautoenc", vitautoenc_module, ViTAutoEnc, SLICE),
            ("masked_autoencoder", mae_module, MaskedAutoEncoderViT, MASKED),
        ]
    )
    def test_patch_embedding_of_the_module(self, _, module, cls, kwargs):
        initialized = []

        class Mine(PatchEmbeddingBlock):
            def _init_weights(self, m):
                initialized.append(type(m))
                super()._init_weights(m)

        with mock.patch.object(module, "PatchEmbeddingBlock", Mine):
            net = build(cls, {**kwargs, "proj_type": "perceptron"})
        self.assertIsInstance(net.patch_embedding, Mine)
        self.assertIn(nn.Linear, initialized)

    def test_vit_of_unetr(self):
        class Mine(ViT):
            def forward(self, x):
                tokens, hidden_states = super().forward(x)
                return 2 * tokens, hidden_states

        with mock.patch.object(unetr_module, "ViT", Mine):
            net = build(UNETR, SEGMENTER)
        self.assertIsInstance(net.vit, Mine)
        self.assertGreater(
            float((run(net, image(32, 16)) - run(build(UNETR, SEGMENTER), image(32, 16))).abs().max()), 0
        )

    def test_masks_of_the_users_own(self):
        """Indices as the release returns them: on the CPU."""

        class Mine(MaskedAutoEncoderViT):
            def _masking(self, x, masking_ratio=None):
                kept = torch.arange(3).repeat(x.shape[0], 1)
                mask = torch.ones(x.shape[:2], dtype=torch.int)
                mask[:, :3] = 0
                return x[:, :3], kept, mask

        net = build(Mine, MASKED)
        patches, mask = net(image(16, 8), masking_ratio=0.1)
        self.assertEqual(patches.shape, (2, 8, 16))
        self.assertEqual(mask.sum(1).tolist(), [5, 5])

    def test_initial_weights_of_the_users_own(self):
        class Mine(MaskedAutoEncoderViT):
            def _init_weights(self):
                super()._init_weights()
                nn.init.constant_(self.cls_token, 7.0)

        self.assertEqual(float(build(Mine, MASKED).cls_token.mean()), 7.0)


class TestOwnModules(unittest.TestCase):
    def test_how_modules_are_called(self):
        """Each with one positional argument, in the order of the computation."""
        net = build(ViT, {**SLICE, "classification": True})
        calls = []
        for name, part in net.named_modules():
            if name.count(".") <= 1 and name:
                part.register_forward_pre_hook(
                    lambda m, args, kwargs, name=name: calls.append((name, len(args), dict(kwargs))), with_kwargs=True
                )
        run(net, image(16, 8))
        self.assertEqual({(count, len(kwargs)) for name, count, kwargs in calls}, {(1, 0)})
        places = [name for name, _, _ in calls]
        order = ["patch_embedding", "patch_embedding.patch_embeddings", "patch_embedding.dropout", "blocks.0"]
        self.assertEqual(places, [*order, "blocks.1", "norm", "classification_head", *places[7:]])

    def test_how_the_decoders_blocks_are_called(self):
        net = build(DecoderOnlyTransformer, decoder_sizes(with_cross_attention=True))
        calls, positions = [], []
        for block in net.blocks:
            block.register_forward_pre_hook(
                lambda m, args, kwargs: calls.append((len(args), sorted(kwargs))), with_kwargs=True
            )
        net.position_embeddings.embedding.register_forward_pre_hook(lambda m, args: positions.append(args[0]))
        run(net, torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 3, 24))
        self.assertEqual(calls, [(1, ["context"])] * 2)
        self.assertEqual(positions[0].tolist(), [[0, 1, 2, 3, 4]] * 2)

    def test_replaced_blocks(self):
        for _, cls, kwargs, size in NETWORKS[:-2]:
            net = build(cls, kwargs)
            net.blocks[1] = nn.Linear(24, 24)
            self.assertTrue(bool(run(net, image(*size)).isfinite().all()))

    def test_replaced_projection_of_patches(self):
        """A stem of convolutions, and a linear that is given patches instead of an image."""
        net = build(ViT, SLICE)
        net.patch_embedding.patch_embeddings = nn.Sequential(nn.Conv2d(1, 8, 2, 2), nn.Conv2d(8, 24, 2, 2))
        self.assertEqual(run(net, image(16, 8)).shape, (2, 8, 24))
        net = build(ViT, {**SLICE, "proj_type": "perceptron"})
        net.patch_embedding.patch_embeddings = nn.Linear(5, 24)
        self.assertEqual(run(net, torch.rand(2, 8, 5)).shape, (2, 8, 24))


class TestLife(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_copied_saved_and_averaged(self, _, cls, kwargs, size):
        net, x, buffer = build(cls, kwargs), image(*size), io.BytesIO()
        expected = run(net, x)
        torch.save(net, buffer)
        buffer.seek(0)
        average = AveragedModel(net, use_buffers=True)
        for _ in range(3):
            average.update_parameters(net)
        for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False), average.module):
            self.assertTrue(torch.allclose(run(other, x), expected, atol=1e-6))

    @parameterized.expand(NETWORKS)
    def test_built_without_memory(self, _, cls, kwargs, size):
        """On the meta device, as large networks are, and from memory that nobody has set."""
        source, x = build(cls, kwargs), image(*size)
        expected = run(source, x)
        with torch.device("meta"):
            net = cls(**kwargs).eval()
        net.load_state_dict(source.state_dict(), assign=True)
        self.assertTrue(torch.allclose(run(net.to("cpu"), x), expected, atol=1e-6))
        with torch.device("meta"):
            net = cls(**kwargs).eval()
        net.to_empty(device="cpu").load_state_dict(source.state_dict())
        self.assertTrue(torch.allclose(run(net, x), expected, atol=1e-6))

    @parameterized.expand(NETWORKS)
    def test_types(self, _, cls, kwargs, size):
        expected = run(build(cls, kwargs), image(*size))
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.5)):
            out = run(build(cls, kwargs).to(dtype), image(*size).to(dtype))
            self.assertEqual(out.dtype, dtype)
            if cls is not MaskedAutoEncoderViT:
                self.assertLess(float((out.float() - expected).abs().max()), tolerance)

    def test_built_from_positions(self):
        """The order of arguments is the release's."""
        net = ViT(1, (16, 8), 4, 24, 32, 2, 4, "perceptron", "sincos", True, 5, 0.25, 2, "None", True, True)
        self.assertEqual((net.classification, len(net.blocks), net.patch_embedding.dropout.p), (True, 2, 0.25))
        self.assertEqual(run(net.eval(), image(16, 8)).shape, (2, 5))


if __name__ == "__main__":
    unittest.main()
