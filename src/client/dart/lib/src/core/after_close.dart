/// What a close code asks of the client.
enum AfterClose {
  /// The network broke: come back with back-off.
  backOff,

  /// Come back at once, with jitter.
  jitter,

  /// Come back at once, with jitter and a fresh token.
  freshToken,

  /// Come back after a long time.
  longWait,

  /// Somebody else has the slot: stop.
  overwritten,

  /// Coming back would be wrong: stop.
  refused;

  /// The rule for [code].
  static AfterClose of(int code) => switch (code) {
        1002 || 1007 || 1009 || 4002 => refused,
        1008 => longWait,
        1012 => jitter,
        4001 => overwritten,
        4003 => freshToken,
        _ => backOff,
      };
}

/// A stable word for a close code.
String closeName(int code) => switch (code) {
      1000 || 1001 => 'closed',
      1002 => 'protocol_error',
      1007 => 'invalid_utf8',
      1008 => 'policy',
      1009 => 'message_too_big',
      1012 => 'restart',
      1013 => 'overloaded',
      4001 => 'overwritten',
      4002 => 'disconnected',
      4003 => 'token_expired',
      4008 => 'too_slow',
      4009 => 'no_heartbeat',
      _ => 'network',
    };

/// The same in words for a person.
String closeReason(int code) => switch (code) {
      1000 || 1001 => 'the relay closed the connection',
      1002 => 'the two ends do not speak the same protocol',
      1007 => 'a message was not valid UTF-8',
      1008 => 'this client sent more than the relay allows',
      1009 => 'a message was too big for the relay',
      1012 => 'the relay restarts',
      1013 => 'the relay is overloaded',
      4001 => 'another app or tab has taken over',
      4002 => 'an operator ended the connection',
      4003 => 'the token has expired',
      4008 => 'this device read too slowly',
      4009 => 'the relay heard nothing from this device',
      _ => 'the connection broke',
    };

/// Refusals that a fresh token may cure.
const Set<String> tokenRefusals = {
  'missing_token',
  'malformed_token',
  'token_expired',
  'token_not_yet_valid',
  'token_revoked',
  'wrong_audience',
  'wrong_issuer',
  'bad_signature',
  'unknown_key',
};

/// Refusals that stay as they are, whatever this client does.
const Set<String> finalRefusals = {
  'origin_not_allowed',
  'user_disabled',
  'bad_device',
  'unsupported_protocol',
  'bad_request',
};
