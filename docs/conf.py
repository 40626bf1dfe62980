"""Sphinx: Markdown pages by hand, the API from the docstrings."""

from __future__ import annotations

import importlib.metadata

project = "serverless-pg-kit"
release = importlib.metadata.version(project)
copyright = "the serverless-pg-kit contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = "literal"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

# Warnings are errors. Names of other projects are not looked up: the build needs no network.
# Type variables have one letter.
nitpick_ignore_regex = [
    ("py:.*", r"(?!serverless_pg_kit\.).*"),
    ("py:class", r".*\.[A-Z]"),
    ("py:class", r".*\.EngineBase"),  # what engines have in common has no page of its own
]

html_theme = "furo"
html_title = f"serverless-pg-kit {release}"
