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

"""What users do around the diffusion networks: subclasses, hooks, replaced parts and names, control residuals."""

from __future__ import annotations

import inspect
import unittest
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.generation.maisi.networks import controlnet_maisi, diffusion_model_unet_maisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import controlnet, diffusion_model_unet, spade_diffusion_model_unet
from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder, DiffusionModelUNet
from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet

torch.set_num_threads(1)
SIZES = {"spatial_dims": 2, "in_channels": 1, "num_res_blocks": 1, "attention_levels": (False, True)}
SIZES |= {"norm_num_groups": 4, "num_head_channels": 4}
PLAIN, MAISI = {**SIZES, "channels": (8, 16)}, {**SIZES, "num_channels": (8, 16)}
UNET, MAISI_UNET = {**PLAIN, "out_channels": 1}, {**MAISI, "out_channels": 1}
SPADE = {**UNET, "label_nc": 2, "spade_intermediate_channels": 4}
EMBEDDING = {"conditioning_embedding_num_channels": (4, 8)}
CONTEXT = {"with_conditioning": True, "cross_attention_dim": 6}
TOLD = {f"include_{name}_input": True for name in ("top_region_index", "bottom_region_index", "spacing")}
NETWORKS = [
    (DiffusionModelUNet, UNET),
    (DiffusionModelEncoder, {**UNET, "input_shape": (8, 8)}),
    (ControlNet, {**PLAIN, **EMBEDDING}),
    (SPADEDiffusionModelUNet, SPADE),
    (DiffusionModelUNetMaisi, MAISI_UNET),
    (ControlNetMaisi, {**MAISI, **EMBEDDING}),
]
MODULES = {
    DiffusionModelUNet: diffusion_model_unet,
    DiffusionModelEncoder: diffusion_model_unet,
    ControlNet: controlnet,
    SPADEDiffusionModelUNet: spade_diffusion_model_unet,
    DiffusionModelUNetMaisi: diffusion_model_unet_maisi,
    ControlNetMaisi: controlnet,
}


def randomized(net: nn.Module) -> nn.Module:
    """``net`` with random weights, where its own would silence parts of it, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return net.eval()


def build(cls: type, **options) -> nn.Module:
    return randomized(cls(**{**dict(NETWORKS)[cls], **options}))


def inputs(net: nn.Module, batch: int = 2, width: int = 6) -> dict:
    """Keyword arguments of a call."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    values = {"x": normal(1, 8, 8), "timesteps": torch.tensor([3, 700][:batch])}
    if isinstance(net, ControlNet):
        values["controlnet_cond"] = normal(1, 16, 16)
    if isinstance(net, SPADEDiffusionModelUNet):
        values["seg"] = normal(2, 8, 8)
    if net.with_conditioning:
        values["context"] = normal(3, width)
    for name, size in (("top_region_index", 4), ("bottom_region_index", 4), ("spacing", 3)):
        if getattr(net, f"include_{name}_input", False):
            values[f"{name}_tensor"] = normal(size)
    return values


def control(batch: int = 2) -> list[torch.Tensor]:
    """Residuals for the downward path of a U-Net."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, *shape, generator=generator) for shape in ((8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4))]


def steered(net: nn.Module) -> dict:
    """Keyword arguments of a call; a U-Net's with the residuals of a ControlNet."""
    values = inputs(net)
    if hasattr(net, "up_blocks"):
        values |= {"down_block_additional_residuals": control(), "mid_block_additional_residual": control()[-1]}
    return values


def flat(out) -> torch.Tensor:
    return out if torch.is_tensor(out) else torch.cat([part.flatten() for part in [*out[0], out[1]]])


def recorded(modules) -> list:
    """What the modules are called with from now on: numbers of positional arguments and names of the others."""
    calls = []
    for module in modules:
        module.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((len(args), sorted(kwargs))), with_kwargs=True
        )
    return calls


