import { hash, timingSafeEqual } from "node:crypto";
import { type JWTVerifyOptions, errors, jwtVerify } from "jose";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Waiting } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import { normalEmail } from "./contacts.ts";
import { createGoogleKeys } from "./google-keys.ts";
import { GOOGLE_SUBJECT } from "./provider-subjects.ts";

/** What Google says of a person. */
export interface GoogleAccount {
  /** Google's `sub`: 1 to 255 printable characters of ASCII. */
  readonly subject: string;
  /** Normalised as a user's is; undefined where there is none that a user could have. */
  readonly email: string | undefined;
  /** Google claims that the e-mail is the account's. */
  readonly emailVerified: boolean;
  /** Google answers for the e-mail: it is verified, and a gmail.com address or one of a hosted domain. */
  readonly authoritative: boolean;
  readonly name: string | undefined;
}

export interface Google {
  /** @throws ID_TOKEN_INVALID, IDENTITY_PROVIDER_UNAVAILABLE, GOOGLE_NOT_CONFIGURED */
  verify(waiting: Waiting, idToken: string, nonce: string | undefined): Promise<GoogleAccount>;
}

// Both are Google's (https://developers.google.com/identity/openid-connect/reference).
const ISSUERS = ["https://accounts.google.com", "accounts.google.com"];
const CLOCK_TOLERANCE_S = 5;
// Google's tokens live an hour. Where one claims to live longer, it is none that Google gives to people.
const AGE_MAX_S = 86_400;

const claimsOfAccount = z.object({
  sub: z.string().regex(GOOGLE_SUBJECT),
  aud: z.union([z.string(), z.array(z.string())]),
  azp: z.string().optional(),
  nonce: z.string().optional(),
  email: z.string().optional(),
  // Google has sent it as a string too.
  email_verified: z.union([z.boolean(), z.stringbool({ truthy: ["true"], falsy: ["false"] })]).default(false),
  hd: z.string().optional(),
  name: z.string().optional(),
});
type Claims = z.output<typeof claimsOfAccount>;

/** @param claim which of the token's claims is to blame, to help who configures clients. */
const idTokenInvalid = (claim?: string): Refusal => refusal("ID_TOKEN_INVALID", claim === undefined ? {} : { claim });

const isSame = (one: string, other: string) =>
  timingSafeEqual(hash("sha256", one, "buffer"), hash("sha256", other, "buffer"));

/** Several audiences must all be ours, and so must the one that the token was given to (OpenID Connect Core, 3.1.3.7). */
const hasOwnAudience = ({ aud, azp }: Claims, clientIds: readonly string[]) =>
  typeof aud === "string" ||
  aud.length === 1 ||
  (azp !== undefined && [...aud, azp].every((client) => clientIds.includes(client)));

const accountOf = (claims: Claims): GoogleAccount => {
  const email = claims.email === undefined ? undefined : normalEmail(claims.email);
  const emailVerified = claims.email_verified && email !== undefined;
  return {
    subject: claims.sub,
    email,
    emailVerified,
    // Any other address may have passed to somebody else since Google saw it verified.
    authoritative: emailVerified && (email.endsWith("@gmail.com") || !!claims.hd),
    name: claims.name,
  };
};

export const createGoogle = (config: Config["google"]): Google => {
  const keys = createGoogleKeys(config);
  const options: JWTVerifyOptions = {
    // No other: the header must not choose how it is verified (RFC 8725, section 3.1).
    algorithms: ["RS256"],
    issuer: ISSUERS,
    audience: [...config.clientIds],
    requiredClaims: ["exp"],
    maxTokenAge: AGE_MAX_S,
    clockTolerance: CLOCK_TOLERANCE_S,
  };

  const verifiedPayload = async (waiting: Waiting, idToken: string): Promise<unknown> => {
    try {
      const { payload } = await jwtVerify(
        idToken,
        ({ kid }) => (kid === undefined ? Promise.reject(idTokenInvalid()) : keys.find(waiting, kid)),
        options,
      );
      return payload;
    } catch (error) {
      if (error instanceof errors.JWTClaimValidationFailed || error instanceof errors.JWTExpired) {
        throw idTokenInvalid(error.claim);
      }
      throw error instanceof errors.JOSEError ? idTokenInvalid() : error;
    }
  };

  return {
    async verify(waiting, idToken, nonce) {
      if (config.clientIds.length === 0) throw refusal("GOOGLE_NOT_CONFIGURED");
      const { data: claims, error } = claimsOfAccount.safeParse(await verifiedPayload(waiting, idToken));
      if (error) throw idTokenInvalid(error.issues[0]?.path.join("."));
      if (!hasOwnAudience(claims, config.clientIds)) throw idTokenInvalid("aud");
      if (nonce !== undefined && !isSame(claims.nonce ?? "", nonce)) throw idTokenInvalid("nonce");
      return accountOf(claims);
    },
  };
};
