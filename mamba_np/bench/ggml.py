"""llama.cpp: the weights as GGUF files, its benchmark program, its scan operator by itself."""

import ctypes
import hashlib
import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import equations as eq
from .blocks import Absent
from .timing import Job, median_of, scan_arrays

LIBRARIES = ("libggml-base.so", "libggml-cpu.so")
"""What the scan operator is called from; they lie beside llama-bench."""

# --- files ---------------------------------------------------------------------------------------


def gguf_file(model: Path, work: Path, kind: str, llama_bench: Path) -> Path:
    """Return the checkpoint as a GGUF file of one format, made in ``work`` unless it is there.

    Formats other than F32 are made by llama-quantize, beside llama-bench. Raises Absent.
    """
    shape = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()[:8]
    first, target = (work / f"{model.name}-{shape}-{one}.gguf" for one in ("F32", kind))
    if not first.is_file():
        part = first.with_suffix(".part")
        write_gguf(model, part)
        part.replace(first)
    if not target.is_file():
        quantize = llama_bench.parent / "llama-quantize"
        if not quantize.is_file():
            raise Absent("not installed: llama-quantize, beside llama-bench")
        part = target.with_suffix(".part")
        _output_of([quantize, first, part, kind])
        part.replace(target)
    return target


def write_gguf(model: Path, target: Path) -> None:
    """Write a checkpoint's weights as a float32 GGUF file without a vocabulary.

    Raises Absent without the package gguf.
    """
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Absent("not installed: gguf, which writes llama.cpp's files") from error
    from ..model import MambaForCausalLM

    loaded = MambaForCausalLM.from_pretrained(model)
    writer = gguf.GGUFWriter(str(target), "mamba")
    _write_sizes(writer, loaded.config)
    for name, array in _tensors(loaded.params):
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, config: Any) -> None:
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)


def _tensors(params: Any) -> list[tuple[str, NDArray]]:
    """Return llama.cpp's names and the arrays of a model."""
    found = [("token_embd.weight", params.embeddings), ("output_norm.weight", params.norm_f)]
    if not params.tied:
        found.append(("output.weight", params.lm_head))
    for i, layer in enumerate(params.layers):
        arrays = {
            "attn_norm.weight": layer.norm,
            "ssm_in.weight": layer.in_proj,
            "ssm_conv1d.weight": layer.conv,
            "ssm_conv1d.bias": layer.conv_bias,
            "ssm_x.weight": layer.x_proj,
            "ssm_dt.weight": layer.dt_proj,
            "ssm_dt.bias": layer.dt_bias,
            "ssm_a": eq.continuous_A(layer.A_log),
            "ssm_d": layer.D,
            "ssm_out.weight": layer.out_proj,
        }
        found += [(f"blk.{i}.{name}", array) for name, array in arrays.items()]
    return found


def _output_of(command: list[Any]) -> str:
    """Run a program of llama.cpp's and return what it prints. Raises Absent if it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    except OSError as error:
        raise Absent(f"{name} does not start: {error.strerror}") from error
    if done.returncode != 0:
        raise Absent(f"{name} failed: {' '.join(done.stderr.split())[-200:]}")
    return done.stdout


# --- whole models --------------------------------------------------------------------------------


class LlamaBench:
    """llama-bench with one file; each block is a run of it, which warms up by itself."""

    def __init__(self, binary: Path | None, model: Path, work: Path, kind: str):
        self.binary, self.model, self.work, self.kind = binary, model, work, kind
        self.file: Path | None = None

    def prepare(self) -> None:
        """Make the model's file."""
        if self.binary is None or not self.binary.is_file():
            raise Absent("not installed: llama-bench (see --llama-bench)")
        if self.file is None:
            self.file = gguf_file(self.model, self.work, self.kind, self.binary)

    def ask(self, job: Job) -> dict[str, Any]:
        """Return tokens a second of a prefill (last position's logits) or of a decode."""
        self.prepare()
        what = self.options(job)
        command = [self.binary, "-m", self.file, "-t", job["threads"], "-o", "json", *what]
        found = json.loads(_output_of(command))[0]
        return {
            "value": statistics.median(found["samples_ts"]),
            "version": f"{found['build_commit']} ({found['build_number']})",
        }

    @staticmethod
    def options(job: Job) -> list[str]:
        """Return llama-bench's options for a job. Raises Absent for what it does not do."""
        if job["do"] == "prefill":
            warm = [] if job.get("warm_up", True) else ["--no-warmup"]
            return ["-p", str(job["length"]), "-n", "0", "-r", str(job["repeats"]), *warm]
        if job["batch"] != 1:
            raise Absent("llama-bench decodes one text at a time")
        return ["-p", "0", "-n", str(job.get("tokens", 32)), "-r", "3"]

    def processes(self) -> list[int]:
        """Return nothing: each run has ended."""
        return []

    def close(self) -> None:
        """Do nothing: nothing is left running."""


