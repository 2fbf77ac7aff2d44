"""Pickles of others: arrays are read as they were written, and no other name is imported or run."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.sources.reading.restricted_pickle import load

MARK = "it ran"


def plain(value: Any) -> Any:
    """Arrays as plain ones, for comparison."""
    if isinstance(value, np.ndarray):
        return [plain(each) for each in value] if value.dtype.hasobject else (value.tolist(), value.shape)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


CONTENT = {
    "float": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(10)[::2],
    "big end first": np.arange(4, dtype=">i4"),
    "bool": np.array([True, False]),
    "text": np.array(["x", "yy"]),
    "bytes": np.array([b"x", b"yy"]),
    "ragged": np.array([np.zeros((2, 2)), np.ones(3)], dtype=object),
    "objects": np.array(["a", 3, None], dtype=object),
    "empty": np.zeros((0, 3), np.float32),
    "single": np.array(3.0),
    "numbers": [np.float32(2), np.int64(4), np.bool_(True), 1, 2.5, None],
    "raw": b"\xff\x00",
    "set": {1, 2},
    "ordered": OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_arrays_and_containers_come_out_as_they_went_in(tmp_path: Path, protocol: int, core: str) -> None:
    content = pickle.dumps(CONTENT, protocol)
    if protocol < 4:  # later ones write the length before a name
        content = content.replace(b"numpy._core", core.encode())
    (tmp_path / "x.pkl").write_bytes(content)
    assert plain(load(tmp_path / "x.pkl")) == plain(CONTENT)


def test_as_numpy_1_wrote_them_at_protocol_4(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(3.0), 4)
    name = pickle.SHORT_BINUNICODE
    old = content.replace(
        name + bytes([len("numpy._core.multiarray")]) + b"numpy._core.multiarray",
        name + bytes([len("numpy.core.multiarray")]) + b"numpy.core.multiarray",
    )
    assert old != content
    # The frame that holds it is a byte shorter now.
    frame = int.from_bytes(old[3:11], "little") - 1
    (tmp_path / "x.pkl").write_bytes(old[:3] + frame.to_bytes(8, "little") + old[11:])
    assert load(tmp_path / "x.pkl").tolist() == [0.0, 1.0, 2.0]


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def named(name: str, *arguments: str) -> bytes:
    """A pickle, protocol 0, that calls "module function" with strings."""
    module, function = name.split()
    return f"c{module}\n{function}\n({''.join(f'V{a}{chr(10)}' for a in arguments)}tR.".encode()


def mark(folder: Path) -> str:
    return f"open({str(folder / MARK)!r}, 'w').close()"


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins exec",
        "__builtin__ eval",
        "builtins getattr",
        "builtins __import__",
        "builtins bytearray",
        "os system",
        "posix system",
        "subprocess Popen",
        "numpy.testing._private.utils runstring",
        "numpy.testing runstring",
        "numpy load",
        "numpy fromfile",
        "numpy memmap",
        "numpy.lib.npyio load",
        "numpy._core.multiarray fromfile",
        "numpy.core.multiarray frombuffer",
        "numpy._core.records fromfile",
        "numpy.f2py.diagnose run_command",
        "numpy matrix",
        "numpy.ma.core _mareconstruct",
        "collections defaultdict",
        "collections namedtuple",
        "operator attrgetter",
        "functools partial",
        "codecs decode",
        "_codecs decode",
        "pickle loads",
        "_pickle Unpickler",
        "copyreg _reconstructor",
        "torch._utils _rebuild_tensor_v2",
        "shards.sources.reading.restricted_pickle load",
    ],
)
def test_any_other_name_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(named(name, mark(tmp_path)))
    with pytest.raises(
        ValueError, match=rf"x\.pkl: names {name.replace(' ', '.')}, which is neither an array"
    ):
        load(path)
    assert not (tmp_path / MARK).exists()


def test_the_marking_pickle_marks_where_it_is_run(tmp_path: Path) -> None:
    """What the test above shows not to happen does happen in Python's own unpickler."""
    pickle.loads(named("builtins exec", mark(tmp_path)))
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "hide",
    [
        lambda call: np.array([1, call], dtype=object),
        lambda call: np.array([np.array([[call]], dtype=object), 1], dtype=object),
        lambda call: {"train": {"audio": [np.zeros(3), (call,)]}},
        lambda call: {call: 1},
        lambda call: OrderedDict(a=call),
    ],
    ids=["object array", "object array in one", "containers", "key", "ordered"],
)
def test_code_within_what_is_admitted_is_not_run(tmp_path: Path, hide: Any, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(hide(Calls(exec, mark(tmp_path))), protocol))
    with pytest.raises(ValueError, match=r"names (builtins|__builtin__)\.exec"):
        load(path)
    assert not (tmp_path / MARK).exists()


