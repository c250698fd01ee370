"""The benchmark: turns, what counts, goals, the report. Speeds themselves decide nothing here."""

import io
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_runner import error_of, run

from mamba_np import MambaConfig, MambaForCausalLM, reference
from mamba_np import equations as eq
from mamba_np.bench import (
    blocks,
    clock,
    ggml,
    goals,
    limits,
    machine,
    once,
    ours,
    peers,
    report,
    sizes,
    timing,
    worker,
)
from mamba_np.bench.blocks import FOREIGN_LIMIT, PATIENCE, Absent, Entry, interleave
from mamba_np.bench.clock import Clock, foreign_share
from mamba_np.bench.goals import Goal
from mamba_np.bench.options import FORMATS, GROUPS, Options
from mamba_np.bench.plan import Plan, checkpoint, step_gigabytes
from mamba_np.bench.run import llama_version

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"L": 24, "E": 20, "N": 5}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a model of a few hundred numbers."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = MambaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config, rng=0).save_pretrained(folder)
    return folder


# --- taking turns --------------------------------------------------------------------------------


class Fake:
    """A program whose blocks are given: numbers, or reasons why it is absent."""

    def __init__(self, name, answers, log):
        self.name, self.answers, self.log = name, list(answers), log

    def prepare(self):
        pass

    def ask(self, job):
        self.log.append(self.name)
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise Absent(answer)
        return answer if isinstance(answer, dict) else {"value": answer}

    def processes(self):
        return []


class FakeClock:
    """A clock of blocks that each take a second, with given shares used by others."""

    def __init__(self, shares, cores):
        self.shares, self.cores, self.calls, self.machine = list(shares), cores, 0, 0.0

    def __call__(self, pids):
        self.calls += 1
        if self.calls % 2 == 0:
            self.machine += self.cores * (self.shares.pop(0) if self.shares else 0.0)
        return Clock(float(self.calls), self.machine, 0.0)


@pytest.fixture
def turns(monkeypatch):
    """A function that gives fake programs their turns; returns (results, log of who was asked)."""
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: 4)

    def give(count, answers, shares=(), most=None):
        log = []
        entries = [
            Entry(name, "s", Fake(name, given, log), most=(most or {}).get(name))
            for name, given in answers.items()
        ]
        interleave(entries, count, clock=FakeClock(shares, 4))
        return {entry.key: entry.result() for entry in entries}, log

    return give


def test_programs_take_turns_and_medians_are_reported(turns):
    results, log = turns(4, {"a": [5, 1, 2, 40], "b": [1, 1, 1, 9]})
    assert log == ["a", "b"] * 4
    assert results["a"]["median"] == 3.5
    assert results["a"]["values"] == [5, 1, 2, 40]
    assert results["b"]["median"] == 1
    assert results["b"]["disturbed"] is False


def test_disturbed_blocks_are_dropped_and_repeated(turns):
    # The shares of a, b, a, b and of the repetition of a's first block.
    results, log = turns(2, {"a": [100, 1, 3], "b": [7, 8]}, [0.5, 0.0, 0.01])
    assert log == ["a", "b", "a", "b", "a"]
    assert results["a"]["values"] == [1, 3]
    assert results["a"]["dropped"] == [100]
    assert results["a"]["median"] == 2
    assert results["a"]["foreign"] == [0.5, 0.01, 0.0]
    assert results["b"]["values"] == [7, 8]


@pytest.mark.parametrize(
    ("share", "counts"), [(FOREIGN_LIMIT, True), (FOREIGN_LIMIT + 1e-6, False)]
)
def test_the_limit_itself_is_not_a_disturbance(share, counts):
    entry = Entry("a", "s")
    entry.add({"value": 3}, share)
    assert (entry.values, entry.dropped) == (([3.0], []) if counts else ([], [3.0]))
    assert entry.was_dropped() is not counts


def test_what_is_not_known_to_be_disturbed_counts():
    entry = Entry("a", "s")
    entry.add({"value": 3}, None)
    assert entry.result()["values"] == [3.0]


def test_patience_ends_and_the_result_says_so(turns):
    results, log = turns(2, {"a": [1, 2, 3, 4, 5, 60]}, [0.9] * 6)
    assert len(log) == PATIENCE * 2
    assert results["a"]["values"] == []
    assert results["a"]["disturbed"] is True
    assert results["a"]["median"] == 3.5


def test_absent_programs_are_asked_once_and_others_go_on(turns):
    results, log = turns(2, {"a": ["not here"], "b": [1, 2]})
    assert log == ["a", "b", "b"]
    assert results["a"]["median"] is None
    assert results["a"]["absent"] == "not here"
    assert results["b"]["values"] == [1, 2]


def test_a_program_that_ends_half_way_keeps_its_blocks(turns):
    results, _ = turns(3, {"a": [4, "ended"]})
    assert results["a"]["values"] == [4]


def test_few_blocks_are_enough_for_slow_programs(turns):
    _, log = turns(3, {"a": [1], "b": [1, 2, 3]}, most={"a": 1})
    assert log == ["a", "b", "b", "b"]


