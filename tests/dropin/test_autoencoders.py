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

"""What users do around the autoencoders and the VQVAE. All of it works on the release, too."""

from __future__ import annotations

import copy
import inspect
import io
import unittest
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.utils.checkpoint
from parameterized import parameterized
from torch.optim.swa_utils import AveragedModel

from monai.apps.generation.maisi.networks import autoencoderkl_maisi as maisi
from monai.networks.nets import VQVAE, AutoencoderKL, SPADEAutoencoderKL
from monai.networks.nets import autoencoderkl as kl
from monai.networks.nets import spade_autoencoderkl
from monai.networks.nets import vqvae as vq

torch.set_num_threads(1)
LEVELS = {"num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 4, "norm_num_groups": 4}
KL = {**LEVELS, "spatial_dims": 2, "channels": (8, 16)}
SPADE = {**KL, "label_nc": 3, "spade_intermediate_channels": 8}
MAISI = {**LEVELS, "spatial_dims": 3, "num_channels": (8, 16), "in_channels": 1, "out_channels": 1, "num_splits": 2}
MIDDLE = {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}
CODEBOOK = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": (4, 8),
    "num_res_channels": 4,
    "num_res_layers": 1,
    "downsample_parameters": (2, 4, 1, 1),
    "upsample_parameters": (2, 4, 1, 1, 0),
    "num_embeddings": 8,
    "embedding_dim": 4,
}
NETWORKS = [
    ("kl", AutoencoderKL, KL),
    ("kl_transposed", AutoencoderKL, {**KL, "use_convtranspose": True}),
    ("spade", SPADEAutoencoderKL, SPADE),
    ("vqvae", VQVAE, CODEBOOK),
    ("maisi", maisi.AutoencoderKlMaisi, {**MAISI, **MIDDLE}),
]
# module, name of a class in it, network that is built from it, its arguments
CLASSES = [
    *((kl, name, AutoencoderKL, KL) for name in ("Encoder", "Decoder", "AEKLResBlock", "AEKLDownsample")),
    *((kl, name, AutoencoderKL, KL) for name in ("Convolution", "SpatialAttentionBlock", "Upsample")),
    (kl, "AsymmetricPad", AutoencoderKL, KL),
    (kl, "Upsample", AutoencoderKL, {**KL, "use_convtranspose": True}),
    (kl, "SpatialAttentionBlock", SPADEAutoencoderKL, SPADE),
    *((spade_autoencoderkl, name, SPADEAutoencoderKL, SPADE) for name in ("Encoder", "SPADEDecoder", "SPADEResBlock")),
    *((spade_autoencoderkl, name, SPADEAutoencoderKL, SPADE) for name in ("SPADE", "Convolution", "Upsample")),
    (spade_autoencoderkl, "SpatialAttentionBlock", SPADEAutoencoderKL, SPADE),
    *((vq, name, VQVAE, CODEBOOK) for name in ("Encoder", "Decoder", "VQVAEResidualUnit", "Convolution")),
    *((vq, name, VQVAE, CODEBOOK) for name in ("VectorQuantizer", "EMAQuantizer")),
    *((maisi, f"Maisi{name}", maisi.AutoencoderKlMaisi, MAISI) for name in ("Encoder", "Decoder", "ResBlock")),
    *((maisi, f"Maisi{name}", maisi.AutoencoderKlMaisi, MAISI) for name in ("Upsample", "Downsample", "Convolution")),
    (maisi, "MaisiGroupNorm3D", maisi.AutoencoderKlMaisi, MAISI),
    (maisi, "AEKLResBlock", maisi.AutoencoderKlMaisi, {**MAISI, **MIDDLE}),
    (maisi, "SpatialAttentionBlock", maisi.AutoencoderKlMaisi, MAISI),
    (maisi, "Convolution", maisi.AutoencoderKlMaisi, MAISI),
]
CASES = [
    (f"{module.__name__.rpartition('.')[2]}_{name}", module, name, cls, kwargs) for module, name, cls, kwargs in CLASSES
]
# what the release's classes took beyond their present arguments is not to be given to a class of the user's own
LATER = {"use_proj_attn"}


def build(cls: type[nn.Module], kwargs: dict) -> nn.Module:
    torch.manual_seed(0)
    return cls(**kwargs).eval()


