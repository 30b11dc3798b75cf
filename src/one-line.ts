/** Text without line breaks or other control characters, where a name or a subject is to stand. */
export const oneLine = (text: string): string => text.replaceAll(/[\p{Cc}\s]+/gu, " ").trim();
