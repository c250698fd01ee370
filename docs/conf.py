"""How Sphinx makes the site: ``make docs`` writes it to build/docs.

Nothing on a page comes from a network: the theme brings its fonts and icons, formulas are set by
KaTeX, whose program comes with sphinxcontrib-katex and whose fonts and style sheet are in _static.
"""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
# One thread each: the models are small, and threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from sphinx.errors import ExtensionError  # noqa: E402
from sphinxcontrib.katex import katex_version  # noqa: E402

import mamba_np  # noqa: E402

project, author = "mamba_np", "the mamba_np maintainers"
project_copyright = author
version = release = mamba_np.__version__

extensions = [
    "site_files",  # brings in what lies outside of docs/, and turns links to files into links
    "api_pages",  # a page for each public module; before autodoc, which reads them
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.katex",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["README.md", "gallery", "_ext", "_static", "auto_gallery/*.ipynb"]
exclude_patterns += ["sg_execution_times.rst", "auto_gallery/sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # sphinx_gallery_conf holds a function; nothing is lost

# --- pages in Markdown, and notebooks ------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they hold their outputs, which a test makes again
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
nb_merge_streams = True

# --- formulas ------------------------------------------------------------------------------------

KATEX = "0.16.22"  # of _static/katex
if katex_version != KATEX:
    raise ExtensionError(
        f"docs/_static/katex: expected KaTeX {katex_version}, as sphinxcontrib-katex has it, "
        f"found {KATEX}; take katex.min.css, the fonts it names and LICENSE from its release"
    )
katex_css_path = "katex/katex.min.css"

# --- the gallery ---------------------------------------------------------------------------------

warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive", UserWarning)
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "auto_gallery/backreferences",
    "doc_module": ("mamba_np",),
    "reference_url": {"mamba_np": None},
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "image_srcset": ["2x"],
    "remove_config_comments": True,
}

# --- the reference -------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are shown as they are written, see _ext/api_pages.py
numpydoc_show_class_members = False
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# Names in annotations that belong to others, whose documentation is not at hand while a page is
# made. Names of this package that cannot be found are errors.
_OTHERS = """
    AbstractContextManager Any ArrayLike Axes BinaryIO Callable Figure IO Iterable Iterator Mapping
    NDArray PathLike Sequence Set TextIO ModuleType Path bool bytes complex
    dict float int list object set str tuple type None
    np.dtype np.float64 np.integer np.ndarray np.random.Generator os.PathLike Self
    tokenizers.Tokenizer
"""
# Names of this package without a page: aliases, whose meaning is said in the docstring, and
# classes that users are given and need not name.
_UNNAMED = """
    Arrays Batch GradientFunction LogitsProcessor StoppingCriterion
    Request StreamDecoder Target TokenizerSettings _Task
"""
nitpicky = True
nitpick_ignore = [("py:class", name) for name in (_OTHERS + _UNNAMED).split()]

# --- how it looks --------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "mamba_np"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "mamba_np"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
html_sidebars = {"index": []}
copybutton_exclude = ".linenos, .gp, .go"
