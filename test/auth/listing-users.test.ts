import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type User, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { type Planted, addUser, plantUsers, uniqueEmail } from "../support/users.ts";

interface Filter {
  readonly tenantId: string;
  readonly state?: UserState;
  readonly prefix?: string;
}

/** Every page of a list; a list that does not end fails. */
const pagesOf = async ({ auth }: TestService, filter: Filter, pageSize = 1_000): Promise<readonly User[][]> => {
  const pages: User[][] = [];
  for (let pageToken = ""; pages.length < 500;) {
    const page = await auth.listUsers({ ...filter, pageSize, pageToken });
    expect(page.users.length).toBeLessThanOrEqual(pageSize);
    pages.push(page.users);
    pageToken = page.nextPageToken;
    if (pageToken === "") return pages;
  }
  return expect.fail("the list did not end");
};

const listed = async (server: TestService, filter: Filter, pageSize?: number) =>
  (await pagesOf(server, filter, pageSize)).flat();

const idsOf = (users: readonly User[]) => users.map(({ userId }) => userId);

const byBytes = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));

/** The ids that a search answers with, in its order, worked out over plain arrays. */
const model = (users: readonly (Planted & { readonly userId: string })[], prefix: string) => {
  const digits =
    /^[\s().-]*\+?[\d\s().-]*$/.test(prefix) && /[+\d]/.test(prefix) ? `+${prefix.replace(/\D/g, "")}` : undefined;
  const stages = [
    [({ email }: Planted) => email, prefix.trim().toLowerCase() || undefined],
    [({ phone }: Planted) => phone, digits],
    [({ name }: Planted) => name, prefix],
  ] as const;
  const seen = new Set<string>();
  return stages.flatMap(([read, start]) => {
    const found = users
      .filter((user) => start !== undefined && read(user)?.startsWith(start) && !seen.has(user.userId))
      .sort((a, b) => byBytes(read(a) ?? "", read(b) ?? "") || byBytes(a.userId, b.userId));
    for (const { userId } of found) seen.add(userId);
    return found.map(({ userId }) => userId);
  });
};

