/** What was answered, as text. @throws where it is larger: somebody else's server is not to fill our memory. */
export const boundedText = async ({ body }: Response, maxBytes: number): Promise<string> => {
  const parts: AsyncIterable<Uint8Array> | readonly never[] = body ?? [];
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of parts) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new Error(`the answer has more than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
};
