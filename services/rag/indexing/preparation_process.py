"""The process that opens uploads: short-lived, limited in memory and CPU, with nothing of the service in it.

Reads one JSON line and the bytes of a file from stdin, writes one JSON object to stdout.
"""

import logging
import resource
import sys

import orjson

from services.rag.documents.file_types import DocumentType, FileRejected, FileType

MEMORY_BYTES = 1536 * 1024 * 1024


def main() -> None:
    """`{"task": "check"|"prepare", "type", "encoding", "title", "seconds"}`, then the bytes of the file."""
    request = orjson.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Parsers warn of what they meet in a file, and quote it.
    logging.disable(logging.CRITICAL)
    data = sys.stdin.buffer.read()
    file_type = FileType(DocumentType(request["type"]), request["encoding"])
    try:
        answer = _answer(request["task"], data, file_type, request["title"])
    except FileRejected as rejected:
        answer = {"rejected": {"code": rejected.problem.code, "detail": rejected.detail}}
    sys.stdout.buffer.write(orjson.dumps(answer))
    sys.stdout.buffer.flush()


def _answer(task: str, data: bytes, file_type: FileType, title: str) -> dict[str, object]:
    # Imported by need: opening a file takes less than preparing one.
    if task == "check":
        from services.rag.indexing.parsing import open_check

        open_check(data, file_type)
        return {"opened": True}
    from services.rag.indexing.preparation import prepare

    return {"prepared": prepare(data, file_type, title).to_json()}


if __name__ == "__main__":
    main()
