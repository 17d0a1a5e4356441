package example;

import com.google.gson.Gson;
import com.leadkeep.v1.LeadServiceGrpc;
import com.leadkeep.v1.LeadServiceGrpc.LeadServiceBlockingStub;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.Executor;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;

/**
 * A client of Leadkeep: a channel that outlives a restart of the service, a token that is renewed, typed errors.
 *
 * <p>It lives as long as your program, and is safe for use by many threads.
 */
final class LeadkeepClient implements AutoCloseable {
  /** For all attempts of a call together: a restart of the service fits. */
  private static final long DEADLINE_SECONDS = 15;

  private final ManagedChannel channel;
  private final LeadServiceBlockingStub leads;
  private final AtomicInteger callsInFlight = new AtomicInteger();
  private final ScheduledExecutorService reconnecting =
      Executors.newSingleThreadScheduledExecutor(
          task -> {
            Thread thread = new Thread(task, "leadkeep-reconnecting");
            thread.setDaemon(true);
            return thread;
          });

  /**
   * @param token is asked for every attempt of a call, so it may read a file that something else renews
   * @param ca turns TLS on; null for plain text, which is for your own machine only
   * @param cert with {@code key}, your own certificate, for mutual TLS; else null
   */
  LeadkeepClient(String address, Callable<String> token, File ca, File cert, File key) throws IOException {
    // The values of clients/policy/channel.json.
    channel =
        Grpc.newChannelBuilder(address, transport(ca, cert, key))
            .defaultServiceConfig(new Gson().fromJson(policy("retry_policy.json"), Map.class))
            .enableRetry()
            .keepAliveTime(15, TimeUnit.SECONDS)
            .keepAliveTimeout(5, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .build();
    leads = LeadServiceGrpc.newBlockingStub(channel).withCallCredentials(new Bearer(token));
    // The builder has no setting for how soon the channel connects again: its own waits grow to two minutes.
    reconnecting.scheduleWithFixedDelay(this::reconnect, 1, 1, TimeUnit.SECONDS);
  }

  private void reconnect() {
    if (callsInFlight.get() > 0) {
      channel.resetConnectBackoff();
    }
  }

  /**
   * Makes a call, such as {@code client.call(leads -> leads.getLead(request))}, or throws LeadkeepException.
   *
   * <p>The channel repeats what may be repeated, within the deadline and as the service asks. A token that had expired
   * is read once more: whatever renews it may have done so meanwhile.
   */
  <T> T call(Function<LeadServiceBlockingStub, T> rpc) {
    callsInFlight.incrementAndGet();
    try {
      return attempt(rpc);
    } catch (LeadkeepException error) {
      if (!error.reason.equals("TOKEN_EXPIRED")) {
        throw error;
      }
      return attempt(rpc);
    } finally {
      callsInFlight.decrementAndGet();
    }
  }

  private <T> T attempt(Function<LeadServiceBlockingStub, T> rpc) {
    try {
      return rpc.apply(leads.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS));
    } catch (StatusRuntimeException error) {
      throw new LeadkeepException(error);
    }
  }

  @Override
  public void close() {
    reconnecting.shutdownNow();
    channel.shutdownNow();
  }

  private static ChannelCredentials transport(File ca, File cert, File key) throws IOException {
    if (ca == null) {
      return InsecureChannelCredentials.create();
    }
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder().trustManager(ca);
    return cert == null ? tls.build() : tls.keyManager(cert, key).build();
  }

  /** A file of clients/policy, which the build puts beside the classes. */
  static String policy(String name) throws IOException {
    try (InputStream file = LeadkeepClient.class.getResourceAsStream("/policy/" + name)) {
      return new String(file.readAllBytes(), StandardCharsets.UTF_8);
    }
  }

  /** Adds the token to every attempt. */
  private static final class Bearer extends CallCredentials {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    private final Callable<String> token;

    Bearer(Callable<String> token) {
      this.token = token;
    }

    @Override
    public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
      executor.execute(
          () -> {
            try {
              Metadata headers = new Metadata();
              headers.put(AUTHORIZATION, "Bearer " + token.call());
              applier.apply(headers);
            } catch (Exception unreadable) {
              applier.fail(Status.UNAUTHENTICATED.withDescription("the token cannot be read"));
            }
          });
    }
  }
}
