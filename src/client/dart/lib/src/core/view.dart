import 'dart:collection';

import '../events.dart';
import '../types.dart';
import 'effects.dart';

/// What the app sees, and what is to be done outside.
final class View {
  /// What is to be done, in order. The outside empties it.
  final Queue<Effect> effects = Queue();

  /// What the connection does now, and why.
  RelayStatus status = const RelayStatus(RelayState.connecting, 'it starts');

  /// The other device.
  Peer? peer;

  /// When the token of the current link ends.
  DateTime? expiresAt;

  /// Whether the relay has its way to other relays.
  bool backplaneIsUp = true;

  /// What the connection does now.
  RelayState get state => status.state;

  /// Wants [effect] to be done.
  void add(Effect effect) => effects.add(effect);

  /// Reports an event.
  void emit(RelayEvent event) => add(EmitEvent(event));

  /// Reports an error.
  void error(String code, String detail, String? id) =>
      emit(RelayError(code, detail, id: id));

  /// Sets and reports the other device.
  void setPeer(Peer? now) {
    if (now?.connection == peer?.connection) return;
    peer = now;
    add(EmitPeer(now));
  }

  /// Sets and reports the status.
  void setStatus(RelayStatus now) {
    if (state == RelayState.closed) return;
    if (now.state == state && state != RelayState.waiting) return;
    status = now;
    if (state != RelayState.online) setPeer(null); // nobody reports it
    add(EmitStatus(now));
  }

  /// Reports that an attempt is under way.
  void setConnecting() => setStatus(
        const RelayStatus(RelayState.connecting, 'an attempt is made'),
      );
}
