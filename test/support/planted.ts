import { randomUUID } from "node:crypto";
import type { DescMessage, DescService } from "@bufbuild/protobuf";
import { AuthService, OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { AccessScope, OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { codeOf, launchForCodes } from "./codes.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "./google-issuer.ts";
import { invite } from "./invitations.ts";
import type { Known } from "./messages.ts";
import { onFileFinished } from "./per-file.ts";
import { addCapabilities, addRole } from "./roles.ts";
import type { Rpc } from "./rpcs.ts";
import type { TestService, TransportName } from "./service.ts";
import { addChain } from "./trees.ts";
import { uniqueEmail, uniquePhone } from "./users.ts";

/** Where things are planted. */
export interface Ground {
  readonly server: TestService;
  readonly issuer: GoogleIssuer;
  readonly tenantId: string;
}

/** What a service needs to bear any number of calls: tries are counted late or never, hashing is cheap. */
export const patience = { OTP_REQUEST_INTERVAL: "0s", OTP_REQUESTS_PER_HOUR: "1000" };

/** A server that any number of calls gets through to, and that trusts an issuer of ours. */
export const launchForStorm = async (transport: TransportName): Promise<Omit<Ground, "tenantId">> => {
  const issuer = await startGoogleIssuer();
  onFileFinished(issuer.close);
  return { server: await launchForCodes(transport, { ...issuer.env, ...patience }), issuer };
};

/** What a request can name, and how it comes to be there. */
interface Thing {
  readonly names: readonly string[];
  /** The only service whose requests mean it by these names; any service's where it is not named. */
  readonly of?: DescService;
  /** @param known what the things before it have planted. */
  plant(ground: Ground, rpc: string, known: Known): Promise<Known>;
}

const first = (known: Known, name: string) => known[name]?.[0] ?? "";

const userOf = ({ tenantId }: Ground, known: Known) => ({ tenantId, userId: first(known, "user_id") });

const user: Thing = {
  names: [
    ...["user_id", "user_ids", "email", "phone", "destination", "password", "current_password", "new_password"],
    ...[
      "identity_id",
      "id_token",
      "otp_id",
      "session_id",
      "refresh_token",
      "access_token",
      "assignment_id",
      "grant_id",
    ],
  ],
  async plant({ server, tenantId }) {
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const [displayName, password, newPassword] = ["Person", "pass phrase", "new phrase"].map(
      (text) => `${text} ${randomUUID()}`,
    ) as [string, string, string];
    const created = await server.auth.createUser({ tenantId, email, phone, displayName, password });
    const { userId } = created.user!;
    return {
      user_id: [userId],
      user_ids: [userId],
      email: [email],
      phone: [phone],
      destination: [email],
      channel: ["OTP_CHANNEL_EMAIL"],
      display_name: [displayName],
      prefix: [email.slice(0, 10)],
      password: [password],
      current_password: [password],
      new_password: [newPassword],
    };
  },
};

const session: Thing = {
  names: ["session_id", "keep_session_id", "refresh_token", "access_token"],
  of: AuthService,
  async plant({ server, tenantId }, _rpc, known) {
    const identifier = { case: "email", value: first(known, "email") } as const;
    const { tokens } = await server.auth.loginWithPassword({
      tenantId,
      identifier,
      password: first(known, "password"),
    });
    const { sessionId, refreshToken, accessToken } = tokens!;
    const ids = { session_id: [sessionId], keep_session_id: [sessionId] };
    return { ...ids, refresh_token: [refreshToken], access_token: [accessToken] };
  },
};

const PURPOSES: Readonly<Record<string, OtpPurpose>> = {
  LoginWithOtp: OtpPurpose.LOGIN,
  VerifyContact: OtpPurpose.VERIFY_EMAIL,
  ResetPassword: OtpPurpose.RESET_PASSWORD,
};

const code: Thing = {
  names: ["otp_id"],
  async plant({ server, tenantId }, rpc, known) {
    const purpose = PURPOSES[rpc] ?? OtpPurpose.LOGIN;
    const destination = first(known, "email");
    const { otpId } = await server.auth.requestOtp({ tenantId, channel: OtpChannel.EMAIL, destination, purpose });
    return { otp_id: [otpId], code: [await codeOf(server, otpId)] };
  },
};

/** What makes an identity of a token that nobody has yet. */
const LINKS = /^LinkGoogleIdentity$/;

const google: Thing = {
  names: ["id_token", "identity_id"],
  async plant(ground, rpc, known) {
    const idToken = await ground.issuer.token({ claims: person() });
    if (LINKS.test(rpc)) return { id_token: [idToken] };
    const { identity } = await ground.server.auth.linkGoogleIdentity({ ...userOf(ground, known), idToken });
    return { id_token: [idToken], identity_id: [identity!.identityId] };
  },
};

const node: Thing = {
  names: ["node_id", "parent_node_id", "new_parent_node_id", "assignment_id", "grant_id"],
  async plant({ server, tenantId }) {
    const [parentId = "", nodeId = ""] = await addChain(server, tenantId, 2);
    const [otherId = ""] = await addChain(server, tenantId, 1);
    return { node_id: [nodeId], parent_node_id: [parentId], new_parent_node_id: [otherId] };
  },
};

const capability: Thing = {
  names: ["capability", "capability_keys", "key"],
  of: OrgService,
  async plant({ server }) {
    const keys = await addCapabilities(server, "a", "b");
    return { capability: keys, capability_keys: keys, key: keys };
  },
};

const role: Thing = {
  names: ["role_id", "assignment_id"],
  async plant({ server, tenantId }, _rpc, known) {
    const { roleId } = await addRole(server, { tenantId, capabilityKeys: known["capability_keys"] ?? [] });
    return { role_id: [roleId] };
  },
};

const assignment: Thing = {
  names: ["assignment_id"],
  async plant(ground, _rpc, known) {
    const place = { ...userOf(ground, known), nodeId: first(known, "node_id") };
    const assigned = await ground.server.org.assignRole({ ...place, roleId: first(known, "role_id") });
    return { assignment_id: [assigned.assignment!.assignmentId] };
  },
};

const grant: Thing = {
  names: ["grant_id"],
  async plant(ground, _rpc, known) {
    const place = { ...userOf(ground, known), nodeId: first(known, "node_id") };
    const granted = await ground.server.org.grantVisibility({ ...place, scope: AccessScope.ANALYZE });
    return { grant_id: [granted.grant!.grantId] };
  },
};

const invitation: Thing = {
  names: ["invitation_id", "invite_token"],
  async plant({ server, tenantId }) {
    const { token, invitation: made } = await invite(server, { tenantId });
    return { invitation_id: [made.invitationId], invite_token: [token] };
  },
};

const service: Thing = {
  names: ["service_id", "service_token", "session_id", "key"],
  of: ServiceIdentityService,
  async plant({ server, tenantId }) {
    const { serviceId, secretId, secret, token, key } = await server.addService(["a.read"], tenantId);
    return {
      service_id: [serviceId],
      secret_id: [secretId],
      session_id: [token.split("_")[1] ?? ""],
      service_token: [token],
      secret: [secret],
      key: [key],
      permissions: ["a.read"],
    };
  },
};

const event: Thing = {
  names: ["entity_id", "after_audit_id"],
  async plant({ server, tenantId }) {
    const { events } = await server.org.listAuditEvents({ tenantId });
    return { entity_id: [tenantId], after_audit_id: [events.at(-1)?.auditId ?? ""] };
  },
};

/** Each after those that it is made of. */
const THINGS = [
  ...[user, session, code, google, node, capability, role, assignment, grant, invitation, service, event],
];

/** What these RPCs make: it must not be there. */
const MADE: Readonly<Record<string, readonly string[]>> = {
  CreateUser: ["user_id"],
  ImportUsers: ["user_id"],
  CreateTenant: ["tenant_id"],
  CreateNode: ["node_id"],
  BatchCreateNodes: ["node_id"],
  CreateCapability: ["capability_id", "key"],
  CreateRole: ["role_id"],
  AssignRole: ["assignment_id"],
  GrantVisibility: ["grant_id"],
  CreateInvitation: ["invitation_id", "phone"],
  RegisterService: ["service_id", "key"],
};

const GIVE_CONTACTS = new Set(["CreateUser", "ImportUsers", "UpdateUser", "CreateInvitation"]);

/** Whether an RPC gives somebody a contact, which nobody may have yet. */
export const givesContact = ({ name }: Rpc): boolean => GIVE_CONTACTS.has(name);

/** The proto names of all that a message can have in it. */
export const fieldNames = (desc: DescMessage): readonly string[] =>
  desc.fields.flatMap((field) => [field.name, ...(field.message ? fieldNames(field.message) : [])]);

/** What a request of this RPC can name. */
const thingsOf = ({ method }: Rpc): readonly Thing[] => {
  const names = new Set(fieldNames(method.input));
  return THINGS.filter(
    (thing) => (thing.of === undefined || thing.of === method.parent) && thing.names.some((name) => names.has(name)),
  );
};

/** Plants one after the other, and answers with what each has added. */
const plantThings = async (ground: Ground, rpc: string, things: readonly Thing[]) => {
  const planted = new Map<Thing, Known>();
  let known: Known = { tenant_id: [ground.tenantId] };
  for (const thing of things) {
    const added = await thing.plant(ground, rpc, known);
    planted.set(thing, added);
    known = { ...known, ...added };
  }
  return planted;
};

/** Of what was planted, that of which a request of this RPC is made. */
const knownOf = ({ tenantId }: Ground, rpc: Rpc, planted: ReadonlyMap<Thing, Known>): Known => {
  const parts = thingsOf(rpc).flatMap((thing) => Object.entries(planted.get(thing) ?? {}));
  const contacts = givesContact(rpc) ? { email: [uniqueEmail()], phone: [uniquePhone()] } : {};
  const made = MADE[rpc.name] ?? [];
  const known = [["tenant_id", [tenantId]] as const, ...parts, ...Object.entries(contacts)];
  return Object.fromEntries(known.filter(([field]) => !made.includes(field)));
};

/** Plants all that a request of this RPC can name, and answers with it: a request made of it is answered without an error. */
export const plantFor = async (ground: Ground, rpc: Rpc): Promise<Known> =>
  knownOf(ground, rpc, await plantThings(ground, rpc.name, thingsOf(rpc)));

/** As `plantFor`, but plants once for all RPCs that can mean the same: those that change nothing of it. */
export const plantShared = (ground: Ground): ((rpc: Rpc) => Promise<Known>) => {
  const shared = new Map<string, ReturnType<typeof plantThings>>();
  return async (rpc) => {
    const { name, method } = rpc;
    const key = [method.parent.typeName, PURPOSES[name], LINKS.test(name)].join();
    const ofService = THINGS.filter(({ of }) => of === undefined || of === method.parent);
    const planted = shared.get(key) ?? plantThings(ground, name, ofService);
    shared.set(key, planted);
    return knownOf(ground, rpc, await planted);
  };
};
