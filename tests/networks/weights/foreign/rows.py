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

"""Which networks other packages build, and which of ours they are. Imports none of the packages."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEPT", "PACKAGES", "ROWS", "STAGES", "TOLERANCE", "Row"]

TOLERANCE = 1e-5  # of the largest output
STAGES = slice(2, None)  # of a Swin transformer: the outputs that are small, and come after a merging of patches
PACKAGES = ("diffusers==0.42.1", "monai==1.3.2", "monai==1.5.2")


@dataclass(frozen=True)
class Row:
    """
    A network of another package, and ours.

    Args:
        name: of its variant.
        package: one of ``PACKAGES``.
        theirs: name of its class.
        config: arguments of its class.
        network: name of our class.
        arguments: arguments of our class.
        source: name of the layout.
        layout: how the keys are wrapped when they are saved, where that is not as the class has them.
    """

    name: str
    package: str
    theirs: str
    config: dict[str, Any]
    network: str
    arguments: dict[str, Any]
    source: str = "diffusers"
    layout: str = ""
    allow: tuple[str, ...] = field(default=())

    @property
    def full_name(self) -> str:
        return ", ".join(part for part in (self.package, self.theirs, self.layout, self.name) if part)

    @property
    def slug(self) -> str:
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.full_name)

    @property
    def seed(self) -> int:
        return zlib.crc32(self.full_name.encode())


SMALL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
OURS = {"spatial_dims": 2, "channels": [8, 16], "num_res_blocks": 1, "norm_num_groups": 4}


def _autoencoder(name: str, attends: tuple[bool, bool] = (False, False), **more: Any) -> Row:
    theirs = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, **SMALL, **more}
    theirs["down_block_types"] = [f"{'Attn' * on}DownEncoderBlock2D" for on in attends]
    theirs["up_block_types"] = [f"{'Attn' * on}UpDecoderBlock2D" for on in reversed(attends)]
    ours = {"in_channels": 3, "out_channels": 3, "latent_channels": theirs["latent_channels"], **OURS}
    ours.update(channels=theirs["block_out_channels"], num_res_blocks=theirs["layers_per_block"])
    ours.update(attention_levels=list(attends), as_in_latent_diffusion=True)
    ours["norm_num_groups"] = theirs["norm_num_groups"]
    return Row(name, PACKAGES[0], "AutoencoderKL", theirs, "AutoencoderKL", ours)


def _unet(name: str, heads: Any, head_channels: Any, attends: list[bool], ours: dict[str, Any], **more: Any) -> Row:
    conditioned = "cross_attention_dim" in more
    kind = "CrossAttn" if conditioned else "Attn"
    theirs = {"in_channels": 4, "out_channels": 4, **SMALL, "attention_head_dim": heads, **more}
    theirs["down_block_types"] = [f"{kind * on}DownBlock2D" for on in attends]
    theirs["up_block_types"] = [f"{kind * on}UpBlock2D" for on in reversed(attends)]
    own = {"in_channels": 4, "out_channels": 4, **OURS, "attention_levels": attends, "norm_eps": 1e-5, **ours}
    own.update(num_head_channels=head_channels, channels=theirs["block_out_channels"])
    own["num_res_blocks"] = theirs["layers_per_block"]
    if conditioned:
        own.update(with_conditioning=True, cross_attention_dim=more["cross_attention_dim"], transformer_norm_eps=1e-6)
    cls = "UNet2DConditionModel" if conditioned else "UNet2DModel"
    return Row(name, PACKAGES[0], cls, theirs, "DiffusionModelUNet", own)


def _swin(package: str, layout: str, source: str, version: int = 1, channels: int = 1) -> Row:
    """A transformer with windows of 2 and one head: tables of relative positions would make large files."""
    ours = {"in_channels": channels, "out_channels": 2, "feature_size": 12, "window_size": 2, "use_v2": version == 2}
    ours.update(depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], mlp_ratio=1.0)
    theirs = {"in_chans": channels, "embed_dim": 12, "window_size": [2, 2, 2], "patch_size": [2, 2, 2]}
    theirs.update({name: ours[name] for name in ("depths", "num_heads", "mlp_ratio", "use_v2")})
    allow = () if layout == "alone" else ("encoder*", "decoder*", "out.*")
    if allow:
        ours["downsample"] = "EarlyPatchMerging" if source == "swin" else "merging"
    return Row(f"v{version}", package, "SwinTransformer", theirs, "SwinUNETR", ours, source, layout, allow)


SD1 = {"cross_attention_dim": 6}
ROWS = [
    _autoencoder("as Stable Diffusion", layers_per_block=2),
    _autoencoder("one block"),
    _autoencoder("three levels", (False, False, False), block_out_channels=[8, 16, 16], layers_per_block=2),
    _autoencoder("attention in a level", (False, True)),
    _autoencoder("without quantization", use_quant_conv=False, use_post_quant_conv=False, latent_channels=6),
    _autoencoder("two groups", norm_num_groups=2),
    _unet("as Stable Diffusion 1", 2, [4, 8], [True, False], {}, **SD1),
    _unet("as Stable Diffusion 2", [2, 4], [4, 4], [True, True], {}, use_linear_projection=True, **SD1),
    _unet("two layers", 4, [2, 4], [False, True], {"transformer_num_layers": 2}, transformer_layers_per_block=2, **SD1),
    _unet("combined", 2, [4, 8], [True, True], {"use_combined_linear": True}, layers_per_block=2, **SD1),
    _unet("sines first", 2, [4, 8], [True, False], {}, flip_sin_to_cos=False, **SD1),
    _unet("classes", 2, [4, 8], [True, False], {"num_class_embeds": 3}, num_class_embeds=3, **SD1),
    _unet("heads", 4, 4, [False, True], {}),
    _unet("one head", None, [8, 16], [True, True], {}),
    _unet("sines first", 8, 8, [False, True], {}, flip_sin_to_cos=False),
    *(
        _swin(package, layout, source, version, channels)
        for package, source, layout, version, channels in (
            ("monai==1.3.2", "swin", "model_swinvit", 1, 1),
            ("monai==1.3.2", "swin", "SSLHead", 1, 1),
            ("monai==1.3.2", "swin", "SSLHead before 2022-08", 1, 1),
            ("monai==1.3.2", "swin", "BrainSegFounder", 1, 2),
            ("monai==1.3.2", "swin", "VoCo", 2, 1),
            ("monai==1.3.2", "swin", "disruptive autoencoder", 1, 1),
            ("monai==1.5.2", "swin-1.5", "SSLHead", 1, 1),
            ("monai==1.5.2", "swin-1.5", "VoCo", 2, 1),
        )
    ),
]
KEPT = (  # rows whose files the repository keeps
    "diffusers==0.42.1, AutoencoderKL, one block",
    "diffusers==0.42.1, UNet2DConditionModel, as Stable Diffusion 2",
    "diffusers==0.42.1, UNet2DModel, sines first",
    "monai==1.3.2, SwinTransformer, model_swinvit, v1",
)
