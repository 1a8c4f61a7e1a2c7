import 'dart:async';
import 'dart:typed_data';

import 'core/clock.dart';
import 'core/handshake.dart';

/// What the client meets outside: the network, time, and randomness. Tests
/// bring their own.
abstract interface class Environment {
  /// The time.
  Clock get clock;

  /// A number from 0 up to but not 1.
  double random();

  /// 96 random bits or more, as letters and digits.
  String randomName();

  /// Calls [ring] once, [after] this time.
  Timer startTimer(Duration after, void Function() ring);

  /// Opens a WebSocket and reports its life to [events].
  RelaySocket open(Uri url, String token, SocketEvents events);

  /// Asks the relay over HTTP whether it would let this client in. Null is
  /// yes. Never throws.
  Future<HandshakeFailure?> askSession(Uri url, String token);
}

/// A WebSocket.
abstract interface class RelaySocket {
  /// Writes a [String] or [Uint8List], now or once the socket is open.
  void write(Object message);

  /// Closes it. The future completes when nothing of it is left.
  Future<void> end();
}

/// The life of a [RelaySocket].
abstract interface class SocketEvents {
  /// The handshake is done; the server chose [protocol].
  void onOpened(String? protocol);

  /// The handshake came to nothing.
  void onFailed(HandshakeFailure failure);

  /// A text message arrived.
  void onText(String text);

  /// A binary message arrived.
  void onBinary(Uint8List bytes);

  /// The socket takes bytes [now], or keeps them.
  void onWritable(bool now);

  /// The socket was closed.
  void onClosed(int code, String reason);
}