def test_few_blocks_are_not_tried_for_longer_than_they_are_worth(turns):
    results, log = turns(5, {"a": [1, 2, 3, 4]}, [0.9] * 4, most={"a": 1})
    assert log == ["a"] * PATIENCE
    assert results["a"]["disturbed"] is True


def test_what_else_a_block_measured_is_kept_unless_it_was_disturbed():
    entry = Entry("a", "s")
    entry.add({"value": 1, "also": {"peak": 7}, "version": "3"}, 0.0)
    entry.add({"value": 1, "also": {"peak": 900}}, 0.9)
    assert entry.also == {"peak": [7.0]}
    assert entry.result()["version"] == "3"


def test_lines_to_follow():
    entry = Entry("a", "GB/s")
    assert entry.line() == "a: not measured"
    entry.add({"value": 12.3456}, 0.01)
    assert entry.line() == "a: 12.35 GB/s, foreign 1%"
    entry.add({"value": 6}, 0.5)
    assert entry.line() == "a: 6 GB/s, foreign 50%, dropped"


# --- clock and timing ----------------------------------------------------------------------------


def test_foreign_share_is_what_neither_is_idle_nor_ours():
    before, after = Clock(10, 100, 50), Clock(12, 103.5, 53)
    assert foreign_share(before, after, cores=2) == pytest.approx(0.5 / 4)
    assert foreign_share(before, Clock(12, 101, 53), cores=2) == 0  # counted in hundredths


def test_foreign_share_may_be_unknown():
    assert foreign_share(Clock(0, None, 0), Clock(1, None, 1), 2) is None
    assert foreign_share(Clock(0, 0, 0), Clock(clock.SHORTEST * 0.99, 1, 0), 2) is None


def test_clock_counts_ended_children_and_living_workers():
    before = Clock.now()
    burn = "import os\nwhile sum(os.times()[:2]) < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert Clock.now().own - before.own >= 0.29
    if before.machine is not None:
        with subprocess.Popen([sys.executable, "-c", f"{burn}\nprint()\ninput()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:  # fmt: skip
            assert living.stdout.readline()
            assert Clock.now([living.pid]).own - Clock.now().own >= 0.25
            living.communicate(b"\n")


@pytest.mark.parametrize(
    ("job", "calls"),
    [
        ({"seconds": 0}, 1 + 3),
        ({"seconds": 0, "repeats": 5}, 1 + 5),
        ({"seconds": 0, "repeats": 1, "warm_up": False}, 1),
        ({"seconds": 3.5, "repeats": 1}, 1 + 4),
    ],
)
def test_calls_are_repeated_as_often_and_as_long_as_asked(monkeypatch, job, calls):
    seconds = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(seconds)))
    made = []
    assert timing.seconds_of(lambda: made.append(1), job) == [1.0] * (
        len(made) - job.get("warm_up", 1)
    )
    assert len(made) == calls


PEAK = "from mamba_np.bench.timing import peak_megabytes as peak; print(peak())"


def test_the_peak_is_the_process_own_and_counts_what_is_gone_again():
    before = timing.peak_megabytes()
    alone = float(subprocess.check_output([sys.executable, "-c", PEAK]))
    assert 10 < alone < 200
    large = f"x = bytearray(300_000_000); x[::4096] = bytes(len(x[::4096])); del x; {PEAK}"
    gone = float(subprocess.check_output([sys.executable, "-c", large]))
    assert 300 < gone < 300 + alone
    if Path("/proc/self/status").exists():
        inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PEAK!r}])"
        parent = f"x = bytearray(300_000_000); x[::4096] = bytes(len(x[::4096])); {inner}"
        assert float(subprocess.check_output([sys.executable, "-c", parent])) < alone + 50
    assert timing.peak_megabytes() >= before


@pytest.mark.parametrize("text", [None, "Name: python\n"])
@pytest.mark.parametrize(("system", "unit"), [("linux", 1024e-6), ("darwin", 1e-6)])
def test_the_peak_where_linux_does_not_say_it(monkeypatch, text, system, unit):
    resource = pytest.importorskip("resource")

    def read_text(path):
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(timing.Path, "read_text", read_text)
    monkeypatch.setattr(timing.sys, "platform", system)
    used = SimpleNamespace(ru_maxrss=5_000_000)
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    assert timing.peak_megabytes() == pytest.approx(5_000_000 * unit)


# --- workers -------------------------------------------------------------------------------------


def test_a_worker_answers_from_its_own_process():
    program = worker.Worker("limits", {"floats": 1000})
    try:
        program.prepare()
        (pid,) = program.processes()
        with pytest.raises(Absent, match="does not do dance"):
            program.ask({"do": "dance"})
        answer = program.ask({"do": "sgemm", "threads": 1, "seconds": 0, "repeats": 1})
        assert answer["value"] > 0
        assert program.processes() == [pid]
    finally:
        program.close()
    assert program.processes() == []


