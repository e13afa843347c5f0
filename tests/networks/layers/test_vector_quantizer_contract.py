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
import pickle
import unittest

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized
from torch.utils.checkpoint import checkpoint

from monai.networks.layers import EMAQuantizer, VectorQuantizer
from tests.differences import max_difference
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {"spatial_dims": 2, "num_embeddings": 8, "embedding_dim": 4}


def codebook(**kwargs) -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(**{**SIZES, **kwargs})


def encodings(dims: int = 2, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, *(3, 5, 2)[:dims], generator=torch.Generator().manual_seed(1))


class TestEMAQuantizer(unittest.TestCase):
    def test_entries_follow_their_encodings(self):
        """After many steps with one batch an entry is the mean of the encodings that it stands for."""
        net, x = codebook(decay=0.5), encodings()
        for _ in range(60):
            indices = net(x)[2]
        rows = x.movedim(1, -1).reshape(-1, 4)
        for entry in indices.unique():
            mean = rows[indices.flatten() == entry].mean(0)
            torch.testing.assert_close(net.embedding.weight[entry], mean, rtol=1e-3, atol=1e-3)

    def test_nearest(self):
        net, x = codebook(), encodings()
        distances = torch.cdist(x.movedim(1, -1).reshape(-1, 4), net.embedding.weight)
        rows, one_hot, indices = net.quantize(x)
        self.assertTrue(torch.equal(indices.flatten(), distances.argmin(1)))
        self.assertTrue(torch.equal(one_hot, F.one_hot(indices.flatten(), 8).float()))
        self.assertTrue(torch.equal(rows, x.movedim(1, -1).reshape(-1, 4)))

    def test_gradient_passes_straight_through(self):
        net, x = codebook().eval(), encodings().requires_grad_()
        quantized, _, _ = net(x)
        weights = torch.randn_like(quantized)
        (quantized * weights).sum().backward()
        torch.testing.assert_close(x.grad, weights)

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        net, x = codebook().to(dtype), encodings().to(dtype)
        quantized, loss, _ = net(x)
        self.assertEqual((quantized.dtype, loss.dtype, net.embedding.weight.dtype), (dtype, dtype, dtype))
        self.assertEqual(net.quantize(x)[0].dtype, torch.float64 if dtype == torch.float64 else torch.float32)

    def test_autocast_compares_in_float32(self):
        net, x = codebook(num_embeddings=500).eval(), encodings()
        with torch.autocast("cpu", torch.bfloat16):
            self.assertTrue(torch.equal(net(x)[2], net.quantize(x)[2]))
        expected = torch.cdist(x.movedim(1, -1).reshape(-1, 4).double(), net.embedding.weight.double()).argmin(1)
        with torch.autocast("cpu", torch.bfloat16):
            self.assertTrue(torch.equal(net(x)[2].flatten(), expected))

    def test_one_axis(self):
        self.assertEqual(codebook(spatial_dims=1)(encodings(1))[2].shape, (2, 3))

    def test_axes_that_are_not_taken(self):
        with self.assertRaisesRegex(ValueError, "4"):
            codebook(spatial_dims=4)

    def test_empty_batch(self):
        net = codebook()
        before = net.embedding.weight.clone()
        net(encodings())
        quantized, loss, indices = net(encodings(batch=0))
        self.assertEqual((quantized.shape, float(loss), indices.shape), ((0, 4, 3, 5), 0.0, (0, 3, 5)))
        self.assertTrue(bool(net.embedding.weight.isfinite().all()) and not torch.equal(before, net.embedding.weight))

    def test_recomputed_in_training(self):
        """It moves twice, as in the release, and says so; frozen it does not move, and gradients are exact."""
        net, x = codebook(), encodings().requires_grad_()

        def loss(value: torch.Tensor) -> torch.Tensor:
            return net(value)[0].square().sum()

        kept = checkpoint(loss, x, use_reentrant=False)
        before = net.embedding.weight.clone()
        with self.assertWarnsRegex(UserWarning, "a second time.*use_checkpointing=True"):
            kept.backward()
        self.assertFalse(torch.equal(net.embedding.weight, before))
        net.eval()
        (want,) = torch.autograd.grad(loss(x), x)
        (found,) = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), x)
        self.assertTrue(torch.equal(found, want))

    def test_scripted_training(self):
        net = codebook(decay=0.5)
        script = torch.jit.script(codebook(decay=0.5))
        for _ in range(3):
            self.assertEqual(max_difference(script(encodings()), net(encodings())), 0.0)
        self.assertEqual(max_difference(list(script.state_dict().values()), list(net.state_dict().values())), 0.0)