class TestCalls(unittest.TestCase):
    """A hook sees what the release hands over, and how."""

    @parameterized.expand([(cls, kind) for cls, _ in NETWORKS for kind in ({}, CONTEXT)])
    def test_stages_downward_and_in_the_middle(self, cls, kind):
        net = build(cls, **kind)
        calls = recorded(net.down_blocks)
        middle = recorded([net.middle_block] if hasattr(net, "middle_block") else [])
        net(**inputs(net))
        self.assertEqual(calls, [(0, ["context", "hidden_states", "temb"])] * 2)
        expected = [(3, [])] if cls is DiffusionModelUNetMaisi else [(0, ["context", "hidden_states", "temb"])]
        self.assertEqual(middle, [] if cls is DiffusionModelEncoder else expected)

    @parameterized.expand(
        [
            (cls, kind)
            for cls in (DiffusionModelUNet, SPADEDiffusionModelUNet, DiffusionModelUNetMaisi)
            for kind in ({}, CONTEXT)
        ]
    )
    def test_stages_upward(self, cls, kind):
        net = build(cls, **kind)
        calls = recorded(net.up_blocks)
        net(**inputs(net))
        names = ["context", "hidden_states", "res_hidden_states_list", "temb"]
        names += ["seg"] if cls is SPADEDiffusionModelUNet else []
        self.assertEqual(calls, [(0, sorted(names))] * 2)

    @parameterized.expand([({},), (CONTEXT,), ({"resblock_updown": True},)])
    def test_parts_of_stages(self, kind):
        net = build(DiffusionModelUNet, **kind)
        stages = (*net.down_blocks, *net.up_blocks)
        resnets = recorded([*(part for stage in stages for part in stage.resnets), net.middle_block.resnet_1])
        samplers = recorded([net.down_blocks[0].downsampler, net.up_blocks[0].upsampler])
        attentions = recorded(
            [*net.down_blocks[1].attentions, net.middle_block.attention, *net.up_blocks[0].attentions]
        )
        net(**inputs(net))
        self.assertEqual(resnets, [(2, [])] * 7)
        self.assertEqual(samplers, [(2, [])] * 2)
        self.assertEqual(attentions, [(1, ["context"] if kind == CONTEXT else [])] * 4)

    def test_parts_of_transformers(self):
        net = build(DiffusionModelUNet, **CONTEXT)
        transformer = net.middle_block.attention
        block = transformer.transformer_blocks[0]
        calls = recorded([block, block.attn1, block.attn2, block.ff])
        net(**inputs(net))
        self.assertEqual(calls, [(1, ["context"]), (1, []), (1, ["context"]), (1, [])])

    def test_order_of_a_residual_block(self):
        net = build(DiffusionModelUNet, resblock_updown=True)
        order: list[str] = []
        block = net.down_blocks[0].downsampler
        for name, part in block.named_children():
            part.register_forward_hook(lambda *_, name=name: order.append(name))
        net(**inputs(net))
        expected = ["norm1", "nonlinearity", "downsample", "downsample", "conv1", "nonlinearity", "time_emb_proj"]
        self.assertEqual(order, [*expected, "norm2", "nonlinearity", "conv2", "skip_connection"])

    def test_a_stage_with_another_order_of_arguments(self):
        class Other(nn.Module):
            def __init__(self, stage):
                super().__init__()
                self.stage, self.resnets = stage, getattr(stage, "resnets", None)

            def forward(self, context, temb, hidden_states, **others):
                return self.stage(hidden_states=hidden_states, temb=temb, context=context, **others)

        for cls in (DiffusionModelUNet, SPADEDiffusionModelUNet, ControlNet):
            net = build(cls)
            values = inputs(net)
            expected = flat(net(**values))
            net.middle_block = Other(net.middle_block)
            net.down_blocks[1] = Other(net.down_blocks[1])
            if hasattr(net, "up_blocks"):
                net.up_blocks[0] = Other(net.up_blocks[0])
            self.assertTrue(torch.equal(flat(net(**values)), expected))

    def test_a_stage_without_further_arguments(self):
        """What replaces a stage takes what the release hands it, and nothing else."""

        class Down(nn.Module):
            def __init__(self, stage):
                super().__init__()
                self.stage = stage

            def forward(self, hidden_states, temb, context=None):
                return self.stage(hidden_states, temb, context)

        class Up(Down):
            @property
            def resnets(self):
                return self.stage.resnets

            def forward(self, hidden_states, res_hidden_states_list, temb, context=None):
                return self.stage(hidden_states, res_hidden_states_list, temb, context)

        net = build(DiffusionModelUNet, **CONTEXT)
        values = inputs(net)
        expected = net(**values)
        net.down_blocks[1], net.middle_block = Down(net.down_blocks[1]), Down(net.middle_block)
        net.up_blocks[0] = Up(net.up_blocks[0])
        self.assertTrue(torch.equal(net(**values), expected))

    def test_what_stages_return(self):
        net = build(DiffusionModelUNet)
        returned = []
        for stage in net.down_blocks:
            stage.register_forward_hook(lambda _, args, out: returned.append((type(out), type(out[1]), len(out[1]))))
        net(**inputs(net))
        self.assertEqual(returned, [(tuple, list, 2), (tuple, list, 1)])

    def test_what_an_upward_stage_is_handed_stays(self):
        net = build(DiffusionModelUNet)
        handed = []
        for stage in net.up_blocks:
            stage.register_forward_hook(
                lambda _, args, kwargs, out: handed.append(len(kwargs["res_hidden_states_list"])), with_kwargs=True
            )
        net(**inputs(net))
        self.assertEqual(handed, [2, 2])

    def test_too_few_features_for_an_upward_stage(self):
        stage = diffusion_model_unet.UpBlock(2, 8, 8, 8, 5, num_res_blocks=2, norm_num_groups=4)
        with self.assertRaises(IndexError):
            stage(torch.zeros(1, 8, 4, 4), [torch.zeros(1, 8, 4, 4)], torch.zeros(1, 5))

    def test_stages_without_attention(self):
        net = build(SPADEDiffusionModelUNet)
        for stage in (net.down_blocks[0], net.up_blocks[1]):
            self.assertFalse(hasattr(stage, "attentions"))
        self.assertEqual([len(stage.attentions) for stage in (net.down_blocks[1], net.up_blocks[0])], [1, 2])

    def test_segmentation_may_be_left_out_by_name(self):
        forward = inspect.signature(spade_diffusion_model_unet.SPADECrossAttnUpBlock.forward).parameters
        self.assertIsNone(forward["seg"].default)


