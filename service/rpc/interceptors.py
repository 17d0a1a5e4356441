"""What happens around every call, at every endpoint. `standard_chain` holds the order, with its reasons.

An interceptor is a small async function of call, request and next. None of them knows a transport, and none logs a
request, a response or an error's text.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial

import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import (
    DeadlineTooShortError,
    InternalError,
    LeadkeepError,
    QueueFullError,
    Reason,
    ScopeMissingError,
    ServiceStoppingError,
    StorageUnavailableError,
)
from service.rpc.call import Call, Handler, Interceptor, Work, end_wait
from service.rpc.limits import Places, strangers
from service.rpc.metrics import Metrics
from service.rpc.status import CODES
from service.rpc.tokens.verifier import bearer_token
from service.rpc.wire import corrected_fields
from service.scopes import SCOPES, Caller
from service.storage.database.failures import LONGEST_RETRY, Retry, RetryScope, StorageFaultError, retry_scope

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What a caller's own `x-request-id` may look like to be taken over into the log."""

STORAGE_MARGIN = 0.05
"""Seconds before the service's own deadline at which storage retries end, so that the caller gets UNAVAILABLE, which
names the cause, and not DEADLINE_EXCEEDED; never more than a tenth of the time that is left."""

FEWEST_SECONDS = 0.5
"""With which a call is begun that has lost more in the queue before this process: it would hardly be answered in time,
and take the time of others. When one that had less from the start runs out of it, that says nothing of the storage."""

NEED_NO_DATABASE = frozenset({"CreateLead", "ValidateLead"})
"""CreateLead has the spool, and ValidateLead looks nothing up."""

OPERATORS_CONCERN: frozenset[Reason] = frozenset({"STORAGE_UNAVAILABLE", "KEYS_UNAVAILABLE", "FIELD_UNREADABLE"})
"""Failures that no caller can mend: they are logged as errors."""

Verify = Callable[[str], Awaitable[Caller]]
Explain = Callable[[LeadkeepError, str], None]


def standard_chain(
    *,
    verify: Verify,
    explain: Explain,
    database_away: Callable[[], bool],
    unmasking: Interceptor,
    metrics: Metrics,
    max_concurrent_calls: int,
    default_deadline: float,
    work: Work,
    new_id: Callable[[], object],
    limiting: Sequence[Interceptor] = (),
    on_refused: Callable[[str], None] = lambda _: None,
) -> Sequence[Interceptor]:
    """Every interceptor, outermost first.

    Args:
        verify: the caller of a token.
        explain: adds words for the customer to an error, in one of the locales.
        database_away: what readiness says of the database.
        unmasking: which values an answer may show.
        metrics: what is counted and measured.
        max_concurrent_calls: the places for calls at work.
        default_deadline: seconds for callers who set no deadline.
        work: what goes on when callers have gone.
        new_id: makes ids of calls and incidents, which are written out at once.
        limiting: duplicate_limit, where a limit is set.
        on_refused: gets the cause with which the database refused a call.
    """
    return (
        # First, so that everything behind it can name the call; outside of errors, so that it sees the status that the
        # caller sees.
        access_log(metrics, new_id),
        # Outside of everything that may fail.
        errors(new_id, explain, on_refused),
        # Outside of deadline and places: a refusal that it holds back takes none.
        strangers(),
        # Outside of the work, which it leaves running when the caller's time is over or the caller is gone.
        deadline(work, default_deadline),
        # Inside of deadline, so that work which was left running still counts; before anything reads the request.
        authentication(verify, Places(max_concurrent_calls)),
        # Behind authentication: what is wrong here concerns no stranger.
        availability(database_away),
        # Around the servicer and nothing else: no unmasked message gets past it before it is recorded.
        unmasking,
        # Innermost: counts the retries of storage calls, the servicer's and the record's.
        retry_log(metrics, max(LONGEST_RETRY, default_deadline)),
        # Directly before anything is looked up; none where no limit is set.
        *limiting,
    )


