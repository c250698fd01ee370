"""Docstrings and signatures as the site shows them.

Docstrings are prose in which shapes stand. Three things are done to them: signatures are shown as
they are written in the source (``NDArray``, not what Python makes of it), a comment behind a field
becomes its description, and an indented paragraph becomes a block of code.
"""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from importlib import import_module

import usage
from sphinx.pycode import ModuleAnalyzer

# --- signatures -----------------------------------------------------------------------------------


def written_signature(app, what, name, obj, options, signature, returned):
    """Sphinx asks for a signature: as it is written in the source, where that can be found."""
    if signature is None:  # there is nothing to replace: exceptions, attributes
        return None
    if isinstance(obj, type):
        if hasattr(obj, "__dataclass_fields__") or issubclass(obj, tuple):
            spec = inspect.signature(obj)
            bare = [p.replace(annotation=inspect.Parameter.empty) for p in spec.parameters.values()]
            text = str(spec.replace(parameters=bare, return_annotation=spec.empty))
            return re.sub(r"<factory>|<[^>]*>", "...", text), None
        obj = obj.__init__
    function = _function(inspect.unwrap(getattr(obj, "__func__", obj)))
    if function is None:
        return None
    spec = function.args
    for node in [function, *ast.walk(spec)]:  # 'Axes' in quotes: a name all the same
        for field in ("annotation", "returns"):
            quoted = getattr(node, field, None)
            if isinstance(quoted, ast.Constant) and isinstance(quoted.value, str):
                setattr(node, field, ast.parse(quoted.value, mode="eval").body)
    positional = spec.posonlyargs or spec.args
    if positional and positional[0].arg in ("self", "cls"):
        positional.pop(0)
    result = None if function.returns is None else ast.unparse(function.returns)
    return f"({ast.unparse(spec)})", None if what in ("class", "exception") else result


def _function(obj) -> ast.FunctionDef | None:
    if not inspect.isfunction(obj):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj)))
    except (OSError, SyntaxError):
        return None
    return tree.body[0] if isinstance(tree.body[0], ast.FunctionDef) else None


# --- docstrings -----------------------------------------------------------------------------------


def readable_docstring(app, what, name, obj, options, lines) -> None:
    """Sphinx has read a docstring: mend what reStructuredText would not understand."""
    text = "\n".join(lines).strip()
    if what in ("attribute", "property", "data") and (not text or text.startswith("Alias for")):
        lines[:] = [field_comment(name), ""]
        return
    if what == "data" and text == (inspect.getdoc(type(obj)) or "").strip():
        lines[:] = constant_comment(name).splitlines()
    lines[:] = [escaped(line) for line in with_code_blocks(lines)]


def escaped(line: str) -> str:
    """Return a line in which bars outside of ``code`` are bars: the docstrings' |A| and |alpha|."""
    if line.startswith("    "):
        return line
    parts = line.split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "``".join(parts)


def with_code_blocks(lines: list[str]) -> list[str]:
    """Return the lines with each indented paragraph made a block of code."""
    found, before, inside = [], "", False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and not before and found:
            found += ["::", ""]
            inside = True
        elif line.strip() and not indented:
            inside = False
        found.append(line)
        before = line.strip()
    return found


@cache
def analysed(module: str) -> ModuleAnalyzer:
    """Return what Sphinx knows of a module's source, comments included."""
    analyser = ModuleAnalyzer.for_module(module)
    analyser.analyze()
    return analyser


def constant_comment(name: str) -> str:
    """Return the string below a constant, in whichever module of the package it is defined."""
    module, _, short = name.rpartition(".")
    value, places = usage.thing(name), [module]
    places += [
        m.__name__ for m in list(sys.modules.values()) if m.__name__.startswith(module + ".")
    ]
    for place in places:
        found = analysed(place).attr_docs.get(("", short))
        if found and usage.thing(f"{place}.{short}") is value:
            return "\n".join(found).strip()
    return ""


def field_comment(name: str) -> str:
    """Return what a comment behind a field says, after its annotation: "``NDArray``: (B, L)"."""
    owner, _, field = name.rpartition(".")
    module, _, cls = owner.rpartition(".")
    found = getattr(import_module(module), cls, None) if module else None
    for base in getattr(found, "__mro__", ()):
        if not base.__module__.startswith("mamba_np"):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == field:
                line = source.splitlines()[node.lineno - 1 : node.end_lineno]
                comment = re.search(r"#:?\s*(.*)$", "\n".join(line), re.MULTILINE)
                kind = f"``{ast.unparse(node.annotation)}``"
                return f"{kind}: {comment[1]}" if comment else kind
    return ""
