"""The child process that reads one upload: parses, cleans, redacts and splits it.

Uploads may be hostile, so the process has limits on memory and CPU time. It reads a request from stdin, a JSON line
`{"task": "check" | "prepare", "type", "encoding", "title", "seconds"}` followed by the bytes of the file, and writes
one JSON answer to stdout: `{"opened"}`, `{"prepared"}` or `{"rejected"}`.
"""

import logging
import resource
import sys

import orjson

from services.rag.indexing.file_types import DocumentType, FileRejected, FileType
from services.rag.indexing.parsing import open_check

MEMORY_BYTES = 1536 * 1024 * 1024


def main() -> None:
    """Answers the request on stdin."""
    request = orjson.loads(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Warnings of the parsers quote the file.
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
    if task == "check":
        open_check(data, file_type)
        return {"opened": True}
    # Imported here, since a check needs none of it and would take 0.2 seconds longer.
    from services.rag.indexing.preparation import prepare

    return {"prepared": prepare(data, file_type, title).to_json()}


if __name__ == "__main__":
    main()
