import { Code } from "@connectrpc/connect";

/**
 * Every reason the service answers with: its one gRPC code, and what it says to people. README's table of errors is held
 * equal to this by a test.
 */
export const REASONS = {
  INVALID_REQUEST: { code: Code.InvalidArgument, message: "the request is not valid" },
  CALLER_TOKEN_INVALID: {
    code: Code.Unauthenticated,
    message: "the call needs a valid service token in `authorization: Bearer <service token>`",
  },
  ACTOR_TOKEN_INVALID: {
    code: Code.Unauthenticated,
    message: "x-actor-token is not a valid access token of the request's tenant",
  },
  SERVICE_CREDENTIALS_INVALID: {
    code: Code.Unauthenticated,
    message: "the service key or secret is wrong, or the service is disabled",
  },
  INVALID_CREDENTIALS: { code: Code.Unauthenticated, message: "the identifier or the password is wrong" },
  INVALID_CODE: { code: Code.Unauthenticated, message: "the code is wrong, spent or expired" },
  ID_TOKEN_INVALID: { code: Code.Unauthenticated, message: "the id token is not valid" },
  SESSION_INVALID: { code: Code.Unauthenticated, message: "the refresh token is not valid, or its session has ended" },
  SESSION_REUSED: {
    code: Code.Unauthenticated,
    message: "the refresh token was used before: its session has ended",
  },
  PERMISSION_MISSING: { code: Code.PermissionDenied, message: "the calling service lacks the permission" },
  PERMISSION_ESCALATION: { code: Code.PermissionDenied, message: "the calling service would hand out what it lacks" },
  TENANT_MISMATCH: {
    code: Code.PermissionDenied,
    message: "the calling service does not act in this tenant, or named none",
  },
  TENANT_NOT_FOUND: { code: Code.NotFound, message: "no such tenant" },
  NODE_NOT_FOUND: { code: Code.NotFound, message: "no such node" },
  ROLE_NOT_FOUND: { code: Code.NotFound, message: "no such role" },
  CAPABILITY_NOT_FOUND: { code: Code.NotFound, message: "no such capability" },
  ASSIGNMENT_NOT_FOUND: { code: Code.NotFound, message: "no such assignment" },
  VISIBILITY_GRANT_NOT_FOUND: { code: Code.NotFound, message: "no such visibility grant" },
  INVITATION_NOT_FOUND: { code: Code.NotFound, message: "no such invitation" },
  USER_NOT_FOUND: { code: Code.NotFound, message: "no such user" },
  IDENTITY_NOT_FOUND: { code: Code.NotFound, message: "no such identity of this user" },
  SESSION_NOT_FOUND: { code: Code.NotFound, message: "no such session" },
  SERVICE_NOT_FOUND: { code: Code.NotFound, message: "no such service" },
  SERVICE_SECRET_NOT_FOUND: { code: Code.NotFound, message: "no such secret of this service" },
  SERVICE_SESSION_NOT_FOUND: { code: Code.NotFound, message: "no such service session" },
  TENANT_ID_TAKEN: { code: Code.AlreadyExists, message: "the tenant id is taken by another content" },
  NODE_ID_TAKEN: { code: Code.AlreadyExists, message: "the node id is taken by another content" },
  ROLE_ID_TAKEN: { code: Code.AlreadyExists, message: "the role id is taken by another content" },
  CAPABILITY_ID_TAKEN: { code: Code.AlreadyExists, message: "the capability id is taken by another content" },
  ASSIGNMENT_ID_TAKEN: { code: Code.AlreadyExists, message: "the assignment id is taken by another content" },
  VISIBILITY_GRANT_ID_TAKEN: {
    code: Code.AlreadyExists,
    message: "the visibility grant id is taken by another content",
  },
  INVITATION_ID_TAKEN: { code: Code.AlreadyExists, message: "the invitation id is taken by another content" },
  ROLE_LABEL_TAKEN: { code: Code.AlreadyExists, message: "the role label is taken" },
  CAPABILITY_KEY_TAKEN: { code: Code.AlreadyExists, message: "the capability key is taken" },
  USER_ID_TAKEN: { code: Code.AlreadyExists, message: "the user id is taken by another content" },
  EMAIL_TAKEN: { code: Code.AlreadyExists, message: "the e-mail is taken" },
  PHONE_TAKEN: { code: Code.AlreadyExists, message: "the phone is taken" },
  IDENTITY_TAKEN: {
    code: Code.AlreadyExists,
    message: "the identity is linked to another user, or the user to another one",
  },
  SERVICE_ID_TAKEN: { code: Code.AlreadyExists, message: "the service id is taken by another content" },
  SERVICE_KEY_TAKEN: { code: Code.AlreadyExists, message: "the service key is taken" },
  TENANT_SUSPENDED: { code: Code.FailedPrecondition, message: "the tenant is suspended" },
  LAST_ROOT_SERVICE: {
    code: Code.FailedPrecondition,
    message: "this is the last active service that may do everything",
  },
  NODE_CYCLE: { code: Code.FailedPrecondition, message: "the node would stand below itself" },
  NODE_TOO_DEEP: { code: Code.FailedPrecondition, message: "the tree would be deeper than TREE_DEPTH_MAX" },
  NODE_IN_USE: { code: Code.FailedPrecondition, message: "the node has children, or something names it" },
  ROLE_IN_USE: {
    code: Code.FailedPrecondition,
    message: "an unended assignment or a pending invitation names the role",
  },
  CAPABILITY_IN_USE: { code: Code.FailedPrecondition, message: "a role has the capability" },
  INVITATION_EXPIRED: { code: Code.FailedPrecondition, message: "the invitation has expired" },
  INVITATION_ENDED: { code: Code.FailedPrecondition, message: "the invitation was accepted or revoked" },
  LOGIN_REQUIRED: {
    code: Code.FailedPrecondition,
    message: "a user with this contact exists and must prove it by x-actor-token",
  },
  USER_ERASED: { code: Code.FailedPrecondition, message: "the user is erased" },
  LAST_IDENTITY: { code: Code.FailedPrecondition, message: "this is the user's last way to sign in" },
  LAST_CONTACT: { code: Code.FailedPrecondition, message: "a user keeps an e-mail or a phone" },
  LINK_REQUIRED: {
    code: Code.FailedPrecondition,
    message: "a user has this e-mail and has not verified it; sign in otherwise and link the identity",
  },
  CHANNEL_UNAVAILABLE: { code: Code.FailedPrecondition, message: "no provider is configured for this channel" },
  GOOGLE_NOT_CONFIGURED: { code: Code.FailedPrecondition, message: "sign-in with Google is not configured" },
  PASSWORD_TOO_WEAK: { code: Code.InvalidArgument, message: "the password is too weak" },
  PASSWORD_HASH_UNSUPPORTED: {
    code: Code.InvalidArgument,
    message: "the password hash is of no supported kind, or its cost is out of bounds",
  },
  RATE_LIMITED: { code: Code.ResourceExhausted, message: "too many tries; try again later" },
  CONFLICT: { code: Code.Aborted, message: "the call conflicted with others too often; try again" },
  CANCELLED: { code: Code.Canceled, message: "the caller cancelled the call" },
  DATABASE_UNAVAILABLE: {
    code: Code.Unavailable,
    message: "the database is out of reach, or took too long; try again",
  },
  OVERLOADED: { code: Code.Unavailable, message: "the service sheds load; try again" },
  IDENTITY_PROVIDER_UNAVAILABLE: {
    code: Code.Unavailable,
    message: "the identity provider is out of reach; try again",
  },
  SHUTTING_DOWN: { code: Code.Unavailable, message: "the server shuts down before the call is answered; try again" },
  STREAM_ENDED: { code: Code.Unavailable, message: "the server ends the stream; resume it" },
  DEADLINE: { code: Code.DeadlineExceeded, message: "the deadline passed" },
  INTERNAL: {
    code: Code.Internal,
    message: "an internal error; its cause stands in the service's log under the request id",
  },
} as const satisfies Record<string, { code: Code; message: string }>;

