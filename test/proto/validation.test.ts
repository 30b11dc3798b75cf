import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import { expect, test } from "vitest";
import {
  CreateTenantRequestSchema,
  ListAuditEventsRequestSchema,
  ListTenantsRequestSchema,
  TenantState,
  UpdateTenantRequestSchema,
} from "../../src/gen/org/v1/org_pb.ts";
import {
  AuthenticateServiceRequestSchema,
  GetServiceRequestSchema,
  GrantServicePermissionsRequestSchema,
  RegisterServiceRequestSchema,
  RevokeServiceSessionRequestSchema,
  RotateServiceSecretRequestSchema,
  VerifyServiceTokenRequestSchema,
} from "../../src/gen/service_identity/v1/service_identity_pb.ts";

const validator = createValidator();
const id = "01940000-0000-7000-8000-000000000001";
const days = (count: number) => ({ seconds: BigInt(count * 86_400) });

/** What is wrong with a message, as `field rule`. */
function broken<Desc extends DescMessage>(schema: Desc, init: MessageInitShape<Desc>): string[] {
  const result = validator.validate(schema, create(schema, init));
  if (result.kind === "error") throw result.error;
  return (result.violations ?? []).map(
    ({ field, ruleId }) =>
      `${field.map((part) => (part.kind === "list_sub" ? part.index : "name" in part ? part.name : "?")).join(".")} ${ruleId}`,
  );
}

test("ids are UUIDs: required ones are not empty, optional ones may be absent", () => {
  expect(broken(CreateTenantRequestSchema, { label: "Acme" })).toEqual([]);
  expect(broken(CreateTenantRequestSchema, { tenantId: id.toUpperCase(), label: "Acme" })).toEqual([]);
  expect(broken(CreateTenantRequestSchema, { tenantId: "acme", label: "Acme" })).toEqual(["tenant_id string.uuid"]);
  expect(broken(CreateTenantRequestSchema, { tenantId: "", label: "Acme" })).toEqual(["tenant_id string.uuid_empty"]);
  expect(broken(CreateTenantRequestSchema, { tenantId: `${id}\n`, label: "Acme" })).toEqual(["tenant_id string.uuid"]);
  expect(broken(UpdateTenantRequestSchema, { label: "Acme" })).toEqual(["tenant_id string.uuid_empty"]);
});

test("a label has 1 to 200 characters and no U+0000", () => {
  const label = (value: string) => broken(CreateTenantRequestSchema, { label: value });
  expect(label("")).toEqual(["label string.min_len"]);
  expect(label("x".repeat(200))).toEqual([]);
  expect(label("😀".repeat(200))).toEqual([]);
  expect(label("x".repeat(201))).toEqual(["label string.max_len"]);
  expect(label("a\0b")).toEqual(["label string.not_contains"]);
  expect(label("a\\000b")).toEqual([]);
});

test("an update may leave out a label, but not give a bad one", () => {
  expect(broken(UpdateTenantRequestSchema, { tenantId: id })).toEqual([]);
  expect(broken(UpdateTenantRequestSchema, { tenantId: id, label: "\0" })).toEqual(["label string.not_contains"]);
});

test.each(["ab", "root", "a-1", "a".repeat(63)])("%s is a service key", (key) => {
  expect(broken(RegisterServiceRequestSchema, { key, label: "Root" })).toEqual([]);
});

test.each(["", "a", "Root", "1a", "a_b", "ab\n", "ab\0", "a".repeat(64)])("%j is no service key", (key) => {
  expect(broken(RegisterServiceRequestSchema, { key, label: "Root" })).toContain("key string.pattern");
});

test.each(["*", "org.*", "org.node.read", "a_1.b"])("%s is a permission", (permission) => {
  expect(broken(GrantServicePermissionsRequestSchema, { serviceId: id, permissions: [permission] })).toEqual([]);
});

test.each(["", "org.", ".org", "org.*.read", "**", "Org.read", "org read", "org\0", "org\n"])(
  "%j is no permission",
  (permission) => {
    expect(broken(GrantServicePermissionsRequestSchema, { serviceId: id, permissions: ["*", permission] })).toEqual([
      "permissions.1 string.pattern",
    ]);
  },
);

test("a list of permissions has at most 100, each up to 128 characters, no two alike", () => {
  const permissions = Array.from({ length: 101 }, (_, n) => `p${n}`);
  const granted = (list: string[]) =>
    broken(GrantServicePermissionsRequestSchema, { serviceId: id, permissions: list });
  expect(granted(permissions.slice(1))).toEqual([]);
  expect(granted(permissions)).toEqual(["permissions repeated.max_items"]);
  expect(granted([])).toEqual(["permissions repeated.min_items"]);
  expect(granted(["a", "a"])).toEqual(["permissions repeated.unique"]);
  expect(granted(["a".repeat(129)])).toEqual(["permissions.0 string.max_len"]);
});