describe.each(transports)("%s", (transport) => {
  test("users are listed by id, each once over pages, and by state where one is asked for", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = await Promise.all(Array.from({ length: 9 }, () => addUser(server, { tenantId })));
    await addUser(server);
    const ids = idsOf(users).sort();
    const [inactive, erased, active] = [ids.slice(0, 3), ids.slice(3, 5), ids.slice(5)];
    for (const userId of [...inactive, ...erased.slice(0, 1)]) await server.auth.deactivateUser({ tenantId, userId });
    for (const userId of erased) await server.auth.eraseUser({ tenantId, userId });
    const states = [undefined, UserState.ACTIVE, UserState.INACTIVE, UserState.ERASED] as const;
    const expected = [ids, active, inactive, erased];
    for (const [at, state] of states.entries()) {
      for (const size of [1, 2, 1_000]) {
        const found = await listed(server, { tenantId, ...(state && { state }) }, size);
        expect(idsOf(found)).toEqual(expected[at]);
        if (state) for (const user of found) expect(user.state).toBe(state);
      }
    }
    expect((await listed(server, { tenantId }))[0]).toEqual(
      (await server.auth.getUser({ tenantId, key: { case: "userId", value: ids[0]! } })).user,
    );
  });

  test("a prefix finds e-mails first, then phones, then names, each user once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [both, mail, name, phone, other] = await plantUsers(server, tenantId, [
      { email: "ann@b.example", phone: null, name: "ann" },
      { email: "ann@a.example", phone: null, name: null },
      { email: "bob@a.example", phone: null, name: "anna" },
      { email: "cy@a.example", phone: "+4915112345678", name: "+49 is a name" },
      { email: "dan@a.example", phone: "+4315112345678", name: "ANN" },
    ]);
    const search = async (prefix: string, size?: number) => idsOf(await listed(server, { tenantId, prefix }, size));
    for (const size of [1, 2, 3, 1_000]) expect(await search("ann", size)).toEqual([mail, both, name]);
    expect(await search("ANN")).toEqual([mail, both, other]);
    const phones = ["+49", "49", "+49 151", " 4915112345678 ", "+49-151", "(+49) 151", "49.151", "+49 (151) 1-2"];
    for (const prefix of phones) expect(await search(prefix)).toEqual([phone]);
    for (const blanks of [" ANN@A ", "\tann@a"]) expect(await search(blanks)).toEqual([mail]);
    for (const nothing of [" ", "\t", "()", "."]) expect(await search(nothing)).toEqual([]);
    expect(await search("+")).toEqual([other, phone]);
    expect(await search("ann@a.example.com")).toEqual([]);
  });

  test("wildcards of SQL are letters as any other", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [percent, underscore] = await plantUsers(server, tenantId, [
      { email: "%@a.example", phone: null, name: null },
      { email: "_x@a.example", phone: null, name: null },
      { email: "ann@a.example", phone: null, name: "\\ann" },
    ]);
    expect(idsOf(await listed(server, { tenantId, prefix: "%" }))).toEqual([percent]);
    expect(idsOf(await listed(server, { tenantId, prefix: "_" }))).toEqual([underscore]);
    expect(await listed(server, { tenantId, prefix: "\\" })).toHaveLength(1);
    expect(await listed(server, { tenantId, prefix: "\\_" })).toEqual([]);
  });

  test("what begins with a prefix ends at the next code point, at the ends of Unicode too", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const names = [
      "a",
      "b",
      "\u{d7ff}",
      "\u{d7ff}x",
      "\u{e000}",
      "\u{10ffff}",
      "\u{10ffff}x",
      "a\u{10ffff}\u{10ffff}x",
    ];
    await plantUsers(
      server,
      tenantId,
      names.map((name) => ({ email: null, phone: null, name })),
    );
    for (const prefix of names) {
      const found = await listed(server, { tenantId, prefix });
      expect(found.map(({ displayName }) => displayName)).toEqual(
        names.filter((name) => name.startsWith(prefix)).sort(byBytes),
      );
    }
  });

  test("a search answers what plain arrays do, whatever the prefix and the page", async () => {
    const server = await startService(transport);
    // Neighbours of the bounds that a range of prefixes has: the ends of Unicode and of its gap of surrogates.
    const letter = fc.constantFrom(
      "a",
      "A",
      "b",
      "%",
      "+",
      "1",
      " ",
      "-",
      "(",
      "\ud7ff",
      "\ue000",
      "\u{10ffff}",
      "\u{10000}",
      "é",
    );
    const word = (max: number) => fc.string({ unit: letter, minLength: 1, maxLength: max });
    const user = fc.record({
      email: fc.option(word(4).map((text) => text.toLowerCase())),
      phone: fc.option(fc.stringMatching(/^\+[12]{1,3}$/)),
      name: fc.option(word(4)),
    });
    const users = fc.tuple(
      fc.uniqueArray(user, { maxLength: 25, selector: ({ email }) => email ?? Symbol() }),
      fc.array(fc.oneof(word(2), fc.stringMatching(/^\(?\+?[12 .)-]{1,3}$/)), { minLength: 6, maxLength: 6 }),
      fc.integer({ min: 1, max: 7 }),
    );
    await fc.assert(
      fc.asyncProperty(users, async ([made, prefixes, size]) => {
        const tenantId = await server.addTenant();
        const phones = new Set<string>();
        const planted = made.map((one) => {
          const isTaken = one.phone !== null && phones.has(one.phone);
          if (one.phone !== null) phones.add(one.phone);
          return isTaken ? { ...one, phone: null } : one;
        });
        const ids = await plantUsers(server, tenantId, planted);
        const known = planted.map((one, at) => ({ ...one, userId: ids[at]! }));
        for (const prefix of prefixes) {
          expect(idsOf(await listed(server, { tenantId, prefix }, size))).toEqual(model(known, prefix));
        }
      }),
      { numRuns: 25 },
    );
  });

  test("a search for a rare state looks through a bounded number of users for each page, and misses none", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = Array.from({ length: 4_500 }, (_, n): Planted => {
      const number = String(n).padStart(5, "0");
      return { email: `user${number}@a.example`, phone: null, name: `user ${number}` };
    });
    users[4_400] = { ...users[4_400]!, state: "inactive" };
    const ids = await plantUsers(server, tenantId, users);
    const pages = await pagesOf(server, { tenantId, prefix: "user", state: UserState.INACTIVE }, 10);
    expect(idsOf(pages.flat())).toEqual([ids[4_400]]);
    // 2,000 at a time, once by e-mail and once by name.
    expect(pages.map((page) => page.length)).toEqual([0, 0, 1, 0, 0]);
    expect(idsOf(await listed(server, { tenantId, prefix: "user" }))).toEqual(ids);
  });

  test("who is there throughout is listed once, whoever comes and goes meanwhile", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const numbers = Array.from({ length: 30 }, (_, n) => String(n + 10));
    const make = (n: string): Planted => ({ email: `a${n}@a.example`, phone: null, name: `a${n}` });
    const ids = await plantUsers(server, tenantId, numbers.map(make));
    const seen: string[] = [];
    let pageToken = "";
    for (let page = 0; page === 0 || pageToken !== ""; page++) {
      const answer = await server.auth.listUsers({ tenantId, prefix: "a", pageSize: 4, pageToken });
      seen.push(...idsOf(answer.users));
      pageToken = answer.nextPageToken;
      await plantUsers(server, tenantId, [make(`${page}x`)]);
      if (page === 0) await server.auth.eraseUser({ tenantId, userId: ids[29]! });
    }
    expect(seen.filter((id) => ids.includes(id))).toEqual(ids.slice(0, 29));
    expect(new Set(seen).size).toBe(seen.length);
  });

  test("erased users begin with nothing, and unknown tenants have no users", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server, { email: uniqueEmail(), displayName: "ann" });
    await server.auth.eraseUser({ tenantId, userId });
    expect(await listed(server, { tenantId, prefix: "a" })).toEqual([]);
    expect(await listed(server, { tenantId, prefix: "a", state: UserState.ERASED })).toEqual([]);
    expect(await listed(server, { tenantId: randomUUID() })).toEqual([]);
    expect(await listed(server, { tenantId: randomUUID(), prefix: "a" })).toEqual([]);
  });

  test("a token belongs to its filters, and a broken one is refused", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    await plantUsers(server, tenantId, [
      { email: "a1@a.example", phone: null, name: null },
      { email: "a2@a.example", phone: null, name: null },
    ]);
    const first = { tenantId, prefix: "a", pageSize: 1 };
    const { nextPageToken: pageToken } = await server.auth.listUsers(first);
    expect(pageToken).not.toBe("");
    const [filters] = JSON.parse(Buffer.from(pageToken, "base64url").toString()) as [string];
    const forged = (key: unknown) => Buffer.from(JSON.stringify([filters, key])).toString("base64url");
    const others = [
      { ...first, prefix: "b", pageToken },
      { ...first, state: UserState.ACTIVE, pageToken },
      { tenantId, pageToken },
      { ...first, tenantId: await server.addTenant(), pageToken },
      { ...first, pageToken: "x" },
      { ...first, pageToken: forged(["email", "a1@a.example", "x"]) },
      { ...first, pageToken: forged(["word", "a1@a.example", randomUUID()]) },
      { ...first, pageToken: forged(randomUUID()) },
    ];
    for (const request of others) {
      expect((await expectRefusal(server.auth.listUsers(request), "INVALID_REQUEST")).fields).toEqual(["page_token"]);
    }
    expect((await server.auth.listUsers({ ...first, pageToken })).users).toHaveLength(1);
  });

  test.each([
    [{ state: 0 }, "state"],
    [{ state: 9 }, "state"],
    [{ prefix: "" }, "prefix"],
    [{ prefix: "x".repeat(255) }, "prefix"],
    [{ pageSize: -1 }, "page_size"],
    [{ tenantId: "acme" }, "tenant_id"],
  ])("a list with %j names the field %s", async (request, field) => {
    const server = await startService(transport);
    const list = server.auth.listUsers({ tenantId: await server.addTenant(), ...request } as Filter);
    expect((await expectRefusal(list, "INVALID_REQUEST")).fields).toEqual([field]);
  });
});