def test_default_factories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(defaultdict(list)))
    with pytest.raises(ValueError, match=r"names collections\.defaultdict"):
        load(tmp_path / "x.pkl")


class Forged:
    """An array whose state is made up."""

    def __init__(self, state: Any, kind: Any = np.ndarray) -> None:
        self.state, self.kind = state, kind

    def __reduce__(self) -> tuple[Any, ...]:
        from numpy._core.multiarray import _reconstruct

        return _reconstruct, (self.kind, (0,), b"b"), self.state


class ForgedDtype:
    """A dtype whose state is made up: bytes declared to be pointers to objects, or records."""

    def __init__(self, name: Any, state: Any = None) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (np.dtype, (self.name, False, True))
            if self.state is None
            else (np.dtype, (self.name,), self.state)
        )


F4 = np.dtype("f4")
HAS_OBJECTS = 63  # flags of dtype("O")


@pytest.mark.parametrize(
    ("forged", "complaint"),
    [
        (Forged((1, (2,), F4, False, b"\0" * 7)), r"shape \(2,\), comes with 7 bytes"),
        (Forged((1, (1 << 40,), F4, False, b"")), "comes with 0 bytes"),
        (Forged((1, (-1,), F4, False, b"")), r"an array of shape \(-1,\)"),
        (Forged((1, ("2",), F4, False, b"")), "an array of shape"),
        (Forged((1, (1,), F4, False, [1.0])), "values are list, not bytes"),
        (Forged((1, (1,), np.dtype(object), False, b"\x41" * 8)), "object array .* with a list as long"),
        (Forged((1, (3,), np.dtype(object), False, [1])), "object array .* with a list as long"),
        (Forged((1, (1,), np.dtype([("a", "O")]), False, b"\x41" * 8)), "dtype 'V8'"),
        (Forged((1, (1,), np.dtype("M8[s]"), False, b"\0" * 8)), "dtype 'M8'"),
        (Forged((1, (1,), "f4", False, b"\0" * 4)), "an array without a dtype"),
        (Forged((1, (1,), F4, False)), "not enough values"),
        (Forged(7), "not a pickle of plain arrays"),
        (Forged((1, (1,), F4, False, b"\0" * 4), kind=OrderedDict), "a class of its own"),
        (Forged((1, (1,), F4, False, b"\0" * 4), kind=set), "a class of its own"),
        (ForgedDtype("O,f4"), "dtype 'O,f4'"),
        (ForgedDtype({"names": ["a"], "formats": ["O"]}), "dtype {"),
        (ForgedDtype("V8", (3, "|", None, None, None, 8, 1, HAS_OBJECTS)), "dtype 'V8'"),
        (
            ForgedDtype("S8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, HAS_OBJECTS)),
            "an array of records",
        ),
        (
            ForgedDtype("S8", (3, "|", (np.dtype("O"), (1,)), None, None, 8, 1, HAS_OBJECTS)),
            "array of records",
        ),
    ],
)
def test_forged_arrays_are_refused(tmp_path: Path, forged: Any, complaint: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"audio": [forged]}, 3))
    with pytest.raises(ValueError, match=complaint) as refused:
        load(path)
    assert str(path) in str(refused.value)


def test_forged_flags_of_a_dtype_change_nothing(tmp_path: Path) -> None:
    """Bytes that a forged dtype declares to be pointers stay bytes: NumPy would follow them."""
    kind = ForgedDtype("S8", (3, "|", None, None, None, 8, 1, HAS_OBJECTS))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Forged((1, (1,), kind, False, b"AAAAAAAA")), 3))
    found = np.asarray(load(tmp_path / "x.pkl"))
    assert found.dtype == "S8"
    assert not found.dtype.hasobject
    assert found.tolist() == [b"AAAAAAAA"]


