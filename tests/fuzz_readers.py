"""Mutated files for every reader of strangers' files: each is read whole, or refused in one sentence that names it.

    python tests/fuzz_readers.py --inputs 100000 --seed 0 [--reader set save weights exchange image info] [--samples]

A mutant follows from the seed, the reader and its number alone: `--first 4711 --inputs 1` makes number 4711 again. A child
process reads them, with limits on memory and on the time of one file. What counts as a finding: any error but a ValueError or
OSError that names the file, a value that is not valid, a file that takes too long or too much memory, a dead child, and code
that ran. The files of findings are kept.
"""

import argparse
import collections
import copy
import functools
import hashlib
import io
import json
import mmap
import os
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the child is forked: no thread may be left behind

import numpy as np
import torch
from PIL import Image, features
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hmdc import cli, models, saves, synthetic
from hmdc.data import Statistics
from hmdc.exchange import read_set
from hmdc.image_files import read_image
from hmdc.synthetic import SyntheticSet

SECONDS = 10.0  # for one file
MEMORY = 2 << 30  # bytes that the child may ask for beyond what it starts with
LARGEST = 4 << 20  # bytes of a mutant: small files show more in the same time
LONGEST = 2000  # characters of what is said of one file
SAMPLES = Path(__file__).parents[2] / "shared/formats/make_samples.py"  # of a checkout that has it beside it
CANARY = "CANARY"  # a file in the working folder that any code which runs would make

Mutate = Callable[[random.Random, bytes, bytes], bytes]


# --- blunt mutations: of any bytes

NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 65536, 10**5, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
           10**12, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63))


def block(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(start + int(2 ** rng.uniform(0, 10)), len(data))


def flip_bits(rng, data, other):
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(rng, data, other):
    return data[: rng.randrange(len(data) + 1)]


def remove(rng, data, other):
    start, end = block(rng, data)
    return data[:start] + data[end:]


def double(rng, data, other):
    start, end = block(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def insert(rng, data, other):
    at, (start, end) = rng.randrange(len(data) + 1), block(rng, other)
    return data[:at] + rng.choice((other[start:end], rng.randbytes(end - start), bytes(end - start))) + data[at:]


def overwrite(rng, data, other):
    start, end = block(rng, data)
    return data[:start] + rng.choice((rng.randbytes(end - start), bytes(end - start), b"\xff" * (end - start))) + data[end:]


def number(rng, data, other):
    "Another number where, perhaps, one stands: most numbers of a format stand near its beginning or its end."
    width = rng.choice((1, 2, 4, 8))
    near_start, near_end = rng.randrange(min(64, len(data)) + 1), max(len(data) - rng.randrange(1, 64), 0)
    at = rng.choice((rng.randrange(len(data) + 1), near_start, near_end))
    value = (rng.choice(NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, rng.choice(("little", "big")))
    return data[:at] + value + data[at + width :]


def splice(rng, data, other):
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


BLUNT = (flip_bits, cut_off, remove, double, insert, overwrite, number, number, splice)


def bluntly(rng: random.Random, data: bytes, other: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(BLUNT)(rng, data, other)
    return data


# --- mutations of JSON and of safetensors, whose header is JSON

ODD = (*NUMBERS, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, False, None, "", "images", "columns", "nan", "F32", "F64",
       "I64", "F8_E4M3", "BOOL", "é\x1b[31m\n", "x" * 5000, [], {}, [0], [0, 0], [1, 1, 3, 2**40, 0], [-1], [[[]]], {"a": 1})


def places(tree: object) -> list[tuple]:
    "Every (container, key) below a value of JSON."
    found, waiting = [], [tree]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each))
        found += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], (dict, list))]
    return found


