"""What is measured, with which programs, in which order."""

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..bundled import bundled_model_path
from ..config import MambaConfig
from . import once, sizes, training
from .blocks import Entry, Program, interleave, key
from .ggml import LlamaBench
from .options import FORMATS, GROUPS, SHAPE, Options, work_folder
from .timing import Job
from .worker import Afresh, Worker

BATCHES = (1, 8)
LONG = 512
"""Tokens of a prompt beyond which a call takes seconds: it is not repeated within a block."""

MEMORY_SECONDS = 10
"""How long a prompt is repeated, at least, where the time per token is compared."""


class Plan:
    """One run: its options, and the programs that take part."""

    def __init__(self, options: Options):
        self.options = o = options
        self.work = (o.work or work_folder()).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = checkpoint(o.model, self.work)
        self.step_gigabytes = step_gigabytes(self.model)
        model = str(self.model)
        self.machine: Program = Worker("limits", {"floats": o.floats})
        self.ours: dict[str, Program] = {
            f"ours {dtype}": Worker("ours", {"model": model, "dtype": dtype, "backend": o.backend})
            for dtype in o.dtypes
        }
        self.peers = self._peers(model)
        self.scans = self._scans()
        self._others: list[Program] = []

    def _peers(self, model: str) -> dict[str, Program]:
        found: dict[str, Program] = {}
        if "llama.cpp" in self.options.peers:
            for kind in FORMATS:
                program = LlamaBench(self.options.llama_bench, self.model, self.work, kind)
                found[f"llama.cpp {kind}"] = program
        for name in ("transformers", "mambapy"):
            if name in self.options.peers:
                found[name] = Worker(name, {"model": model})
        return found

    def _scans(self) -> dict[str, tuple[Program, str]]:
        """Return the programs that do the scan alone, and what each is asked to do."""
        shape, binary = self.options.scan, self.options.llama_bench
        torch = Worker("torch-scan", shape)
        ggml = Worker("ggml-scan", {"folder": str(binary.parent) if binary else "", **shape})
        found: dict[str, tuple[Program, str]] = {"ours": (Worker("scan", shape), "scan")}
        theirs: dict[str, tuple[str, tuple[Program, str]]] = {
            "llama.cpp": ("llama.cpp", (ggml, "scan")),
            "torch loop": ("transformers", (torch, "scan")),
            "mambapy pscan": ("mambapy", (torch, "pscan")),
        }
        return found | {n: one for n, (peer, one) in theirs.items() if peer in self.options.peers}

    def close(self) -> None:
        """End all processes."""
        scans = (program for program, _ in self.scans.values())
        each = (self.machine, *self.ours.values(), *self.peers.values(), *scans, *self._others)
        for program in each:
            program.close()

    # --- measuring -------------------------------------------------------------------------------

    def measure(self, say: Callable[[str], None]) -> list[Entry]:
        """Measure the groups that were asked for, one after another."""
        try:
            groups = [group for group in GROUPS if group in self.options.only]
            return [entry for group in groups for entry in self._group(group, say)]
        finally:
            self.close()

    def _group(self, group: str, say: Callable[[str], None]) -> Iterator[Entry]:
        if group == "size":
            for entry in self.size():
                say(entry.line())
                yield entry
            return
        if group in ("load", "start", "memory", "training"):
            self.close()  # the machine is theirs alone
        for turns in getattr(self, group)():
            interleave(turns, self.options.blocks, say)
            for entry in turns:
                yield from separate(entry)

    def job(self, do: str, threads: int, **more: Any) -> Job:
        """Return a job of one block."""
        return {"do": do, "threads": threads, "seconds": self.options.seconds, **more}

    def limit(self, what: str, do: str, threads: int) -> Entry:
        """Return an entry of one of the machine's limits, to be measured with ``what``."""
        name, unit = {"read": ("read bandwidth", "GB/s"), "sgemm": ("sgemm", "GFLOP/s")}[do]
        return Entry(key(what, threads, name), unit, self.machine, self.job(do, threads))

    def side_by_side(self, what: str, job: Job) -> list[Entry]:
        """Return ours and all peers doing a job: ours and a peer in turns."""
        pairs: list[tuple[str, Program]] = []
        ours, peers = list(self.ours.items()), list(self.peers.items())
        while ours or peers:
            pairs += [queue.pop(0) for queue in (ours, peers) if queue]
        return [Entry(key(what, job["threads"], n), "tok/s", p, job) for n, p in pairs]

    # --- groups: lists of entries that take turns ------------------------------------------------

    def limits(self) -> Iterator[list[Entry]]:
        """Yield what the machine can do at most."""
        counts, both = self.options.threads, ("read", "sgemm")
        yield [self.limit("limits", do, threads) for threads in counts for do in both]

    def decode(self) -> Iterator[list[Entry]]:
        """Yield what is measured of writing, one token of each text at a time."""
        for threads in self.options.threads:
            for batch in BATCHES:
                what = f"decode {batch}"
                entries = self.side_by_side(what, self.job("decode", threads, batch=batch))
                yield [self.limit(what, "read", threads), *entries]

    def prefill(self) -> Iterator[list[Entry]]:
        """Yield what is measured of reading a prompt."""
        for threads in self.options.threads:
            for length in self.options.lengths:
                yield self._prefill(length, threads)

    def _prefill(self, length: int, threads: int) -> list[Entry]:
        what = f"prefill {length}"
        job = self.job("prefill", threads, length=length, repeats=3 if length < LONG else 1)
        entries = self.side_by_side(what, job)
        for entry in entries if length > LONG else ():
            entry.most = 3
            if entry.program in self.peers.values():  # tens of seconds each
                entry.job = {**job, "warm_up": False, "seconds": 0}
                entry.most = 3 if isinstance(entry.program, LlamaBench) else 1
        for name, program in list(self.ours.items())[:1]:
            where = key(what, threads, f"{name}, share of matrix products")
            entries.append(Entry(where, "", program, {**job, "do": "product_share"}))
        return [self.limit(what, "sgemm", threads), *entries]

    def scan(self) -> Iterator[list[Entry]]:
        """Yield what is measured of the scan alone: all numbers of threads in turn."""
        bare = Entry(key("scan", 1, "bare exp2"), "ms", self.scans["ours"][0], self.job("exp2", 1))
        entries = [bare]
        for threads in self.options.threads:
            for name, (program, do) in self.scans.items():
                job = self.job(do, threads, repeats=3 if name == "ours" else 1)
                entries.append(Entry(key("scan", threads, name), "ms", program, job))
        yield entries

    def load(self) -> Iterator[list[Entry]]:
        """Yield what is measured of loading the model, with the imports, in fresh processes."""
        o, model = self.options, {"name_or_path": str(self.model)}
        programs = {
            f"ours {dtype}": once.Fresh(once.LOAD, {**model, "dtype": dtype, "backend": o.backend})
            for dtype in o.dtypes
        }
        if "transformers" in o.peers:
            programs["transformers"] = once.Fresh(once.LOAD_TRANSFORMERS, model)
        yield [Entry(f"load | {name}", "s", program) for name, program in programs.items()]

    def start(self) -> Iterator[list[Entry]]:
        """Yield what is measured of starting the command line, with the bundled model."""
        entries = []
        for name, cold in (("first ever", True), ("later", False)):
            for tokens in (1, 16):
                program = once.Start(self.options.backend, tokens, cold)
                self._others.append(program)
                where = f"start | {name}, {tokens} token{'s' * (tokens > 1)}"
                entries.append(Entry(where, "s", program, most=2 if cold else None))
        yield entries

    def memory(self) -> Iterator[list[Entry]]:
        """Yield what is measured of long prompts, in fresh processes."""
        o, threads = self.options, max(self.options.threads)
        setup = {"name_or_path": str(self.model), "backend": o.backend}
        program = once.Fresh(once.PREFILL, setup)
        jobs = {n: {"arguments": (n, threads, MEMORY_SECONDS)} for n in o.memory_lengths}
        where = "time per token | {} tokens"
        yield [Entry(where.format(n), "us", program, job, most=2) for n, job in jobs.items()]

    def training(self) -> Iterator[list[Entry]]:
        """Yield what is measured of training the bundled model: speeds, then memory."""
        o, model = self.options, str(bundled_model_path())
        setups: dict[str, dict[str, str]] = {"ours": {"model": model, "backend": o.backend}}
        setups |= {
            name: {"model": model} for name in ("transformers", "mambapy") if name in o.peers
        }
        programs = {name: Worker(f"training {name}", setup) for name, setup in setups.items()}
        self._others += programs.values()
        for batch, length in o.training:
            yield self._steps(programs, batch, length)
        alone = {name: Afresh(f"training {name}", setup) for name, setup in setups.items()}
        yield from self._steps_memory(alone)

    def _steps(self, programs: Mapping[str, Program], batch: int, length: int) -> list[Entry]:
        what, threads = f"training {batch} x {length}", max(self.options.threads)
        job = self.job("train", threads, batch=batch, length=length, repeats=1)
        known: dict[str, float] = {}
        entries = []
        for name, program in programs.items():
            where = key(what, threads, {"ours": "ours float32"}.get(name, name))
            entry = Entry(where, "tok/s", training.Alike(program, known), job)
            if name == "transformers":  # up to a minute each
                entry.job, entry.most = {**job, "warm_up": False, "seconds": 0}, 1
            elif name == "mambapy":
                entry.most = 3
            entries.append(entry)
        return entries

    def _steps_memory(self, programs: Mapping[str, Program]) -> Iterator[list[Entry]]:
        """Yield the peaks of each program and length, then what these say of each token."""
        o, threads, what = self.options, max(self.options.threads), "memory of training"
        peaks: dict[str, list[tuple[int, Entry]]] = {name: [] for name in programs}
        for length in o.training_lengths:
            known: dict[str, float] = {}
            job = {"do": "memory", "threads": threads, "batch": 1, "length": length}
            for name, program in programs.items():
                if name != "ours" and length > LONG:
                    continue
                where = f"{what} | {name}, {length} tokens"
                program = training.Alike(program, known)
                peaks[name].append((length, Entry(where, "MB", program, job, most=1)))
        yield [entry for known in peaks.values() for _, entry in known]
        slopes = [
            slope
            for name, known in peaks.items()
            for slope in training.slopes(known, f"{what}, each token | {name}, {{}} to {{}} tokens")
        ]
        config = MambaConfig.from_pretrained(bundled_model_path())
        counted = training.bytes_per_token(config, threads)
        yield [
            *slopes,
            Entry(f"{what}, each token | ours, counted", "bytes", values=[counted], most=0),
        ]

    def size(self) -> Iterator[Entry]:
        """Yield how much room installations take: ours, and those of peers that are here."""
        for name, needs in (
            (sizes.OWN, (sizes.OWN,)),
            ("transformers", ("transformers", "torch")),
            ("mambapy", ("mambapy", "torch")),
        ):
            if name != sizes.OWN and name not in self.options.peers:
                continue
            entry = Entry(f"install size | {name}", "MB")
            try:
                entry.values.append(sizes.megabytes(needs))
            except metadata.PackageNotFoundError as error:
                entry.absent = f"not installed: {error.name}"
            yield entry