def inputs(net: nn.Module, batch: int = 1) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    if isinstance(net, maisi.AutoencoderKlMaisi):
        return (torch.rand(batch, 1, 16, 16, 16, generator=draw),)
    x = torch.rand(batch, 1, 8, 8, generator=draw)
    return (x, torch.rand(batch, 3, 8, 8, generator=draw)) if isinstance(net, SPADEAutoencoderKL) else (x,)


def run(net: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return net(*inputs(net))[0]


def recorded(net: nn.Module) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """The list to which each call of a submodule adds its name and arguments."""
    calls: list[tuple[str, list[Any], dict[str, Any]]] = []
    for name, part in net.named_modules():
        part.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: calls.append((name, list(args), dict(kwargs))), with_kwargs=True
        )
    return calls


class TestOwnClasses(unittest.TestCase):
    @parameterized.expand(CASES)
    def test_class_of_the_module(self, _, module: ModuleType, name: str, cls: type[nn.Module], kwargs: dict):
        """A class that is put into a network's module is built through its constructor, with named arguments."""
        original, given = getattr(module, name), []

        class Mine(original):  # type: ignore[misc,valid-type]
            def __init__(self, *args, **kwargs):
                given.append((len(args), set(kwargs)))
                super().__init__(*args, **kwargs)

        expected = run(build(cls, kwargs))
        with mock.patch.object(module, name, Mine):
            net = build(cls, kwargs)
            self.assertTrue([part for part in net.modules() if isinstance(part, Mine)])
            self.assertTrue(torch.equal(run(net), expected))
        self.assertTrue(given)
        self.assertEqual({count for count, _ in given}, {0})
        self.assertFalse(set.union(*(names for _, names in given)) & LATER)

    def test_attention_that_is_no_subclass(self):
        class Mine(nn.Module):
            def __init__(
                self,
                spatial_dims,
                num_channels,
                norm_num_groups,
                norm_eps,
                include_fc,
                use_combined_linear,
                use_flash_attention,
            ):
                super().__init__()
                self.options = (spatial_dims, num_channels, norm_num_groups, norm_eps, include_fc, use_combined_linear)

            def forward(self, x):
                return 2 * x

        for module, cls, kwargs, expected in (
            (kl, AutoencoderKL, KL, (2, 16, 4, 1e-6, True, False)),
            (maisi, maisi.AutoencoderKlMaisi, MAISI, (3, 16, 4, 1e-6, False, False)),
        ):
            with mock.patch.object(module, "SpatialAttentionBlock", Mine):
                net = build(cls, kwargs)
            blocks = [part for part in net.modules() if isinstance(part, Mine)]
            self.assertTrue(blocks)
            self.assertEqual({block.options for block in blocks}, {expected})
            self.assertTrue(bool(run(net).isfinite().all()))

    def test_residual_block_of_spade_that_is_no_subclass(self):
        class Mine(nn.Module):
            def __init__(self, in_channels, out_channels, label_nc, **kwargs):
                super().__init__()
                self.conv = nn.Conv2d(in_channels, out_channels, 1)

            def forward(self, x, seg):
                return self.conv(x) + F.interpolate(seg, x.shape[2:]).mean(1, keepdim=True)

        with mock.patch.object(spade_autoencoderkl, "SPADEResBlock", Mine):
            net = build(SPADEAutoencoderKL, SPADE)
            self.assertTrue(bool(run(net).isfinite().all()))

    def test_subclasses_with_constructors_of_their_own(self):
        class Mine(kl.Encoder):
            def __init__(self, *args, extra=5, **kwargs):
                super().__init__(*args, **kwargs)
                self.extra = extra

        arguments = (2, 1, (8, 16), 4, (1, 1), 4, 1e-6, (False, True), False)
        self.assertEqual(Mine(*arguments, extra=7).extra, 7)
        self.assertEqual(Mine(*arguments)(torch.rand(1, 1, 8, 8)).shape, (1, 4, 4, 4))


