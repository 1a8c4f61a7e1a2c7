import 'dart:typed_data';

import '../events.dart';
import '../types.dart';

/// What the core wants to be done. The outside does it in this order.
sealed class Effect {
  const Effect();
}

/// Call `getToken`; the answer goes to `RelayCore.onToken`.
final class CallGetToken extends Effect {
  const CallGetToken(this.request, {required this.forceRefresh});

  final int request;
  final bool forceRefresh;
}

/// Open a socket; its life goes to `RelayCore.onOpened` and so on.
final class OpenSocket extends Effect {
  const OpenSocket(this.link, this.url, this.token, this.attempt);

  final int link;
  final Uri url;
  final String token;

  /// The number of this attempt, to be stored before the socket opens.
  final int attempt;
}

/// Write a message: a [String] or [Uint8List].
final class Write extends Effect {
  const Write(this.link, this.message);

  final int link;
  final Object message;
}

/// End a socket; the core hears no more of it.
final class CloseSocket extends Effect {
  const CloseSocket(this.link);

  final int link;
}

/// Ask the relay over HTTP why a handshake failed.
final class AskSession extends Effect {
  const AskSession(this.serial, this.url, this.token);

  final int serial;
  final Uri url;
  final String token;
}

/// An acknowledged send has ended: well, if [error] is null.
final class SettleAck extends Effect {
  const SettleAck(this.id, this.error);

  final String id;
  final SendException? error;
}

/// Report a status to the app.
final class EmitStatus extends Effect {
  const EmitStatus(this.status);

  final RelayStatus status;
}

/// Report the other device to the app.
final class EmitPeer extends Effect {
  const EmitPeer(this.peer);

  final Peer? peer;
}

/// Deliver a frame to the app.
final class EmitFrame extends Effect {
  const EmitFrame(this.frame);

  final Frame frame;
}

/// Deliver a message to the app, and say so with `RelayCore.onDelivered`.
final class EmitMessage extends Effect {
  const EmitMessage(this.message, {required this.ack});

  final RelayMessage message;

  /// Whether the sender waits for an acknowledgement.
  final bool ack;
}

/// Report anything else to the app.
final class EmitEvent extends Effect {
  const EmitEvent(this.event);

  final RelayEvent event;
}
