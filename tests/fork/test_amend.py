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

import ast
import copy
import io
import textwrap
import tokenize
import unittest
from collections import Counter
from collections.abc import Iterator

from parameterized import parameterized

import fork
from fork.amend import Amendment, amend, definition_text, has_name
from fork.files import package_files
from fork.unused import MARK

PATH = "monai/blocks/m.py"

BOUND_IN_MANY_WAYS = """\
tqdm, has = load()
if typing.TYPE_CHECKING:
    from a import T
else:
    T = 0
with o() as p: pass
for i in p: pass
"""

# the release's file; what the fork's holds; what of it is new; the merged file
TEST_CASES_MERGED = [
    ["function", "x = 1\ndef f(a):\n    return a\ny = 2\n", "def f(b):\n    return 2\n", [], "x = 1\nFORK\ny = 2\n"],
    ["async", "async def f(): return 1\n", "async def f():\n    await g()\n", [], "FORK\n"],
    ["decorators", "x = 1\n\n\n@old\n@older\ndef f(): 1\n", "@new(\n    1\n)\ndef f(): 2\n", [], "x = 1\n\n\nFORK\n"],
    ["no_decorators", "@old(\n  1)\ndef f(): 1\nx = 1\n", "def f(): 2\n", [], "FORK\nx = 1\n"],
    [
        "docstring_alone",
        'def f():\n    """Old."""\n    return 1\n',
        'def f():\n    """New."""\n    return 1\n',
        [],
        "FORK\n",
    ],
    [
        "overloads",
        "@t.overload\ndef f(): 1\n@overload\ndef f(): 2\ndef f(): 3\n",
        "@overload\ndef f(): 4\ndef f(): 5\n",
        [],
        "FORK\n",
    ],
    ["constant", "w = 0\nX = (\n    1,\n)\ny = 1\n", "X: int = 2  # two\n", [], "w = 0\nFORK\ny = 1\n"],
    ["no_newline_at_the_end", "x = 1\ndef f(): return 1", "def f():\n    return 2\n", [], "x = 1\nFORK"],
    ["no_newline_in_the_fork", "def f(): return 1\nx = 1\n", "def f():\n    return 2", [], "FORK\nx = 1\n"],
    [
        "windows_lines",
        "x = 1\r\n\r\ndef f():\r\n    1\r\ny = 2\r\n",
        "def f():\n    2\n",
        [],
        "x = 1\r\n\r\ndef f():\r\n    2\r\ny = 2\r\n",
    ],
    ["windows_lines_in_the_fork", "def f():\n    1\n", "def f():\r\n    2\r\n", [], "def f():\n    2\n"],
    ["not_ascii", "x = 'Größe'\ndef f(): 'ä'\n", "def f(): '北京'\n", [], "x = 'Größe'\nFORK\n"],
    [
        "other_lines_like_code",
        'x = """\ndef f(): 1\n"""\ndef f(): 1\n',
        "def f(): 2\n",
        [],
        'x = """\ndef f(): 1\n"""\nFORK\n',
    ],
    ["form_feed", "x = 1\n\f\ndef f(): 1\n", "def f(): 2\n", [], "x = 1\n\f\nFORK\n"],
    # comments
    [
        "comments_above",
        "x = 1\n\n# old\n# older\n@d\ndef f(): 1\n",
        '"""About."""\n\n# new\ndef f(): 2\n',
        [],
        "x = 1\n\n# new\ndef f(): 2\n",
    ],
    [
        "comments_apart",
        "x = 1\n# apart\n\n# above\ndef f(): 1\n# below\n",
        '"""About."""\n# apart, too\n\n# why\ndef f(): 2\n# more\n',
        [],
        "x = 1\n# apart\n\n# why\ndef f(): 2\n# below\n",
    ],
    [
        "comments_that_begin_the_file",
        "# license\ndef f(): 1\n",
        "# license\ndef f(): 2\n",
        [],
        "# license\ndef f(): 2\n",
    ],
    ["comment_in_a_string", "x = '''\n# a'''\ndef f(): 1\n", "def f(): 2\n", [], "x = '''\n# a'''\nFORK\n"],
    [
        "comment_of_another_block",
        "if x:\n    y()\n    # there\ndef f(): 1\n",
        "def f(): 2\n",
        [],
        "if x:\n    y()\n    # there\nFORK\n",
    ],
    # classes
    [
        "method",
        "class C(B):\n    def f(self): 1\n\n    @d\n    def g(self):\n        1\n\n    def h(self): 1\n",
        "class C(B):\n    @e\n    def g(self): 2\n",
        [],
        "class C(B):\n    def f(self): 1\n\n    @e\n    def g(self): 2\n\n    def h(self): 1\n",
    ],
    [
        "getter_alone",
        "class C:\n    @property\n    def x(self): 1\n    @x.setter\n    def x(self, v): 1\n",
        "class C:\n    @property\n    def x(self): 2\n",
        [],
        "class C:\n    @property\n    def x(self): 2\n    @x.setter\n    def x(self, v): 1\n",
    ],
    [
        "setter_alone",
        "class C:\n    @property\n    def x(self): 1\n    @x.setter\n    def x(self, v): 1\n",
        "class C:\n    @x.setter\n    def x(self, v): 2\n",
        [],
        "class C:\n    @property\n    def x(self): 1\n    @x.setter\n    def x(self, v): 2\n",
    ],
    [
        "class_constant",
        "class C:\n    w = 0\n    x = 1\n",
        "class C:\n    x = 2\n",
        [],
        "class C:\n    w = 0\n    x = 2\n",
    ],
    [
        "class_docstring",
        'class C:\n    """Old."""\n    x = 1\n',
        'class C:\n    """\n    New.\n    """\n',
        [],
        'class C:\n    """\n    New.\n    """\n    x = 1\n',
    ],
    [
        "nested_class",
        "class C:\n    class D(E):\n        def f(self): 1\n        x = 1\n",
        "class C:\n    class D(E):\n        def f(self): 2\n",
        [],
        "class C:\n    class D(E):\n        def f(self): 2\n        x = 1\n",
    ],
    [
        "class_in_another_layout",
        "@d\nclass C(\n    A, B,  # why\n    metaclass=M\n):\n    x = 1\n",
        "@d\nclass C(A, B, metaclass=M):\n    x = 2\n",
        [],
        "@d\nclass C(\n    A, B,  # why\n    metaclass=M\n):\n    x = 2\n",
    ],
    [
        "tabs",
        "class C:\n\tdef f(self):\n\t\treturn 1\n\n\tx = 1\n",
        'class C:\n    def f(self):\n        """One\n        two."""\n        return (\n2)\n',
        [],
        'class C:\n\tdef f(self):\n\t    """One\n        two."""\n\t    return (\n2)\n\n\tx = 1\n',
    ],
    ["two_spaces", "class C:\n  x = 1\n", "class C:\n    x = 2\n    y = 3\n", ["C.y"], "class C:\n  x = 2\n  y = 3\n"],
    # new definitions
    [
        "new_before_its_successor",
        "a = 1\n\n\ndef f(): 1\n",
        "def _g(): 2\n\n\ndef f(): 3\n",
        ["_g"],
        "a = 1\n\n\nFORK\n",
    ],
    [
        "new_behind_its_predecessor",
        "def f(): 1\n\n\nz = 1\n",
        "def f(): 3\n\n\n# why\ndef _g(): 2\n",
        ["_g"],
        "FORK\n\n\nz = 1\n",
    ],
    ["new_alone", "a = 1\n", "def g(): 2\n", ["g"], "a = 1\n\n\nFORK\n"],
    ["new_behind_no_newline", "a = 1", "def g(): 2\n", ["g"], "a = 1\n\n\nFORK"],
    ["new_in_an_empty_file", "", "def g(): 2\n", ["g"], "def g(): 2\n"],
    ["new_constants", "def f(): 1\n", "A = 1\nB = 2\n\n\ndef f(): 3\n", ["A", "B"], "FORK\n"],
    ["new_class", "def f(): 1\n", "def f(): 2\n\n\nclass C(D):\n    def f(self): 1\n", ["C"], "FORK\n"],
    [
        "new_members",
        "class C:\n    x = 1\n\n    def f(self): 1\n\n    def h(self): 1\nz = 1\n",
        "class C:\n    y = 2\n\n    def f(self): 3\n\n    def g(self): 2\n",
        ["C.y", "C.g"],
        "class C:\n    x = 1\n\n    y = 2\n\n    def f(self): 3\n\n    def g(self): 2\n\n    def h(self): 1\nz = 1\n",
    ],
    [
        "new_member_alone",
        "class C:\n    x = 1\n# after\nz = 1\n",
        "class C:\n    def g(self): 2\n",
        ["C.g"],
        "class C:\n    x = 1\n\n    def g(self): 2\n# after\nz = 1\n",
    ],
    [
        "new_setter",
        "class C:\n    @property\n    def x(self): 1\n",
        "class C:\n    @x.setter\n    def x(self, v): 2\n",
        ["C.x.setter"],
        "class C:\n    @property\n    def x(self): 1\n\n    @x.setter\n    def x(self, v): 2\n",
    ],
    # imports
    [
        "new_import",
        "import os\nfrom a import (\n    b,\n)\n\nx = 1\n\ndef f(): 1\nimport z\n",
        "import re\nfrom a import c as d\nfrom a import e\n",
        ["re", "d", "e"],
        "import os\nfrom a import (\n    b,\n)\nimport re\nfrom a import c as d, e\n\nx = 1\n\ndef f(): 1\nimport z\n",
    ],
    [
        "long_import",
        "import os\n",
        f"from a import {'b' * 60}, {'c' * 60}\n",
        ["b" * 60, "c" * 60],
        f"import os\nfrom a import (\n    {'b' * 60},\n    {'c' * 60},\n)\n",
    ],
    [
        "new_relative_import",
        "from .a import b\n",
        "from .c import d\nfrom . import e\nfrom ..f import g\n",
        ["d", "e", "g"],
        "from . import e\nfrom .a import b\nfrom .c import d\nfrom ..f import g\n",
    ],
    [
        "new_import_in_its_place",
        "import a\nfrom monai.b import b\n\nfrom monai.d import d\nfrom other import z\n\nx = 1\n",
        "from monai.e import e\nfrom monai.c import c\n",
        ["c", "e"],
        "import a\nfrom monai.b import b\nfrom monai.c import c\n\nfrom monai.d import d\nfrom monai.e import e\n"
        "from other import z\n\nx = 1\n",
    ],
    [
        "new_import_before_relative_ones",
        "import re\n\nfrom .a import a\nfrom .b import b\n",
        "from monai.c import c\nfrom monai.d import d\nimport z\n\nSIZE = c()\n",
        ["c", "d", "z", "SIZE"],
        "import re\n\nfrom monai.c import c\nfrom monai.d import d\n\n"
        "from .a import a\nfrom .b import b\nimport z\n\nSIZE = c()\n",
    ],
    [
        "new_name_of_an_imported_module",
        "from .a import A, MANY, b\n",
        "from .a import FEW, C, a\n",
        ["FEW", "C", "a"],
        "from .a import FEW, MANY, A, C, a, b\n",
    ],
    [
        "new_name_beside_a_comment",
        "from .a import b  # noqa: F401\n",
        "from .a import c\n",
        ["c"],
        "from .a import b  # noqa: F401\nfrom .a import c\n",
    ],
    [
        "new_import_behind_future",
        "from __future__ import annotations\n\nx = 1\n",
        "from __future__ import annotations\n\nimport re\n",
        ["re"],
        "from __future__ import annotations\n\nimport re\n\nx = 1\n",
    ],
    [
        "new_import_behind_docstring",
        '# license\n"""Text."""\nx = 1\n',
        "import re\n",
        ["re"],
        '# license\n"""Text."""\n\nimport re\nx = 1\n',
    ],
    ["new_import_before_code", "# license\n\nx = 1\n", "import re\n", ["re"], "# license\n\nimport re\n\n\nx = 1\n"],
    ["new_import_in_a_file_of_comments", "# license\n", "import re\n", ["re"], "# license\n\nimport re\n"],
    [
        "known_imports",
        "import os, re as r\nfrom monai.blocks.a import b as c\ntry:\n    import q\nexcept E:\n    pass\ndef f(): 1\n",
        "import os\nimport re as r\nimport q\nfrom .a import b as c\ndef f(): 2\n",
        [],
        "import os, re as r\nfrom monai.blocks.a import b as c\ntry:\n    import q\nexcept E:\n    pass\ndef f(): 2\n",
    ],
    [
        "known_imports_in_other_words",
        "import a.b as b\nfrom c import d as e\ntry:\n    import q\nexcept E:\n    q = None\ndef f(): 1\n",
        "import c.d as e\nimport q\nfrom a import b\ndef f(): 2\n",
        [],
        "import a.b as b\nfrom c import d as e\ntry:\n    import q\nexcept E:\n    q = None\ndef f(): 2\n",
    ],
    [
        "names_of_the_file_itself",
        BOUND_IN_MANY_WAYS + "def f(): 1\n",
        f"from {PATH[:-3].replace('/', '.')} import T, has, i, p\nfrom .m import tqdm\ndef f(): 2\n",
        [],
        BOUND_IN_MANY_WAYS + "def f(): 2\n",
    ],
    [
        "import_of_what_was_for_types_alone",
        "if TYPE_CHECKING:\n    from a import T\nx = 1\n",
        "from a import T\n",
        ["T"],
        "from a import T\n\n\nif TYPE_CHECKING:\n    from a import T\nx = 1\n",
    ],
    [
        "import_in_place_of_a_definition",
        "x = 1\n\n\n@d\nclass C(D):\n    y = 1\n\n\nz = 1\n",
        "from a import C\n",
        [],
        "x = 1\n\n\nfrom a import C  # noqa: E402, F401\n\n\nz = 1\n",
    ],
    [
        "import_in_place_of_the_first_definition",
        '"""Text."""\nimport x\n\n\nclass C(D):\n    y = 1\n',
        "from a import C\n",
        [],
        '"""Text."""\nimport x\n\n\nfrom a import C\n',
    ],
    [
        "import_that_served_a_replaced_definition",
        "import a\nfrom b import c, d\nfrom e import (\n    f,\n    g,\n)\n\n\ndef h(): a, c, f\n\n\nd\n",
        "def h(): 1\n",
        [],
        "import a  # noqa: F401\nfrom b import c, d  # noqa: F401\n"
        "from e import (  # noqa: F401\n    f,\n    g,\n)\n\n\nFORK\n\n\nd\n",
    ],
]