class TestOwnMethods(unittest.TestCase):
    @parameterized.expand([case for case in NETWORKS if case[0] != "vqvae"])
    def test_encoding_sampling_and_decoding(self, _, cls, kwargs):
        class Mine(cls):
            def encode(self, x):
                mean, sigma = super().encode(x)
                return mean + 1, sigma

            def sampling(self, z_mu, z_sigma):
                return z_mu * 2

            def decode(self, z, *args):
                return super().decode(z, *args) * 3

        net, own = build(cls, kwargs), build(Mine, kwargs)
        x, *seg = inputs(net)
        with torch.no_grad():
            mean = net.encode(x)[0] + 1
            drawn, middle = net.decode(mean * 2, *seg) * 3, net.decode(mean, *seg) * 3
            results = [own(x, *seg)[0], own.encode_stage_2_inputs(x), own.reconstruct(x, *seg)]
            results.append(own.decode_stage_2_outputs(mean, *seg))
        for found, expected in zip(results, (drawn, mean * 2, middle, middle)):
            self.assertTrue(torch.allclose(found, expected, atol=1e-5))

    def test_vqvae(self):
        class Mine(VQVAE):
            def encode(self, images):
                return super().encode(images) + 1

            def quantize(self, encodings):
                entries, loss = super().quantize(encodings)
                return entries * 2, loss

            def decode(self, quantizations):
                return super().decode(quantizations) * 3

        net, own = build(VQVAE, CODEBOOK), build(Mine, CODEBOOK)
        (x,) = inputs(net)
        entries = net.quantize(net.encode(x) + 1)[0] * 2
        self.assertTrue(torch.allclose(own(x)[0], net.decode(entries) * 3, atol=1e-5))
        self.assertTrue(torch.allclose(own.encode_stage_2_inputs(x), entries, atol=1e-5))
        self.assertTrue(torch.equal(own.index_quantize(x), net.quantizer.quantize(net.encode(x) + 1)))

    def test_codebook_that_compares_by_angles(self):
        class Mine(vq.EMAQuantizer):
            synchronized = 0

            def quantize(self, inputs):
                rows = inputs.permute(self.flatten_permutation).reshape(-1, self.embedding_dim)
                indices = (F.normalize(rows) @ F.normalize(self.embedding.weight).t()).argmax(1)
                one_hot = F.one_hot(indices, self.num_embeddings).float()
                return rows, one_hot, indices.view(inputs.shape[0], *inputs.shape[2:])

            def distributed_synchronization(self, encodings_sum, dw):
                self.synchronized += 1

        for synchronized in (True, False):
            net = build(Mine, {"spatial_dims": 2, "num_embeddings": 8, "embedding_dim": 4, "ddp_sync": synchronized})
            x = torch.randn(2, 4, 3, 3)
            cosines = torch.einsum("bchw,kc->bkhw", F.normalize(x, dim=1), F.normalize(net.embedding.weight))
            _, _, indices = net.train()(x)
            self.assertTrue(torch.equal(indices, cosines.argmax(1)))
            self.assertEqual(net.synchronized, int(synchronized))
            self.assertEqual(net.quantization_permutation, [0, 3, 1, 2])
            net.eval()(x)
            self.assertEqual(net.synchronized, int(synchronized))

    def test_volumes_with_channels_innermost(self):
        net = AutoencoderKL(**{**KL, "spatial_dims": 3}).eval()
        x = torch.randn(1, 1, 8, 8, 8)
        expected = net.encode(x)[0]
        net = net.to(memory_format=torch.channels_last_3d)
        found = net.encode(x.to(memory_format=torch.channels_last_3d))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_pieces_of_the_users_own(self):
        """Pieces may lie on several devices, say: where a convolution cuts and joins is a method."""
        sizes = []

        class Mine(maisi.MaisiConvolution):
            def _split_tensor(self, x, split_size, padding):
                splits = super()._split_tensor(x, split_size, padding)
                sizes.append(("split", split_size, padding, [split.shape[2] for split in splits]))
                return splits

            def _concatenate_tensors(self, outputs, split_size, padding):
                sizes.append(("join", split_size, padding, [out.shape[2] for out in outputs]))
                return super()._concatenate_tensors(outputs, split_size, padding)

        net = build(maisi.AutoencoderKlMaisi, MAISI)
        expected = run(net)
        with mock.patch.object(maisi, "MaisiConvolution", Mine):
            net = build(maisi.AutoencoderKlMaisi, MAISI)
        self.assertTrue(torch.allclose(run(net), expected, atol=1e-6))
        self.assertEqual(sizes[:2], [("split", 8, 3, [11, 11]), ("join", 8, 3, [11, 11])])
        strided = [size for size in sizes if size[2] not in (3,)]
        self.assertEqual(strided, [("split", 8, 4, [12, 13]), ("join", 4, 2, [5, 6])])

    def test_cutting_and_joining(self):
        net = maisi.MaisiConvolution(3, 2, 2, 4, 1, False, kernel_size=3, padding=1, conv_only=True)
        x = torch.rand(1, 2, 5, 16, 6)
        splits = net._split_tensor(x, 4, 3)
        self.assertEqual([split.shape[3] for split in splits], [7, 10, 10, 7])
        self.assertTrue(torch.equal(net._concatenate_tensors(list(splits), 4, 3), x))
        norm = maisi.MaisiGroupNorm3D(2, 4)
        self.assertTrue(torch.equal(norm._cat_inputs([x, x + 1]), torch.cat([x, x + 1], 1)))

    def test_large_groups_are_joined_by_a_method(self):
        class Mine(maisi.MaisiGroupNorm3D):
            def _cat_inputs(self, inputs):
                joined.append(len(inputs))
                return super()._cat_inputs(inputs)

        joined: list[int] = []
        x = torch.rand(1, 4, 600, 1, 1)
        norm = Mine(2, 4, norm_float16=True)
        self.assertEqual(norm(x).shape, x.shape)
        self.assertEqual(joined, [2])
        norm(x[:, :, :400])
        self.assertEqual(joined, [2])

    def test_memory_is_given_back_by_a_function(self):
        net, given = build(maisi.AutoencoderKlMaisi, MAISI), []
        with mock.patch.object(maisi, "_empty_cuda_cache", given.append):
            run(net)
        self.assertGreater(len(given), 20)
        self.assertEqual(set(given), {True})


