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

"""The grid of networks and ways out, see ``python -m tests.parity.exports --help``."""

from __future__ import annotations

import unittest
from dataclasses import replace

import pytest
import torch
from parameterized import parameterized

from tests.networks.exports.columns import COLUMNS, run_cell
from tests.networks.exports.report import as_markdown, as_text
from tests.networks.exports.row import FIRST, Row, Tensor
from tests.networks.exports.rows import ROWS
from tests.networks.exports.runner import passes, run_row

torch.set_num_threads(1)
QUICK = ("script", "trace", "export")
FIRST_ROWS = list({row.network: row for row in reversed(ROWS)}.values())[::-1]
TENSOR = {"x": Tensor(("B", 3))}
GOOD, BAD = {"difference": 1e-7}, {"error": "RuntimeError: torch says no"}


def linear(options: str = "plain", **kwargs) -> Row:
    return Row("Linear", options, "torch.nn", {"in_features": 3, "out_features": 2}, {"input": TENSOR["x"]}, **kwargs)


class TestExports(unittest.TestCase):
    """One row a network, the quick ways out."""

    @parameterized.expand([(f"{row.network}_{column}", row, column) for row in FIRST_ROWS for column in QUICK])
    def test_first_row(self, _, row, column):
        cell = run_cell(row, column)
        self.assertTrue(passes(row, column, cell), as_text(row, column, cell))


@pytest.mark.grid
class TestGrid(unittest.TestCase):
    """Every cell; a row in a process of its own."""

    @parameterized.expand([(row.name, row) for row in ROWS])
    def test_row(self, _, row):
        for column, cell in run_row(row, COLUMNS).items():
            with self.subTest(column):
                self.assertTrue(passes(row, column, cell), as_text(row, column, cell))
            if "unavailable" in cell:
                self.skipTest(f"{column}: {cell['unavailable']}")


class TestRows(unittest.TestCase):
    def test_names_are_unique(self):
        self.assertEqual(len({row.name for row in ROWS}), len(ROWS))

    def test_letters_give_sizes_and_dynamic_dimensions(self):
        tensor = Tensor(("B", 1, "4h", "w"))
        self.assertEqual(tensor.make(FIRST, torch.Generator()).shape, (2, 1, 8, 3))
        dims = {}
        self.assertEqual(list(tensor.dynamic(dims)), [0, 2, 3])
        self.assertEqual(sorted(dims), ["B", "h", "w"])


class Halved(torch.nn.Linear):
    """A network that a script or a trace gets wrong."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        return out / 2 if torch.jit.is_tracing() else out


class Projection(torch.nn.Linear):
    """A network with the release's choice of projection."""

    def __init__(self, include_fc: bool = True) -> None:
        super().__init__(3, 2)
        self.include_fc = include_fc


class NotANumber(torch.nn.Identity):
    """A network that fails without an error."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan") if self.when == "eager" or torch.jit.is_tracing() else x


class Choosing(torch.nn.Identity):
    """A network that does what its numbers say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class TestColumns(unittest.TestCase):
    """The ways out notice what is wrong."""

    @parameterized.expand(list(COLUMNS))
    def test_linear_leaves_python(self, column):
        cell = run_cell(linear(), column)
        self.assertTrue(passes(linear(), column, cell), cell)

    def test_wrong_numbers_are_noticed(self):
        row = Row("Halved", "wrong", __name__, {"in_features": 3, "out_features": 2}, {"input": TENSOR["x"]})
        cell = run_cell(row, "trace")
        self.assertGreater(cell["difference"], 0.01)
        self.assertFalse(passes(row, "trace", cell))

    def test_error_is_told_in_one_line(self):
        row = Row("Choosing", "wrong", __name__, {}, TENSOR)
        cell = run_cell(row, "export")
        self.assertRegex(cell["error"], r"^\w+: \S.*$")
        self.assertFalse(passes(row, "export", cell))
        self.assertNotIn("in eager Python, too", cell["error"])

    def test_error_in_eager_python_is_told(self):
        row = replace(linear(), inputs={"input": Tensor(("B", 4))})
        self.assertRegex(run_cell(row, "export")["error"], "^RuntimeError: in eager Python, too: RuntimeError: mat1")

    def test_zero_outputs_prove_nothing(self):
        row = Row("Threshold", "zero", "torch.nn", {"threshold": 100.0, "value": 0.0}, {"input": TENSOR["x"]})
        self.assertIn("almost zero", run_cell(row, "trace")["error"])

    def test_option_or_argument_of_the_fork_alone_is_missing(self):
        row = Row("Linear", "bare", "torch.nn", {"in_features": 3, "out_features": 2, "use_proj_attn": False}, TENSOR)
        self.assertEqual(run_cell(row, "trace"), {"missing": "no option include_fc"})
        row = replace(linear(), inputs={**linear().inputs, "attn_mask": TENSOR["x"]})
        self.assertIn("unexpected keyword argument 'attn_mask'", run_cell(row, "trace")["missing"])
        self.assertFalse(passes(row, "trace", run_cell(row, "trace")))

    def test_choice_of_projection_reaches_the_release(self):
        row = Row("Projection", "bare", __name__, {"use_proj_attn": False}, TENSOR)
        self.assertFalse(row.build().include_fc)

    @parameterized.expand(["eager", "traced"])
    def test_not_a_number_is_noticed(self, when):
        row = Row("NotANumber", when, __name__, {"when": when}, TENSOR)
        self.assertIn("not finite", run_cell(row, "trace")["error"])

    def test_cell_that_torch_cannot_must_fail(self):
        row = linear(cannot={"trace": "A reason."})
        self.assertFalse(passes(row, "trace", GOOD))
        self.assertFalse(passes(row, "trace", {"missing": "no such option"}))
        for cell in (BAD, {"difference": 0.01}):
            self.assertTrue(passes(row, "trace", cell))
            self.assertEqual(as_text(row, "trace", cell), "cannot: A reason.")


class TestRunner(unittest.TestCase):
    """Rows in processes of their own."""

    def test_process_that_ends_early_is_told(self):
        cells = run_row(linear("unknown"), ["trace"])
        self.assertEqual(cells, {"trace": {"error": "the process ended with code 1"}})


class TestReport(unittest.TestCase):
    def table(self, fork: list, release: list | None = None, **kwargs) -> str:
        rows = [linear(name, **kwargs) for name in "abc"[: len(fork)]]

        def named(cells):
            return None if cells is None else {row.name: {"trace": cell} for row, cell in zip(rows, cells)}

        return as_markdown(rows, ["trace"], named(fork), named(release))

    def test_marks(self):
        self.assertIn("| Linear | 2 | ✓ |", self.table([GOOD, GOOD]))
        self.assertIn("| Linear | 2 | ✗ <sup>1</sup> |", self.table([BAD, BAD]))
        table = self.table([GOOD, BAD], [BAD, {"missing": "no such option"}])
        self.assertIn("| Linear | 2 | ✗ <sup>1</sup> → 1/2 <sup>1</sup> |", table)
        self.assertIn("\n1. `RuntimeError: torch says no`\n", table)
        self.assertNotIn("\n2. ", table)

    def test_sentence_stands_in_for_the_error(self):
        for cell in (BAD, {"difference": 0.01}):
            self.assertIn("\n1. Torch cannot.\n", self.table([cell], cannot={"trace": "Torch cannot."}))

    def test_difference_is_told(self):
        self.assertIn("\n1. the outputs differ by 1.0e-02.\n", self.table([{"difference": 0.01}]))


if __name__ == "__main__":
    unittest.main()
