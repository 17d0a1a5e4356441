package example;

import com.leadkeep.v1.CreateLeadRequest;
import com.leadkeep.v1.GetLeadRequest;
import com.leadkeep.v1.Lead;
import com.leadkeep.v1.LeadView;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Calls for the tests: a line "NUMBER create PHONE NID" or "NUMBER read ID", an answer "NUMBER CODE REASON ID". */
final class Driver {
  public static void main(String[] arguments) throws IOException, InterruptedException {
    ExecutorService pool = Executors.newFixedThreadPool(32);
    try (LeadkeepClient client = Example.connect(arguments);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in))) {
      for (String line = lines.readLine(); line != null; line = lines.readLine()) {
        String[] words = line.split(" ");
        pool.execute(() -> System.out.println(words[0] + " " + answer(client, words)));
      }
      pool.shutdown();
      pool.awaitTermination(1, TimeUnit.MINUTES);
    }
  }

  private static String answer(LeadkeepClient client, String[] words) {
    try {
      return "OK - " + make(client, words);
    } catch (LeadkeepException error) {
      return error.code + " " + (error.reason.isEmpty() ? "-" : error.reason) + " -";
    }
  }

  private static String make(LeadkeepClient client, String[] words) {
    if (words[1].equals("read")) {
      GetLeadRequest read =
          GetLeadRequest.newBuilder().setId(words[2]).setView(LeadView.LEAD_VIEW_MASKED).build();
      return client.call(leads -> leads.getLead(read)).getLead().getId();
    }
    Lead lead =
        Lead.newBuilder()
            .setName("Anika Rahman")
            .setPhone(words[2])
            .setNid(words[3])
            .setAddress("12 Lake Road")
            .setInterestedPolicy("Term Life")
            .build();
    CreateLeadRequest submission =
        CreateLeadRequest.newBuilder().setLead(lead).setRequestId(UUID.randomUUID().toString()).build();
    return client.call(leads -> leads.createLead(submission)).getId();
  }
}