class TestOwnModules(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_how_modules_are_called(self, name, cls, kwargs):
        net = build(cls, kwargs)
        calls = recorded(net)
        run(net)
        parts = [(name, len(args), sorted(kwargs)) for name, args, kwargs in calls if name and name.count(".") == 0]
        if cls is VQVAE:
            expected = [("encoder", 1, []), ("quantizer", 1, []), ("decoder", 1, [])]
        else:
            convolutions = [("quant_conv_mu", 1, []), ("quant_conv_log_sigma", 1, []), ("post_quant_conv", 1, [])]
            expected = [("encoder", 1, []), *convolutions, ("decoder", 1 + (cls is SPADEAutoencoderKL), [])]
        self.assertEqual(parts, expected)
        blocks = [name for name, args, kwargs in calls if name.startswith("decoder.blocks.") and name.count(".") == 2]
        self.assertEqual(blocks, [f"decoder.blocks.{number}" for number in range(len(net.decoder.blocks))])

    def test_segmentation_reaches_the_blocks(self):
        net = build(SPADEAutoencoderKL, SPADE)
        calls = recorded(net)
        run(net)
        counts = {}
        for name, args, _ in calls:
            if name.startswith("decoder.blocks.") and name.count(".") == 2:
                counts[name] = len(args)
        for number, block in enumerate(net.decoder.blocks):
            takes = isinstance(block, spade_autoencoderkl.SPADEResBlock)
            self.assertEqual(counts[f"decoder.blocks.{number}"], 2 if takes else 1)

    @parameterized.expand(NETWORKS)
    def test_replaced(self, _, cls, kwargs):
        """Blocks, encoders and convolutions that are exchanged for the user's own."""
        net = build(cls, kwargs)
        net.encoder.blocks[-1] = nn.Sequential(net.encoder.blocks[-1], nn.Tanh())
        net.decoder.blocks[0] = nn.Sequential(nn.Identity(), net.decoder.blocks[0])
        x, *seg = inputs(net)
        self.assertLessEqual(float(net.encoder(x).abs().max()), 1.0)
        self.assertTrue(bool(run(net).isfinite().all()))
        dims = x.dim() - 2
        net.encoder = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 4, 2, 2)
        self.assertTrue(bool(run(net).isfinite().all()))

    def test_wrapped_convolution_of_maisi(self):
        class Wrapped(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x)

        net = build(maisi.AutoencoderKlMaisi, MAISI)
        expected = run(net)
        for part in net.modules():
            if isinstance(part, maisi.MaisiConvolution):
                part.conv = Wrapped(part.conv)
        self.assertTrue(torch.allclose(run(net), expected, atol=1e-6))

    @parameterized.expand(
        [
            ("kl", AutoencoderKL, {**KL, "use_checkpoint": True}),
            ("vqvae", VQVAE, {**CODEBOOK, "use_checkpointing": True}),
            ("maisi", maisi.AutoencoderKlMaisi, {**MAISI, "use_checkpointing": True}),
        ]
    )
    def test_checkpointing(self, _, cls, kwargs):
        net, calls = build(cls, kwargs), []
        original = torch.utils.checkpoint.checkpoint

        def spy(function, *args, **kwargs):
            calls.append((function, len(args), kwargs))
            return original(function, *args, **kwargs)

        with mock.patch.object(torch.utils.checkpoint, "checkpoint", spy):
            net(*inputs(net))[0].sum().backward()
        self.assertEqual(calls, [(part, 1, {"use_reentrant": False}) for part in (net.encoder, net.decoder)])
        net.use_checkpoint = net.use_checkpointing = False
        with mock.patch.object(torch.utils.checkpoint, "checkpoint", spy):
            net(*inputs(net))
        self.assertEqual(len(calls), 2)


