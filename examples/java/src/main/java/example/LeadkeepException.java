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
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** A call that failed. Its text and its fields hold no value of a lead, so it may be logged. */
final class LeadkeepException extends RuntimeException {
  private static final List<Row> REASONS =
      new Gson().fromJson(LeadkeepClient.policy("reasons.json"), Table.class).reasons;
  private static final Set<Status.Code> UNANSWERED =
      Set.of(
          Status.Code.UNAVAILABLE,
          Status.Code.UNKNOWN,
          Status.Code.INTERNAL,
          Status.Code.DEADLINE_EXCEEDED,
          Status.Code.CANCELLED);

  final Status.Code code;
  String reason = ""; // empty: no answer of the service, but of the channel (connection, certificate, time)
  Map<String, String> metadata = Map.of();
  List<BadRequest.FieldViolation> violations = List.of();
  Duration retryAfter = Duration.ZERO;
  final boolean repeat; // whether the same request, with its request_id, may succeed later

  LeadkeepException(StatusRuntimeException error) {
    code = error.getStatus().getCode();
    try {
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          reason = info.getReason();
          metadata = info.getMetadataMap();
        } else if (detail.is(BadRequest.class)) {
          violations = detail.unpack(BadRequest.class).getFieldViolationsList();
        } else if (detail.is(RetryInfo.class)) {
          var delay = detail.unpack(RetryInfo.class).getRetryDelay();
          retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        }
      }
    } catch (InvalidProtocolBufferException damaged) {
      addSuppressed(damaged);
    }
    repeat =
        reason.isEmpty()
            ? UNANSWERED.contains(code)
            : REASONS.stream().anyMatch(row -> row.repeat && row.reason.equals(reason));
  }

  @Override
  public String getMessage() {
    return code + " " + (reason.isEmpty() ? "(no answer of the service)" : reason);
  }

  private record Table(List<Row> reasons) {}

  private record Row(String reason, boolean repeat) {}
}
