// A chatbot's client for Node.js: creates a lead, repeats it safely, and reads what an error says.
//
//   cd examples/node && npm install
//   LEADKEEP_TOKEN=$(../../.venv/bin/leadkeep token --role chatbot) node client.js [host:port]
//
// The .proto file is read at run time, so nothing is generated. (The command `leadkeep` reads its settings in the
// folder where it is run: make the token where you run the service, or set LEADKEEP_DATA_DIR.)
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const repository = fileURLToPath(new URL('../../', import.meta.url));
const read = (name) => readFileSync(`${repository}clients/policy/${name}`, 'utf8');
const DEADLINE = 15_000; // ms for all attempts together: the service itself goes on for 10 s when its database is away

// keepCase: the contract's own names. longs as strings: `version` is an int64.
const definition = protoLoader.loadSync('leadkeep/v1/lead_service.proto', {
  includeDirs: [`${repository}protos`], keepCase: true, longs: String, enums: String, defaults: true,
});
const { LeadService } = grpc.loadPackageDefinition(definition).leadkeep.v1;

// What Leadkeep adds to a status: google.rpc.Status with details, of which a client reads these two.
const details = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }`, { keepCase: true }).root;

const client = new LeadService(
  process.argv[2] ?? '127.0.0.1:50051',
  grpc.credentials.createInsecure(), // with TLS: grpc.credentials.createSsl()
  { 'grpc.service_config': read('retry_policy.json'), ...JSON.parse(read('channel.json')).node },
);
// A call waits for the connection, as retry_policy.json says: grpc-js ignores it there.
const metadata = new grpc.Metadata({ waitForReady: true });
metadata.set('authorization', `Bearer ${process.env.LEADKEEP_TOKEN}`);

function call(method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline: Date.now() + DEADLINE },
      (error, response) => (error ? reject(error) : resolve(response)));
  });
}

// A program decides by `reason`, never by the text.
function explain(error) {
  console.log('refused: ', grpc.status[error.code], error.details);
  const [raw] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!raw) return; // the error comes from the channel and not from Leadkeep
  for (const { type_url: type, value } of details.lookupType('Status').decode(raw).details) {
    if (type.endsWith('/google.rpc.ErrorInfo')) {
      const { reason, metadata: more } = details.lookupType('ErrorInfo').decode(value);
      console.log('    reason', reason, more);
    } else if (type.endsWith('/google.rpc.BadRequest')) {
      for (const violation of details.lookupType('BadRequest').decode(value).field_violations) {
        console.log('   ', violation.field, violation.description);
      }
    }
  }
}

const lead = {
  name: 'Rafiq Islam',
  phone: '+880 1812-345678',
  nid: '1985 1234 5678',
  address: '7 Station Road, Chattogram',
  interested_policy: 'Term Life 20-Year',
  conversation_id: 'node-example-1',
};
// One id for each submission, made before the first attempt and kept until it is answered: with it a repeat answers
// the same lead. Here it comes from the conversation, so the whole example can be run again.
const submission = { lead, request_id: 'node-example-1/submission-1', locale: 'en' };

const created = await call('CreateLead', submission);
console.log('created: ', created.id, created.state);
console.log('tell the customer:', [created.confirmation.text, ...created.confirmation.next_steps].join('\n    '));

const again = await call('CreateLead', submission);
console.log('repeated:', again.id, again.id === created.id ? 'the same lead' : 'ANOTHER LEAD');

const { lead: found } = await call('GetLeadByConversation', { conversation_id: lead.conversation_id });
console.log('found:   ', found.id, found.phone, found.nid, found.masked ? 'masked' : 'unmasked');

await call('CreateLead', { lead, request_id: 'node-example-1/submission-2' }).catch(explain);
await call('CreateLead', { lead: { name: 'Rafiq Islam', phone: '12' } }).catch(explain);
client.close();