def test_a_worker_that_cannot_load_is_absent_for_good(tmp_path):
    program = worker.Worker("ours", {"model": str(tmp_path), "dtype": "float32", "backend": "cpu"})
    for _ in range(2):
        with pytest.raises(Absent, match=r"cannot load: FileMissingError: .*config\.json"):
            program.ask({"do": "decode"})
    assert program.processes() == []


def test_a_worker_whose_process_ends_is_absent(monkeypatch):
    monkeypatch.setattr(worker.sys, "executable", "true")
    with pytest.raises(Absent, match="its process ended"):
        worker.Worker("limits", {}).prepare()


def test_each_job_may_have_a_process_of_its_own(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(worker.subprocess, "Popen", start)
    program = worker.Afresh("limits", {"floats": 1000})
    program.prepare()
    assert started == []
    for _ in range(2):
        assert program.ask(job(do="sgemm"))["value"] > 0
        assert program.processes() == []
    with pytest.raises(Absent, match="does not do dance"):
        program.ask(job(do="dance"))
    assert [process.poll() for process in started] == [0, 0, 0]


def test_packages_that_are_missing_are_named(monkeypatch, tiny):
    monkeypatch.setitem(sys.modules, "torch", None)
    training = "training transformers", "training mambapy"
    for kind in ("transformers", "mambapy", "torch-scan", *training):
        setup = SHAPE if kind == "torch-scan" else {"model": str(tiny)}
        assert worker.load(kind, setup)[1] == {"absent": "not installed: torch", "final": True}
    _, why = worker.load("ggml-scan", {"folder": "", **SHAPE})
    assert why["absent"].startswith("not installed: libggml-base.so and libggml-cpu.so")


def test_answers_are_lines_of_json(monkeypatch):
    def fail(job):
        raise ValueError("so\nwhat")

    def refuse(job):
        raise NotImplementedError("not I")

    program = SimpleNamespace(
        number=lambda job: job["n"], more=lambda job: {"value": 1, "version": "2"}, fail=fail,
        refuse=refuse,
    )  # fmt: skip
    monkeypatch.setattr(worker, "load", lambda kind, setup: (program, {}))
    jobs = [{"do": "number", "n": 3}, *({"do": do} for do in ("more", "fail", "refuse", "fly"))]
    answers = io.StringIO()
    worker.serve(
        "kind", "{}", io.StringIO("".join(json.dumps(job) + "\n" for job in jobs)), answers
    )
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {},
        {"value": 3},
        {"value": 1, "version": "2"},
        {"absent": "failed: ValueError: so what"},
        {"absent": "not I"},
        {"absent": "does not do fly"},
    ]


# --- programs ------------------------------------------------------------------------------------


@pytest.fixture
def half_a_second(monkeypatch):
    """All calls take half a second, as far as programs can tell; each is made once."""

    def median_of(call, job):
        call()
        return 0.5

    for module in (limits, ours, peers, ggml):
        monkeypatch.setattr(module, "median_of", median_of)
    monkeypatch.setattr(ours, "set_num_threads", lambda n: None)  # the tests' own number stays


def job(**more):
    return {"threads": 1, "seconds": 0, "repeats": 1, **more}


@pytest.mark.usefixtures("half_a_second")
def test_limits_are_rates():
    program = limits.Limits(floats=1000)
    assert program.read(job()) == pytest.approx(4000 / 0.5 / 1e9)
    assert program.read(job(threads=2)) == program.read(job())
    assert program.sgemm(job(threads=2)) == pytest.approx(8 * 2 * 512 * 768 * 3072 / 0.5 / 1e9)


@pytest.mark.usefixtures("half_a_second")
def test_ours_are_tokens_a_second(tiny):
    program = ours.Ours(str(tiny), "float32", "cpu")
    calls, model = [], program.model

    def spy(ids, **options):
        calls.append((ids.shape, options.get("cache_params") is not None))
        result = model(ids, **options)
        assert result.logits.shape[1] == 1
        return result

    spy.config = model.config
    program.model = spy
    assert program.prefill(job(length=12)) == 12 / 0.5
    assert program.decode(job(batch=3)) == 3 / 0.5
    assert calls == [((1, 12), False), ((3, timing.PROMPT), False), ((3, 1), True)]


def test_share_of_products(tiny, monkeypatch):
    matmul = np.matmul
    program = ours.Ours(str(tiny), "float32", "cpu")
    assert 0 < program.product_share(job(length=40)) < 1
    assert np.matmul is matmul
    monkeypatch.setattr(ours.Ours, "_ids", lambda *_: None)
    program.model = lambda ids, logits_to_keep: None  # computes without NumPy
    with pytest.raises(NotImplementedError, match="no matrix products"):
        program.product_share(job(length=40))


