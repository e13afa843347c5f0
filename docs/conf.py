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

"""Sphinx: these pages, and the reference of the interface from the docstrings. ``./runtests.sh --docs`` builds them."""

from __future__ import annotations

project = "MONAI with a reworked attention stack"
copyright = "MONAI Consortium"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the signatures of scripted classes say enough
autodoc_member_order = "bysource"
napoleon_google_docstring = True
html_theme = "alabaster"
html_theme_options = {"page_width": "1200px"}
exclude_patterns = ["configs"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository
