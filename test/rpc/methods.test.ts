import { clone, create, setExtension } from "@bufbuild/protobuf";
import { MethodDescriptorProtoSchema, MethodOptionsSchema } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { type CallerRule, CallerRuleSchema, caller_rule } from "../../src/gen/caller/v1/caller_pb.ts";
import { BadRequestSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { createLog } from "../../src/log.ts";
import { longLists } from "../../src/rpc/list-bounds.ts";
import { bindMethods } from "../../src/rpc/methods.ts";

/** Binds a method whose proto says this of who may call it. */
const bind = (rule: CallerRule["rule"] | undefined) => {
  const desc = OrgService.method.getTenant;
  const proto = clone(MethodDescriptorProtoSchema, desc.proto);
  proto.options = create(MethodOptionsSchema);
  if (rule) setExtension(proto.options, caller_rule, create(CallerRuleSchema, { rule }));
  const service = { ...OrgService, methods: [{ ...desc, proto }] };
  const handlers = { getTenant: () => Promise.reject(new Error("never called")) };
  return bindMethods([{ service, handlers }], () => () => undefined, createLog("silent"));
};

test.each<[string, CallerRule["rule"] | undefined]>([
  ["nothing", undefined],
  ["a rule that is none", { case: undefined }],
  ["a permission without a name", { case: "permission", value: "" }],
  ["a permission that nobody can be granted", { case: "permission", value: "org.*" }],
  ["that it is not anonymous", { case: "anonymous", value: false }],
])("a method that says %s of its callers ends the start", (_, rule) => {
  expect(() => bind(rule)).toThrow("org.v1.OrgService/GetTenant does not say who may call it");
});

test("a list of whose length nothing is said ends it too", () => {
  expect(() => longLists(BadRequestSchema)).toThrow("field_violations needs the rule repeated.max_items");
});
