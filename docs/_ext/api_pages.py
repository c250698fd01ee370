"""The pages of the reference: one for each public module, made of what its ``__all__`` names.

How their docstrings and signatures are shown is in ``docstrings``.
"""

import inspect
import re
import types
from functools import cache
from importlib import import_module
from pathlib import Path

import usage
from docstrings import (
    analysed,
    constant_comment,
    escaped,
    readable_docstring,
    written_signature,
)
from sphinx.util.nodes import make_refnode

API = Path(__file__).resolve().parent.parent / "api"

GROUPS = {
    "models": (
        "Models",
        "A model, its configuration, its memory, and what a call returns.",
        (
            *("MambaForCausalLM", "MambaModel", "MambaBlock", "MambaMixer", "MambaConfig"),
            *("MambaCache", "MambaOutput", "MambaCausalLMOutput", "AutoConfig", "AutoModel"),
            *("AutoModelForCausalLM", "bundled_model_path", "set_num_threads", "get_num_threads"),
        ),
    ),
    "text": (
        "Text",
        "From text to ids, from a prompt to more text.",
        (
            *("AutoTokenizer", "Tokenizer", "BatchEncoding", "GenerationConfig", "GenerateOutput"),
            *("TokenStream", "TextStreamer", "TextIteratorStreamer"),
        ),
    ),
}
"""Names of ``mamba_np`` itself: page, title, what it is about, names."""

MODULES = {
    "scoring": "Scoring",
    "trace": "Traces",
    "analysis": "Analysis",
    "analysis.identities": "Identities",
    "plot": "Plots",
    "interventions": "Interventions",
    "report": "Reports",
    "gradients": "Gradients",
    "training": "Training",
    "lora": "Adapters (LoRA)",
    "ops": "Operators",
    "equations": "Equations",
    "derivatives": "Derivatives",
    "lti": "Time-invariant systems",
    "scans": "Scans",
    "reference": "The forward pass",
    "backward": "The backward pass",
    "backend": "Backends",
    "params": "Weights",
    "errors": "Errors",
}
"""Modules with a page: their names below ``mamba_np``, and titles."""

ONLY = {"gradients": ("loss_and_gradients",), "params": ("Params", "Layer")}
"""Modules of which some names alone are for users."""

LEFT_OUT = {"TracingMixin", "InterveneMixin"}  # bases of models, where their methods are shown
LEFT_OUT |= {"Intervention"}  # what runs inside ``model.intervene``
FOREIGN = ("object", "dict", "tuple", "OrderedDict", "UserDict", "Mapping", "MutableMapping")
SPECIAL = "__call__"


# --- what stands on which page -------------------------------------------------------------------


def public_names(module: types.ModuleType) -> list[str]:
    """Return the names of a module's page: ``__all__``, or what is defined and documented in it."""
    short = module.__name__.removeprefix("mamba_np.")
    if short in ONLY:
        return list(ONLY[short])
    if hasattr(module, "__all__"):
        own = [name for name in module.__all__ if name not in LEFT_OUT]
        return [name for name in own if not inspect.ismodule(getattr(module, name))]
    documented = {name for scope, name in analysed(module.__name__).attr_docs if not scope}
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (name in documented or getattr(value, "__module__", None) == module.__name__)
        and (name in documented or inspect.isroutine(value) or inspect.isclass(value))
    ]


def pages() -> dict[str, tuple[str, str, str, list[str]]]:
    """Return {page: (module, title, first lines, names)} of the whole reference."""
    found = {}
    for page, (title, about, names) in GROUPS.items():
        found[page] = ("mamba_np", title, about, list(names))
    for name, title in MODULES.items():
        module = import_module(f"mamba_np.{name}")
        about = f".. automodule:: {module.__name__}\n   :no-members:\n   :no-index:"
        found[name] = (module.__name__, title, about, public_names(module))
    return found


def page_of_file(path: str) -> str | None:
    """Return the page of a module by its path in the repository; None where it has none."""
    name = path.removeprefix("mamba_np/").removesuffix(".py").removesuffix("/__init__")
    return f"api/{name}.rst" if name.replace("/", ".") in MODULES else None


# --- writing them --------------------------------------------------------------------------------


def entry(module: str, name: str, galleries: Path) -> str:
    """Return the directives for one name of a module."""
    owner = import_module(module)
    value, full = getattr(owner, name), f"{module}.{name}"
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        text = f".. auto{kind}:: {full}\n{_class_options(value)}"
    elif callable(value):
        text = f".. autofunction:: {full}\n"
    else:
        hidden = "   :no-value:\n" if constant_comment(full) else ""
        text = f".. autodata:: {full}\n{hidden}"
    if (galleries / f"{full}.examples").exists():
        text += f"\n.. minigallery:: {full}\n"
    return text


