import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { v7 as uuidv7 } from "uuid";
import { type ImportUsersRequest_User, UserState } from "../gen/auth/v1/auth_pb.ts";
import type { Reason } from "../rpc/refusal.ts";
import { DESCRIPTIONS, normalEmail, normalPhone } from "./contacts.ts";
import { isSupportedHash } from "./password-hashes.ts";
import { GOOGLE_SUBJECT, subjectKey } from "./provider-subjects.ts";

/** What a row and a user are compared by; null is none. A password never is. */
interface Content {
  readonly email: string | null;
  readonly phone: string | null;
  readonly displayName: string | null;
  readonly subjectKey: string | null;
  readonly emailVerified: boolean;
  readonly phoneVerified: boolean;
  readonly state: "active" | "inactive";
  /** In milliseconds, as times are answered; undefined is the time of a transaction that has not ended. */
  readonly createdMs: number | undefined;
}

/** A user of any tenant that a row could meet. */
export interface Person extends Content {
  readonly userId: string;
  readonly tenantId: string;
}

/** A row that could stand; what it does not say is undefined. */
export interface ImportRow {
  /** The row's own, or a new one. */
  readonly userId: string;
  readonly isIdChosen: boolean;
  readonly says: { readonly [Name in keyof Content]?: Content[Name] | undefined };
  readonly passwordHash: string | undefined;
}

export type Outcome =
  | { readonly status: "created" | "unchanged"; readonly userId: string }
  | { readonly status: "refused"; readonly userId: string; readonly reason: Reason };

const NANOS_IN_MS = 1_000_000;

/** Not timestampMs, which rounds: a time is cut to the millisecond. */
const msOf = ({ seconds, nanos }: Timestamp): number => Number(seconds) * 1_000 + Math.floor(nanos / NANOS_IN_MS);

/** What a row says of contacts, normalised; undefined also where it is none. */
type Contacts = Pick<ImportRow["says"], "email" | "phone">;

const contactsOf = ({ email, phone }: ImportUsersRequest_User): Contacts => ({
  email: email === undefined ? undefined : normalEmail(email),
  phone: phone === undefined ? undefined : normalPhone(phone),
});

/** What is wrong with a row's own content, where something is. */
export const contentFault = (
  user: ImportUsersRequest_User,
  { email, phone }: Contacts = contactsOf(user),
): string | undefined => {
  if (user.email !== undefined && email === undefined) return `email: ${DESCRIPTIONS.email}`;
  if (user.phone !== undefined && phone === undefined) return `phone: ${DESCRIPTIONS.phone}`;
  if (email === undefined && phone === undefined) return "email, phone: one of them must be there";
  if (user.emailVerified === true && email === undefined) return "email_verified: there is no e-mail address";
  if (user.phoneVerified === true && phone === undefined) return "phone_verified: there is no phone number";
  // One that no token can have would count as a way in, and be none.
  if (user.googleSubject !== undefined && !GOOGLE_SUBJECT.test(user.googleSubject)) {
    return "google_subject: must be printable ASCII";
  }
  return user.state === UserState.ERASED ? "state: nobody is imported erased" : undefined;
};

/** Why a row is refused, whatever else there is. */
const faultOf = (user: ImportUsersRequest_User, says: Contacts): Reason | undefined => {
  if (contentFault(user, says) !== undefined) return "INVALID_REQUEST";
  return user.passwordHash === undefined || isSupportedHash(user.passwordHash)
    ? undefined
    : "PASSWORD_HASH_UNSUPPORTED";
};

/** Reads one row of a request, or says why it cannot stand. */
export const readRow = (tenantId: string, user: ImportUsersRequest_User): ImportRow | Outcome => {
  const says: ImportRow["says"] = {
    ...contactsOf(user),
    displayName: user.displayName,
    subjectKey: user.googleSubject === undefined ? undefined : subjectKey(tenantId, user.googleSubject),
    emailVerified: user.emailVerified,
    phoneVerified: user.phoneVerified,
    state: user.state === undefined ? undefined : user.state === UserState.ACTIVE ? "active" : "inactive",
    createdMs: user.createTime && msOf(user.createTime),
  };
  const chosen = user.userId?.toLowerCase();
  const reason = faultOf(user, says);
  if (reason) return { status: "refused", userId: chosen ?? "", reason };
  return { userId: chosen ?? uuidv7(), isIdChosen: chosen !== undefined, says, passwordHash: user.passwordHash };
};

/** The user that a row makes. */
export const personOf = (tenantId: string, { userId, says }: ImportRow): Person => ({
  userId,
  tenantId,
  email: says.email ?? null,
  phone: says.phone ?? null,
  displayName: says.displayName ?? null,
  subjectKey: says.subjectKey ?? null,
  emailVerified: says.emailVerified ?? false,
  phoneVerified: says.phoneVerified ?? false,
  state: says.state ?? "active",
  createdMs: says.createdMs,
});

const isSame = (says: ImportRow["says"], has: Content): boolean =>
  (Object.keys(says) as (keyof Content)[]).every((name) => says[name] === undefined || says[name] === has[name]);

/** The people that rows are held against, found by what is unique of them. */
export class Directory {
  readonly #tenantId: string;
  readonly #byId = new Map<string, Person>();
  readonly #byEmail = new Map<string, Person>();
  readonly #byPhone = new Map<string, Person>();
  readonly #bySubject = new Map<string, Person>();

  /** @param people users that rows could meet, of whichever tenant. */
  constructor(tenantId: string, people: readonly Person[]) {
    this.#tenantId = tenantId;
    for (const person of people) this.add(person);
  }

  add(person: Person): void {
    this.#byId.set(person.userId, person);
    if (person.tenantId !== this.#tenantId) return;
    if (person.email !== null) this.#byEmail.set(person.email, person);
    if (person.phone !== null) this.#byPhone.set(person.phone, person);
    if (person.subjectKey !== null) this.#bySubject.set(person.subjectKey, person);
  }

  /** Who is in the row's way, and the reason that it then has. */
  #inTheWay({ userId, says }: ImportRow): readonly [Person, Reason] | undefined {
    const owners: readonly (readonly [Person | undefined, Reason])[] = [
      [this.#byId.get(userId), "USER_ID_TAKEN"],
      [this.#byEmail.get(says.email ?? ""), "EMAIL_TAKEN"],
      [this.#byPhone.get(says.phone ?? ""), "PHONE_TAKEN"],
      [this.#bySubject.get(says.subjectKey ?? ""), "IDENTITY_TAKEN"],
    ];
    return owners.find((owner): owner is readonly [Person, Reason] => owner[0] !== undefined);
  }

  /** What becomes of a row: "created" where nobody is in its way. */
  outcomeOf(row: ImportRow): Outcome {
    const met = this.#inTheWay(row);
    if (!met) return { status: "created", userId: row.userId };
    const [person, reason] = met;
    const isOwn = person.tenantId === this.#tenantId && (!row.isIdChosen || person.userId === row.userId);
    // A contact is as good as an id. A Google account is no name of anybody: who is met by it alone has another contact.
    if (isOwn && isSame(row.says, person)) return { status: "unchanged", userId: person.userId };
    return { status: "refused", userId: row.isIdChosen ? row.userId : "", reason };
  }
}
