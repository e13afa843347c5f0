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


"""The command line of ``python -m monai.networks.checkpoints``: its arguments and its help."""

from __future__ import annotations

import argparse
import re
from typing import Any

from monai.apps.commands import Parser
from monai.networks.state_dict.hooks import CheckpointFacts
from monai.networks.weights.sources import SOURCES

from .conversion import TARGETS

__all__ = ["CONFIGS", "add_network", "facts_of", "in_flags", "make_parser", "weights_of"]

PROGRAM = "python -m monai.networks.checkpoints"

DESCRIPTION = """\
Checkpoints of any age: what is in them, in today's layout, and whether they still give the same outputs.

Reads what torch.save writes (MONAI, GenerativeModels, Lightning, Ignite, DataParallel, torch.compile), safetensors
files and torch.distributed.checkpoint folders. Never runs code of a checkpoint.
"""
EXIT_CODES = """\
exit codes:
  0    done
  1    verify found other outputs than the package that wrote the file gives
  2    an argument or a file is not as it should be
  3    the checkpoint was refused: damaged, unsafe, or it does not fit the network
  130  interrupted (terminated: 143, hung up: 129); no half-written file is left
"""
CONFIGS = """\
NET_CONFIG is a MONAI bundle configuration, JSON or YAML: its top, or exactly one part of it, is a network
  {"_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": 2, "channels": [32, 64], ...}
or else FILE::KEY names the part, as train.json::network_def; or a folder of save_pretrained. Classes and arguments of
GenerativeModels are taken, too. As with every bundle, its $expressions are run and its modules are imported: use files
that you trust.
"""
INSPECT = f"""\
examples:
  {PROGRAM} inspect unet.pt
  {PROGRAM} inspect last.ckpt --name autoencoder --json
  {PROGRAM} inspect 40_GB.safetensors --quick
"""
CONVERT = f"""\
{CONFIGS}
examples:
  {PROGRAM} convert old.pt -o new.safetensors --config train.json::network_def
  {PROGRAM} convert old.pt -o for_release.pt --config net.json --to monai-1.6
  {PROGRAM} convert gm_0.1.0.pt -o new.pt --config net.json --cross-attention-scaled no
"""
VERIFY = f"""\
{CONFIGS}
examples:
  {PROGRAM} verify old.pt --config net.json
  {PROGRAM} verify old.pt --config net.json --size 64 64 32 --seed 1
  {PROGRAM} verify dino.pth --config vit.json --resample position --allow 'classification_head.*'
  {PROGRAM} verify old.pt --config net.json --against ~/envs/monai-1.3/bin/python
  {PROGRAM} verify gm.pt --config net.json --against unpacked/generative:unpacked/monai-1.3.2
"""


ANSWERS = {"True": "yes", "False": "no"}
WEIGHT_OPTIONS = (
    "weights",
    "source",
    "source_config",
    "allow",
    "ignore",
    "resample",
    "grid",
    "in_channels",
    "out_channels",
    "inflate",
)


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    Its ``command`` is "inspect", "convert" or "verify".
    """
    epilog = f"{PROGRAM} COMMAND --help shows examples.\n\n{EXIT_CODES}"
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=epilog)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_inspect(commands)
    _add_convert(commands)
    _add_verify(commands)
    return parser


def facts_of(options: argparse.Namespace) -> CheckpointFacts:
    """What the options of a command tell about a checkpoint."""
    answers = {"yes": True, "no": False, None: None}
    return CheckpointFacts(
        cross_attention_scaled=answers[options.cross_attention_scaled],
        transposed_upsampling=answers[options.transposed_upsampling],
        projection_used=answers[options.projection_used],
    )


def weights_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of a command say of weights that do not fit as they are, as ``load_checkpoint`` takes it."""
    given = {name: getattr(options, name) for name in WEIGHT_OPTIONS}
    given["spacings"] = tuple(options.spacings) if options.spacings else None
    return {name: value for name, value in given.items() if value not in (None, (), [])}