def expected_scan(shape):
    """Return y (L, E) of the numbers that all scans get, by the reference, in float64."""
    x, delta, A, B, C = (a.astype(np.float64) for a in timing.scan_arrays(**shape))
    h = np.zeros((1, *A.shape))
    y, _ = reference.selective_scan(x[None], delta[None], A, B[None], C[None], h)
    return x, y[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("half_a_second")
def test_scan_is_the_fused_kernel(threads):
    program = ours.Scan(**SHAPE)
    assert program.scan(job(threads=threads)) == 500
    x, y = expected_scan(SHAPE)
    fused = eq.output(y, x, 1.0, 1.0)
    np.testing.assert_allclose(program.y[:, : SHAPE["E"]], fused, rtol=2e-6, atol=2e-6)


def test_bare_powers_are_as_many_as_the_scan_has(monkeypatch):
    made = []
    monkeypatch.setattr(
        ours, "_compiled_powers", lambda: lambda x, y, turns: made.append(x.size * turns)
    )
    ours.Scan(L=64, E=32, N=16).exp2(job(seconds=0))
    assert set(made) == {64 * 32 * 16}


def test_bare_powers_are_powers_of_two():
    x = np.linspace(-4, 0, 64, dtype=np.float32)
    y = np.empty_like(x)
    ours._compiled_powers()(x, y, 2)
    np.testing.assert_allclose(y, 2.0 ** x.astype(np.float64), rtol=3e-7)


@pytest.mark.usefixtures("half_a_second")
def test_torch_loop_computes_the_scan():
    pytest.importorskip("torch")
    program = peers.TorchScan(**SHAPE)
    assert program.scan(job()) == 500
    _, y = expected_scan(SHAPE)
    np.testing.assert_allclose(program.loop().numpy()[0].T, y, rtol=1e-4, atol=1e-6)


def test_parallel_scan_computes_the_scan_or_is_absent():
    pytest.importorskip("torch")
    program = peers.TorchScan(**SHAPE)
    try:
        import mambapy.pscan  # noqa: F401
    except ImportError:
        with pytest.raises(NotImplementedError, match="not installed: mambapy"):
            program.parallel()
        return
    _, y = expected_scan(SHAPE)
    np.testing.assert_allclose(program.parallel().numpy()[0], y, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("half_a_second")
@pytest.mark.parametrize(
    ("package", "name"), [("transformers", "Transformers"), ("mambapy", "Mambapy")]
)
def test_peers_do_the_jobs_of_ours(tiny, package, name):
    pytest.importorskip("torch")
    pytest.importorskip(package)
    program = getattr(peers, name)(str(tiny))
    assert program.prefill(job(length=12)) == 12 / 0.5
    assert program.decode(job(batch=3)) == 3 / 0.5


# --- llama.cpp -----------------------------------------------------------------------------------


@pytest.fixture
def binary(tmp_path):
    """A llama-bench and a llama-quantize that keep what they were called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = f"""#!{sys.executable}
import json, sys, pathlib
here = pathlib.Path(sys.argv[0])
with open(str(here) + ".log", "a") as log: print(*sys.argv[1:], file=log)
if here.name == "llama-quantize": pathlib.Path(sys.argv[2]).write_text(sys.argv[3])
if "666" in sys.argv: sys.exit("it\\nbroke")
print(json.dumps([{{"samples_ts": [1.0, 9.0, 2.0], "build_commit": "abc", "build_number": 7}}]))
"""
    for name in ("llama-bench", "llama-quantize"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder / "llama-bench"


class FakeWriter:
    """gguf's writer: keeps tensors, and sizes by the names of its methods."""

    def __init__(self, path, architecture):
        self.path, self.architecture, self.tensors, self.sizes = path, architecture, {}, {}
        FakeWriter.latest = self

    def add_tensor(self, name, array):
        assert array.dtype == np.float32
        self.tensors[name] = array

    def close(self):
        Path(self.path).write_text("gguf")

    def __getattr__(self, name):
        return lambda *values: self.sizes.update({name: values})


@pytest.fixture
def gguf(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFWriter=FakeWriter))


@pytest.mark.usefixtures("gguf")
def test_llama_bench_is_asked_and_its_median_taken(binary, tiny, tmp_path):
    program = ggml.LlamaBench(binary, tiny, tmp_path, "Q8_0")
    answer = program.ask(job(do="prefill", threads=2, length=64))
    assert answer == {"value": 2.0, "version": "abc (7)"}
    program.ask(job(do="prefill", length=2048, warm_up=False))
    program.ask(job(do="decode", batch=1))
    calls = [line.split() for line in Path(f"{binary}.log").read_text().splitlines()]
    assert [call[0] for call in calls] == ["-m"] * 3
    assert Path(calls[0][1]).read_text() == "Q8_0"
    assert [" ".join(call[2:]) for call in calls] == [
        "-t 2 -o json -p 64 -n 0 -r 1",
        "-t 1 -o json -p 2048 -n 0 -r 1 --no-warmup",
        "-t 1 -o json -p 0 -n 32 -r 3",
    ]
    assert len(Path(f"{binary.parent}/llama-quantize.log").read_text().splitlines()) == 1
    assert list(tmp_path.glob("*.part")) == []
    with pytest.raises(Absent, match="one text at a time"):
        program.ask(job(do="decode", batch=8))
    with pytest.raises(Absent, match="llama-bench failed: it broke"):
        program.ask(job(do="prefill", length=666))


@pytest.mark.usefixtures("gguf")
def test_files_of_other_shapes_are_not_mixed_up(binary, tiny, tmp_path):
    first = ggml.gguf_file(tiny, tmp_path, "F32", binary)
    assert ggml.gguf_file(tiny, tmp_path, "F32", binary) == first
    other = tmp_path / tiny.name
    MambaForCausalLM(
        MambaConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1)
    ).save_pretrained(other)
    assert ggml.gguf_file(other, tmp_path, "F32", binary) != first