test("a permission that is asked about is concrete", () => {
  const asked = (permission: string) => broken(VerifyServiceTokenRequestSchema, { serviceToken: "skt_", permission });
  expect(asked("org.node.read")).toEqual([]);
  expect(asked("org.*")).toEqual(["permission string.pattern"]);
  expect(asked("*")).toEqual(["permission string.pattern"]);
});

test("a token's life is above zero and at most a day", () => {
  const ttl = (duration: { seconds?: bigint; nanos?: number }) =>
    broken(AuthenticateServiceRequestSchema, { key: "root", secret: "sks_", ttl: duration });
  expect(broken(AuthenticateServiceRequestSchema, { key: "root", secret: "sks_" })).toEqual([]);
  expect(ttl({ nanos: 1 })).toEqual([]);
  expect(ttl(days(1))).toEqual([]);
  expect(ttl({})).toEqual(["ttl duration.gt_lte"]);
  expect(ttl({ seconds: -1n })).toEqual(["ttl duration.gt_lte"]);
  expect(ttl({ ...days(1), nanos: 1 })).toEqual(["ttl duration.gt_lte"]);
});

test("an overlap is at most seven days, and may be none", () => {
  const overlap = (count: number) => broken(RotateServiceSecretRequestSchema, { serviceId: id, overlap: days(count) });
  expect(overlap(0)).toEqual([]);
  expect(overlap(7)).toEqual([]);
  expect(overlap(8)).toEqual(["overlap duration.gte_lte"]);
  expect(overlap(-1)).toEqual(["overlap duration.gte_lte"]);
});

test("a page size is not negative, a page token is bounded", () => {
  expect(broken(ListTenantsRequestSchema, { pageSize: 2_147_483_647 })).toEqual([]);
  expect(broken(ListTenantsRequestSchema, { pageSize: -1 })).toEqual(["page_size int32.gte"]);
  expect(broken(ListTenantsRequestSchema, { pageToken: "x".repeat(4097) })).toEqual(["page_token string.max_len"]);
  expect(broken(ListTenantsRequestSchema, { pageToken: "\0" })).toEqual(["page_token string.not_contains"]);
});

test("a state to filter by is a declared one", () => {
  expect(broken(ListTenantsRequestSchema, {})).toEqual([]);
  expect(broken(ListTenantsRequestSchema, { state: TenantState.SUSPENDED })).toEqual([]);
  expect(broken(ListTenantsRequestSchema, { state: TenantState.UNSPECIFIED })).toEqual(["state enum.not_in"]);
  expect(broken(ListTenantsRequestSchema, { state: 99 as TenantState })).toEqual(["state enum.defined_only"]);
});

test("one of the selectors must be there, and is held to its own rule", () => {
  expect(broken(GetServiceRequestSchema, {})).toEqual(["selector required"]);
  expect(broken(GetServiceRequestSchema, { selector: { case: "key", value: "root" } })).toEqual([]);
  expect(broken(GetServiceRequestSchema, { selector: { case: "key", value: "" } })).toEqual(["key string.pattern"]);
  expect(broken(RevokeServiceSessionRequestSchema, {})).toEqual(["selector required"]);
  expect(broken(RevokeServiceSessionRequestSchema, { selector: { case: "sessionId", value: "1" } })).toEqual([
    "session_id string.uuid",
  ]);
});

test("a secret or a token has 1 to 4096 characters", () => {
  const secret = (value: string) => broken(AuthenticateServiceRequestSchema, { key: "root", secret: value });
  expect(secret("")).toEqual(["secret string.min_len"]);
  expect(secret("x".repeat(4096))).toEqual([]);
  expect(secret("x".repeat(4097))).toEqual(["secret string.max_len"]);
});

test("a time to filter by lies in the years 1 to 9999", () => {
  const after = (seconds: bigint, nanos = 0) => broken(ListAuditEventsRequestSchema, { after: { seconds, nanos } });
  expect(after(0n)).toEqual([]);
  expect(after(253_402_300_799n, 999_999_999)).toEqual([]);
  expect(after(253_402_300_800n)).toEqual(["after timestamp.gte_lte"]);
  expect(after(-62_135_596_801n)).toEqual(["after timestamp.gte_lte"]);
});
