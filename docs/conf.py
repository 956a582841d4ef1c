"""Settings of the documentation's site; `make docs` builds it into docs/_build (ADR 18)."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))
# Importing Airflow writes its settings into its home; TensorFlow reports its devices on stderr.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="tfmot-ops-docs-"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfmot_ops import __version__  # noqa: E402 - found through the line above

project = "tfmot_ops"
author = "the tfmot_ops maintainers"
copyright = author  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.site.extension"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"tfmot_ops {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# Headings of the first four levels are targets of links, and a link without its target is a warning.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]

# Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
