"""Answers that readers of notebook 07 may give, and words of the hint that they get."""

import json

import numpy as np

SIZES = {"F32": 4, "BF16": 2}


def bits(raw):
    return np.frombuffer(raw, "<u2")


def header(skip=(), error=ValueError):
    """Return an answer to 07b that leaves out some checks, by name."""

    def answer(data):
        length = int.from_bytes(data[:8], "little")
        if "length" not in skip and (len(data) < 8 or length > len(data) - 8):
            raise error("length")
        found = json.loads(data[8 : 8 + length])
        if "metadata" not in skip:
            found.pop("__metadata__", None)
        end = 0
        for tensor in sorted(found.values(), key=lambda one: one["data_offsets"]):
            first, last = tensor["data_offsets"]
            itemsize = 4 if "dtype" in skip else SIZES[tensor["dtype"]]
            size = int(np.prod(tensor["shape"])) * itemsize
            if "overlap" not in skip and first < end:
                raise error("overlap")
            if "gap" not in skip and first > end:
                raise error("gap")
            if "size" not in skip and last - first != size:
                raise error("size")
            end = max(end, last)
        if "short" not in skip and 8 + length + end > len(data):
            raise error("short")
        if "rest" not in skip and 8 + length + end < len(data):
            raise error("rest")
        return found

    return answer


WRONG = {
    "07a": [
        (lambda raw, shape: None, "replace the dots"),
        (lambda raw, shape: np.frombuffer(raw, "<f2").reshape(shape), "That is float16"),
        (lambda raw, shape: bits(raw).reshape(shape), "as whole numbers"),
        (lambda raw, shape: (bits(raw) << 16).astype(np.float32).reshape(shape), "All zeros"),
        (
            lambda raw, shape: (
                (bits(raw).astype(np.uint32) << 16).astype(np.float32).reshape(shape)
            ),
            ".view, not .astype",
        ),
        (
            lambda raw, shape: bits(raw).astype(np.uint32).view(np.float32).reshape(shape),
            "in the lower half",
        ),
        (
            lambda raw, shape: (
                (np.frombuffer(raw, ">u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
            ),
            "wrong order",
        ),
        (
            lambda raw, shape: (bits(raw).astype(np.uint32) << 16).view(np.float32),
            "should have the shape",
        ),
        (
            lambda raw, shape: (
                (bits(raw).astype(np.uint32) << 16).view(np.float32).reshape(shape).astype(float)
            ),
            "is of float64",
        ),
    ],
    "07b": [
        (lambda data: None, "replace the dots"),
        (lambda data: True, "Return a dictionary"),
        (header(skip=["metadata"]), "stopped with KeyError"),
        (lambda data: json.loads(data[8 : 8 + data[0]]), "Leave out __metadata__"),
        (header(skip=["length", "short"]), "one byte longer than the file"),
        (header(error=OSError), "stops your code with OSError"),
        (header(skip=["short"]), "lacks its last byte is accepted"),
        (header(skip=["rest"]), "a byte too many"),
        (header(skip=["overlap"]), "begins inside the first"),
        (header(skip=["gap"]), "gap between"),
        (header(skip=["size"]), "fewer bytes than its shape"),
        (header(skip=["size", "dtype"]), "fewer bytes than its shape"),
        (header(skip=["dtype"]), "stopped with ValueError"),
    ],
}
