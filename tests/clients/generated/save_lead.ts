// Saves a lead by a route, and reads it by Connect, with the types that openapi-typescript makes.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<"LEADKEEP_URL" | "LEADKEEP_TOKEN" | "LEAD", string> };

const client = createClient<paths>({
  baseUrl: process.env.LEADKEEP_URL,
  headers: { authorization: `Bearer ${process.env.LEADKEEP_TOKEN}` },
});
const lead: components["schemas"]["LeadSubmission"] = JSON.parse(process.env.LEAD);

const created = await client.POST("/api/leads", {
  body: lead,
  params: { header: { "Idempotency-Key": crypto.randomUUID(), "Request-Timeout": "15" } },
});
if (created.error) throw new Error(created.error.reason ?? created.error.detail);
const state: components["schemas"]["SaveState"] = created.data.state;

const shown = await client.POST("/leadkeep.v1.LeadService/GetLead", { body: { id: created.data.id } });
if (shown.error) throw new Error("code" in shown.error ? shown.error.code : shown.error.detail);
// No `!`: what is always there is no optional type.
const { id, status, created_at } = shown.data.lead;

const listed = await client.GET("/api/leads", { params: { query: { statuses: [status], page_size: 1 } } });
if (listed.error) throw new Error(listed.error.reason);

const refused = await client.GET("/api/leads/{id}", { params: { path: { id: crypto.randomUUID() } } });
console.log(
  JSON.stringify({ id, state, status, day: new Date(created_at).getUTCFullYear() > 0, found: listed.data.leads.length, refused: refused.error?.reason }),
);
