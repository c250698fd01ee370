"""Print the tables of docs/accuracy.md: our errors beside PyTorch's, from the reference arrays.

    python tools/accuracy.py

The arrays are computed by the functions of tests/test_fixtures.py, which also hold them to their
tolerances; here they are only measured.
"""

import platform
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import test_fixtures  # noqa: E402  # pyright: ignore[reportMissingImports]
from tolerances import error_to_scale  # noqa: E402  # pyright: ignore[reportMissingImports]

import mamba_np  # noqa: E402

GROUPS = {
    "logits": ("logits", "logits_embeds", "logits_mask_left", "logits_mask_right"),
    "logits, 1,500 tokens": ("long.logits",),
    "logits, token by token": ("step_logits", "short1.step_logits", "short2.step_logits"),
    "loss": ("loss",),
    "hidden states": ("hidden_states",),
    "convolution states": ("conv_states",),
    "states h": ("ssm_states",),
}
COLUMNS = (*test_fixtures.DTYPES, "PyTorch float32")
NOT_RECORDED = "not recorded"


def group_of(key: str) -> str | None:
    """Return the row of the table that a reference array counts in."""
    name = key.removeprefix("f64.")
    for group, members in GROUPS.items():
        if name in members or (group not in ("logits", "loss") and any(m in name for m in members)):
            return group
    return None


def errors(name: str) -> dict[str, dict[str, list[float]]]:
    """Return {row: {column: errors}} of one model, over both scans."""
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key in test_fixtures.compared_keys(name):
        group = group_of(key)
        if group is None:
            continue
        for scan in test_fixtures.SCANS:
            for dtype in test_fixtures.DTYPES:
                found = np.asarray(test_fixtures.results(name, dtype, scan)[key])
                expected = test_fixtures.expected_array(name, key)
                pair = test_fixtures.unmasked(name, key, found, expected)
                table[group][dtype].append(error_to_scale(*pair))
    for model, key, error in test_fixtures.torch_errors():
        if model == name and (group := group_of(key)):
            table[group]["PyTorch float32"].append(error)
    return table


def cells(name: str) -> dict[str, list[str]]:
    """Return {row: cells} of one model's table, each the largest error of its arrays."""
    table = errors(name)
    return {
        group: [f"{max(table[group][c]):.1e}" if table[group][c] else NOT_RECORDED for c in COLUMNS]
        for group in GROUPS
        if group in table
    }


def main() -> None:
    print(f"mamba_np {mamba_np.__version__}, NumPy {np.__version__}, ", end="")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}\n")
    for name in test_fixtures.MODELS:
        print(f"| `{name}` | " + " | ".join(COLUMNS) + " |")
        print("|---" * (len(COLUMNS) + 1) + "|")
        for group, row in cells(name).items():
            print(f"| {group} | " + " | ".join(row) + " |")
        print()


if __name__ == "__main__":
    main()