@pytest.mark.usefixtures("gguf")
def test_every_weight_goes_into_the_file(tiny, tmp_path):
    ggml.write_gguf(tiny, tmp_path / "file")
    written, params = FakeWriter.latest, MambaForCausalLM.from_pretrained(tiny).params
    assert written.architecture == "mamba"
    assert written.sizes["add_block_count"] == (2,)
    assert written.sizes["add_ssm_state_size"] == (4,)
    assert len(written.tensors) == 2 + 2 * 10
    layer = params.layers[1]
    np.testing.assert_array_equal(written.tensors["blk.1.ssm_a"], -np.exp(layer.A_log))
    np.testing.assert_array_equal(written.tensors["blk.1.ssm_in.weight"], layer.in_proj)
    total = sum(a.size for part in params.layers for a in vars(part).values() if a is not None)
    assert sum(a.size for a in written.tensors.values()) == total + params.embeddings.size + 16


def test_llama_cpp_is_absent_without_its_parts(binary, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    for path, why in (
        (None, "llama-bench"),
        (tmp_path / "gone", "llama-bench"),
        (binary, "gguf"),
    ):
        with pytest.raises(Absent, match=f"not installed: {why}"):
            ggml.LlamaBench(path, tiny, tmp_path, "F32").prepare()
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFWriter=FakeWriter))
    (binary.parent / "llama-quantize").unlink()
    with pytest.raises(Absent, match="not installed: llama-quantize"):
        ggml.LlamaBench(binary, tiny, tmp_path, "F16").prepare()
    binary.write_text("no program")
    with pytest.raises(Absent, match="llama-bench does not start"):
        ggml.LlamaBench(binary, tiny, tmp_path, "F32").ask(job(do="decode", batch=1))


# --- fresh processes and sizes -------------------------------------------------------------------


def test_fresh_processes_answer_or_say_why_not():
    code = "import json, sys; print(json.dumps({'value': sys.argv[1:]}))"
    assert once.Fresh(code, {"a": 3}).ask({"arguments": (4,)}) == {"value": ['{"a": 3}', "4"]}
    with pytest.raises(Absent, match="failed: ValueError: last words"):
        once.Fresh("raise ValueError('last words')", {}).ask({})


def test_loading_and_long_prompts_are_measured(tiny):
    setup = {"name_or_path": str(tiny), "backend": "cpu"}
    load = once.Fresh(once.LOAD, {**setup, "dtype": "float32"}).ask({})
    assert 0 < load["value"] < load["also"]["first"]
    prompt = once.Fresh(once.PREFILL, setup).ask({"arguments": (50, 1, 0)})
    assert prompt["value"] > 0
    assert 10 < prompt["also"]["peak"] < 10_000  # MB of a Python process


def test_cold_starts_compile_and_warm_ones_do_not(monkeypatch):
    folders = []

    def output_of(arguments, kernels):
        assert arguments[:3] == ["-m", "mamba_np", "generate"]
        assert arguments[-2:] == ["-n", "16"]
        folders.append(kernels)
        assert Path(kernels).is_dir()
        assert list(Path(kernels).iterdir()) == [] or kernels in folders[:-1]
        (Path(kernels) / "kernel").write_text("")
        return ""

    monkeypatch.setattr(once, "output_of", output_of)
    cold, warm = once.Start("cpu", 16, cold=True), once.Start("cpu", 16, cold=False)
    for program in (cold, warm):
        for _ in range(2):
            program.prepare()
            assert program.ask({})["value"] >= 0
        program.close()
    assert len(folders) == 2 + 3
    assert len(set(folders)) == 2 + 1
    assert not any(Path(folder).exists() for folder in folders)


def test_kernels_are_kept_where_starts_say(tmp_path):
    code = "from mamba_np.kernels.options import cache_folder; print(cache_folder())"
    assert str(tmp_path) in once.output_of(["-c", code], str(tmp_path))


def test_sizes_follow_what_packages_need(monkeypatch):
    needs = {
        "a": ["B_b>=2; python_version > '3'", "c[extra] ~= 1", "x; extra == 'dev'"],
        "b-b": ["a", "absent"],
        "c": None,
        "x": None,
    }

    def requires(name):
        if name not in needs:
            raise metadata.PackageNotFoundError(name)
        return needs[name]

    monkeypatch.setattr(sizes.metadata, "requires", requires)
    assert sizes.with_dependencies(("A",)) == {"a", "b-b", "c"}
    with pytest.raises(metadata.PackageNotFoundError):
        sizes.with_dependencies(("absent",))


def test_own_size_is_that_of_the_files():
    model = sum(p.stat().st_size for p in (ROOT / "mamba_np" / "models").rglob("*.safetensors"))
    assert sizes._bytes_of(sizes.OWN) > model > 0
    assert sizes.megabytes((sizes.OWN,)) * 1e6 > sizes._bytes_of(sizes.OWN) + sizes._bytes_of(
        "numpy"
    )


