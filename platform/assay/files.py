"""Files under a results root, local or in an object store: found by name, and published whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from assay.errors import AssayError

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems where an upload appears whole when it completes, so that no rename is needed."""
_CONNECTIONS = 32  # requests under way at once; a local disk gains nothing from threads
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def open_root(root: str) -> tuple[pafs.FileSystem, str, str]:
    """Understand a results root: its filesystem, its path there, and the root again, now absolute.

    AssayError for a URI that cannot be understood, or whose files would not appear whole.
    """
    try:
        if "://" not in root:
            path = os.path.abspath(os.path.expanduser(root))
            return pafs.LocalFileSystem(), path, path
        filesystem, path = pafs.FileSystem.from_uri(_with_whole_puts(root))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AssayError(f"results root {public(root)!r}: {first_line(error)}") from error
    if not path:
        raise AssayError(f"results root {public(root)!r}: it names no bucket")
    if not is_local(filesystem) and filesystem.type_name not in OBJECT_STORES:
        stores = ", ".join(OBJECT_STORES)
        raise AssayError(f"results root {public(root)!r}: neither a folder nor an object store ({stores})")
    return filesystem, path.rstrip("/"), root


def is_local(filesystem: pafs.FileSystem) -> bool:
    """Tell whether files are on a disk of this machine, where publishing means rename and sync."""
    return isinstance(filesystem, pafs.LocalFileSystem)


def public(root: str) -> str:
    """Strip the credentials and options that a URI may carry: this is what messages show."""
    return re.sub(r"//[^/@]*@", "//", root).split("?")[0]


def first_line(error: BaseException) -> str:
    """First line of what an error says."""
    text = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


@contextlib.contextmanager
def reaching(path: str) -> Iterator[None]:
    """Turn an error of the filesystem into one line that names the path; FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AssayError(f"cannot read {path}: {first_line(error)}") from error


def visible(filesystem: pafs.FileSystem, folder: str, kind: pafs.FileType) -> list[str]:
    """List the names of files or folders in a folder, sorted, without hidden ones; none if it does not exist."""
    with reaching(folder):
        found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == kind and not info.base_name.startswith((".", "_")))


def each(filesystem: pafs.FileSystem, function: Callable[[str], Any], names: Sequence[str]) -> Iterable[Any]:
    """Apply a function to many names, with many requests at once where each has to wait for a network."""
    if is_local(filesystem) or len(names) < 2:
        return map(function, names)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(function, names))


def publish(filesystem: pafs.FileSystem, path: str, blob: pa.Buffer | bytes) -> None:
    """Make a file appear whole under its name, replacing an older one; locally it is on disk before this returns."""
    if not is_local(filesystem):
        # No `with`: leaving it through an exception would complete the upload with what is there.
        stream = filesystem.open_output_stream(path)
        stream.write(blob)
        stream.close()
        return
    folder, name = os.path.split(path)
    _make_folder(folder)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def sweep_temporaries(root: str, older_than_s: float) -> int:
    """Delete what killed writers left three folders below a local root; returns how many."""
    swept = 0
    for path in Path(root).glob("*/*/*/.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
                swept += 1
    return swept


def _with_whole_puts(uri: str) -> str:
    """Ask pyarrow's S3 for one PUT per small object instead of a multipart upload of three requests."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _make_folder(folder: str) -> None:
    """Create a folder and its parents, each synced into the one above it."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        _make_folder(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