# --- the scan alone ------------------------------------------------------------------------------


class _InitParams(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("empty", ctypes.c_bool))


class GgmlScan:
    """llama.cpp's operator SSM_SCAN by itself, from the libraries beside llama-bench.

    It is called on the same numbers as ours. Its softplus of the step sizes is part of it; the
    skip connection and the gate are not.
    """

    def __init__(self, folder: str, L: int, E: int, N: int):
        paths = [Path(folder, name) for name in LIBRARIES]
        if not folder or not all(path.is_file() for path in paths):
            raise ImportError(name=f"{' and '.join(LIBRARIES)}, beside llama-bench")
        self.base, self.cpu = (ctypes.CDLL(os.fspath(p), ctypes.RTLD_GLOBAL) for p in paths)
        for name in ("init", "new_tensor_4d", "get_data", "ssm_scan", "new_graph"):
            getattr(self.base, f"ggml_{name}").restype = ctypes.c_void_p
        self.cpu.ggml_cpu_init()
        room = 4 * (4 * L * E + 4 * L * N + 4 * E * N) + 2**26
        self.context = ctypes.c_void_p(self.base.ggml_init(_InitParams(room, None, False)))
        self.shape = (L, E)
        self.result = self._operator(*scan_arrays(L, E, N))
        self.graph = ctypes.c_void_p(self.base.ggml_new_graph(self.context))
        self.base.ggml_build_forward_expand(self.graph, self.result)

    def _operator(
        self, x: NDArray, delta: NDArray, A: NDArray, B: NDArray, C: NDArray
    ) -> ctypes.c_void_p:
        (L, E), N = x.shape, A.shape[1]
        tensors = [
            self._tensor(np.zeros((E, N), np.float32), N, 1, E, 1),  # the first state
            self._tensor(x, 1, E, L, 1),
            self._tensor(eq.inverse_softplus(delta), E, L, 1, 1),
            self._tensor(A, N, E, 1, 1),
            self._tensor(B, N, 1, L, 1),
            self._tensor(C, N, 1, L, 1),
            self._tensor(np.zeros(1, np.int32), 1, 1, 1, 1),
        ]
        snapshots = ctypes.c_int64(1)  # older versions take no such argument and ignore it
        return ctypes.c_void_p(self.base.ggml_ssm_scan(self.context, *tensors, snapshots))

    def _tensor(self, array: NDArray, *sizes: int) -> ctypes.c_void_p:
        """Return a tensor with a copy of the array; sizes are ggml's, the innermost first."""
        kind = 26 if array.dtype == np.int32 else 0  # GGML_TYPE_I32, GGML_TYPE_F32
        wide = [ctypes.c_int64(size) for size in sizes]
        tensor = ctypes.c_void_p(self.base.ggml_new_tensor_4d(self.context, kind, *wide))
        array = np.ascontiguousarray(array)
        ctypes.memmove(self.base.ggml_get_data(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def scan(self, job: Job) -> float:
        """Return milliseconds of the operator."""
        return 1e3 * median_of(lambda: self.run(job["threads"]), job)

    def run(self, threads: int) -> None:
        """Compute the operator once."""
        compute = self.cpu.ggml_graph_compute_with_ctx
        compute(self.context, self.graph, ctypes.c_int(threads))

    def output(self) -> NDArray:
        """Return y (L, E) of the latest run."""
        L, E = self.shape
        numbers = (ctypes.c_float * (L * E)).from_address(self.base.ggml_get_data(self.result))
        return np.ctypeslib.as_array(numbers).reshape(L, E)