class TestSubclasses(unittest.TestCase):
    """Private methods that public projects override or call."""

    @parameterized.expand(
        [
            ("_get_time_and_class_embedding", 3),
            ("_get_input_embeddings", 4),
            ("_apply_down_blocks", 4),
            ("_apply_up_blocks", 4),
        ]
    )
    def test_steps_of_the_unet(self, name, count):
        net = self.assert_called(DiffusionModelUNetMaisi, name, count, **TOLD, **CONTEXT)
        plain = build(DiffusionModelUNetMaisi, **TOLD, **CONTEXT)
        self.assertTrue(torch.equal(net(**inputs(net)), plain(**inputs(plain))))

    @parameterized.expand(
        [
            ("_prepare_time_and_class_embedding", 3),
            ("_apply_initial_convolution", 1),
            ("_apply_down_blocks", 3),
            ("_apply_mid_block", 3),
            ("_apply_controlnet_blocks", 2),
        ]
    )
    def test_steps_of_the_controlnet(self, name, count):
        net = self.assert_called(ControlNetMaisi, name, count, **CONTEXT)
        plain = build(ControlNetMaisi, **CONTEXT)
        self.assertTrue(torch.equal(flat(net(**inputs(net))), flat(plain(**inputs(plain)))))

    def assert_called(self, cls, name, count, **options):
        called = []

        def step(self, *args):
            called.append(len(args))
            return getattr(super(mine, self), name)(*args)

        mine = type("Mine", (cls,), {name: step})
        net = randomized(mine(**{**dict(NETWORKS)[cls], **options}))
        net(**inputs(net))
        self.assertEqual(called, [count])
        return net

    def test_embedding_modules(self):
        made = []

        class Mine(DiffusionModelUNetMaisi):
            def _create_embedding_module(self, input_dim, embed_dim):
                made.append((input_dim, embed_dim))
                return super()._create_embedding_module(input_dim, embed_dim)

        net = Mine(**MAISI_UNET, **TOLD)
        self.assertEqual(made, [(8, 32), (4, 32), (4, 32), (3, 32)])
        self.assertEqual([type(layer).__name__ for layer in net.time_embed], ["Linear", "SiLU", "Linear"])

    def test_a_condition_added_to_the_embedding(self):
        class Mine(DiffusionModelUNetMaisi):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.age = nn.Linear(1, 32)

            def _get_time_and_class_embedding(self, x, timesteps, class_labels):
                return super()._get_time_and_class_embedding(x, timesteps, None) + self.age(class_labels[:, None])

        net = randomized(Mine(**MAISI_UNET))
        values = inputs(net)
        young, old = (net(**values, class_labels=torch.full((2,), age)) for age in (0.1, 0.9))
        self.assertGreater(float((young - old).abs().max().detach()), 1e-4)

    def test_a_forward_of_the_users_own(self):
        class Mine(DiffusionModelUNetMaisi):
            def forward(self, x, timesteps, residuals):
                emb = self._get_time_and_class_embedding(x, timesteps, None)
                emb = self._get_input_embeddings(emb, None, None, None)
                h, skips = self._apply_down_blocks(self.conv_in(x), emb, None, residuals)
                h = self.middle_block(h, emb, None)
                return self.out(self._apply_up_blocks(h, emb, None, skips))

        net, plain = randomized(Mine(**MAISI_UNET)), build(DiffusionModelUNetMaisi)
        x, timesteps = inputs(plain).values()
        with torch.no_grad():
            expected = plain(x, timesteps, down_block_additional_residuals=control())
            self.assertTrue(torch.equal(net(x, timesteps, control()), expected))

    def test_a_forward_of_the_users_own_in_a_controlnet(self):
        class Mine(ControlNetMaisi):
            def forward(self, x, timesteps, controlnet_cond):
                emb = self._prepare_time_and_class_embedding(x, timesteps, None)
                h = self._apply_initial_convolution(x) + self.controlnet_cond_embedding(controlnet_cond)
                skips, h = self._apply_down_blocks(emb, None, h)
                return self._apply_controlnet_blocks(self._apply_mid_block(emb, None, h), skips)

        net, plain = randomized(Mine(**MAISI, **EMBEDDING)), build(ControlNetMaisi)
        self.assertTrue(torch.equal(flat(net(**inputs(net))), flat(plain(**inputs(plain)))))

    def test_features_for_the_upward_path_stay_with_the_caller(self):
        net = build(DiffusionModelUNetMaisi)
        x, timesteps = inputs(net).values()
        emb = net._get_time_and_class_embedding(x, timesteps, None)
        h, skips = net._apply_down_blocks(net.conv_in(x), emb, None, None)
        h = net.middle_block(h, emb, None)
        first, second = (net._apply_up_blocks(h, emb, None, skips) for _ in range(2))
        self.assertTrue(torch.equal(first, second))
        self.assertEqual(len(skips), 4)

    def test_methods_that_a_subclass_adds(self):
        """Names that are free in the release."""

        class Mine(DiffusionModelUNet):
            def encode(self, x):
                return self.conv_in(x)

            embed = middle = denoise = build = add_stages = add_control = resample = encode
            time_embed_dim = property(lambda self: 1)

        net, plain = randomized(Mine(**UNET)), build(DiffusionModelUNet)
        self.assertTrue(torch.equal(net(**inputs(net)), plain(**inputs(plain))))

    @parameterized.expand(NETWORKS)
    def test_positional_arguments(self, cls, kwargs):
        order = list(inspect.signature(cls.__init__).parameters)[1:]
        values = [kwargs[name] for name in order if name in kwargs]
        head = [name for name in order if name in kwargs][: order.index("norm_num_groups") + 1]
        net = cls(*values[: len(head)], **{name: kwargs[name] for name in kwargs if name not in head})
        self.assertEqual([net.in_channels, tuple(net.block_out_channels)], [1, (8, 16)])

    def test_what_networks_remember(self):
        for cls, _ in NETWORKS:
            net = build(cls, num_res_blocks=[1, 1])
            found = net.num_res_blocks, net.attention_levels, net.num_head_channels, net.num_class_embeds
            self.assertEqual(found, ([1, 1], (False, True), (4, 4), None))


