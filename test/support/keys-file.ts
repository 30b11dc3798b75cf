import { rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { temporaryFolder } from "./temporary-folder.ts";

/** A private Ed25519 key, as a JWKS has it. */
export type TestJwk = Readonly<Record<string, string | undefined>>;

/** A JWKS file of the test's own, replaced as a whole as deployments do. */
export interface KeysFile {
  readonly file: string;
  write(text: string): Promise<void>;
  writeKeys(...keys: readonly TestJwk[]): Promise<void>;
}

export const createKeysFile = async (...keys: readonly TestJwk[]): Promise<KeysFile> => {
  const folder = await temporaryFolder();
  const file = join(folder, "keys.json");
  const write = async (text: string) => {
    await writeFile(`${file}.draft`, text);
    await rename(`${file}.draft`, file);
  };
  const writeKeys = (...all: readonly TestJwk[]) => write(JSON.stringify({ keys: all }));
  await writeKeys(...keys);
  return { file, write, writeKeys };
};

/** The key without what signs. */
export const publicOnly = (jwk: TestJwk): TestJwk => ({ ...jwk, d: undefined });
