import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mamba_np
from mamba_np.blas import BlasLimit, limit, single_threaded_blas
from mamba_np.errors import InputError
from mamba_np.threads import Member, get_num_threads, quota, run_team


def run_python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- shares ---------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 9), st.integers(1, 40))
def test_shares_tile_the_range(n, size, unit):
    shares = [Member(r, size, np.zeros(1, np.int64), None).share(n, unit) for r in range(size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == n
    for (_, high), (low, _) in itertools.pairwise(shares):
        assert high == low
    assert all(low % unit == 0 or low == n for low, _ in shares)
    units = [-(-(high - low) // unit) for low, high in shares]
    assert max(units) - min(units) <= 1


# --- regions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_after_a_barrier_all_see_what_all_wrote(size):
    rounds, written, wrong = 300, np.zeros(size, np.int64), []

    def work(member):
        for turn in range(1, rounds):
            written[member.rank] = turn
            member.barrier()
            if (written != turn).any():
                wrong.append((member.rank, turn, written.copy()))
            member.barrier()

    run_team(work, size)
    assert wrong == []
    assert (written == rounds - 1).all()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_error_in_one_rank_ends_all_and_is_raised(rank, error):
    reached = []

    def work(member):
        member.barrier()
        if member.rank == rank:
            raise error("stop")
        member.barrier()
        reached.append(member.rank)

    with pytest.raises(error, match="stop"):
        run_team(work, 3)
    assert reached == []
    ranks = []
    run_team(lambda member: (member.barrier(), ranks.append(member.rank)), 3)
    assert sorted(ranks) == [0, 1, 2]


def test_regions_in_regions_run_alone():
    sizes = []
    run_team(lambda member: run_team(lambda inner: sizes.append(inner.size), 2), 2)
    assert sizes == [1, 1]


def test_several_python_threads_at_once():
    def region(_):
        ranks = []

        def work(member):
            member.barrier()
            ranks.append((member.rank, member.size))
            time.sleep(0.002)
            member.barrier()

        run_team(work, 3)
        return sorted(ranks)

    with ThreadPoolExecutor(4) as pool:
        for ranks in pool.map(region, range(40)):
            assert ranks in ([(0, 1)], [(0, 3), (1, 3), (2, 3)])


def test_workers_have_the_callers_error_state():
    seen = []
    with np.errstate(divide="raise"):
        run_team(lambda member: seen.append(np.geterr()["divide"]), 2)
    assert seen == ["raise", "raise"]


# --- processes ------------------------------------------------------------------------------------

FORK = """
import os, threading, time, warnings
warnings.simplefilter("ignore")
from mamba_np.threads import run_team
def sizes():
    found = []
    run_team(lambda m: (m.barrier(), found.append(m.size)), 2)
    return found
assert sizes() == [2, 2]
{meanwhile}
child = os.fork()
if child == 0:
    os._exit(0 if sizes() == [2, 2] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
BUSY = """
threading.Thread(target=run_team, args=(lambda m: time.sleep(1), 2)).start()
time.sleep(0.2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("meanwhile", ["", BUSY])
def test_a_forked_process_has_a_team_of_its_own(meanwhile):
    done = run_python(FORK.format(meanwhile=meanwhile))
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


def test_idle_workers_do_not_keep_the_process():
    start = "from mamba_np.threads import run_team; run_team(lambda m: m.barrier(), 4)"
    assert run_python(start).returncode == 0


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "number"),
    [
        ({"NUMBA_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ({"NUMBA_NUM_THREADS": "", "OMP_NUM_THREADS": "2,4"}, 2),
        ({"NUMBA_NUM_THREADS": "x", "OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_environment(variables, number):
    program = "import mamba_np; print(mamba_np.get_num_threads())"
    assert run_python(program, **variables).stdout.strip() == str(number)


def test_setting():
    before = get_num_threads()
    try:
        mamba_np.set_num_threads(7)
        assert mamba_np.get_num_threads() == 7
        for bad in (0, -1, 1.5, "2", None, 5000):
            with pytest.raises(InputError, match="n: expected"):
                mamba_np.set_num_threads(bad)
        assert get_num_threads() == 7
    finally:
        mamba_np.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, np.inf),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, np.inf),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "nonsense"}, np.inf),
    ],
)
def test_quotas(files, granted):
    assert quota(files.get) == granted


# --- BLAS -----------------------------------------------------------------------------------------


class Library:
    def __init__(self, n):
        self.n, self.set = n, []

    def get_num_threads(self):
        return self.n

    def set_num_threads(self, n):
        self.n = n
        self.set.append(n)


def test_blas_is_limited_until_the_last_has_left():
    library = Library(6)
    guard = BlasLimit(lambda: [library])
    with guard():
        assert library.n == 1
        with guard():
            assert library.n == 1
        assert library.n == 1
    assert library.n == 6
    assert library.set == [1, 6]


def test_entries_of_several_threads_overlap():
    library, inside, leave = Library(4), threading.Event(), threading.Event()
    guard = BlasLimit(lambda: [library])

    def other():
        with guard():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with guard():
        thread.start()
        assert inside.wait(10)
    assert library.n == 1
    leave.set()
    thread.join()
    assert library.n == 4


def test_no_blas_is_no_error():
    with BlasLimit(list)():
        pass


def test_real_blas_is_limited_and_restored():
    with single_threaded_blas():
        libraries = limit._shared + limit._own
    counts = [library.get_num_threads() for library in libraries]
    with single_threaded_blas():
        assert all(library.get_num_threads() == 1 for library in libraries)
    assert [library.get_num_threads() for library in libraries] == counts
