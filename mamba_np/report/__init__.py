"""A trace as a page to look at: one HTML file that needs nothing else, and notebooks' own view.

``contents`` says what is on it, ``packing`` makes it small, ``page`` puts it together. The folder
``templates`` holds the page itself; all numbers come from ``mamba_np.analysis``.
"""

from .contents import CAPTURE
from .page import frame_of, html_of, save_report

__all__ = ["CAPTURE", "frame_of", "html_of", "save_report"]