# --- goals ---------------------------------------------------------------------------------------


def medians(**values):
    return {key: {"median": value, "disturbed": False} for key, value in values.items()}


@pytest.mark.parametrize(
    ("top", "at_least", "state"),
    [
        (6.0, True, "met"),
        (5.999, True, "not met"),
        (6.0, False, "met"),
        (6.001, False, "not met"),
    ],
)
def test_goals_are_met_at_their_bounds(top, at_least, state):
    row = Goal("text", "a", ("b",), 1.5, at_least).judge(medians(a=top, b=4.0))
    assert (row["ratio"], row["state"]) == (top / 4, state)


def test_goals_compare_with_the_best_of_several_and_scale():
    goal = Goal("text", "a", ("b", "c"), 1.0, scale=2.0)
    assert goal.judge(medians(a=3.0, b=1.0, c=4.0))["ratio"] == 1.5
    assert Goal("text", "a", (), 0.5).judge(medians(a=0.5))["state"] == "met"


@pytest.mark.parametrize(
    "known", [{}, medians(a=1.0), medians(b=1.0), medians(a=1.0, b=None), medians(a=1.0, b=1.0)]
)
def test_goals_with_a_part_missing_are_not_measured(known):
    row = Goal("text", "a", ("b", "c"), 1.0).judge(known)
    assert (row["ratio"], row["state"]) == (None, "not measured")


@pytest.mark.parametrize("disturbed", ["a", "b"])
def test_goals_of_disturbed_results_say_so(disturbed):
    known = medians(a=2.0, b=1.0)
    known[disturbed]["disturbed"] = True
    assert Goal("text", "a", ("b",), 1.0).judge(known)["state"] == "met (disturbed)"
    assert Goal("text", "a", ("b",), 3.0).judge(known)["state"] == "not met (disturbed)"


def planned_keys(options):
    """Return the keys of all results that a run has, without measuring any."""
    plan = Plan(options)
    keys = {
        entry.key for group in GROUPS if group != "size" for turns in getattr(plan, group)()
        for entry in turns
    }  # fmt: skip
    plan.close()
    return keys | {key.replace("time per token", "memory") for key in keys}


@pytest.mark.parametrize("threads", [(1, 2), (1,)])
def test_every_goal_is_about_something_that_is_measured(tiny, tmp_path, threads):
    keys = planned_keys(Options(model=tiny, work=tmp_path, threads=threads))
    found = goals.goals(max(threads), 0.5)
    assert len(found) > 25
    assert len({goal.text for goal in found}) == len(found)
    for goal in found:
        assert {goal.over, *goal.under} <= keys, goal.text


def test_share_of_the_bandwidth_counts_every_weight_once(tiny):
    model = MambaForCausalLM.from_pretrained(tiny)
    assert step_gigabytes(tiny) == pytest.approx(model.num_parameters() * 4e-9)
    (goal,) = (g for g in goals.goals(2, 0.5) if "bandwidth" in g.text)
    known = {goal.over: {"median": 36.0}, goal.under[0]: {"median": 20.0}}
    assert goal.judge(known)["ratio"] == pytest.approx(0.9)


# --- the plan ------------------------------------------------------------------------------------


def test_a_model_of_the_published_shape_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mamba_np.bench.plan.SHAPE", {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    )
    folder = checkpoint(None, tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint(None, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert MambaConfig.from_pretrained(folder).hidden_size == 16


def test_long_prompts_are_repeated_less_and_least_by_slow_peers(tiny, tmp_path):
    plan = Plan(Options(model=tiny, work=tmp_path, threads=(2,)))
    entries = {e.key: e for turns in plan.prefill() for e in turns}
    most = {
        name: [entries[f"prefill {n} | 2 threads | {name}"].most for n in (128, 512, 2048)]
        for name in ("ours int8", "llama.cpp F16", "transformers", "mambapy")
    }
    assert most == {
        "ours int8": [None, None, 3],
        "llama.cpp F16": [None, None, 3],
        "transformers": [None, None, 1],
        "mambapy": [None, None, 1],
    }
    assert {entry.job["threads"] for entry in entries.values()} == {2}


def test_peers_that_are_not_wanted_do_not_take_part(tiny, tmp_path):
    keys = planned_keys(Options(model=tiny, work=tmp_path, peers=("mambapy",)))
    assert any(key.endswith("mambapy") for key in keys)
    assert any(key.endswith("mambapy pscan") for key in keys)
    assert not any("llama" in key or "transformers" in key or "torch" in key for key in keys)


def test_ours_and_peers_alternate(tiny, tmp_path):
    plan = Plan(
        Options(
            model=tiny, work=tmp_path, dtypes=("float32", "int8"), peers=("transformers", "mambapy")
        )
    )
    names = [entry.key.rpartition(" | ")[2] for entry in next(plan.decode())]
    assert names == ["read bandwidth", "ours float32", "transformers", "ours int8", "mambapy"]


# --- machine and report --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("AMD EPYC", "epyc-2"),
        ("AMD EPYC 7B13 64-Core Processor", "epyc-7b13-2"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "xeon-platinum-8481c-2"),
        ("Apple M2", "apple-m2-2"),
        ("", "unknown-2"),
    ],
)
def test_kinds_of_machines_have_names(processor, name):
    assert machine.slug(processor, 2) == name