class TestReplacedNames(unittest.TestCase):
    """Functions and classes that users put in the place of the release's before they build a network."""

    @parameterized.expand([(cls,) for cls, _ in NETWORKS])
    def test_functions_that_build_stages(self, cls):
        names = {"get_down_block": 2, "get_mid_block": 1, "get_up_block": 2, "get_spade_up_block": 2}
        module = MODULES[cls]
        for name, expected in names.items():
            if not hasattr(module, name) or (cls is DiffusionModelEncoder and name != "get_down_block"):
                continue
            original, calls = getattr(module, name), []

            def mine(*args, original=original, calls=calls, **kwargs):
                calls.append((args, set(kwargs)))
                return original(*args, **kwargs)

            with mock.patch.object(module, name, mine):
                build(cls, **CONTEXT)
            self.assertEqual(len(calls), expected, name)
            self.assertTrue(all(not args for args, _ in calls))
            self.assertEqual(calls[0][1] & {"use_proj_attn", "context_mask"}, set())

    @parameterized.expand([(cls,) for cls, _ in NETWORKS])
    def test_arguments_of_these_functions(self, cls):
        """What the release passes, no more."""
        shared = {"spatial_dims", "in_channels", "temb_channels", "norm_num_groups", "norm_eps", "num_head_channels"}
        shared |= {"transformer_num_layers", "cross_attention_dim", "upcast_attention", "use_flash_attention"}
        linears = {"include_fc", "use_combined_linear"}
        dropout = {"dropout_cattn"} if cls in (DiffusionModelUNet, DiffusionModelUNetMaisi) else set()
        path = {"out_channels", "num_res_blocks", "resblock_updown", "with_attn", "with_cross_attn"}
        down = shared | linears | dropout | path | {"add_downsample"}
        mid = shared | linears | dropout | {"with_conditioning"}
        up = shared | linears | dropout | path | {"add_upsample", "prev_output_channel"}
        spade = (up - linears) | {"label_nc", "spade_intermediate_channels"}
        names = {"get_down_block": down, "get_mid_block": mid, "get_up_block": up, "get_spade_up_block": spade}
        module = MODULES[cls]
        for name, expected in names.items():
            if not hasattr(module, name) or (cls is DiffusionModelEncoder and name != "get_down_block"):
                continue
            function = mock.Mock(side_effect=getattr(module, name))
            with mock.patch.object(module, name, function):
                build(cls, **CONTEXT)
            self.assertEqual(set(function.call_args.kwargs), expected, name)

    @parameterized.expand(
        [
            ("DownBlock", {}),
            ("AttnDownBlock", {}),
            ("CrossAttnDownBlock", CONTEXT),
            ("AttnMidBlock", {}),
            ("CrossAttnMidBlock", CONTEXT),
            ("UpBlock", {}),
            ("AttnUpBlock", {}),
            ("CrossAttnUpBlock", CONTEXT),
            ("DiffusionUNetResnetBlock", {}),
            ("DiffusionUnetDownsample", {}),
            ("DiffusionUnetDownsample", {"resblock_updown": True}),
            ("WrappedUpsample", {}),
            ("WrappedUpsample", {"resblock_updown": True}),
            ("SpatialAttentionBlock", {}),
            ("SpatialTransformer", CONTEXT),
            ("DiffusionUNetTransformerBlock", CONTEXT),
            ("SABlock", CONTEXT),
            ("CrossAttentionBlock", CONTEXT),
            ("MLPBlock", CONTEXT),
            ("Convolution", {}),
        ]
    )
    def test_classes_of_the_unet(self, name, options):
        """A subclass with a constructor of its own takes what the release passes; the network computes the same."""
        self.assert_built(DiffusionModelUNet, diffusion_model_unet, name, options)

    @parameterized.expand(["AttnDownBlock", "SpatialAttentionBlock", "DiffusionUNetResnetBlock"])
    def test_classes_of_the_unet_in_other_networks(self, name):
        for cls in (
            DiffusionModelEncoder,
            ControlNet,
            SPADEDiffusionModelUNet,
            DiffusionModelUNetMaisi,
            ControlNetMaisi,
        ):
            self.assert_built(cls, diffusion_model_unet, name, {})

    @parameterized.expand(
        [
            ("SPADEUpBlock", {}),
            ("SPADEAttnUpBlock", {}),
            ("SPADECrossAttnUpBlock", CONTEXT),
            ("SPADEDiffResBlock", {}),
            ("SPADE", {}),
            ("SpatialAttentionBlock", {}),
            ("SpatialTransformer", CONTEXT),
            ("DiffusionUNetResnetBlock", {"resblock_updown": True}),
            ("WrappedUpsample", {}),
            ("Convolution", {}),
        ]
    )
    def test_classes_of_spade(self, name, options):
        self.assert_built(SPADEDiffusionModelUNet, spade_diffusion_model_unet, name, options)

    def test_convolutions_of_the_other_modules(self):
        self.assert_built(ControlNet, controlnet, "Convolution", {})
        self.assert_built(DiffusionModelUNetMaisi, diffusion_model_unet_maisi, "Convolution", {})

    def assert_built(self, cls, module, name, options):
        original, made = getattr(module, name), []
        parameters = set(inspect.signature(original.__init__).parameters) - {"use_proj_attn", "upcast_attention"}

        class Mine(original):
            def __init__(self, *args, **kwargs):
                unknown = set(kwargs) - parameters - {"upcast_attention"}
                made.append(unknown)
                super().__init__(*args, **kwargs)

        plain = build(cls, **options)
        with mock.patch.object(module, name, Mine):
            net = build(cls, **options)
        count = sum(isinstance(part, Mine) for part in net.modules())
        self.assertGreater(count, 0)
        self.assertGreaterEqual(len(made), count)  # a ControlNet keeps one of its convolutions without the wrapper
        self.assertEqual(set(map(frozenset, made)), {frozenset()})
        self.assertEqual(list(net.state_dict()), list(plain.state_dict()))
        self.assertTrue(torch.equal(flat(net(**inputs(net))), flat(plain(**inputs(plain)))))

    def test_a_block_without_the_forks_options(self):
        """Constructors as the release has them, and nothing taken beyond."""

        class Attention(nn.Module):
            def __init__(
                self,
                spatial_dims,
                num_channels,
                num_head_channels=None,
                norm_num_groups=32,
                norm_eps=1e-6,
                include_fc=True,
                use_combined_linear=False,
                use_flash_attention=False,
            ):
                super().__init__()
                self.conv = nn.Conv2d(num_channels, num_channels, 1)

            def forward(self, x):
                return x + self.conv(x)

        with mock.patch.object(diffusion_model_unet, "SpatialAttentionBlock", Attention):
            net = build(DiffusionModelUNet)
        self.assertEqual(sum(isinstance(part, Attention) for part in net.modules()), 4)
        self.assertEqual(net(**inputs(net)).shape, (2, 1, 8, 8))

    def test_attention_to_what_a_mask_lets(self):
        """What these replacements are made for: a mask, set aside before the call."""
        state = {}

        class Masked(diffusion_model_unet.CrossAttentionBlock):
            def forward(self, x, context=None):
                return super().forward(x, context[:, : state["tokens"]])

        with mock.patch.object(diffusion_model_unet, "CrossAttentionBlock", Masked):
            net = build(DiffusionModelUNet, **CONTEXT)
        plain = build(DiffusionModelUNet, **CONTEXT)
        values = inputs(net)
        state["tokens"] = 2
        expected = plain(**{**values, "context": values["context"][:, :2]})
        self.assertTrue(torch.equal(net(**values), expected))

    @parameterized.expand([(cls,) for cls, _ in NETWORKS])
    def test_time_embedding(self, cls):
        module = controlnet_maisi if cls is ControlNetMaisi else MODULES[cls]
        net = build(cls)
        values = inputs(net)
        expected = flat(net(**{**values, "timesteps": torch.tensor([5, 5])}))
        original = module.get_timestep_embedding
        with mock.patch.object(
            module, "get_timestep_embedding", lambda t, width: original(torch.full_like(t, 5), width)
        ):
            self.assertTrue(torch.equal(flat(net(**values)), expected))

    def test_names_that_were_imported_before(self):
        """The release's modules hand on what they import."""
        for module in (diffusion_model_unet, spade_diffusion_model_unet, controlnet, diffusion_model_unet_maisi):
            for name in ("Convolution", "ensure_tuple_rep", "get_timestep_embedding", "zero_module"):
                self.assertTrue(hasattr(module, name), f"{module.__name__}.{name}")


