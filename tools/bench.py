"""Measure this checkout on this machine, side by side with its peers: as ``mamba-np bench``.

    python tools/bench.py --llama-bench FILE --out docs/benchmarks

The package is this checkout's, whatever is installed. docs/benchmarks/README.md says what is
measured, and how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mamba_np.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
