"""Training in the benchmark: the same step by all programs, and memory by the token."""

import json
import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from cli_runner import run

import mamba_np.training
from mamba_np import MambaConfig, MambaForCausalLM, loss_and_gradients
from mamba_np.bench import goals, plan, report, training
from mamba_np.bench.blocks import Absent, Entry
from mamba_np.bench.options import Options
from mamba_np.kernels.packing import packed
from mamba_np.kernels.training import Way

JOB = {"threads": 1, "seconds": 0, "repeats": 2, "batch": 2, "length": 20}


@pytest.fixture(scope="module", params=["tied", "untied"])
def tiny(request, tmp_path_factory):
    """The folder of a small model, whose gradients have a norm above 1."""
    folder = tmp_path_factory.mktemp("tiny") / request.param
    config = MambaConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, state_size=4,
        tie_word_embeddings=request.param == "tied", initializer_range=1.0,
    )  # fmt: skip
    MambaForCausalLM(config, rng=0).save_pretrained(folder)
    return folder


@pytest.fixture
def half_a_second(monkeypatch):
    """All calls take half a second, as far as programs can tell; each is made twice."""
    monkeypatch.setattr(training, "median_of", lambda call, job: [call(), call()] and 0.5)
    monkeypatch.setattr("mamba_np.threads.set_num_threads", lambda n: None)


def step_by_hand(tiny):
    """Return the loss and the gradients' norm of a second step, written out in float64."""
    model = MambaForCausalLM.from_pretrained(tiny, dtype="float64").make_writeable()
    ids = np.random.default_rng(0).integers(0, 11, (2, 20))
    weights = model.state_dict()
    _, gradients = loss_and_gradients(model, ids[:, :8], ids[:, :8])
    norm = np.sqrt(sum((g * g).sum() for g in gradients.values()))
    assert norm > 1
    for name, g in gradients.items():
        clipped = g / norm
        # The means of a first step are the gradient and its square.
        weights[name] *= 1 - 1e-3 * 0.1
        weights[name] -= 1e-3 * clipped / (np.abs(clipped) + 1e-8)
    loss, gradients = loss_and_gradients(model, ids, ids)
    return loss, np.sqrt(sum((g * g).sum() for g in gradients.values()))


# --- programs ------------------------------------------------------------------------------------


def program_of(name, tiny):
    if name == "Ours":
        return training.Ours(str(tiny), "cpu")
    pytest.importorskip("torch")
    pytest.importorskip(name.lower())
    return getattr(training, name)(str(tiny))


@pytest.mark.usefixtures("half_a_second")
@pytest.mark.parametrize("name", ["Ours", "Transformers", "Mambapy"])
def test_all_programs_take_the_same_steps(tiny, name):
    program = program_of(name, tiny)
    loss, norm = step_by_hand(tiny)
    for _ in range(2):  # each job begins with the weights of the file
        answer = program.train(JOB)
        assert answer["value"] == 40 / 0.5
        assert answer["loss"] == pytest.approx(loss, rel=training.ALIKE / 10)
        assert answer["grad_norm"] == pytest.approx(norm, rel=training.ALIKE / 10)
        json.dumps(answer)


@pytest.mark.usefixtures("half_a_second")
def test_ours_clips_at_one(tiny, monkeypatch):
    asked = []

    def spy(*args, **options):
        asked.append(options)
        return step(*args, **options)

    step = mamba_np.training.training_step
    monkeypatch.setattr(mamba_np.training, "training_step", spy)
    training.Ours(str(tiny), "cpu").train(JOB)
    assert asked == [{"max_grad_norm": 1.0}] * 3


@pytest.mark.usefixtures("half_a_second")
@pytest.mark.parametrize("name", ["Transformers", "Mambapy"])
def test_peers_clip_at_one_and_move_every_parameter(tiny, name, monkeypatch):
    program, clipped = program_of(name, tiny), []
    torch = program.torch
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, norm):
        clipped.append((sum(p.numel() for p in parameters), norm))
        assert all(p.grad is not None for p in parameters)
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    program.train(JOB)
    count = MambaForCausalLM.from_pretrained(tiny).num_parameters()
    assert clipped == [(count, 1.0)] * 3


@pytest.mark.parametrize("name", ["Transformers", "Mambapy"])
def test_peers_use_the_threads_of_the_job(tiny, name, monkeypatch):
    program, asked = program_of(name, tiny), []
    monkeypatch.setattr(program.torch, "set_num_threads", asked.append)
    program.begin(3)
    assert asked == [3]


