/// Why a handshake came to nothing.
final class HandshakeFailure {
  /// An answer over HTTP. A [code] says that it is the relay's.
  const HandshakeFailure({
    required this.status,
    this.code = '',
    this.detail = '',
    this.retryAfterMs,
    this.attempt,
  });

  /// No answer: the network broke.
  const HandshakeFailure.network(this.detail)
      : status = 0,
        code = '',
        retryAfterMs = null,
        attempt = null;

  /// The HTTP status; 0 without an answer.
  final int status;

  /// The relay's stable code.
  final String code;

  /// The same in words.
  final String detail;

  /// The relay's `Retry-After`.
  final double? retryAfterMs;

  /// With `superseded`: the attempt that holds the slot.
  final int? attempt;
}