# the same, and what is told
TEST_CASES_REFUSED = [
    ["vanished_function", "x = 1\n", "def f(): 2\n", [], "should replace 'f'", "no such name", "'adds:'"],
    ["vanished_method", "class C:\n    x = 1\n", "class C:\n    def f(self): 2\n", [], "'C.f'", "no such name"],
    ["vanished_class", "x = 1\n", "class C:\n    def f(self): 2\n", [], "'C'", "no such name"],
    ["vanished_constant", "x = 1\n", "y = 1\n", [], "'y'", "no such name"],
    [
        "vanished_setter",
        "class C:\n    @property\n    def x(self): 1\n",
        "class C:\n    @x.setter\n    def x(self, v): 1\n",
        [],
        "'C.x.setter'",
        "no such name",
    ],
    ["vanished_docstring", "class C:\n    x = 1\n", 'class C:\n    """D."""\n', [], "'C.__doc__'", "no such name"],
    ["local_function", "def g():\n    def f(): 1\n", "def f(): 2\n", [], "'f'", "no such name"],
    ["twice", "def f(): 1\nx = 1\ndef f(): 1\n", "def f(): 2\n", [], "'f'", "sets it 2 times (lines 1, 3)"],
    ["in_both_branches", "if a:\n    def f(): 1\nelse:\n    def f(): 1\n", "def f(): 2\n", [], "2 times (lines 2, 4)"],
    ["in_a_branch", "try:\n    def f(): 1\nexcept E: 1\n", "def f(): 2\n", [], "'f'", "in 'def f(): 1' (line 2)"],
    ["set_again", "def f(): 1\nf = deprecated(f)\n", "def f(): 2\n", [], "2 times (lines 1, 2)"],
    ["added_to", "X = [1]\nX += [2]\n", "X = [3]\n", [], "2 times (lines 1, 2)"],
    ["one_of_two_targets", "a, b = g()\n", "a = 1\n", [], "'a'", "in 'a, b = g()' (line 1)"],
    ["chained_targets", "a = b = 1\n", "a = 2\n", [], "'a'", "in 'a = b = 1'"],
    ["imported_there", "from x import f\n", "def f(): 2\n", [], "'f'", "in 'from x import f' (line 1)"],
    [
        "imported_otherwise",
        "from x import f\n",
        "from y import f\n",
        [],
        "'f'",
        "in 'from x import f' (line 1): import it so",
    ],
    [
        "another_kind",
        "def C(): 1\n",
        "class C:\n    x = 1\n",
        [],
        "'C'",
        "a function in MONAI 1.0.0's file and a class here",
    ],
    ["constant_for_a_function", "def f(): 1\n", "f = 1\n", [], "a function", "a constant here"],
    ["other_bases", "class C(A):\n    x = 1\n", "class C:\n    x = 2\n", [], "'class C()'", "'class C(A)'"],
    ["other_keywords", "class C(metaclass=M):\n    x = 1\n", "class C(metaclass=N):\n    x = 2\n", [], "metaclass=M"],
    ["other_decorators", "@dataclass\nclass C:\n    x = 1\n", "class C:\n    x = 2\n", [], "'@dataclass class C()'"],
    ["without_overloads", "@overload\ndef f(): 1\ndef f(): 2\n", "def f(): 3\n", [], "'f'", "overloads"],
    ["shares_a_line", "a = 1; b = 2\n", "b = 3\n", [], "'b'", "another statement stands on its line", "(1)"],
    ["shares_a_line_with_the_next", "a = 1; b = 2\n", "a = 3\n", [], "'a'", "another statement"],
    ["class_on_one_line", "class C: x = 1\n", "class C:\n    x = 2\n", [], "'C.x'", "another statement"],
    [
        "class_on_one_line_below_its_bases",
        "class C(\n    A): x = 1\n",
        "class C(A):\n    x = 2\n",
        [],
        "another statement",
    ],
    ["addition_to_a_class_on_one_line", "class C: pass\n", "class C:\n    y = 2\n", ["C.y"], "'C'", "on one line"],
    ["new_exists", "def f(): 1\n", "def f(): 2\n", ["f"], "should add 'f'", "has it"],
    ["new_exists_under_a_condition", "if a:\n    f = 1\n", "def f(): 2\n", ["f"], "should add 'f'", "has it"],
    ["new_member_exists", "class C:\n    x = 1\n", "class C:\n    x = 2\n", ["C.x"], "should add 'C.x'", "has it"],
    ["new_import_exists", "import re\n", "import re\n", ["re"], "should add 're'", "has it"],
    ["new_import_is_a_definition", "def f(): 1\n", "from a import f\n", ["f"], "should add 'f'", "has it"],
    ["new_is_missing", "def f(): 1\n", "def f(): 2\n", ["g"], "should add 'g'", "does not hold it"],
    [
        "new_docstring",
        "class C:\n    x = 1\n",
        'class C:\n    """D."""\n',
        ["C.__doc__"],
        "'C.__doc__'",
        "only be replaced",
    ],
    ["import_that_is_not_named_new", "x = 1\n", "import re\n", [], "'re'", "no such name", "'adds:'"],
    ["own_name_vanished", "def f(): 1\n", "from .m import g\ndef f(): 2\n", [], "'g' from itself", "no such name"],
    ["own_name_renamed", "def f(): 1\nx = 1\n", "from .m import x as y\ndef f(): 2\n", [], "'x' from itself"],
    ["star", "def f(): 1\n", "from a import *\ndef f(): 2\n", [], "imports 'a'"],
    ["submodule", "def f(): 1\n", "import os.path\ndef f(): 2\n", [], "imports 'os.path'"],
    ["future", "def f(): 1\n", "from __future__ import annotations\ndef f(): 2\n", [], "'annotations' from __future__"],
    ["nothing_replaced", "def f(): 1\n", '"""About."""\n', [], "changes nothing"],
    ["known_imports_alone", "import re\n", "import re\n", [], "changes nothing"],
    ["empty", "def f(): 1\n", "", [], "changes nothing"],
    ["the_same", "# a\ndef f(): 1\ndef g(): 1\n", "def f(): 1\ndef g(): 2\n", [], "holds 'f' just as MONAI 1.0.0"],
    ["defined_twice_here", "def f(): 1\n", "def f(): 2\ndef f(): 3\n", [], "sets 'f' more than once"],
    ["imported_and_defined_here", "def f(): 1\n", "from a import f\ndef f(): 3\n", [], "sets 'f' more than once"],
    ["shares_a_line_here", "a = 1\nb = 2\n", "a = 3; b = 4\n", [], "on the line of 'a'"],
    ["statement", "def f(): 1\n", "print(1)\ndef f(): 2\n", [], "not 'print(1)' (line 1)"],
    ["condition", "def f(): 1\n", "if a:\n    def f(): 2\n", [], "not 'if a:'"],
    ["two_targets_here", "a = 1\nb = 1\n", "a, b = 2, 2\n", [], "not 'a, b = 2, 2'"],
    ["statement_in_a_class", "class C:\n    x = 1\n", "class C:\n    x = 2\n    del y\n", [], "not 'del y'"],
    ["import_in_a_class", "class C:\n    x = 1\n", "class C:\n    import re\n    x = 2\n", [], "not 'import re'"],
    ["dunder_all", "__all__ = ['a']\na = 1\n", "__all__ = ['a', 'b']\na = 2\n", [], "'__all__'"],
    [
        "no_python",
        "def f(): 1\n",
        "def f(: 2\n",
        [],
        "the fork's 'monai/blocks/m.py' cannot be read as Python",
        "line 1",
    ],
    ["no_python_there", "print 1\n", "def f(): 2\n", [], "MONAI 1.0.0's 'monai/blocks/m.py' cannot be read as Python"],
    ["zero_byte", "def f(): 1\n", "def f(): 2\n\0", [], "cannot be read as Python"],
    [
        "not_together",
        "def f(): 1\n",
        "def f(): 2\nx = (yield)\n",
        ["x"],
        "do not go together",
    ],
]