def test_processor_is_read_from_linux():
    assert machine.processor("processor : 0\nmodel name\t: AMD EPYC\nflags : x\n") == "AMD EPYC"
    assert machine.processor("")


def test_machine_and_versions(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = machine.machine()
    assert found["environment"]["OMP_WAIT_POLICY"] == "passive"
    assert not any(key.startswith("SECRET") for key in found["environment"])
    assert found["cores"] >= 1
    monkeypatch.setattr(machine, "VERSIONS", ("numpy", "no-such-package"))
    versions = machine.versions()
    assert versions["numpy"] == np.__version__
    assert versions["no-such-package"] == "not installed"
    assert versions["BLAS of numpy"] != ""


def test_llama_cpp_says_its_version():
    assert llama_version([Entry("a", "s"), Entry("b", "s", details={"version": "abc (7)"})]) == {
        "llama.cpp": "abc (7)"
    }
    assert llama_version([]) == {"llama.cpp": "not measured"}


def result(key, unit, *values, **more):
    entry = Entry(key, unit, values=list(values), foreign=[0.012] * len(values))
    return {**entry.result(), **more}


@pytest.fixture
def sample():
    """A report with every kind of line."""
    return {
        "date": "2026-11-24T09:00:00+00:00",
        "command": "mamba-np bench",
        "machine": {
            "processor": "AMD EPYC", "architecture": "znver4", "extensions": ["avx2"], "cores": 2,
            "memory_gb": 25.3, "system": "Linux x86_64", "environment": {},
        },
        "versions": {"numpy": "2.4.6", "mambapy": "not installed"},
        "settings": {"foreign_limit": 0.08},
        "goals": goals.judge(medians(**{"start | first ever, 1 token": 15.0}), 2, 0.5),
        "results": [
            result("limits | 2 threads | read bandwidth", "GB/s", 20.0),
            result("decode 1 | 2 threads | ours float32", "tok/s", 40.0, 44.0, 42.0),
            result("decode 1 | 2 threads | llama.cpp F32", "tok/s", 30.0),
            Entry("decode 1 | 2 threads | mambapy", "", absent="not installed: torch").result(),
            result("scan | 1 thread | ours", "ms", 20.0),
            result("scan | 1 thread | torch loop", "ms", 820.0, disturbed=True),
            result("install size | mamba-np", "MB", 1234.5, foreign=[]),
        ],
    }  # fmt: skip


def test_report_has_a_row_of_each_result_and_goal(sample):
    rows = [line for line in report.markdown(sample).splitlines() if line.startswith("|")]
    assert "| read bandwidth | 20 GB/s | 20 to 20 | 1 | 0 | 1% |" in rows
    assert "| ours float32 | 42 tok/s | 40 to 44 |  | 3 | 0 | 1% |" in rows
    assert "| llama.cpp F32 | 30 tok/s | 30 to 30 | 1.4 x | 1 | 0 | 1% |" in rows
    assert "| mambapy | not installed: torch |  |  |  |  |  |" in rows
    assert "| torch loop | 820 ms (disturbed) | 820 to 820 | 41 x | 1 | 0 | 1% |" in rows
    assert "| mamba-np | 1,234 MB | 1,234 to 1,234 | 1 | 0 | not known |" in rows
    assert "| first token ever, seconds | <= 15 | 15 | met |" in rows
    assert (
        len([row for row in rows if row.endswith("| not measured |")]) == len(sample["goals"]) - 1
    )
    heads = 2 * (1 + len(report.panels(sample["results"])))
    assert len(rows) == heads + len(sample["results"]) + len(sample["goals"])
    columns = {panel: {row.count("|") for row in panel.splitlines() if row.startswith("|")}
               for panel in report.markdown(sample).split("\n## ")}  # fmt: skip
    assert all(len(counts) <= 1 for counts in columns.values())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot load: no file /tmp/me/a b", "cannot load: no file a b"),
        ("'/var/me/model/config.json': gone", "'config.json': gone"),
        (r"C:\var\me\model gone", "model gone"),
        ("1.5 GB/s, tok/s, a / b, and/or, docs/benchmarks", None),
        ("see https://example.org/home/me", None),
    ],
)
def test_no_absolute_path_is_published(text, shown):
    cleaned = report.without_paths({"a": [text, 1, None], "b": (2.5,)})
    assert cleaned == {"a": [shown or text, 1, None], "b": [2.5]}


