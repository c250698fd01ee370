"""What every notebook shares: exercises that answer, and code that shows itself."""

from .checking import check
from .showing import show

__all__ = ["check", "show"]
