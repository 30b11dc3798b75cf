import { startGoogleIssuer } from "./google-issuer.ts";
import { onFileFinished } from "./per-file.ts";
import { type TransportName, launchForFile } from "./service.ts";

export interface LoginOptions {
  readonly createUser?: boolean;
  readonly tenantId?: string;
  readonly client?: { readonly ip?: string; readonly userAgent?: string };
}

/** A server that trusts an issuer of its own, with a tenant to sign in to; both end with the file. */
export const launchForGoogle = async (transport: TransportName) => {
  const issuer = await startGoogleIssuer();
  onFileFinished(issuer.close);
  const service = await launchForFile(transport, { env: issuer.env });
  const tenantId = await service.addTenant();

  const login = async (claims: object, options: LoginOptions = {}) =>
    service.auth.loginWithGoogle({ tenantId, idToken: await issuer.token({ claims: { ...claims } }), ...options });
  const create = (claims: object, options: LoginOptions = {}) => login(claims, { createUser: true, ...options });
  const identitiesOf = async (userId: string, tenant = tenantId) =>
    (await service.auth.listIdentities({ tenantId: tenant, userId })).identities;
  return { issuer, service, tenantId, login, create, identitiesOf };
};

export type GoogleLogins = Awaited<ReturnType<typeof launchForGoogle>>;
