/** A password as it is hashed and compared (NIST SP 800-63B-4, 3.1.1.2): one text, however a keyboard composes it. */
export const normalPassword = (password: string): string => password.normalize("NFKC");
