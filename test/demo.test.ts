import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { runCommand } from "./support/run-command.ts";
import { startService } from "./support/service.ts";
import { temporaryFolder } from "./support/temporary-folder.ts";

const runDemo = async (): Promise<string> => {
  const { grpcPort, rootSecret } = await startService("grpc");
  const dataDir = await temporaryFolder();
  await writeFile(join(dataDir, "root.secret"), rootSecret, { mode: 0o600 });
  const env = { GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), DATA_DIR: dataDir };
  const { code, stdout, stderr } = await runCommand("demo", [], env);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
};

test("the demo prints what README shows, also where an earlier one has made its capabilities", async () => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  for (let run = 0; run < 2; run++) {
    const [tenant = "", ...lines] = (await runDemo()).trimEnd().split("\n");
    expect(tenant).toMatch(/^Tenant [0-9a-f-]{36}$/);
    expect(readme).toContain(`\n${lines.join("\n")}\n`);
  }
});
