/** Never more than 255 characters of ASCII (OpenID Connect Core, section 2). */
export const GOOGLE_SUBJECT = /^[\x20-\x7e]{1,255}$/;

/** What the column holds: a subject is unique in its tenant, and the column in the database. */
export const subjectKey = (tenantId: string, subject: string): string => `${tenantId.toLowerCase()}:${subject}`;

/** The subject that a column's key holds. */
export const subjectOf = (tenantId: string, key: string): string => {
  const prefix = subjectKey(tenantId, "");
  return key.startsWith(prefix) ? key.slice(prefix.length) : key;
};
