// A chatbot's submission: save a lead, repeat it, read it masked, and decide by what an error says.
//
// Printed are ids, states, names of fields and reasons: never a message, which holds every value.
import { randomInt, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { LeadkeepClient, LeadkeepError } from './client.js';
import {
  CreateLeadRequest, GetLeadRequest, Lead, LeadView, leadStatusToJSON, saveStateToJSON,
} from './gen/leadkeep/v1/lead_service.js';

export async function run(client: LeadkeepClient): Promise<void> {
  const digits = String(randomInt(100_000_000)).padStart(8, '0');
  const lead = Lead.fromPartial({
    name: 'Anika Rahman',
    phone: `+88019${digits}`,
    nid: `21000${digits}`,
    address: '12 Lake Road, Dhaka',
    interestedPolicy: 'Term Life 20-Year',
    conversationId: `typescript-${randomUUID()}`,
  });
  // The idempotency key: made when the customer confirms, before the first attempt, and kept until it is answered.
  const submission = CreateLeadRequest.fromPartial({ lead, requestId: randomUUID(), locale: 'bn-BD, en' });
  const created = await client.call(client.leads.createLead, submission);
  console.log('created ', created.id, saveStateToJSON(created.state), created.confirmation?.reference);

  const repeated = await client.call(client.leads.createLead, submission);
  console.log('repeated', repeated.id, repeated.isRepeat ? 'is_repeat' : 'ANOTHER LEAD');

  const read = GetLeadRequest.fromPartial({ id: created.id, view: LeadView.LEAD_VIEW_MASKED });
  const found = (await client.call(client.leads.getLead, read)).lead!;
  console.log('read    ', found.id, leadStatusToJSON(found.status), 'masked:', found.maskedFields.join());

  const known = CreateLeadRequest.fromPartial({ lead, requestId: randomUUID() });
  const invalid = CreateLeadRequest.fromPartial({ lead: { name: 'Anika Rahman', phone: '12' }, requestId: randomUUID() });
  for (const mistake of [known, invalid]) {
    try {
      await client.call(client.leads.createLead, mistake);
    } catch (error) {
      if (!(error instanceof LeadkeepError)) throw error;
      console.log('refused ', error.message, error.metadata.fields ?? '', error.repeat ? 'repeat' : 'do not repeat');
      for (const { field, reason } of error.violations) console.log('        ', field, reason);
    }
  }
}

/** The client that the arguments describe. */
export function connect(): LeadkeepClient {
  const text = { type: 'string' } as const;
  const { values: given } = parseArgs({
    options: {
      address: { ...text, default: '127.0.0.1:50051' }, // host:port of the service
      'token-file': text, // file with the token; without, LEADKEEP_TOKEN
      ca: text, // certificate of the service's authority: TLS
      cert: text, // your certificate, for mutual TLS
      key: text, // its key
    },
  });
  const file = given['token-file'];
  const token = () => (file ? readFileSync(file, 'utf8').trim() : process.env.LEADKEEP_TOKEN ?? '');
  return new LeadkeepClient(given.address, token, given.ca, given.cert, given.key);
}
