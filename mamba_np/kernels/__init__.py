"""The compiled engine for processors; ``cpu`` is the backend, the other modules its parts.

    options -> lanes, memory -> vectorised (the equations, compiled) -> linear, rows, scan, barrier
    -> step (one token), prefill (many) -> cpu

Kernels own loops and memory; formulas stand in ``equations`` and ``polynomials`` alone. Importing
this package loads Numba only when one of its modules is imported.
"""
