import { connect, run } from './example.js';

const client = connect();
await run(client).finally(() => client.leads.close());
