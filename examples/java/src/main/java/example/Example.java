package example;

import com.leadkeep.v1.CreateLeadRequest;
import com.leadkeep.v1.CreateLeadResponse;
import com.leadkeep.v1.GetLeadRequest;
import com.leadkeep.v1.Lead;
import com.leadkeep.v1.LeadView;
import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;

/**
 * A chatbot's submission: save a lead, repeat it, read it masked, and decide by what an error says.
 *
 * <p>Printed are ids, states, names of fields and reasons: never a message, whose text shows every value.
 */
final class Example {
  public static void main(String[] arguments) throws IOException {
    try (LeadkeepClient client = connect(arguments)) {
      run(client);
    }
  }

  private static void run(LeadkeepClient client) {
    int number = ThreadLocalRandom.current().nextInt(100_000_000);
    Lead lead =
        Lead.newBuilder()
            .setName("Anika Rahman")
            .setPhone(String.format("+88016%08d", number))
            .setNid(String.format("22000%08d", number))
            .setAddress("12 Lake Road, Dhaka")
            .setInterestedPolicy("Term Life 20-Year")
            .setConversationId("java-" + UUID.randomUUID())
            .build();
    // The idempotency key: made when the customer confirms, before the first attempt, and kept until it is answered.
    CreateLeadRequest submission = submission(lead).toBuilder().setLocale("bn-BD, en").build();
    CreateLeadResponse created = client.call(leads -> leads.createLead(submission));
    print("created ", created.getId(), created.getState(), created.getConfirmation().getReference());

    CreateLeadResponse repeated = client.call(leads -> leads.createLead(submission));
    print("repeated", repeated.getId(), repeated.getIsRepeat() ? "is_repeat" : "ANOTHER LEAD");

    GetLeadRequest read =
        GetLeadRequest.newBuilder().setId(created.getId()).setView(LeadView.LEAD_VIEW_MASKED).build();
    Lead found = client.call(leads -> leads.getLead(read)).getLead();
    print("read    ", found.getId(), found.getStatus(), "masked:", String.join(",", found.getMaskedFieldsList()));

    Lead invalid = Lead.newBuilder().setName("Anika Rahman").setPhone("12").build();
    for (CreateLeadRequest mistake : List.of(submission(lead), submission(invalid))) {
      try {
        client.call(leads -> leads.createLead(mistake));
      } catch (LeadkeepException error) {
        String advice = error.repeat ? "repeat" : "do not repeat";
        print("refused ", error.getMessage(), error.metadata.getOrDefault("fields", ""), advice);
        error.violations.forEach(each -> print("        ", each.getField(), each.getReason()));
      }
    }
  }

  private static CreateLeadRequest submission(Lead lead) {
    return CreateLeadRequest.newBuilder().setLead(lead).setRequestId(UUID.randomUUID().toString()).build();
  }

  private static void print(Object... words) {
    System.out.println(String.join(" ", List.of(words).stream().map(Object::toString).toList()));
  }

  /**
   * The client that the arguments describe: {@code --address} (host:port), {@code --token-file} (without,
   * LEADKEEP_TOKEN), {@code --ca} (TLS), and {@code --cert} and {@code --key} (mutual TLS).
   */
  static LeadkeepClient connect(String[] arguments) throws IOException {
    Map<String, String> given = new HashMap<>();
    for (int i = 0; i + 1 < arguments.length; i += 2) {
      given.put(arguments[i].substring("--".length()), arguments[i + 1]);
    }
    String file = given.get("token-file");
    return new LeadkeepClient(
        given.getOrDefault("address", "127.0.0.1:50051"),
        () -> file == null ? System.getenv("LEADKEEP_TOKEN") : text(Path.of(file)),
        file(given.get("ca")),
        file(given.get("cert")),
        file(given.get("key")));
  }

  private static String text(Path file) {
    try {
      return Files.readString(file).strip();
    } catch (IOException unreadable) {
      throw new UncheckedIOException(unreadable);
    }
  }

  private static File file(String path) {
    return path == null ? null : new File(path);
  }
}