def test_files_are_written(sample, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written = report.write(sample, tmp_path / "new")
    name = "2026-11-24-cpu-epyc-2"
    assert [path.name for path in written] == [f"{name}.json", f"{name}.md"]
    assert json.loads(written[0].read_text("utf-8")) == sample
    assert written[1].read_text("utf-8") == report.markdown(sample)


def test_the_plot_is_drawn_where_matplotlib_is(sample, tmp_path):
    pytest.importorskip("matplotlib")
    picture, _, page = report.write(sample, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"![Tokens a second]({picture.name})" in page.read_text("utf-8")
    assert report.plot({**sample, "results": []}, tmp_path / "none.png") is False


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "limits,dance"], "expected some of limits,decode"),
        (["--only", ""], "expected some of limits,decode"),
        (["--only", "none"], "expected some of limits,decode"),
        (["--peers", "jax"], "expected some of llama.cpp,transformers,mambapy"),
        (["--dtypes", "float64"], "expected some of float32,bfloat16"),
        (["--threads", "0"], "expected positive integers"),
        (["--threads", "1,two"], "expected positive integers"),
        (["--lengths", "-5"], "expected positive integers"),
        (["--blocks", "0"], "--blocks"),
        (["--seconds", "-1"], "--seconds"),
        (["--scan", "1,2"], "expected three positive integers"),
        (["--llama-bench", "no/such/file"], "no/such/file"),
        (["--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_wrong_options_are_usage_errors(args, message):
    assert message in error_of("bench", *args, code=2)


def test_wrong_backends_and_models_are_errors(tmp_path):
    assert "backend: expected 'auto' or one of cuda, cpu, numpy" in error_of(
        "bench", "--backend", "no"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    args = ["bench", "--only", "size", "--model", empty, "--work", tmp_path]
    assert "config.json" in error_of(*args)


def small_run(tiny, folder, *args):
    """Run the command with everything small; return its result and its report."""
    done = run(
        "bench", "--quick", "--model", tiny, "--work", folder / "work", "--out", folder / "out",
        "--dtypes", "float32", "--lengths", "4", "--seconds", 0, "--blocks", 1,
        "--floats", 1000, "--scan", "24,20,5", *args,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (path,) = (folder / "out").glob("*.json")
    return done, json.loads(path.read_text("utf-8"))


def test_the_whole_tool_runs(tiny, tmp_path):
    folder = tmp_path / "a folder"
    groups = "size,scan,prefill,decode,limits"
    done, found = small_run(tiny, folder, "--peers", "none", "--threads", 1, "--only", groups)
    assert [one["key"] for one in found["results"]] == [
        "limits | 1 thread | read bandwidth",
        "limits | 1 thread | sgemm",
        "decode 1 | 1 thread | read bandwidth",
        "decode 1 | 1 thread | ours float32",
        "decode 8 | 1 thread | read bandwidth",
        "decode 8 | 1 thread | ours float32",
        "prefill 4 | 1 thread | sgemm",
        "prefill 4 | 1 thread | ours float32",
        "prefill 4 | 1 thread | ours float32, share of matrix products",
        "scan | 1 thread | bare exp2",
        "scan | 1 thread | ours",
        "install size | mamba-np",
    ]
    assert [one["key"] for one in found["results"] if not one["median"]] == []
    assert all(one["key"] in done.stderr for one in found["results"])
    assert found["command"] == (
        "mamba-np bench --only size,scan,prefill,decode,limits --quick --model model --work work "
        "--out out --peers none --dtypes float32 --threads 1 --lengths 4 --blocks 1 "
        "--seconds 0.0 --floats 1000 --scan 24,20,5"
    )
    pages = [
        path.read_text("utf-8") for path in (folder / "out").iterdir() if path.suffix != ".png"
    ]
    assert len(pages) == 2
    assert not any(str(tmp_path) in page or str(tiny) in page for page in pages)
    assert done.stdout.startswith("# Benchmark, ")


def test_absent_peers_are_lines(tiny, tmp_path):
    _, found = small_run(
        tiny, tmp_path, "--peers", "llama.cpp", "--only", "prefill,scan", "--threads", 1
    )
    absent = {one["key"]: one["absent"] for one in found["results"] if one["median"] is None}
    assert set(absent) == {
        *(f"prefill 4 | 1 thread | llama.cpp {kind}" for kind in FORMATS),
        "scan | 1 thread | llama.cpp",
    }
    assert all(why.startswith("not installed: ") for why in absent.values())


def test_reasons_are_published_without_paths(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    MambaConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1).save_pretrained(folder)
    done, found = small_run(
        folder, tmp_path, "--peers", "none", "--only", "prefill", "--threads", 1
    )
    (why,) = {one["absent"] for one in found["results"] if one["median"] is None}
    assert why.startswith("cannot load: FileMissingError: broken")
    assert str(tmp_path) not in done.stdout


def test_the_script_is_the_command():
    command = [sys.executable, ROOT / "tools" / "bench.py"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage: mamba-np bench ")
    wrong = subprocess.run([*command, "--threads", "0"], capture_output=True, text=True)
    assert wrong.returncode == 2


def test_help_imports_nothing_heavy():
    code = "import sys, mamba_np.cli.bench; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "transformers", "numba", "matplotlib", "threadpoolctl", "mamba_np.bench.plan"]
    command = [sys.executable, "-c", code, *heavy]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
