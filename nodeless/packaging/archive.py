"""One archive of a set of files: the same files give the same bytes, on any machine, at any time.

A gzip-compressed tar (POSIX ustar/pax) whose entries are sorted by name and carry no owner, no time and one of two modes.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping

from msgspec import Struct

ARCHIVE_BYTES_MAX = 64 * 1024 * 1024
"""Largest bundle that is taken. A worker reads it whole before its first event, and the broker keeps each version."""


class File(Struct, frozen=True):
    content: bytes
    is_executable: bool = False


def archive_of(files: Mapping[str, File]) -> bytes:
    """Return the archive of `files`, by path relative to the root with `/` between parts."""
    buffer = io.BytesIO()
    # The header of gzip holds a time and a file name: both are left empty. Level 6 is gzip's own balance.
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = len(files[path].content)
            entry.mode = 0o755 if files[path].is_executable else 0o644
            archive.addfile(entry, io.BytesIO(files[path].content))
    return buffer.getvalue()
