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


"""Vision transformers of other packages give their features here, or are refused by name."""

from __future__ import annotations

import unittest
from functools import cache

import torch
from parameterized import parameterized
from torch import nn

from monai.networks.nets import MaskedAutoEncoderViT, ViT, ViTAutoEnc
from monai.networks.weights.source import recognize, translate_back
from monai.networks.weights.sources import SOURCES
from monai.networks.weights.vit_config import transformers_config
from tests.networks.weights.vit_files import (
    CASES,
    TINY_SIZES,
    as_mae,
    build,
    difference,
    load,
    network_for,
    results,
    source_of,
    tiny_file,
)
from tests.networks.weights.vit_fuzz import silently_wrong

HEAD = ("classification_head.*",)
MEMORY = (  # transformers 5 in memory
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
OLDER = (("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),)  # transformers 4

TEST_CASES_EXACT = [
    [name, options]
    for name in TINY_SIZES
    for options in ({}, {"proj_type": "perceptron"}, {"use_combined_linear": False})
]
# file, what the network is built with, its eps, what is said
TEST_CASES_NETWORKS = [
    ["timm", {}, 1e-5, "norm_eps=1e-06"],
    ["timm", {"num_heads": 4}, 1e-6, "num_heads=2"],
    ["timm", {"qkv_bias": False}, 1e-6, "qkv_bias=True"],
    ["timm", {"classification": False}, 1e-6, "classification=True"],
    ["timm", {"post_activation": "Tanh"}, 1e-6, "post_activation=None"],
    ["timm", {"num_layers": 3}, 1e-6, "num_layers=2"],
    ["timm", {"hidden_size": 48}, 1e-6, "hidden_size=32"],
    ["timm", {"mlp_dim": 32}, 1e-6, "mlp_dim=64"],
    ["timm", {"use_proj_attn": False}, 1e-6, "use_proj_attn=True"],
    ["timm", {"num_classes": 5}, 1e-6, "classification_head.weight"],
    ["timm", {"img_size": 12}, 1e-6, "position_embeddings"],
    ["timm without class token", {"classification": True}, 1e-6, "classification=False"],
    ["hf classes", {}, 1e-6, "norm_eps=1e-12"],
    ["hf classes", {"num_heads": 1}, 1e-12, "num_heads=2"],
    ["hf-dinov2", {"qkv_bias": False}, 1e-6, "qkv_bias=True"],
    ["hf-mae", {"decoder_num_heads": 4}, 1e-6, "decoder_num_heads=2"],
    ["hf-mae", {"decoder_num_layers": 1}, 1e-6, "decoder_num_layers=2"],
    ["hf-mae", {"decoder_hidden_size": 32}, 1e-6, "decoder_hidden_size=16"],
]
# file, what its configuration says, what is said
TEST_CASES_CONFIGURATIONS = [
    ["timm", {"num_heads": None}, "num_heads in the configuration"],
    ["timm", {"model_args": {"act_layer": "quick_gelu"}}, "quick_gelu"],
    ["timm", {"global_pool": "avg"}, "pooled patches"],
    ["timm", {"norm_layer": "rmsnorm"}, "rmsnorm"],
    ["timm without class token", {"act_layer": None}, "act_layer='gelu'"],
    ["timm without class token", {"act_layer": "gelu_tanh"}, "gelu_tanh"],
    ["timm without class token", {"num_heads": None}, "num_heads in the configuration"],
    ["hf classes", {"hidden_act": "gelu_new"}, "gelu_new"],
    ["hf classes", {"layer_norm_eps": 1e-6}, "norm_eps=1e-06"],
    ["hf classes", {"num_attention_heads": 4}, "num_heads=4"],
    ["hf classes", {"num_hidden_layers": 3}, "num_hidden_layers=3"],
    ["hf classes", {"hidden_size": 64}, "hidden_size=64"],
    ["hf-mae", {"intermediate_size": 96}, "intermediate_size=96"],
    ["hf classes", {"model_type": "vilt"}, "vilt"],
    ["hf-dinov2", {"model_type": "dinov3_vit"}, "dinov3_vit"],
    ["hf-mae", {"decoder_num_attention_heads": 4}, "decoder_num_heads=4"],
]
# file, a key that is added, what is said
TEST_CASES_FAMILIES = [
    ["timm", "reg_token", "register tokens"],
    ["dinov2 in chunks", "register_tokens", "register tokens"],
    ["dinov2 in chunks", "storage_tokens", "register tokens"],
    ["hf-dinov2", "embeddings.register_tokens", "register tokens"],
    ["dinov2 in chunks", "blocks.0.0.mlp.w12.weight", "SwiGLU"],
    ["hf-dinov2", "encoder.layer.0.mlp.weights_in.weight", "SwiGLU"],
    ["timm", "blocks.0.mlp.fc1_g.weight", "SwiGLU"],
    ["dinov2 in chunks", "rope_embed.periods", "RoPE"],
    ["timm", "rope.freqs", "RoPE"],
    ["timm", "blocks.0.attn.relative_position_bias_table", "BEiT"],
    ["timm", "blocks.0.attn.q_bias", "BEiT"],
    ["timm", "blocks.0.gamma_1", "BEiT"],
    ["hf classes", "vit.encoder.layer.0.lambda_1", "BEiT"],
    ["timm", "dist_token", "distillation"],
    ["timm", "head_dist.weight", "distillation"],
    ["hf classes", "vit.embeddings.distillation_token", "distillation"],
    ["timm", "norm_pre.weight", "CLIP"],
    ["hf classes", "vision_model.pre_layrnorm.weight", "CLIP"],
    ["timm", "attn_pool.latent", "attention pooling"],
    ["timm", "blocks.0.attn.q_norm.weight", "norms inside"],
    ["timm", "blocks.0.attns.0.qkv.weight", "parallel"],
    ["timm", "patch_embed.backbone.stem.conv.weight", "hybrid"],
    ["timm", "embeds.proj.weight", "NaFlex"],
    ["timm", "fc_norm.weight", "mean of the patches"],
    ["timm", "head.mlp.0.weight", "several layers"],
    ["timm", "blocks.0.attn.out_proj.weight", "keys of two layouts"],
    ["hf-dinov2", "classifier.weight", "classes"],
    ["timm", "blocks.0.ls1.gamma", "missing"],
    ["timm", "mask_token", "Unexpected"],
    ["timm", "some.other.weight", "Unexpected"],
    ["hf-mae", "decoder.other", "Unexpected"],
]
# the network, its eps, the layout, what is said
TEST_CASES_BACK = [
    [{"img_size": 16, "patch_size": 8, "spatial_dims": 3}, 1e-6, "timm", "3-D"],
    [{}, 1e-5, "timm", "norm_eps=1e-06"],
    [{"post_activation": "Tanh"}, 1e-6, "timm", "classification_head"],
    [{"hidden_size": 192, "mlp_dim": 768, "num_heads": 4}, 1e-6, "timm", "num_heads=3"],
    [{"classification": False}, 1e-6, "dinov2", "class token"],
    [{"classification": False}, 1e-12, "hf", "class token"],
    [{}, 1e-6, "dinov2", "no head"],
    [{}, 1e-6, "hf-dinov2", "mean of the patches"],
    [{}, 1e-6, "mae", "masked autoencoder"],
    [{"use_proj_attn": False}, 1e-6, "hf", "use_proj_attn=True"],
]


@cache
def _file(name: str) -> dict:
    """A kept file; its tensors stay as they are."""
    content = tiny_file(name)
    return {**content, "allow": CASES[name].allow}


def _network(name: str, eps: float | None = None, **changes) -> nn.Module:
    case = CASES[name]
    if eps is not None:
        return build(case.network, eps, **{**case.kwargs, **TINY_SIZES[name], **changes})
    return network_for(case, **{**TINY_SIZES[name], **changes})


def _load(net: nn.Module, name: str, state_dict: dict, config: dict | None = None, **options):
    content = _file(name)
    return load(net, state_dict, None, content["config"] if config is None else config, (), content["allow"], **options)


def _renamed(state_dict: dict, names: tuple[tuple[str, str], ...]) -> dict:
    renamed = {}
    for key, value in state_dict.items():
        for old, new in names:
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


class TestIn(unittest.TestCase):
    @parameterized.expand(TEST_CASES_EXACT)
    def test_features_are_those_of_the_package(self, name, options):
        content = _file(name)
        net = _network(name, **options)
        report = _load(net, name, content["state_dict"])
        self.assertLess(difference(results(net, content), content), 1e-5)
        self.assertEqual({line.key for line in report.parameters}, set(net.state_dict()))
        self.assertEqual({line.key for line in report.tensors}, set(content["state_dict"]))
        self.assertTrue(all("norm_cross_attn" in key or key.startswith("class") for key in report.left))

    @parameterized.expand([["hf classes"], ["hf-dinov2"], ["hf-mae"]])
    def test_keys_of_transformers_in_memory_mean_the_same(self, name):
        content = _file(name)
        state = _renamed(content["state_dict"], (*OLDER, *MEMORY))
        if name != "hf-dinov2":
            state = _renamed(state, (("vit.encoder.layer.", "vit.layers."),))
        net = _network(name)
        _load(net, name, state)
        self.assertLess(difference(results(net, content), content), 1e-5)

    def test_transformers_4_names_the_decoder_in_another_way(self):
        content = _file("hf-mae")
        net = _network("hf-mae")
        _load(net, "hf-mae", _renamed(content["state_dict"], OLDER))
        self.assertLess(difference(results(net, content), content), 1e-5)

    def test_keys_of_the_authors_of_mae(self):
        content = _file("hf-mae")
        net = _network("hf-mae")
        load(net, as_mae(content["state_dict"]), None, {"num_heads": 2, "decoder_num_heads": 2})
        self.assertLess(difference(results(net, content), content), 1e-5)

    def test_the_encoder_of_a_masked_autoencoder_alone(self):
        content = _file("hf-mae")
        nets = []
        for state, config in (
            (content["state_dict"], content["config"]),
            (as_mae(content["state_dict"]), {"num_heads": 2}),
        ):
            net = build(ViT, 1e-6, **TINY_SIZES["hf classes"])
            report = load(net, state, None, config, allow=HEAD)
            self.assertTrue(all("decoder" in key or "mask_token" in key for key in report.ignored))
            nets.append(net)
        masked = _network("hf-mae")
        _load(masked, "hf-mae", content["state_dict"])
        tokens = masked.blocks(torch.cat([masked.cls_token.expand(2, -1, -1), masked.patch_embedding(content["x"])], 1))
        for net in nets:
            torch.testing.assert_close(net.norm(net(content["x"])[1][-1]), tokens)

    def test_an_encoder_begins_the_pretraining_of_a_masked_autoencoder(self):
        content = _file("hf-dinov2")
        sizes = {key: value for key, value in TINY_SIZES["hf-mae"].items() if key != "mlp_dim"}
        net = build(MaskedAutoEncoderViT, 1e-6, **{**TINY_SIZES["hf-dinov2"], **sizes}, decoder_num_layers=1)
        with self.assertRaisesRegex(RuntimeError, "Missing"):
            load(net, content["state_dict"], None, content["config"])
        allow = ("decoder_*", "mask_tokens", "blocks.*.norm_cross_attn.*")
        load(net, content["state_dict"], None, content["config"], allow=allow)
        x = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embedding(content["x"])], 1)
        self.assertLess(difference({"tokens": net.blocks(x).detach()}, content), 1e-5)

    def test_networks_without_class_token_take_a_file_whose_token_is_left_out(self):
        content = _file("dinov2 in chunks")
        sizes = {**TINY_SIZES["timm"], "patch_size": 4}
        for net in (build(ViT, 1e-6, classification=False, **sizes), build(ViTAutoEnc, 1e-6, **sizes)):
            own = {"allow": ("conv3d_*",)} if isinstance(net, ViTAutoEnc) else {}
            with self.assertRaisesRegex(RuntimeError, "class token"):
                load(net, content["state_dict"], None, content["config"], **own)
            report = load(net, content["state_dict"], None, content["config"], ("cls_token",), **own)
            self.assertIn("left out by ignore=", report.ignored["cls_token"])
            positions = net.patch_embedding.position_embeddings
            torch.testing.assert_close(positions.data, content["state_dict"]["pos_embed"][:, 1:].float())

    def test_what_a_parameter_is_made_of(self):
        content, net = _file("dinov2 in chunks"), _network("dinov2 in chunks")
        report = _load(net, "dinov2 in chunks", content["state_dict"])
        made_of = {line.key: set(line.tensors) for line in report.parameters}
        self.assertEqual(made_of["cls_token"], {"cls_token", "pos_embed"})
        self.assertEqual(made_of["patch_embedding.position_embeddings"], {"pos_embed"})
        for kind in ("weight", "bias"):
            self.assertEqual(
                made_of[f"blocks.1.mlp.linear2.{kind}"], {"blocks.1.1.ls2.gamma", f"blocks.1.1.mlp.fc2.{kind}"}
            )
        self.assertEqual(set(report.ignored), {"mask_token"})
        left = {key for key in report.left if "norm_cross_attn" not in key}
        self.assertEqual(left, {"classification_head.weight", "classification_head.bias"})

    def test_scales_of_a_half_are_folded_in_single_precision(self):
        content = _file("hf-dinov2")
        state = dict(content["state_dict"])
        key = "encoder.layer.0.layer_scale1.lambda1"
        state[key] = torch.full_like(state[key], 1e-4)
        net = _network("hf-dinov2")
        _load(net, "hf-dinov2", state)
        weight = state["encoder.layer.0.attention.output.dense.weight"].float() * state[key].float()[:, None]
        torch.testing.assert_close(net.blocks[0].attn.out_proj.weight.data, weight, rtol=0, atol=0)

    def test_standard_networks_need_no_configuration(self):
        net = build(ViT, 1e-6, hidden_size=192, mlp_dim=768, num_heads=3, num_layers=1, img_size=8)
        state = translate_back(net, net.state_dict(), source_of("timm"))
        other = build(ViT, 1e-6, hidden_size=192, mlp_dim=768, num_heads=3, num_layers=1, img_size=8)
        load(other, state)
        x = torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(other(x)[0], net(x)[0], rtol=0, atol=0)
        wrong = build(ViT, 1e-6, hidden_size=192, mlp_dim=768, num_heads=6, num_layers=1, img_size=8)
        with self.assertRaisesRegex(RuntimeError, "num_heads=3"):
            load(wrong, state)
        load(wrong, state, config={"num_heads": 6})

    def test_positions_that_may_be_read_in_two_ways_are_refused(self):
        state = dict(_file("timm")["state_dict"])
        state["pos_embed"] = torch.randn(1, 9, 32)  # a grid of 3 x 3, or 8 patches and a class token
        net = _network("timm", img_size=(16, 8))
        with self.assertRaisesRegex(RuntimeError, "do not tell whether the class token"):
            _load(net, "timm", state)


class TestRefusals(unittest.TestCase):
    def _refused(self, net: nn.Module, name: str, state: dict, config: dict, words: str) -> None:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaises(RuntimeError) as caught:
            _load(net, name, state, config)
        self.assertIn(words, str(caught.exception))
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    @parameterized.expand(TEST_CASES_NETWORKS)
    def test_another_network(self, name, changes, eps, words):
        content = _file(name)
        self._refused(_network(name, eps, **changes), name, content["state_dict"], content["config"], words)

    @parameterized.expand(TEST_CASES_CONFIGURATIONS)
    def test_another_configuration(self, name, changes, words):
        content = _file(name)
        config = {key: value for key, value in {**content["config"], **changes}.items() if value is not None}
        self._refused(_network(name), name, content["state_dict"], config, words)

    @parameterized.expand([["hf classes"], ["hf-dinov2"], ["hf-mae"]])
    def test_no_configuration(self, name):
        self._refused(_network(name), name, _file(name)["state_dict"], {}, "config.json")

    @parameterized.expand(TEST_CASES_FAMILIES)
    def test_another_family(self, name, key, words):
        content = _file(name)
        self._refused(_network(name), name, {**content["state_dict"], key: torch.zeros(32)}, content["config"], words)

    def test_a_position_of_the_decoders_class_token(self):
        content = _file("hf-mae")
        state = dict(content["state_dict"])
        state["decoder.decoder_pos_embed"] = state["decoder.decoder_pos_embed"] + 1
        self._refused(_network("hf-mae"), "hf-mae", state, content["config"], "not zero")

    def test_no_two_layouts_are_shown_by_one_file(self):
        for name in TINY_SIZES:
            found = [source.name for source, _ in recognize(SOURCES, _file(name)["state_dict"])]
            self.assertEqual(found, [CASES[name].source])
            self.assertEqual(recognize(SOURCES, _network(name).state_dict()), [])

    def test_a_file_in_this_packages_layout_is_no_file_of_timm(self):
        net = _network("timm")
        with self.assertRaisesRegex(RuntimeError, "no key of the file"):
            load(net, net.state_dict(), "timm", {"num_heads": 2})


class TestBack(unittest.TestCase):
    @parameterized.expand([[name] for name in TINY_SIZES if name != "dinov2 in chunks"])
    def test_the_way_back_has_the_keys_of_the_file_and_gives_the_same_features(self, name):
        content, case = _file(name), CASES[name]
        for options in ({}, {"proj_type": "perceptron", "use_combined_linear": False}):
            net = _network(name, **options)
            _load(net, name, content["state_dict"])
            if HEAD == case.allow:
                net.classification_head = nn.Identity()
            given = net.state_dict()
            before = dict(given)
            back = translate_back(net, given, source_of(case.source))
            self.assertTrue(given.keys() == before.keys() and all(given[key] is before[key] for key in before))
            wanted = _renamed(content["state_dict"], OLDER)
            self.assertEqual({key: value.shape for key, value in back.items()}, _shapes(wanted))
            again = _network(name)
            _load(again, name, back)
            self.assertLess(difference(results(again, content), content), 1e-5)

    def test_dinov2_is_written_in_one_row(self):
        net = _network("dinov2 in chunks")
        _load(net, "dinov2 in chunks", _file("dinov2 in chunks")["state_dict"])
        net.classification_head = nn.Identity()
        back = translate_back(net, net.state_dict(), source_of("dinov2"))
        chunked = {
            key.replace("blocks.0.", "blocks.").replace("blocks.1.1.", "blocks.1.")
            for key in _file("dinov2 in chunks")["state_dict"]
        }
        self.assertEqual(set(back), chunked)
        torch.testing.assert_close(back["blocks.0.ls1.gamma"], torch.ones(32))

    @parameterized.expand([["hf classes"], ["hf-dinov2"], ["hf-mae"]])
    def test_the_configuration_is_that_of_the_file(self, name):
        content = _file(name)
        net = _network(name)
        written = transformers_config(net, CASES[name].source)
        same = {
            key: written[key] for key in written if key not in ("architectures", "mask_ratio", "id2label", "label2id")
        }
        self.assertEqual(same, {key: content["config"][key] for key in same})
        with self.assertRaisesRegex(ValueError, "timm"):
            transformers_config(net, "timm")

    @parameterized.expand(TEST_CASES_BACK)
    def test_what_a_package_cannot_compute_is_not_written(self, changes, eps, layout, words):
        net = build(ViT, eps, **{**TINY_SIZES["timm"], "num_layers": 1, **changes})
        with self.assertRaises(RuntimeError) as caught:
            translate_back(net, net.state_dict(), source_of(layout))
        self.assertIn(words, str(caught.exception))

    def test_networks_with_a_decoder_of_their_own(self):
        auto = build(ViTAutoEnc, 1e-6, **TINY_SIZES["timm"])
        masked = _network("hf-mae")
        for net, layout, words in ((auto, "timm", "transposed"), (masked, "timm", "'mae'"), (masked, "hf", "'mae'")):
            with self.assertRaisesRegex(RuntimeError, words):
                translate_back(net, net.state_dict(), source_of(layout))


def _shapes(state_dict: dict) -> dict:
    return {key: value.shape for key, value in state_dict.items()}


class TestFuzz(unittest.TestCase):
    """Renames, drops and duplicates: none gives other features without a word."""

    def test_nothing_is_silently_wrong(self):
        found = list(silently_wrong(150))
        self.assertEqual([what for what, verdict in found if verdict == "WRONG"], [])
        self.assertGreater(sum(verdict == "refused" for _, verdict in found), 100)


if __name__ == "__main__":
    unittest.main()
