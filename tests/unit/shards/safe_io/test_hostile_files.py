"""Feature files that refer to other files, hold less than they claim, or are not the file at all."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from corpora_support import write_mosei
from shards_support import corpus, pack

from awtpn.inference.predictor import Predictor
from awtpn.model.files import CARD_FILE, WEIGHTS_FILE
from shards import FeatureStream
from shards.extraction.media import read_audio
from shards.format.schema import BadSample
from shards.safe_io.expansion import VARIABLE, load_npy, load_npz, most_bytes
from shards.sources import mmsa, mosei, npz, recordings, reference, table
from shards.sources.cmu import csd
from shards.tools.index_tars import index_url

ZEROS = 100 << 20
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
PRIVATE = b"PRIVATE-KEY-OF-THIS-MACHINE" * 8


# --- HDF5 that refers to other files -------------------------------------------------------------


def external_storage(file: h5py.File, private: Path) -> None:
    file.create_dataset("A/data/v/features", shape=(8, 8), dtype="u1", external=[(str(private), 0, 64)])


def external_link(file: h5py.File, private: Path) -> None:
    file.require_group("A/data/v")["features"] = h5py.ExternalLink(private, "/secret")


def external_link_that_dangles(file: h5py.File, private: Path) -> None:
    file.require_group("A/data/v")["features"] = h5py.ExternalLink(f"{private}-not", "/secret")


def external_entry(file: h5py.File, private: Path) -> None:
    del file["A/data/v"]
    file["A/data/v"] = h5py.ExternalLink(private, "/")


def external_data(file: h5py.File, private: Path) -> None:
    del file["A/data"]
    file["A/data"] = h5py.ExternalLink(private, "/")


def external_sequence(file: h5py.File, private: Path) -> None:
    del file["A"]
    file["A"] = h5py.ExternalLink(private, "/")


def soft_then_external(file: h5py.File, private: Path) -> None:
    file["A/out"] = h5py.ExternalLink(private, "/")
    file["A/data/v/features"] = h5py.SoftLink("/A/out/secret")


def virtual(file: h5py.File, private: Path) -> None:
    layout = h5py.VirtualLayout(shape=(8, 8), dtype="u1")
    layout[:] = h5py.VirtualSource(str(private), "secret", shape=(8, 8))
    file.create_virtual_dataset("A/data/v/features", layout)


@pytest.mark.parametrize(
    "refer",
    [
        external_storage,
        external_link,
        external_link_that_dangles,
        external_entry,
        external_data,
        external_sequence,
        soft_then_external,
        virtual,
    ],
)
def test_other_files_are_not_packed(tmp_path: Path, refer: Callable[[h5py.File, Path], None]) -> None:
    private = tmp_path / "private"
    if refer is external_storage:
        private.write_bytes(PRIVATE)
    else:
        with h5py.File(private, "w") as file:
            file["secret"] = file["features"] = np.frombuffer(PRIVATE[:64], np.uint8).reshape(8, 8)
            file["intervals"] = np.zeros((8, 2))
            file["v"] = file["/"]
            file["data"] = file["/"]
    path = tmp_path / "a.csd"
    with h5py.File(path, "w") as file:
        file["A/data/v/intervals"] = np.zeros((8, 2))
        refer(file, private)
    refused = pytest.raises(ValueError, match=r"a\.csd: .* read; write all data into one file")
    with refused as caught, csd.opened(path) as data:
        csd.read_entry(data, "v", path)
    assert str(private) in str(caught.value), "what it refers to is named"


def test_such_a_file_is_refused_by_packing(tmp_path: Path) -> None:
    folder = write_mosei(tmp_path / "mosei")
    (tmp_path / "private").write_bytes(PRIVATE)
    with h5py.File(folder / "CMU_MOSEI_COVAREP.csd", "r+") as file:
        entry = file["COVAREP/data/-3g5yACwYnA"]
        del entry["features"]
        steps = len(entry["intervals"])
        external = [(str(tmp_path / "private"), 0, steps)]
        entry.create_dataset("features", shape=(steps, 1), dtype="u1", external=external)
    samples = mosei.read(folder, audio="CMU_MOSEI_COVAREP.csd", folds="folds.json").samples
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    assert bad
    assert all("COVAREP.csd: /COVAREP/data/-3g5yACwYnA/features takes its content" in b.cause for b in bad)


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.csd"
    with h5py.File(path, "w") as file:
        file["A/data/v/intervals"] = np.zeros((3, 2))
        file["A/store/x"] = np.arange(6.0).reshape(3, 2)
        file["A/data/v/features"] = h5py.SoftLink("/A/store/x")
        file["A/data/w"] = h5py.SoftLink("v")
        file["A/data/loop"] = h5py.SoftLink("loop")
        file["A/data/nowhere"] = h5py.SoftLink("/A/none")
    with csd.opened(path) as data:
        assert csd.has(data, "w")
        assert not csd.has(data, "x")
        np.testing.assert_array_equal(csd.read_entry(data, "w", path)[0], np.arange(6.0).reshape(3, 2))
        for entry in ("loop", "nowhere", "x"):
            with pytest.raises(ValueError, match=rf"a\.csd: {entry}: no features and intervals"):
                csd.read_entry(data, entry, path)


def test_hdf5_may_not_claim_more_than_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csd"
    with h5py.File(path, "w") as file:
        for name, size in {"huge": 10**13, "zeros": ZEROS // 8}.items():
            file[f"A/data/{name}/intervals"] = np.zeros((1, 2))
            file.create_dataset(
                f"A/data/{name}/features",
                shape=(size, 1),
                chunks=(1 << 17, 1),
                compression="gzip",
                dtype="f8",
            )
        file["A/data/zeros/features"][:] = np.zeros((ZEROS // 8, 1))
        file["A/data/text/intervals"] = np.zeros((1, 2))
        file["A/data/text/features"] = np.array([[b"abc"]])
    with csd.opened(path) as data:
        for name in ("huge", "zeros"):
            with pytest.raises(
                ValueError, match=rf"/A/data/{name}/features: its \d+ bytes unpack to .*{VARIABLE}"
            ):
                csd.read_entry(data, name, path)
        with pytest.raises(ValueError, match=r"text: no features .* and no numbers"):
            csd.read_entry(data, "text", path)
        monkeypatch.setenv(VARIABLE, "2000")
        with pytest.raises(ValueError, match=r"features \(13107200, 1\) float64 with intervals \(1, 2\)"):
            csd.read_entry(data, "zeros", path)


def test_a_chunk_may_not_unpack_to_more_than_the_file(tmp_path: Path) -> None:
    """HDF5 unpacks chunks whole, whatever the shape of the dataset is."""
    with h5py.File(tmp_path / "a.csd", "w") as file:
        file["A/data/v/intervals"] = np.zeros((10, 2))
        features = file.create_dataset(
            "A/data/v/features",
            shape=(10, 1),
            maxshape=(None, 1),
            chunks=(ZEROS // 4, 1),
            dtype="f4",
            compression="gzip",
        )
        features.id.write_direct_chunk((0, 0), zlib.compress(bytes(ZEROS), 1))
    with (
        csd.opened(tmp_path / "a.csd") as data,
        pytest.raises(ValueError, match=rf"features: its \d+ bytes unpack to {ZEROS} or more.*{VARIABLE}"),
    ):
        csd.read_entry(data, "v", tmp_path / "a.csd")


# --- Archives that unpack to far more ------------------------------------------------------------


def npz_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy_of(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": values.dtype.str, "fortran_order": False, "shape": shape or values.shape}
    )
    return buffer.getvalue() + values.tobytes()


def test_an_npz_of_zeros_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, ids=np.array(["a"]), label=np.array([0]), audio=np.zeros((1, ZEROS // 4), "f4"))
    with pytest.raises(ValueError, match=rf"f\.npz: its \d+ bytes unpack to 10\d+ or more.*{VARIABLE}"):
        npz.read(path)
    monkeypatch.setenv(VARIABLE, "2000")
    assert load_npz(path, "f")["audio"].nbytes == ZEROS
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(ValueError, match=f"{VARIABLE}=much: must be a factor"):
        most_bytes(1)


def test_a_compressed_tar_of_zeros_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    with gzip.open(tmp_path / "d" / "a.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(ZEROS >> 20):
            file.write(bytes(1 << 20))
    monkeypatch.setattr("shards.safe_io.expansion.ALWAYS", 8 << 20)
    with pytest.raises(
        ValueError, match=rf"a\.tar\.gz: compressed tar: its \d+ bytes unpack to .*{VARIABLE}"
    ):
        index_url(str(tmp_path / "d"), cache_dir=tmp_path / "cache", progress=False)
    assert not list((tmp_path / "d").glob(".unpacked-*")), "nothing is left of it"


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "d").mkdir()
    content = npz_of({"audio.npy": npy_of(np.zeros((ZEROS // 16, 4), "f4"))})
    with tarfile.open(tmp_path / "d" / "a.tar", "w") as tar:
        info = tarfile.TarInfo("u0.npz")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=rf"a\.tar: u0\.npz: its \d+ bytes unpack to .*{VARIABLE}"):
        index_url(str(tmp_path / "d"), cache_dir=tmp_path / "cache", progress=False)


def test_padding_may_compress_well(tmp_path: Path) -> None:
    """What people really have: mostly padding, a fiftieth of its size."""
    values = np.zeros((200, 500, 74), "f4")
    values[:, :10] = np.random.default_rng(0).normal(size=(200, 10, 74))
    np.savez_compressed(tmp_path / "f.npz", ids=np.arange(200), label=np.zeros(200, int), audio=values)
    np.testing.assert_array_equal(load_npz(tmp_path / "f.npz", "f")["audio"], values)


# --- Arrays that are not whole -------------------------------------------------------------------

TERABYTES = (1 << 40, 8)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda whole: whole[: len(whole) // 2], "File is not a zip file"),
        (lambda whole: whole[:-30], "not a zip file"),
        (lambda whole: whole.replace(b"PK\x03\x04", b"PK\x03\x05"), "Bad magic number"),
        (lambda whole: npz_of({"a.npy": npy_of(np.zeros(4), TERABYTES)}), "cut short or forged"),
        (lambda whole: npz_of({"a.npy": npy_of(np.zeros(4), (-1,))}), "cut short or forged"),
        (lambda whole: npz_of({"a.npy": b"oops"}), "EOF|magic"),
        (lambda whole: npz_of({"a.txt": b"oops"}), "its member 'a.txt' is no .npy array"),
        (lambda whole: npy_of(np.zeros(4)), "not a zip file"),
        (lambda whole: POINTER.encode(), "git lfs pull"),
        (lambda whole: b"", "not a zip file"),
    ],
)
def test_npz_that_are_not_whole(tmp_path: Path, content: Callable[[bytes], bytes], cause: str) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, ids=np.arange(6), label=np.zeros(6, int), audio=np.ones((6, 3, 4)))
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"f\.npz: .*({cause})") as caught:
        npz.read(path)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, audio=np.random.default_rng(0).normal(size=(60, 40)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"f\.npz: not an \.npz of plain arrays .*(CRC|invalid|error)"):
        npz.read(path)


@pytest.mark.parametrize(
    "content",
    [
        npy_of(np.zeros(4), TERABYTES),
        npy_of(np.zeros((3, 4)))[:-8],
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"{" * 60_000,
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 9_000) + b"(" * 9_000,
        b"",
        POINTER.encode(),
    ],
)
def test_npy_that_are_not_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy") as caught:
        load_npy(tmp_path / "a.npy")
    (tmp_path / "t.csv").write_text("key,split,label,audio\nk,train,x,a.npy\n")
    [bad] = table.read(tmp_path / "t.csv").samples
    assert isinstance(bad, BadSample)
    assert str(caught.value) in bad.cause


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3),
        np.zeros((0, 4), "f2"),
        np.array(["", ""]),
        np.array(["ä", "bc"]),
        np.array([b"x"]),
        np.array([True]),
        np.array(["2020-01-01"], "M8[D]"),
    ],
)
def test_whole_arrays_are_read_as_numpy_reads_them(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", values, b=1)
    for found in (load_npy(tmp_path / "a.npy"), load_npz(tmp_path / "a.npz", "a")["arr_0"]):
        np.testing.assert_array_equal(found, values)
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert list(load_npz(tmp_path / "a.npz", "a", only="b")) == ["b"]


def reference_of(folder: Path, **changes: Any) -> Path:
    record = {"audio_feats": torch.ones(3, 2, 4), "video_feats": torch.ones(3, 2, 4)}
    torch.save(record | {"labels": torch.tensor([0, 1, 0])} | changes, folder / "train.pt")
    return folder


def test_values_without_any_bytes_are_refused(tmp_path: Path) -> None:
    """Else a file of a few bytes makes lists of any length."""
    forged = npy_of(np.zeros(0, "<U1"), (10**7,)).replace(b"<U1", b"<U0")
    audio = npy_of(np.zeros((1, 2, 3), "f4"))
    members = {"ids.npy": forged, "label.npy": forged, "audio.npy": audio}
    (tmp_path / "f.npz").write_bytes(npz_of(members, zipfile.ZIP_STORED))
    with pytest.raises(ValueError, match=r"f\.npz: .*<U0 of shape \(10000000,\): values without any bytes"):
        npz.read(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_feats": 5}, r"train\.pt: audio_feats is a value of type int"),
        ({"audio_feats": torch.tensor(1.0)}, r"train\.pt: audio_feats is a single number"),
        ({"audio_feats": {"a": 1, "b": 2, "c": 3}}, r"train\.pt: audio_feats is a value of type dict"),
        ({"labels": 5}, r"train\.pt: labels is a value of type int"),
        ({"labels": [[0], [1, 2], [3]]}, r"train\.pt: labels must be integers"),
        (
            {"labels": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8)},
            r"train\.pt: labels are a quantized tensor",
        ),
        (
            {"labels": torch.nested.nested_tensor([torch.ones(2), torch.ones(1), torch.ones(1)])},
            r"train\.pt: labels is a nested tensor",
        ),
        (
            {"audio_feats": torch.nested.nested_tensor([torch.ones(2, 4)] * 3)},
            r"train\.pt: audio_feats is a nested tensor",
        ),
        ({"labels": torch.tensor([0, 1, 0]).to_sparse()}, r"train\.pt: labels .*labels\.to_dense"),
        ({"video_feats": torch.ones(3, 1, 4).expand(3, 1 << 24, 4)}, rf"video_feats: its .*{VARIABLE}"),
    ],
)
def test_tensors_that_no_utterance_can_be_taken_from(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reference.read(reference_of(tmp_path, **changes))


def test_entries_without_a_name_are_refused(tmp_path: Path) -> None:
    torch.save({1: 2, "audio_feats": torch.ones(3, 2, 4), "labels": [0, 1, 0]}, tmp_path / "train.pt")
    with pytest.raises(ValueError, match=r"train\.pt: key 1 is no text"):
        reference.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_feats": torch.ones(3, 2, 4).to_sparse()}, "audio_feats is a sparse tensor; .*to_dense"),
        ({"audio_feats": [torch.ones(2, 4).to_sparse()] * 3}, "audio_feats is a sparse tensor"),
        ({"video_feats": torch.ones(3, 2, 4, device="meta")}, "video_feats is a meta tensor"),
    ],
)
def test_tensors_that_are_not_dense_are_bad_utterances(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    found = list(reference.read(reference_of(tmp_path, **changes)).samples)
    assert len(found) == 3
    assert all(isinstance(bad, BadSample) and re.search(message, bad.cause) for bad in found)


def test_tensors_with_gradients_are_features_too(tmp_path: Path) -> None:
    source = reference.read(reference_of(tmp_path, audio_feats=torch.ones(3, 2, 4, requires_grad=True)))
    assert len(list(source.samples)) == 3


# --- Git LFS pointers ----------------------------------------------------------------------------


def test_pointers_are_recognized_wherever_data_is_opened(tmp_path: Path) -> None:
    def pointer(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(POINTER)
        return path

    dataset = tmp_path / "packed"
    pack(corpus(8), dataset)
    pointer("packed/train-000000.tar")
    elsewhere = tmp_path / "manifest"
    pack(corpus(8), elsewhere)
    pointer("manifest/manifest.json")
    pointer("tars/a.tar")
    pointer("tars2/a.tar.gz")
    pointer(f"model/{CARD_FILE}").write_text("{}")
    for name, opens in {
        "a.csd": lambda path: csd.name_of(path),
        "a.npz": lambda path: npz.read(path),
        "a.pkl": lambda path: mmsa.read(path),
        "t.csv": lambda path: table.read(path),
        "t.jsonl": lambda path: recordings.read(path),
        "a.wav": lambda path: read_audio(path, 16_000),
        "pt/train.pt": lambda path: reference.read(path.parent),
        f"model/{WEIGHTS_FILE}": lambda path: Predictor.from_pretrained(path.parent),
    }.items():
        with pytest.raises(
            ValueError, match="a Git LFS pointer and not the file itself; run `git lfs pull`"
        ) as e:
            opens(pointer(name))
        assert name in str(e.value)
    for folder in ("tars", "tars2"):
        with pytest.raises(ValueError, match=r"a\.tar.*: a Git LFS pointer"):
            index_url(str(tmp_path / folder), cache_dir=tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match=r"train-000000\.tar: a Git LFS pointer"):
        list(FeatureStream(str(dataset), global_batch_size=4, shuffle=False).epoch(0))
    with pytest.raises(ValueError, match=r"manifest\.json: a Git LFS pointer"):
        FeatureStream(str(elsewhere))
