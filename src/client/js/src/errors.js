/** Why something was not sent, or not delivered; the codes are in duorelay.d.ts. */
export class SendError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "SendError";
    this.code = code;
  }
}