def in_flags(text: str) -> str:
    """A message of the library, with the flags of the command line in place of arguments in Python."""
    text = re.sub(
        r"([Ll]oad it by )load_old_state_dict\(state_dict,\s+facts=CheckpointFacts\((\w+)=(True|False)\)\)",
        lambda match: f"{'Pass' if match[1][0] == 'L' else 'pass'} {_flag(match[2])} {ANSWERS[match[3]]}",
        text,
    )
    text = re.sub(r"CheckpointFacts\.(\w+)", lambda match: _flag(match[1]), text)
    return (
        re.sub(r"\b(allow|ignore)=\('([^']+)', \.\.\.\)", r"--\1 '\2' ...", text)
        .replace("and with True if", "and yes if")
        .replace("with name=", "with --name")
        .replace("overwrite=True", "--force")
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_inspect(commands: Any) -> None:
    purpose = "tell what a checkpoint holds and who wrote it"
    parser = _add_command(commands, "inspect", "FILE [options]", purpose, INSPECT)
    parser.add_argument("--quick", action="store_true", help="read names and shapes, not the values")
    _add_progress(parser)


def _add_convert(commands: Any) -> None:
    purpose = "write a checkpoint in a present layout, whole or not at all"
    parser = _add_command(commands, "convert", "FILE -o OUT --config NET_CONFIG [options]", purpose, CONVERT)
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", required=True, help="file to write: *.safetensors, *.pt, *.pth or *.ckpt")
    add(
        "--to",
        choices=TARGETS,
        default=TARGETS[0],
        help="this package's layout, MONAI 1.6's, or another package's (default: %(default)s)",
    )
    add("--force", action="store_true", help="replace OUT if it exists; it may be FILE")
    add_network(parser)
    _add_progress(parser)


def _add_verify(commands: Any) -> None:
    purpose = "run a checkpoint on seeded inputs, here and in the package that wrote it"
    parser = _add_command(commands, "verify", "FILE --config NET_CONFIG [options]", purpose, VERIFY)
    add_network(parser)
    add = parser.add_argument_group("inputs").add_argument
    size = "size of the image, one number or one for each axis (default: a small one)"
    add("--size", type=_positive, nargs="+", default=(), metavar="N", help=size)
    add("--batch", type=_positive, default=2, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the random inputs (default: %(default)s)")
    add("--inputs", metavar="FILE", help="torch or safetensors file with the arguments of forward by name")
    add = parser.add_argument_group("comparison with the package that wrote the file").add_argument
    place = "a Python interpreter, a virtual environment, or folders with the package for this interpreter"
    add("--against", metavar="ENV", help=place)
    add("--against-config", metavar="NET_CONFIG", help="how the network is built there, if not as --config says")
    tolerance = "difference allowed, relative to the largest output or 1 (default: %(default)s)"
    add("--tolerance", type=_tolerance, default=1e-4, metavar="X", help=tolerance)


def _add_command(commands: Any, name: str, usage: str, purpose: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        usage=f"{PROGRAM} {name} {usage}",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"{epilog}\n{EXIT_CODES}",
    )
    parser.add_argument(
        "file", metavar="FILE", help="checkpoint file, or folder of torch.distributed or save_pretrained"
    )
    parser.add_argument("--name", help="which network, where the file holds several (inspect lists them)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, errors too")
    out: argparse.ArgumentParser = parser
    return out


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show a bar on stderr; by default for large files on a terminal; needs tqdm",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that tell which network a checkpoint is for, and what its keys cannot tell."""
    parser.add_argument("--config", metavar="NET_CONFIG", required=True, help="the network to load it into, see below")
    _add_weights(parser)
    facts = parser.add_argument_group("what the keys cannot tell (asked for where it matters)")
    facts.add_argument(
        "--cross-attention-scaled",
        choices=("yes", "no"),
        help="whether GenerativeModels 0.1 divided the logits by sqrt(width): release 0.1.0 did not",
    )
    facts.add_argument(
        "--transposed-upsampling",
        choices=("yes", "no"),
        help="whether a GenerativeModels autoencoder had use_convtranspose=True",
    )
    facts.add_argument(
        "--projection-used",
        choices=("yes", "no"),
        help="whether MONAI 1.4 used the output projections that it saved: with include_fc=False it did not",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is done with weights of other packages, sizes and dimensions."""
    group = parser.add_argument_group("weights that do not fit as they are (docs/weights.md)")
    add = group.add_argument
    add("--weights", choices=("ema", "raw"), help="a moving average of the weights, or those of the last step")
    add("--source", choices=[source.name for source in SOURCES], help="who wrote FILE, if its keys do not tell")
    add("--source-config", metavar="JSON", help="what it saved beside (default: config.json in the folder of FILE)")
    for flag, what in (("--allow", "parameters that may stay as they are"), ("--ignore", "unwanted tensors of FILE")):
        add(flag, nargs="+", default=(), metavar="PATTERN", help=f"{what}, as 'head.*'")
    resample = "position embeddings to another grid, patches to another size"
    add("--resample", choices=("position", "patch"), nargs="+", default=(), help=resample)
    add("--grid", type=_positive, nargs="+", metavar="N", help="grid of FILE's position embeddings")
    spacings = "distance of tokens along each axis, as 16,16 16,16,8: in FILE, then in the network"
    add("--spacings", type=_numbers, nargs=2, metavar=("THERE", "HERE"), help=spacings)
    channels = "'mean', 'repeat', or FILE's number of each input channel, as 0,1"
    add("--in-channels", type=_channels, metavar="HOW", help=channels)
    outputs = "FILE's number of each output channel or class, '-' for one that stays, as 0,1,-"
    add("--out-channels", type=_outputs, metavar="LIST", help=outputs)
    add("--inflate", choices=("average", "center"), help="FILE is of a 2-D network: how its kernels get a third axis")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _channels(text: str) -> str | tuple[int, ...]:
    return text if text in ("mean", "repeat") else tuple(int(part) for part in text.split(","))


def _outputs(text: str) -> tuple[int | None, ...]:
    return tuple(None if part == "-" else int(part) for part in text.split(","))


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} should be positive")
    return value


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be a number from 0 on")
    return value