ALSO = {"first": ("load to the first logits", "s"), "peak": ("memory", "MB")}
"""What a block may measure besides its value: what that is, and its unit."""


def separate(entry: Entry) -> Iterator[Entry]:
    """Yield an entry, then one for each thing that its blocks measured besides."""
    yield entry
    for name, values in entry.also.items():
        what, unit = ALSO[name]
        who = entry.key.partition(" | ")[2]
        yield Entry(f"{what} | {who}", unit, values=values, foreign=entry.foreign)


# --- the model -----------------------------------------------------------------------------------


def checkpoint(given: Path | None, work: Path) -> Path:
    """Return the folder of the model: the given one, or one of ``SHAPE``, made in ``work``.

    Its weights are random, which changes no speed.
    """
    from ..config import MambaConfig
    from ..model import MambaForCausalLM

    if given is not None:
        return given.resolve()
    folder = work / "mamba-130m-shape"
    if not (folder / "model.safetensors").is_file():
        MambaForCausalLM(MambaConfig(**SHAPE), rng=0).save_pretrained(folder)
    return folder


def step_gigabytes(model: Path) -> float:
    """Return how many GB of float32 weights one decode step reads: every parameter once."""
    from ..config import MambaConfig

    config = MambaConfig.from_pretrained(model)
    V, D, E = config.vocab_size, config.hidden_size, config.intermediate_size
    N, R, K = config.state_size, int(config.time_step_rank), config.conv_kernel
    layer = 2 * E * D + E * (K + 1) + (R + 2 * N) * E + E * R + E + E * N + E + D * E + D
    return 4e-9 * (V * D + D + config.num_hidden_layers * layer)
