"""The exercises of "Open the file"."""

import json
import struct

import ml_dtypes
import numpy as np

from ..checking import exercise, expect, near


@exercise("07a")
def read_bf16(answer):
    """The numbers of bfloat16 bytes, as float32."""
    right = np.array([[1.0, -2.0, 0.09375], [3.0e-30, -1.5e38, 0.0]], ml_dtypes.bfloat16)
    raw, numbers = right.tobytes(), right.astype(np.float32)
    found = answer(raw, right.shape)
    expect(found is not None, "Your function returns nothing yet: replace the dots.")
    found = np.asarray(found)
    flat = found.ravel()
    if flat.shape == (6,):
        as_integers = np.frombuffer(raw, "<u2")
        _known_slips(flat, raw, as_integers, numbers.ravel())
    hint = "It should be a float32 array, and is of {}."
    expect(found.dtype == np.float32, hint.format(found.dtype))
    near(found, numbers, "your array")


def _known_slips(flat, raw, integers, numbers):
    with np.errstate(all="ignore"):
        half = np.frombuffer(raw, "<f2").astype(np.float64)
        swapped = np.frombuffer(np.frombuffer(raw, ">u2").astype("<u4") << 16, "<f4")
        low = np.frombuffer(integers.astype("<u4").tobytes(), "<f4")
        slips = (
            (half, "That is float16, which has other bits: 5 of exponent, not 8."),
            (
                integers.astype(float),
                "Those are the bits as whole numbers. Look at them as float32.",
            ),
            (
                integers.astype(float) * 2**16,
                "The shifted bits became numbers: .view, not .astype.",
            ),
            (0 * numbers, "All zeros: 16 bits shifted by 16 are gone. Widen to 32 bits before."),
            (low, "The bits are in the lower half. Shift them up by 16."),
            (swapped, "The bytes are in the wrong order: the lowest comes first."),
        )
        for wrong, hint in slips:
            same = np.array_equal(flat.astype(np.float64), wrong.astype(np.float64), equal_nan=True)
            expect(not same, hint)


def file_of(header, numbers, length=None):
    """Return the bytes of a safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def _f32(first, last, *shape):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [first, last]}


@exercise("07b")
def read_header(answer):
    """The header of a file, and ValueError for every file that is not sound."""
    a, b = _f32(0, 8, 2), {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]}
    sound = {"__metadata__": {"format": "pt"}, "b": b, "a": a}  # not in the order of the offsets
    found = answer(file_of(sound, bytes(20)))
    expect(found is not None, "Your function returns nothing yet: replace the dots.")
    expect(isinstance(found, dict), "Return a dictionary: the header.")
    expect("__metadata__" not in found, "Leave out __metadata__: it is no tensor.")
    expect(found == {"a": a, "b": b}, "The header of a sound file comes back changed.")
    expect(answer(file_of({}, b"")) == {}, "A file without tensors is sound: its header is empty.")
    whole = file_of(sound, bytes(20))
    bad = {
        "An empty file": b"",
        "A file of five bytes": whole[:5],
        "A file cut in the middle of its header": whole[:30],
        "A header of 2**60 bytes": file_of(sound, bytes(20), 2**60),
        "A header that is one byte longer than the file": file_of({}, b"", 3),
        "A header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
        "A file that lacks its last byte": whole[:-1],
        "A file with a byte too many at its end": whole + b"x",
        "A file whose second tensor begins inside the first": file_of(
            {"a": a, "b": _f32(4, 12, 2)}, bytes(12)
        ),
        "A file with two tensors in one place": file_of({"a": a, "b": _f32(0, 8, 2)}, bytes(8)),
        "A file with a gap between tensors": file_of({"a": a, "b": _f32(12, 16, 1)}, bytes(16)),
        "A file with a gap before the first tensor": file_of({"a": _f32(4, 8, 1)}, bytes(8)),
        "A tensor with fewer bytes than its shape asks for": file_of(
            {"a": _f32(0, 8, 3)}, bytes(8)
        ),
        "A BF16 tensor with four bytes a number": file_of(
            {"b": b | {"data_offsets": [0, 24]}}, bytes(24)
        ),
    }
    for what, data in bad.items():
        try:
            answer(data)
        except ValueError:
            continue
        except Exception as error:  # of the reader's code
            expect(False, f"{what} stops your code with {type(error).__name__}: raise ValueError.")
        expect(False, f"{what} is accepted. Raise ValueError.")
