"""Names of methods that are not UTF-8, which would end grpc.aio's server.

grpc.aio (grpcio 1.85) decodes the name of each called method in the one task that takes all calls. A name of other
bytes ends that task, and with it the server: one caller without a token would be enough. So in that task, and nowhere
else in the process, such bytes are replaced. No method has a name like that: the call is answered UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import codecs

_TAKES_CALLS = "_server_main_loop"
"""The coroutine of that task. It decodes nothing else that a caller sends."""


def accept_any_bytes() -> None:
    """Let grpc.aio's servers of this process outlive names of methods that are not UTF-8."""
    codecs.register_error("strict", _replaced_in_names)


def _replaced_in_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """The handler of all texts that cannot be decoded or encoded, by default an error."""
    if isinstance(error, UnicodeDecodeError) and _is_taking_calls():
        return codecs.replace_errors(error)
    return codecs.strict_errors(error)


def _is_taking_calls() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return False
    return task is not None and getattr(task.get_coro(), "__name__", "") == _TAKES_CALLS
