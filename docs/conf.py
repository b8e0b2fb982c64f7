"""Settings of the site: python -m sphinx -W --keep-going docs build/site"""

project = "fcn_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Semantic segmentation with fully convolutional networks, in JAX",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "show_powered_by": False,
}
html_show_copyright = False
nb_execution_mode = "off"  # the notebooks hold their outputs
nb_merge_streams = True
myst_heading_anchors = 3  # links such as forking.md#a-data-set
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
napoleon_use_ivar = True
default_role = "literal"  # `code` in docstrings
smartquotes = False  # which would change --flags and "names"