def duplicate_limit(require_room: Callable[[str], Awaitable[None]]) -> Interceptor:
    """Refuse what could find a duplicate, before anything is looked up, to subjects that have found too many."""

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        if call.caller is not None and (
            call.rpc == "CreateLead"
            or (
                isinstance(request, pb.UpdateLeadRequest) and not {"phone", "nid"}.isdisjoint(corrected_fields(request))
            )
        ):
            await require_room(call.caller.subject)
        return await proceed(call, request)

    return intercept


def access_log(metrics: Metrics, new_id: Callable[[], object]) -> Interceptor:
    """One line and one observation per call, which is named by the caller's `x-request-id`, or else by a new id."""
    log = structlog.get_logger("leadkeep.access")
    # Looked up by their labels each time, they cost as much as the rest of this.
    count = cache(metrics.calls.labels)
    latency = cache(metrics.latency.labels)

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        began = time.monotonic()
        sent = call.metadata.get("x-request-id", "")
        call.id = sent if REQUEST_ID.fullmatch(sent) else str(new_id())
        code, reason = "OK", None
        metrics.in_flight.inc()
        try:
            return await proceed(call, request)
        except LeadkeepError as error:
            code, reason = code_pb2.Code.Name(CODES[error.reason]), error.reason
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            seconds = time.monotonic() - began
            metrics.in_flight.dec()
            count(call.rpc, call.transport, code).inc()
            latency(call.rpc, call.transport).observe(seconds)
            log.info(
                "call",
                rpc=call.rpc,
                door=call.transport,
                code=code,
                reason=reason,
                milliseconds=round(seconds * 1000, 2),
                subject=call.caller.subject if call.caller else None,
                retries=call.retries,
                request_id=call.id,
                peer=call.peer,
            )

    return intercept


def errors(
    new_id: Callable[[], object], explain: Explain | None = None, on_refused: Callable[[str], None] = lambda _: None
) -> Interceptor:
    """Let only domain errors leave, those of CreateLead with words for the customer in the request's locale."""

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        try:
            return await proceed(call, request)
        except Exception as error:  # noqa: BLE001 # the text of an unforeseen error must not reach a caller
            failure = domain_error(error, call, new_id)
            if isinstance(error, StorageFaultError) and error.is_refusal:
                on_refused(error.cause)
        if explain is not None and isinstance(request, pb.CreateLeadRequest):
            explain(failure, request.locale)
        raise failure

    return intercept


def domain_error(error: Exception, call: Call, new_id: Callable[[], object]) -> LeadkeepError:
    """The error that leaves, and a line in the log if it concerns the operator. Only the type and place of an
    unforeseen one are logged."""
    log = structlog.get_logger("leadkeep.errors")
    if isinstance(error, LeadkeepError):
        if error.reason in OPERATORS_CONCERN:
            log.error("call failed", rpc=call.rpc, reason=error.reason, request_id=call.id)
        return error
    if isinstance(error, StorageFaultError) and error.is_refusal:
        log.error("the database refuses", rpc=call.rpc, cause=error.cause, request_id=call.id)
        return StorageUnavailableError()
    incident_id = str(new_id())
    if isinstance(error, StorageFaultError):
        log.error("storage fault", rpc=call.rpc, incident_id=incident_id, cause=error.cause, request_id=call.id)
        return InternalError(incident_id)
    frames = traceback.extract_tb(error.__traceback__)
    log.error(
        "unexpected error",
        rpc=call.rpc,
        incident_id=incident_id,
        error=type(error).__qualname__,
        at=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        request_id=call.id,
    )
    return InternalError(incident_id)


