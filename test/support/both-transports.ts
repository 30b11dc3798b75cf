import { randomNumbers } from "./random.ts";
import { type TestService, clientsOf, speaking, startService } from "./service.ts";

/** A client each of whose calls goes over one of two. */
const byTurns = <Client extends object>(one: Client, other: Client): Client => {
  // Irregular, so that no rhythm of a test's calls leaves the same ones to the same transport. The same in each run.
  const next = randomNumbers(1);
  return new Proxy(one, { get: (_, name): unknown => Reflect.get(next(2) === 0 ? one : other, name) });
};

/**
 * A server with clients whose calls go over both of its ports, mixed. The database decides a race, not the transport:
 * a race with contenders over both holds for each, in half of the rounds that it would take one by one.
 */
export const overBoth = (server: TestService): TestService => {
  const [grpc, connect] = [clientsOf("grpc", server), clientsOf("connect", server)];
  return speaking((headers) => {
    const [one, other] = [grpc(headers), connect(headers)];
    return {
      auth: byTurns(one.auth, other.auth),
      org: byTurns(one.org, other.org),
      services: byTurns(one.services, other.services),
    };
  }, server);
};

/** The file's server, with such clients. */
export const startBoth = async (): Promise<TestService> => overBoth(await startService("grpc"));

/** Races for each subject, so many at once. */
export const raceFor = async <T>(
  subjects: readonly T[],
  atOnce: number,
  race: (subject: T, round: number) => Promise<void>,
): Promise<void> => {
  for (let begun = 0; begun < subjects.length; begun += atOnce) {
    await Promise.all(subjects.slice(begun, begun + atOnce).map((subject, n) => race(subject, begun + n)));
  }
};
