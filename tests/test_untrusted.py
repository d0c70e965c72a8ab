"""Files of strangers: none of their code runs, nothing that they only claim to hold is made, and no number that is none gets in.

The short form of `fuzz_readers.py`, and by name what a mutation hardly hits on.
"""

import hashlib
import io
import json
import math
import os
import pickle
import resource
import signal
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz_readers as fuzz
import numpy as np
import pytest
import torch
from fuzz_readers import READERS, called, npz, text_op, unzipped, whole_op, zipped
from safetensors.torch import load, save

from hmdc import SyntheticSet, cli, saves
from hmdc.data import load_dataset
from hmdc.exchange import read_set
from hmdc.image_files import read_image

CPU = torch.device("cpu")
MOST = 400 << 20  # bytes of memory for the refusal of any of these files


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refused(said: str, read: Callable, path: Path, *args, **kwargs) -> None:
    """One line, which names the file, and little memory."""
    before = peak()
    with pytest.raises((ValueError, OSError)) as caught:
        read(path, *args, **kwargs)
    told = str(caught.value)
    assert said in told and path.name in told and "\n" not in told and len(told) < 600, told
    assert peak() - before < MOST


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused(name, tmp_path):
    tally = fuzz.fuzz(name, 300, keep=tmp_path)
    assert not tally.findings, fuzz.table([tally])
    assert tally.read > 10 and tally.refused > 50 and tally.read + tally.refused == 300


def test_the_command_says_what_it_did(tmp_path, capsys):
    assert fuzz.main(["--inputs", "5", "--seed", "1", "--reader", "image", "--keep", str(tmp_path)]) == 0
    assert "image            5" in capsys.readouterr().out


def test_the_fuzzer_finds_what_it_looks_for(monkeypatch):
    """A reader with every fault; the same mutants follow from the same seed."""
    def bad(path: Path) -> str:
        content = path.read_bytes()
        what = int.from_bytes(hashlib.sha256(content).digest()[:2], "little") % 6
        if what == 0:
            raise KeyError("a")
        if what == 1:
            raise ValueError("it is damaged")
        if what == 2:
            Path(fuzz.CANARY).touch()
        if what == 3:
            try:
                raise MemoryError
            except MemoryError:
                raise ValueError(f"{path} is damaged")
        if what == 4:
            raise ValueError(f"{path} is damaged: \x1b[31m")
        if len(content) > 2000:
            os.kill(os.getpid(), signal.SIGKILL)
        return "read"

    cases = [fuzz.Case({"zeros": bytes(1000)}, "zeros")]
    monkeypatch.setitem(READERS, "bad", fuzz.Reader(lambda: cases, bad, lambda value: None))
    tally, again = (fuzz.fuzz("bad", 200, seed=3) for _ in range(2))
    faults = {finding.fault for finding in tally.findings}
    assert faults == {"KeyError", "ValueError that does not name the file", "code ran", "it was refused only when memory ran out",
                      "ValueError that cannot be shown", "the child ended with -9"}
    assert tally.findings == again.findings and tally.read + len(tally.findings) == 200


# --- code

def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def torch_file(body: bytes) -> bytes:
    """A file of torch, whose program is another."""
    return zipped([(name, program(body) if name.endswith(".pkl") else part) for name, part in unzipped(fuzz.bytes_of([0]))])


def old_torch_file(body: bytes) -> bytes:
    """As torch wrote it before 1.6: the program is the fourth of five."""
    whole = fuzz.bytes_of([0], _use_new_zipfile_serialization=False)
    start = [at + 1 for at in range(len(whole)) if whole[at : at + 3] == b".\x80\x02"]
    return whole[: start[2]] + program(body) + whole[start[3] :]