class TestControl(unittest.TestCase):
    """Residuals of a ControlNet."""

    def test_middle_of_maisi_receives_the_last_residual(self):
        net = build(DiffusionModelUNetMaisi)
        seen = []
        net.middle_block.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        down = control()
        with torch.no_grad():
            net(**inputs(net))
            net(**inputs(net), down_block_additional_residuals=tuple(down))
        torch.testing.assert_close(seen[1], seen[0] + down[-1])

    def test_middle_of_the_plain_unet_does_not(self):
        net = build(DiffusionModelUNet)
        seen = []
        net.middle_block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
        )
        with torch.no_grad():
            net(**inputs(net))
            net(**inputs(net), down_block_additional_residuals=control())
        self.assertTrue(torch.equal(*seen))

    def test_middle_of_maisi_behind_a_stage_that_copies(self):
        """Where the last features are another tensor than the stage's result, the residual does not reach it."""

        class Copying(nn.Module):
            def __init__(self, stage):
                super().__init__()
                self.stage = stage

            def forward(self, hidden_states, temb, context=None):
                h, states = self.stage(hidden_states, temb, context)
                return h.clone(), states

        net = build(DiffusionModelUNetMaisi)
        net.down_blocks[1] = Copying(net.down_blocks[1])
        seen = []
        net.middle_block.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        with torch.no_grad():
            net(**inputs(net))
            net(**inputs(net), down_block_additional_residuals=control())
        self.assertTrue(torch.equal(*seen))

    @parameterized.expand([(DiffusionModelUNet,), (SPADEDiffusionModelUNet,), (DiffusionModelUNetMaisi,)])
    def test_surplus_residuals_are_ignored(self, cls):
        net = build(cls)
        with torch.no_grad():
            expected = net(**inputs(net), down_block_additional_residuals=control())
            out = net(**inputs(net), down_block_additional_residuals=[*control(), torch.zeros(1)])
        self.assertTrue(torch.equal(out, expected))

    @parameterized.expand([(DiffusionModelUNet,), (SPADEDiffusionModelUNet,), (DiffusionModelUNetMaisi,)])
    def test_residuals_come_in_any_sequence(self, cls):
        net = build(cls)
        down = control()
        kinds = [down, tuple(down), iter(down), dict(enumerate(down)).values()]
        with torch.no_grad():
            outs = [net(**inputs(net), down_block_additional_residuals=kind) for kind in kinds]
        self.assertTrue(all(torch.equal(out, outs[0]) for out in outs))

    @parameterized.expand([(DiffusionModelUNet,), (SPADEDiffusionModelUNet,), (DiffusionModelUNetMaisi,)])
    def test_residuals_stay_as_they_are(self, cls):
        net = build(cls)
        down, mid = control(), control()[-1]
        with torch.no_grad():
            net(**inputs(net), down_block_additional_residuals=down, mid_block_additional_residual=mid)
        self.assertTrue(all(map(torch.equal, [*down, mid], [*control(), control()[-1]])))

    def test_residuals_of_another_type_in_a_half_maisi(self):
        net = build(DiffusionModelUNetMaisi).to(torch.bfloat16)
        values = inputs(net)
        values["x"] = values["x"].to(torch.bfloat16)
        with torch.no_grad():
            out = net(**values, down_block_additional_residuals=control(), mid_block_additional_residual=control()[-1])
        self.assertEqual(out.dtype, torch.bfloat16)

    def test_training_a_controlnet_beside_a_frozen_unet(self):
        net, trained = build(DiffusionModelUNetMaisi).requires_grad_(False), build(ControlNetMaisi).train()
        values = inputs(trained)
        down, mid = trained(**values)
        del values["controlnet_cond"]
        out = net(**values, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        out.pow(2).sum().backward()
        without = {name for name, p in trained.named_parameters() if p.grad is None or not bool(p.grad.abs().max())}
        self.assertEqual({name for name in without if "to_k.bias" not in name}, set())

    @parameterized.expand([(DiffusionModelUNet,), (SPADEDiffusionModelUNet,), (DiffusionModelUNetMaisi,)])
    def test_gradients_of_residuals(self, cls):
        """They are those of the outputs, the way through the middle included."""
        net = build(cls).double().requires_grad_(False)
        values = {k: v.double() if v.is_floating_point() else v for k, v in inputs(net).items()}
        for number in (0, 3):
            down = [residual.double() for residual in control()]
            direction = torch.randn(down[number].shape, dtype=torch.double, generator=torch.Generator().manual_seed(3))

            def loss(step: torch.Tensor, number=number, down=down, direction=direction) -> torch.Tensor:
                moved = [*down[:number], down[number] + step * direction, *down[number + 1 :]]
                return net(**values, down_block_additional_residuals=moved).pow(2).sum()

            step = torch.zeros((), dtype=torch.double, requires_grad=True)
            loss(step).backward()
            with torch.no_grad():
                slope = (loss(torch.tensor(1e-5)) - loss(torch.tensor(-1e-5))) / 2e-5
            torch.testing.assert_close(step.grad, slope, rtol=1e-4, atol=1e-9)

    def test_a_scale_for_each_sample(self):
        for cls in (ControlNet, ControlNetMaisi):
            net = build(cls)
            values = inputs(net)
            scales = torch.tensor([0.0, 0.5])[:, None, None, None]
            down, mid = net(**values, conditioning_scale=scales)
            half = net(**values, conditioning_scale=0.5)
            for scaled, other in zip([*down, mid], [*half[0], half[1]]):
                self.assertEqual(float(scaled[0].abs().max().detach()), 0.0)
                self.assertTrue(torch.equal(scaled[1], other[1]))


class TestContext(unittest.TestCase):
    def test_none_where_the_tokens_have_its_width(self):
        """Cross attention then attends to the image's own tokens."""
        net = build(DiffusionModelUNet, with_conditioning=True, cross_attention_dim=8, channels=(8, 8))
        values = inputs(net, width=8)
        del values["context"]
        seen = []
        net.middle_block.attention.transformer_blocks[0].attn2.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["context"]), with_kwargs=True
        )
        self.assertEqual(net(**values).shape, (2, 1, 8, 8))
        self.assertEqual(seen, [None])

    def test_brought_by_a_hook(self):
        net = build(DiffusionModelUNet, **CONTEXT)
        values = inputs(net)
        expected = net(**values)
        context = values.pop("context")
        for part in net.modules():
            if type(part).__name__ == "CrossAttentionBlock":
                part.register_forward_pre_hook(lambda _, args, kwargs: (args, {"context": context}), with_kwargs=True)
        self.assertTrue(torch.equal(net(**values), expected))

    def test_not_needed_by_what_replaces_cross_attention(self):
        class Nothing(nn.Module):
            def forward(self, x, context=None):
                return torch.zeros_like(x)

        net = build(DiffusionModelUNet, **CONTEXT)
        for part in net.modules():
            if type(part).__name__ == "DiffusionUNetTransformerBlock":
                part.attn2 = Nothing()
        values = inputs(net)
        del values["context"]
        self.assertEqual(net(**values).shape, (2, 1, 8, 8))

    @parameterized.expand(NETWORKS)
    def test_refused_by_a_network_without_conditioning(self, cls, _):
        net = build(cls)
        with self.assertRaises(ValueError):
            net(**inputs(net), context=torch.zeros(2, 3, 6))


