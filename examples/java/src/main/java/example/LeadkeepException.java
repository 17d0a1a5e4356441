package example;

import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;

/** A call that failed. Its text and its fields hold no value of a lead, so it may be logged. */
final class LeadkeepException extends RuntimeException {
  private static final Set<String> MAY_BE_REPEATED = mayBeRepeated();
  private static final Set<Status.Code> UNANSWERED =
      Set.of(Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED, Status.Code.CANCELLED);

  final Status.Code code;

  /** Empty: no answer of the service, but of the channel (connection, certificate, time). */
  final String reason;

  final Map<String, String> metadata;
  final List<BadRequest.FieldViolation> violations;
  final Duration retryAfter;

  /** Whether the same request, with its request_id, may succeed later. */
  final boolean repeat;

  LeadkeepException(StatusRuntimeException error) {
    code = error.getStatus().getCode();
    ErrorInfo info = detail(error, ErrorInfo.getDefaultInstance());
    reason = info.getReason();
    metadata = info.getMetadataMap();
    violations = detail(error, BadRequest.getDefaultInstance()).getFieldViolationsList();
    var delay = detail(error, RetryInfo.getDefaultInstance()).getRetryDelay();
    retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
    repeat = reason.isEmpty() ? UNANSWERED.contains(code) : MAY_BE_REPEATED.contains(reason);
  }

  @Override
  public String getMessage() {
    return code + " " + (reason.isEmpty() ? "(no answer of the service)" : reason);
  }

  @SuppressWarnings("unchecked")
  private static <T extends com.google.protobuf.Message> T detail(StatusRuntimeException error, T none) {
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    try {
      for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
        if (detail.is(none.getClass())) {
          return (T) detail.unpack(none.getClass());
        }
      }
      return none;
    } catch (InvalidProtocolBufferException damaged) {
      return none;
    }
  }

  private record Table(List<Row> reasons) {}

  private record Row(String reason, boolean repeat) {}

  private static Set<String> mayBeRepeated() {
    try {
      Table table = new Gson().fromJson(LeadkeepClient.policy("reasons.json"), Table.class);
      return table.reasons.stream().filter(Row::repeat).map(Row::reason).collect(Collectors.toSet());
    } catch (IOException missing) {
      throw new UncheckedIOException(missing);
    }
  }
}
