// The page: save a lead, list leads masked, show one field of one lead for a reason.
import type { Lead } from "./gen/leadkeep/v1/lead_service_pb.js";
import { LeadStatus, LeadView, SaveState } from "./gen/leadkeep/v1/lead_service_pb.js";
import { call, clientOf, failureOf, type Protocol, type Session } from "./leadkeep.js";

const COLUMNS = ["reference", "name", "phone", "email", "nid", "interestedPolicy"] as const;
const TOKEN = "leadkeep-token";

const found = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector)!;
const form = found<HTMLFormElement>("#lead"), more = found<HTMLButtonElement>("#more");
const status = found("#status"), problem = found("#problem"), rows = found<HTMLTableSectionElement>("#rows");
const field = found<HTMLSelectElement>("#field"), protocol = found<HTMLSelectElement>("#protocol");

const leads = () => clientOf(document.body.dataset.service!, protocol.value as Protocol);

const session: Session = {
  async token(refused) {
    const kept = refused ? null : sessionStorage.getItem(TOKEN);
    // With an issuer of your own: fetch a token from there.
    const token = kept ?? (await ask(found("#sign-in"))).get("token")!.toString().trim();
    sessionStorage.setItem(TOKEN, token);
    return token;
  },
  waiting: () => { status.textContent = "No answer yet, trying again …"; },
};

class CancelledError extends Error {}

/** What somebody enters in a dialog. Throws CancelledError. */
function ask(dialog: HTMLDialogElement): Promise<FormData> {
  const asked = dialog.querySelector("form")!;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      const entered = new FormData(asked);
      asked.reset();
      if (dialog.returnValue === "ok") resolve(entered);
      else reject(new CancelledError());
    };
  });
}

/** Does what was asked for, and says what came of it. No text of a lead or an error becomes HTML or reaches the console. */
async function during(button: HTMLButtonElement, work: () => Promise<string>): Promise<void> {
  button.disabled = true;
  status.textContent = "One moment …";
  problem.replaceChildren();
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  try {
    status.textContent = await work();
  } catch (error) {
    status.textContent = "";
    if (!(error instanceof CancelledError)) explain(error);
  } finally {
    button.disabled = false;
  }
}

function explain(error: unknown): void {
  const { reason, text, violations, id } = failureOf(error);
  const lines = [reason ? `${reason}: ${text}` : text, ...violations.map((each) => `${each.field}: ${each.text}`)];
  if (id) lines.push(`Call ${id}`);
  problem.replaceChildren(...lines.map((line) => {
    const shown = document.createElement("p");
    shown.textContent = line;
    return shown;
  }));
  for (const each of violations) form.querySelector(`[name="${CSS.escape(each.field)}"]`)?.setAttribute("aria-invalid", "true");
}

// One id for each submission, made before the first attempt and kept until it is answered: saved once, however often sent.
let submission = { content: "", requestId: "" };

async function save(): Promise<string> {
  const entered = new FormData(form);
  const text = (name: string) => entered.get(name)!.toString();
  const lead = {
    name: text("name"), phone: text("phone"), nid: text("nid"), address: text("address"), email: text("email"),
    interestedPolicy: text("interested_policy"),
  };
  const content = JSON.stringify(lead);
  if (content !== submission.content) submission = { content, requestId: crypto.randomUUID() };
  const request = { lead, requestId: submission.requestId, locale: navigator.language };
  const { confirmation, state, ignoredFields } = await call(session, leads().createLead, request);
  submission = { content: "", requestId: "" };
  form.reset();
  const left = ignoredFields.length ? ` Left out: ${ignoredFields.join(", ")}.` : "";
  return `Saved as ${confirmation?.reference}${state === SaveState.DELAYED ? ", in the list in a while" : ""}.${left}`;
}

let nextPage = "";

async function list(pageToken: string): Promise<string> {
  const request = { view: LeadView.MASKED, pageSize: 20, pageToken }; // nothing of it goes on record
  const page = await call(session, leads().listLeads, request);
  if (!pageToken) rows.replaceChildren();
  for (const lead of page.leads) fill(rows.insertRow(), lead);
  nextPage = page.nextPageToken;
  more.hidden = !nextPage;
  return `${rows.rows.length} ${rows.rows.length === 1 ? "lead" : "leads"}.`;
}

function fill(row: HTMLTableRowElement, lead: Lead): void {
  row.replaceChildren();
  for (const text of [...COLUMNS.map((name) => lead[name]), LeadStatus[lead.status]!]) row.insertCell().textContent = text;
  const masked = COLUMNS.filter((name) => lead.maskedFields.includes(name));
  const button = document.createElement("button");
  button.textContent = "Show …";
  button.setAttribute("aria-label", `Show a field of ${lead.name}`);
  button.onclick = () => during(button, () => reveal(row, lead, masked));
  if (masked.length) row.insertCell().append(button);
}

async function reveal(row: HTMLTableRowElement, lead: Lead, masked: string[]): Promise<string> {
  field.replaceChildren(...masked.map((name) => new Option(name, name)));
  const asked = await ask(found("#reveal"));
  const request = { id: lead.id, reveal: { paths: [asked.get("field")!.toString()] } };
  const shown = await call(session, leads().getLead, request, asked.get("reason")!.toString());
  fill(row, shown.lead!);
  return "Shown, and recorded with your reason.";
}

form.onsubmit = (event) => {
  event.preventDefault();
  void during(found("#save"), save);
};
found<HTMLButtonElement>("#refresh").onclick = (event) => during(event.currentTarget as HTMLButtonElement, () => list(""));
more.onclick = () => during(more, () => list(nextPage));
found("#sign-out").onclick = () => {
  sessionStorage.removeItem(TOKEN);
  rows.replaceChildren();
  form.reset();
};
