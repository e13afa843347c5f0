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


from __future__ import annotations

import unittest

from fork.referee import Referee, RefereeError


class Echo:
    """Answers from the release's process."""

    def version(self) -> str:
        import monai

        print("words that must not get between the answers")
        return monai.__version__

    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, word: str) -> None:
        raise ValueError(word)

    def die(self) -> None:
        raise SystemExit("gone for good")


class TestReferee(unittest.TestCase):
    def test_answers_of_the_pristine_release(self):
        with Referee("tests.fork.test_referee:Echo") as referee:
            self.assertEqual(referee.ask("version"), "1.6.1")
            self.assertEqual([referee.ask("double", 2), referee.ask("double", value=4)], [4, 8])
            with self.assertRaisesRegex(RefereeError, "ValueError: spades"):
                referee.ask("fail", "spades")
            self.assertEqual(referee.ask("double", 5), 10)

    def test_a_process_that_has_ended(self):
        with Referee("tests.fork.test_referee:Echo") as referee:
            for _ in range(2):
                with self.assertRaisesRegex(RefereeError, "gone for good"):
                    referee.ask("die")

    def test_a_worker_that_does_not_exist(self):
        with Referee("tests.fork.test_referee:Nobody") as referee, self.assertRaisesRegex(RefereeError, "Nobody"):
            referee.ask("double", 1)


if __name__ == "__main__":
    unittest.main()