class TestAttributes(unittest.TestCase):
    def assert_kept(self, part: nn.Module, kwargs: dict) -> None:
        for name, value in kwargs.items():
            self.assertEqual(getattr(part, name), value, name)

    def test_of_encoders_and_decoders(self):
        sizes = {"spatial_dims": 2, "channels": (8, 16), "num_res_blocks": (1, 1), "norm_num_groups": 4}
        sizes.update({"norm_eps": 1e-6, "attention_levels": (False, True)})
        for net in (build(AutoencoderKL, KL), build(SPADEAutoencoderKL, SPADE)):
            self.assert_kept(net.encoder, {**sizes, "in_channels": 1, "out_channels": 4})
            self.assert_kept(net.decoder, {**sizes, "in_channels": 4, "out_channels": 1})
        self.assertEqual(build(AutoencoderKL, {**KL, "num_res_blocks": 2}).encoder.num_res_blocks, (2, 2))
        self.assertEqual(net.decoder.label_nc, 3)

    def test_of_vqvae(self):
        net = build(VQVAE, {**CODEBOOK, "dropout": 0.25, "act": "PRELU", "output_act": "tanh"})
        sizes = {"spatial_dims": 2, "channels": (4, 8), "num_res_layers": 1, "num_res_channels": (4, 4)}
        sizes.update({"dropout": 0.25, "act": "PRELU"})
        self.assert_kept(net.encoder, {**sizes, "in_channels": 1, "out_channels": 4})
        self.assert_kept(net.decoder, {**sizes, "in_channels": 4, "out_channels": 1, "output_act": "tanh"})
        self.assertEqual(list(net.encoder.downsample_parameters), [(2, 4, 1, 1)] * 2)
        self.assertEqual(list(net.decoder.upsample_parameters), [(2, 4, 1, 1, 0)] * 2)
        unit = {"spatial_dims": 2, "in_channels": 4, "num_res_channels": 4, "dropout": 0.25, "bias": True}
        self.assert_kept(net.encoder.blocks[1], {**unit, "act": "PRELU"})

    def test_of_maisi(self):
        net = build(maisi.AutoencoderKlMaisi, {**MAISI, "save_mem": False})
        self.assertEqual((net.encoder.save_mem, net.decoder.save_mem, net.decoder.print_info), (False, False, False))
        convolution = net.encoder.blocks[0]
        self.assert_kept(convolution, {"stride": 1, "num_splits": 2, "dim_split": 0, "save_mem": False})

    def test_arguments(self):
        for cls, names in (
            (kl.Encoder.forward, ["self", "x"]),
            (AutoencoderKL.decode, ["self", "z"]),
            (AutoencoderKL.sampling, ["self", "z_mu", "z_sigma"]),
            (SPADEAutoencoderKL.decode, ["self", "z", "seg"]),
            (VQVAE.quantize, ["self", "encodings"]),
            (VQVAE.decode_samples, ["self", "embedding_indices"]),
            (maisi.MaisiGroupNorm3D.forward, ["self", "input"]),
        ):
            self.assertEqual(list(inspect.signature(cls).parameters), names)