@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestUnderFSDP(unittest.TestCase):
    """What FSDP2 gathers for a forward pass is thrown away: entries have to be written where they stay."""

    @classmethod
    def setUpClass(cls):
        from torch.distributed.device_mesh import init_device_mesh

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        cls.mesh = init_device_mesh("cpu", (1,))

    @classmethod
    def tearDownClass(cls):
        dist.destroy_process_group()

    def sharded(self, **kwargs) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        return fully_shard(nn.Sequential(codebook(**kwargs)), mesh=self.mesh)

    @parameterized.expand([({},), ({"ddp_sync": False},)])
    def test_learns(self, kwargs):
        whole, net = codebook(), self.sharded(**kwargs)
        for _ in range(3):
            for each in (whole, net):
                each(encodings().requires_grad_())[1].backward()
        state = net[0].state_dict()
        self.assertIs(net[0].embedding.shard, None)
        for key, value in whole.state_dict().items():
            value_here = state[key].full_tensor() if key == "embedding.weight" else state[key]
            self.assertTrue(torch.equal(value_here, value), key)

    def test_evaluation_changes_nothing(self):
        net = self.sharded().eval()
        net(encodings())
        self.assertTrue(torch.equal(net[0].state_dict()["embedding.weight"].full_tensor(), codebook().embedding.weight))

    def test_copy_of_a_gathered_one(self):
        net = self.sharded()
        with torch.no_grad():
            net(encodings())  # and the weight stays gathered
        before, again = net[0].embedding.weight.clone(), copy.deepcopy(net[0])
        again(encodings())
        self.assertFalse(torch.equal(again.embedding.weight, before))
        self.assertTrue(torch.equal(net.state_dict()["0.embedding.weight"].full_tensor(), before))

    def test_without(self):
        """A codebook that nothing has sharded is copied, pickled and named as any embedding."""
        net = codebook()
        net(encodings())
        for each in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            each(encodings())
            self.assertIs(each.embedding.shard, None)
            self.assertFalse(torch.equal(each.embedding.weight, net.embedding.weight))
        self.assertNotIn("shard", vars(net.embedding))
        self.assertEqual(list(dict(net.named_parameters())), ["embedding.weight"])


class TestVectorQuantizer(unittest.TestCase):
    def test_perplexity(self):
        net = VectorQuantizer(codebook()).eval()
        x = net.quantizer.embed(torch.tensor([[[0, 1, 2, 3]]]))
        loss, quantized = net(x)
        torch.testing.assert_close(quantized, x)
        self.assertLess(float(loss), 1e-10)
        self.assertAlmostEqual(float(net.perplexity), 4.0, places=4)
        net(x[..., :1])
        self.assertAlmostEqual(float(net.perplexity), 1.0, places=4)
        net(x[:0])
        self.assertTrue(bool(net.perplexity.isfinite()))

    def test_indices(self):
        net = VectorQuantizer(codebook()).eval()
        indices = torch.tensor([[[0, 7], [3, 2]]])
        self.assertTrue(torch.equal(net.quantize(net.embed(indices)), indices))

    def test_scripts(self):
        net = VectorQuantizer(codebook()).eval()
        script = assert_scripts(net, (encodings(),), (encodings(batch=3),))
        self.assertEqual(float(script.perplexity), float(net.perplexity))
        self.assertTrue(torch.equal(script.quantize(encodings()), net.quantize(encodings())))


if __name__ == "__main__":
    unittest.main()