def edit_json(rng: random.Random, tree: object) -> str:
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (there := places(tree)):
            break
        holder, key = rng.choice(there)
        action = rng.randrange(8)
        if action < 4:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif action == 4:
            del holder[key]
        elif action == 5 and isinstance(holder, dict):
            holder[rng.choice(("images", "x", "", "targets", str(key) * 2))] = holder.pop(key)
        elif action == 6:
            holder[key] = copy.deepcopy(rng.choice(there)[0])
        elif len(json.dumps(holder[key])) < 1000:
            holder[key] = [copy.deepcopy(holder[key]) for _ in range(rng.choice((2, 3, 1000)))]
    text = json.dumps(tree)
    if rng.random() < 0.03:  # deep, or of more digits than Python reads
        old, new = rng.choice(("null", "1", "2", '"')), rng.choice(("[" * 100_000, "9" * 5000, '{"a":' * 50_000, "nul"))
        return text.replace(old, new, 1)
    return text


def rehashed(content: bytes) -> bytes:
    "A condensed set whose hash is that of what it holds, where it can be told."
    try:
        length = int.from_bytes(content[:8], "little")
        outer = json.loads(content[8 : 8 + length])
        inner = json.loads(outer["__metadata__"]["hmdc"])
        inner["hash"] = synthetic.content_hash(load_tensors(content), inner)
        outer["__metadata__"]["hmdc"] = json.dumps(inner)
        header = json.dumps(outer).encode()
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    except Exception:
        return content


def mutate_safetensors(rng, data, other):
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.7:
        told = header.get("__metadata__", {})
        inner = [key for key, value in told.items() if value.startswith("{")]
        if inner and rng.random() < 0.6:
            name = rng.choice(inner)
            header["__metadata__"] = told | {name: edit_json(rng, json.loads(told[name]))}
            text = json.dumps(header)
        else:
            text = edit_json(rng, header)
        if rng.random() < 0.1:
            text = bluntly(rng, text.encode(), other).decode("utf-8", "replace")
    else:
        text, rest = json.dumps(header), bluntly(rng, rest, other)[: len(rest)].ljust(len(rest), b"\x7f")
    changed = text.encode()
    length = rng.choice(NUMBERS) & 2**64 - 1 if rng.random() < 0.03 else len(changed)
    made = struct.pack("<Q", length) + changed + rest
    return rehashed(made) if rng.random() < 0.8 else made


# --- mutations of pickles and of zip archives, in which torch and numpy keep things

CALLS = {  # module -> functions and types of it
    "os": "system", "posix": "system", "subprocess": "Popen", "builtins": "eval exec getattr bytearray set", "pickle": "loads",
    "codecs": "encode", "_codecs": "encode", "collections": "OrderedDict Counter", "torch.hub": "load", "torch.nn.parameter": "Parameter",
    "torch": "FloatStorage LongStorage ByteStorage QInt8Storage FloatTensor Size device float32 load _utils._rebuild_tensor_v2",
    "torch.storage": "UntypedStorage _load_from_bytes", "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter _rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage "
                    "_rebuild_nested_tensor _rebuild_wrapper_subclass",
    "numpy": "dtype", "numpy.core.multiarray": "scalar", "numpy._core.multiarray": "scalar _reconstruct", "numpy.dtypes": "Float64DType",
}
NAMES = [f"{module} {name}" for module, names in CALLS.items() for name in names.split()]


def text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def whole_op(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def called(name: str, *arguments: bytes) -> bytes:
    return b"c%s\n" % name.replace(" ", "\n").encode() + b"(" + b"".join(arguments) + b"tR"


def payloads() -> list[bytes]:
    "Programs of pickle that leave one value: they make the canary, or ask for much memory or time."
    python, shell = text_op(f"open({CANARY!r}, 'w').close()"), text_op(f"touch {CANARY}")
    inner = called("os system", shell) + b"."
    return [
        called("os system", shell), called("posix system", shell), called("builtins eval", python), called("builtins exec", python),
        called("__builtin__ eval", python), called("subprocess Popen", b"(" + text_op("touch") + text_op(CANARY) + b"l"),
        called("torch.storage _load_from_bytes", called("_codecs encode", text_op(inner.decode("latin1")), text_op("latin1"))),
        text_op("os") + text_op("system") + b"\x93" + shell + b"\x85R",  # a name from the stack
        b"(" + shell + b"ios\nsystem\n", b"(cos\nsystem\n" + shell + b"o", b"cbuiltins\nbytearray\n)\x81",  # calls by other operations
        called("builtins bytearray", whole_op(10**11)), called("torch FloatTensor", whole_op(10**11)),
        called("torch Tensor", whole_op(10**5), whole_op(10**6)), called("_codecs encode", text_op("äöü€" * 5000), text_op("punycode")),
        *(start + b"q\xc8h\xc8\x86" * 60 for start in (b"]", b")")),  # 2^60 things when it is unfolded
        b"(" * 5000, b"]" * 5000, b"r\xff\xff\xff\xff", whole_op(2**70), b"\x8a\xff" + b"\x7f" * 255,
    ]


@functools.lru_cache(maxsize=4096)
def operations(program: bytes) -> list[bytes]:
    "The bytes of each operation of a pickle, as far as it can be followed."
    starts = []
    try:
        starts += [at for _, _, at in pickletools.genops(program)]
    except Exception:
        pass
    return [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)])]


