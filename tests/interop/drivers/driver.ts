// Calls for the tests: a line `NUMBER create PHONE NID` or `NUMBER read ID`, an answer `NUMBER CODE REASON ID`.
import { randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import { status } from '@grpc/grpc-js';
import { LeadkeepError } from './client.js';
import { connect } from './example.js';
import { CreateLeadRequest, GetLeadRequest, LeadView } from './gen/leadkeep/v1/lead_service.js';

const client = connect();

async function make([rpc, ...words]: string[]): Promise<string> {
  if (rpc === 'read') {
    const request = GetLeadRequest.fromPartial({ id: words[0], view: LeadView.LEAD_VIEW_MASKED });
    return (await client.call(client.leads.getLead, request)).lead!.id;
  }
  const [phone, nid] = words;
  const lead = { name: 'Anika Rahman', phone, nid, address: '12 Lake Road', interestedPolicy: 'Term Life' };
  const submission = CreateLeadRequest.fromPartial({ lead, requestId: randomUUID() });
  return (await client.call(client.leads.createLead, submission)).id;
}

async function answer(line: string): Promise<void> {
  const [number, ...what] = line.split(' ');
  try {
    console.log(number, 'OK', '-', await make(what));
  } catch (error) {
    if (!(error instanceof LeadkeepError)) throw error;
    console.log(number, status[error.code], error.reason || '-', '-');
  }
}

const calls: Promise<void>[] = [];
for await (const line of createInterface({ input: process.stdin })) calls.push(answer(line));
await Promise.all(calls);
client.leads.close();
