import type { Client } from "@connectrpc/connect";
import { Code, ConnectError } from "@connectrpc/connect";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { v7 as uuidv7 } from "uuid";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import { AccessScope, type OrgService } from "../gen/org/v1/org_pb.ts";

export interface DemoClients {
  readonly auth: Client<typeof AuthService>;
  readonly org: Client<typeof OrgService>;
}

/** A company, with the ids of what is in it by their names. */
export interface Company {
  readonly tenantId: string;
  readonly nodes: Readonly<Record<PlaceName, string>>;
  readonly people: Readonly<Record<PersonName, string>>;
}

/** Each place below the one that it names. */
export const PLACES = {
  Trattoria: { type: "company", above: undefined },
  North: { type: "region", above: "Trattoria" },
  Milan: { type: "city", above: "North" },
  Duomo: { type: "shop", above: "Milan" },
  Navigli: { type: "shop", above: "Milan" },
  South: { type: "region", above: "Trattoria" },
  Naples: { type: "city", above: "South" },
  Vomero: { type: "shop", above: "Naples" },
} as const satisfies Record<string, { type: string; above: string | undefined }>;
export type PlaceName = keyof typeof PLACES;

export const ROLES = {
  Manager: ["menu.edit", "menu.read", "report.read"],
  Editor: ["menu.edit", "menu.read"],
} as const;

const CAPABILITIES = ["menu.edit", "menu.read", "report.read"];
const MONTH_MS = 30 * 86_400_000;

/** Who has which role where; `inMs` is when it begins. */
export const PEOPLE = {
  Ann: { role: "Manager", place: "North", inMs: 0 },
  Bob: { role: "Editor", place: "Duomo", inMs: 0 },
  Cleo: { role: "Editor", place: "Milan", inMs: MONTH_MS },
  Dan: undefined,
} as const satisfies Record<string, { role: keyof typeof ROLES; place: PlaceName; inMs: number } | undefined>;
export type PersonName = keyof typeof PEOPLE;

const createCapabilities = async (org: DemoClients["org"]) => {
  for (const key of CAPABILITIES) {
    await org.createCapability({ key }).catch((error: unknown) => {
      // They are the same for all tenants: an earlier run, or somebody else, has made it.
      if (ConnectError.from(error).code !== Code.AlreadyExists) throw error;
    });
  }
};

const createPlaces = async (org: DemoClients["org"], tenantId: string) => {
  const ids = Object.fromEntries(Object.keys(PLACES).map((name) => [name, uuidv7()])) as Record<PlaceName, string>;
  const nodes = Object.entries(PLACES).map(([label, { type, above }]) => ({
    nodeId: ids[label as PlaceName],
    nodeType: type,
    label,
    ...(above !== undefined && { parentNodeId: ids[above] }),
  }));
  await org.batchCreateNodes({ tenantId, nodes });
  return ids;
};

const createRoles = async (org: DemoClients["org"], tenantId: string) => {
  const roles = await Promise.all(
    Object.entries(ROLES).map(async ([label, keys]) => {
      const { role } = await org.createRole({ tenantId, label, capabilityKeys: [...keys] });
      return [label, role?.roleId ?? ""] as const;
    }),
  );
  return Object.fromEntries(roles) as Record<keyof typeof ROLES, string>;
};

/** Makes a company of its own through the RPCs, as any service would. */
export const createCompany = async ({ auth, org }: DemoClients): Promise<Company> => {
  const { tenant } = await org.createTenant({ label: "Trattoria" });
  const tenantId = tenant?.tenantId ?? "";
  await createCapabilities(org);
  const nodes = await createPlaces(org, tenantId);
  const roles = await createRoles(org, tenantId);
  const people = await Promise.all(
    Object.entries(PEOPLE).map(async ([name, assigned]) => {
      const { user } = await auth.createUser({ tenantId, displayName: name, email: `${name}@trattoria.example` });
      const userId = user?.userId ?? "";
      if (assigned) {
        const start = assigned.inMs > 0 ? { startTime: timestampFromMs(Date.now() + assigned.inMs) } : {};
        await org.assignRole({
          tenantId,
          userId,
          nodeId: nodes[assigned.place],
          roleId: roles[assigned.role],
          ...start,
        });
      }
      return [name, userId] as const;
    }),
  );
  const company = { tenantId, nodes, people: Object.fromEntries(people) as Record<PersonName, string> };
  await org.grantVisibility({
    tenantId,
    userId: company.people.Dan,
    nodeId: nodes.South,
    scope: AccessScope.ANALYZE,
  });
  return company;
};
