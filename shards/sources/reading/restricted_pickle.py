"""Pickles of NumPy arrays and plain containers, read without running anything that they name.

A pickle is a program: it imports what it names and calls it. Here nothing that it names is imported. The few
names that such files need are mapped to the functions below, which treat what the pickle says about an array
as data. NumPy's own reconstruction is not used either: a forged dtype could declare bytes to be pointers to
objects.

A pickle can also set attributes of the objects that it makes, and NumPy obeys some of them: an object's
`__array_interface__` is an address to read from. So no object of the pickle is returned: its content is
copied into new containers, of the types listed here and no others.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shards.safe_io.git_lfs import refuse_pointer

# bool, integers, floats, complex numbers, byte strings, text, objects (of the kinds admitted here).
DTYPE_NAME = re.compile(r"[biufcSUO]\d*")
BYTE_ORDERS = "<>=|"
NUMBERS = "biufcSU"  # kinds of single values, which NumPy has types of its own for
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
# What unpickling raises for a file that is no pickle, or a forged one.
PICKLE_ERRORS = (
    struct.error,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
)


def load(path: str | Path) -> Any:
    """Read a pickle of dicts, lists, tuples, sets, strings, numbers and NumPy arrays of these.

    Returns:
        Its content, of exactly these types (an `OrderedDict` becomes a dict), without further attributes.

    Raises:
        ValueError: it is no pickle, or names or holds anything else; says what, and where.
        OSError: it cannot be read.
    """
    refuse_pointer(path)
    try:
        with open(path, "rb") as file:
            # latin1: how Python 2's pickles of arrays carry their bytes.
            return _checked_copy(_Unpickler(file, encoding="latin1").load(), "", {})
    except PICKLE_ERRORS as error:
        raise ValueError(f"{path}: not a pickle of plain arrays ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked_copy(value: Any, place: str, copies: dict[int, Any]) -> Any:
    """A copy of `value` of admitted types, at all depths; arrays share the memory of their numbers.

    Args:
        value: an object of the pickle. Only its type is used: the object itself could answer anything.
        place: where it is, such as "['train']['audio'][3]".
        copies: copies by the `id` of their originals; None while one is being made. What occurs twice is
            copied once.

    Raises:
        ValueError: any other type, or a container that holds itself; names it and its place.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if issubclass(kind, np.generic) and value.dtype.kind in NUMBERS:
        return value
    if id(value) in copies:
        if copies[id(value)] is None:
            raise ValueError(f"{_place_name(place)} holds itself; expected finite data")
        return copies[id(value)]
    copies[id(value)] = None
    copy: Any
    if kind is dict or (kind is OrderedDict and not value.__dict__):
        copy = {
            _checked_copy(key, f"{place}: a key", copies): _checked_copy(
                each, f"{place}[{key!r:.60}]", copies
            )
            for key, each in value.items()
        }
    elif kind in (list, tuple):
        copy = kind([_checked_copy(each, f"{place}[{i}]", copies) for i, each in enumerate(value)])
    elif kind in (set, frozenset):
        copy = kind([_checked_copy(each, f"{place}: a member", copies) for each in value])
    elif issubclass(kind, np.ndarray):
        copy = value.view(np.ndarray)
        if copy.dtype.hasobject:
            copy = np.empty(value.shape, object)
            flat = copy.reshape(-1)
            for i, each in enumerate(value.reshape(-1).tolist()):
                flat[i] = _checked_copy(each, f"{place}[{i}]", copies)
    else:
        of_its_own = " with attributes of its own" if kind is OrderedDict else ""
        raise ValueError(
            f"{_place_name(place)} is of type {kind.__name__}{of_its_own}, neither an array nor a plain "
            "container; save the data again as numpy arrays, lists and dicts"
        )
    copies[id(value)] = copy
    return copy


def _place_name(place: str) -> str:
    return place.removeprefix(": ") or "the whole"


