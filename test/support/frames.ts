/** A message as gRPC, gRPC-Web and Connect's streams frame it: flags, its length, itself. */
export const frame = (message: Uint8Array | string, flags = 0): Buffer<ArrayBuffer> => {
  const data = Buffer.from(message as string);
  const head = Buffer.from([flags, 0, 0, 0, 0]);
  head.writeUInt32BE(data.length, 1);
  return Buffer.concat([head, data]);
};

/** What a client of HTTP/2 says first: that it is one, and no settings. */
export const HTTP2_PREFACE = Buffer.concat([
  Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
  Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]),
]);
