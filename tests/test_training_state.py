"""Checkpoints of a run: the same run bit for bit after any interruption, and what is left out."""

import builtins
import contextlib
import errno
import json
import os
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from kills import killed

from mamba_np import MambaConfig, MambaForCausalLM
from mamba_np.checkpoint import headers
from mamba_np.errors import CheckpointError, ConfigError, FileMissingError, InputError, MambaError
from mamba_np.training import (
    AdamW,
    Checkpoint,
    Schedule,
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    load_training,
    save_checkpoint,
    training_step,
)

V = 13
CONFIG = MambaConfig(vocab_size=V, hidden_size=8, num_hidden_layers=2, state_size=4)
FILES = ("optimizer.safetensors", "trainer_state.json", "model.safetensors", "config.json")


def start(backend="numpy"):
    model = MambaForCausalLM(CONFIG, rng=0, backend=backend).make_writeable()
    optimiser = AdamW(model.state_dict(), weight_decay=0.1, betas=(0.9, 0.95))
    generators = {
        "data": np.random.default_rng(7),
        "order": np.random.Generator(np.random.SFC64(1)),
    }
    return Checkpoint(model, optimiser, TrainerState(seed=7, generators=generators))


def train(folder, steps, limit=2, said=lambda step: None, backend="numpy"):
    """Train up to ``steps`` with a checkpoint after each, from the latest there is."""
    latest = latest_checkpoint(folder)
    run = load_checkpoint(latest, backend=backend) if latest else start(backend)
    schedule = Schedule(1e-2, total_steps=100, warmup_steps=2)
    while run.optimiser.step < steps:
        ids = run.state.generators["data"].integers(V, size=(2, 9))
        ids = run.state.generators["order"].permuted(ids, axis=1)
        batch = {"input_ids": ids, "labels": ids}
        lr = schedule(run.optimiser.step)
        result = training_step(run.model, run.optimiser, [batch], lr, max_grad_norm=1.0)
        run.state.data_position += len(ids)
        run.state.log_history.append({"loss": result.loss, "learning_rate": lr})
        save_checkpoint(folder, *run, save_total_limit=limit)
        said(run.optimiser.step)
    return run


def bits(run):
    """Return all of a run as bytes."""
    arrays = (run.model.state_dict(), run.optimiser.exp_avg, run.optimiser.exp_avg_sq)
    numbers = [{name: a.tobytes() for name, a in one.items()} for one in arrays]
    states = {name: str(g.bit_generator.state) for name, g in run.state.generators.items()}
    rest = {k: v for k, v in vars(run.state).items() if k != "generators"}
    return numbers, states, rest, run.optimiser.step


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- one checkpoint ----------------------------------------------------------------------------