def amended(theirs: str, ours: str, adds: list[str]) -> Amendment:
    return amend(PATH, ours.encode(), theirs.encode(), tuple(adds), "MONAI 1.0.0")


def functions(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | None, ast.stmt]]:
    """The functions of a module, and of its classes with the class, whose names are set once."""
    for owner in [None, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        inside = list(ast.walk(owner or tree))
        names = Counter(getattr(node, "name", getattr(node, "id", "")) for node in inside if not _is_read(node))
        for node in (owner or tree).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and names[node.name] == 1:
                yield owner, node


def _is_read(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Load)


def comments(text: bytes) -> Counter:
    """How often each comment stands in a text."""
    tokens = tokenize.tokenize(io.BytesIO(textwrap.dedent(text.decode()).encode()).readline)
    return Counter(token.string for token in tokens if token.type == tokenize.COMMENT)


class TestAmend(unittest.TestCase):
    @parameterized.expand(TEST_CASES_MERGED)
    def test_merged(self, _name, theirs, ours, adds, expected):
        got = amended(theirs, ours, adds)
        self.assertEqual(got.problems, ())
        self.assertEqual(got.text.decode(), expected.replace("FORK", ours.rstrip("\n")))
        self.assertEqual(sorted(got.added), sorted(adds))

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused(self, _name, theirs, ours, adds, *needed):
        problems = amended(theirs, ours, adds).problems
        self.assertTrue(problems)
        for text in (*needed, f"'{PATH}'"):
            self.assertIn(text, problems[0])
        self.assertEqual([text for text in problems if "\n" in text], [])

    def test_names_what_is_replaced(self):
        theirs = 'class C:\n    """D."""\n    @property\n    def x(self): 1\n    @x.setter\n    def x(self, v): 1\n'
        theirs += "def f(): 1\n"
        ours = 'class C:\n    """E."""\n    @x.setter\n    def x(self, v): 2\nfrom a import f\n'
        self.assertEqual(sorted(amended(theirs, ours, []).replaced), ["C.__doc__", "C.x.setter", "f"])

    def test_every_problem_is_told(self):
        problems = amended("x = 1\n", "def f(): 1\ndef g(): 1\nimport re\n", ["h"]).problems
        for name in ("'f'", "'g'", "'re'", "'h'"):
            self.assertEqual(sum(name in text for text in problems), 1, name)

    def test_text_of_a_definition(self):
        text = b"# why\n\n# f\n@d\ndef f(): 1\nclass C:\n    class D:\n        x = 1\n"
        text += b"if a:\n    g = 1\ndef h(): 1\ndef h(): 2\n"
        for name, expected in (("f", b"# f\n@d\ndef f(): 1\n"), ("C.D.x", b"        x = 1\n")):
            self.assertEqual(definition_text(PATH, text, name), expected)
        self.assertEqual([definition_text(PATH, text, name) for name in ("g", "h", "C.x", "C.D.y")], [None] * 4)
        self.assertEqual(
            [has_name(PATH, text, name) for name in ("g", "h", "C.D.x", "C.D", "z", "C.x")], [1, 1, 1, 1, 0, 0]
        )


class TestAmendTheRelease(unittest.TestCase):
    def check(self, path: str, text: bytes, tree: ast.Module, owner: ast.ClassDef | None, function: ast.stmt) -> None:
        """The statements of the release's ``text`` are those of ``tree`` once ``function`` is as it is there."""
        ours, name = function, function.name
        if owner:
            ours, name = copy.copy(owner), f"{owner.name}.{name}"
            ours.body = [function]
        got = amend(path, f"{ast.unparse(ours)}\n".encode(), text, (), "MONAI")
        self.assertEqual((got.problems, got.replaced, got.added), ((), (name,), ()))
        self.assertEqual(ast.dump(ast.parse(got.text)), ast.dump(tree))
        marks = Counter({"# noqa: F401": got.text.count(MARK) - text.count(MARK)})
        self.assertEqual(comments(got.text) - marks, comments(text) - comments(definition_text(path, text, name)))

    def test_a_replaced_body_changes_nothing_else(self):
        release, tried = fork.pristine(), 0
        for path in [path for path in package_files(release) if path.endswith(".py")][::20]:
            text = (release / path).read_bytes()
            tree = ast.parse(text)
            for owner, function in list(functions(tree))[:4]:
                before, function.body = function.body, ast.parse("raise NotImplementedError('by the fork')").body
                with self.subTest(path=path, name=function.name):
                    self.check(path, text, tree, owner, function)
                function.body = before
                tried += 1
        self.assertGreater(tried, 30)


if __name__ == "__main__":
    unittest.main()