class TestNumbers(unittest.TestCase):
    def test_float16_norm(self):
        """MAISI's published autoencoder was trained with each of three steps rounded."""
        norm, draw = maisi.MaisiGroupNorm3D(4, 8, norm_float16=True), torch.Generator().manual_seed(0)
        norm.weight.data = torch.randn(8, generator=draw)
        norm.bias.data = torch.randn(8, generator=draw)
        x = torch.randn(2, 8, 3, 5, 4, generator=draw) * 3 + 1
        groups = x.view(2, 4, -1)
        mean = groups.mean(-1, keepdim=True)
        deviation = (groups.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        expected = ((groups - mean) / deviation).half().view_as(x)
        for values, operation in ((norm.weight, torch.mul), (norm.bias, torch.add)):
            expected = operation(expected.float(), values.detach().view(1, 8, 1, 1, 1)).half()
        found = norm(x).detach()
        self.assertEqual(found.dtype, torch.float16)
        differs = (found != expected).float().mean()
        self.assertLess(float(differs), 0.01)

    def test_pieces(self):
        """Where they divide the size, the result is that of the whole image."""
        whole, cut = (build(maisi.AutoencoderKlMaisi, {**MAISI, "num_splits": number}) for number in (1, 4))
        x = torch.rand(1, 1, 32, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            self.assertTrue(torch.allclose(cut.reconstruct(x), whole.reconstruct(x), atol=1e-5))

    def test_codebook_that_learns_gets_nothing_from_the_loss(self):
        """The loss draws encodings to their entries, never entries to encodings."""
        net = build(vq.EMAQuantizer, {"spatial_dims": 2, "num_embeddings": 8, "embedding_dim": 4})
        net.embedding.weight.requires_grad_(True)
        x = torch.randn(2, 4, 3, 3, requires_grad=True)
        net(x)[1].backward()
        self.assertIsNone(net.embedding.weight.grad)
        self.assertGreater(float(x.grad.abs().max()), 0)

    def test_sizes_that_are_no_multiple_of_the_stride(self):
        net = build(AutoencoderKL, KL)
        self.assertEqual(net.reconstruct(torch.rand(1, 1, 25, 9)).shape, (1, 1, 24, 8))


class TestLife(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_copied_saved_and_averaged(self, _, cls, kwargs):
        net, buffer = build(cls, kwargs), io.BytesIO()
        net.train()(*inputs(net))[0].sum().backward()
        expected = run(net.eval())
        torch.save(net, buffer)
        buffer.seek(0)
        average = AveragedModel(net, use_buffers=True)
        for _ in range(3):
            average.update_parameters(net)
        for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False), average.module):
            self.assertTrue(torch.allclose(run(other), expected, atol=1e-5))

    @parameterized.expand(NETWORKS)
    def test_built_without_memory(self, _, cls, kwargs):
        source = build(cls, kwargs)
        with torch.device("meta"):
            net, other = cls(**kwargs).eval(), cls(**kwargs).eval()
        net.load_state_dict(source.state_dict(), assign=True)
        self.assertTrue(torch.allclose(run(net.to("cpu")), run(source), atol=1e-5))
        other.to_empty(device="cpu").load_state_dict(source.state_dict())
        self.assertTrue(torch.allclose(run(other), run(source), atol=1e-5))

    def test_two_passes_before_a_backward_pass(self):
        """The codebook moves in between."""
        net = build(VQVAE, CODEBOOK).train()
        losses = [sum(part.sum() for part in net(*inputs(net))) for _ in range(2)]
        sum(losses).backward()
        self.assertTrue(all(p.grad is not None for p in net.parameters() if p.requires_grad))

    def test_built_from_positions(self):
        net = AutoencoderKL(2, 1, 1, 1, (8,), (True,), 3, 4, 1e-6, False, False, True, True, False, True, True)
        self.assertTrue(net.use_checkpoint)
        net = maisi.AutoencoderKlMaisi(
            3,
            1,
            1,
            (1,),
            (8,),
            (True,),
            3,
            4,
            1e-6,
            False,
            False,
            True,
            True,
            False,
            True,
            True,
            2,
            1,
            True,
            True,
            False,
        )
        self.assertEqual((net.encoder.blocks[0].num_splits, net.encoder.blocks[0].dim_split), (2, 1))
        self.assertTrue(net.use_checkpoint and net.encoder.blocks[1].norm1.norm_float16 and net.decoder.print_info)
        self.assertFalse(net.encoder.save_mem)


if __name__ == "__main__":
    unittest.main()
