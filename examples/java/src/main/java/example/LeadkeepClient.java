package example;

import com.google.gson.Gson;
import com.leadkeep.v1.LeadServiceGrpc;
import com.leadkeep.v1.LeadServiceGrpc.LeadServiceBlockingStub;
import io.grpc.ConnectivityState;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.security.Security;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * A client of Leadkeep: a channel that outlives a restart of the service, a token that is renewed, typed errors.
 *
 * <p>It lives as long as your program, and is safe for use by many threads.
 */
final class LeadkeepClient implements AutoCloseable {
  /** For all attempts of a call together: a restart of the service fits. */
  private static final long DEADLINE_SECONDS = 15;

  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  static {
    // A service that comes back at another address is found after a second, not after 30. It counts for the whole program,
    // and has to be set before the first look-up of a name: the first for gRPC, the second for Java.
    System.setProperty("networkaddress.cache.ttl", "1");
    Security.setProperty("networkaddress.cache.ttl", "1");
  }

  private final ManagedChannel channel;
  private final LeadServiceBlockingStub leads;
  private final Supplier<String> token;

  /**
   * @param token is asked for every call, so it may read a file that something else renews
   * @param ca turns TLS on; null for plain text, which is for your own machine only
   * @param cert with {@code key}, your own certificate, for mutual TLS; else null
   */
  LeadkeepClient(String address, Supplier<String> token, File ca, File cert, File key) throws IOException {
    this.token = token;
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    if (ca != null) {
      tls.trustManager(ca);
    }
    if (cert != null) {
      tls.keyManager(cert, key);
    }
    // The values of clients/policy/channel.json.
    channel =
        Grpc.newChannelBuilder(address, ca == null ? InsecureChannelCredentials.create() : tls.build())
            .defaultServiceConfig(new Gson().fromJson(policy("retry_policy.json"), Map.class))
            .enableRetry()
            .keepAliveTime(15, TimeUnit.SECONDS)
            .keepAliveTimeout(5, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .build();
    leads = LeadServiceGrpc.newBlockingStub(channel);
    keepReconnecting();
  }

  /** The builder has no setting for how soon the channel connects again: its own waits grow to two minutes. */
  private void keepReconnecting() {
    if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
      channel.resetConnectBackoff();
    }
    if (!channel.isShutdown()) {
      CompletableFuture.delayedExecutor(1, TimeUnit.SECONDS).execute(this::keepReconnecting);
    }
  }

  /**
   * Makes a call, such as {@code client.call(leads -> leads.getLead(request))}, or throws LeadkeepException.
   *
   * <p>The channel repeats what may be repeated, within the deadline and as the service asks. Left to do here is what no
   * library repeats: an answer that was cut in its midst, or a proxy's page of HTML in its place. And a token that had
   * expired is read once more: whatever renews it may have done so meanwhile.
   */
  <T> T call(Function<LeadServiceBlockingStub, T> rpc) {
    Deadline end = Deadline.after(DEADLINE_SECONDS, TimeUnit.SECONDS);
    for (boolean renewed = false; ; ) {
      try {
        return attempt(rpc, end);
      } catch (LeadkeepException error) {
        if (error.reason.equals("TOKEN_EXPIRED") && !renewed) {
          renewed = true;
        } else if (!error.reason.isEmpty() || !error.repeat || !pause(end)) {
          throw error;
        }
      }
    }
  }

  /** Waits for about a second; returns whether there is time for another attempt, and the caller still wants it. */
  private static boolean pause(Deadline end) {
    long milliseconds = ThreadLocalRandom.current().nextLong(500, 1500);
    if (end.timeRemaining(TimeUnit.MILLISECONDS) < milliseconds || Context.current().isCancelled()) {
      return false;
    }
    try {
      Thread.sleep(milliseconds);
      return true;
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      return false;
    }
  }

  private <T> T attempt(Function<LeadServiceBlockingStub, T> rpc, Deadline end) {
    Metadata headers = new Metadata();
    headers.put(AUTHORIZATION, "Bearer " + token.get());
    try {
      return rpc.apply(
          leads
              .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
              .withDeadline(end));
    } catch (StatusRuntimeException error) {
      throw new LeadkeepException(error);
    }
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  /** A file of clients/policy, which the build puts beside the classes. */
  static Reader policy(String name) {
    return new InputStreamReader(
        LeadkeepClient.class.getResourceAsStream("/policy/" + name), StandardCharsets.UTF_8);
  }
}
