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
"""Private names of torch mean what the module that has them says, in the torch at hand."""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn
import torch.utils.flop_counter
from parameterized import parameterized
from torch.autograd import forward_ad

from monai.networks.state_dict import torch_private
from monai.networks.state_dict.hooks import before_load


class TestTorchPrivate(unittest.TestCase):
    @parameterized.expand(
        [("register_forward_hook",), ("register_forward_pre_hook",), ("register_full_backward_hook",)]
    )
    def test_hooks(self, register):
        layer = nn.Linear(2, 2)
        self.assertFalse(torch_private.has_hooks(layer))
        self.assertTrue(torch_private.is_plain(layer, nn.Linear))
        handle = getattr(layer, register)(lambda *args: None)
        self.assertTrue(torch_private.has_hooks(layer))
        self.assertFalse(torch_private.is_plain(layer, nn.Linear))
        self.assertEqual(torch_private.has_pre_hooks(layer), register == "register_forward_pre_hook")
        handle.remove()
        layer.forward = lambda x: x
        self.assertFalse(torch_private.is_plain(layer, nn.Linear))

    def test_tensors_and_metadata(self):
        norm = nn.BatchNorm1d(2)
        norm.register_buffer("passing", torch.zeros(1), persistent=False)
        self.assertEqual([name for name, _ in torch_private.own_tensors(norm)], list(norm.state_dict()))
        self.assertEqual(torch_private.metadata_of(nn.Sequential(norm).state_dict(), "0"), {"version": 2})
        self.assertEqual(torch_private.metadata_of({}, "0"), {})
        written = torch_private.with_metadata({}, {"": {"version": 7}})
        self.assertEqual(torch_private.metadata_of(written, ""), {"version": 7})
        torch_private.remove_buffer(norm, "passing")
        self.assertFalse(hasattr(norm, "passing"))
        torch_private.remove_buffer(norm, "passing")

    def test_ways_to_load(self):
        self.assertFalse(torch_private.loads_in_its_own_way(nn.Linear(2, 2), before_load))
        self.assertTrue(torch_private.loads_in_its_own_way(nn.BatchNorm1d(2), before_load))
        layer = nn.Linear(2, 2)
        layer.register_load_state_dict_pre_hook(before_load)
        self.assertFalse(torch_private.loads_in_its_own_way(layer, before_load))
        layer.register_load_state_dict_pre_hook(lambda *args: None)
        self.assertTrue(torch_private.loads_in_its_own_way(layer, before_load))

    def test_derivatives(self):
        self.assertFalse(torch_private.is_transformed())
        with forward_ad.dual_level():
            self.assertTrue(torch_private.is_transformed())
        seen = []
        torch.func.grad(lambda x: (seen.append(torch_private.is_transformed()), x)[1])(torch.ones(()))
        self.assertEqual(seen, [True])
        self.assertFalse(torch_private.saves_through_hooks())
        with torch.autograd.graph.save_on_cpu():
            self.assertTrue(torch_private.saves_through_hooks())
        x = torch.ones((), requires_grad=True)
        running = []
        x.register_hook(lambda gradient: running.append(torch_private.runs_backward()))
        (2 * x).backward()
        self.assertEqual((running, torch_private.runs_backward()), ([True], False))

    def test_inputs_of_a_kernel(self):
        q, k, v = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        found = []
        out.grad_fn.register_hook(lambda *args: found.extend(torch_private.inputs_of_this_node()))
        out.sum().backward()
        self.assertTrue(all(torch.equal(have, want) for have, want in zip(found, (q, k, v))))
        self.assertEqual(len(found), 3)

    def test_compiled(self):
        layer = nn.Linear(2, 2)
        self.assertIsNone(torch_private.inside_of_compiled(layer))
        self.assertIsNone(torch_private.inside_of_compiled(torch.jit.script(layer)))
        self.assertIs(torch_private.inside_of_compiled(torch.compile(layer, backend="eager")), layer)
        self.assertFalse(torch_private.is_compiled_in_place(layer))
        layer.compile(backend="eager")
        self.assertTrue(torch_private.is_compiled_in_place(layer))

    def test_dispatch_modes(self):
        before = len(torch_private.dispatch_modes())
        with torch.utils.flop_counter.FlopCounterMode(display=False):
            self.assertEqual(len(torch_private.dispatch_modes()), before + 1)


if __name__ == "__main__":
    unittest.main()
