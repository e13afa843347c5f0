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

"""What users do around attention blocks: watch, replace, change, average, move, subclass and save them."""

from __future__ import annotations

import copy
import io
import unittest
import warnings
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from monai.networks.blocks import (
    CrossAttentionBlock,
    SABlock,
    SpatialAttentionBlock,
    TransformerBlock,
    spatialattention,
    transformerblock,
)
from monai.networks.nets import DecoderOnlyTransformer, ViT

torch.set_num_threads(1)
WIDTH, HEADS, TOKENS = 16, 2, 6
CAUSAL = {"causal": True, "sequence_length": TOKENS}
GRID = {"rel_pos_embedding": "decomposed", "input_size": (2, 3)}


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


def tokens(length: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def weights_of(block: SABlock, x: torch.Tensor) -> torch.Tensor:
    """The attention matrix, by hand."""
    q, k, _ = block.qkv(x).reshape(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)


def out_of(block: SABlock, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What a block makes of its attention matrix, by hand."""
    v = block.qkv(x).reshape(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)[2]
    return block.out_proj((weights @ v).transpose(1, 2).flatten(2))


def decoder() -> nn.Module:
    return DecoderOnlyTransformer(7, 9, WIDTH, 2, HEADS)


def close(test: unittest.TestCase, found: torch.Tensor, expected: torch.Tensor) -> None:
    test.assertEqual(found.dtype, expected.dtype)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestCausalMask(unittest.TestCase):
    """A buffer that the block registers, whatever is done with buffers."""

    @parameterized.expand([(SABlock,), (CrossAttentionBlock,)])
    def test_is_a_registered_buffer(self, cls):
        self.assertIn("causal_mask", dict(cls(WIDTH, HEADS, **CAUSAL).named_buffers()))

    @parameterized.expand([("swa",), ("ema",), ("multi",)])
    def test_averages(self, how):
        given = {
            "swa": {},
            "ema": {"avg_fn": get_ema_avg_fn(0.9)},
            "multi": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        }
        for net in (
            decoder(),
            SABlock(WIDTH, HEADS, save_attn=True, **CAUSAL),
            ViT(1, 16, 8, 24, 32, 2, 2, spatial_dims=2),
        ):
            randomized(net)
            average = AveragedModel(net, use_buffers=True, **given[how])
            for _ in range(3):
                average.update_parameters(net)
            x = torch.randint(0, 7, (2, 6)) if isinstance(net, DecoderOnlyTransformer) else tokens()
            x = torch.randn(2, 1, 16, 16) if isinstance(net, ViT) else x
            found, expected = average(x), net(x)
            found, expected = (out[0] if isinstance(out, tuple) else out for out in (found, expected))
            close(self, found, expected)

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_built_on_meta_and_assigned(self, kwargs):
        source = randomized(SABlock(WIDTH, HEADS, **CAUSAL, **kwargs))
        with torch.device("meta"):
            block = SABlock(WIDTH, HEADS, **CAUSAL, **kwargs).eval()
        block.load_state_dict(source.state_dict(), assign=True)
        close(self, block(tokens()), source(tokens()))
        close(self, block.to("cpu")(tokens()), source(tokens()))
        close(self, block.to("cpu").double()(tokens().double()), source.double()(tokens().double()))

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_moved_to_meta_and_assigned(self, kwargs):
        source = randomized(SABlock(WIDTH, HEADS, **CAUSAL, **kwargs))
        block = copy.deepcopy(source).to("meta")
        block.load_state_dict(source.state_dict(), assign=True)
        close(self, block.to("cpu")(tokens()), source(tokens()))

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_emptied_and_loaded(self, kwargs):
        source = randomized(TransformerBlock(WIDTH, 32, HEADS, **CAUSAL, **kwargs))
        for device in ("meta", "cpu"):
            with torch.device(device):
                block = TransformerBlock(WIDTH, 32, HEADS, **CAUSAL, **kwargs).eval()
            block.to_empty(device="cpu")
            for buffer in block.buffers():  # what uninitialized memory may hold
                buffer.fill_(float("nan"))
            block.load_state_dict(source.state_dict())
            close(self, block(tokens()), source(tokens()))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types_and_copies(self, dtype):
        for kwargs in ({}, {"save_attn": True}):
            block = randomized(SABlock(WIDTH, HEADS, **CAUSAL, **kwargs))
            expected = block(tokens())
            found = copy.deepcopy(block).to(dtype)(tokens().to(dtype))
            torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)

    def test_a_forward_of_the_users_own_reads_it(self):
        class Mine(SABlock):
            def forward(self, x, attn_mask=None):
                q, k, v = self.input_rearrange(self.qkv(x))
                logits = q @ k.transpose(-2, -1) * self.scale
                logits = logits.masked_fill(self.causal_mask[:, :, : x.shape[1], : x.shape[1]] == 0, float("-inf"))
                return self.drop_output(self.out_proj(self.out_rearrange(self.drop_weights(logits.softmax(-1)) @ v)))

        block = randomized(SABlock(WIDTH, HEADS, **CAUSAL))
        with torch.device("meta"):
            empty = Mine(WIDTH, HEADS, **CAUSAL)
        for mine in (Mine(WIDTH, HEADS, **CAUSAL), empty.to_empty(device="cpu"), copy.deepcopy(empty)):
            mine.load_state_dict(block.state_dict())
            close(self, mine.eval()(tokens()), block(tokens()))
            close(self, mine.double()(tokens(4).double()), block.double()(tokens(4).double()))
            block.float()


class TestHooks(unittest.TestCase):
    """Hooks of a part fire, see what they see in the release, and change what the block computes."""

    @parameterized.expand([({},), (CAUSAL,), (GRID,), ({"use_combined_linear": False},), ({"dropout_rate": 0.3},)])
    def test_on_the_weights(self, kwargs):
        block, seen = randomized(SABlock(WIDTH, HEADS, **kwargs)), []
        expected = block(tokens())
        handle = block.drop_weights.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
        close(self, block(tokens()), expected)
        self.assertEqual([out.shape for out in seen], [(2, HEADS, TOKENS, TOKENS)])
        close(self, seen[0].sum(-1), torch.ones(2, HEADS, TOKENS))
        handle.remove()
        close(self, block(tokens()), expected)
        self.assertEqual(len(seen), 1)

    def test_in_every_network(self):
        seen: list[torch.Size] = []
        for net, x in (
            (decoder(), torch.zeros(2, 6).long()),
            (ViT(1, 16, 8, 24, 32, 2, 2, spatial_dims=2), torch.randn(2, 1, 16, 16)),
        ):
            for block in net.blocks:
                block.attn.drop_weights.register_forward_hook(lambda module, args, out: seen.append(out.shape))
            net(x)
        self.assertEqual(seen, [(2, 2, 6, 6)] * 2 + [(2, 2, 4, 4)] * 2)

    def test_changes_the_weights(self):
        block, x = randomized(SABlock(WIDTH, HEADS)), tokens()
        expected = out_of(block, x, weights_of(block, x).flip(-1))
        handle = block.drop_weights.register_forward_hook(lambda module, args, out: out.flip(-1))
        close(self, block(x), expected)
        handle.remove()
        block.drop_weights.register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
        close(self, block(x), expected)

    def test_gradients_of_the_weights(self):
        block, seen = randomized(SABlock(WIDTH, HEADS)), []
        block.drop_weights.register_full_backward_hook(lambda module, of_in, of_out: seen.append(of_out[0].shape))
        block(tokens().requires_grad_()).sum().backward()
        self.assertEqual(seen, [(2, HEADS, TOKENS, TOKENS)])

    def test_on_the_positions(self):
        for cls in (SABlock, CrossAttentionBlock):
            block = randomized(cls(WIDTH, HEADS, **GRID))
            seen: list = []
            expected = block(tokens())
            block.rel_positional_embedding.register_forward_hook(
                lambda module, args, out, seen=seen: seen.append([tuple(tensor.shape) for tensor in (*args, out)])
            )
            close(self, block(tokens()), expected)
            logits = (2, HEADS, TOKENS, TOKENS)
            self.assertEqual(seen, [[(2, TOKENS, WIDTH), logits, (2, HEADS, TOKENS, WIDTH // HEADS), logits]])

    def test_that_change_the_positions(self):
        block = randomized(SABlock(WIDTH, HEADS, **GRID))
        block.rel_positional_embedding.register_forward_hook(lambda module, args, out: args[1])
        plain = randomized(SABlock(WIDTH, HEADS))
        plain.load_state_dict({key: value for key, value in block.state_dict().items() if "rel_pos" not in key})
        close(self, block(tokens()), plain(tokens()))

    @parameterized.expand([({},), ({"use_combined_linear": False},), ({"use_flash_attention": True},), (GRID,)])
    def test_on_the_rearrangements(self, kwargs):
        block, shapes = randomized(SABlock(WIDTH, HEADS, **kwargs)), []
        for name in ("input_rearrange", "out_rearrange"):
            getattr(block, name).register_forward_hook(
                lambda module, args, out, name=name: shapes.append((name, tuple(args[0].shape), tuple(out.shape)))
            )
        block(tokens())
        heads, flat = (2, HEADS, TOKENS, WIDTH // HEADS), (2, TOKENS, WIDTH)
        first = [("input_rearrange", (2, TOKENS, 3 * WIDTH), (3, *heads))]
        if not kwargs.get("use_combined_linear", True):
            first = [("input_rearrange", flat, heads)] * 3
        self.assertEqual(shapes, [*first, ("out_rearrange", heads, flat)])

    def test_on_the_projection_and_the_linears(self):
        block, seen = randomized(TransformerBlock(WIDTH, 32, HEADS, with_cross_attention=True)), []
        names = ["attn.qkv", "attn.out_proj", "attn.drop_output", "attn", "norm_cross_attn", "cross_attn.to_q"]
        names += ["cross_attn.to_k", "cross_attn.to_v", "cross_attn.out_proj", "cross_attn"]
        for name in names:
            block.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: seen.append(name))
        block(tokens(), context=tokens(4))
        self.assertEqual(seen, names)


class TestReplacedParts(unittest.TestCase):
    def test_dropout_by_an_identity(self):
        for cls in (SABlock, CrossAttentionBlock):
            block = randomized(cls(WIDTH, HEADS, dropout_rate=0.5))
            expected = block(tokens())
            block.drop_weights = nn.Identity()
            close(self, block(tokens()), expected)

    def test_dropout_by_the_users_own(self):
        class Flip(nn.Module):
            def forward(self, weights):
                return weights.flip(-1)

        block, x = randomized(SABlock(WIDTH, HEADS)), tokens()
        expected = out_of(block, x, weights_of(block, x).flip(-1))
        block.drop_weights = Flip()
        close(self, block(x), expected)

    def test_forward_of_the_dropout(self):
        block, x = randomized(SABlock(WIDTH, HEADS)), tokens()
        expected = out_of(block, x, weights_of(block, x).flip(-1))
        block.drop_weights.forward = lambda weights: weights.flip(-1)
        close(self, block(x), expected)

    def test_subclass_of_dropout(self):
        class Flip(nn.Dropout):
            def forward(self, input):
                return super().forward(input).flip(-1)

        block, x = randomized(SABlock(WIDTH, HEADS)), tokens()
        expected = out_of(block, x, weights_of(block, x).flip(-1))
        block.drop_weights = Flip(0.5).eval()
        close(self, block(x), expected)

    def test_positions(self):
        class Distance(nn.Module):
            def forward(self, x, att_mat, q):
                return att_mat - torch.arange(att_mat.shape[-1], dtype=att_mat.dtype)

        for kwargs in ({}, GRID):
            block, x = randomized(SABlock(WIDTH, HEADS, **kwargs)), tokens()
            weights = (weights_of(block, x).log() - torch.arange(TOKENS)).softmax(-1)
            block.rel_positional_embedding = Distance()
            close(self, block(x), out_of(block, x, weights))

    def test_rearrangements(self):
        class Swap(nn.Module):
            def forward(self, x):
                q, k, v = x.reshape(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
                return k, q, v

        block, other = randomized(SABlock(WIDTH, HEADS)), randomized(SABlock(WIDTH, HEADS))
        block.input_rearrange = Swap()
        with torch.no_grad():
            q, k, v = block.qkv.weight.chunk(3)
            other.qkv.weight.copy_(torch.cat([k, q, v]))
        close(self, block(tokens()), other(tokens()))

    def test_projection(self):
        block = randomized(SABlock(WIDTH, HEADS))
        expected = 2 * block(tokens())
        block.out_proj = nn.Sequential(block.out_proj, nn.Hardtanh(-1e9, 1e9), _Double())
        close(self, block(tokens()), expected)

    def test_cross_attention_that_takes_a_context_alone(self):
        class Mine(nn.Module):
            def forward(self, x, context):
                return context.mean(1, keepdim=True).expand_as(x)

        block = randomized(TransformerBlock(WIDTH, 32, HEADS, with_cross_attention=True))
        block.cross_attn = Mine()
        self.assertEqual(block(tokens(), context=tokens(4)).shape, (2, TOKENS, WIDTH))

    def test_self_attention_that_takes_a_mask_alone(self):
        class Mine(nn.Module):
            def forward(self, x, attn_mask=None):
                return x if attn_mask is None else x * attn_mask[..., None]

        block = randomized(TransformerBlock(WIDTH, 32, HEADS))
        block.attn = Mine()
        block(tokens(), attn_mask=torch.ones(2, TOKENS))

    def test_scripts(self):
        block = randomized(SABlock(WIDTH, HEADS))
        block.drop_weights = nn.Identity()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            close(self, torch.jit.script(block)(tokens()), block(tokens()))


class _Double(nn.Module):
    def forward(self, x):
        return 2 * x


class TestArguments(unittest.TestCase):
    """Which arguments the parts of a block are called with."""

    def arguments(self, module: nn.Module) -> list:
        found: list = []
        module.register_forward_pre_hook(
            lambda module, args, kwargs: found.append((len(args), sorted(kwargs))), with_kwargs=True
        )
        return found

    def test_transformer_block(self):
        block = TransformerBlock(WIDTH, 32, HEADS, with_cross_attention=True)
        found = {name: self.arguments(part) for name, part in block.named_children()}
        block(tokens(), context=tokens(4))
        block(tokens(), context=tokens(4), attn_mask=torch.ones(2, TOKENS))
        plain = [(1, [])] * 2
        self.assertEqual(found.pop("attn"), [(1, ["attn_mask"])] * 2)
        self.assertEqual(found.pop("cross_attn"), [(1, ["context"])] * 2)
        self.assertEqual(found, dict.fromkeys(("mlp", "norm1", "norm2", "norm_cross_attn"), plain))

    def test_spatial_attention(self):
        block = SpatialAttentionBlock(2, WIDTH, norm_num_groups=4)
        found = {name: self.arguments(part) for name, part in block.named_children()}
        block(torch.randn(2, WIDTH, 3, 4))
        self.assertEqual(found, {"norm": [(1, [])], "attn": [(1, [])]})


class TestAttributes(unittest.TestCase):
    """What the release reads when a block is called may be changed after it was built."""

    def test_what_there_is(self):
        block = SABlock(WIDTH, HEADS, 0.1, dim_head=4, **CAUSAL)
        found = {
            name: getattr(block, name) for name in ("num_heads", "inner_dim", "dim_head", "dropout_rate", "causal")
        }
        self.assertEqual(found, {"num_heads": 2, "inner_dim": 8, "dim_head": 4, "dropout_rate": 0.1, "causal": True})
        self.assertEqual((block.scale, block.sequence_length, block.hidden_input_size), (0.5, TOKENS, WIDTH))
        self.assertEqual((block.save_attn, block.use_flash_attention, block.att_mat.numel()), (False, False, 0))
        self.assertEqual((block.include_fc, block.use_combined_linear, block.attention_dtype), (True, True, None))
        self.assertEqual(SABlock(WIDTH, HEADS, **GRID).input_size, (2, 3))
        self.assertEqual(CrossAttentionBlock(WIDTH, HEADS).head_dim, 8)

    def test_save_attn(self):
        for cls in (SABlock, CrossAttentionBlock):
            block = randomized(cls(WIDTH, HEADS))
            block.save_attn = True
            block(tokens())
            self.assertEqual(block.att_mat.shape, (2, HEADS, TOKENS, TOKENS))

    @parameterized.expand([(False,), (True,)])
    def test_scale(self, flash):
        block, doubled = (randomized(SABlock(WIDTH, HEADS, use_flash_attention=flash)) for _ in range(2))
        block.scale *= 2
        with torch.no_grad():
            doubled.qkv.weight[:WIDTH] *= 2
        close(self, block(tokens()), doubled(tokens()))

    def test_dropout(self):
        block = randomized(SABlock(WIDTH, HEADS))
        expected = block(tokens())
        block.train()
        close(self, block(tokens()), expected)
        block.drop_weights.p = 0.5
        self.assertFalse(torch.allclose(block(tokens()), expected))

    def test_dropout_of_flash_attention(self):
        block = randomized(SABlock(WIDTH, HEADS, dropout_rate=0.5, use_flash_attention=True)).train()
        block.drop_output.eval()
        self.assertFalse(torch.allclose(block(tokens()), block(tokens())))
        block.dropout_rate = 0.0
        close(self, block(tokens()), block(tokens()))

    def test_causal(self):
        block, plain = randomized(SABlock(WIDTH, HEADS, **CAUSAL)), randomized(SABlock(WIDTH, HEADS))
        block.causal = False
        close(self, block(tokens()), plain(tokens()))

    def test_include_fc(self):
        block = randomized(SABlock(WIDTH, HEADS))
        bare = randomized(SABlock(WIDTH, HEADS, include_fc=False))
        bare.qkv.load_state_dict(block.qkv.state_dict())
        block.include_fc = False
        close(self, block(tokens()), bare(tokens()))
        bare.out_proj = nn.Linear(WIDTH, WIDTH)
        close(self, bare(tokens()), block(tokens()))

    def test_flash_attention(self):
        block = randomized(SABlock(WIDTH, HEADS))
        expected = block(tokens())
        block.use_flash_attention = True
        close(self, block(tokens()), expected)


class TestMasks(unittest.TestCase):
    @parameterized.expand([(torch.bool,), (torch.uint8,), (torch.int64,), (torch.float32,), (torch.float16,)])
    def test_types(self, dtype):
        mask = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1]])
        block = randomized(SABlock(WIDTH, HEADS))
        close(self, block(tokens(), attn_mask=mask.to(dtype)), block(tokens(), attn_mask=mask))

    def test_integers_other_than_one(self):
        mask = torch.tensor([[7, -1, 0, 1, 0, 1], [1, 0, 0, 2, 1, 1]])
        block = randomized(SABlock(WIDTH, HEADS))
        close(self, block(tokens(), attn_mask=mask), block(tokens(), attn_mask=mask != 0))


class TestSubclasses(unittest.TestCase):
    def test_forward_of_its_own(self):
        class Mine(SABlock):
            def __init__(self, hidden_size: int, num_heads: int, dropout_rate: float = 0.0) -> None:
                super().__init__(hidden_size, num_heads, dropout_rate)
                self.gate = nn.Linear(hidden_size, hidden_size)

            def forward(self, x, attn_mask=None):
                return super().forward(x, attn_mask) * self.gate(x).sigmoid()

        block = randomized(Mine(WIDTH, HEADS))
        close(self, block(tokens()), SABlock.forward(block, tokens()) * block.gate(tokens()).sigmoid())
        block.load_state_dict(block.state_dict())

    def test_parts_of_its_own(self):
        class Mine(SABlock):
            def __init__(self, *args, **kwargs) -> None:
                super().__init__(*args, **kwargs)
                self.out_proj = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH))
                self.drop_weights = nn.AlphaDropout(0.1)

        block = randomized(Mine(WIDTH, HEADS))
        self.assertEqual(block(tokens()).shape, (2, TOKENS, WIDTH))
        twin = randomized(Mine(WIDTH, HEADS), 5)
        twin.load_state_dict(block.state_dict())
        close(self, twin(tokens()), block(tokens()))

    def test_class_put_in_place(self):
        """A class with the release's arguments, in the place of the one that a block builds."""

        class Mine(nn.Module):
            def __init__(self, hidden_size, num_heads, dropout_rate=0.0, qkv_bias=False, save_attn=False, dim_head=None,
                         hidden_input_size=None, causal=False, sequence_length=None, rel_pos_embedding=None,
                         input_size=None, attention_dtype=None, include_fc=True, use_combined_linear=True,
                         use_flash_attention=False) -> None:  # fmt: skip
                super().__init__()
                self.linear = nn.Linear(hidden_size, hidden_size)

            def forward(self, x, attn_mask=None):
                return self.linear(x)

        class Cross(nn.Module):
            def __init__(self, hidden_size, num_heads, dropout_rate=0.0, hidden_input_size=None,
                         context_input_size=None, dim_head=None, qkv_bias=False, save_attn=False, causal=False,
                         sequence_length=None, rel_pos_embedding=None, input_size=None, attention_dtype=None,
                         use_flash_attention=False) -> None:  # fmt: skip
                super().__init__()

            def forward(self, x, context=None):
                return x

        with (
            mock.patch.object(transformerblock, "SABlock", Mine),
            mock.patch.object(transformerblock, "CrossAttentionBlock", Cross),
        ):
            block = TransformerBlock(WIDTH, 32, HEADS, with_cross_attention=True)
        self.assertIsInstance(block.attn, Mine)
        self.assertIsInstance(block.cross_attn, Cross)
        self.assertEqual(block(tokens(), context=tokens(4)).shape, (2, TOKENS, WIDTH))
        with mock.patch.object(spatialattention, "SABlock", Mine):
            self.assertIsInstance(SpatialAttentionBlock(2, WIDTH, norm_num_groups=4).attn, Mine)

    def test_embedding_put_in_place(self):
        from monai.networks.blocks import crossattention, selfattention

        for module, cls in ((selfattention, SABlock), (crossattention, CrossAttentionBlock)):
            with mock.patch.object(module, "get_rel_pos_embedding_layer", lambda *args: nn.Bilinear(1, 1, 1)):
                self.assertIsInstance(cls(WIDTH, HEADS, **GRID).rel_positional_embedding, nn.Bilinear)


class TestOrder(unittest.TestCase):
    """Keys and parameters, on whose order optimizers and initial weights depend."""

    def test_relative_positions(self):
        positions = [f"rel_positional_embedding.rel_pos_arr.{axis}" for axis in range(2)]
        projection = ["out_proj.weight", "out_proj.bias"]
        for block, linears in (
            (SABlock(WIDTH, HEADS, **GRID), ["qkv.weight"]),
            (SABlock(WIDTH, HEADS, use_combined_linear=False, **GRID), [f"to_{name}.weight" for name in "qkv"]),
            (CrossAttentionBlock(WIDTH, HEADS, **GRID), [f"to_{name}.weight" for name in "qkv"]),
        ):
            self.assertEqual(list(block.state_dict()), projection + linears + positions)
            self.assertEqual([name for name, _ in block.named_parameters()], projection + linears + positions)

    @parameterized.expand([(False,), (True,)])
    def test_transformer_block(self, cross):
        block = TransformerBlock(WIDTH, 32, HEADS, with_cross_attention=cross)
        expected = [f"mlp.linear{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
        expected += ["norm1.weight", "norm1.bias", "attn.out_proj.weight", "attn.out_proj.bias", "attn.qkv.weight"]
        expected += ["norm2.weight", "norm2.bias", "norm_cross_attn.weight", "norm_cross_attn.bias"]
        if cross:
            expected += ["cross_attn.out_proj.weight", "cross_attn.out_proj.bias"]
            expected += [f"cross_attn.to_{name}.weight" for name in "qkv"]
        self.assertEqual(list(block.state_dict()), expected)
        self.assertEqual([name for name, _ in block.named_parameters()], expected)

    def test_modules(self):
        parts = [name for name, _ in SABlock(WIDTH, HEADS, **GRID).named_children()]
        self.assertEqual(parts[:3], ["out_proj", "qkv", "to_q"])
        self.assertEqual(
            parts[3:], ["input_rearrange", "out_rearrange", "drop_output", "drop_weights", "rel_positional_embedding"]
        )

    def test_optimizer_of_a_block(self):
        """Its saved state resumes, and a weight that no output depends on is none that a gradient misses."""
        block = TransformerBlock(WIDTH, 32, HEADS)
        optimizer = torch.optim.AdamW(block.parameters())
        block(tokens()).sum().backward()
        optimizer.step()
        other = torch.optim.AdamW(TransformerBlock(WIDTH, 32, HEADS).parameters())
        other.load_state_dict(optimizer.state_dict())


class TestFiles(unittest.TestCase):
    def test_whole_objects(self):
        for net in (
            SABlock(WIDTH, HEADS, **CAUSAL),
            CrossAttentionBlock(WIDTH, HEADS, **GRID),
            TransformerBlock(WIDTH, 32, HEADS),
        ):
            randomized(net)
            buffer = io.BytesIO()
            torch.save(net, buffer)
            buffer.seek(0)
            close(self, torch.load(buffer, weights_only=False)(tokens()), net(tokens()))


class TestCounting(unittest.TestCase):
    def test_flops(self):
        """Two for a multiplication and addition: of the linears, of the logits and of the sum over the values."""
        for cls in (SABlock, CrossAttentionBlock):
            with FlopCounterMode(display=False) as counter:
                cls(WIDTH, HEADS)(tokens())
            linears, products = 4 * WIDTH * WIDTH, 2 * TOKENS * WIDTH
            self.assertEqual(counter.get_total_flops(), 2 * 2 * TOKENS * (linears + products))


if __name__ == "__main__":
    unittest.main()
