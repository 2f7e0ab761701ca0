# SPDX-License-Identifier: Apache-2.0
"""Configuration of the documentation."""

project = "sa_asherah"
author = "The sa_asherah authors"
copyright = "The sa_asherah authors, Apache-2.0"  # noqa: A001 # Sphinx reads this name
extensions = ["myst_parser"]
exclude_patterns = ["_build", "changelog.d"]
html_theme = "furo"
html_title = "sa_asherah"
nitpicky = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