def mutate_pickle(rng, data, other):
    parts = list(operations(data))
    if len(parts) < 2:
        return bluntly(rng, data, other)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, action = rng.randrange(len(parts)), rng.randrange(9)
        wholes = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J", b"\x8a")]
        names = [i for i, part in enumerate(parts) if part[:1] == b"c"]
        if action == 0:
            parts[at] = b""
        elif action == 1:
            parts[at] *= min(rng.choice((2, 3, 1000)), 1 + LARGEST // max(1, len(parts[at])))  # what is longer is cut anyway
        elif action == 2:
            parts.insert(at, parts.pop(rng.randrange(len(parts))))
        elif action in (3, 4) and wholes:
            parts[rng.choice(wholes)] = whole_op(rng.choice(NUMBERS))
        elif action == 5 and names:
            parts[rng.choice(names)] = b"c%s\n" % rng.choice(NAMES).replace(" ", "\n").encode()
        elif action == 6:
            parts.insert(at, rng.choice(payloads()))
        elif action == 7:
            parts[at] = rng.choice((text_op("x"), text_op(""), text_op("cuda"), b"h\x00", b"h\x05", b"G" + struct.pack(">d", float("nan")),
                                    b"U\x03abc", rng.randbytes(1), *(b"%c" % operation for operation in b"N\x88)]}(tRb02Q")))
        else:
            parts[at] = bluntly(rng, parts[at], data)
    return b"".join(parts)


def mutate_npy(rng, data, other):
    "The header of a numpy array is a dictionary that is written out."
    end = data.index(b"\n") + 1 if b"\n" in data else 10
    text = data[10:end].decode("latin1")
    for _ in range(rng.choice((1, 1, 2))):
        old = rng.choice(("<f8", "<i8", "False", "(", ",", ")", "'shape'", "fortran_order", "2", "4", "8", "3", "{", "}"))
        new = rng.choice((str(rng.choice(NUMBERS)), "|O", "|V2147483647", "<U9", "|b1", "<c16", ">f8", "|S0", "<M8[s]", "True", "None", "", "(",
                          ")", "((" * 2000, "nan", "9" * 5000, "99999999, 99999999,", "(10**9)", f"__import__('os').system('touch {CANARY}')"))
        text = text.replace(old, new, 1)
    head = text.encode("latin1", "replace")
    return data[:8] + struct.pack("<H", len(head) & 0xFFFF) + head + data[end:]


def zipped(parts: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that stands twice
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, how)  # without a date, so always the same bytes
    return held.getvalue()


def unzipped(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


def mutate_zip(rng, data, other):
    parts = unzipped(data)
    at, action = rng.randrange(len(parts)), rng.randrange(12)
    told = [i for i, (name, _) in enumerate(parts) if name.endswith((".pkl", ".npy"))]
    if action < 9:
        at = rng.choice(told) if told and rng.random() < 0.8 else at
        name, content = parts[at]
        change = {".pkl": mutate_pickle, ".npy": mutate_npy}.get(name[-4:], bluntly) if rng.random() < 0.8 else bluntly
        parts[at] = name, change(rng, content, other)
    elif action == 9:
        parts.pop(at)
    elif action == 10:
        name = rng.choice((parts[at][0], "data.pkl", "x", "../x", "archive/constants.pkl"))
        parts.insert(rng.randrange(len(parts)), (name, rng.choice(parts)[1]))
    else:
        parts[at] = parts[at][0], bytes(rng.choice((0, 1, 10**6, 3 * 10**7)))
    made = zipped(parts, zipfile.ZIP_DEFLATED if action == 11 or rng.random() < 0.1 else zipfile.ZIP_STORED)
    return number(rng, made, other) if rng.random() < 0.1 else made


def mutate_legacy(rng, data, other):
    "Files of old torch: five pickles in a row, and numbers after them."
    return mutate_pickle(rng, data[:-64], other) + data[-64:] if rng.random() < 0.5 else bluntly(rng, data, other)


def mutate_save(rng, data, other):
    start = len(saves.MAGIC) + 32
    content = mutate(rng, data[start:], other)
    return saves.MAGIC + hashlib.sha256(content).digest() + content


def mutate_png(rng, data, other):
    "Each chunk of a PNG has a checksum; with the right one, what follows it is read."
    changed = bluntly(rng, data, other)
    parts, at = [changed[:8]], 8
    while at + 12 <= len(changed) and rng.random() < 0.98:
        length = int.from_bytes(changed[at : at + 4], "big")
        body = changed[at + 4 : at + 8 + length]
        parts += [changed[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join([*parts, changed[at:]])


KINDS: tuple[tuple[Callable[[bytes], bool], Mutate], ...] = (
    (lambda data: data.startswith(saves.MAGIC), mutate_save),
    (lambda data: data.startswith(b"PK"), mutate_zip),
    (lambda data: data[8:10] == b'{"', mutate_safetensors),
    (lambda data: data.startswith(b"\x80"), mutate_legacy),
    (lambda data: data.startswith(b"\x89PNG"), mutate_png),
)


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    "Mostly a mutation that knows the format, so that what lies behind its outer checks is reached as well."
    for fits, knowing in KINDS:
        if fits(data) and rng.random() < 0.75:
            try:
                return knowing(rng, data, other)
            except (ValueError, LookupError, zipfile.BadZipFile):
                break  # a sample that is damaged already
    return bluntly(rng, data, other)


# --- the readers, and small good files for each

class Case(NamedTuple):
    "Files, of which one is mutated; which one is read, or the folder of all; and what is said beside it."

    files: dict[str, bytes]
    read: str
    asked: dict = {}


class Reader(NamedTuple):
    cases: Callable[[], list[Case]]
    read: Callable[..., object]  # of a path and what is said beside it
    check: Callable[[object], None]  # that what was read is valid


def grey(images: int, pixels: int) -> torch.Tensor:
    "Images [N,3,pixels,pixels] in [0,1], all of them different."
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, 3, pixels, pixels, generator=generator) * 0.9


def bytes_of(value: object, **options) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **options)
    return held.getvalue()


def set_bytes(syn: SyntheticSet) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        syn.save(f"{folder}/set")
        return Path(f"{folder}/set").read_bytes()


def sets() -> list[bytes]:
    statistics, images = Statistics([0.5] * 3, [0.2] * 3), grey(4, 4)
    meta = {"recipe": {"name": "hmdc"}, "seed": 0, "dataset": "digits"}
    return [set_bytes(SyntheticSet(images.view(2, 2, 3, 4, 4), ("cat", "dog"), 2, statistics, meta=meta)),
            set_bytes(SyntheticSet(images[:3], ("cat", "dog"), 1, statistics, targets=torch.tensor([0, 1, 1]), order="rows")),
            set_bytes(SyntheticSet(images.half(), ("cat", "dog"), 2, statistics, False, targets=torch.full((4, 2), 0.5)))]


def set_cases() -> list[Case]:
    return [Case({"set.safetensors": content}, "set.safetensors") for content in sets()]


def check_set(syn: SyntheticSet) -> None:
    assert isinstance(syn, SyntheticSet) and syn.images.numel() and syn.images.isfinite().all()
    assert syn.images.min() >= 0 and syn.images.max() <= 1
    assert syn.statistics.mean.isfinite().all() and syn.statistics.std.isfinite().all() and isinstance(syn.meta, dict)
    assert syn.targets is None or not syn.targets.is_floating_point() or syn.targets.isfinite().all()
    assert syn.n_images * 3 * syn.images.shape[-1] ** 2 <= 1000 * syn.images.numel()
    assert isinstance(syn.align_corners, bool) and len(syn.classes) < 10**6 and repr(syn)
    if syn.images.numel() < 10**5:
        images, targets = syn.unpack()
        assert len(images) == len(targets) == syn.n_images


def save_cases() -> list[Case]:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.5)
    network(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    living = {"net": network.state_dict(), "optimizer": optimizer.state_dict(), "stream": torch.arange(64, dtype=torch.uint8)}
    state = {"done": 3, "living": living, "rows": [(0, 1, 0.5, "loss")], "images": grey(2, 4).bfloat16()}
    with tempfile.TemporaryDirectory() as folder:
        saves.write_state(Path(folder) / "checkpoint.pt", state)
        content = (Path(folder) / "checkpoint.pt").read_bytes()
    start = len(saves.MAGIC) + 32
    other = bytes_of({"versionz": {}, "state": {}})
    return [Case({"checkpoint.pt": content}, "checkpoint.pt"),
            Case({"checkpoint.pt": content, "checkpoint.pt.previous": content}, "checkpoint.pt"),
            Case({"checkpoint.pt": saves.MAGIC + hashlib.sha256(other).digest() + other}, "checkpoint.pt"),
            Case({"checkpoint.pt": content[start:]}, "checkpoint.pt")]


def check_state(state: object) -> None:
    assert state is None or isinstance(state, dict)


VIT, SIZES, SMALL = "test_vit", {"img_size": 32, "patch_size": 8}, {"depth": 1, "embed_dim": 16, "num_heads": 2}


def weight_cases() -> list[Case]:
    state = {key: value.half() for key, value in models.create_model(VIT, 2, 32, **SIZES, **SMALL).model.state_dict().items()}
    content = save_tensors(state, metadata={"timm_kwargs": json.dumps(SIZES), "architecture": VIT})
    return [Case({f"{VIT}.safetensors": content}, f"{VIT}.safetensors")]


def read_weights(path: Path) -> object:
    models.read_start.cache_clear()  # of what was read of another file of this name
    return models.create_model(VIT, 2, 32, str(path), **SMALL)


def check_network(network) -> None:
    assert all(p.isfinite().all() for p in network.parameters()) and 1 <= network.input_size <= 4096


def picture(image: torch.Tensor, kind: str, **options) -> bytes:
    held = io.BytesIO()
    Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(held, kind, **options)
    return held.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    parts = []
    for name, array in arrays.items():
        held = io.BytesIO()
        np.lib.format.write_array(held, array)
        parts.append((f"{name}.npy", held.getvalue()))
    return zipped(parts)


def object_npz() -> bytes:
    "A numpy archive of objects, whose pickle makes the canary."
    body = b"\x80\x02" + payloads()[0] + b"."
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return zipped([("images.npy", held.getvalue() + body), ("labels.npy", held.getvalue() + body)])


def exchange_cases() -> list[Case]:
    images, labels, named = grey(4, 8), torch.tensor([0, 0, 1, 1]), {"dataset": "imagenet"}
    white = Statistics([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).normalise(images)
    dc = {"data": [[white, labels]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    hmdc_file = {"synthetic_images": white.view(2, 2, 3, 8, 8).requires_grad_(), "init": "aug_kmeans", "factor": 2, "n_ipc": 2}
    kip = dict(images=white.permute(0, 2, 3, 1).double().numpy(), labels=np.eye(2)[labels] - 0.5)
    old = {"_use_new_zipfile_serialization": False}
    pictures = {f"{name}/{i}.{kind}": picture(images[i], {"jpg": "JPEG"}.get(kind, kind)) for i, (name, kind) in
                enumerate([("cat", "png"), ("cat", "jpg"), ("dog", "gif"), ("dog", "bmp")])}
    pair = {"images_best.pt": bytes_of(white), "labels_best.pt": bytes_of(torch.eye(2)[labels])}
    parts = {f"{what}_best_{i}.pt": bytes_of(value[2 * i : 2 * i + 2].clone())
             for i in (0, 1) for what, value in (("images", white), ("labels", labels))}
    code = b"\x80\x02" + payloads()[0] + b"."
    evil = [(name, code if name.endswith(".pkl") else part) for name, part in unzipped(bytes_of([0]))]
    single = {
        "synthetic_images.pth": (bytes_of(hmdc_file), {}),
        "data.pt": (bytes_of([images, labels]), {"factor": 2}),
        "idc_odd.pt": (bytes_of([grey(4, 7), labels]), {"factor": 2}),
        "old_data.pt": (bytes_of([images, labels], **old), {"factor": 1}),
        "res_DSA_CIFAR10_ConvNet_2ipc.pt": (bytes_of(dc), {}),
        "res_DM_x.pt": (bytes_of(dc, **old), {"factor": 2}),
        "batch_0.tar": (bytes_of([images, labels, labels, np.float64(1), [np.int64(1)] * 4, images]), {}),
        "kip_nozca.npz": (npz(**kip), {}),
        "objects.npz": (object_npz(), {}),
        "own.safetensors": (sets()[0], {}),
        "plain.pkl": (pickle.dumps({"data": [1, 2]}), {}),
        "code.pkl": (code, {}),
        "code.pt": (zipped(evil), {}),
    }
    return [*(Case({name: content}, name, named | asked) for name, (content, asked) in single.items()), Case(pictures, "", named),
            Case(pair, "images_best.pt", named | {"zca": False}), Case(parts, "images_best_0.pt", named | {"zca": False})]


def sample_cases(folder: Path) -> list[Case]:
    "The samples of every producer, good and bad, where the script that writes them is there."
    if not SAMPLES.is_file():
        return []
    subprocess.run([sys.executable, str(SAMPLES), str(folder)], check=True, capture_output=True)
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".pt", ".pth", ".npz", ".pkl", ".tar") and "labels" not in path.name and path.stat().st_size < 10**6:
            labels = path.with_name(path.name.replace("images", "labels"))
            packed = path.parent.name in ("idc", "dream", "ncfm", "idm", "hmdc")
            found.append(Case({each.name: each.read_bytes() for each in (path, labels) if each.is_file()}, path.name,
                              {"dataset": "cifar10", "factor": 1 + packed, "zca": False}))
    return found


def image_cases() -> list[Case]:
    red, turned = grey(1, 8)[0], Image.Exif()
    turned[0x0112] = 6
    made = {f"a.{kind}": picture(red, kind) for kind in ("gif", "bmp", "ppm", "tiff")}
    made |= {"a.png": picture(red, "png", exif=turned), "b.png": picture(red, "png", compress_level=0)}
    made |= {"a.jpg": picture(red, "jpeg", exif=turned), "b.jpg": picture(red, "jpeg", progressive=True)}
    made |= {f"{how}.tiff": picture(red, "tiff", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate")}
    for kind in ("webp", "avif"):
        if features.check(kind):
            made[f"a.{kind}"] = picture(red, kind)
    held = io.BytesIO()
    frames = [Image.fromarray(np.full((6, 6), level, np.uint8)).convert("P") for level in (0, 90, 200)]
    frames[0].save(held, "gif", save_all=True, append_images=frames[1:], transparency=0)
    made["film.gif"] = held.getvalue()
    held = io.BytesIO()
    Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000).save(held, "png")
    made["deep.png"] = held.getvalue()
    made["plain.ppm"] = b"P3\n2 2\n255\n" + b"10 20 30 " * 4
    made["drawing.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(CANARY) (w) file closefile\nshowpage\n"  # a program
    return [Case({name: content}, name) for name, content in made.items()]


def check_image(image: torch.Tensor) -> None:
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3 and 0 < image[0].numel() <= 1 << 27


def read_info(path: Path) -> None:
    for as_json in (False, True):
        with redirect_stdout(io.StringIO()):
            cli.Info(path, as_json).run()


READERS = {
    "set": Reader(set_cases, SyntheticSet.load, check_set),
    "save": Reader(save_cases, functools.partial(saves.read_state, device=torch.device("cpu")), check_state),
    "weights": Reader(weight_cases, read_weights, check_network),
    "exchange": Reader(exchange_cases, functools.partial(read_set, say=lambda line: None), check_set),
    "image": Reader(image_cases, read_image, check_image),
    "info": Reader(set_cases, read_info, lambda nothing: None),
}


# --- one file

class TooLong(BaseException):
    "Not an Exception: a reader that turns every error into its own would hide it."


def _too_long(*_) -> None:
    raise TooLong


def mutant(name: str, cases: list[Case], seed: int, index: int) -> Case:
    "Number `index` of a reader's mutants."
    rng = random.Random(f"{seed} {name} {index}")
    case, strange = rng.choice(cases), rng.choice(list(rng.choice(cases).files.values()))
    target = rng.choice(list(case.files))
    return case._replace(files=case.files | {target: mutate(rng, case.files[target], strange)[:LARGEST]})


def fault(error: BaseException, files: Iterable[str]) -> str | None:
    "What is wrong with a refusal; None: nothing."
    if isinstance(error, TooLong):
        return f"it took more than {SECONDS:g} s"
    if not isinstance(error, (ValueError, OSError)):
        return type(error).__name__
    said, cause = str(error), error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "it was refused only when memory ran out"
        cause = cause.__cause__ or cause.__context__
    if not any(Path(name).name in said for name in files):
        return f"{type(error).__name__} that does not name the file"
    readable = all(character.isprintable() or character == "\n" for character in said)
    return None if readable and len(said) <= LONGEST else f"{type(error).__name__} that cannot be shown"


def judged(reader: Reader, case: Case, folder: Path) -> tuple[str, str, str]:
    "How a reader takes a case: \"read\", \"refused\" or a fault; what it said; where."
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path, signals = folder / case.read, signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        reader.check(reader.read(path, **case.asked))
        outcome = "read", "", ""
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        frames = traceback.extract_tb(error.__traceback__)
        ours = ([frame for frame in frames if "hmdc" in Path(frame.filename).parts] or frames)[-1]
        names = case.files if case.read else [*case.files, folder.name]
        said = f"{type(error).__name__}: {str(error).replace(f'{folder}/', '')[:300]}"
        outcome = fault(error, names) or "refused", said, f"{Path(ours.filename).name}:{ours.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signals)
    if Path(CANARY).exists() or (folder / CANARY).exists():
        Path(CANARY).unlink(missing_ok=True)
        return "code ran", outcome[1], outcome[2]
    return outcome


# --- many files, in a child

class Finding(NamedTuple):
    fault: str
    said: str
    where: str
    index: int


class Tally(NamedTuple):
    name: str
    inputs: int
    seconds: float
    busy: float  # seconds of the processor
    read: int
    refused: int
    peak: int  # bytes, beyond what the child started with
    findings: list[Finding]


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _busy() -> float:
    "Seconds that children have had of the processor."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _limit_memory() -> None:
    if Path("/proc/self/statm").is_file():
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))


def _note(out: Path, *finding: object) -> None:
    with out.open("a") as file:
        file.write(json.dumps(finding) + "\n")


def _child(name: str, cases: list[Case], seed: int, indices: range, folder: Path, shared: mmap.mmap, out: Path) -> None:
    "Read the mutants, one after another; which one is being read stands in shared memory."
    os.chdir(folder)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the C libraries of image formats complain there
    torch.set_num_threads(1)
    _limit_memory()
    reader, start = READERS[name], _resident()
    for index in indices:
        place = folder / "files"
        case = mutant(name, cases, seed, index)
        struct.pack_into("<q", shared, 0, index)
        outcome, said, where = judged(reader, case, place)
        read, refused = struct.unpack_from("<qq", shared, 8)
        counted = index + 1, read + (outcome == "read"), refused + (outcome == "refused"), _resident() - start
        struct.pack_into("<qqqq", shared, 0, *counted)
        if outcome not in ("read", "refused"):
            _note(out, outcome, said, where, index)
        shutil.rmtree(place)


def _watched(process: int, shared: mmap.mmap) -> int | None:
    "Wait for a child: its exit status, or None where it had to be killed because it did not go on."
    at, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = struct.unpack_from("<q", shared)[0]
        if now != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > 3 * SECONDS:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.02)


def fuzz(name: str, inputs: int, seed: int = 0, first: int = 0, keep: Path | None = None, samples: bool = False) -> Tally:
    "Read many mutants with one reader. keep: a folder for the files of findings. samples: use those beside the repository, too."
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as work:
        folder, out = Path(work), Path(work) / "findings.jsonl"
        cases = READERS[name].cases() + (sample_cases(folder / "samples") if samples and name == "exchange" else [])
        shared, index, started, busy, peak = mmap.mmap(-1, 32), first, time.monotonic(), _busy(), 0
        out.touch()
        while index < first + inputs:
            struct.pack_into("<q", shared, 0, index)
            process = os.fork()
            if not process:
                try:
                    _child(name, cases, seed, range(index, first + inputs), folder, shared, out)
                except BaseException as error:
                    at = struct.unpack_from("<q", shared)[0]
                    _note(out, "the fuzzer itself failed", f"{type(error).__name__}: {error}", "", at)
                finally:
                    os._exit(0)
            status = _watched(process, shared)
            index, *_, grown = struct.unpack_from("<qqqq", shared)
            peak = max(peak, grown)
            if status != 0:
                _note(out, "it did not end" if status is None else f"the child ended with {status}", "", "", index)
            if index < first + inputs:
                shutil.rmtree(folder / "files", ignore_errors=True)
                index += 1
        seconds, (_, read, refused, _) = time.monotonic() - started, struct.unpack_from("<qqqq", shared)
        findings = [Finding(*json.loads(line)) for line in out.read_text().splitlines()]
        for finding in firsts(findings) if keep else ():
            for file, content in mutant(name, cases, seed, finding.index).files.items():
                (kept := keep / f"{name}-{finding.index}" / file).parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(content)
        return Tally(name, inputs, seconds, _busy() - busy, read, refused, peak, findings)


def firsts(findings: list[Finding]) -> list[Finding]:
    "One finding for each fault and place."
    return list({(finding.fault, finding.where): finding for finding in reversed(findings)}.values())


def table(tallies: list[Tally]) -> str:
    lines = ["reader      inputs  seconds  CPU s  ms each     read  refused   memory  findings"]
    for t in tallies:
        lines.append(f"{t.name:9} {t.inputs:8} {t.seconds:8.0f} {t.busy:6.0f} {1000 * t.busy / t.inputs:8.1f} {t.read:8} {t.refused:8} "
                     f"{t.peak / 2**20:5.0f} MB {len(t.findings):9}")
        counts = collections.Counter((finding.fault, finding.where) for finding in t.findings)
        lines += [f"  {counts[f.fault, f.where]} × {f.fault} at {f.where}, the first is number {f.index}: {f.said}"
                  for f in firsts(t.findings)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--inputs", type=int, default=1000, help="mutants for each reader")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first mutant")
    options.add_argument("--reader", nargs="*", choices=READERS, default=list(READERS))
    options.add_argument("--samples", action="store_true", help="mutate the samples beside the repository, too, where they are")
    options.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for the files of findings")
    asked = options.parse_args(arguments)
    tallies = []
    for name in asked.reader:
        tallies.append(fuzz(name, asked.inputs, asked.seed, asked.first, asked.keep, asked.samples))
        print(table(tallies[-1:]), flush=True)
    print(f"\n{table(tallies)}")
    return int(any(tally.findings for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
