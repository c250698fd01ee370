"""The engine for NVIDIA GPUs; ``engine`` is the backend, the other modules its parts.

    formulas (the equations, compiled), intrinsics -> sequence, scan, decode, head (kernels)
    -> registry -> compiler -> device, cublas -> arena -> engine

Kernels own loops and memory; formulas stand in ``equations`` and ``polynomials`` alone. Importing
this package loads neither Numba nor a driver: they are loaded where a kernel is compiled or run.
"""
