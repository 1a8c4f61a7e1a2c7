import 'types.dart';

/// What happens beside frames, messages, peers and states.
sealed class RelayEvent {
  /// An event.
  const RelayEvent();
}

/// A socket was welcomed: the first one, one after a break, or one that
/// replaced another without a gap.
final class Welcomed extends RelayEvent {
  /// An event, as the library reports it.
  const Welcomed(this.welcome);

  /// The relay's message.
  final Welcome welcome;
}

/// Another connection took this one's slot, and the client stops.
final class Overwritten extends RelayEvent {
  /// An event, as the library reports it.
  const Overwritten({this.connection, this.generation, this.sameClient});

  /// The new holder; null where the relay could not name it.
  final String? connection;

  /// The new holder's number; null where the relay could not name it.
  final int? generation;

  /// Whether the new holder uses this client's own id.
  final bool? sameClient;
}

/// The relay does not let this client in.
final class Refused extends RelayEvent {
  /// An event, as the library reports it.
  const Refused({
    required this.status,
    required this.code,
    required this.detail,
    required this.isFinal,
    this.retryAfter,
  });

  /// The HTTP status; 0 when a close code said it, or the library itself.
  final int status;

  /// The relay's stable code, or `disconnected`, `message_too_big`,
  /// `protocol_error`, `invalid_utf8`.
  final String code;

  /// The same in words.
  final String detail;

  /// Whether the client stops here, until `connect()`.
  final bool isFinal;

  /// When the relay wants to see this client again.
  final Duration? retryAfter;
}

/// Something went wrong, and the connection goes on.
final class RelayError extends RelayEvent {
  /// An event, as the library reports it.
  const RelayError(this.code, this.detail, {this.id});

  /// The relay's code, or one of the client's own.
  ///
  /// `token_unavailable`: `getToken` failed. `unsent`: the client stopped with
  /// messages in its queue. `too_big`: the message is over the relay's limit.
  /// `upgrade_blocked`: HTTP gets through, and no WebSocket.
  final String code;

  /// The same in words.
  final String detail;

  /// The id of the message that it is about.
  final String? id;

  @override
  String toString() => '$code: $detail';
}

/// The connection ended by itself.
final class LinkClosed extends RelayEvent {
  /// An event, as the library reports it.
  const LinkClosed(this.code, this.reason, {required this.willReconnect});

  /// The close code (RFC 6455 section 7.4); 1006 when the network broke.
  final int code;

  /// The relay's words, or the library's.
  final String reason;

  /// Whether the client comes back by itself.
  final bool willReconnect;
}

/// The token ends soon; a fresh one is under way without any help.
final class Expiring extends RelayEvent {
  /// An event, as the library reports it.
  const Expiring(this.expiresAt);

  /// When the token ends.
  final DateTime expiresAt;
}

/// The relay took a fresh token.
final class Authenticated extends RelayEvent {
  /// An event, as the library reports it.
  const Authenticated(this.expiresAt);

  /// When the fresh token ends.
  final DateTime expiresAt;
}

/// The relay lost its way to other relays, or has it again.
final class BackplaneChanged extends RelayEvent {
  /// An event, as the library reports it.
  const BackplaneChanged({required this.isUp});

  /// Whether the other device can be reached on whichever relay it is.
  final bool isUp;
}

/// This socket will end; the next one opens before that without any help.
final class ReconnectAsked extends RelayEvent {
  /// An event, as the library reports it.
  const ReconnectAsked(this.reason, {required this.after});

  /// `draining` or `lifetime`.
  final String reason;

  /// When the next socket opens.
  final Duration after;
}

/// A round trip between this device and the relay was measured.
final class RttMeasured extends RelayEvent {
  /// An event, as the library reports it.
  const RttMeasured(this.rtt);

  /// The round trip.
  final Duration rtt;
}

/// The delay each way was estimated anew.
final class DelayMeasured extends RelayEvent {
  /// An event, as the library reports it.
  const DelayMeasured(this.delay);

  /// The estimate.
  final Delay delay;
}

/// The other device takes reliable messages too slowly, or takes them again.
final class PressureChanged extends RelayEvent {
  /// An event, as the library reports it.
  const PressureChanged({required this.isHigh});

  /// Whether reliable messages wait here.
  final bool isHigh;
}
