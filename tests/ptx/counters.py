"""What a launch did, counted."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Threads that ran each instruction, by opcode; bytes by space; instructions executed."""

    opcodes: Counter[str] = field(default_factory=Counter)
    bytes_loaded: Counter[str] = field(default_factory=Counter)
    bytes_stored: Counter[str] = field(default_factory=Counter)
    steps: int = 0  # instructions executed, each for all threads that were there

    def loaded(self, space: str, count: int) -> None:
        self.bytes_loaded[space] += count

    def stored(self, space: str, count: int) -> None:
        self.bytes_stored[space] += count
