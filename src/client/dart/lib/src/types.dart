import 'dart:async';
import 'dart:typed_data';

/// The two slots of a user's room.
enum Device {
  /// The slot of a desktop: a browser, unless it asks for the other one.
  desktop,

  /// The slot of a phone: the default of this package.
  mobile;

  /// The other slot.
  Device get other => this == desktop ? mobile : desktop;
}

/// What a relay connection does now.
enum RelayState {
  /// An attempt is under way.
  connecting,

  /// The relay has welcomed this device.
  online,

  /// The next attempt comes by itself, or with `resume()` after
  /// `background()`.
  waiting,

  /// `getToken` gave null: nobody is signed in. `connect()` goes on.
  signedOut,

  /// Another app or tab has taken the slot. `connect()` takes it back.
  overwritten,

  /// The relay refuses this user or this app. `connect()` tries again.
  refused,

  /// `close()` was called. This is final.
  closed;

  /// Whether the connection comes about by itself from here.
  bool get isActive => this == connecting || this == online || this == waiting;
}

/// A [RelayState] with its reason.
final class RelayStatus {
  /// A status, as the library reports it.
  const RelayStatus(this.state, this.reason, {this.code = '', this.retryIn});

  /// What the connection does.
  final RelayState state;

  /// Why, in words for a person.
  final String reason;

  /// Why, as a stable word: a code of the relay, or one of this library's.
  /// Empty where there is nothing to add.
  final String code;

  /// With [RelayState.waiting]: when the next attempt comes. Null while the
  /// app is in the background.
  final Duration? retryIn;

  @override
  String toString() => '${state.name}: $reason';
}

/// A binary frame from the other device.
final class Frame {
  /// A frame, as the library delivers it.
  const Frame(this.stream, this.bytes);

  /// The stream: 0x00 to 0x7F are volatile, 0x80 to 0xFF reliable.
  final int stream;

  /// What the other device sent, without the stream's byte.
  final Uint8List bytes;

  /// Whether every frame of this stream arrives in order, rather than the
  /// newest alone.
  bool get isReliable => stream >= firstReliableStream;
}

/// The first reliable stream.
const int firstReliableStream = 0x80;

/// A JSON message, from the other device or from the server.
final class RelayMessage {
  /// A message, as the library delivers it.
  const RelayMessage({required this.from, this.data, this.text, this.id});

  /// The device that sent it; null where the server did.
  final Device? from;

  /// Any JSON value.
  final Object? data;

  /// The text of a client of the classic protocol, in place of [data].
  final String? text;

  /// The sender's id for it, where it has one.
  final String? id;
}

/// A connection that holds a slot.
final class Peer {
  /// A peer, as the relay reports it.
  const Peer(this.device, this.connection, this.generation);

  /// The slot that it holds.
  final Device device;

  /// Its id (a UUID).
  final String connection;

  /// Its number: of two connections in a slot, the higher one is current.
  final int generation;
}

/// The first message of a relay on each socket.
final class Welcome {
  /// A welcome, as the relay sends it.
  const Welcome({
    required this.connection,
    required this.device,
    required this.generation,
    required this.uid,
    required this.tenant,
    required this.peer,
    required this.expiresAt,
    required this.heartbeat,
    required this.limits,
    required this.instance,
    required this.features,
  });

  /// The id of this connection (a UUID).
  final String connection;

  /// The slot that it holds.
  final Device device;

  /// The number of this connection in its room.
  final int generation;

  /// The user, as the token names it.
  final String uid;

  /// The user's tenant; null where there is none.
  final String? tenant;

  /// The other device; null while it is away.
  final Peer? peer;

  /// When the token ends.
  final DateTime expiresAt;

  /// How often the relay sends a WebSocket ping on a silent connection.
  final Duration heartbeat;

  /// What the relay takes.
  final Limits limits;

  /// The relay process (a UUID).
  final String instance;

  /// What this relay understands beyond the first version of the protocol.
  final Set<String> features;
}

/// The limits of a connection.
final class Limits {
  /// Limits, as the relay names them.
  const Limits({
    this.messageBytes = 65536,
    this.messagesPerSecond = 0,
    this.queueBytes = 1 << 20,
    this.bytesPerSecond = 0,
  });

  /// The size of one message, stream byte included.
  final int messageBytes;

  /// Messages a second; 0 is no limit.
  final int messagesPerSecond;

  /// Bytes of reliable messages that the relay keeps for a slow receiver.
  final int queueBytes;

  /// Bytes a second; 0 is no limit.
  final int bytesPerSecond;
}

/// How long messages take each way, estimated from reports of both ends. It
/// grows with the queue on the path: above some 100 ms the network is slow.
final class Delay {
  /// An estimate. Null is "not known".
  const Delay({this.up, this.down});

  /// From this device to the relay.
  final Duration? up;

  /// From the relay to this device.
  final Duration? down;
}

/// A token source: the ID token of the user that is signed in, or null while
/// nobody is. `forceRefresh` asks for a fresh one; a cached one will not do.
typedef GetToken = FutureOr<String?> Function({required bool forceRefresh});

/// The relay client cannot take a message, or cannot say that it arrived.
final class SendException implements Exception {
  /// An exception, as the library throws it.
  const SendException(this.code, this.message);

  /// A stable word.
  ///
  /// Thrown at once: `queue_full`, `too_big`, `not_connected`.
  ///
  /// From a send with an acknowledgement also: `peer_absent` (nobody is
  /// there), `unsent` (the connection stopped first), `ack_unsupported` (the
  /// other device or the relay cannot acknowledge), `timeout` and
  /// `backplane_unavailable` (unknown: the message may have arrived),
  /// `closed`, or another code of the relay.
  final String code;

  /// The same in words.
  final String message;

  @override
  String toString() => 'SendException($code): $message';
}
