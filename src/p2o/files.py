"""Files that are written whole or not at all, and what to say where they cannot be written."""

import contextlib
import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

# What libraries raise in place of an OSError: safetensors, and torch's writer of archives.
_FAILED_WRITES = {
    "os error 28": errno.ENOSPC,
    "os error 122": errno.EDQUOT,
    "os error 27": errno.EFBIG,
    "os error 30": errno.EROFS,
    "PytorchStreamWriter failed": errno.ENOSPC,
    "unexpected pos": errno.ENOSPC,
}


def sync(path: Path) -> None:
    """Flushes a file or the entries of a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Flushes everything in a directory, at any depth, and the directory itself."""
    for path in (*directory.rglob("*"), directory):
        sync(path)


def sampled_digest(path: Path, blocks: int = 64, size: int = 2**16) -> str:
    """SHA-256 of a file's length and of up to `blocks` blocks of `size` bytes, evenly spread from end to end.

    Of a file of no more than blocks · size bytes that is all of it. Of weights or an optimizer's state of any length it
    tells one step from the next, since training changes them everywhere, in the same few milliseconds; a single changed
    byte between two blocks it does not see.
    """
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with open(path, "rb") as file:
        if length <= blocks * size:
            digest.update(file.read())
        else:
            for block in range(blocks):
                file.seek((length - size) * block // (blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file. Whatever interrupts it, there is the old file or the new one.

    Raises:
        OSError: it cannot be written; its `filename` says which, and what was there before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    content = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():  # a device or a pipe, which nothing can replace
            with open(path, "wb") as stream:
                stream.write(content)
            return
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise about(error, path) from None


def append_whole(path: Path, content: str) -> None:
    """Adds to a file all of this or nothing; not flushed to disk.

    Raises:
        OSError: it cannot be written; its `filename` says which.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            write_or_undo(file, content.encode())
    except OSError as error:
        raise about(error, path) from None


def write_or_undo(file: io.FileIO, content: bytes) -> None:
    """Writes at the file's end, which is where it stands; where that fails, cuts off what was written of it."""
    end = file.seek(0, os.SEEK_END)
    try:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
    except OSError:
        with contextlib.suppress(OSError):  # a device has nothing to cut off
            file.truncate(end)
        raise


def about(error: OSError, path: Path) -> OSError:
    """The error with the name of the file that could not be written."""
    error.filename, error.filename2 = str(path), None
    return error


def failed_write(error: BaseException, directory: Path) -> OSError | None:
    """The error, or what a library made of it, as an OSError; None where it is about something else."""
    if isinstance(error, OSError):
        return error
    for text, number in _FAILED_WRITES.items():
        if text in str(error):
            return OSError(number, os.strerror(number), str(directory))
    return None


@contextlib.contextmanager
def write_errors(directory: Path) -> Iterator[None]:
    """Inside, whatever libraries raise where they cannot write to the directory is an OSError that names it."""
    try:
        yield
    except Exception as error:
        if (failed := failed_write(error, directory)) is None:
            raise
        raise failed from None


def unwritable(error: OSError) -> str | None:
    """What to say where a file could not be written; None where the error is about something else."""
    if error.errno not in UNWRITABLE:
        return None
    what = f"Cannot write {error.filename}" if error.filename else "Cannot write"
    return f"{what}: {error.strerror}. Make room there, or make it writable; what was finished before is kept."
