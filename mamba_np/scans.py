"""Ways to compute all states of a sequence, of one signature: (A_bar, drive, h) -> states.

All give what ``reference.recurrence`` gives, up to rounding, since updates compose
(``equations.compose``) and it does not matter which neighbours are composed first. They differ in
how often they compose (work), and in how many rounds, each of merges that could all happen at
once (depth):

    recurrence        work L             depth L
    kogge_stone       work L log2(L)     depth log2(L)
    associative_scan  work 2 L           depth 2 log2(L)
    chunked           work 2 L           depth chunk + L / chunk

Any of them can be the ``scan`` of ``reference.selective_scan``. Sequences have at least one step.
"""

import numpy as np

from . import equations as eq
from .checks import integer
from .errors import InputError
from .reference import associative_scan, recurrence

CHUNK = 32
"""Steps of one chunk, unless another number is asked for."""


def kogge_stone(A_bar, drive, h):  # (B L E N), (B L E N), (B E N) -> (B L E N)
    """Return the states after each step in log2(L) rounds, each over the whole sequence.

    After a round every position holds the composition of twice as many steps, up to and including
    its own, until there are no earlier ones left. Source: Kogge and Stone 1973.
    """
    A_bar, states = A_bar.copy(), drive.copy()
    states[:, 0] = eq.state_update(h, A_bar[:, 0], drive[:, 0])
    reach = 1
    while reach < drive.shape[1]:
        earlier, later = np.s_[:, :-reach], np.s_[:, reach:]
        A_bar[later], states[later] = eq.compose(
            A_bar[earlier], states[earlier], A_bar[later], states[later]
        )
        reach *= 2
    return states


def chunked(A_bar, drive, h, chunk: int = CHUNK):  # (B L E N), (B L E N), (B E N) -> (B L E N)
    """Return the states after each step by a scan in each chunk, all chunks at once.

    Within a chunk one step follows the other, from an empty state. Then the chunks follow one
    another: what a chunk begins with is added to its states, decayed as far as each of them is
    away. Raises InputError unless ``chunk`` is an integer of at least 1. Source: Blelloch 1990
    (a scan with fewer processors than elements). Mamba's authors cut long sequences into chunks,
    too, and scan each of them in parallel (Gu and Dao 2023, section 3.3 and appendix D).
    """
    L, chunk = drive.shape[1], integer("chunk", chunk, error=InputError)
    A_bar, states = _in_chunks(A_bar, chunk), _in_chunks(drive, chunk)
    for t in range(1, chunk):
        A_bar[:, :, t], states[:, :, t] = eq.compose(
            A_bar[:, :, t - 1], states[:, :, t - 1], A_bar[:, :, t], states[:, :, t]
        )
    for c in range(states.shape[1]):
        states[:, c] = eq.state_update(h[:, None], A_bar[:, c], states[:, c])
        h = states[:, c, -1]
    return states.reshape(len(states), -1, *h.shape[1:])[:, :L]


def _in_chunks(array, chunk):  # (B L E N) -> (B L/chunk chunk E N)
    """Return a copy cut into chunks, the last of which is filled up after the end."""
    B, L, *channels = array.shape
    count = -(-L // chunk)
    whole = np.zeros((B, count * chunk, *channels), array.dtype)
    whole[:, :L] = array
    return whole.reshape(B, count, chunk, *channels)


SCANS = {
    "recurrence": recurrence,
    "kogge_stone": kogge_stone,
    "associative_scan": associative_scan,
    "chunked": chunked,
}
"""All scans, by name."""
