"""Reading PyTorch checkpoint files: a state dict as numpy arrays. The only file that imports torch.

A checkpoint is a pickle, and a pickle can call any function. So torch's restricted reader does the reading
(``weights_only=True``), with one short list of additions: numpy's scalars and arrays, which research
checkpoints hold beside their tensors, are rebuilt by the plain-Python stand-ins below, never by numpy's own
unpickling, and an ``argparse.Namespace`` is passed over. Any other name in the file ends the reading.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from dyn_jax import _files
from dyn_jax._files import listed, short
from dyn_jax.datasets.array_pickle import check_pickle
from weights_convert import names

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Entries of a checkpoint under which training scripts keep the state dict."""

LARGEST = 2**33
"""Bytes of a checkpoint file; more is not read."""
MOST_SHARED = 4
"""Times the size of its file that all tensors together may take: they may share memory, but not without end."""
MINIMUM_TORCH = "2.10"
"""Before 2.6 and before 2.10 a file could get past ``weights_only`` (CVE-2025-32434, CVE-2026-24747)."""

_DEEPEST_WRAPPER = 4
_ONLY_STATE_DICTS = (
    "only state dicts are read; a file that holds a whole pickled nn.Module must be saved again where its "
    "code is at hand: torch.save(model.state_dict(), path)"
)
_TAR = "this is a tar archive; PyTorch's old tar layout is not read, load it with torch and torch.save it again"
_NOT_CHECKPOINTS = (
    (rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", "this is an HTML page, the download failed"),
    (
        rb"(?s).{8}\{\s*\"",
        "this is a safetensors file; read it with safetensors.numpy.load_file and convert what that returns",
    ),
    (rb"\s*\{\s*\"", "this is a JSON file, perhaps the index of a checkpoint in parts; put them together first"),
    (rb"version https://git-lfs", "this is a Git LFS pointer, the file itself was not downloaded"),
    (rb"(?s).{257}ustar", _TAR),
)


class _Refused(ValueError):
    """Refused by a check of this file, in words that are already plain."""


def read_state_dict(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads the state dict of a PyTorch checkpoint (zip or older non-zip layout), running none of its code.

    Wrapper dicts (``state_dict``, ``model_state_dict``, ``model``, ``net``, beside epoch, optimizer, ...)
    are opened, and what wrappers add to names is taken off (`names.plain`): DataParallel, torch.compile, SWA,
    Lightning, thop.

    Args:
      path: the checkpoint.
      entry: which state dict, where the file holds several, for instance ``"state_dict_ema"`` for the averaged one: the
        name of an entry, "/" between nested ones, or a prefix that its keys carry.

    Returns:
      {torch key: array} in the file's order. Shapes and dtypes are the file's, except that floating point
      narrower than 32 bits (float16, bfloat16, float8) becomes float32; integers (``num_batches_tracked``)
      stay as they are. Every array owns its memory.

    Raises:
      FileNotFoundError, PermissionError: there is no such file, or it may not be read.
      TypeError: `path` is no path.
      ValueError: the file is a folder, empty, truncated, damaged, an HTML page, not a checkpoint, names code outside
        the allowed list (nothing of it is run), would take time or memory out of proportion to its size, or holds
        something other than one state dict; two (raw and averaged weights) are named, see `entry`.
      ImportError: torch is missing, or too old to read files from strangers.
    """
    with _files.opened(path, limit=LARGEST) as file:
        try:
            _check_start(file)
            torch = _import_torch()
            content = _load(torch, file)
            tensors, prefix = _unwrap(torch, content, entry)
            tensors = names.plain(tensors, prefix)
            _check_sizes(torch, tensors, os.fstat(file.fileno()).st_size)
            return {key: _to_numpy(torch, key, value) for key, value in tensors.items()}
        except ValueError as error:
            raise _files.BadFile(f"checkpoint {os.fspath(path)!r}: {error}") from error


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "reading a PyTorch checkpoint needs torch, which is not here: pip install 'dyn_jax[convert]'"
        ) from error
    if torch.__version__ < MINIMUM_TORCH:  # torch's own type, which compares as versions do
        raise ImportError(
            f"torch: got {torch.__version__}, expected at least {MINIMUM_TORCH}: a file can make older ones "
            "run code; pip install --upgrade 'dyn_jax[convert]'"
        )
    return torch


def _check_start(file: BinaryIO) -> None:
    """ValueError in plain words for files whose first bytes show that they are no checkpoint."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty (0 bytes)")
    for pattern, words in _NOT_CHECKPOINTS:
        if re.match(pattern, head, re.IGNORECASE):
            raise ValueError(words)
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"not a PyTorch checkpoint (it begins with {head[:16]!r})")


