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

"""Loads of state dicts that users do around the networks, on the fork and on the release alike."""

from __future__ import annotations

import copy
import io
import tempfile
import unittest
import warnings
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as prune
from parameterized import parameterized
from torch.utils._python_dispatch import TorchDispatchMode

from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, ViT

torch.set_num_threads(1)
X = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(seed: int = 0, **kwargs) -> nn.Module:
    sizes = {"hidden_size": 24, "mlp_dim": 48, "num_layers": 3, "num_heads": 2, "spatial_dims": 2}
    return randomized(ViT(1, (16, 16), (8, 8), **{**sizes, **kwargs}), seed)


def unet(seed: int = 0, **kwargs) -> nn.Module:
    levels = {"channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, True)}
    return randomized(DiffusionModelUNet(2, 1, 1, **levels, norm_num_groups=4, num_head_channels=4, **kwargs), seed)


def autoencoder(seed: int = 0) -> nn.Module:
    levels = {"channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True)}
    return randomized(AutoencoderKL(2, 1, 1, **levels, latent_channels=4, norm_num_groups=4), seed)


def decoder_block(seed: int = 0) -> nn.Module:
    return randomized(TransformerBlock(24, 32, 4, causal=True, sequence_length=6, with_cross_attention=True), seed)


NETWORKS = [("vit", vit), ("unet", unet), ("autoencoder", autoencoder), ("decoder block", decoder_block)]


def randomized(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return net.eval()


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


class LowRank(nn.Module):
    """A linear with a trained correction of low rank, as adapters for fine-tuning wrap it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Watch(TorchDispatchMode):
    """Writes down what is done to tensors."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Holder(nn.Module):
    """A user's network around one of these."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.backbone = net
        self.head = nn.Linear(24, 2)


class TestCase(unittest.TestCase):
    def assert_state(self, net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
        state = net.state_dict()
        self.assertEqual(set(state), set(expected))
        for key, value in expected.items():
            self.assertTrue(torch.equal(state[key], value), key)


class TestParts(TestCase):
    """What a file does not hold stays as it is, and is reported."""

    @parameterized.expand(NETWORKS)
    def test_some_weights(self, _, build):
        for nested in (False, True):
            net = Holder(build()) if nested else build()
            before = values(net)
            for ending in ("qkv.weight", "to_q.weight", "to_v.weight", "norm.weight", "norm1.bias", "out_proj.bias"):
                part = {key: value + 1 for key, value in before.items() if key.endswith(ending)}
                result = net.load_state_dict(dict(part), strict=False)
                self.assert_state(net, {**before, **part})
                self.assertEqual(set(result.missing_keys), set(before) - set(part))
                self.assertEqual(result.unexpected_keys, [])
                net.load_state_dict(before)

    @parameterized.expand(NETWORKS)
    def test_everything_but_projections(self, _, build):
        for nested in (False, True):
            net = Holder(build()) if nested else build()
            before = values(net)
            part = {key: value + 1 for key, value in before.items() if "out_proj" not in key}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = net.load_state_dict(dict(part), strict=False)
            self.assert_state(net, {**before, **part})
            self.assertEqual(set(result.missing_keys), set(before) - set(part))

    @parameterized.expand(NETWORKS)
    def test_a_strict_load_inside_another_module_misses_them(self, _, build):
        net = Holder(build())
        part = {key: value for key, value in values(net).items() if "out_proj" not in key}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.assertRaisesRegex(RuntimeError, r"Missing key\(s\) in state_dict: \"backbone.*out_proj"):
                net.load_state_dict(part)

    @parameterized.expand(NETWORKS)
    def test_shards(self, _, build):
        expected = values(build(1))
        items = list(expected.items())
        for size in (1, 3, 7):
            net = build(2)
            for start in range(0, len(items), size):
                net.load_state_dict(dict(items[start : start + size]), strict=False)
            self.assert_state(net, expected)

    @parameterized.expand(NETWORKS)
    def test_shards_by_a_loader_that_calls_each_module(self, _, build):
        """As transformers loads sharded checkpoints: every module itself, and the list of errors is looked at."""
        expected = values(build(1))
        items = list(expected.items())

        def load(module: nn.Module, state: dict, errors: list, prefix: str = "") -> None:
            module._load_from_state_dict(state, prefix, {}, True, [], [], errors)
            for name, child in module._modules.items():
                if child is not None:
                    load(child, state, errors, f"{prefix}{name}.")

        for size in (3, 5, 13):
            net, errors = build(2), []
            for start in range(0, len(items), size):
                load(net, dict(items[start : start + size]), errors)
            self.assertEqual(errors, [])
            self.assert_state(net, expected)

    def test_a_delta(self):
        """Fine-tuned projections alone."""
        net = vit()
        before = values(net)
        delta = {key: value * 2 for key, value in before.items() if "out_proj" in key}
        net.load_state_dict(delta, strict=False)
        self.assert_state(net, {**before, **delta})

    def test_unexpected_keys_keep_their_names(self):
        for net in (vit(), Holder(vit())):
            prefix = "backbone." if isinstance(net, Holder) else ""
            strange = [f"{prefix}blocks.0.attn.other.weight", f"{prefix}blocks.1.thing", f"{prefix}old.bias"]
            result = net.load_state_dict({**net.state_dict(), **dict.fromkeys(strange, torch.ones(1))}, strict=False)
            self.assertEqual((set(result.unexpected_keys), result.missing_keys), (set(strange), []))

    def test_projections_of_a_network_that_has_none(self):
        source, net = unet(), unet(1, include_fc=False)
        state = values(source)
        for load in (net.load_state_dict, lambda state: net.load_state_dict(state, strict=True)):
            with self.assertRaisesRegex(RuntimeError, "Unexpected"):
                load(dict(state))
        result = net.load_state_dict(dict(state), strict=False)
        self.assertEqual(set(result.unexpected_keys), {key for key in state if "out_proj" in key})
        self.assert_state(net, {key: value for key, value in state.items() if "out_proj" not in key})

    def test_another_size(self):
        state = {**vit().state_dict(), "norm.weight": torch.ones(25)}
        for strict in (True, False):
            with self.assertRaisesRegex(RuntimeError, "size mismatch for norm.weight"):
                vit().load_state_dict(state, strict=strict)


class TestOwnState(TestCase):
    """A network takes its own state dict, whatever was done to it."""

    def round_trip(self, net: nn.Module) -> None:
        expected = values(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        result = net.load_state_dict(expected)
        self.assertEqual((result.missing_keys, result.unexpected_keys), ([], []))
        self.assert_state(net, expected)
        holder = Holder(copy.deepcopy(net))
        holder.load_state_dict(holder.state_dict())

    @parameterized.expand(NETWORKS)
    def test_as_it_is(self, _, build):
        self.round_trip(build())

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return [module for module in net.modules() if isinstance(module, SABlock)]

    @parameterized.expand([("identity",), ("sequence",), ("without bias",), ("low rank",), ("wider",), ("none",)])
    def test_replaced_projections(self, change):
        for net in (vit(), unet()):
            for block in self.blocks(net):
                linear = block.out_proj
                width = linear.in_features
                block.out_proj = {
                    "identity": nn.Identity(),
                    "sequence": nn.Sequential(linear, nn.Dropout(0.1)),
                    "without bias": nn.Linear(width, width, bias=False),
                    "low rank": LowRank(linear),
                    "wider": nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
                    "none": nn.Sequential(),
                }[change]
            self.round_trip(net)

    def test_replaced_linears(self):
        net = vit()
        for block in self.blocks(net):
            block.qkv = LowRank(block.qkv)
        self.round_trip(net)
        one = unet()
        for block in self.blocks(one)[:1]:
            block.to_q = nn.Sequential(block.to_q)
            block.out_proj = nn.Identity()
        self.round_trip(one)

    def test_one_block_under_two_names(self):
        """As networks are built whose layers share their weights."""
        net = vit()
        net.blocks[2] = net.blocks[0]
        self.round_trip(net)
        one = unet()
        one.up_blocks[0].attentions[1] = one.up_blocks[0].attentions[0]
        self.round_trip(one)

    def test_one_block_of_several(self):
        net = vit()
        net.blocks[1].attn.out_proj = nn.Identity()
        self.round_trip(net)
        net.blocks[2] = nn.Identity()
        self.round_trip(net)

    def test_parametrizations(self):
        class Doubled(nn.Module):
            def forward(self, weight):
                return 2 * weight

        net = vit()
        for block in self.blocks(net):
            parametrize.register_parametrization(block.out_proj, "weight", Doubled())
            nn.utils.parametrizations.weight_norm(block.qkv)
        self.round_trip(net)

    @parameterized.expand(
        [
            ("pruned", lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
            ("weight norm", torch.nn.utils.weight_norm),
            ("spectral norm", torch.nn.utils.spectral_norm),
        ]
    )
    def test_linears_with_other_weights(self, _, change):
        """Those tools compute a linear's weight before each call, from others that are saved in its place."""
        net = vit()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for layer in [module for module in net.modules() if isinstance(module, nn.Linear)]:
                change(layer)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
            expected = net(X)[0]
            state = values(net)
            for parameter in net.parameters():
                parameter.zero_()
            net.load_state_dict(state)
            self.assertTrue(torch.equal(net(X)[0], expected))

    @parameterized.expand([("vit", vit, (X,)), ("unet", unet, (X, torch.tensor([1, 2])))])
    @unittest.skipUnless(hasattr(torch.ao, "quantization"), "torch has moved its quantization to torchao")
    def test_quantized_linears(self, _, build, arguments):
        net = build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
            small.load_state_dict(small.state_dict())
            out, expected = (run(*arguments) for run in (small, net))
        out, expected = (each if torch.is_tensor(each) else each[0] for each in (out, expected))
        self.assertLess(float((out - expected).abs().max()), 0.1 * float(expected.abs().max()))
        self.assertFalse(torch.equal(out, expected))

    def test_additional_modules_and_buffers(self):
        net = vit()
        net.blocks[0].attn.register_buffer("scale_buffer", torch.ones(3))
        net.blocks[0].attn.extra = nn.Linear(3, 3)
        net.norm2d = nn.BatchNorm2d(3)
        self.round_trip(net)

    def test_lazy_siblings(self):
        net = vit()
        net.lazy = nn.LazyLinear(3)
        net.load_state_dict(net.state_dict())
        holder = nn.ModuleDict({"net": vit(), "lazy": nn.LazyLinear(4)})
        holder.load_state_dict(holder.state_dict())

    def test_users_hooks(self):
        """A hook of the user's own translates keys that nobody else knows."""
        net = vit()
        net.register_load_state_dict_pre_hook(
            lambda module, state, prefix, *_: [state.update({key[3:]: state.pop(key)}) for key in list(state)]
        )
        expected = values(vit(1))
        net.load_state_dict({f"my_{key}": value for key, value in expected.items()})
        self.assert_state(net, expected)

    def test_extra_state(self):
        class Counting(ViT):
            steps = 0

            def get_extra_state(self):
                return {"steps": self.steps}

            def set_extra_state(self, state):
                self.steps = state["steps"]

        def build():
            return Counting(1, (16, 16), (8, 8), 24, 48, 1, 2, spatial_dims=2)

        source, net = build(), build()
        source.steps = 7
        net.load_state_dict(source.state_dict())
        self.assertEqual(net.steps, 7)

    def test_subclass_that_loads_itself(self):
        class Renamed(ViT):
            def load_state_dict(self, state_dict, strict=True, assign=False):
                state = {key.removeprefix("encoder."): value for key, value in state_dict.items()}
                return super().load_state_dict(state, strict=strict, assign=assign)

        net = Renamed(1, (16, 16), (8, 8), 24, 48, 3, 2, spatial_dims=2)
        expected = values(vit(1))
        net.load_state_dict({f"encoder.{key}": value for key, value in expected.items()})
        self.assert_state(net, expected)

    def test_no_tensor_is_looked_at(self):
        """A load of the network's own keys does what torch does, one copy a tensor, and nothing else."""
        for build in (vit, unet, autoencoder):
            net, state = build(), values(build(1))
            with Watch() as watch:
                net.load_state_dict(state)
            self.assertEqual(watch.seen, ["aten::copy_"] * len(state))

    def test_the_callers_dictionary_stays(self):
        state = OrderedDict(values(vit(1)))
        before = list(state.items())
        vit().load_state_dict(state)
        self.assertEqual([key for key, _ in before], list(state))
        self.assertTrue(all(state[key] is value for key, value in before))


class TestTensors(TestCase):
    """Tensors of other kinds, in the file and in the network."""

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            for build in (ViT(1, 16, 8, 24, 48, 2, 2, spatial_dims=2), DiffusionModelUNet(2, 1, 1)):
                build.load_state_dict(build.state_dict())

    def test_a_subclass_of_tensors(self):
        class Tagged(torch.Tensor):
            pass

        state = {key: value.as_subclass(Tagged) for key, value in values(vit(1)).items()}
        net = vit()
        net.load_state_dict(state)
        self.assert_state(net, values(vit(1)))

    def test_other_types(self):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            net = vit()
            net.load_state_dict({key: value.to(dtype) for key, value in values(vit(1)).items()})
            self.assertEqual(net.norm.weight.dtype, torch.float32)
            double = vit().to(dtype)
            double.load_state_dict(values(vit(1)))
            self.assertEqual(double.norm.weight.dtype, dtype)

    @parameterized.expand(NETWORKS)
    def test_from_meta_and_back(self, _, build):
        net, expected = build().to("meta"), values(build(1))
        net.load_state_dict(expected, assign=True)
        self.assert_state(net, expected)
        self.assertFalse(any(parameter.is_meta for parameter in net.parameters()))
        net.load_state_dict({key: value.to("meta") for key, value in expected.items()}, assign=True)
        self.assertTrue(all(parameter.is_meta for parameter in net.parameters()))

    def test_assign_keeps_the_tensor(self):
        net, state = vit(), values(vit(1))
        net.load_state_dict(state, assign=True)
        self.assertEqual(net.norm.weight.data_ptr(), state["norm.weight"].data_ptr())

    def test_a_number_instead_of_a_tensor(self):
        state = {**vit().state_dict(), "norm.weight": 3.0}
        with self.assertRaises(RuntimeError):
            vit().load_state_dict(state)
        with self.assertRaises(TypeError):
            vit().load_state_dict([1, 2])


class TestAround(TestCase):
    def test_saved_and_read(self):
        for build in (vit, unet, autoencoder):
            buffer = io.BytesIO()
            torch.save(build(1).state_dict(), buffer)
            buffer.seek(0)
            net = build()
            net.load_state_dict(torch.load(buffer, weights_only=True))
            self.assert_state(net, values(build(1)))

    def test_averaged_models_resume(self):
        from torch.optim.swa_utils import AveragedModel

        one, other = AveragedModel(vit()), AveragedModel(vit(1))
        other.update_parameters(vit(2))
        one.load_state_dict(other.state_dict())
        self.assert_state(one, other.state_dict())

    def test_data_parallel(self):
        net = nn.DataParallel(vit())
        net.load_state_dict(nn.DataParallel(vit(1)).state_dict())
        self.assert_state(net.module, values(vit(1)))

    def test_compiled(self):
        net = torch.compile(vit(), backend="eager")
        net.load_state_dict(torch.compile(vit(1), backend="eager").state_dict())
        self.assert_state(net._orig_mod, values(vit(1)))

    def test_optimizer_and_scaler_states(self):
        source, net = vit(1), vit(2)
        optimizer = torch.optim.AdamW([p for p in source.parameters() if p.requires_grad])
        source(X)[0].sum().backward()
        optimizer.step()
        resumed = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
        resumed.load_state_dict(optimizer.state_dict())
        net.load_state_dict(source.state_dict())
        net(X)[0].sum().backward()
        resumed.step()

    def test_functional_call(self):
        net, state = vit(), values(vit(1))
        result = torch.func.functional_call(net, state, (X,))[0]
        self.assertTrue(torch.allclose(result, vit(1)(X)[0], atol=1e-6))

    def test_a_failed_load_leaves_nothing_behind(self):
        net = vit()
        with self.assertRaises(RuntimeError):
            net.load_state_dict({"norm.weight": torch.ones(24)})
        net.load_state_dict(values(vit(1)))
        self.assert_state(net, values(vit(1)))
        result = net.load_state_dict({"norm.weight": torch.ones(24)}, strict=False)
        self.assertEqual(len(result.missing_keys), len(net.state_dict()) - 1)


class TestDistributed(TestCase):
    """On one process here; two and more are in tests/networks/state_dict."""

    @classmethod
    def setUpClass(cls):
        import torch.distributed as dist

        cls.folder = tempfile.TemporaryDirectory()
        dist.init_process_group("gloo", init_method=f"file://{cls.folder.name}/store", rank=0, world_size=1)

    @classmethod
    def tearDownClass(cls):
        import torch.distributed as dist

        dist.destroy_process_group()
        cls.folder.cleanup()

    def sharded(self, build, seed: int = 0) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        net = build(seed)
        mesh = init_device_mesh("cpu", (1,))
        for module in reversed(list(net.modules())):
            if isinstance(module, (SABlock, TransformerBlock)) and module is not net:
                fully_shard(module, mesh=mesh)
        return fully_shard(net, mesh=mesh)

    def full(self, net: nn.Module) -> dict[str, torch.Tensor]:
        return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in net.state_dict().items()}

    def assert_full(self, net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
        state = self.full(net)
        self.assertEqual(set(state), set(expected))
        for key, value in expected.items():
            self.assertTrue(torch.equal(state[key], value), key)

    @parameterized.expand(NETWORKS)
    def test_own_state(self, _, build):
        net = self.sharded(build)
        net.load_state_dict(self.sharded(build, 1).state_dict())
        self.assert_full(net, values(build(1)))
        net.load_state_dict(self.sharded(build, 2).state_dict(), assign=True)
        self.assert_full(net, values(build(2)))

    @parameterized.expand(NETWORKS)
    def test_set_model_state_dict(self, _, build):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

        for full in (False, True):
            options = StateDictOptions(full_state_dict=full)
            net, source = self.sharded(build), self.sharded(build, 1)
            state = get_model_state_dict(source, options=options)
            set_model_state_dict(net, state, options=options)
            self.assert_full(net, values(build(1)))

    @parameterized.expand(NETWORKS)
    def test_distributed_checkpoint(self, _, build):
        import torch.distributed.checkpoint as dcp

        with tempfile.TemporaryDirectory() as folder:
            dcp.save({"model": self.sharded(build, 1).state_dict()}, checkpoint_id=folder)
            net = self.sharded(build)
            state = {"model": net.state_dict()}
            dcp.load(state, checkpoint_id=folder)
            net.load_state_dict(state["model"])
            self.assert_full(net, values(build(1)))
            plain = build()
            state = {"model": plain.state_dict()}
            dcp.load(state, checkpoint_id=folder)
            plain.load_state_dict(state["model"])
            self.assert_state(plain, values(build(1)))

    def test_tensor_parallel(self):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        net = vit()
        plan = {"blocks.*.mlp.linear1": ColwiseParallel(), "blocks.*.mlp.linear2": RowwiseParallel()}
        parallelize_module(net, init_device_mesh("cpu", (1,)), plan)
        net.load_state_dict(net.state_dict())
        self.assert_full(net, values(vit()))

    def test_distributed_data_parallel(self):
        net = nn.parallel.DistributedDataParallel(vit())
        net.load_state_dict(nn.parallel.DistributedDataParallel(vit(1)).state_dict())
        self.assert_state(net.module, values(vit(1)))


if __name__ == "__main__":
    unittest.main()
