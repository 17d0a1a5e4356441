// A client of Leadkeep: a channel that outlives a restart of the service, a token that is renewed, typed errors.
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import {
  type CallOptions, type ClientUnaryCall, credentials, Metadata, type ServiceError, status,
} from '@grpc/grpc-js';
import { BadRequest, ErrorInfo, RetryInfo } from './gen/google/rpc/error_details.js';
import { Status } from './gen/google/rpc/status.js';
import { LeadServiceClient } from './gen/leadkeep/v1/lead_service.js';

const DEADLINE = 15_000; // ms for all attempts of a call together: a restart of the service fits
const policy = (name: string) => readFileSync(new URL(`../gen/policy/${name}`, import.meta.url), 'utf8');
const reasons: { reason: string; repeat: boolean }[] = JSON.parse(policy('reasons.json')).reasons;
const MAY_BE_REPEATED = new Set(reasons.filter((row) => row.repeat).map((row) => row.reason));
const UNANSWERED = new Set([
  status.UNAVAILABLE, status.UNKNOWN, status.INTERNAL, status.DEADLINE_EXCEEDED, status.CANCELLED,
]);

/** A call that failed. Its text and its fields hold no value of a lead, so it may be logged. */
export class LeadkeepError extends Error {
  readonly code: status;
  readonly reason: string = ''; // empty: no answer of the service, but of the channel (connection, certificate, time)
  readonly metadata: Record<string, string> = {};
  readonly violations: { field: string; reason: string }[] = [];
  readonly retryAfter: number = 0; // seconds
  readonly repeat: boolean; // whether the same request, with its requestId, may succeed later

  constructor(error: ServiceError) {
    super();
    this.code = error.code;
    const [raw] = error.metadata?.get('grpc-status-details-bin') ?? [];
    for (const { typeUrl, value } of raw ? Status.decode(raw as Buffer).details : []) {
      if (typeUrl.endsWith('/google.rpc.ErrorInfo')) {
        ({ reason: this.reason, metadata: this.metadata } = ErrorInfo.decode(value));
      } else if (typeUrl.endsWith('/google.rpc.BadRequest')) {
        this.violations = BadRequest.decode(value).fieldViolations.map(({ field, reason }) => ({ field, reason }));
      } else if (typeUrl.endsWith('/google.rpc.RetryInfo')) {
        const delay = RetryInfo.decode(value).retryDelay;
        this.retryAfter = delay ? delay.seconds + delay.nanos / 1e9 : 0;
      }
    }
    this.repeat = this.reason ? MAY_BE_REPEATED.has(this.reason) : UNANSWERED.has(this.code);
    this.message = `${status[this.code]} ${this.reason || '(no answer of the service)'}`;
  }
}

type Rpc<Request, Response> = (
  request: Request, metadata: Metadata, options: Partial<CallOptions>,
  done: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/**
 * The channel, which lives as long as your program, and calls with a fresh token.
 *
 * `token` is asked for every call, so it may read a file that something else renews. `ca` turns TLS on; with `cert` and
 * `key`, your own certificate, it is mutual.
 */
export class LeadkeepClient {
  readonly leads: LeadServiceClient;

  constructor(address: string, private readonly token: () => string, ca?: string, cert?: string, key?: string) {
    const read = (file?: string) => (file ? readFileSync(file) : null);
    this.leads = new LeadServiceClient(
      address,
      ca ? credentials.createSsl(read(ca), read(key), read(cert)) : credentials.createInsecure(),
      { 'grpc.service_config': policy('retry_policy.json'), ...JSON.parse(policy('channel.json')).node },
    );
  }

  /**
   * Makes a call, such as `client.call(client.leads.getLead, request)`, or throws LeadkeepError.
   *
   * The channel repeats what may be repeated, within the deadline and as the service asks. Left to do here is what no
   * library repeats: an answer that was cut in its midst, or a proxy's page of HTML in its place. And a token that had
   * expired is read once more: whatever renews it may have done so meanwhile.
   */
  async call<Request, Response>(rpc: Rpc<Request, Response>, request: Request, deadline = DEADLINE): Promise<Response> {
    const end = Date.now() + deadline;
    for (let renewed = false; ; ) {
      try {
        return await this.attempt(rpc, request, end);
      } catch (error) {
        if (!(error instanceof LeadkeepError)) throw error;
        const wait = 500 + Math.random() * 1000;
        if (error.reason === 'TOKEN_EXPIRED' && !renewed) renewed = true;
        else if (error.reason || !error.repeat || Date.now() + wait > end) throw error;
        else await setTimeout(wait);
      }
    }
  }

  private attempt<Request, Response>(rpc: Rpc<Request, Response>, request: Request, end: number): Promise<Response> {
    // grpc-js ignores waitForReady in the service config: without it here, calls fail while the service restarts.
    const metadata = new Metadata({ waitForReady: true });
    metadata.set('authorization', `Bearer ${this.token()}`);
    return new Promise((resolve, reject) => {
      rpc.call(this.leads, request, metadata, { deadline: end }, (error, response) => {
        if (error) reject(new LeadkeepError(error));
        else resolve(response);
      });
    });
  }
}
