"""The one error of this package."""


class PTXError(Exception):
    """Text that is not understood, or a fault of a kernel: it says where and which thread."""