@pytest.mark.parametrize("body", fuzz.payloads(), ids=lambda body: ascii(body[:24]))
@pytest.mark.parametrize("name, made", [("data.pt", torch_file), ("data.pt", old_torch_file), ("data.pkl", program)])
def test_no_program_runs(body, name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(made(body))
    refused("", read_set, tmp_path / name, "cifar10", factor=1)
    (tmp_path / "checkpoint.pt").write_bytes(saves.MAGIC + hashlib.sha256(made(body)).digest() + made(body))
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged, or was changed"):
        refused("are damaged", saves.read_state, tmp_path / "checkpoint.pt", CPU)
    assert not (tmp_path / fuzz.CANARY).exists()


def test_the_payloads_do_run_where_nothing_stops_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for body in fuzz.payloads()[:10]:
        try:
            pickle.loads(program(body))
        except Exception:  # one waits for more of the stack
            pass
        assert wait_for(tmp_path / fuzz.CANARY), body
        (tmp_path / fuzz.CANARY).unlink()


def wait_for(path: Path) -> bool:
    """Whether a file is there, or soon is: one of the programs starts another process."""
    for _ in range(100):
        if path.exists():
            return True
        time.sleep(0.02)
    return False


def test_objects_of_numpy_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kip_nozca.npz").write_bytes(fuzz.object_npz())
    refused("damaged, or holds objects", read_set, tmp_path / "kip_nozca.npz", "cifar10")
    assert not (tmp_path / fuzz.CANARY).exists()


def test_a_picture_that_is_a_program_is_not_drawn(tmp_path):
    """PIL goes by the content, and would hand this to Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    refused("it is none of", read_image, tmp_path / "a.png")


# --- bombs, and absurd shapes

def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: int) -> bytes:
    """A black PNG, of which some rows are there."""
    packed = zlib.compress(bytes((1 + (width + 7) // 8) * rows), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", packed)
            + chunk(b"IEND", b""))


IMAGE_BOMBS = {
    "a.png": (png(50_000, 50_000, 100), "exceeds limit"),
    "whole.png": (png(12_000, 12_000, 12_000), "claims 12000 × 12000 pixels"),
    "a.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;", "exceeds limit"),
    "a.bmp": (b"BM" + struct.pack("<IHHIIiiHH24x", 60, 0, 0, 54, 40, 60_000, 60_000, 1, 24), "exceeds limit"),
    "a.ppm": (b"P6 100000 100000 255\n", "exceeds limit"),
    "chunk.png": (png(100, 100, 0)[:33] + b"\xff\xff\xff\xf0IDAT", "cannot read"),
    "small.png": (png(8, 8_000_000, 10), "claim to hold far more than they can"),
    "b.ppm": (b"P5 9000 9000 255\n", "claims 9000 × 9000 pixels"),
}


@pytest.mark.parametrize("name", IMAGE_BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_unfolds_to_gigabytes_is_refused(name, tmp_path):
    content, said = IMAGE_BOMBS[name]
    assert len(content) < 30_000
    (tmp_path / name).write_bytes(content)
    refused(said, read_image, tmp_path / name)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / part / label).mkdir(parents=True)
            (tmp_path / "set" / part / label / name).write_bytes(content)
    with pytest.raises(OSError, match="4 of 4 images cannot be read"):
        load_dataset(tmp_path / "set")


def deflated(parts: list[tuple[str, bytes]]) -> bytes:
    return zipped(parts, zipfile.ZIP_DEFLATED)


def tensor_program(numbers: int, *shape: int | str) -> bytes:
    """A list of one tensor of a shape, over so many stored numbers."""
    stored = b"(" + text_op("storage") + b"ctorch\nFloatStorage\n" + text_op("0") + text_op("cpu") + whole_op(numbers) + b"tQ"
    sizes, strides = (b"(" + b"".join(text_op(n) if isinstance(n, str) else whole_op(n) for n in values) + b"t"
                      for values in (shape, [0] * len(shape)))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"]" + called("torch._utils _rebuild_tensor_v2", stored, whole_op(0), sizes, strides, b"\x89", hooks) + b"a"


def torch_parts(body: bytes, stored: bytes) -> list[tuple[str, bytes]]:
    return [("archive/data.pkl", program(body)), ("archive/version", b"3\n"), ("archive/data/0", stored)]


def zeros() -> bytes:
    return bytes(80 << 20)


def claimed_npz() -> bytes:
    """Two arrays of which the headers alone are there."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    return zipped([("images.npy", head.getvalue()), ("labels.npy", head.getvalue())])


def claimed_tar() -> bytes:
    """A member of eight gigabytes, of which nothing is there."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("images.pt"))
    return held.getvalue().replace(b"00000000000\0", b"77777777777\0", 1)


LAUGHS = b"]" + b"q\x01h\x01\x86" * 60  # a pair of the pair before it, sixty times
ABSURD = {  # file -> what makes it, what is said of it
    "bomb.pt": (lambda: deflated(torch_parts(tensor_program(20 << 20, 20 << 20), zeros())), "nothing of it is unpacked"),
    "program.pt": (lambda: deflated([("archive/data.pkl", zeros()), ("archive/version", b"3\n")]), "nothing of it is unpacked"),
    "expanded.pt": (lambda: zipped(torch_parts(tensor_program(1, 10**5, 3, 1000, 1000), bytes(4))), "far more than they can"),
    "negative.pt": (lambda: zipped(torch_parts(tensor_program(1, -(10**5), 3), bytes(4))), "less than none"),
    "stored.pt": (lambda: zipped(torch_parts(tensor_program(2**40, 1), bytes(4))), "far more than they can"),
    "text.pt": (lambda: zipped(torch_parts(tensor_program(1, "x" * 1000, 2**40), bytes(4))), "could run code"),
    "beyond.pt": (lambda: zipped(torch_parts(tensor_program(10**6, 10**6), bytes(4))), "is damaged"),
    "laughs.pt": (lambda: torch_file(b"}" + text_op("synthetic_images") + b"Ns" + text_op("init") + LAUGHS + b"s"), "is damaged"),
    "key.pt": (lambda: torch_file(b"}" + LAUGHS + b"Ns"), "could run code"),
    "bomb_nozca.npz": (lambda: deflated([("images.npy", zeros()), ("labels.npy", b"")]), "nothing of it is unpacked"),
    "shape_nozca.npz": (claimed_npz, "far more than they can"),
    "a.tar": (claimed_tar, "none of the formats"),
    "a.zip": (lambda: deflated([("zeros", zeros())]), "is an archive of zeros"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_what_a_file_only_claims_is_not_made(name, tmp_path):
    made, said = ABSURD[name]
    (tmp_path / name).write_bytes(made())
    assert (tmp_path / name).stat().st_size < 1 << 20
    refused(said, read_set, tmp_path / name, "cifar10", factor=1)


# --- condensed sets, whose hash anybody can write

IMAGES, ONES = torch.full((2, 2, 3, 4, 4), 0.5), torch.ones(3)


def stored(name: str, path: Path, *, header: dict = {}, decoding: dict = {}, **tensors: torch.Tensor) -> Path:
    """A set of two classes with something else in it, under the right hash."""
    rule = {"factor": 1, "order": "columns", "align_corners": True} | decoding
    told = {"format": 3, "classes": ["cat", "dog"], "decoding": rule, "meta": {}} | header
    held = {"images": IMAGES, "mean": ONES / 2, "std": ONES / 4} | tensors
    (path / name).write_bytes(fuzz.rehashed(save(held, metadata={"hmdc": json.dumps(told)})))
    return path / name


def test_a_set_whose_header_is_written_anew_is_read(tmp_path):
    assert SyntheticSet.load(stored("a.safetensors", tmp_path)).n_images == 4


FLAT, NAN, INF = IMAGES.flatten(0, 1), math.nan, math.inf
WRONG_SETS = {
    "NaN in the images": (dict(images=IMAGES * NAN), "not finite"),
    "infinity in the images": (dict(images=IMAGES * INF), "not finite"),
    "NaN in the mean": (dict(mean=ONES * NAN), "three finite numbers"),
    "infinity in the deviation": (dict(std=ONES * INF), "three finite numbers"),
    "a deviation of nothing": (dict(std=ONES * 0), "above zero"),
    "NaN in the targets": (dict(images=FLAT, targets=torch.full((4, 2), NAN)), "must be probabilities"),
    "infinity in the targets": (dict(images=FLAT, targets=torch.tensor([[INF, -INF]] * 4)), "must be probabilities"),
    "a label of no class": (dict(images=FLAT, targets=torch.tensor([0, 1, 2**62, 0])), "from 0 to 1"),
    "images of nothing": (dict(images=torch.zeros(2, 2**40, 3, 0, 0)), "hold nothing"),
    "a number for images": (dict(images=torch.tensor(0.5)), "is not a condensed set"),
    "too many tiles": (dict(images=torch.zeros(2, 1, 3, 64, 64), decoding={"factor": 64}), "more than 16 tiles"),
    "a factor that is text": (dict(decoding={"factor": "2"}), "a whole number of tiles"),
    "more classes than images": (dict(header={"classes": [str(i) for i in range(10**5)]}), "do not fit 100000 classes"),
    "one name, many times": (dict(header={"classes": ["a"] * 10**5}), "more than once"),
    "a name that would colour the terminal": (dict(header={"classes": ["\x1b[31m"] * 2}), "more than once"),
    "a later format": (dict(header={"format": 10**300}), "written by a later hmdc"),
}


@pytest.mark.parametrize("case", WRONG_SETS)
def test_a_set_of_numbers_that_are_none_is_refused(case, tmp_path):
    changed, said = WRONG_SETS[case]
    path = stored("a.safetensors", tmp_path, **changed)
    refused(said, SyntheticSet.load, path)
    refused(said, read_set, path)


def with_header(text: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


HEADERS = {
    "longer than the file": with_header(b"{}", 2**63),
    "longer than memory": with_header(b"{}", 2**39),
    "terabytes of images": with_header(b'{"images":{"dtype":"F32","shape":[1048576,1048576],"data_offsets":[0,4398046511104]}}'),
    "a shape that overflows": with_header(b'{"images":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'),
    "deeper than the stack": with_header(b'{"__metadata__":' + b'{"a":' * 100_000),
    "deeper than the stack, within": with_header(json.dumps({"__metadata__": {"hmdc": "[" * 100_000}}).encode()),
    "a number of too many digits": with_header(json.dumps({"__metadata__": {"hmdc": "9" * 10_000}}).encode()),
    "no text": with_header(b'{"\xff\xfe": 1}'),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of_absurd_claims_is_refused_by_every_reader_of_headers(case, tmp_path):
    path = tmp_path / f"{fuzz.VIT}.safetensors"
    path.write_bytes(HEADERS[case])
    refused("is not a condensed set", SyntheticSet.load, path)
    refused("", cli.header, path)
    refused("", fuzz.read_weights, path)


# --- others' sets, and weights

PIXELS, LABELS = torch.full((4, 3, 8, 8), 0.5), torch.tensor([0, 0, 1, 1])
ROWS = np.full((4, 8, 8, 3), 0.5)
WRONG_FILES = {  # file -> what it holds, what is said of it
    "nan.pt": ([PIXELS * NAN, LABELS], "not finite"),
    "inf.pt": ([PIXELS * INF, LABELS], "not finite"),
    "soft.pt": ([PIXELS, torch.full((4, 2), NAN)], "not finite"),
    "label.pt": ([PIXELS, LABELS * NAN], "whole numbers"),
    "many.pt": ([PIXELS, LABELS << 60], "name the classes"),
    "none.pt": ([PIXELS[:0], LABELS[:0]], "[N,3,H,W]"),
    "tiles.pth": ({"synthetic_images": PIXELS.view(2, 2, 3, 8, 8), "init": "aug", "factor": 10**6}, "tiles per side"),
    "images_nozca.npz": (dict(images=ROWS * NAN, labels=np.eye(4)), "not finite"),
    "labels_nozca.npz": (dict(images=ROWS, labels=np.eye(4) * NAN), "not finite"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_numbers_that_are_none_in_anyones_set(name, tmp_path):
    held, said = WRONG_FILES[name]
    (tmp_path / name).write_bytes(npz(**held) if name.endswith("npz") else fuzz.bytes_of(held))
    refused(said, read_set, tmp_path / name, "imagenet", factor=1 if name.endswith(".pt") else None)


ASKED = {  # what weights ask of timm -> what is said
    '{"checkpoint_path": "other.pt"}': "it asks for",
    '{"pretrained": 1}': "it asks for",
    '{"depth": 1000000000}': "it asks for",
    '{"img_size": 1000000000}': "it asks for",
    '{"img_size": 4096, "patch_size": 1}': "do not fit",
    '[1]': "it asks for",
}


@pytest.mark.parametrize("told", ASKED)
def test_weights_ask_timm_for_sizes_alone(told, tmp_path):
    case, = READERS["weights"].cases()
    path = tmp_path / case.read
    path.write_bytes(save(load(case.files[case.read]), metadata={"timm_kwargs": told}))
    refused(ASKED[told], fuzz.read_weights, path)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    case, = READERS["weights"].cases()
    path, state = tmp_path / case.read, load(case.files[case.read])
    state["cls_token"] = state["cls_token"] * value
    path.write_bytes(save(state, metadata={"timm_kwargs": json.dumps(fuzz.SIZES)}))
    refused("not every number of cls_token is finite", fuzz.read_weights, path)
