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
What autoencoders did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import VQVAE, AutoencoderKL, SPADEAutoencoderKL

torch.set_num_threads(1)
LEVELS = {"num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 4, "norm_num_groups": 4}
KL = {**LEVELS, "spatial_dims": 2, "channels": (8, 16)}
SPADE = {**KL, "label_nc": 3, "spade_intermediate_channels": 8}
MAISI = {**LEVELS, "spatial_dims": 3, "num_channels": (8, 16), "in_channels": 1, "out_channels": 1, "num_splits": 2}
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
NETWORKS = {
    "AutoencoderKL": (AutoencoderKL, KL),
    "SPADEAutoencoderKL": (SPADEAutoencoderKL, SPADE),
    "VQVAE": (VQVAE, CODEBOOK),
    "AutoencoderKlMaisi": (AutoencoderKlMaisi, MAISI),
}


def build(name: str, **kwargs) -> nn.Module:
    cls, sizes = NETWORKS[name]
    torch.manual_seed(0)
    return cls(**{**sizes, **kwargs}).eval()


def image(batch: int = 2, dims: int = 2, size: int = 8) -> torch.Tensor:
    return torch.rand(batch, 1, *[size] * dims, generator=torch.Generator().manual_seed(1))


class TestDefects(unittest.TestCase):
    def assert_scripts(self, name: str) -> None:
        net = build(name)
        x = image(dims=3 if name == "AutoencoderKlMaisi" else 2)
        arguments = (x, x.expand(-1, 3, -1, -1)) if name == "SPADEAutoencoderKL" else (x,)
        script = torch.jit.script(net)
        results = []
        for run in (net, script):
            torch.manual_seed(3)
            results.append(run(*arguments)[0])
        torch.testing.assert_close(*results)

    def test_autoencoderkl_scripts(self):
        self.assert_scripts("AutoencoderKL")

    def test_spade_autoencoderkl_scripts(self):
        self.assert_scripts("SPADEAutoencoderKL")

    def test_vqvae_scripts(self):
        self.assert_scripts("VQVAE")

    def test_autoencoderkl_maisi_scripts(self):
        self.assert_scripts("AutoencoderKlMaisi")

    def test_11_vqvae_in_half_precision(self):
        self.assertEqual(build("VQVAE").bfloat16()(image().bfloat16())[0].dtype, torch.bfloat16)

    def test_11_vqvae_in_double_precision(self):
        self.assertEqual(build("VQVAE").double()(image().double())[0].dtype, torch.float64)

    def test_11_maisi_in_half_precision(self):
        net = build("AutoencoderKlMaisi").bfloat16()
        self.assertEqual(net(image(dims=3).bfloat16())[0].dtype, torch.bfloat16)

    def test_11_maisi_in_double_precision(self):
        net = build("AutoencoderKlMaisi").double()
        self.assertEqual(net(image(dims=3).double())[0].dtype, torch.float64)

    def test_11_float16_norms_without_autocast(self):
        net = build("AutoencoderKlMaisi", norm_float16=True)
        self.assertEqual(net(image(dims=3))[0].dtype, torch.float32)

    def test_11_float16_norms_under_autocast_on_a_cpu(self):
        net = build("AutoencoderKlMaisi", norm_float16=True)
        with torch.autocast("cpu", torch.bfloat16):
            self.assertEqual(net(image(dims=3))[0].dtype, torch.bfloat16)

    def test_11_maisi_2d(self):
        self.assertEqual(build("AutoencoderKlMaisi", spatial_dims=2)(image())[0].shape, (2, 1, 8, 8))

    def test_12_empty_batch_autoencoderkl(self):
        self.assertEqual(build("AutoencoderKL")(image(0))[0].shape, (0, 1, 8, 8))

    def test_12_empty_batch_spade(self):
        net = build("SPADEAutoencoderKL")
        self.assertEqual(net(image(0), torch.ones(0, 3, 8, 8))[0].shape, (0, 1, 8, 8))

    def test_12_empty_batch_vqvae(self):
        reconstruction, loss = build("VQVAE")(image(0))
        self.assertEqual((reconstruction.shape, float(loss)), ((0, 1, 8, 8), 0.0))

    def test_12_empty_batch_maisi(self):
        self.assertEqual(build("AutoencoderKlMaisi")(image(0, 3))[0].shape, (0, 1, 8, 8, 8))

    def assert_pieces_are_the_whole(self, number: int, size: int) -> None:
        whole, cut = build("AutoencoderKlMaisi", num_splits=1), build("AutoencoderKlMaisi", num_splits=number)
        x = image(1, 3, size)
        torch.testing.assert_close(cut.reconstruct(x), whole.reconstruct(x), rtol=0, atol=1e-5)

    def test_maisi_pieces_that_do_not_divide_the_size(self):
        self.assert_pieces_are_the_whole(3, 16)

    def test_maisi_more_pieces_than_a_small_volume_has(self):
        self.assert_pieces_are_the_whole(16, 16)

    def test_projection_of_generative_models_is_never_used(self):
        source, net = build("AutoencoderKL"), build("AutoencoderKL")
        state = {
            key.replace(".attn.out_proj.", ".proj_attn.").replace(".attn.", ".").replace(".postconv.", ".conv."): value
            for key, value in source.state_dict().items()
        }
        net.load_old_state_dict(dict(state))
        for name, parameter in source.named_parameters():
            if ".out_proj.weight" in name:
                nn.init.eye_(parameter)
            elif ".out_proj." in name:
                nn.init.zeros_(parameter)
        torch.testing.assert_close(net.reconstruct(image()), source.reconstruct(image()))

    def test_the_caller_keeps_his_checkpoint(self):
        net = build("AutoencoderKL", include_fc=False)
        state = {k.replace(".attn.", ".").replace(".postconv.", ".conv."): v for k, v in net.state_dict().items()}
        keys = list(state)
        net.load_old_state_dict(state)
        self.assertEqual(list(state), keys)

    def test_vqvae_of_generative_models_0_1(self):
        net = build("VQVAE")
        net.load_state_dict({key.replace(".blocks.", "."): value for key, value in net.state_dict().items()})

    def test_vqvae_1d(self):
        self.assertEqual(build("VQVAE", spatial_dims=1)(image(2, 1))[0].shape, (2, 1, 8))

    def test_codebook_under_autocast_on_a_cpu(self):
        """Entries are compared in float32, so that autocast does not choose others."""
        codebook = build("VQVAE", num_embeddings=500).quantizer
        encodings = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        expected = codebook.quantize(encodings)
        with torch.autocast("cpu", torch.bfloat16):
            self.assertTrue(torch.equal(codebook.quantize(encodings), expected))


if __name__ == "__main__":
    unittest.main()
