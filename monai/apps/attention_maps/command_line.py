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


"""The command line of ``python -m monai.visualize.attention``: its arguments and its help."""

from __future__ import annotations

import argparse
import re

from monai.apps.checkpoints.command_line import CONFIGS, add_network
from monai.apps.checkpoints.command_line import in_flags as in_checkpoint_flags
from monai.apps.commands import Parser
from monai.visualize.attention.on_image import MODES
from monai.visualize.attention.saving import SUFFIXES

from .scan import FITS

__all__ = ["CLASS", "PROGRAM", "in_flags", "make_parser"]

PROGRAM = "python -m monai.visualize.attention"
CLASS = "class"
METHODS = ("rows", "rollout", "relevance")

DESCRIPTION = """\
What a voxel of a scan attends to in a trained network, layer by layer, over the image.

Reads a network's configuration, a checkpoint of any age and a scan; writes a picture, an array or a NIfTI volume. The
network runs as it always does, with the fused kernel: only the rows of the queries are computed.
"""
EPILOG = f"""\
{CONFIGS}
The scan goes into the network in this order: --volume, --orientation, --spacing, --slice, --size, then intensities
scaled to 0..1 for each channel. Voxels are those of the file, in queries, reports and titles. A NIfTI volume has the
voxels and the affine of what went into the network, so that it lies right over the scan in every viewer.

methods:
  rows       the softmax rows of the query, for each layer
  rollout    the same through all layers (Abnar and Zuidema 2020), for ViT-like networks
  relevance  weighted by the gradient of an output (Chefer et al. 2021), for ViT-like networks

examples:
  {PROGRAM} --config net.json --ckpt net.pt --image scan.nii.gz \\
      --query 64,48,12 -o attention.png
  {PROGRAM} --config train.json::network_def --ckpt old.pt --image scan.nii.gz \\
      --query 64,48,12 --layers "*middle_block*" --timestep 100 --heads all -o attention.nii.gz --json

exit codes:
  0    done
  2    an argument or a file is not as it should be
  3    the checkpoint was refused: damaged, unsafe, or it does not fit the network
  130  interrupted; no half-written file is left
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --config NET_CONFIG --ckpt FILE --image SCAN --query X,Y,Z -o OUT [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    _add_output(parser)
    parser.add_argument("--ckpt", metavar="FILE", required=True, help="checkpoint file, or folder, of any age")
    parser.add_argument("--name", help="which network, where the file holds several")
    parser.add_argument("--device", default="cpu", help="to run on, as cuda (default: %(default)s)")
    add_network(parser)
    _add_attention(parser)
    _add_scan(parser)
    _add_other_inputs(parser)
    return parser


def in_flags(text: str) -> str:
    """A message of the library, with the flags of the command line in place of arguments in Python."""
    text = re.sub(r"blocks=\[(.*?)\]", lambda match: f"--layers {match[1].replace(',', '')}", in_checkpoint_flags(text))
    text = text.replace("no attention block matches", "--layers: no attention block matches")
    return text.replace("choose other blocks", "choose other --layers")


def _add_output(parser: argparse.ArgumentParser) -> None:
    formats = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help=f"file to write: {formats}; with several queries a file each, OUT_X-Y-Z.*",
    )
    add("--force", action="store_true", help="replace OUT if it exists")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print one JSON object with the figures, errors too; or write it to FILE",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show a bar on stderr; by default on a terminal; needs tqdm",
    )


def _add_attention(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("attention").add_argument
    add(
        "--query",
        type=_query,
        action="append",
        default=[],
        metavar="X,Y,Z",
        help="voxel of the scan's file, counted from 0, or 'class' for the class token; repeatable",
    )
    layers = "patterns of the blocks' names, as 'blocks.*.attn' or '*middle_block*' (default: all)"
    add("--layers", nargs="+", default=["*"], metavar="PATTERN", help=layers)
    add("--heads", type=_heads, default=None, metavar="mean|all|N", help="mean of the heads, a row each, or one")
    add("--method", choices=METHODS, default=METHODS[0], help="see below (default: %(default)s)")
    add("--target", type=int, metavar="N", help="output that relevance explains (default: the largest)")
    add("--mode", choices=MODES, default=MODES[0], help="between tokens, or exact cells (default: %(default)s)")


def _add_scan(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scan")
    add = group.add_argument
    add("--image", metavar="SCAN", required=True, help="NIfTI or any format that MONAI reads")
    add("--volume", type=_index, nargs="+", default=[], metavar="N", help="of a 4-D scan, counted from 0")
    add(
        "--orientation", default="", metavar="RAS", help="letters that the axes shall run towards (default: as they do)"
    )
    add("--spacing", type=_positive, nargs="+", default=[], metavar="MM", help="of the voxels, one or each axis")
    add("--slice", type=_index, metavar="N", help="plane of the last axis, for a 2-D network")
    size = "of the image, one number or one for each axis (default: the network's, else the scan's)"
    add("--size", type=_count, nargs="+", default=[], metavar="N", help=size)
    add("--fit", choices=FITS, default=FITS[0], help="how it is brought to the size (default: %(default)s)")
    add(
        "--percentiles",
        type=_percentile,
        nargs=2,
        default=[0.0, 100.0],
        metavar=("LOW", "HIGH"),
        help="of the intensities, that become 0 and 1 (default: 0 100)",
    )
    add("--raw", action="store_true", help="leave the intensities as they are")


def _add_other_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what else the network takes").add_argument
    add("--timestep", type=_index, metavar="N", help="of a diffusion network; the image goes in as it is")
    add("--inputs", metavar="FILE", help="torch or safetensors file with further arguments of forward by name")
    add("--seed", type=int, default=0, metavar="N", help="of random numbers that the network draws (default: 0)")


def _query(text: str) -> str | tuple[int, ...]:
    if text == CLASS:
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' should be voxel coordinates as 64,48,12, or {CLASS}") from None


def _heads(text: str) -> int | str | None:
    if text in ("mean", "all"):
        return None if text == "mean" else text
    try:
        return _index(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' should be mean, all or the number of a head") from None


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} should be 0 or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} should be positive")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be positive")
    return value


def _percentile(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} should lie in 0..100")
    return value
