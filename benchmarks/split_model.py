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
A model on paper of a decode that is split over 1 to 16 GPUs: how long ranks compute, and how long they talk.

``python -m benchmarks.split_model`` prints it as a table. Nothing of it is measured: it counts the operations and
bytes of the decoder that MAISI has published (64, 128 and 256 channels, two residual blocks a level), and divides them
by what a device computes and a link carries in a second.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Convolution", "Machine", "decoder", "main", "table"]

KERNEL = 3
LATENT_CHANNELS = 4
CHANNELS = (64, 128, 256)
NUM_RES_BLOCKS = 2


@dataclass(frozen=True)
class Convolution:
    """
    A convolution of the decoder.

    Args:
        in_channels: number of its input's channels.
        out_channels: number of its output's channels.
        size: length of an axis of its output.
        up: how many outputs lie beside one slice that is exchanged: 2 after an upsampling.
    """

    in_channels: int
    out_channels: int
    size: int
    up: int = 1

    @property
    def operations(self) -> float:
        """Floating-point operations of the whole volume."""
        return 2.0 * KERNEL**3 * self.in_channels * self.out_channels * self.size**3

    @property
    def halo(self) -> int:
        """Numbers in the slice that a slab gets from each of its neighbors."""
        return self.in_channels * (self.size // self.up) ** 2

    def surplus(self, ranks: int) -> float:
        """How much more a slab computes than it keeps: the slices around it are computed, too."""
        slices = self.size / ranks
        return (slices + 2 * self.up) / slices if ranks > 1 else 1.0


@dataclass(frozen=True)
class Machine:
    """
    What the model assumes.

    Args:
        operations: that a device really computes in a second.
        bandwidth: bytes that a link carries in a second, each way.
        latency: seconds that a collective takes at least.
    """

    operations: float = 0.4 * 312e12
    bandwidth: float = 300e9
    latency: float = 50e-6


def decoder(size: int) -> list[Convolution]:
    """
    The convolutions of MAISI's decoder.

    Args:
        size: length of an axis of the image.
    """
    low = size // 2 ** (len(CHANNELS) - 1)
    found = [Convolution(LATENT_CHANNELS, CHANNELS[-1], low)]
    width = CHANNELS[-1]
    for level, channels in enumerate(reversed(CHANNELS)):
        at = low * 2**level
        if level:
            found.append(Convolution(width, width, at, up=2))
        for _ in range(NUM_RES_BLOCKS):
            found += [Convolution(width, channels, at), Convolution(channels, channels, at)]
            width = channels
    return [*found, Convolution(width, 1, size)]


def seconds(ranks: int, size: int, machine: Machine, bytes_per_number: int = 2) -> tuple[float, float, float]:
    """
    A decode that is split along one axis.

    Args:
        ranks: number of devices.
        size: length of an axis of the image.
        machine: what is assumed of them.
        bytes_per_number: 2 for half types.

    Returns:
        seconds of computing, seconds of talking, bytes that an inner rank sends
    """
    layers = decoder(size)
    computing = sum(layer.operations / ranks * layer.surplus(ranks) for layer in layers) / machine.operations
    if ranks == 1:
        return computing, 0.0, 0.0
    sent = 2 * bytes_per_number * sum(layer.halo for layer in layers)
    # one exchange a convolution, one a norm; both neighbors at once
    calls = len(layers) + 2 * NUM_RES_BLOCKS * len(CHANNELS) + 1
    return computing, sent / 2 / machine.bandwidth + calls * machine.latency, float(sent)


def table(size: int = 512, slow: float = 25e9) -> str:
    """
    The model as a table in Markdown.

    Args:
        size: length of an axis of the image.
        slow: bandwidth of the slower link, in bytes a second.
    """
    lines = [
        "| GPUs | computes | talks, NVLink | talks, PCIe | sent by a rank | speedup |",
        "|---|---|---|---|---|---|",
    ]
    alone = seconds(1, size, Machine())[0]
    for ranks in (1, 2, 4, 8, 16):
        computing, talking, sent = seconds(ranks, size, Machine())
        slower = seconds(ranks, size, Machine(bandwidth=slow))[1]
        speedup = alone / (computing + talking)
        talks = f"{1e3 * talking:.1f} ms | {1e3 * slower:.1f} ms"
        lines.append(f"| {ranks} | {computing:.2f} s | {talks} | {sent / 2**20:,.0f} MiB | {speedup:.1f}x |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of a 512^3 decode."""
    print(table())


if __name__ == "__main__":
    main()