class _Unpickler(pickle._Unpickler):
    """Resolves the names that arrays and containers are pickled with, and no others.

    The base class is the one in Python: C's allocates as much memory as the largest memo index says.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # New for each file: a pickle can set attributes of what it is given.
        self.stand_ins = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.stand_ins[module, name]
        except KeyError:
            raise ValueError(
                f"names {module}.{name}, which is neither an array nor a plain container; nothing of it was "
                "run. Save the data again as numpy arrays, lists and dicts"
            ) from None


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    class NDArray:
        """Stands for `numpy.ndarray`, which pickles name only as an argument."""

    class Array(np.ndarray):
        """An array whose state is set afterwards."""

        def __setstate__(self, state: Any) -> None:
            _version, shape, dtype, fortran, content = state
            shape, kind = _shape(shape), checked(dtype)
            if kind.hasobject:
                if type(content) is not list or len(content) != math.prod(shape):
                    raise ValueError(f"an object array of shape {shape} must come with a list as long")
            else:
                content = _bytes(content)
                if len(content) != math.prod(shape) * kind.itemsize:
                    raise ValueError(f"an array of {kind}, shape {shape}, comes with {len(content)} bytes")
            state = (1, shape, kind, bool(fortran), content)
            super().__setstate__(state)

    class Dtype:
        """A dtype whose byte order is set afterwards."""

        def __init__(self, name: Any, *_: Any) -> None:
            if not isinstance(name, str) or not DTYPE_NAME.fullmatch(name):
                raise ValueError(f"an array of dtype {name!r}; expected plain numbers or strings")
            self.dtype = np.dtype(object) if name[0] == "O" else np.dtype(name)

        def __setstate__(self, state: Any) -> None:
            _version, order, subarray, names, fields, *_ = state
            if order not in BYTE_ORDERS or (subarray, names, fields) != (None, None, None):
                raise ValueError("an array of records; expected plain numbers or strings")
            if order in "<>":
                self.dtype = self.dtype.newbyteorder(order)

    def reconstruct(kind: Any, *_: Any) -> Any:
        if kind is not NDArray:
            raise ValueError("an array of a class of its own; expected plain numpy arrays")
        return np.ndarray.__new__(Array, (0,), np.int8)

    def from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Any:
        kind = checked(dtype)
        if kind.hasobject or order not in ("C", "F"):
            raise ValueError("a buffer of objects; expected plain numbers or strings")
        return np.frombuffer(_bytes(content), kind).reshape(_shape(shape), order=order)

    def scalar(dtype: Any, content: Any = None) -> Any:
        return from_buffer(content, dtype, (1,), "C")[0]

    def encode(text: Any, encoding: Any = None) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError(f"text in {encoding!r}; bytes are written as latin1")
        return text.encode("latin1")

    def checked(dtype: Any) -> np.dtype:
        kind = dtype.dtype if type(dtype) is Dtype else None
        if not isinstance(kind, np.dtype) or kind.itemsize == 0:
            raise ValueError("an array without a dtype")
        return kind

    # They are in numpy.core in NumPy 1, in numpy._core in NumPy 2.
    of_numpy: dict[tuple[str, str], Callable[..., Any]] = {
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", reconstruct),
            ("multiarray", "scalar", scalar),
            ("numeric", "_frombuffer", from_buffer),
        )
    }
    of_builtins: dict[tuple[str, str], Callable[..., Any]] = {
        (module, name): stand_in
        for module in ("builtins", "__builtin__")
        # Old protocols write empty bytes as a call without arguments. Any argument is refused.
        for name, stand_in in (("set", set), ("frozenset", frozenset), ("bytes", lambda: b""))
    }
    return {
        **of_numpy,
        **of_builtins,
        ("numpy", "ndarray"): NDArray,
        ("numpy", "dtype"): Dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): encode,
    }


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r}")
    return shape


def _bytes(content: Any) -> bytes:
    """An array's values as bytes; Python 2 wrote them as a string."""
    if type(content) is str:
        content = content.encode("latin1")
    if type(content) not in (bytes, bytearray):
        raise ValueError(f"an array whose values are {type(content).__name__}, not bytes")
    return content
