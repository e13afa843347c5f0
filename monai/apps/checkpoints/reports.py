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


"""What the commands print on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.apps.commands import table
from monai.networks.checkpoints.untrusted import printable
from monai.networks.state_dict.layouts import Layout
from monai.networks.weights.report import LoadReport

from .command_line import in_flags
from .conversion import Conversion
from .inspection import PROJECTION_STATES, AttentionReport, FileReport, NetworkReport
from .verification import Comparison, OutputReport, Verification

__all__ = ["as_text"]

LABEL = 14  # width of the column of labels
KEYS_SHOWN = 5
UNKNOWN = "unknown: no key tells"
LAYOUT_NAMES = {"fork": "this package's layout", "monai-1.6": "MONAI 1.6's layout"}


def as_text(report: FileReport | Conversion | Verification) -> str:
    """A report for a terminal."""
    if isinstance(report, FileReport):
        return _inspected(report)
    return _converted(report) if isinstance(report, Conversion) else _verified(report)


def _line(label: str, text: str) -> str:
    return f"  {label:{LABEL}}{printable(text)}"


def _size(size: int) -> str:
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _inspected(report: FileReport) -> str:
    lines = [printable(report.path), _line("file", f"{report.container}, {_size(report.size)}")]
    if len(report.names) > 1:
        lines.append(_line("networks", f"{len(report.names)}, choose with --name: {', '.join(report.names)}"))
    for network in report.networks:
        lines += ["", f"network {printable(network.name)}", *_network(network)]
    return "\n".join(lines)


def _network(network: NetworkReport) -> list[str]:
    dtypes = ", ".join(
        name if len(network.dtypes) == 1 else f"{name} ({number:,})" for name, number in network.dtypes.items()
    )
    content = f"{_count(network.keys, 'key')}, {_count(network.parameters, 'value')}, {_size(network.size)}"
    lines = [_line("content", content), _line("types", dtypes)]
    if network.wrappers:
        lines.append(_line("inside of", " > ".join(network.wrappers)))
    if network.scale_factor is not None:
        lines.append(_line("scale factor", f"{network.scale_factor:g}"))
    lines += [*_values(network), *_layouts(network.layouts), *_attention(network.attention)]
    return lines


def _values(network: NetworkReport) -> list[str]:
    found = network.not_finite
    if found is None:
        return [_line("NaN, inf", "not counted (--quick)")]
    if not found:
        return [_line("NaN, inf", "none")]
    keys = [f"{key} ({count['nan']} NaN, {count['inf']} inf)" for key, count in found.items()]
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return [_line("NaN, inf", f"in {_count(len(keys), 'key')}: {', '.join(keys[:KEYS_SHOWN])}{more}")]


def _layouts(layouts: list[Layout]) -> list[str]:
    if not layouts:
        return [_line("written by", UNKNOWN)]
    lines = []
    for number, layout in enumerate(layouts):
        lines.append(_line(("written by", "other signs", "")[min(number, 2)], layout.source))
        lines += [_line("", f"  key {layout.evidence}")] if layout.evidence else []
        lines.append(_line("", f"  {in_flags(layout.meaning)}"))
    return lines


def _attention(blocks: list[AttentionReport]) -> list[str]:
    if not blocks:
        return [_line("attention", "none found")]
    rows: list[list[Any]] = [["attention block", "kind", "width", "tokens", "heads", "q, k, v", "projection"]]
    for block in blocks:
        tokens = f"{block.input_width}" + (f", {block.context_width}" if block.kind == "cross" else "")
        heads = "?" if block.heads is None else block.heads
        projection = block.projection + (", stale" if block.stale else "")
        rows.append([block.path, block.kind, block.width, tokens, heads, block.linears, projection])
    lines = ["", *(f"  {line}" for line in table(rows, right=(2, 3, 4))), ""]
    states = {block.projection for block in blocks}
    lines += [f"  {state}: {meaning}" for state, meaning in PROJECTION_STATES.items() if state in states]
    if any(block.stale for block in blocks):
        lines.append("  stale: never trained beside a self attention that was; MONAI 1.4 and 1.5 save such ones unused")
    return lines


def _source(layouts: list[Layout], wrappers: tuple[str, ...]) -> list[str]:
    lines = [_line("written by", layouts[0].source if layouts else UNKNOWN)]
    return lines + ([_line("inside of", " > ".join(wrappers))] if wrappers else [])


def _converted(report: Conversion) -> str:
    keys = f"{_count(report.keys_written, 'key')} from {report.keys_read:,}"
    lines = [
        printable(report.target),
        _line("from", report.source),
        *_source(report.written_by, report.wrappers),
        _line("network", report.network),
        _line("layout", LAYOUT_NAMES.get(report.layout, report.layout)),
        _line("content", f"{keys}, {_count(report.parameters, 'value')}, {_size(report.size)}"),
        *_account(report.account),
    ]
    if report.scale_factor is not None:
        where = "in its metadata" if Path(report.target).suffix.lower() == ".safetensors" else "beside the state dict"
        lines.append(_line("scale factor", f"{report.scale_factor:g}, {where}"))
    if report.config is not None:
        lines.append(_line("configuration", report.config))
    if report.layout == "monai-1.6":
        arguments = ", ".join(f"{name}={value!r}" for name, value in report.arguments.items())
        lines.append(_line("build it", f"{report.network}({arguments})"))
        lines.append(_line("", "in MONAI 1.6, then load the file with strict=True"))
    return "\n".join(lines)


def _verified(report: Verification) -> str:
    lines = [
        printable(report.path),
        *_source(report.written_by, report.wrappers),
        _line("network", f"{report.network}, {_count(report.parameters, 'parameter')}"),
        *_account(report.account),
        _line("seed", str(report.seed)),
    ]
    for output, fresh in zip(report.outputs, report.fresh):
        lines += _output(output)
        lines.append(_line("  untrained", _statistics(fresh)))
    if report.comparison is not None:
        lines += _comparison(report.comparison)
    return "\n".join(lines)


def _output(report: OutputReport) -> list[str]:
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in report.inputs.items())
    shapes = [_shape(shape) for shape in report.shapes]
    shown = shapes if len(shapes) <= KEYS_SHOWN else [*shapes[: KEYS_SHOWN - 1], "...", shapes[-1]]
    return [
        _line(report.method, inputs),
        _line("  gives", ", ".join(shown)),
        _line("  values", _statistics(report)),
        _line("  sha256", report.sha256),
    ]


def _statistics(report: OutputReport) -> str:
    return f"mean {report.mean:.6g}, std {report.std:.6g}, min {report.min:.6g}, max {report.max:.6g}"


def _account(report: LoadReport) -> list[str]:
    """What became of parameters and tensors: the counts, and a line for each reason that is not a plain load."""
    first, *more = str(report).splitlines()
    lines = [_line("account", first.partition(": ")[2])]
    return lines + [_line("", in_flags(line.strip())) for line in more if "the file's keys are" not in line]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _comparison(report: Comparison) -> list[str]:
    verdict = "the same outputs" if report.agrees else "DIFFERENT outputs"
    lines = [
        _line("against", f"{report.package} with torch {report.torch}"),
        _line("  class", report.target),
    ]
    if report.dropped:
        lines.append(_line("  without", f"{', '.join(report.dropped)}, which it does not have"))
    lines += [
        _line("  difference", f"{report.max_difference:.3g} at most, of outputs up to {report.scale:.3g}"),
        _line("  verdict", f"{verdict} (tolerance {report.tolerance:g})"),
    ]
    return lines
