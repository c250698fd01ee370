"""``python -m mamba_np`` is ``mamba-np``."""

from .cli import main

if __name__ == "__main__":
    main()
