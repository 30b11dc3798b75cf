import { afterAll } from "vitest";
import { finishFile } from "./per-file.ts";

afterAll(finishFile);