def _load(torch: ModuleType, file: io.BufferedReader) -> Any:
    """torch.load under the short list; whatever it raises becomes a ValueError in plain words."""
    try:
        _check_zip(file) if file.peek(2)[:2] == b"PK" else _check_legacy(file)
        file.seek(0)
        with _allowed_globals(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about the file's age and pickle protocol
            return torch.load(file, map_location="cpu", weights_only=True)
    except (_files.BadFile, _Refused):
        raise
    except Exception as error:  # damaged files surface as a dozen kinds of error
        raise ValueError(_plain_words(error)) from error


def _check_zip(file: BinaryIO) -> None:
    """TorchScript holds code. torch.save never compresses, and stores nothing twice; bombs do. It stores checksums."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise _Refused(f"this is a TorchScript archive; {_ONLY_STATE_DICTS}")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Refused("this is a zip with compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise _Refused("this is a zip whose entries overlap, which torch.save does not write")
        if damaged := archive.testzip():
            raise _Refused(f"damaged: the checksum of {short(damaged)} differs (or it was saved without checksums)")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as pickled:
                    check_pickle(pickled)


def _check_legacy(file: BinaryIO) -> None:
    """The five pickles before the numbers; a file that ends among them is left to torch, which says what it names."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(5):
            if content.tell() < len(content):
                check_pickle(content)


@contextmanager
def _allowed_globals(torch: ModuleType) -> Iterator[None]:
    """Torch's list and ours, without what the process had added, which is put back afterwards.

    Torch keeps that list once per process, so another thread's torch.load sees the change.
    """
    serialization = torch.serialization
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _plain_words(error: Exception) -> str:
    message = str(error)
    if refused := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message):
        name = short(refused[1] if "." in refused[1] else f"builtins.{refused[1]}")
        return f"refused, nothing in it was run: it names {name}, no part of a state dict; {_ONLY_STATE_DICTS}"
    if ".tar format" in message:
        return _TAR
    if unread := re.search(r"Can only \w[^\n]*|Trying to call reduce[^\n]*|Unsupported operand \d+", message):
        return (
            "refused, nothing in it was run: it uses pickle instructions that torch.save does not write for "
            f"a state dict ({short(unread[0])}); {_ONLY_STATE_DICTS}"
        )
    return f"truncated, damaged or not a PyTorch checkpoint ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return short(str(error).strip().partition("\n")[0], 200)


def _unwrap(torch: ModuleType, content: Any, entry: str | None) -> tuple[Mapping[str, Any], str | None]:
    """The state dict inside the wrapper dicts, and what is left of `entry`, a prefix.

    ValueError if there is none, or more than one and no `entry`.
    """
    wanted = [] if entry is None else entry.split("/")
    for _ in range(_DEEPEST_WRAPPER + 1 + len(wanted)):
        if not isinstance(content, Mapping):
            kind = "bare tensor" if _is_array(torch, content) else type(content).__name__.lstrip("_")
            raise ValueError(f"it holds a {kind}, expected a state dict (names -> tensors)")
        if wanted and wanted[0] in content:
            content = content[wanted.pop(0)]
            continue
        inner = _state_dicts(torch, content)
        if len(inner) > 1:
            found = ", ".join(f"{short(key)!r}" for key in inner[: _files.LISTED])
            raise ValueError(f"it holds {len(inner)} state dicts, {found}, expected one: {names.choose(inner[-1])}")
        if not inner:
            return _check_entries(torch, content), "/".join(wanted) or None
        content = content[inner[0]]
    raise ValueError(f"the state dict is wrapped more than {_DEEPEST_WRAPPER} times")