export type Reason = keyof typeof REASONS;

/** One broken field: `field` is its path in the request's proto names, such as `permissions[2]`. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

interface RefusalOptions {
  readonly violations?: readonly FieldViolation[];
  readonly retryAfterMs?: number;
  readonly cause?: unknown;
}

/** What the service says no with. The pipeline alone turns it into a status, the same for both transports. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly reason: Reason;
  /** Ids and names that help the caller; never a secret, a token or what a person typed. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly violations: readonly FieldViolation[];
  /** Milliseconds after which to try again, told as RetryInfo. */
  readonly retryAfterMs: number | undefined;

  constructor(reason: Reason, metadata: Readonly<Record<string, string>>, options: RefusalOptions = {}) {
    super(reason, options.cause === undefined ? undefined : { cause: options.cause });
    this.reason = reason;
    this.metadata = metadata;
    this.violations = options.violations ?? [];
    this.retryAfterMs = options.retryAfterMs;
    // A refusal is an answer, not a fault: nobody reads its stack, and gathering one is most of what a refusal costs.
    if (options.cause === undefined) delete this.stack;
  }

  get code(): Code {
    return REASONS[this.reason].code;
  }
}

export const refusal = (reason: Reason, metadata: Readonly<Record<string, string>> = {}): Refusal =>
  new Refusal(reason, metadata);

export const invalid = (...violations: readonly FieldViolation[]): Refusal =>
  new Refusal("INVALID_REQUEST", {}, { violations });

/** What is said of a message that cannot be decoded. */
export const unreadable = (cause: unknown, description = "the message cannot be decoded"): Refusal =>
  new Refusal("INVALID_REQUEST", {}, { violations: [{ field: "", description }], cause });
