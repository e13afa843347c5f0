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
The fork in parts, in the order in which they build on one another: a table.

Every file of ``monai/`` belongs to one part, and so does every contract test that upstream has no file for. A ``*``
takes whatever no longer pattern takes, so that a new file of a package needs no line here.
"""

from __future__ import annotations

from fork.series.features import Feature
from fork.series.pull import Section

__all__ = ["FEATURES"]


def _entry(path: str, before: str, title: str, *classes: str) -> Section:
    """An entry of the documentation: a title, and what sphinx reads from the docstrings."""
    line = "~" * len(title)
    return Section(
        path, before, "\n".join([title, line, *(f".. autoclass:: {each}\n    :members:" for each in classes)])
    )


NETWORKS = "docs/source/networks.rst"
VISUALIZE = "docs/source/visualize.rst"
INFERERS = "docs/source/inferers.rst"

FEATURES: tuple[Feature, ...] = (
    Feature(
        name="rules",
        title="Add rules that rename keys of a state dict, each with its inverse",
        purpose=(
            "An older layout of a network is a table of rules: rename, drop, split, join, flatten. Each rule has "
            "its inverse, so that a table reads both ways."
        ),
        evidence="A state dict comes back with the same keys and bits from every rule and its inverse.",
        paths=("monai/networks/state_dict/hooks.py", "monai/networks/state_dict/rules.py"),
        tests=("tests/networks/state_dict/test_rules.py",),
    ),
    Feature(
        name="untrained-projections",
        title="Tell output projections that were never trained",
        purpose=(
            "GenerativeModels and MONAI 1.4 saved output projections that their networks never used. They are "
            "told by the distribution of their weights."
        ),
        evidence=(
            "Of 1,800 networks whose projections were trained for 1 to 100 steps none was taken for unused; of "
            "21,000 untrained linears none was missed."
        ),
        paths=(
            "monai/networks/state_dict/torch_private.py",
            "monai/networks/state_dict/untrained.py",
            "monai/networks/state_dict/projections.py",
        ),
        tests=(
            "tests/networks/state_dict/test_projections.py",
            "tests/networks/state_dict/test_torch_private.py",
        ),
    ),
    Feature(
        name="layouts",
        title="Add the layouts of older checkpoints as tables of rules",
        purpose="Who wrote a checkpoint is told by its keys; each writer has one table of rules.",
        evidence=(
            "Of 1,935 loads of the release's own and older state dicts 1,270 adapt right, and none differs "
            "silently; the release differs silently in 234."
        ),
        paths=("monai/networks/state_dict/layouts.py",),
        tests=(
            "tests/networks/state_dict/test_layouts.py",
            "tests/networks/state_dict/test_first_layout.py",
        ),
    ),
    Feature(
        name="state-dicts",
        title="Load checkpoints of any age with load_state_dict",
        purpose=(
            "A load gives the outputs of the network that wrote the checkpoint, or raises before a weight "
            "changes. A network's own keys pass untouched."
        ),
        evidence="load_old_state_dict of the release differs silently in 234 of 1,935 loads; these hooks in none.",
        paths=(
            "monai/networks/state_dict/__init__.py",
            "monai/networks/state_dict/*",
        ),
        tests=("tests/networks/state_dict/*",),
    ),
    Feature(
        name="copying",
        title="Copy older checkpoints by the names that the network has today",
        purpose=(
            "copy_model_state and CheckpointLoader translate an older layout first, or refuse: they copied some "
            "weights and left others."
        ),
        evidence="The tests fail on the release: some weights of GenerativeModels are copied, others left, silently.",
        paths=("monai/networks/utils.py", "monai/handlers/checkpoint_loader.py"),
        tests=("tests/networks/state_dict/test_copying*", "tests/handlers/*"),
        upstream_tests=(
            "tests/networks/utils/test_copy_model_state.py",
            "tests/handlers/test_handler_checkpoint_loader.py",
        ),
    ),
    Feature(
        name="kernels",
        title="Run attention in the fused kernel whatever the mask",
        purpose=(
            "One call computes attention: the fused kernel, in parts where torch would build the matrix. A mask "
            "has one meaning on every path."
        ),
        evidence="A training step over 8,192 tokens, 4 heads and dropout peaks at 143 MB instead of 4.3 GB.",
        paths=(
            "monai/networks/blocks/attention/__init__.py",
            "monai/networks/blocks/attention/mask.py",
            "monai/networks/blocks/attention/derivatives.py",
            "monai/networks/blocks/attention/kernels.py",
        ),
        tests=(
            "tests/networks/blocks/test_attention_kernels.py",
            "tests/networks/blocks/test_*flops*",
        ),
    ),
    Feature(
        name="positions",
        title="Compute relative positions inside the fused kernel",
        purpose=(
            "Positions are a module that is handed to a block. Decomposed ones extend queries and keys, in 1-D to 3-D, "
            "for keys on another grid, and under TorchScript."
        ),
        evidence=(
            "SABlock with relative positions over 64 x 64 tokens takes 458 ms instead of 1,594 and 38 MB instead "
            "of 1,652."
        ),
        paths=(
            "monai/networks/blocks/attention/positions.py",
            "monai/networks/blocks/attention/relative_positions.py",
            "monai/networks/blocks/attention_utils.py",
            "monai/networks/blocks/rel_pos_embedding.py",
        ),
        tests=("tests/networks/blocks/test_*position*",),
        upstream_tests=("tests/networks/blocks/test_selfattention.py",),
    ),
    Feature(
        name="attention-core",
        title="Add the one block that computes attention",
        purpose=(
            "Self-attention, cross attention and the spatial blocks share one place that resolves options, "
            "projections and kernels."
        ),
        evidence=(
            "SABlock of 256 channels and 8 heads over 4,096 tokens runs at the speed of its linears and a bare "
            "fused kernel, 3.9 times as fast as the release."
        ),
        paths=("monai/networks/blocks/attention/*",),
        tests=("tests/networks/blocks/test_attention*",),
    ),
    Feature(
        name="self-attention",
        title="Put SABlock on the shared block",
        purpose=(
            "It runs fused by default, takes four shapes of masks, and may leave out its output projection "
            "(use_proj_attn). causal_mask is a registered buffer that is not saved."
        ),
        evidence="270 ms instead of 1,052, and 21 MB instead of 1,086, for 4,096 tokens of 256 channels and 8 heads.",
        paths=("monai/networks/blocks/selfattention.py",),
        tests=("tests/networks/blocks/test_selfattention*",),
        upstream_tests=("tests/networks/blocks/test_selfattention.py",),
    ),
    Feature(
        name="cross-attention",
        title="Put CrossAttentionBlock on the shared block",
        purpose=(
            "It takes masks and relative positions for a context on another grid, and may leave out its output "
            "projection (use_proj_attn)."
        ),
        evidence="The release ignores save_attn of cross attention and takes no mask; here both work, in one kernel.",
        paths=("monai/networks/blocks/attention/config.py", "monai/networks/blocks/crossattention.py"),
        tests=("tests/networks/blocks/test_crossattention*",),
        upstream_tests=("tests/networks/blocks/test_crossattention.py",),
        sections=(_entry(NETWORKS, "`UNETR Block`", "`Cross-Attention Block`", "CrossAttentionBlock"),),
    ),
    Feature(
        name="volume-steps",
        title="Say how far layers look, and which steps a network takes",
        purpose=(
            "A volume that is computed in parts is exact where every layer gets the neighbors that it reaches, and "
            "norms have the statistics of the whole. Layers say the first, modules of several layers say their steps."
        ),
        evidence="Parts of 22 layers, cut anywhere, are those of the whole to 1e-12.",
        paths=(
            "monai/networks/blocks/reach.py",
            "monai/networks/blocks/volume_statistics.py",
            "monai/networks/blocks/volume_steps.py",
        ),
        tests=("tests/networks/blocks/test_reach.py", "tests/networks/blocks/test_volume_*"),
    ),
    Feature(
        name="wider-blocks",
        title="Put spatial attention and transformer blocks on the shared block",
        purpose=(
            "SpatialAttentionBlock scripts and takes an empty batch; TransformerBlock hands save_attn to its "
            "cross attention and has no norm without a gradient."
        ),
        evidence="No parameter is left without a gradient, for which DistributedDataParallel stops at its second step.",
        paths=(
            "monai/networks/blocks/spatialattention.py",
            "monai/networks/blocks/transformerblock.py",
        ),
        tests=("tests/networks/blocks/*",),
        upstream_tests=("tests/networks/blocks/test_spatialattention.py",),
        sections=(
            _entry(NETWORKS, "`Residual Squeeze-and-Excitation`", "`Spatial Attention Block`", "SpatialAttentionBlock"),
        ),
    ),
    Feature(
        name="patch-embedding",
        title="Refuse images of another size than a patch embedding was built for",
        purpose="The number of patches has to be that of the position embedding; both kinds of projection script.",
        evidence="The release repeats an image of a single patch at every position, silently.",
        paths=("monai/networks/blocks/patchembedding.py", "monai/networks/blocks/token_resampling.py"),
        tests=("tests/networks/blocks/test_patch*",),
        upstream_tests=("tests/networks/blocks/test_patchembedding.py",),
    ),
    Feature(
        name="vit",
        title="Let ViT and ViTAutoEnc drop output projections, and script",
        purpose=(
            "Images of another size than the network was built for are refused, not broadcast. Older checkpoints "
            "load strictly."
        ),
        evidence="ViT with 1,728 tokens and 6 layers takes 824 ms instead of 2,167, and 40 MB instead of 329.",
        paths=("monai/networks/nets/vit.py", "monai/networks/nets/vitautoenc.py"),
        tests=("tests/networks/nets/test_vit*",),
        upstream_tests=("tests/networks/nets/test_vit.py",),
    ),
    Feature(
        name="vit-family",
        title="Let UNETR and MaskedAutoEncoderViT drop output projections",
        purpose="Both take the options of ViT. MaskedAutoEncoderViT works under autocast.",
        evidence="UNETR of 2-D slices runs 1.08 times as fast as the release.",
        paths=(
            "monai/networks/nets/unetr.py",
            "monai/networks/nets/masked_autoencoder_vit.py",
        ),
        tests=(
            "tests/networks/nets/test_unetr*",
            "tests/networks/nets/test_masked*",
        ),
        upstream_tests=("tests/networks/nets/test_unetr.py",),
    ),
    Feature(
        name="autoencoder-parts",
        title="Add what the autoencoders share",
        purpose="Residual block, layout of older state dicts and latent sampling of all autoencoders in one module.",
        evidence="The parts of five autoencoders, that were written five times, once.",
        paths=("monai/networks/blocks/autoencoder.py",),
        tests=("tests/networks/blocks/test_autoencoder*",),
    ),
    Feature(
        name="autoencoderkl",
        title="Script AutoencoderKL, and let it drop output projections",
        purpose="Every way out of Python works; state dicts of GenerativeModels load strictly.",
        evidence="AutoencoderKL 256^2 with attention at 64^2 takes 369 ms instead of 818, and 42 MB instead of 140.",
        paths=("monai/networks/nets/autoencoderkl.py",),
        tests=("tests/networks/nets/test_autoencoderkl*",),
        upstream_tests=("tests/networks/nets/test_autoencoderkl.py",),
        sections=(_entry(NETWORKS, "`ViT`", "`AutoencoderKL`", "AutoencoderKL"),),
    ),
    Feature(
        name="spade-autoencoderkl",
        title="Script SPADEAutoencoderKL",
        purpose="The decoder hands the segmentation on without Sequential; output projections may be left out.",
        evidence="Scripts in two of two sets of options, of which the release scripts none.",
        paths=("monai/networks/nets/spade_autoencoderkl.py",),
        tests=("tests/networks/nets/test_spade_autoencoder*",),
        upstream_tests=("tests/networks/nets/test_spade_autoencoderkl.py",),
    ),
    Feature(
        name="vqvae",
        title="Script VQVAE, and run it in half, bfloat16 and double",
        purpose=(
            "The quantizer computes its distances in float32 and returns the type it was given; nothing of "
            "torch.distributed is scripted."
        ),
        evidence="Every type works, of which the release runs float32 alone.",
        paths=(
            "monai/networks/layers/vector_quantizer.py",
            "monai/networks/nets/vqvae.py",
        ),
        tests=(
            "tests/networks/nets/test_vqvae*",
            "tests/networks/layers/*",
        ),
        upstream_tests=("tests/networks/nets/test_vqvae.py",),
        sections=(_entry(NETWORKS, "`Restormer`", "`VQVAE`", "VQVAE"),),
    ),
    Feature(
        name="diffusion-layers",
        title="Add the layers that diffusion networks share",
        purpose="Time embedding, samplers, residual block and transformers, in one place instead of four.",
        evidence="One spatial axis, half types on the CPU and empty batches work, which raise in the release.",
        paths=("monai/networks/blocks/diffusion/*",),
        tests=("tests/networks/blocks/test_diffusion*",),
    ),
    Feature(
        name="diffusion-stages",
        title="Add the stages of diffusion networks",
        purpose=(
            "Downward path, middle and upward path, built from an object of options a kind of block instead of 20 "
            "arguments handed through by hand."
        ),
        evidence="The release repeats its attention arguments in 20 places over 2,067 lines.",
        paths=(
            "monai/networks/blocks/diffusion/parts.py",
            "monai/networks/blocks/diffusion/stages.py",
            "monai/networks/blocks/diffusion/up_stages.py",
        ),
        tests=(),
    ),
    Feature(
        name="diffusion-base",
        title="Add what the diffusion networks share",
        purpose=(
            "One base gives U-Nets and ControlNets their stages, time and class embedding, context and the loading of "
            "their first layout."
        ),
        evidence="Six networks stand on it.",
        paths=("monai/networks/blocks/diffusion/network.py", "monai/networks/blocks/diffusion/first_layout.py"),
    ),
    Feature(
        name="construction",
        title="Remember what a network is built from",
        purpose=(
            "The arguments of a network's constructor are kept in the language of bundles, by __new__, so that it can "
            "be saved with its configuration. Signatures, __init__ and state dicts stay as they are."
        ),
        evidence="A network of the package takes 0.01 to 0.5 ms longer to be built, less than 1 %.",
        paths=("monai/networks/construction.py",),
        tests=("tests/networks/test_construction.py",),
    ),
    Feature(
        name="diffusion-networks",
        title="Script DiffusionModelUNet, and mask its context",
        purpose=(
            "DiffusionModelUNet and DiffusionModelEncoder are built from the shared stages, take context_mask and "
            "use_proj_attn, and load every older state dict. DiffusionModelEncoder is exported."
        ),
        evidence=(
            "DiffusionModelUNet 32^3 with attention at 16^3 takes 672 ms instead of 1,539, and 59 MB instead of 306."
        ),
        paths=(
            "monai/networks/nets/__init__.py",
            "monai/networks/nets/diffusion_model_unet.py",
        ),
        tests=("tests/networks/nets/*",),
        upstream_tests=("tests/networks/nets/test_diffusion_model_unet.py",),
        sections=(_entry(NETWORKS, "`ViTAutoEnc`", "`DiffusionModelUNet`", "DiffusionModelUNet"),),
    ),
    Feature(
        name="controlnet",
        title="Build ControlNet from the shared parts",
        purpose="It scripts, takes context_mask and use_proj_attn, and an empty batch.",
        evidence="Scripts in four of four sets of options, of which the release scripts none.",
        paths=("monai/networks/nets/controlnet.py",),
        tests=("tests/networks/nets/test_controlnet*",),
        upstream_tests=("tests/networks/nets/test_controlnet.py",),
        sections=(_entry(NETWORKS, "`MaskedAutoEncoderViT`", "`ControlNet`", "ControlNet"),),
    ),
    Feature(
        name="spade-diffusion",
        title="Build SPADEDiffusionModelUNet from the shared parts",
        purpose=(
            "It scripts, takes context_mask and use_proj_attn, and its upward path obeys include_fc and "
            "use_combined_linear."
        ),
        evidence="Scripts in three of three sets of options, of which the release scripts none.",
        paths=("monai/networks/nets/spade_diffusion_model_unet.py",),
        tests=("tests/networks/nets/test_spade_diffusion*",),
        upstream_tests=("tests/networks/nets/test_spade_diffusion_model_unet.py",),
    ),
    Feature(
        name="maisi-autoencoder",
        title="Put MAISI's autoencoder on the shared parts",
        purpose="It scripts, exports and compiles, splits and float16 norms included.",
        evidence="A training step of 32^3 voxels writes 32 million numbers instead of 248.",
        paths=("monai/apps/generation/maisi/networks/*",),
        tests=("tests/apps/test_autoencoderkl_maisi*",),
        upstream_tests=("tests/apps/maisi/networks/test_autoencoderkl_maisi.py",),
    ),
    Feature(
        name="maisi-diffusion",
        title="Put MAISI's U-Net and ControlNet on the shared parts",
        purpose="Both script; flash attention runs on the CPU; residuals of a ControlNet are not added in place.",
        evidence="A U-Net can be trained beside a ControlNet, which raises in the release.",
        paths=(
            "monai/apps/generation/maisi/networks/diffusion_model_unet_maisi.py",
            "monai/apps/generation/maisi/networks/controlnet_maisi.py",
        ),
        tests=("tests/apps/*",),
        upstream_tests=("tests/apps/maisi/networks/test_diffusion_model_unet_maisi.py",),
    ),
    Feature(
        name="cache",
        title="Decode with cached keys and values",
        purpose="DecoderOnlyTransformer.cached() gives a decoder that costs one token a step.",
        evidence="511 tokens are sampled in 0.35 s instead of 6.9 s.",
        paths=(
            "monai/networks/blocks/attention/cache.py",
            "monai/networks/nets/transformer.py",
        ),
        tests=(
            "tests/networks/blocks/test_attention_cache*",
            "tests/networks/nets/test_transformer*",
            "tests/networks/nets/test_cached*",
        ),
        upstream_tests=("tests/networks/nets/test_transformer.py",),
        sections=(_entry(NETWORKS, "`FullyConnectedNet`", "`DecoderOnlyTransformer`", "DecoderOnlyTransformer"),),
    ),
    Feature(
        name="ways-out",
        title="Test every way in which attention networks leave Python",
        purpose="Tests alone: scripts, traces, exports, ONNX and compiled graphs of every network, and its options.",
        evidence="In the release no diffusion network, autoencoder or ControlNet scripts; here all of them do.",
        paths=(),
        tests=("tests/networks/nets/test_*_export.py", "tests/networks/nets/test_context_mask.py"),
    ),
    Feature(
        name="across-networks",
        title="Test what the attention networks have in common",
        purpose="Tests alone: defects of the release, DistributedDataParallel, the configuration of their attention.",
        evidence="Every test of a defect fails on the release.",
        paths=(),
        tests=(
            "tests/networks/nets/test_*_defects.py",
            "tests/networks/blocks/test_attention_defects.py",
            "tests/networks/blocks/test_attention_config.py",
            "tests/networks/test_ddp.py",
        ),
    ),
    Feature(
        name="inferer",
        title="Sample VQVAETransformerInferer with the cache",
        purpose=(
            "It calls its base constructor, so that repr and state_dict work, and sample(top_k=1) does not draw "
            "from nothing."
        ),
        evidence="The time of a sample grows with the tokens instead of their cube.",
        paths=("monai/inferers/*",),
        tests=("tests/inferers/*",),
        upstream_tests=("tests/networks/nets/test_vqvaetransformer_inferer.py",),
        sections=(_entry(INFERERS, "Splitters", "`VQVAETransformerInferer`", "VQVAETransformerInferer"),),
    ),
    Feature(
        name="pickles",
        title="Decode pickles without running their code",
        purpose=(
            "Pickles are decoded by a reader that calls nothing they name, and every size is checked before "
            "memory is spent on it."
        ),
        evidence=(
            "Hundreds of hostile files are refused with a message, none of which runs code or takes memory that "
            "the file does not hold."
        ),
        paths=(
            "monai/networks/checkpoints/untrusted.py",
            "monai/networks/checkpoints/pickles.py",
            "monai/networks/checkpoints/stand_ins.py",
        ),
    ),
    Feature(
        name="torch-files",
        title="Read files of torch.save, old and new, mapped into memory",
        purpose="Tensors are found without torch.load, and read when they are looked at.",
        evidence="A file may be larger than the memory.",
        paths=(
            "monai/networks/checkpoints/file_values.py",
            "monai/networks/checkpoints/tensors.py",
            "monai/networks/checkpoints/torch_files.py",
        ),
    ),
    Feature(
        name="other-files",
        title="Read safetensors and folders of distributed checkpoints",
        purpose="With torch alone, tensor by tensor, mapped into memory.",
        evidence="A file may be larger than the memory.",
        paths=(
            "monai/networks/checkpoints/safetensors.py",
            "monai/networks/checkpoints/distributed.py",
        ),
    ),
    Feature(
        name="unwrap",
        title="Find the network in what trainers and wrappers save",
        purpose=(
            "State dicts come out of the wrappers of DataParallel, torch.compile, Lightning, Ignite and MAISI, "
            "whatever their prefix."
        ),
        evidence="Five wrappers, alone and in one another, give the keys of the network.",
        paths=("monai/networks/checkpoints/unwrap.py", "monai/networks/checkpoints/choose.py"),
    ),
    Feature(
        name="whole-files",
        title="Write a checkpoint whole, or not at all",
        purpose="A file takes its name when it is on the disk; two processes do not overwrite each other.",
        evidence="Interrupted at 40 random moments, no half-written file is left.",
        paths=("monai/utils/whole_files.py", "monai/networks/checkpoints/write.py"),
    ),
    Feature(
        name="weights",
        title="Keep an account of weights on their way into a network",
        purpose=(
            "A state dict that remembers where its tensors come from, what a table of rules for a layout of another "
            "package is, and a report with a line for every parameter and every tensor."
        ),
        evidence="Each test accounts for every parameter of the network and every tensor of the file.",
        paths=("monai/networks/weights/*",),
        tests=("tests/networks/weights/*",),
    ),
    Feature(
        name="vision-transformer-rules",
        title="Rules for the weights of other packages' vision transformers",
        purpose="LayerScale, a class token's position and a patch projection become what the networks here have.",
        evidence="Each rule has its inverse, which the packages load to the same features.",
        paths=("monai/networks/weights/vit_rules.py",),
    ),
    Feature(
        name="vision-transformer-weights",
        title="Load vision transformers of timm, DINOv2, MAE and transformers",
        purpose=(
            "Tables of rules for six layouts, there and back; what a network would compute otherwise is refused with "
            "the argument to build it with."
        ),
        evidence="The packages' own features, of 107 loads and 19 ways back, differ by 7e-7 of the largest at most.",
        paths=("monai/networks/weights/sources_vit.py", "monai/networks/weights/vit_c*.py"),
        tests=("tests/networks/weights/test_sources_vit.py",),
    ),
    Feature(
        name="diffusion-weights",
        title="Load the diffusion U-Nets and autoencoders of diffusers",
        purpose=(
            "Tables of rules for AutoencoderKL, UNet2DConditionModel and UNet2DModel, there and back, with their "
            "configuration; what a network would compute otherwise is refused."
        ),
        evidence="Outputs of 23 networks of diffusers 0.42.1 and MONAI 1.3.2, there and back, are equal to 1.4e-6.",
        paths=("monai/networks/weights/sources_diffusion.py", "monai/networks/weights/diffusers_*"),
        tests=("tests/networks/weights/test_sources_diffusion.py",),
    ),
    Feature(
        name="swin-weights",
        title="Load MONAI's own weights that were trained without labels",
        purpose="Tables of rules for encoders of SwinUNETR, ViT and UNETR, as their pretraining saved them.",
        evidence="Each test accounts for every parameter of the network and every tensor of the file.",
        paths=("monai/networks/weights/sources_swin.py",),
        tests=("tests/networks/weights/test_sources_swin.py",),
    ),
    Feature(
        name="weights-tensors",
        title="Bring weights to another size",
        purpose="Position and patch embeddings of other grids, other channels and classes, and 2-D kernels in 3-D.",
        evidence="Equal to timm's resampling to 1e-6, slice by slice in 3-D.",
        paths=tuple(f"monai/networks/weights/{name}.py" for name in ("channels", "inflate", "patches", "positions")),
        tests=("tests/networks/weights/test_sizes.py",),
    ),
    Feature(
        name="weights-sizes",
        title="Fit weights of other sizes to a network",
        purpose="A state dict of other sizes is fitted as far as it is asked for, and what was done is written down.",
        evidence=(
            "A volume of equal slices gives the features of the 2-D network to 1e-5: ViT, UNETR, AutoencoderKL, "
            "DiffusionModelUNet."
        ),
        paths=(
            "monai/networks/weights/fit.py",
            "monai/networks/weights/places.py",
            "monai/networks/weights/size_*",
        ),
        tests=("tests/networks/weights/test_sizes_fit.py",),
    ),
    Feature(
        name="weights-load",
        title="Choose how weights of another layout and size are loaded",
        purpose=(
            "Who wrote a state dict is told by its keys; options say what may stay, be left out or be fitted; all else "
            "is refused before a weight changes."
        ),
        evidence="Each test accounts for every parameter of the network and every tensor of the file.",
        paths=("monai/networks/weights/load.py", "monai/networks/weights/sources.py"),
        tests=("tests/networks/weights/test_load.py",),
    ),
    Feature(
        name="checkpoint-loading",
        title="Read a checkpoint of any age, and load it into a network",
        purpose="The parts behind read_checkpoint and load_checkpoint: from a file to the state dict of a network.",
        evidence="13 files of five writers load right or are refused with the question to answer.",
        paths=(
            "monai/networks/checkpoints/read.py",
            "monai/networks/checkpoints/load.py",
            "monai/networks/checkpoints/load_checks.py",
        ),
    ),
    Feature(
        name="saved-folders",
        title="Read and write folders of a network with its configuration",
        purpose="What a configuration may name and build, and what a folder of a saved network holds.",
        evidence="57 networks come back bit for bit from their folders.",
        paths=(
            "monai/networks/checkpoints/network_def.py",
            "monai/networks/checkpoints/rebuilt.py",
            "monai/networks/checkpoints/saved_folder.py",
        ),
    ),
    Feature(
        name="checkpoint-files",
        title="Offer checkpoints of any age, and networks in folders",
        purpose=(
            "read_checkpoint and load_checkpoint lead from a file of any age to the state dict of a network; "
            "save_pretrained and from_pretrained keep a network with its configuration."
        ),
        evidence=(
            "13 files of five writers load right or are refused with the question to answer. 57 networks come back bit "
            "for bit from their folders."
        ),
        paths=(
            "monai/networks/checkpoints/*",
            "monai/networks/__init__.py",
        ),
        tests=("tests/networks/checkpoints/*",),
        sections=(
            Section(
                NETWORKS,
                "Utilities",
                "Checkpoints of any age\n----------------------\n"
                ".. autofunction:: monai.networks.read_checkpoint\n.. autofunction:: monai.networks.load_checkpoint\n"
                ".. autofunction:: monai.networks.save_pretrained\n.. autofunction:: monai.networks.from_pretrained",
            ),
        ),
    ),
    Feature(
        name="commands",
        title="Share what command lines have in common",
        purpose="How a command runs, what it prints and how its process ends, in one module.",
        evidence="Each command ends with one line of an error and its exit status.",
        paths=("monai/apps/commands.py",),
        tests=("tests/apps/test_commands.py",),
    ),
    Feature(
        name="tests-of-files",
        title="Test the readers of checkpoints on files of every writer",
        purpose="Tests alone: pickles, safetensors, wrappers, shards.",
        evidence="Each file gives the tensors that were saved.",
        paths=(),
        tests=(
            "tests/networks/checkpoints/test_pickles*",
            "tests/networks/checkpoints/test_safetensors*",
            "tests/networks/checkpoints/test_unwrap*",
            "tests/networks/state_dict/test_sharded*",
        ),
    ),
    Feature(
        name="network-config",
        title="Build a network from a bundle's configuration",
        purpose="The configuration of a bundle names a network; seeded inputs of the right shape are made for it.",
        evidence="Every network of the fork has inputs to be verified with.",
        paths=(
            "monai/apps/checkpoints/__init__.py",
            "monai/apps/checkpoints/network_config.py",
            "monai/apps/checkpoints/sample_inputs.py",
        ),
        tests=("tests/apps/checkpoints/test_network_config*",),
    ),
    Feature(
        name="conversion",
        title="Say what a checkpoint holds, and convert it",
        purpose=(
            "A file is recognized, described, and written in the layout of this MONAI or of 1.6: the table of its "
            "layout, read backwards."
        ),
        evidence="A conversion is written whole or not at all.",
        paths=(
            "monai/apps/checkpoints/inspection.py",
            "monai/apps/checkpoints/progress.py",
            "monai/apps/checkpoints/conversion.py",
            "monai/networks/state_dict/release.py",
        ),
        tests=(
            "tests/apps/checkpoints/test_inspection*",
            "tests/apps/checkpoints/test_conversion*",
        ),
    ),
    Feature(
        name="verification",
        title="Run a loaded checkpoint against the package that wrote it",
        purpose="The older package runs in a process of its own, with torch alone.",
        evidence="Of each writer of old checkpoints a network is rebuilt, and its outputs are compared with ours.",
        paths=(
            "monai/apps/checkpoints/verification.py",
            "monai/apps/checkpoints/reference_*",
        ),
        tests=("tests/apps/checkpoints/test_verification*",),
    ),
    Feature(
        name="checkpoint-commands",
        title="Inspect, convert and verify checkpoints from the command line",
        purpose="python -m monai.networks.checkpoints has three commands; --help costs no more than import monai.",
        evidence="Three commands, each with a line of errors and an exit status.",
        paths=(
            "monai/networks/checkpoints/__main__.py",
            "monai/apps/checkpoints/*",
        ),
        tests=("tests/apps/checkpoints/*",),
    ),
    Feature(
        name="tests-of-folders",
        title="Test what is written: checkpoints, and networks in folders",
        purpose="Tests alone: folders of every network, files that are interrupted, and networks of other packages.",
        evidence="A network that comes back has the outputs that it had, bit for bit.",
        paths=(),
        tests=(
            "tests/networks/checkpoints/test_pretrained*",
            "tests/networks/checkpoints/test_write*",
            "tests/networks/weights/test_other_packages.py",
        ),
    ),
    Feature(
        name="hostile-files",
        title="Test the readers of checkpoints with files that mean harm",
        purpose="Tests alone: files that are cut off, claim what they do not hold, or ask for code to be run.",
        evidence="Each is refused with a message, in a process of little memory.",
        paths=(),
        tests=(
            "tests/networks/checkpoints/hostile/*",
            "tests/networks/checkpoints/test_hostile*",
        ),
    ),
    Feature(
        name="bad-files",
        title="Test the readers of checkpoints with damaged and huge files",
        purpose="Tests alone: files with bits changed or cut off, and those that are larger than the memory.",
        evidence="Each is refused with a message; a large one is read without being in memory.",
        paths=(),
        tests=(
            "tests/networks/checkpoints/test_bad_files*",
            "tests/networks/checkpoints/test_large_files*",
            "tests/networks/checkpoints/test_fuzz*",
        ),
    ),
    Feature(
        name="slabs",
        title="Cut a volume into slabs, one on each of several devices",
        purpose="Which slices each rank holds and needs, what ranks tell one another, and that they run the same.",
        evidence="Halos, sums and joins have the gradients of one process on 2 and 4 ranks.",
        paths=(
            "monai/networks/volumes/slabs.py",
            "monai/networks/volumes/exchange.py",
            "monai/networks/volumes/agreement.py",
            "monai/networks/volumes/split_chunks.py",
        ),
    ),
    Feature(
        name="split-layers",
        title="Let layers and norms work on slabs of a volume",
        purpose="Layers get the slices that they reach, and norms the statistics of all slabs.",
        evidence="Outputs and gradients of one process to 1e-12 in float64 on 2 and 4 gloo processes.",
        paths=(
            "monai/networks/volumes/volume_split.py",
            "monai/networks/volumes/split_layers.py",
            "monai/networks/volumes/split_norms.py",
        ),
    ),
    Feature(
        name="split-rules",
        title="Know which layers are exact on slabs, tokens included",
        purpose="What each layer and its tokens need on slabs; the unknown, and what was put in later, is refused.",
        evidence="A layer that is not known to be exact on slabs is refused before anything is changed.",
        paths=(
            "monai/networks/volumes/split_changes.py",
            "monai/networks/volumes/split_rules.py",
            "monai/networks/volumes/split_tokens.py",
        ),
    ),
    Feature(
        name="split-volume",
        title="Split one volume over many devices, exactly",
        purpose=(
            "split_volume(net, mesh) lets autoencoders, diffusion U-Nets, ControlNets, ViT and UNETR work on slabs of "
            "a volume, forward and backward."
        ),
        evidence="Outputs and gradients of one process to 1e-12 in float64 on 2 and 4 gloo processes.",
        paths=("monai/networks/volumes/split.py",),
    ),
    Feature(
        name="streamed-sizes",
        title="Say how large parts of a volume are, and where they rest",
        purpose="How many bytes each part of a volume takes, where volumes rest, and attention to all of their tokens.",
        evidence="Bytes of live tensors, counted by a dispatch mode, stay within the plan.",
        paths=(
            "monai/networks/volumes/stream_sizes.py",
            "monai/networks/volumes/stream_storage.py",
            "monai/networks/volumes/stream_attention.py",
        ),
    ),
    Feature(
        name="streamed-parts",
        title="Plan volumes in parts within the memory of a device",
        purpose="Which part needs which, on one rank or several, and how large the parts may be.",
        evidence="Bytes of live tensors, counted by a dispatch mode, stay within the plan.",
        paths=(
            "monai/networks/volumes/stream_fetch.py",
            "monai/networks/volumes/stream_plan.py",
            "monai/networks/volumes/stream_ranks.py",
        ),
    ),
    Feature(
        name="streamed-steps",
        title="Compute the steps of a network part by part",
        purpose="Each step reads its part of the volumes at rest, with what its layers look at around it.",
        evidence="Equal to the whole in float64 to 1e-12, in parts of one position as in one piece.",
        paths=("monai/networks/volumes/stream_run.py", "monai/networks/volumes/stream_sample.py"),
    ),
    Feature(
        name="streamed-autoencoder",
        title="Decode volumes that do not fit into the memory of a device, exactly",
        purpose=(
            "StreamedAutoencoder computes an autoencoder part by part, with norms of the whole volume, in place of "
            "overlapping windows, which compute every voxel several times, each with statistics of its own."
        ),
        evidence="Equal to the whole in float64 to 1e-12, in parts of one position as in one piece.",
        paths=("monai/networks/volumes/__init__.py", "monai/networks/volumes/streamed.py"),
        tests=("tests/networks/volumes/*",),
        sections=(_entry(NETWORKS, "Utilities", "Volumes in parts", "monai.networks.volumes.StreamedAutoencoder"),),
    ),
    Feature(
        name="tests-of-split-volumes",
        title="Test networks that are split over many devices",
        purpose="Tests alone: every kind of network on 2 and 4 processes, and what is refused.",
        evidence="Outputs, gradients and trained weights are those of one process.",
        paths=(),
        tests=("tests/networks/volumes/test_split*", "tests/networks/test_data_parallel.py"),
    ),
    Feature(
        name="attention-capture",
        title="Record what attends to what beside the fused kernel",
        purpose="capture_attention computes the softmax rows of chosen queries alone.",
        evidence="A voxel's attention among 48^3 tokens needs 170 MB, where the matrix would be 49 GB a head.",
        paths=("monai/visualize/attention/*",),
        tests=("tests/visualize/*",),
    ),
    Feature(
        name="attention-relevance",
        title="Follow attention through the layers",
        purpose=(
            "Rollout (Abnar and Zuidema 2020) and relevance (Chefer et al. 2021), the second weighted by a "
            "result's gradient."
        ),
        evidence="Equal to the formulas on explicit matrices.",
        paths=("monai/visualize/attention/relevance.py",),
        tests=("tests/visualize/test_attention_relevance*",),
    ),
    Feature(
        name="attention-overlay",
        title="Lay attention over the voxels of the image",
        purpose=(
            "From the tokens that a query attends to, to the voxels of the image, and planes of it, turned as "
            "anatomy is drawn."
        ),
        evidence="The voxels of a patch get its attention, whatever the crop.",
        paths=("monai/visualize/attention/on_image.py",),
        tests=("tests/visualize/test_attention_overlay*",),
    ),
    Feature(
        name="attention-pictures",
        title="Save attention as pictures, arrays and volumes",
        purpose=(
            "Attention of a voxel drawn over planes of the scan, or saved as .npy, .npz and NIfTI with the affine "
            "of the image."
        ),
        evidence="A volume that is read again has the affine of its image.",
        paths=(
            "monai/visualize/attention/__init__.py",
            "monai/visualize/__init__.py",
            "monai/visualize/attention/figure.py",
            "monai/visualize/attention/saving.py",
        ),
        tests=("tests/visualize/test_attention_saving*", "tests/visualize/test_attention_figure*"),
        sections=(
            Section(
                VISUALIZE, "Utilities", "Attention\n---------\n\n.. automodule:: monai.visualize.attention\n  :members:"
            ),
        ),
    ),
    Feature(
        name="attention-scan",
        title="Bring a scan into a network as it was trained, and voxels back",
        purpose="Orientation, spacing, crop and intensities on the way in; the voxels of the file on the way back.",
        evidence="Every voxel that a report names is that of the file, whatever was cut or turned.",
        paths=("monai/apps/attention_maps/__init__.py", "monai/apps/attention_maps/scan.py"),
    ),
    Feature(
        name="attention-command",
        title="Draw attention maps from the command line",
        purpose="python -m monai.visualize.attention takes a configuration, a checkpoint and a scan.",
        evidence="One command from a scan to a picture.",
        paths=(
            "monai/visualize/attention/__main__.py",
            "monai/apps/attention_maps/*",
        ),
        tests=(
            "tests/apps/attention_maps/*",
            "tests/*",
        ),
    ),
)
