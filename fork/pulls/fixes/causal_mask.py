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

"""A registered causal mask, and attention without output projection."""

from __future__ import annotations

from fork.series.edits import Edit, above, below, instead, swap
from fork.series.fixes import Fix

SELF = "monai/networks/blocks/selfattention.py"
CROSS = "monai/networks/blocks/crossattention.py"
ARGUMENT = "use_proj_attn: bool | None = None,"
WIDTH = """
    if isinstance(self.out_proj, nn.Identity) and {inner} != self.hidden_input_size:
        raise ValueError(f"without output projection the heads' width {{{inner}}} must be the input's.")
"""
OLDER_KEY = """
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.pop(prefix + "causal_mask", None)  # saved by MONAI up to 1.6
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

"""


def _registered(path: str, cls: str) -> tuple[Edit, ...]:
    """The mask is a buffer of every block, and not part of its state dict."""
    init = f"{cls}.__init__"
    return (
        below(path, init, "torch.tril(", "persistent=False,"),
        instead(
            path,
            init,
            "self.causal_mask = torch",
            'self.register_buffer("causal_mask", torch.Tensor(), persistent=False)',
        ),
        above(path, cls, "def forward(self", OLDER_KEY),
    )


FIX = Fix(
    name="causal-mask",
    title="Register causal_mask in attention blocks, add use_proj_attn",
    purpose="""
        SABlock and CrossAttentionBlock register causal_mask only where attention is causal; elsewhere it is a plain
        tensor that .to() leaves behind. It is saved with every block, though it follows from sequence_length. Now
        it is a buffer of each block that is not saved, and state dicts that hold it still load strictly. Older
        versions of MONAI load new state dicts of causal blocks with strict=False alone.

        use_proj_attn=False leaves the output projection out, in cross attention too, which had no such choice.
        None, the default, follows include_fc. Without projection, a width that cannot come out right is refused.
    """,
    evidence="""
        The state dict of a decoder of 12 layers, 1024 tokens and 96 channels falls from 56.3 to 5.9 MB.
        SABlock(256, 8 heads) without projection has 196,608 parameters instead of 262,400.
    """,
    edits=(
        below(SELF, "SABlock.__init__", "use_flash_attention: bool", ARGUMENT),
        swap(
            SELF,
            "SABlock.__init__",
            "attention.html).",
            "attention.html).\n            use_proj_attn: whether to project the output; None follows ``include_fc``.",
        ),
        swap(SELF, "SABlock.__init__", "if include_fc:", "if include_fc if use_proj_attn is None else use_proj_attn:"),
        above(SELF, "SABlock.__init__", "self.qkv: nn", WIDTH.format(inner="self.inner_dim") + "\n"),
        *_registered(SELF, "SABlock"),
        instead(SELF, "SABlock.forward", "self.include_fc", "x = self.out_proj(x)"),
        below(CROSS, "CrossAttentionBlock.__init__", "use_flash_attention: bool", ARGUMENT),
        swap(
            CROSS,
            "CrossAttentionBlock.__init__",
            "attention.html).",
            "attention.html).\n            use_proj_attn: whether to project the output. Defaults to True.",
        ),
        instead(
            CROSS,
            "CrossAttentionBlock.__init__",
            "self.out_proj",
            """
            self.out_proj: nn.Linear | nn.Identity = nn.Identity()
            if use_proj_attn is None or use_proj_attn:
                self.out_proj = nn.Linear(inner_size, self.hidden_input_size)
            """,
        ),
        above(CROSS, "CrossAttentionBlock.__init__", "# key, query, value", WIDTH.format(inner="inner_size")),
        *_registered(CROSS, "CrossAttentionBlock"),
    ),
    tests=("tests/networks/blocks/test_attention_projection.py",),
    upstream_tests=(
        "tests/networks/blocks/test_selfattention.py",
        "tests/networks/blocks/test_crossattention.py",
        "tests/networks/blocks/test_transformerblock.py",
        "tests/networks/nets/test_transformer.py",
    ),
)
