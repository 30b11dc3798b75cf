import { type BenchService, median } from "./service.ts";
import { type BenchUser, PASSWORD, addBenchTenant, addBenchUser, authClient, logIn } from "./users.ts";

const TRIES = 50;

/** How long a refused login takes, by why it is refused. Target: medians within 10 % of each other. */
export const benchLoginTiming = async (service: BenchService): Promise<void> => {
  const auth = authClient(service);
  const tenantId = await addBenchTenant(service);
  const inactive = await addBenchUser(auth, tenantId, PASSWORD);
  await auth.deactivateUser(inactive);
  const users: Readonly<Record<string, BenchUser>> = {
    "wrong password": await addBenchUser(auth, tenantId, PASSWORD),
    "unknown user": { tenantId, userId: "", email: "nobody@example.com" },
    "no password": await addBenchUser(auth, tenantId),
    inactive,
  };
  const times = new Map<string, number[]>(Object.keys(users).map((who) => [who, []]));
  // In turn, so that whatever else the machine does falls on all alike.
  for (let round = 0; round < TRIES; round++) {
    for (const [who, user] of Object.entries(users)) {
      const started = performance.now();
      const refused = await logIn(auth, user, "not the password").then(
        () => false,
        () => true,
      );
      if (!refused) throw new Error(`a login with ${who} was answered`);
      times.get(who)?.push(performance.now() - started);
    }
  }
  const medians = [...times].map(([who, values]) => ({ who, ms: median(values) }));
  console.table(medians.map(({ who, ms }) => ({ refused: who, "median ms": ms.toFixed(2) })));
  const all = medians.map(({ ms }) => ms);
  const spread = Math.max(...all) / Math.min(...all) - 1;
  console.log(`refused logins: medians of ${TRIES} within ${(spread * 100).toFixed(1)} % (target: 10 %)`);
};
