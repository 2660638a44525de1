"""Bundles in the broker's object store: content-addressed, stored once, checked when read.

The layout is NATS' own (ADR-20), so its tools can list and read them. Chunks lie under the digest where other
writers draw a random id: storing the same archive again finds it there, and the right to read one bundle is one
subject.
"""

import base64
import hashlib
from contextlib import aclosing

import msgspec

from bus.core.assignment import bundle_digest
from bus.core.credentials import bundle_chunk_subject, bundle_meta_subject
from bus.core.errors import NotFound, Refused, SequenceConflict
from bus.core.topology import BUNDLES_BUCKET, BUNDLES_STREAM
from bus.jetstream.connection import Connection, StoredMessage
from bus.jetstream.reading import read

CHUNK_BYTES = 128 * 1024
"""The object store's own default."""


async def bundle_exists(connection: Connection, digest: str) -> bool:
    return await connection.last_message(BUNDLES_STREAM, bundle_meta_subject(digest)) is not None


async def put_bundle(connection: Connection, archive: bytes) -> str:
    """Store an archive unless it is there, and return its digest (`sha256:…`)."""
    digest = bundle_digest(archive)
    if await bundle_exists(connection, digest):
        return digest
    chunks = [archive[at : at + CHUNK_BYTES] for at in range(0, len(archive), CHUNK_BYTES)] or [b""]
    subject = bundle_chunk_subject(digest)
    for index, chunk in enumerate(chunks):
        # The id lets a second writer, or a second try after an interruption, store nothing twice.
        await connection.store(subject, chunk, message_id=f"{digest}:{index}")
    raw = base64.urlsafe_b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
    meta = {
        "name": digest,
        "bucket": BUNDLES_BUCKET,
        "nuid": digest.removeprefix("sha256:"),
        "size": len(archive),
        "chunks": len(chunks),
        "digest": f"SHA-256={raw}",
        "options": {"max_chunk_size": CHUNK_BYTES},
    }
    try:
        await connection.store(
            bundle_meta_subject(digest),
            msgspec.json.encode(meta),
            {"Nats-Rollup": "sub"},
            expected_last_subject_sequence=0,
        )
    except SequenceConflict:
        return digest  # somebody else was done first
    return digest


async def get_bundle(connection: Connection, digest: str) -> bytes:
    """Return the archive; `NotFound` where there is none, `Refused` where its bytes are not what the digest says."""
    meta = await connection.last_message(BUNDLES_STREAM, bundle_meta_subject(digest))
    if meta is None:
        raise NotFound("bundle", digest)
    chunks: list[StoredMessage] = []
    async with aclosing(read(connection, BUNDLES_STREAM, bundle_chunk_subject(digest))) as messages:
        async for message in messages:
            chunks.append(message)
            if len(chunks) == msgspec.json.decode(meta.data)["chunks"]:
                break
    archive = b"".join(chunk.data for chunk in chunks)
    if f"sha256:{hashlib.sha256(archive).hexdigest()}" != digest:
        raise Refused(
            f"read bundle {digest}", f"{len(archive)} bytes came that have another digest; deploy the function again"
        )
    return archive
