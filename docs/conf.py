"""How `make docs` builds the site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import ramnet_np

project = "ramnet_np"
author = "the ramnet_np authors"
copyright = "the ramnet_np authors, MIT licence"
release = ramnet_np.__version__
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "lite",
    "mathml",
    "notebooks",
    "page_dates",
    "source_pages",
    "house_docstrings",
]
exclude_patterns = ["_build", "_ext", "_lite", "_static"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown with the outputs they were committed with

default_role = "code"
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures, most of them other libraries'
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["jax", "torch"]  # the pages are built without them
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"ramnet_np {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/ramnet.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a84300", "color-brand-content": "#00614a"},
    "dark_css_variables": {"color-brand-primary": "#e8702a", "color-brand-content": "#1fb98b"},
    "light_logo": "ramnet.svg",
    "dark_logo": "ramnet.svg",
}
