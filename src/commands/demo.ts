import type { DescEnum } from "@bufbuild/protobuf";
import { type Interceptor, type Transport, createClient } from "@connectrpc/connect";
import { AuthService } from "../gen/auth/v1/auth_pb.ts";
import { AccessScope, DecisionReasonSchema, NearMissReasonSchema, OrgService } from "../gen/org/v1/org_pb.ts";
import {
  type Company,
  type DemoClients,
  PEOPLE,
  PLACES,
  type PersonName,
  type PlaceName,
  ROLES,
  createCompany,
} from "./demo-company.ts";
import { callOwnServer } from "./own-server.ts";
import { rootToken } from "./root-token.ts";
import { runCommand } from "./run.ts";

const say = (...lines: readonly string[]) => process.stdout.write(`${lines.join("\n")}\n`);

const nameOf = ({ value }: DescEnum, number: number): string => value[number]?.localName ?? String(number);

const depthOf = (name: PlaceName): number => {
  const { above } = PLACES[name];
  return above === undefined ? 0 : depthOf(above) + 1;
};

const picture = () => {
  const held = Object.entries(PEOPLE).flatMap(([name, assigned]) => (assigned ? [{ name, ...assigned }] : []));
  return (Object.keys(PLACES) as PlaceName[]).map((place) => {
    const here = held.filter((assigned) => assigned.place === place);
    const notes = here.map(({ name, role, inMs }) => `${name} is ${role}${inMs > 0 ? " from next month" : ""}`);
    if (place === "South") notes.push("Dan may see and analyse");
    return `  ${"    ".repeat(depthOf(place))}${place} (${PLACES[place].type})${notes.length > 0 ? `  <- ${notes.join(", ")}` : ""}`;
  });
};

/** Asks one question, and prints the answer with every assignment that speaks for or against it. */
const ask = async ({ org }: DemoClients, company: Company, who: PersonName, capability: string, where: PlaceName) => {
  const { tenantId, people, nodes } = company;
  const check = { tenantId, userId: people[who], nodeId: nodes[where], capability };
  const { allowed, reason, grants, nearMisses } = await org.explainAccess(check);
  say(`  May ${who} ${capability} at ${where}?  ${allowed ? "YES" : "NO"}  ${nameOf(DecisionReasonSchema, reason)}`);
  for (const { roleLabel, path } of grants)
    say(`      by ${roleLabel} at ${path.map(({ label }) => label).join(" > ")}`);
  for (const { roleLabel, why } of nearMisses) say(`      not by ${roleLabel}: ${nameOf(NearMissReasonSchema, why)}`);
};

const tour = async (clients: DemoClients, company: Company) => {
  const { org } = clients;
  const { tenantId, nodes, people } = company;
  say("", "A role counts at its node and everywhere below it:");
  await ask(clients, company, "Ann", "menu.edit", "Duomo");
  await ask(clients, company, "Bob", "menu.edit", "Duomo");
  await ask(clients, company, "Bob", "menu.edit", "Vomero");
  say("", "A no says what came close:");
  await ask(clients, company, "Bob", "report.read", "Duomo");
  await ask(clients, company, "Cleo", "menu.edit", "Navigli");
  say("", "Milan is closed: nothing counts there or below, until it is opened again.");
  await org.deactivateNode({ tenantId, nodeId: nodes.Milan });
  await ask(clients, company, "Ann", "menu.edit", "Duomo");
  await org.activateNode({ tenantId, nodeId: nodes.Milan });
  say("", "Duomo moves to Naples: what was given at Duomo goes with it, what was given above it does not.");
  await org.moveNode({ tenantId, nodeId: nodes.Duomo, newParentNodeId: nodes.Naples });
  await ask(clients, company, "Ann", "menu.edit", "Duomo");
  await ask(clients, company, "Bob", "menu.edit", "Duomo");
  const visible = await org.checkVisibility({
    tenantId,
    userId: people.Dan,
    nodeId: nodes.Duomo,
    scope: AccessScope.READ,
  });
  say(`  May Dan see Duomo?  ${visible.allowed ? "YES" : "NO"}  ${nameOf(DecisionReasonSchema, visible.reason)}`);
  const { users } = await org.listUsersWithAccess({
    tenantId,
    nodeId: nodes.Duomo,
    access: { case: "capability", value: "menu.edit" },
  });
  const names = users.map(({ userId }) => Object.entries(people).find(([, id]) => id === userId)?.[0] ?? userId);
  say(`  Who may menu.edit at Duomo?  ${names.join(", ")}`);
};

/** `npm run demo`: a company, made through the RPCs of the server that runs here, and questions about it. */
await runCommand(async (config) => {
  if (config.production) throw new Error("development only: it makes a tenant that nobody needs");
  const token = await callOwnServer(config, (transport) => rootToken(config, transport));
  const show = async (transport: Transport) => {
    const clients = { auth: createClient(AuthService, transport), org: createClient(OrgService, transport) };
    const company = await createCompany(clients);
    say(`Tenant ${company.tenantId}`, ...picture(), "");
    for (const [role, keys] of Object.entries(ROLES)) say(`  ${role}: ${keys.join(", ")}`);
    await tour(clients, company);
  };
  const asRoot: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  await callOwnServer(config, show, { interceptors: [asRoot] });
});