def test_ours_uses_the_threads_of_the_job_and_its_backend(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr("mamba_np.threads.set_num_threads", asked.append)
    step = mamba_np.training.training_step

    def spy(model, *args, **options):
        asked.append(model.backend)
        return step(model, *args, **options)

    monkeypatch.setattr(mamba_np.training, "training_step", spy)
    training.Ours(str(tiny), "numpy").memory({**JOB, "threads": 3})
    assert asked == [3, "numpy", "numpy"]


def test_memory_is_the_peak_after_a_step_of_the_job(tiny, monkeypatch):
    steps = []
    program = training.Ours(str(tiny), "cpu")
    monkeypatch.setattr(training, "peak_megabytes", lambda: 100 + len(steps))

    def step(ids):
        steps.append(ids.shape)
        return 2.0, 3.0

    monkeypatch.setattr(program, "begin", lambda threads: step)
    assert program.memory(JOB) == {"value": 102, "loss": 2.0, "grad_norm": 3.0}
    assert steps == [(2, 8), (2, 20)]


# --- alike or refused ----------------------------------------------------------------------------


class Fake:
    """A program with given answers, which keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.jobs, self.log = list(answers), [], []

    def prepare(self):
        self.log.append("prepare")

    def ask(self, job):
        self.jobs.append(job)
        return self.answers.pop(0)

    def processes(self):
        return [7]

    def close(self):
        self.log.append("close")


def answer(loss, norm, value=1.0):
    return {"value": value, "loss": loss, "grad_norm": norm}


def asked(*answers):
    """Return what programs that share their numbers answer, or why they are refused."""
    known, found = {}, []
    for one in answers:
        try:
            found.append(training.Alike(Fake(one), known).ask({}))
        except Absent as why:
            found.append(str(why))
    return found


def test_steps_that_come_to_the_same_count():
    answers = [answer(4.0, 2.0, 9.0), answer(4.0003, 1.9999, 1.0), answer(3.9997, 2.0001, 2.0)]
    assert asked(*answers) == answers


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (answer(4.0005, 2.0), "not the same step: expected a loss 4, found 4.0005"),
        (answer(3.9995, 2.0), "not the same step: expected a loss 4, found 3.9995"),
        (answer(4.0, 2.0003), "not the same step: expected gradients of norm 2, found 2.0003"),
        (answer(float("nan"), 2.0), "not the same step: expected a loss 4, found nan"),
    ],
)
def test_other_steps_are_refused(other, why):
    assert asked(answer(4.0, 2.0), other, answer(4.0, 2.0))[1:] == [why, answer(4.0, 2.0)]


def test_a_checked_program_is_that_program_otherwise():
    inner = Fake(answer(1.0, 1.0))
    program = training.Alike(inner, {})
    program.prepare()
    assert program.processes() == [7]
    program.ask({"do": "train"})
    program.close()
    assert (inner.jobs, inner.log) == ([{"do": "train"}], ["prepare", "close"])


# --- memory by the token -------------------------------------------------------------------------


def peak(length, *values, **more):
    return length, Entry(f"p | {length}", "MB", values=list(values), **more)


def test_slopes_are_bytes_from_each_length_to_the_next():
    found = training.slopes([peak(100, 5.0), peak(300, 6.0), peak(400, 6.25)], "a | {} to {}")
    assert [(e.key, e.unit, e.values) for e in found] == [
        ("a | 100 to 300", "bytes", [5000.0]),
        ("a | 300 to 400", "bytes", [2500.0]),
    ]
    assert not any(entry.wants(5) for entry in found)  # nobody is to be asked for them


def test_slopes_without_both_ends_say_why():
    peaks = [peak(1, absent="gone"), peak(2, 6.0), peak(3), peak(5, dropped=[1.0])]
    found = [entry.result() for entry in training.slopes(peaks, "a | {} to {}")]
    assert [one["median"] for one in found] == [None] * 3
    assert [one["absent"] for one in found] == ["gone", "not measured", "not measured"]
    peaks = [peak(4, 2.0), peak(5, dropped=[3.0])]  # what disturbs speeds takes no memory
    assert training.slopes(peaks, "{} {}")[0].values == [1e6]


def bytes_of(way):
    """Return the bytes of all arrays that a step keeps."""
    arrays = [*vars(way).values(), *(a for kept in way.kept for a in vars(kept).values())]
    return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", [(16, 3, 4, 11), (40, 1, 16, 5)])
def test_counted_bytes_are_those_of_the_arrays(threads, sizes):
    D, layers, N, vocabulary = sizes
    config = MambaConfig(
        vocab_size=vocabulary, hidden_size=D, num_hidden_layers=layers, state_size=N
    )
    p = packed(MambaForCausalLM(config, rng=0).params, config)
    short, long = (bytes_of(Way(p, config, 1, length, threads)) for length in (64, 192))
    moment = 4 * max(2 * D, config.intermediate_size)
    assert (long - short) / 128 == training.bytes_per_token(config, threads) - moment


def test_counted_bytes_are_those_that_a_step_takes():
    config = MambaConfig(vocab_size=50, hidden_size=128, num_hidden_layers=3)
    model = MambaForCausalLM(config, rng=0, backend="cpu")
    peaks = []
    for length in (8, 256, 512):  # the first compiles
        ids = np.random.default_rng(0).integers(0, 50, (1, length))
        tracemalloc.start()
        loss_and_gradients(model, ids, ids)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    counted = training.bytes_per_token(config, 1)
    assert (peaks[2] - peaks[1]) / 256 == pytest.approx(counted, rel=0.02)


# --- the plan ------------------------------------------------------------------------------------


class FakeWorker(Fake):
    """A process that answers as each program might; all that were made are kept."""

    made: ClassVar[list] = []

    def __init__(self, kind, setup):
        super().__init__()
        self.kind, self.setup = kind, setup
        FakeWorker.made.append(self)

    def ask(self, job):
        self.jobs.append(job)
        length = job.get("length", 0)
        if job["do"] == "memory":
            per_token = {"training ours": 50e3, "training transformers": 400e3}[self.kind]
            wrong = self.kind == "training transformers" and length == 128
            return answer(length, 3.0 if wrong else 2.0, 200 + length * per_token / 1e6)
        speed = {"training ours": 3000.0, "training transformers": 500.0}[self.kind]
        wrong = self.kind == "training transformers" and job["batch"] == 4
        return answer(length * (1.1 if wrong else 1.0), 2.0, speed)


@pytest.fixture
def measured(monkeypatch, tmp_path, tiny):
    """The entries of a run with fake programs, by their keys."""
    FakeWorker.made = []
    monkeypatch.setattr(plan, "Worker", FakeWorker)
    monkeypatch.setattr(plan, "Afresh", FakeWorker)
    options = Options(
        only=("training",), model=tiny, work=tmp_path, peers=("transformers",), threads=(1, 2),
        blocks=3, training=((1, 256), (4, 256)), training_lengths=(128, 256, 512, 2048),
    )  # fmt: skip
    entries = plan.Plan(options).measure(lambda text: None)
    return {entry.key: entry.result() for entry in entries}


def test_results_of_training(measured):
    assert {key: one["median"] for key, one in measured.items()} == {
        "training 1 x 256 | 2 threads | ours float32": 3000.0,
        "training 1 x 256 | 2 threads | transformers": 500.0,
        "training 4 x 256 | 2 threads | ours float32": 3000.0,
        "training 4 x 256 | 2 threads | transformers": None,
        "memory of training | ours, 128 tokens": pytest.approx(206.4),
        "memory of training | ours, 256 tokens": pytest.approx(212.8),
        "memory of training | ours, 512 tokens": pytest.approx(225.6),
        "memory of training | ours, 2048 tokens": pytest.approx(302.4),
        "memory of training | transformers, 128 tokens": None,
        "memory of training | transformers, 256 tokens": pytest.approx(302.4),
        "memory of training | transformers, 512 tokens": pytest.approx(404.8),
        "memory of training, each token | ours, 128 to 256 tokens": pytest.approx(50e3),
        "memory of training, each token | ours, 256 to 512 tokens": pytest.approx(50e3),
        "memory of training, each token | ours, 512 to 2048 tokens": pytest.approx(50e3),
        "memory of training, each token | transformers, 128 to 256 tokens": None,
        "memory of training, each token | transformers, 256 to 512 tokens": pytest.approx(400e3),
        "memory of training, each token | ours, counted": pytest.approx(
            training.bytes_per_token(MambaConfig.from_pretrained(plan.bundled_model_path()), 2)
        ),
    }
    for key in (
        "memory of training | transformers, 128 tokens",
        "memory of training, each token | transformers, 128 to 256 tokens",
    ):
        why = "not the same step: expected gradients of norm 2, found 3"
        assert measured[key]["absent"] == why
    refused = measured["training 4 x 256 | 2 threads | transformers"]
    assert refused["absent"].startswith("not the same step: expected a loss 256, found 281.6")
    assert measured["training 1 x 256 | 2 threads | ours float32"]["loss"] == 256


def test_slow_peers_are_asked_once_and_all_with_the_same_threads(measured):
    speeds = {made.kind: made for made in FakeWorker.made if any(
        job["do"] == "train" for job in made.jobs)}  # fmt: skip
    ours, theirs = speeds["training ours"], speeds["training transformers"]
    assert [job["batch"] for job in ours.jobs] == [1] * 3 + [4] * 3
    assert [job["batch"] for job in theirs.jobs] == [1, 4]
    assert {job["threads"] for made in FakeWorker.made for job in made.jobs} == {2}
    assert {job["repeats"] for job in ours.jobs + theirs.jobs} == {1}
    assert all("warm_up" not in job and job["seconds"] == 1.5 for job in ours.jobs)
    assert all(job["warm_up"] is False and job["seconds"] == 0 for job in theirs.jobs)
    assert ours.setup == {"model": str(plan.bundled_model_path()), "backend": "cpu"}
    assert theirs.setup == {"model": str(plan.bundled_model_path())}
    assert "close" in ours.log
    assert "close" in theirs.log


def test_ours_has_its_turn_first(tmp_path, tiny):
    turns = next(plan.Plan(Options(model=tiny, work=tmp_path)).training())
    names = [entry.key.rpartition(" | ")[2] for entry in turns]
    assert names == ["ours float32", "transformers", "mambapy"]
    assert [entry.most for entry in turns] == [None, 1, 3]


def test_goals_of_training(measured):
    rows = {row["goal"]: row for row in goals.judge(measured, 2, 0.5) if "training" in row["goal"]}
    assert {text: (row["bound"], row["state"]) for text, row in rows.items()} == {
        "training 1 x 256, 2 threads: ours / transformers": (5.0, "met"),
        "training 4 x 256, 2 threads: ours / transformers": (5.0, "not measured"),
        "training 4 x 512, 2 threads: ours / transformers": (5.0, "not measured"),
        "memory of training, each token: 1,024 to 2,048 tokens / 128 to 256": (1.1, "not measured"),
        "memory of training, each token: 1,024 to 2,048 tokens / counted": (1.1, "not measured"),
    }
    assert rows["training 1 x 256, 2 threads: ours / transformers"]["ratio"] == 6.0


def test_memory_goals_of_training():
    what = "memory of training, each token | ours, {}"
    known = {
        what.format("128 to 256 tokens"): {"median": 50.0},
        what.format("1024 to 2048 tokens"): {"median": 56.0},
        what.format("counted"): {"median": 55.0},
    }
    rows = [row for row in goals.judge(known, 2, 0.5) if row["goal"].startswith("memory of tr")]
    assert [row["state"] for row in rows] == ["not met", "met"]
    assert [row["ratio"] for row in rows] == [pytest.approx(1.12), pytest.approx(56 / 55)]
    assert not any(row["at_least"] for row in rows)


def test_the_report_says_how_much_faster(measured):
    found = report.panels(list(measured.values()))
    lines = report._results(found["training 1 x 256, 2 threads"])
    assert "ours float32 is faster by" in lines[0]
    assert lines[3].startswith("| transformers | 500 tok/s | 500 to 500 | 6 x |")
    memory = report._results(found["memory of training, each token"])
    assert "faster" not in memory[0]
    assert memory[3].startswith("| ours, 256 to 512 tokens | 50,000 bytes |")


def test_the_command_measures_ours(tiny, tmp_path):
    done = run(
        "bench", "--only", "training", "--quick", "--peers", "none", "--threads", 1,
        "--model", tiny, "--work", tmp_path / "work", "--out", tmp_path, "--blocks", 1,
        "--seconds", 0,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text("utf-8"))["results"]
    assert [one["key"] for one in results] == [
        "training 1 x 256 | 1 thread | ours float32",
        "memory of training | ours, 128 tokens",
        "memory of training | ours, 256 tokens",
        "memory of training, each token | ours, 128 to 256 tokens",
        "memory of training, each token | ours, counted",
    ]
    assert [one["key"] for one in results if not one["median"]] == []
    assert 20 < results[1]["median"] < 2000  # MB of a Python process
