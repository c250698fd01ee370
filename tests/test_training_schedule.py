"""Learning rates: transformers' own numbers, and what is refused."""

import pickle

import pytest

from mamba_np.errors import InputError
from mamba_np.training import SCHEDULES, Schedule

CASES = [(0, 1), (0, 10), (3, 10), (1, 2), (10, 10), (12, 10), (100, 1000)]
THEIR_KIND = {
    "linear": "get_linear_schedule_with_warmup",
    "cosine": "get_cosine_schedule_with_warmup",
    "constant": "get_constant_schedule_with_warmup",
    "cosine with min_ratio": "get_cosine_with_min_lr_schedule_with_warmup",
}


def their_rates(kind, warmup, total, lr, **options):
    """Return the rates of the steps before ``total``, as PyTorch's scheduler sets them."""
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=lr)
    options = options | ({} if kind == "constant" else {"num_training_steps": total})
    make = getattr(optimization, THEIR_KIND[kind])
    scheduler = make(optimizer, num_warmup_steps=warmup, **options)
    rates = []
    for _ in range(total + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("warmup", "total"), CASES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_transformers_own(name, warmup, total):
    schedule = Schedule(3e-4, total, warmup, name)
    ours = [schedule(step) for step in range(total + 1)]
    assert ours == their_rates(name, warmup, total, 3e-4)


@pytest.mark.parametrize(("warmup", "total"), CASES)
def test_cosine_to_a_share_is_transformers_own(warmup, total):
    schedule = Schedule(3e-4, total, warmup, "cosine", 0.1)
    ours = [schedule(step) for step in range(total + 1)]
    theirs = their_rates("cosine with min_ratio", warmup, total, 3e-4, min_lr_rate=0.1)
    assert ours == theirs


@pytest.mark.parametrize(("name", "last"), [("linear", 0), ("cosine", 0.25), ("constant", 2)])
def test_shapes(name, last):
    schedule = Schedule(2, 10, 4, name, 0.125 if name == "cosine" else 0)
    assert [schedule(step) for step in range(5)] == [0, 0.5, 1, 1.5, 2]
    later = [schedule(step) for step in range(4, 11)]
    assert later == sorted(later, reverse=True)
    assert [schedule(step) for step in (10, 11, 14, 1000)] == [last] * 4


def test_a_schedule_is_a_value():
    schedule = Schedule(lr=1e-3, total_steps=10)
    assert schedule.name == "linear"
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(Schedule(1e-3, 10))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "linaer"}, "name: expected one of linear, cosine, constant, found 'linaer'"),
        ({"lr": -1}, "lr: expected a finite number of at least 0, found -1"),
        ({"lr": float("nan")}, "lr: .* found nan"),
        ({"total_steps": 0}, "total_steps: expected an integer from 1"),
        ({"warmup_steps": 0.1}, "warmup_steps: expected an integer from 0 .* found 0.1"),
        ({"min_ratio": 2, "name": "cosine"}, "min_ratio: .* at most 1, found 2"),
        ({"min_ratio": 0.5}, "min_ratio: expected 0 for the schedule 'linear', found 0.5"),
    ],
)
def test_what_no_schedule_can_have_is_refused_by_name(changed, words):
    with pytest.raises(InputError, match=words):
        Schedule(**{"lr": 1e-3, "total_steps": 10} | changed)


def test_steps_count_from_zero():
    with pytest.raises(InputError, match=r"step: expected an integer from 0 .* found -1"):
        Schedule(1e-3, 10)(-1)