def _class_options(cls: type) -> str:
    if issubclass(cls, BaseException):
        return "   :show-inheritance:\n"
    own = {"members": "", "special-members": SPECIAL}
    if issubclass(cls, tuple):
        own |= {"undoc-members": "", "exclude-members": "count, index, __new__, __init__"}
    else:
        shown = [base.__name__ for base in cls.__mro__[1:] if base.__name__ in _documented()]
        own["inherited-members"] = ", ".join([*shown, *FOREIGN])
        own["exclude-members"] = "forward, __init__"  # another name of a call
        if hasattr(cls, "__dataclass_fields__"):
            own["undoc-members"] = ""
    return "".join(f"   :{key}: {value}".rstrip() + "\n" for key, value in own.items())


@cache
def _documented() -> frozenset[str]:
    return frozenset(name for *_, names in pages().values() for name in names)


def page_text(page: str, galleries: Path) -> str:
    """Return a page in reStructuredText."""
    module, title, about, names = pages()[page]
    where = f"``{module}``" if page in MODULES else "``mamba_np``"
    parts = [f"{title}\n{'=' * len(title)}", where, about]
    parts += [f".. currentmodule:: {module}", names_table(module, names)]
    for name in names:
        parts.append(entry(module, name, galleries))
        if used := usage.links(f"{module}.{name}"):
            parts.append(f".. container:: used-in\n\n   Used in {', '.join(used)}.")
    return "\n\n".join(parts) + "\n"


def names_table(module: str, names: list[str]) -> str:
    """Return a table of names and the first sentences of their docstrings."""
    lines = [".. list-table::", "   :class: names", "   :widths: 25 75", ""]
    for name in names:
        lines.append(f"   * - :py:obj:`{name} <{module}.{name}>`")
        lines.append(f"     - {escaped(first_sentence(f'{module}.{name}'))}")
    return "\n".join(lines)


def first_sentence(name: str) -> str:
    """Return the first sentence of a docstring, or of what stands below a constant."""
    value = usage.thing(name)
    text = inspect.getdoc(value) if inspect.isroutine(value) or inspect.isclass(value) else None
    paragraph = " ".join((text or constant_comment(name)).partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.) (?=[A-Z`])", paragraph)[0]


def index_text() -> str:
    """Return the page that lists all others with the names on them."""
    lines = ["API", "===", "", "The names of the first two groups are imported from ``mamba_np``,"]
    lines += ["the others from the module beside their title; the most used of those from both."]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    lines += [f"   {page}" for page in pages()] + [""]
    for page, (module, title, _, names) in pages().items():
        head = f":doc:`{title} <{page}>`"
        head += f" ``{module}``" if page in MODULES else ""
        listed = ", ".join(f":py:obj:`{name} <{module}.{name}>`" for name in names)
        lines += [head, f"   {listed}", ""]
    return "\n".join(lines)


def write_pages(app) -> None:
    """Write what has changed, after the gallery has said which example uses what."""
    API.mkdir(exist_ok=True)
    galleries = Path(app.srcdir) / app.config.sphinx_gallery_conf["backreferences_dir"]
    texts = {page: page_text(page, galleries) for page in pages()} | {"index": index_text()}
    for page, text in texts.items():
        path = API / f"{page}.rst"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for old in API.glob("*.rst"):
        if old.stem not in texts:
            old.unlink()


# --- Sphinx ---------------------------------------------------------------------------------------


def resolve_short_name(app, env, node, contnode):
    """An annotation names a class of this package without its module: find the only one."""
    if node["refdomain"] != "py" or "." in node["reftarget"]:
        return None
    domain, target = env.get_domain("py"), node["reftarget"]
    found = [
        (name, one)
        for name, one in domain.objects.items()
        if name.rpartition(".")[2] == target and one.objtype in ("class", "exception", "data")
    ]
    pages = {(one.docname, one.node_id) for _, one in found}
    if len(pages) != 1:
        return None
    docname, anchor = pages.pop()
    return make_refnode(app.builder, node["refdoc"], docname, anchor, contnode, found[0][0])


def setup(app) -> dict:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")  # whose events these are
    app.connect("builder-inited", write_pages, priority=900)
    app.connect("autodoc-process-signature", written_signature)
    app.connect("autodoc-process-docstring", readable_docstring)
    app.connect("missing-reference", resolve_short_name)
    return {"parallel_read_safe": True}
