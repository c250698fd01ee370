"""Measuring this package on a machine, side by side with its peers: ``mamba-np bench``.

``plan`` says what is measured, ``blocks`` how programs take turns, ``goals`` what is hoped for and
``report`` what is written. Programs (``ours``, ``limits``, ``peers``, ``ggml``) live in processes
of their own, started by ``worker``; what needs a fresh process each time is in ``once``. PyTorch
and the peers are imported there alone.
"""
