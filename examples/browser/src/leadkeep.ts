// Calls Leadkeep from a web page, as often as it takes. Copy this file into a page of your own.
import { Code, ConnectError, createClient, encodeBinaryHeader, type CallOptions, type Client } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import policy from "../../../clients/policy/reasons.json";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { LeadService } from "./gen/leadkeep/v1/lead_service_pb.js";

export type Protocol = "connect" | "grpc-web";

const DEADLINE = 15_000; // ms for all attempts together: the service itself goes on for 10 s when its database is away
const FIRST_WAIT = 200, LONGEST_WAIT = 1_000; // ms between attempts: a restarted service is found within a second
const REPEATED = new Set(policy.reasons.filter(({ repeat }) => repeat).map(({ reason }) => reason));
// Without a reason it is not the service's answer: no connection, one that was cut, or a proxy's 502 to 504. On Node.js a
// connection that was cut is aborted or internal.
const UNANSWERED = [Code.Unknown, Code.Unavailable, Code.Aborted, Code.Internal];
const TOKEN_REASONS = ["TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED"];

export function clientOf(baseUrl: string, protocol: Protocol): Client<typeof LeadService> {
  const transport = protocol === "connect" ? createConnectTransport : createGrpcWebTransport;
  return createClient(LeadService, transport({ baseUrl }));
}

export interface Session {
  /** The bearer token; a new one where `refused` says that the last one is no longer accepted. */
  token(refused: boolean): Promise<string>;
  /** An attempt brought no answer, and another one follows. */
  waiting(): void;
}

/**
 * The answer of an rpc. Browsers read no service config: this repeats as clients/policy says, within one deadline.
 * `reason` is why values are shown unmasked, in any script. Throws a ConnectError, which `failureOf` explains.
 */
export async function call<I, O>(
  session: Session, rpc: (request: I, options: CallOptions) => Promise<O>, request: I, reason = "",
): Promise<O> {
  let token = await session.token(false);
  let end = Date.now() + DEADLINE;
  for (let attempt = 0; ; attempt++) {
    const headers = new Headers({ authorization: `Bearer ${token}` });
    if (reason) headers.set("leadkeep-reason-bin", encodeBinaryHeader(reason));
    try {
      return await rpc(request, { headers, timeoutMs: end - Date.now() });
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      if (TOKEN_REASONS.includes(failureOf(error).reason)) {
        token = await session.token(true); // perhaps somebody types it: the deadline begins again
        end = Date.now() + DEADLINE;
        continue;
      }
      const wait = waitAfter(error, attempt);
      if (wait === undefined || Date.now() + wait >= end) throw error;
      session.waiting();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

/** The milliseconds until the next attempt; undefined where there must be none. */
function waitAfter(error: ConnectError, attempt: number): number | undefined {
  const { reason } = failureOf(error);
  if (reason ? !REPEATED.has(reason) : !UNANSWERED.includes(error.code)) return undefined;
  const pushback = error.metadata.get("grpc-retry-pushback-ms"); // beside each RetryInfo; -1: not within this deadline
  if (pushback !== null) return Number(pushback) < 0 ? undefined : Number(pushback);
  return Math.min(FIRST_WAIT * 2 ** attempt, LONGEST_WAIT) * (0.5 + Math.random() / 2);
}

export interface Failure {
  /** A program decides by it, never by the text; empty when the service did not answer. */
  reason: string;
  text: string;
  violations: { field: string; text: string }[];
  /** The call's name in the service's log. */
  id: string;
}

export function failureOf(thrown: unknown): Failure {
  const error = ConnectError.from(thrown);
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason ?? "";
  const violations = error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
  return {
    reason,
    text: reason ? error.rawMessage : "There is no answer: the service is away, or does not list this page's origin.",
    violations: violations.map(({ field, description }) => ({ field: field.replace("lead.", ""), text: description })),
    id: error.metadata.get("x-request-id") ?? "",
  };
}
