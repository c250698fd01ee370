"""Source code of the package, shown where it is explained: never a second copy."""

import inspect
from typing import Any


def show(*objects: Any) -> None:
    """Show the source of functions, classes or modules: highlighted in a notebook, else printed.

    A string is shown as it is.
    """
    source = "\n".join(map(_source, objects))
    if _in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(f"```python\n{source.rstrip()}\n```"))
    else:
        print(source)


def _source(one: Any) -> str:
    return one if isinstance(one, str) else inspect.getsource(getattr(one, "py_func", one))


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ModuleNotFoundError:
        return False
    return get_ipython() is not None