def test_a_checkpoint_is_the_run(tmp_path):
    run = train(tmp_path, 3)
    run.state.epoch = 2
    path = save_checkpoint(tmp_path / "other", *run)
    assert path == tmp_path / "other" / "checkpoint-3"
    again = load_checkpoint(path, backend="numpy")
    assert bits(again) == bits(run)
    for name in ("lr", "betas", "eps", "weight_decay", "no_decay"):
        assert getattr(again.optimiser, name) == getattr(run.optimiser, name)
    for name, array in again.model.state_dict().items():
        assert np.shares_memory(array, again.optimiser.parameters[name])
    assert {*FILES, "manifest.json"} <= set(names(path))
    state = json.loads((path / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert [entry["loss"] for entry in state["log_history"]] == [
        entry["loss"] for entry in run.state.log_history
    ]


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_going_on_is_the_undisturbed_run(tmp_path, backend):
    undisturbed = bits(train(tmp_path / "whole", 6, backend=backend))
    for steps in range(1, 7):
        found = bits(train(tmp_path / "parts", steps, backend=backend))
    assert found == undisturbed


def test_the_model_is_one_of_hugging_face(tmp_path):
    run = train(tmp_path, 1)
    model = MambaForCausalLM.from_pretrained(tmp_path / "checkpoint-1", backend="numpy")
    for name, array in model.state_dict().items():
        assert np.array_equal(array, run.model.state_dict()[name])
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    moments = safetensors.load_file(tmp_path / "checkpoint-1" / "optimizer.safetensors")
    expected = torch.tensor(run.optimiser.exp_avg["backbone.norm_f.weight"])
    assert torch.equal(moments["exp_avg.backbone.norm_f.weight"], expected)


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_generator_goes_on(tmp_path, kind):
    run = start()
    generator = np.random.Generator(getattr(np.random, kind)(5))
    generator.random(3, np.float32)  # half of a 64-bit number is left over
    run.state.generators["own"] = generator
    again = load_checkpoint(save_checkpoint(tmp_path, *run)).state.generators["own"]
    expected = generator.random(5, np.float32), generator.integers(99, size=700)
    assert all(
        map(np.array_equal, (again.random(5, np.float32), again.integers(99, size=700)), expected)
    )


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_what_is_trained_in_float32_is_saved_in_float32(tmp_path, stored):
    MambaForCausalLM(CONFIG, rng=0, dtype=stored).save_pretrained(tmp_path / "published")
    model = MambaForCausalLM.from_pretrained(tmp_path / "published").make_writeable()
    optimiser = AdamW(model.state_dict(), lr=1e-5)
    ids = np.arange(12).reshape(2, 6)
    training_step(model, optimiser, [{"input_ids": ids, "labels": ids}])
    path = save_checkpoint(tmp_path, model, optimiser, TrainerState())
    assert {tensor.dtype for tensor in headers(path).values()} == {"F32"}
    again = load_checkpoint(path)
    assert again.model.dtype == np.float32
    for name, array in model.state_dict().items():
        assert np.array_equal(again.model.state_dict()[name], array)


def test_an_optimiser_of_some_parameters_stays_one(tmp_path):
    model = MambaForCausalLM(CONFIG, rng=0, dtype="float64").make_writeable()
    some = {name: a for name, a in model.state_dict().items() if "in_proj" in name}
    path = save_checkpoint(tmp_path, model, AdamW(some), TrainerState())
    again = load_checkpoint(path)
    assert again.optimiser.parameters.keys() == some.keys()
    assert again.model.dtype == np.float64


def test_moments_alone_for_a_model_that_is_loaded_otherwise(tmp_path):
    run = train(tmp_path, 2)
    parameters = {name: a.copy() for name, a in run.model.state_dict().items()}
    optimiser, state = load_training(tmp_path / "checkpoint-2", parameters)
    assert optimiser.parameters == parameters
    assert bits(Checkpoint(run.model, optimiser, state)) == bits(run)
    parameters.popitem()
    with pytest.raises(CheckpointError, match=r"two moments of each .*: 'exp_avg.backbone.norm_f"):
        load_training(tmp_path / "checkpoint-2", parameters)


def test_older_ones_go(tmp_path):
    run = train(tmp_path, 4, limit=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    run.optimiser.step = 5
    save_checkpoint(tmp_path, *run)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]
    (tmp_path / "checkpoint-1").mkdir()  # not one of ours: not complete
    run.optimiser.step = 6
    save_checkpoint(tmp_path, *run, save_total_limit=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-6"]
    run.optimiser.step = 4  # somebody went back: later ones are not older
    save_checkpoint(tmp_path, *run, save_total_limit=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-6"]


# --- killed --------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


CALLS = [
    (os, n) for n in ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "open", "chmod")
]
CALLS += [(pathlib.Path, "write_bytes"), (builtins, "open")]


class Faults:
    """Let the n-th change of files fail: and all after it, as in a kill; or alone, a full disk."""

    def __init__(self, monkeypatch, at, kill):
        self.at, self.kill, self.count, self.met = at, kill, 0, None
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name), name))

    def watched(self, function, name):
        def call(*args, **kwargs):
            if name == "open" and function is REAL_OPEN and not self.writes(*args, **kwargs):
                return function(*args, **kwargs)
            self.count += 1
            if self.count == self.at:
                self.met = name
                if name == "write_bytes":  # half of it
                    path, data = args
                    with REAL_OPEN(path, "wb") as file:
                        file.write(data[: len(data) // 2])
            if self.count == self.at or (self.kill and self.count > self.at):
                raise Killed if self.kill else OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return call

    @staticmethod
    def writes(path, mode="r", *_, **__):
        return set(mode) & set("wa+")


REAL_OPEN = builtins.open


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with two checkpoints and leavings of a kill, and the end of the undisturbed run."""
    folder = tmp_path_factory.mktemp("before")
    train(folder, 2)
    for left in (".checkpoint-3.part", ".checkpoint-1.old"):
        (folder / left).mkdir()
        (folder / left / "model.safetensors").write_bytes(b"half")
    return folder, bits(train(folder.with_name("whole"), 4))


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "in place of a damaged one"])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full once"])
def test_whatever_fails_the_run_goes_on_bit_for_bit(before, tmp_path, kill, damaged):
    template, undisturbed = before
    seen = []
    for at in range(1, 1000):
        folder = tmp_path / f"{at}"
        shutil.copytree(template, folder)
        if damaged:
            shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3")
            flip(folder / "checkpoint-3" / FILES[0])
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, at, kill)
            with contextlib.suppress(Killed, MambaError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train(folder, 3, limit=1)
        if faults.met is None:
            break
        seen.append(faults.met)
        with warnings.catch_warnings():
            if damaged:  # otherwise nothing is ever to be warned of
                warnings.filterwarnings("ignore", ".*checkpoint-3 is left out")
            step = int(latest_checkpoint(folder).name.partition("-")[2])
            assert step in (2, 3)
            assert bits(train(folder, 4, limit=1)) == undisturbed
        assert names(folder) == ["checkpoint-4"]
    assert len(seen) > 30
    assert {"replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "open"} <= set(seen)


def test_a_failure_says_what_and_leaves_nothing_behind(tmp_path, monkeypatch):
    run = train(tmp_path, 1)
    run.optimiser.step = 2

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileMissingError, match=r"checkpoint-2: cannot be written: No space left"):
        save_checkpoint(tmp_path, *run)
    assert names(tmp_path) == ["checkpoint-1"]


def endless(folder, said):
    """Train on and on, with a checkpoint after each step."""
    train(folder, 10**6, said=said)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    interrupted = killed("test_training_state", "endless", tmp_path / "killed")
    assert len(interrupted) == 20
    assert "write" in interrupted
    reached = int(latest_checkpoint(tmp_path / "killed").name.partition("-")[2])
    assert reached >= 2 * 20
    steps = reached + 3
    assert bits(train(tmp_path / "killed", steps)) == bits(train(tmp_path / "whole", steps))


# --- damaged -------------------------------------------------------------------------------------


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "one bit": flip,
    "shorter": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_left_out(before, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(before[0], folder)
    DAMAGES[damage](folder / "checkpoint-2" / name)
    with pytest.warns(UserWarning, match=rf"checkpoint-2 is left out: .*{name}"):
        assert latest_checkpoint(folder) == folder / "checkpoint-1"
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder / "checkpoint-2")
    with pytest.warns(UserWarning, match="checkpoint-2 is left out"):
        assert bits(train(folder, 4)) == before[1]  # and it is written anew
    assert names(folder) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"config.json": {"size": 1}}}', None],
)
def test_a_manifest_that_says_nothing_is_damage(before, tmp_path, content):
    folder = tmp_path / "run"
    shutil.copytree(before[0], folder)
    manifest = folder / "checkpoint-2" / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"manifest.json"):
        assert latest_checkpoint(folder) == folder / "checkpoint-1"


def rewrite(path, name, change):
    """Change a JSON file of a checkpoint, and the manifest with it."""
    from mamba_np.training.folders import described

    values = json.loads((path / name).read_text())
    change(values)
    (path / name).write_text(json.dumps(values))
    if name != "manifest.json":
        entry = described(path / name)
        rewrite(path, "manifest.json", lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("manifest.json", lambda v: v["files"].update({"../x": v["files"][FILES[0]]}), "x: "),
        ("trainer_state.json", lambda v: v.pop("epoch"), "trainer_state.json: .* 'epoch'"),
        ("trainer_state.json", lambda v: v.update(global_step=-1), "global_step: .* found -1"),
        ("trainer_state.json", lambda v: v.update(optimizer=3), "trainer_state.json: "),
        ("trainer_state.json", lambda v: v["optimizer"].update(lr=-1), "lr: .* found -1"),
        (
            "trainer_state.json",
            lambda v: v["generators"]["data"].update(bit_generator="seterr"),
            "no generator is called 'seterr'",
        ),
        (
            "trainer_state.json",
            lambda v: v["generators"]["data"].update(state=None),
            "trainer_state.json: ",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(before, tmp_path, name, change, words):
    path = tmp_path / "checkpoint-2"
    shutil.copytree(before[0] / "checkpoint-2", path)
    (tmp_path / "x").write_bytes(b"")
    rewrite(path, name, change)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state_size": 5}, r"x_proj.*: expected float32 of shape \(9, 16\), found F32 of shape"),
        (
            {"num_hidden_layers": 3},
            r"safetensors: expected .* otherwise: 'exp_avg.backbone.layers.2",
        ),
        ({"use_bias": True}, r"safetensors: expected .* otherwise: 'exp_avg.*in_proj.bias'"),
    ],
)
def test_moments_of_another_model_are_refused(before, tmp_path, changed, words):
    path = tmp_path / "checkpoint-2"
    shutil.copytree(before[0] / "checkpoint-2", path)
    model = MambaForCausalLM(MambaConfig(**CONFIG.to_dict() | changed), rng=0).make_writeable()
    other = save_checkpoint(tmp_path / "other", model, AdamW(model.state_dict()), TrainerState())
    shutil.copy(other / FILES[0], path)
    entries = json.loads((other / "manifest.json").read_text())["files"]
    rewrite(path, "manifest.json", lambda m: m["files"].update({FILES[0]: entries[FILES[0]]}))
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


# --- what is refused -----------------------------------------------------------------------------


def test_a_complete_checkpoint_is_not_written_over(tmp_path):
    run = train(tmp_path, 1)
    with pytest.raises(CheckpointError, match="checkpoint-1: expected no checkpoint of this step"):
        save_checkpoint(tmp_path, *run)
    assert bits(load_checkpoint(tmp_path / "checkpoint-1", backend="numpy")) == bits(run)


def test_nothing_to_go_on_from(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(FileMissingError, match="checkpoint-7"):
        load_checkpoint(tmp_path / "checkpoint-7")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    run = start()
    with pytest.raises(InputError, match="save_total_limit: expected an integer from 1"):
        save_checkpoint(tmp_path, *run, save_total_limit=0)
    stray = AdamW({"adapter": np.zeros(3)})
    with pytest.raises(InputError, match="expected parameters of the model, found 'adapter'"):
        save_checkpoint(tmp_path, run.model, stray, run.state)
    run.state.log_history.append({"loss": np.float32(1)})
    with pytest.raises(
        ConfigError, match=r"trainer_state.json: expected values that JSON can hold"
    ):
        save_checkpoint(tmp_path, *run)
    assert names(tmp_path) == []