# An object that a pickle makes: its program, at protocol 0. Where it is none of a container, BUILD gives it
# attributes by a pair (None, attributes), which it sets one by one.
CARRIERS = {
    "an ordered dict": (b"ccollections\nOrderedDict\n(tR", "OrderedDict with attributes of its own"),
    "an instance": (b"cnumpy\nndarray\n(tR", "NDArray"),
    "a class": (b"cnumpy\nndarray\n", "type"),
    "a function": (b"cnumpy.core.multiarray\n_reconstruct\n", "function"),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        (b"", b"", "the whole"),
        (b"(dVtrain\n(dVaudio\n(lI0\na", b"ass", r"\['train'\]\['audio'\]\[1\]"),
        (b"(I0\n", b"t", r"\[1\]"),
    ],
    ids=["alone", "in containers", "in a tuple"],
)
def test_objects_that_tell_numpy_where_to_read_are_refused(
    tmp_path: Path, carrier: str, before: bytes, after: bytes, place: str
) -> None:
    """A forged `__array_interface__` points past the end of three bytes; NumPy would read on."""
    program, name = CARRIERS[carrier]
    interface = {"data": b"abc", "shape": (64,), "typestr": "|u1", "version": 3}
    attributes = pickle.dumps((None, {"__array_interface__": interface}), 0)[:-1]
    path = tmp_path / "x.pkl"
    path.write_bytes(before + program + attributes + b"b" + after + b".")
    with pytest.raises(ValueError, match=rf"x\.pkl: {place} is of type {name}, neither an array nor"):
        load(path)


def filled(array: np.ndarray, value: Any) -> np.ndarray:
    array[...] = None
    array.reshape(-1)[-1] = value
    return array


@pytest.mark.parametrize(
    "hide",
    [
        lambda carrier: filled(np.empty((1, 2), object), carrier),
        lambda carrier: {1: [carrier]},
        lambda carrier: OrderedDict(a=carrier),
    ],
    ids=["object array", "containers", "ordered dict"],
)
def test_they_are_found_at_any_depth(tmp_path: Path, hide: Any) -> None:
    carrier = OrderedDict(a=1)
    carrier.__array_interface__ = {}  # type: ignore[attr-defined]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(hide(carrier)))
    with pytest.raises(ValueError, match=r"x\.pkl: \[.*\] is of type OrderedDict with attributes of its own"):
        load(tmp_path / "x.pkl")


def test_only_plain_types_are_returned(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(CONTENT))
    content = load(tmp_path / "x.pkl")
    assert {type(value) for value in content.values()} == {np.ndarray, list, bytes, set, dict}
    assert [type(each) for each in content["ragged"]] == [np.ndarray, np.ndarray]


def test_shared_objects_stay_shared_and_cycles_are_refused(tmp_path: Path) -> None:
    twice = np.zeros(3)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([twice, (twice,)]))
    one, (other,) = load(tmp_path / "x.pkl")
    assert one is other
    endless: list[Any] = [1]
    endless.append({"again": endless})
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(endless))
    with pytest.raises(ValueError, match=r"\[1\]\['again'\] holds itself"):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04", b"PK\x03\x04zip", b"\x80\x63."])
def test_what_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pkl: "):
        load(tmp_path / "x.pkl")


def test_persistent_references_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"P0\n.")  # a persistent id
    with pytest.raises(ValueError, match="not a pickle of plain arrays"):
        load(tmp_path / "x.pkl")


def test_a_large_memo_index_takes_no_memory(tmp_path: Path) -> None:
    last = 1 << 22
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04Nr" + last.to_bytes(4, "little") + b".")
    tracemalloc.start()
    try:
        assert load(tmp_path / "x.pkl") is None
        assert tracemalloc.get_traced_memory()[1] < last
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"\x80\x04G12", b"\x80\x04X\xff\xff\xff\x7fab", b"\x80\x04h\x05."])
def test_a_pickle_that_is_cut_short_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pkl: "):
        load(tmp_path / "x.pkl")
