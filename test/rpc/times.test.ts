import { create } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { DurationRulesSchema } from "../../src/gen/buf/validate/validate_pb.ts";
import { brokenTimes } from "../../src/rpc/times.ts";

const good = create(DurationSchema, { seconds: 1n });
const broken = create(DurationSchema, { seconds: 1n, nanos: -1 });

test("the chosen member of a oneof is looked at", () => {
  const look = brokenTimes(DurationRulesSchema);
  const rules = create(DurationRulesSchema, {
    lessThan: { case: "lte", value: broken },
    greaterThan: { case: "gt", value: good },
  });
  expect(look(rules).map(({ field }) => field)).toEqual(["lte"]);
  expect(look(create(DurationRulesSchema))).toEqual([]);
});