def _state_dicts(torch: ModuleType, content: Mapping) -> list[str]:
    """Entries that hold the weights: known wrappers, and what holds the same layers or goes by an average's name."""
    holders = {key: _layers(torch, value) for key, value in content.items() if isinstance(key, str)}
    holders = {key: layers for key, layers in holders.items() if layers is not None}
    wrappers = [key for key in holders if key in WRAPPERS]

    def is_twin(key: str) -> bool:
        others = wrappers or [other for other in holders if other != key]
        return any(holders[key] & holders[other] for other in others)

    def is_average(key: Any) -> bool:
        return isinstance(key, str) and bool(names.AVERAGED.search(key)) and _holds_tensor(torch, content[key])

    return [
        key for key in content if key in wrappers or (key in holders and is_twin(key)) or (wrappers and is_average(key))
    ]


def _layers(torch: ModuleType, value: Any) -> set[tuple[str, ...]] | None:
    """Last two parts of the names of the tensors in a dict, or in a wrapper inside it; None where there is neither."""
    if not isinstance(value, Mapping):
        return None
    tensors = [key for key, item in value.items() if _is_array(torch, item)]
    inside = [value[key] for key in WRAPPERS if isinstance(value.get(key), Mapping)]
    found = {tuple(key.split(".")[-2:]) for key in [*tensors, *itertools.chain(*inside)] if isinstance(key, str)}
    return found if tensors or inside else None


def _holds_tensor(torch: ModuleType, value: Any) -> bool:
    """Whether a tensor is somewhere in a dict or list; looks at its first ten thousand items."""
    waiting, seen = [value], 0
    while waiting and seen < 10_000:
        item = waiting.pop()
        if isinstance(item, (Mapping, list, tuple)):
            items = list(item.values()) if isinstance(item, Mapping) else item
            if any(_is_array(torch, part) for part in items):
                return True
            seen += 1 + len(items)
            waiting += items
    return False


def _check_entries(torch: ModuleType, content: Mapping) -> Mapping[str, Any]:
    """A state dict has names for keys and only tensors for values."""
    others = [f"{short(key)} ({type(value).__name__})" for key, value in content.items() if not _is_array(torch, value)]
    if len(others) == len(content):
        looked = f"state dicts are looked for under {', '.join(WRAPPERS)}; another entry is chosen with entry="
        raise ValueError(f"no tensors inside; it holds {listed(others) if others else 'nothing'}; {looked}")
    if others:
        raise ValueError(f"{len(others)} entries of the state dict are no tensors: {listed(others)}")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"the state dict has keys that are no strings: {short(strange[0])}")
    return content


def _check_sizes(torch: ModuleType, tensors: Mapping[str, Any], file_size: int) -> None:
    """Refuses tensors larger than their file (stride 0), or together many times larger, before they are copied."""
    total = 0
    for key, value in tensors.items():
        if isinstance(value, torch.Tensor):
            size = value.numel() * value.element_size()
            total += size
            if size > file_size:
                raise ValueError(
                    f"{short(key)}: it claims {value.numel()} elements, too many for a file of {file_size} bytes"
                )
    if total > MOST_SHARED * file_size:
        raise ValueError(f"its tensors claim {total:,} bytes together, too many for a file of {file_size:,}")


def _is_array(torch: ModuleType, value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.generic)) or (isinstance(value, _Array) and value.value is not None)


def _to_numpy(torch: ModuleType, key: str, value: Any) -> np.ndarray:
    """A copy that owns its memory."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            if value.is_floating_point() and value.element_size() < 4:
                value = value.float()
            value = value.numpy()
        array = np.array(value.value if isinstance(value, _Array) else value, order="C")
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{short(key)}: not readable as a dense array ({_first_line(error)})") from error
    return array.astype(np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("="), copy=False)


class _Dtype:
    """Stands in for numpy.dtype: numbers and bool only, with a byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        del align, copy
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise _Refused(f"refused: it holds a numpy object of dtype {code!r}, only numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for a numpy array that is being rebuilt: raw bytes, shape and dtype, nothing else."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any):
        """Takes what numpy's `_reconstruct` takes: class, shape and type code, none of which matters."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        self.value = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _scalar(kind: _Dtype, raw: bytes) -> np.generic:
    """Stands in for numpy's `scalar`."""
    return np.frombuffer(raw, kind.dtype, count=1)[0]


class _Namespace:
    """Stands in for argparse.Namespace; what it held is dropped."""

    def __setstate__(self, state: Any) -> None:
        del state


STAND_INS = {
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "argparse.Namespace": _Namespace,
}
"""Names in a pickle -> what is used in their place; with torch's own list, all that a file may name."""
