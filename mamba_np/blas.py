"""BLAS with one thread a call, while our own threads each make a part of the product."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def _blas_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().lib_controllers
    return [library for library in found if library.user_api == "blas"]


def _set_threads(library: Any, n: int) -> None:
    """Set a library's number of threads, whichever Python thread has set it before."""
    library.set_num_threads(n)
    release = getattr(library, "clear_controlling_thread", None)
    if release is None:
        return
    # threadpoolctl 3.8 listens to one thread alone, the first, until that one gives way.
    if library.get_num_threads() != n:
        release(force=True)
        library.set_num_threads(n)
    release()


class BlasLimit:
    """Keeps BLAS at one thread while anybody, on any Python thread, is inside."""

    def __init__(self, libraries: Callable[[], list[Any]] = _blas_libraries):
        self._find, self._found = libraries, False
        self._shared: list[Any] = []  # libraries with one setting for the process
        self._own: list[Any] = []  # libraries with a setting for each thread
        self._users: dict[object, int] = {}  # who is inside, on which thread
        # What was set before: of the process (None), and of each thread that is inside.
        self._saved: dict[int | None, list[tuple[Any, int]]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Return a context in which BLAS uses one thread a call."""
        user = object()
        try:
            with self._lock:
                self._enter(user)
            yield
        finally:
            with self._lock:
                self._leave(user)

    def of_worker(self) -> None:
        """Limit the libraries that have a setting for each thread, for this thread, for good."""
        for library in self._own:
            _set_threads(library, 1)

    def after_fork(self) -> None:
        """In the child of a fork: only the thread that forked is still there."""
        self._lock = threading.Lock()
        here = threading.get_ident()
        for user in [user for user, thread in self._users.items() if thread != here]:
            self._leave(user)
        if not self._users:  # another thread may have been about to leave
            self._restore(None)

    def _enter(self, user: object) -> None:
        if not self._found:
            for library in self._find():
                # OpenBLAS on OpenMP, where threadpoolctl (3.8 or newer) sets it by thread.
                openmp = getattr(library, "threading_layer", None) == "openmp"
                by_thread = openmp and hasattr(library, "clear_controlling_thread")
                (self._own if by_thread else self._shared).append(library)
            self._found = True
        here = threading.get_ident()
        self._users[user] = here
        self._limit(None, self._shared)
        self._limit(here, self._own)

    def _leave(self, user: object) -> None:
        thread = self._users.pop(user, None)
        if thread not in self._users.values():
            if thread != threading.get_ident():  # its setting is out of reach, or gone with it
                self._saved.pop(thread, None)
            self._restore(thread)
        if not self._users:
            self._restore(None)

    def _limit(self, key: int | None, libraries: list[Any]) -> None:
        if key not in self._saved and libraries:
            self._saved[key] = [(library, library.get_num_threads()) for library in libraries]
            for library, before in self._saved[key]:
                if before != 1:
                    _set_threads(library, 1)

    def _restore(self, key: int | None) -> None:
        for library, before in self._saved.get(key, ()):
            if before != 1:
                _set_threads(library, before)
        self._saved.pop(key, None)


limit = BlasLimit()


def single_threaded_blas() -> Any:
    """Return a context in which BLAS uses one thread a call; when all have left, what it did."""
    return limit()