class TestArguments(unittest.TestCase):
    @parameterized.expand(
        [
            (cls, change)
            for cls, _ in NETWORKS
            for change in (
                {"with_conditioning": True},
                {"cross_attention_dim": 6},
                {"norm_num_groups": 3},
                {"attention_levels": (True,)},
                {"num_head_channels": (4, 4, 4)},
            )
        ]
    )
    def test_contradictions(self, cls, change):
        with self.assertRaises(ValueError):
            build(cls, **change)

    @parameterized.expand([(cls,) for cls, _ in NETWORKS if cls is not DiffusionModelEncoder])
    def test_residual_blocks(self, cls):
        with self.assertRaises(ValueError):
            build(cls, num_res_blocks=(1, 1, 1))

    @parameterized.expand([(cls,) for cls, _ in NETWORKS])
    def test_misspelt(self, cls):
        with self.assertRaises(TypeError):
            build(cls, use_flash_atention=True)

    @parameterized.expand(
        [({"attention_levels": (True,)},), ({"norm_num_groups": 16},), (CONTEXT | {"with_conditioning": False},)]
    )
    def test_messages_of_maisis_controlnet(self, change):
        text = {
            "attention_levels": "ControlNet expects channels to have the same length as attention_levels, but got "
            "channels=(8, 16) and attention_levels=(True,)",
            "norm_num_groups": "ControlNet expects all channels to be a multiple of norm_num_groups, but got "
            "channels=(8, 16) and norm_num_groups=16",
            "with_conditioning": "ControlNet expects with_conditioning=True when specifying the cross_attention_dim.",
        }[next(iter(change))]
        with self.assertRaises(ValueError) as caught:
            build(ControlNetMaisi, **change)
        self.assertEqual(str(caught.exception), text)

    def test_upward_path_of_spade(self):
        """It is built without these two options, and checkpoints hold what it is built with."""
        net = SPADEDiffusionModelUNet(**SPADE, include_fc=False, use_combined_linear=True)
        keys = list(net.state_dict())
        self.assertIn("up_blocks.0.attentions.0.attn.out_proj.weight", keys)
        self.assertIn("up_blocks.0.attentions.0.attn.to_q.weight", keys)
        self.assertNotIn("middle_block.attention.attn.out_proj.weight", keys)
        self.assertIn("middle_block.attention.attn.qkv.weight", keys)


if __name__ == "__main__":
    unittest.main()