def deadline(work: Work, default: float) -> Interceptor:
    """Answer before the caller's deadline and before the end of the service; let no caller cancel what was begun.

    The work runs in a task of its own. A caller that hangs up or runs out of time leaves it running to its end: a
    cancelled database call could report a commit as done that a failover then loses. Who set no deadline waits for
    `default` seconds.
    """

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        if work.stopping:
            await work.refuse()
        now = time.monotonic()
        if call.deadline == math.inf:
            call.deadline = now + default
        remaining = call.deadline - now
        if remaining < FEWEST_SECONDS and call.waited > max(remaining, 0):
            raise QueueFullError
        if remaining <= 0:
            raise DeadlineTooShortError
        task, over = work.begin(proceed(call, request))
        timer = over.get_loop().call_later(remaining, end_wait, over)
        try:
            await over
        except asyncio.CancelledError:
            task.add_done_callback(partial(_log_late_failure, call))
            raise
        finally:
            timer.cancel()
        if not task.done():
            task.add_done_callback(partial(_log_late_failure, call))
            raise ServiceStoppingError if work.stopping else DeadlineTooShortError
        if task.cancelled():
            # Passed on as it is, it would leave the caller without any status (grpc/grpc#29248).
            raise RuntimeError("the work was cancelled from within")
        try:
            return task.result()
        except StorageUnavailableError:
            # Half of the time: what fails at once fails for another reason.
            if remaining < FEWEST_SECONDS and time.monotonic() > now + remaining / 2:
                raise DeadlineTooShortError from None
            raise

    return intercept


def _log_late_failure(call: Call, task: asyncio.Task[Message]) -> None:
    """Log the failure of work whose caller has gone: nobody else gets it."""
    if task.cancelled() or (error := task.exception()) is None or isinstance(error, LeadkeepError):
        return
    structlog.get_logger("leadkeep.errors").error(
        "work failed after its caller had gone",
        rpc=call.rpc,
        error=type(error).__qualname__,
        cause=error.cause if isinstance(error, StorageFaultError) else None,
        request_id=call.id,
    )


def authentication(verify: Verify, places: Places) -> Interceptor:
    """No place, no call; no token, no access; no scope, no call. A request that could not be read is refused only here.

    What is beyond the places is refused at once, so that memory and waiting stay bounded.
    """

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        places.take()
        try:
            call.caller = caller = await verify(bearer_token(call.metadata.get("authorization")))
            places.claim(call, request)
            scopes = SCOPES[call.rpc]
            if not any(caller.may(scope) for scope in scopes):
                raise ScopeMissingError(scopes[0])
            if call.fault is not None:
                raise call.fault
            return await proceed(call, request)
        finally:
            places.leave(call)

    return intercept


def availability(database_away: Callable[[], bool]) -> Interceptor:
    """While the database is away, refuse at once what cannot do without it."""

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        if call.rpc not in NEED_NO_DATABASE and database_away():
            raise StorageUnavailableError(retry_within_call=False)
        return await proceed(call, request)

    return intercept


def retry_log(metrics: Metrics, longest: float) -> Interceptor:
    """Log and count the client's earlier attempts and every storage retry inside the call, of `longest` seconds."""
    log = structlog.get_logger("leadkeep.retries")

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        earlier = call.metadata.get("grpc-previous-rpc-attempts", "")
        if earlier.isascii() and earlier.isdecimal() and int(earlier[:6]) > 0:
            call.retries += int(earlier[:6])
            metrics.client_retries.labels(call.rpc).inc()
            log.info("client retried", rpc=call.rpc, attempt=call.retries + 1, request_id=call.id)

        def on_retry(retry: Retry) -> None:
            call.retries += 1
            metrics.storage_retries.labels(call.rpc, retry.cause).inc()
            log.warning(
                "storage retried",
                rpc=call.rpc,
                attempt=retry.attempt,
                wait_ms=round(retry.wait * 1000, 1),
                cause=retry.cause,
                request_id=call.id,
            )

        # The work runs in a task of its own, so this is its context and nobody else's.
        now = time.monotonic()
        margin = min(STORAGE_MARGIN, (call.deadline - now) / 10)
        retry_scope.set(RetryScope(min(call.deadline - margin, now + longest), on_retry))
        return await proceed(call, request)

    return intercept
